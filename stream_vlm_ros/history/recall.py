# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`RecallingInference`: the streaming engine, with a history of what its memory has let go.

Read `ask_stream` and `_Search`: a question runs on the stream's memory, as without a history, up to
its first token. What a few of its attention heads ask for is then looked up among the keys of all
that was seen. Where the past fits better than what is in memory, frames of it are read apart, and
the question is answered from these.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch

from stream_vlm_ros.config import HISTORY
from stream_vlm_ros.engine import (
    Answer,
    AnswerMetrics,
    ChoiceMetrics,
    ChunkResult,
    EvidenceEpisode,
    SavedMemory,
    VideoStreamingInference,
)
from stream_vlm_ros.engine.attention.base import Readout
from stream_vlm_ros.engine.cache.budget import USUAL_PIXELS
from stream_vlm_ros.engine.chunk_path import Encoded, Encoding
from stream_vlm_ros.engine.decode_path import Continuation
from stream_vlm_ros.engine.inputs.timestamps import check_about, frame_times
from stream_vlm_ros.engine.results import QuestionMetrics, TimeSpans, WarmUp
from stream_vlm_ros.engine.saving.memory_copy import MemoryCopy, ReadMemory
from stream_vlm_ros.engine.together import Steps, Work
from stream_vlm_ros.errors import (
    EmptyMemoryError,
    InvalidParameterError,
    OutOfHorizonError,
    whole_number,
)
from stream_vlm_ros.history.calibration import Calibration
from stream_vlm_ros.history.delayed import DEFAULT_MAX_PIXELS
from stream_vlm_ros.history.episodes import Episode, Scored
from stream_vlm_ros.history.evidence import IN_HISTORY, IN_MEMORY, MAX_NAMED, evidence_of
from stream_vlm_ros.history.folder import KEYS
from stream_vlm_ros.history.index import IndexState, KeyIndex, room_for_two
from stream_vlm_ros.history.limits import LOOKS
from stream_vlm_ros.history.reading import Reader, frames_for, grids_for
from stream_vlm_ros.history.results import RecallCacheInfo, TierInfo
from stream_vlm_ros.history.selection import GRID_FRAMES, evenly
from stream_vlm_ros.history.store import FrameStore, KeptFrame
from stream_vlm_ros.history.tiers import (
    FeatureTier,
    KeyTier,
    PictureTier,
    Readable,
    SeenGrid,
    Shown,
    thinned,
)
from stream_vlm_ros.history.wants import Want, Which, wanted_by

READABLE = "readable"
INDEX_BYTES = 256 * 2**20
MAX_TOKENS = 4096
PRESENT = 2  # grids: the newest frames, read behind what was fetched

log = logging.getLogger(__name__)

T = TypeVar("T", KeptFrame, SeenGrid)
_Metrics = TypeVar("_Metrics", bound=QuestionMetrics)
About = tuple[float, float] | None


class Look(NamedTuple):
    """Stretches of time that are read together.

    Attributes:
        named: what of them an answer names of which these stamps were read.
    """

    stretches: tuple[tuple[float, float], ...]
    named: Callable[[Sequence[float]], tuple[EvidenceEpisode, ...]]


class Plan(NamedTuple):
    """What a question is answered from.

    Attributes:
        looks: what to fetch, one after the other; none: the memory answers.
        episodes: what the memory holds of it.
        seconds: that the search took.
        present: grids, the newest up to stamp ``until``, that are read behind what is fetched; none
            where a question names a time: it would be answered about the present.
        until: the newest stamp when the question came. A tier that lacks it has no present.
    """

    looks: tuple[Look, ...]
    episodes: tuple[EvidenceEpisode, ...]
    seconds: float
    present: int
    until: float


class RecallingInference(VideoStreamingInference):
    """Streams as `VideoStreamingInference`, and answers about what the memory has let go.

    Frames are kept as pictures, and of every grid the keys of a few calibrated heads; both within
    bounds. The stream itself is the same to the bit. With a folder (of ``store``) both outlive the
    process.

    Not thread-safe: one thread owns an engine.

    Args:
        model, processor, device, eviction_config: as for `VideoStreamingInference`.
        calibration: which heads find what a question asks for, and from which score on.
        store: where pictures are kept; None: in memory, within the store's own bounds.
        history: what `ask` does by itself: ``never`` (answer from the memory alone), ``auto`` (look
            back where the past fits the question, and the memory does not hold it) or ``always``
            (wherever anything fits at all).
        index_bytes: that the keys may take.
        max_history_tokens: of vision, that are read for one answer.
        history_pixels: larger pictures are reduced to so many pixels when they are read.
        feature_bytes: of the host's memory, for vision features of the newest frames: what lies
            there is read in a quarter of the time that pictures take. 0: none.
        options: as for `VideoStreamingInference`.

    Raises:
        What `VideoStreamingInference` raises; CalibrationError: it is of another model.

    Attributes:
        index: the keys of what was seen.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        device: str | torch.device | None = None,
        eviction_config: Any = None,
        *,
        calibration: Calibration,
        store: FrameStore | None = None,
        history: str = "auto",
        index_bytes: int = INDEX_BYTES,
        max_history_tokens: int = MAX_TOKENS,
        history_pixels: int | None = DEFAULT_MAX_PIXELS,
        feature_bytes: int = 0,
        **options: Any,
    ):
        self.history = _mode(history)
        index_bytes = whole_number("index_bytes", index_bytes, least=1)
        self._max_tokens = whole_number("max_history_tokens", max_history_tokens, least=1)
        calibration.check_fits(model)
        self.calibration = calibration
        queries, _ = calibration.reads(model.config).heads
        self._question_reads = Readout(queries)
        super().__init__(
            model, processor, device, eviction_config, question_reads=self._question_reads,
            **options,
        )  # fmt: skip
        self._reader_options: dict[str, Any] = {
            name: options[name]
            for name in ("min_pixels", "system_prompt", "max_tail_tokens", "compile",
                         "question_path", "max_pause", "layout")
            if name in options
        }  # fmt: skip
        self._reader_options["max_pixels"] = self._frames.settings.at_most(history_pixels)
        self._readers: list[Reader] = []
        self._cleared = 0  # how often, or closed: what was asked before that ends
        self._pictures = PictureTier(FrameStore() if store is None else store)
        self._features = FeatureTier(whole_number("feature_bytes", feature_bytes, least=0))
        self._readable = Readable(self._pictures, self._features)
        self._check_room(index_bytes)
        folder = self._pictures.store.folder
        self.keeps_source_time = folder is not None
        self.index = KeyIndex(
            calibration.keys(model.config),
            model.kv_shape.head_dim,
            index_bytes,
            dtype=model.dtype,
            device=self.device,
            folder=None if folder is None else folder / KEYS,
            model=calibration.model,
        )
        self._keys = KeyTier(self.index)
        self.cache_manager.accompany(KEYS, self._keys, Readout(keys=self.index.reads))
        self.cache_manager.accompany(READABLE, self._readable)

    def _check_room(self, index_bytes: int) -> None:
        """Whether an index has room for two grids: of the smallest pictures, and of larger ones.

        Raises InvalidParameterError: not even of those; what may come later is said.
        """
        heads, frames = self.calibration.keys(self.model.config), self._frames.settings

        def needed(pixels: int) -> int:
            tokens = -(-pixels // frames.factor**2)
            return room_for_two(len(heads), self.model.kv_shape.head_dim, self.model.dtype, tokens)

        if index_bytes < (room := needed(self.min_pixels)):
            raise InvalidParameterError(
                f"index_bytes is {index_bytes:,}, but the keys of two grids take {room:,} even of "
                "the smallest pictures: allow for them"
            )
        pixels = frames.at_most(self.max_pixels or USUAL_PIXELS)
        if index_bytes < (room := needed(pixels)):
            log.warning(
                "the index of the history may take %s bytes, but the keys of two grids of %s "
                "pixels take %s: chunks of such pictures will be refused. Give it more room "
                "(history_index_megabytes)", f"{index_bytes:,}", f"{pixels:,}", f"{room:,}",
            )  # fmt: skip

    # -- seeing ------------------------------------------------------------------------------

    def append_steps(
        self,
        frames: Sequence[Any],
        fps: float | None = None,
        timestamps: Sequence[float] | None = None,
        encoding: Encoding | Encoded | None = None,
    ) -> Steps[ChunkResult]:
        """As `VideoStreamingInference.append_steps`; the frames are kept for the history.

        What its store cannot take (a full disk) is said, and the stream goes on without.
        """
        self._follow()
        before = self.cache_manager.state
        encoding = encoding or self.prepare(frames)
        stamps = frame_times(len(frames), fps, timestamps, before.last_stamp)
        if before.last_stamp is None and stamps[0] < self._newest:
            # What a folder holds is of another time.
            log.warning(
                "%s holds what was seen up to %.1f s, and this begins at %.1f s: that was an "
                "earlier run, which stays there and is not searched",
                self._pictures.store.folder or "the history", self._newest, stamps[0],
            )  # fmt: skip
            self._begin_epoch()
        self._keys.waits = not self._readable.is_in_its_epoch()
        try:
            done = yield from super().append_steps(frames, fps, timestamps, encoding)
        finally:
            # What the memory has taken is kept, also where the call was interrupted since.
            if self.cache_manager.state.chunks != before.chunks:
                try:
                    self._pictures.add(frames, stamps)
                finally:
                    self._reach()
        # The store's bound in time holds for all that was seen.
        self._features.let_go_before(stamps[-1] - self._pictures.store.max_seconds)
        return done

    def _append(
        self, grid: tuple[int, int, int], stamps: list[float], encoding: Work, started: float
    ) -> Steps[ChunkResult]:
        """As `VideoStreamingInference._append`; for the history, what was seen is kept."""
        steps = _WithFirst(super()._append(grid, stamps, encoding, started))
        before = self.cache_manager.state.chunks
        try:
            return (yield from steps)
        finally:
            if self._features.max_bytes and self.cache_manager.state.chunks != before:
                self._keep_features(steps.first.unflatten(0, grid), stamps)

    def _keep_features(self, features: torch.Tensor, stamps: list[float]) -> None:
        """Keep ``[grids, rows, columns, hidden]`` that the memory has taken."""
        try:
            self._features.add(features, self._stamps_of_grids(stamps))
        except BaseException:  # interrupted: what is held would pass for whole, and lacks these
            self._features.clear()
            raise

    # -- answering ---------------------------------------------------------------------------

    def ask_stream(
        self,
        question: str,
        max_new_tokens: int = 128,
        do_sample: bool = False,
        temperature: float = 1.0,
        update_state: bool = False,
        *,
        about: tuple[float, float] | None = None,
        cancel: Callable[[], bool] | None = None,
        history: str | None = None,
        **options: Any,
    ) -> Answer:
        """As `VideoStreamingInference.ask_stream`, looking back where ``history`` has it so.

        Args:
            update_state: as there; before anything was streamed there is nothing to keep it behind.
            about: narrows the history, too: what is remembered in any tier is no longer refused.
            history: in place of the engine's own.
        """
        mode = self.history if history is None else _mode(history)
        if mode == "never":
            return super().ask_stream(
                question, max_new_tokens, do_sample, temperature, update_state,
                about=about, cancel=cancel, **options,
            )  # fmt: skip
        started = time.perf_counter()
        asked_about = check_about(about)
        search, asked = self._search_of(question, asked_about, mode), self._cleared
        plan: Plan | None = None

        def fetches() -> bool:
            """Asked when the prompt has run, and before each token after it."""
            nonlocal plan
            plan = plan or search()
            return bool(plan.looks) or (cancel is not None and cancel())

        how = (max_new_tokens, do_sample, temperature)
        plain, first = super().ask_stream, self._first_reader()
        if first is None:
            live = plain(question, *how, update_state, cancel=fetches, read=search.read, **options)
        else:
            live = first.ask_stream(question, *how, cancel=fetches, read=search.read, **options)

        def write() -> Generator[str | Continuation, None, AnswerMetrics]:
            yield from live.steps()
            metrics = live.metrics
            assert metrics is not None  # it has ended
            if plan is None or not plan.looks or (cancel is not None and cancel()):
                return self._named(metrics, plan, live.text)
            told = yield from self._answer_from(
                plan, metrics, started, asked,
                lambda reader: reader.ask_stream(question, *how, cancel=cancel, **options),
            )  # fmt: skip
            if self._cleared != asked:
                done = metrics if told is None else told[1]
                return dataclasses.replace(done, finish_reason="cancelled", episodes=())
            if told is None:  # its pictures are gone
                self._check_remembered(asked_about)
                again = plain(question, *how, update_state, cancel=cancel, **options)
                yield from again.steps()
                assert again.metrics is not None
                return again.metrics
            text, done = told
            if (
                update_state
                and done.finish_reason != "cancelled"
                and self.cache_manager.state.frames
            ):
                self._repeat_exchange(question, self._chat.plain(text)[:max_new_tokens])
            return done

        return Answer(write(), live.close)

    def ask_choice(
        self,
        question: str,
        choices: Sequence[str],
        *,
        about: tuple[float, float] | None = None,
        history: str | None = None,
        read: Readout | None = None,
    ) -> tuple[str, ChoiceMetrics]:
        """The likeliest of the given answers; see `ask_stream` for where it is read from."""
        mode = self.history if history is None else _mode(history)
        if mode == "never":
            return super().ask_choice(question, choices, about=about, read=read)
        started = time.perf_counter()
        asked_about = check_about(about)
        search = self._search_of(question, asked_about, mode)
        first = self._first_reader()
        ask = super().ask_choice if first is None else first.ask_choice
        choice, metrics = ask(question, choices, read=search.read)
        plan = search()
        done: tuple[str, ChoiceMetrics] | None = None
        for look in plan.looks:
            begun, reader = time.perf_counter(), self._reader()
            tokens = self._read(look, reader, plan)
            if not tokens:
                continue
            fetch = time.perf_counter() - begun
            choice, told = reader.ask_choice(question, choices)
            not_seen = self.calibration.says_not_seen(choice)
            named = () if not_seen else look.named(reader.stamps)
            done = choice, self._finished(told, metrics, named, plan, tokens, fetch, started)
            if not not_seen:
                break
        if plan.looks and done is None:  # their pictures are gone
            self._check_remembered(asked_about)
        return done or (choice, self._named(metrics, plan, choice))

    def search(self, text: str, about: About = None, count: int = 10) -> list[EvidenceEpisode]:
        """The episodes that fit a sentence best, without asking: the best first.

        Raises what `ask` raises, and InvalidParameterError for a count below 1.
        """
        count = whole_number("count", count, least=1)
        search = self._search_of(text, check_about(about), "always", keys=True)
        first = self._first_reader()
        ask = super().ask_stream if first is None else first.ask_stream
        ask(text, 1, cancel=lambda: True, read=search.read).complete()
        scored = search.scored()
        best = scored.best_episodes(self.calibration.looks, count)
        best.sort(key=scored.best_of, reverse=True)
        return [self._episode(scored, one, search.spans) for one in best]

    # -- looking at the memory ---------------------------------------------------------------

    def thumbnail(self, stamp: float, max_size: int = 320) -> bytes | None:
        """The kept frame of that stamp as JPEG; None: it is not kept (any more).

        Raises InvalidParameterError for a ``max_size`` below 1.
        """
        self._follow()
        return self._pictures.thumbnail(stamp, whole_number("max_size", max_size, least=1))

    def kept_stamp(self, near: float) -> float | None:
        """The stamp of the kept frame next to that time; None: no frame is kept."""
        self._follow()
        return self._pictures.store.stamp_near(near)

    def get_cache_info(self) -> RecallCacheInfo:
        """As `VideoStreamingInference.get_cache_info`, and what the history holds."""
        self._follow()
        stream = super().get_cache_info()
        fields = {field.name: getattr(stream, field.name) for field in dataclasses.fields(stream)}
        held, folder = self._held, self._pictures.store.folder
        keys = TierInfo(
            name="keys",
            grids=held.grids,
            frames=GRID_FRAMES * held.grids,
            bytes=held.nbytes,
            max_bytes=self.index.max_bytes,
            where=str(folder / KEYS) if folder else _place(self.index.device),
            oldest=held.oldest,
            newest=held.newest,
            error=self._keys.error,
            left_out=held.left_out,
        )
        seen = (self._features.info(),) if self._features.max_bytes else ()
        return RecallCacheInfo(**fields, tiers=(self._pictures.info(), *seen, keys))

    def forget(self, start: float, stop: float) -> int:
        """Erase pictures and keys of a time, in seconds of the source; how many frames there were.

        What is in the KV memory stays, `reset` forgets that; and an answer that is being written
        ends as it began.

        Raises FrameStoreError: the folder cannot be written; try again, so that all is erased.
        """
        about = check_about((start, stop))
        assert about is not None
        self._follow()
        self._release_readers(busy=False)  # they hold what was read last
        try:
            self.cache_manager.amend(KEYS, lambda held: self.index.forget(held, *about))
        finally:
            self._features.forget(*about)
            forgotten = self._pictures.forget(*about)
        return forgotten

    def reset(self) -> None:
        """Forget everything, the history too. An answer being written ends as cancelled."""
        self._cleared += 1
        self._readable.clear()
        self.index.clear()
        self._release_readers()
        super().reset()

    def start_epoch(self) -> None:
        """As `reset`, for a source whose time restarts: what a folder holds stays there.

        It is found no more, and makes room for what comes as the oldest that there is.
        """
        self._cleared += 1
        self._begin_epoch()
        self._release_readers()
        super().reset()

    def copy_memory(self) -> MemoryCopy:
        """As `VideoStreamingInference.copy_memory`; loaded, it knows its history."""
        self._follow()
        return MemoryCopy.take(self.cache_manager, self._binding(), self._pictures.store.course)

    def load_memory(
        self,
        path: str | Path | ReadMemory,
        *,
        origin_ns: int | None = None,
        check: Callable[[SavedMemory], None] | None = None,
    ) -> SavedMemory:
        """As `VideoStreamingInference.load_memory`; the history stays if it is the one that the
        memory had when it was saved, and no further."""
        self._follow()
        held, newest, course = self._held, self._newest, self._pictures.store.course
        saved = super().load_memory(path, origin_ns=origin_ns, check=check)
        loaded = self.cache_manager.state.last_stamp
        if newest > -math.inf and (saved.course != course or loaded is None or loaded < newest):
            log.warning(
                "the history is %s the memory that was loaded: it is not searched",
                "ahead of" if saved.course == course else "of another course of time than",
            )
            self._begin_epoch()
        else:
            self.cache_manager.amend(KEYS, lambda _: held)
        return saved

    def close(self) -> None:
        """Give the store back; what it keeps in a folder stays there.

        An answer that is read from it ends as cancelled.
        """
        self._cleared += 1
        self._release_readers()
        with ExitStack() as closing:  # whatever fails, the rest is given back
            closing.callback(self._pictures.store.close)
            closing.callback(self._features.clear)
            closing.callback(self.index.close)
            self._follow()

    # -- searching ---------------------------------------------------------------------------

    @property
    def _held(self) -> IndexState:
        held: IndexState = self.cache_manager.companion(KEYS)
        return held

    @property
    def _newest(self) -> float:
        """The newest stamp that the history holds, in whichever tier; -inf: it is empty."""
        keys = self._held.newest
        ends = [last for _, last in self._readable.spans]
        return max(ends if keys is None else [*ends, keys], default=-math.inf)

    def _follow(self) -> None:
        """Undo what came after a snapshot or a clone that the memory has gone back to.

        To be called before a tier is looked at. (The keys are the memory's: they went with it; but
        not those in a folder.)
        """
        if self._readable.undo(self.cache_manager.companion(READABLE)):
            self._reach()
        held = self._held
        if (settled := self._keys.settle(held)) is not held:
            self.cache_manager.amend(KEYS, lambda _: settled)

    def _reach(self) -> None:
        """What the tiers hold now belongs to the memory as it is now."""
        self.cache_manager.amend(READABLE, lambda _: self._readable.mark)

    def _search_of(self, question: str, about: About, mode: str, keys: bool = False) -> _Search:
        """A search of the history as it is now; OutOfHorizonError if nothing of ``about`` is left.

        Args:
            keys: what is known by its keys alone will do; else it is to be read.
        """
        self._follow()
        state, spans = self.cache_manager.state, self.cache_manager.time_spans()
        if state.frames == 0 and self._pictures.newest is None:
            raise EmptyMemoryError("nothing has been seen yet: append frames before asking")
        newest = max(self._newest, -math.inf if state.last_stamp is None else state.last_stamp)
        if about is not None:
            held = self._held
            known = keys and _overlap(*about, [(held.oldest, held.newest)])
            if not known and not self._readable.has_some_of(*about):
                self._check_remembered(about)
            # An open end is that of what was seen when the question came.
            about = about[0], min(about[1], newest)
        return _Search(self, question, about, mode, self._held, spans, newest)

    def _check_remembered(self, about: About) -> None:
        """Raise OutOfHorizonError for a time of which nothing is in memory either."""
        spans = self.cache_manager.time_spans()
        if about is None or _overlap(*about, spans):
            return
        within = ", ".join(
            f"{first:.3f} to {last:.3f} s" for first, last in [*spans, *self._readable.spans][-3:]
        )
        raise OutOfHorizonError(
            f"nothing from {about[0]:.3f} to {about[1]:.3f} s is remembered. What the memory and "
            f"its history hold lies within {within}"
        )

    def _first_reader(self) -> Reader | None:
        """Where a question runs before anything was streamed: over the newest frames kept."""
        if self.cache_manager.state.frames:
            return None
        reader = self._reader()
        pictures = self._pictures
        newest = pictures.store.newest(frames_for(PRESENT))
        reader.read([*pictures.load(newest).values()])
        return reader

    def _episode(
        self, scored: Scored, episode: Episode, spans: TimeSpans, tier: str = ""
    ) -> EvidenceEpisode:
        stretch = scored.stamps_of(episode)
        tier = tier or (IN_MEMORY if _within(*stretch, spans) else IN_HISTORY)
        stamps = self._pictures.stamps(*stretch)
        return evidence_of(stretch, stamps, scored.best_of(episode), tier)

    # -- fetching ----------------------------------------------------------------------------

    def _reader(self) -> Reader:
        """One that no answer is being written from."""
        for reader in self._readers:
            if not reader.busy:
                return reader
        self._readers.append(
            Reader(
                self.model, self.processor, self.device, self._max_tokens, len(self._chat.head),
                question_reads=self._question_reads, **self._reader_options,
            )
        )  # fmt: skip
        return self._readers[-1]

    def warm_up(self) -> WarmUp:
        """Make ready what the first question would wait for, and the first that looks back."""
        told = super().warm_up()
        read = self._reader().warm_up()
        return dataclasses.replace(
            told, seconds=told.seconds + read.seconds, bytes=told.bytes + read.bytes
        )

    def _begin_epoch(self) -> None:
        """What the tiers hold is of another time, and is read no more, whatever a disk can take."""
        self._readable.start_epoch()
        self._reach()
        self.cache_manager.amend(KEYS, self._keys.start_epoch)

    def _release_readers(self, busy: bool = True) -> None:
        """Forget what they have read; ``busy``: also where an answer is being written from it."""
        for reader in self._readers:
            if busy or not reader.busy:
                reader.reset()

    def _read(self, look: Look, reader: Reader, plan: Plan) -> int:
        """Let it read a look, then the present, within its bound in tokens.

        Returns how many tokens of vision; 0: nothing of the look is left.
        """
        self._follow()
        seen = self._seen_grids(look, reader, plan)
        if seen is not None:
            return reader.read_features(seen) if seen else 0
        shown = self._shown(look, reader, plan)
        return reader.read(shown) if shown else 0

    def _seen_grids(self, look: Look, reader: Reader, plan: Plan) -> list[SeenGrid] | None:
        """A look's grids with their features; None: some were let go, or are too large to read."""
        stretches = [self._features.between(first, last) for first, last in look.stretches]
        held = [some for some in stretches if some is not None]
        present = self._features.present(plan.present, plan.until)
        both = [grid for some in (*held, present) for grid in some]
        if len(held) < len(stretches) or not all(map(reader.reads, both)):
            return None
        if not any(held):
            return []
        tokens = max(grid.tokens for grid in both)
        return _selected(held, present, grids_for(reader.max_tokens, tokens), 1)[0]

    def _shown(self, look: Look, reader: Reader, plan: Plan) -> list[Shown]:
        """A look's frames with their pictures; empty: none is left."""
        store = self._pictures.store
        stretches = [store.between(first, last) for first, last in look.stretches]
        present = self._pictures.present(frames_for(plan.present), plan.until)
        if not any(stretches):
            return []
        sizes = {(frame.width, frame.height) for some in (*stretches, present) for frame in some}
        grids = grids_for(reader.max_tokens, max(reader.grid_tokens(*size) for size in sizes))
        chosen, fetched = _selected(stretches, present, grids, GRID_FRAMES)
        shown = self._pictures.load(chosen)
        return [*shown.values()] if fetched & shown.keys() else []

    def _answer_from(
        self,
        plan: Plan,
        asked: AnswerMetrics,
        started: float,
        cleared: int,
        ask: Callable[[Reader], Answer],
    ) -> Generator[str, None, tuple[str, AnswerMetrics] | None]:
        """Read one look after the other until the model says that it has seen what is asked about.

        None: nothing of them is left, or all was cleared or closed since.

        Args:
            cleared: how often that was when it was asked.
        """
        done: tuple[str, AnswerMetrics] | None = None
        said = ""  # what was not yielded yet
        for number, look in enumerate(plan.looks):
            yield ""  # whoever streams between two pieces has a turn
            if self._cleared != cleared:
                return done
            begun, reader = time.perf_counter(), self._reader()
            tokens = self._read(look, reader, plan)
            if not tokens:
                continue
            fetch, said = time.perf_counter() - begun, ""
            read = look.named(reader.stamps)  # now: the store may be closed before it has ended
            more = number + 1 < len(plan.looks)
            with ask(reader) as answer:
                for piece in answer:
                    said += piece
                    if not (more and self.calibration.may_say_not_seen(answer.text)):
                        yield said
                        said = ""
            told = answer.metrics
            assert told is not None  # it has ended
            not_seen = self.calibration.says_not_seen(answer.text)
            named = () if not_seen else read
            done = answer.text, self._finished(told, asked, named, plan, tokens, fetch, started)
            if not more or not not_seen or told.finish_reason == "cancelled":
                break
        if said:
            yield said
        return done

    def _finished(
        self, told: _Metrics, asked: QuestionMetrics, named: tuple[EvidenceEpisode, ...],
        plan: Plan, tokens: int, fetch: float, started: float,
    ) -> _Metrics:  # fmt: skip
        """Metrics of an answer that a reader has given in the stream's place."""
        latency = time.perf_counter() - started
        return dataclasses.replace(
            told,
            ttft=latency - (told.latency - told.ttft),
            latency=latency,
            cache_length=asked.cache_length,
            time_spans=asked.time_spans,
            episodes=named,
            fetched_tokens=tokens,
            search_latency=plan.seconds,
            fetch_latency=fetch,
        )

    def _named(self, metrics: _Metrics, plan: Plan | None, answer: str) -> _Metrics:
        """Metrics of what the memory answered; "not seen" rests on no episode."""
        if plan is None:
            return metrics
        named = () if self.calibration.says_not_seen(answer) else plan.episodes
        return dataclasses.replace(metrics, episodes=named, search_latency=plan.seconds)


class _WithFirst:
    """A chunk's steps, and what was sent to the first of them: its features."""

    def __init__(self, steps: Steps[ChunkResult]):
        self._steps = steps
        self.first = torch.empty(0)
        self._sent = False

    def __iter__(self) -> _WithFirst:
        return self

    def __next__(self) -> Work:
        return next(self._steps)

    def send(self, result: torch.Tensor) -> Work:
        if not self._sent:
            self.first, self._sent = result, True
        return self._steps.send(result)

    def throw(self, *fault: Any) -> Work:
        return self._steps.throw(*fault)

    def close(self) -> None:
        self._steps.close()


class _Search:
    """A search of a history as it was when this was made, for one question.

    Attributes:
        read: is to be given the question's queries before the search is made.
    """

    def __init__(
        self,
        engine: RecallingInference,
        question: str,
        about: About,
        mode: str,
        held: IndexState,
        spans: TimeSpans,
        newest: float,
    ):
        self._engine, self._question, self._about, self._mode = engine, question, about, mode
        self._held, self.spans, self._until = held, spans, newest
        self.read = engine._question_reads.like()

    def __call__(self) -> Plan:
        """What to answer from."""
        begun = time.perf_counter()
        calibration = self._engine.calibration
        scored, want = self.scored(), wanted_by(self._question)
        hits = scored.episodes(scored.hits(calibration.threshold, calibration.of_best))
        if self._about is not None:  # a question about a time is not answered from another
            hits = [one for one in hits if self._can_be_read(scored, one)]
        if not hits and self._mode == "always":
            hits = scored.best_episodes(calibration.looks, 1)
        chosen = self._chosen(scored, hits, want)
        looks: tuple[Look, ...] = ()
        if chosen and not all(self._in_memory(scored, one) for one in chosen):
            looks = tuple(self._looks(scored, hits, chosen, want))
        elif not chosen and self._about is not None and not _within(*self._about, self.spans):
            looks = (self._all_of(scored, self._about),)
        named = () if looks else self._named(scored, chosen[-MAX_NAMED:])
        present = 0 if self._about is not None else PRESENT
        return Plan(looks, named, time.perf_counter() - begun, present, self._until)

    def scored(self) -> Scored:
        """All grids of the history with their scores."""
        engine, calibration = self._engine, self._engine.calibration
        queries = calibration.queries(self.read, engine._chat.words(self._question))
        keys = calibration.key_of(engine.model.config)
        rows: dict[int, torch.Tensor] = {}
        # Those with as many queries in one search: one, where all are taken from the last token.
        for count in {len(some) for some in queries}:
            mine = [at for at, some in enumerate(queries) if len(some) == count]
            found = engine.index.search(
                self._held, torch.stack([queries[at] for at in mine]),
                [keys[at] for at in mine], self._about,
            )  # fmt: skip
            rows |= dict(zip(mine, found.scores, strict=True))
        spans = torch.from_numpy(found.spans).to(found.scores.device)
        scores = calibration.combine(torch.stack([rows[at] for at in sorted(rows)]), spans)
        return Scored(
            found.serials, found.spans, found.stamps, found.left_out,
            scores.float().cpu().numpy(), calibration.tail,
        )  # fmt: skip

    def _named(
        self, scored: Scored, episodes: Sequence[Episode], tier: str = ""
    ) -> tuple[EvidenceEpisode, ...]:
        return tuple(self._engine._episode(scored, one, self.spans, tier) for one in episodes)

    def _in_memory(self, scored: Scored, episode: Episode) -> bool:
        """Whether the memory answers about it; never where the history is always to be read."""
        return self._mode != "always" and _within(*scored.stamps_of(episode), self.spans)

    def _can_be_read(self, scored: Scored, episode: Episode) -> bool:
        """Whether pictures, features or the memory hold anything of it."""
        stretch = scored.stamps_of(episode)
        return _overlap(*stretch, self.spans) or self._engine._readable.has_some_of(*stretch)

    def _chosen(self, scored: Scored, hits: list[Episode], want: Want) -> list[Episode]:
        """What the question wants of the hits, oldest first."""
        match want.which:
            case Which.NEWEST:
                return hits[-1:]
            case Which.OLDEST:
                return hits[:1]
            case Which.BEST:
                return sorted(hits, key=scored.best_of)[-1:]
            case Which.ALL:
                return hits

    def _looks(
        self, scored: Scored, hits: list[Episode], chosen: list[Episode], want: Want
    ) -> Iterator[Look]:
        """What to read, one after the other."""
        if want.which is Which.ALL:
            yield self._look(scored, chosen, want)
            return
        ordered = sorted(hits, key=scored.best_of) if want.which is Which.BEST else list(hits)
        if want.which is not Which.OLDEST:
            ordered.reverse()
        some = ordered[:LOOKS]
        for one in reversed(scored.best_episodes(self._engine.calibration.looks, 2 * LOOKS)):
            if len(some) < LOOKS and not any(
                one.first <= o.last and o.first <= one.last for o in some
            ):
                some.append(one)
        for one in some:
            if not self._in_memory(scored, one):
                yield self._look(scored, [one], want)

    def _all_of(self, scored: Scored, about: tuple[float, float]) -> Look:
        """A named time as it is, where nothing in it fits."""
        count = len(scored.scores)
        whole = [Episode(0, count - 1)] if count else []
        return Look((about,), lambda _: self._named(scored, whole, IN_HISTORY))

    def _look(self, scored: Scored, episodes: Sequence[Episode], want: Want) -> Look:
        def named(read: Sequence[float]) -> tuple[EvidenceEpisode, ...]:
            def rests_on(one: Episode) -> bool:
                first, last = scored.stamps_of(one)
                return any(first <= stamp <= last for stamp in read)

            best = sorted(filter(rests_on, episodes), key=scored.best_of)[-MAX_NAMED:]
            return self._named(scored, sorted(best), IN_HISTORY)

        stretches = [scored.stamps_of(one, want.before, want.after) for one in episodes]
        return Look(tuple(stretches), named)


def _selected(
    stretches: Sequence[Sequence[T]], present: Sequence[T], grids: int, of: int
) -> tuple[list[T], set[int]]:
    """Some of each stretch, and the newest, within so many grids.

    Where there are more stretches than grids fit, some of them, evenly spread.

    Args:
        stretches: of which not all may be empty.
        of: a grid is so many of them.

    Returns:
        Them, oldest first, and the ids of those of the stretches.
    """
    newest = min(-(-len(present) // of), grids - 1)
    some = evenly([one for one in stretches if one], grids - newest)
    each = (grids - newest) // len(some)
    fetched = {one.id: one for part in some for one in thinned(part, each, of)}
    behind = present[-of * newest :] if newest else []
    chosen = fetched | {one.id: one for one in behind}
    return [chosen[number] for number in sorted(chosen)], set(fetched)


def _mode(history: str) -> str:
    if history not in HISTORY:
        raise InvalidParameterError(
            f"history must be one of {', '.join(HISTORY)}, not {history!r:.50}"
        )
    return history


def _within(first: float, last: float, spans: TimeSpans) -> bool:
    return any(start <= first and last <= stop for start, stop in spans)


def _overlap(first: float, last: float, spans: Iterable[tuple[float | None, float | None]]) -> bool:
    return any(
        start is not None and stop is not None and start <= last and first <= stop
        for start, stop in spans
    )


def _place(device: torch.device) -> str:
    return "memory" if device.type == "cpu" else "device"
