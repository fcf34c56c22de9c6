# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`DelayedBatchInferenceEngine`: keep frames cheaply, encode them when a question comes.

Read `ask_stream` and `_encode`: they are the whole engine. What is kept and chosen is decided in
`manager`; how it is encoded and answered is the streaming engine's.
"""

from __future__ import annotations

import dataclasses
import math
import time
import weakref
from collections.abc import Generator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import torch

from stream_vlm_ros.engine import (
    Answer,
    AnswerMetrics,
    ChoiceMetrics,
    EvidenceEpisode,
    InferenceEngine,
    StreamProcessor,
    VideoStreamingInference,
)
from stream_vlm_ros.engine.cache.manager import KVCacheManager, Snapshot
from stream_vlm_ros.engine.inputs.frames import to_arrays
from stream_vlm_ros.engine.inputs.picture_sizes import check_shape
from stream_vlm_ros.engine.inputs.timestamps import check_about, frame_times
from stream_vlm_ros.engine.model.base import StreamModel
from stream_vlm_ros.engine.results import WarmUp
from stream_vlm_ros.errors import (
    EmptyMemoryError,
    PictureLostError,
    StreamBusyError,
    whole_number,
)
from stream_vlm_ros.history.calibration import NOT_SEEN, says_not_seen
from stream_vlm_ros.history.evidence import IN_HISTORY, MAX_NAMED, evidence_of, joined
from stream_vlm_ros.history.manager import SmartFrameManager
from stream_vlm_ros.history.reference_names import DelayedBatchNames
from stream_vlm_ros.history.results import (
    DelayedCacheInfo,
    EncodedAnswer,
    EncodedChoice,
    EngineStatistics,
    KeptResult,
)
from stream_vlm_ros.history.selection import (
    GRID_FRAMES,
    seconds_per_grid,
)
from stream_vlm_ros.history.store import KeptFrame
from stream_vlm_ros.history.tiers import as_jpeg

DEFAULT_MAX_PIXELS = 100_352
MAX_EXCHANGES = 16
_CHUNK_GRIDS = 4  # encoded together; the step in which an encoded prefix can be kept

Grid = tuple[KeptFrame, ...]
_Encoded = TypeVar("_Encoded", EncodedAnswer, EncodedChoice)
About = tuple[float, float] | None


@dataclass(frozen=True)
class _Piece:
    """A chunk that is encoded: its frames, at which size, its vision tokens, the moment after."""

    ids: tuple[tuple[int, ...], ...]
    max_pixels: int | None
    tokens: int
    after: Snapshot


@dataclass
class EncodingCounts:
    """What encoding and answering has cost since the start. Latencies in seconds.

    Attributes:
        encode_count: times that frames were encoded for a question, wholly or in part.
        encoded_tokens: tokens computed in all encodings together.
        reused_tokens: tokens of frames that an encoding found in place.
        encoding_latency: of the last encoding.
        generation_latency: of the last answer, without the encoding before it.
    """

    encode_count: int = 0
    encoded_tokens: int = 0
    reused_tokens: int = 0
    encoding_latency: float = 0.0
    generation_latency: float = 0.0


class DelayedBatchInferenceEngine(DelayedBatchNames, InferenceEngine):
    """Keeps frames, not their KV, and encodes a choice of them when a question comes.

    The same face as `VideoStreamingInference`. Later questions use what is encoded until frames
    come; then only what follows the first difference of the new choice is computed again.

    Not thread-safe: one thread owns an engine.

    Args:
        model, processor, device: as for `VideoStreamingInference`.
        memory: which frames are kept and chosen; None: a `SmartFrameManager` in memory.
        max_sampled_frames: most frames encoded for a question; an odd number counts as one less.
        min_pixels, max_pixels: bounds on height x width of a frame when it is encoded;
            ``max_pixels`` or the checkpoint's own bound, whichever is less.
        layout, system_prompt, max_tail_tokens, compile, question_path: as for
            `VideoStreamingInference`.
        not_seen: whole answers by which the model says that it does not see a thing: they rest on
            no episode.

    Raises:
        InvalidParameterError: a setting is outside its range, or they contradict one another.
        DeviceUnavailableError: there is no such device.
        ModelLoadError: model and processor are not of one checkpoint.
    """

    why_not_saved = (
        "the engine delayed_batch saves no memory in a file: its frames are in its frame store, "
        "which keeps them on disk by itself where it has a folder (frame_store)"
    )

    def __init__(
        self,
        model: StreamModel,
        processor: Any,
        device: str | torch.device | None = None,
        *,
        memory: SmartFrameManager | None = None,
        max_sampled_frames: int = 48,
        min_pixels: int | None = None,
        max_pixels: int | None = DEFAULT_MAX_PIXELS,
        layout: str = "continuous",
        system_prompt: str | None = None,
        max_tail_tokens: int = 2048,
        compile: bool | None = None,
        question_path: str = "auto",
        not_seen: Sequence[str] = NOT_SEEN,
    ):
        most = whole_number("max_sampled_frames", max_sampled_frames, GRID_FRAMES)
        processor = StreamProcessor.wrap(processor)
        self._stream = _Conversation(
            model,
            processor,
            device,
            layout=layout,
            min_pixels=min_pixels,
            max_pixels=processor.image_settings.at_most(max_pixels),
            system_prompt=system_prompt,
            max_tail_tokens=max_tail_tokens,
            max_pause=None,  # what lies between two chosen frames is no pause
            compile=compile,
            question_path=question_path,
        )
        self.min_pixels = self._stream.min_pixels
        self.memory = SmartFrameManager() if memory is None else memory
        self.keeps_source_time = self.memory.store.folder is not None
        self.max_sampled_frames = most
        self._not_seen = tuple(not_seen)
        self._pieces: list[_Piece] = []
        self._encoded: list[Grid] = []
        self._encoded_for: tuple[int, About, int | None] | None = None  # version, about, max_pixels
        self._exchanges: list[tuple[str, str]] = []
        self._replayed = 0
        self._answers: weakref.WeakSet[Answer] = weakref.WeakSet()
        self._chunks = 0
        self.counts = EncodingCounts()

    @property
    def model(self) -> StreamModel:
        return self._stream.model

    @property
    def cache_manager(self) -> KVCacheManager:
        """Of the stream that the chosen frames are encoded into."""
        return self._stream.cache_manager

    @property
    def device(self) -> torch.device:
        return self._stream.device

    @property
    def max_pixels(self) -> int | None:
        return self._stream.max_pixels

    def warm_up(self) -> WarmUp:
        return self._stream.warm_up()

    def limit_pixels(self, max_pixels: int | None) -> None:
        """As `InferenceEngine.limit_pixels`, from the next question on.

        Frames are kept as they came: what was encoded at another size is encoded again.
        """
        self._stream.limit_pixels(max_pixels)

    # -- seeing ------------------------------------------------------------------------------

    def add_frame(self, image: Any, timestamp: float | None = None, source: str = "") -> KeptResult:
        """Keep one frame; see `append_video_chunk`. Without a time stamp: 1 s after the newest."""
        if timestamp is None:
            return self.append_video_chunk([image], fps=1.0, source=source)
        return self.append_video_chunk([image], timestamps=[timestamp], source=source)

    append_frame = add_frame

    def append_video_chunk(
        self,
        frames: Sequence[Any],
        fps: float | None = None,
        timestamps: Sequence[float] | None = None,
        source: str = "",
    ) -> KeptResult:
        """Keep frames for later; nothing is encoded.

        Where time stamps are given and a frame comes after a pause, it waits until two more agree
        with it, or until the next question: see `SmartFrameManager`.

        Args:
            frames: images of one size, of any kind that the streaming engine takes.
            fps: frames a second; the chunk goes on where the newest frame ended.
            timestamps: instead, the source's time of each frame in seconds, never falling in a
                chunk. With neither, 2 frames a second.
            source: name of the camera or file.

        Raises:
            InvalidImageError, InvalidTimestampError: nothing was kept.
            FrameStoreError: the store cannot take them; those before the first refused are kept.
        """
        begin = time.perf_counter()
        # All are checked before the first is kept: a chunk is taken whole or not at all.
        newest = None  # the memory looks itself
        if timestamps is None:
            self.memory.admit_waiting()
            newest = self.memory.last_stamp
        stamps = frame_times(len(frames), fps, timestamps, newest)
        arrays = to_arrays(frames)
        for array in arrays:  # once kept, it would spoil every answer
            check_shape(*array.shape[:2])
        before = self.memory.frames_kept
        for array, stamp in zip(arrays, stamps, strict=True):
            self.memory.add(array, stamp, source)
        if timestamps is None:  # they are ours, and not to be doubted
            self.memory.admit_waiting()
        self._chunks += 1
        return KeptResult(
            kept=self.memory.frames_kept - before,
            tokens=0,
            evicted_tokens=0,
            cache_length=self._stream.cache_manager.get_seq_length(),
            latency=time.perf_counter() - begin,
            encode_latency=0.0,
            grid=(0, 0, 0),
        )

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
        **options: Any,
    ) -> Answer:
        """Answer a question about what was seen, encoding it first where that is due.

        Frames are encoded in this call. Half of them are taken from the time ``about``, where that
        is given; it is refused if nothing of it is kept. An exchange kept by ``update_state``
        stays behind the frames when they are encoded again, the last 16 of them. The answer names
        as ``episodes`` what of ``about`` it was read from, or else all, with a score of 0. Its
        metrics are `EncodedAnswer`, with ``ttft`` and ``latency`` from this call on.

        Raises:
            What the streaming engine raises; StreamBusyError: frames must be encoded, but an
                earlier answer is still being written.
        """
        begin = time.perf_counter()
        costs = self._encode(about := check_about(about))
        episodes = self._episodes(about)
        prepared = time.perf_counter() - begin
        written = self._stream.ask_stream(
            question, max_new_tokens, do_sample, temperature, update_state, **options
        )

        def release() -> None:
            self._answers.discard(written)
            written.close()

        def write() -> Generator[str, None, AnswerMetrics]:
            try:
                yield from written
            finally:
                release()
            metrics = written.metrics
            assert metrics is not None  # it has ended
            self.counts.generation_latency = metrics.latency
            if update_state and metrics.finish_reason != "cancelled":
                self._exchanges.append((question, written.text))
                self._replayed += 1
            named = () if says_not_seen(written.text, self._not_seen) else episodes
            return _whole(EncodedAnswer, metrics, costs | {"episodes": named}, prepared)

        self._answers.add(written)
        return Answer(write(), release)

    def ask_choice(
        self, question: str, choices: Sequence[str], *, about: tuple[float, float] | None = None
    ) -> tuple[str, ChoiceMetrics]:
        """The likeliest of the given answers; see `InferenceEngine.ask_choice`."""
        begin = time.perf_counter()
        costs = self._encode(about := check_about(about))
        episodes = self._episodes(about)
        prepared = time.perf_counter() - begin
        choice, metrics = self._stream.ask_choice(question, choices)
        self.counts.generation_latency = metrics.latency
        named = () if says_not_seen(choice, self._not_seen) else episodes
        return choice, _whole(EncodedChoice, metrics, costs | {"episodes": named}, prepared)

    # -- encoding ----------------------------------------------------------------------------

    def _encode(self, about: About) -> dict[str, Any]:
        """Bring the stream to what a question about ``about`` needs; say what that is."""
        begin = time.perf_counter()
        computed = 0
        self.memory.admit_waiting()
        if self._encoded_for != (self.memory.version, about, self.max_pixels):
            computed = self._encode_anew(about)
        self._replay_exchanges()
        return {
            "encode_latency": time.perf_counter() - begin,
            "encoded_tokens": computed,
            "frames_used": len(self._frames),
            "second_per_grid_t": self.second_per_grid_t,
            "time_span": self.time_span,
            "time_spans": tuple(_stretches(self._frames)),
            "frames_encoded": GRID_FRAMES * len(self._encoded),
            "visual_tokens": self.visual_tokens,
        }

    def _encode_anew(self, about: About) -> int:
        """Choose frames, keep what is encoded of them, encode the others; tokens computed."""
        begin = time.perf_counter()
        while True:
            grids = self.memory.select(self.max_sampled_frames, about)
            if not grids:
                raise EmptyMemoryError("the memory is empty: add frames before asking")
            try:
                computed = self._encode_grids(grids)
                break
            except PictureLostError:  # it is forgotten by now: choose again without it
                continue
        self._encoded = grids
        self._encoded_for = (self.memory.version, about, self.max_pixels)
        if computed:
            self.counts.encode_count += 1
            self.counts.encoding_latency = time.perf_counter() - begin
        return computed

    def _encode_grids(self, grids: list[Grid]) -> int:
        """Encode what differs from the pieces in place; the number of tokens computed."""
        pieces = _cut(grids)
        same = 0
        for piece, wanted in zip(self._pieces, pieces, strict=False):
            if (piece.ids, piece.max_pixels) != (_ids(wanted), self.max_pixels):
                break
            same += 1
        if same == len(pieces) == len(self._pieces):
            return 0
        if any(answer.metrics is None for answer in self._answers):
            raise StreamBusyError(
                "an answer that needs the frames encoded before is still being written: finish "
                "or cancel it first"
            )
        self._go_back(same)
        self.counts.reused_tokens += self.visual_tokens
        return sum(self._encode_piece(wanted) for wanted in pieces[same:])

    def _go_back(self, pieces: int) -> None:
        """Keep the first ``pieces`` of what is encoded, and no exchange."""
        self._encoded, self._encoded_for = [], None
        self._exchanges, self._replayed = self._exchanges[-MAX_EXCHANGES:], 0
        if pieces:
            self._stream.cache_manager.restore(self._pieces[pieces - 1].after)
        else:
            self._stream.reset()
        del self._pieces[pieces:]

    def _encode_piece(self, grids: list[Grid]) -> int:
        images, stamps = [], []
        for grid in grids:
            for frame in grid if len(grid) == GRID_FRAMES else 2 * grid:
                images.append(self._load(frame))
                stamps.append(frame.stamp)
        done = self._stream.append_video_chunk(images, timestamps=stamps)
        vision_tokens = math.prod(done.grid)
        after = self._stream.cache_manager.snapshot()
        self._pieces.append(_Piece(_ids(grids), self.max_pixels, vision_tokens, after))
        self.counts.encoded_tokens += done.tokens
        return done.tokens

    def _load(self, frame: KeptFrame) -> Any:
        try:
            return self.memory.store.load(frame)
        except PictureLostError:
            self.memory.lose(frame)
            raise

    def _replay_exchanges(self) -> None:
        for question, answer in self._exchanges[self._replayed :]:
            self._stream.append_exchange(question, answer)
            self._replayed += 1

    # -- looking at the memory ---------------------------------------------------------------

    @property
    def _frames(self) -> list[KeptFrame]:
        """What is encoded now, oldest first."""
        return [frame for grid in self._encoded for frame in grid]

    def _episodes(self, about: About) -> tuple[EvidenceEpisode, ...]:
        """What an answer rests on: the frames of a named time, where there are any, or else all."""
        start, stop = about or (-math.inf, math.inf)
        frames = self._frames
        frames = [frame for frame in frames if start <= frame.stamp <= stop] or frames
        stamps = [frame.stamp for frame in frames]
        return tuple(
            evidence_of(
                (first, last), [one for one in stamps if first <= one <= last], 0.0, IN_HISTORY
            )
            for first, last in joined(_stretches(frames), MAX_NAMED)
        )

    def thumbnail(self, stamp: float, max_size: int = 320) -> bytes | None:
        """As `RecallingInference.thumbnail`."""
        most = whole_number("max_size", max_size, least=1)
        for frame in self.memory.store.between(stamp, stamp)[:1]:
            with suppress(PictureLostError):
                return as_jpeg(self._load(frame), most)
        return None

    def kept_stamp(self, near: float) -> float | None:
        """As `RecallingInference.kept_stamp`."""
        return self.memory.store.stamp_near(near)

    @property
    def visual_tokens(self) -> int:
        """Tokens of the frames that are encoded now."""
        return sum(piece.tokens for piece in self._pieces)

    @property
    def cache_valid(self) -> bool:
        """A question about no named time asked now finds all its frames encoded."""
        return self._encoded_for == (self.memory.version, None, self.max_pixels)

    @property
    def time_span(self) -> float:
        """Seconds from the oldest to the newest frame that is encoded."""
        grids = self._encoded
        return grids[-1][-1].stamp - grids[0][0].stamp if grids else 0.0

    @property
    def second_per_grid_t(self) -> float:
        """Mean seconds of an encoded temporal grid. (The positions have each grid's own time.)"""
        return seconds_per_grid(self.time_span, GRID_FRAMES * len(self._encoded))

    def get_statistics(self) -> EngineStatistics:
        """What was kept, encoded and answered."""
        return EngineStatistics(
            **self.memory.statistics(),
            cache_valid=self.cache_valid,
            disk_cache_enabled=self.keeps_source_time,
            frames_encoded=GRID_FRAMES * len(self._encoded),
            visual_tokens=self.visual_tokens,
            second_per_grid_t=self.second_per_grid_t,
            time_span=self.time_span,
            **dataclasses.asdict(self.counts),
        )

    def get_cache_info(self) -> DelayedCacheInfo:
        """As `InferenceEngine.get_cache_info`; the times are those of the kept frames."""
        store = self.memory.store
        oldest, newest = store.oldest_frame, store.newest_frame
        encoded = self._stream.get_cache_info()
        fields = {field.name: getattr(encoded, field.name) for field in dataclasses.fields(encoded)}
        fields.update(
            chunks=self._chunks,
            frames=self.memory.frames_added,
            exchanges=len(self._exchanges),
            time_spans=((oldest.stamp, newest.stamp),) if oldest and newest else (),
        )
        return DelayedCacheInfo(**fields, frame_memory=self.get_statistics())

    def reset(self) -> None:
        """Forget everything, in the store too. An answer being written ends as cancelled."""
        self._go_back(0)
        self._exchanges.clear()
        self.memory.clear()
        self._chunks = 0
        self.counts = EncodingCounts()

    def start_epoch(self) -> None:
        """As `reset`, for a source whose time restarts: frames kept in a folder stay there."""
        self._go_back(0)
        self._exchanges.clear()
        self.memory.start_epoch()
        self._chunks = 0
        self.counts = EncodingCounts()

    def close(self) -> None:
        """Give the store back; what it keeps in a folder stays there."""
        self.memory.store.close()


class _Conversation(VideoStreamingInference):
    """The streaming engine, with a way to put an exchange back that was kept before."""

    def append_exchange(self, question: str, answer: str) -> None:
        """Keep question and answer in the stream, as if they had been asked and given here."""
        manager = self.cache_manager
        room = manager.max_tail_tokens
        prompt = self._chat.question(question, manager.state.open_segment, room)
        said = self._chat.plain(answer)
        with manager.question_fork(len(prompt), len(said) + len(self._chat.answer_end)) as fork:
            self.text_path.append(prompt, fork.start, fork)
            self._keep_exchange(fork, prompt, said, fork.start)


def _ids(grids: Sequence[Grid]) -> tuple[tuple[int, ...], ...]:
    return tuple(tuple(frame.id for frame in grid) for grid in grids)


def _cut(grids: Sequence[Grid]) -> list[list[Grid]]:
    """Grids in pieces that are encoded together: few, and of one size."""
    pieces: list[list[Grid]] = []
    for grid in grids:
        size = (grid[0].width, grid[0].height)
        if pieces and len(pieces[-1]) < _CHUNK_GRIDS:
            before = pieces[-1][0][0]
            if (before.width, before.height) == size:
                pieces[-1].append(grid)
                continue
        pieces.append([grid])
    return pieces


def _stretches(frames: Sequence[KeptFrame]) -> list[tuple[float, float]]:
    """First and last stamp of every run of frames with none left out between them."""
    spans: list[tuple[float, float]] = []
    upcoming = None
    for frame in frames:
        if frame.id == upcoming:
            spans[-1] = (spans[-1][0], frame.stamp)
        else:
            spans.append((frame.stamp, frame.stamp))
        upcoming = frame.id + 1
    return spans


def _whole(
    kind: type[_Encoded],
    metrics: AnswerMetrics | ChoiceMetrics,
    costs: dict[str, Any],
    prepared: float,
) -> _Encoded:
    """Metrics of an answer that began with the encoding before it, ``prepared`` seconds long."""
    fields = {field.name: getattr(metrics, field.name) for field in dataclasses.fields(metrics)}
    fields.update(
        costs,
        ttft=metrics.ttft + prepared,
        latency=metrics.latency + prepared,
        generation_latency=metrics.latency,
    )
    return kind(**fields)
