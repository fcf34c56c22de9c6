# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`InProcessMemory`: a source remembered in this process, without ROS."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import re
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

import stream_vlm_ros.world  # noqa: F401 - a source may be drawn
from stream_vlm_ros.config import Settings
from stream_vlm_ros.console import bytes_text
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import (
    DeviceUnavailableError,
    InvalidParameterError,
    MemoryFileError,
    StreamBusyError,
    StreamVlmError,
)
from stream_vlm_ros.factory import build_engine, card_of, kept_model
from stream_vlm_ros.machine import used_bytes
from stream_vlm_ros.session.answer_log import AnswerLog, AnswerLogError
from stream_vlm_ros.session.counters import Drop, FrameCounters
from stream_vlm_ros.session.ingest import FrameIngest
from stream_vlm_ros.session.memory_keeper import MemoryKeeper
from stream_vlm_ros.session.question import NotActiveError, Outcome, Question, Ticket
from stream_vlm_ros.session.worker import EngineWorker
from stream_vlm_ros.setting import ALWAYS
from stream_vlm_ros.sources import Frame, Source, loop, open_source, without_secrets
from stream_vlm_ros.sources.pacing import Pace
from stream_vlm_ros.web.examples import examples_for
from stream_vlm_ros.web.live_memory import (
    GrowingAnswer,
    LiveAnswer,
    LiveMemory,
    PastAnswer,
    Picture,
    Status,
)
from stream_vlm_ros.web.pictures import A_SECOND, Pictures

if TYPE_CHECKING:
    from stream_vlm_ros.engine import InferenceEngine

log = logging.getLogger(__name__)
Result = TypeVar("Result")
_LOADING = threading.Lock()

LATE = 1.0  # s behind, from which on a recording is played on from there
TICK = 0.25  # s
AGAIN = 3.0  # s until a camera that has ended is tried again
NOTED = 10.0  # s for which what went wrong once is told
SILENT = 5.0  # s without a picture, after which that is told
NEAR = 30.0  # s: a picture that is shown for a time is at most so far from it
END_TIMEOUT = 3.0  # s, for what the engine is doing at the moment
ENDED = "The source has come to its end; what was seen can be asked."
# What a new memory is needed for: changing one of them forgets what was seen.
POLICY = (
    "max_cache_tokens", "sink_size", "window_size", "eviction_interval", "sampled_share",
    "important_share",
)  # fmt: skip
# What means nothing without a node.
OF_A_NODE = {"no_image_timeout", "pose_tolerance", "save_memory_on_shutdown", "max_questions"}


def build(settings: Settings) -> InferenceEngine:
    """The engine that settings ask for; memories of one process share the weights."""
    with _LOADING:  # else each of two that begin at once would load them
        checkpoint = kept_model(settings)
    return build_engine(settings, checkpoint)


def described(source: str, settings: Settings) -> tuple[str, str, tuple[str, ...]]:
    """What to call a source, and the model that settings name; questions that this can answer."""
    card, place = card_of(settings), without_secrets(source)
    return place.rstrip("/").rsplit("/", 1)[-1] or place, str(card), examples_for(card)


def _policy(settings: Settings) -> tuple[Any, ...]:
    return tuple(getattr(settings, name) for name in POLICY)


def _changeable(settings: Settings) -> list[str]:
    """Names of the settings that may be changed while all goes on."""
    pixels = {"max_pixels", "sampled_max_pixels"} - {settings.pixel_limit[0]}
    always = [row.name for row in Settings.table().values() if row.change == ALWAYS]
    policy = POLICY if settings.engine == "streaming" else ()
    return [*policy, *(name for name in always if name not in OF_A_NODE | pixels)]


@dataclass(frozen=True)
class _Seen:
    """A picture as `FrameIngest` takes it."""

    stamp_ns: int
    image: np.ndarray

    def read(self) -> tuple[Any, np.ndarray]:
        return None, self.image


class InProcessMemory(LiveMemory):
    """A source played at its own pace into an engine of this process.

    A recording is played as if it were filmed now: its stamps count on from the moment when it
    began, however often it is played, so that a memory that was saved goes on behind what it holds.
    Pictures come before the model is loaded; a recording waits for it behind its first.

    Args:
        source: as for `open_source`.
        settings: of the engine, and of the way of a frame to it.
        options: for `open_source`; see there.
        looped: play a recording again at its end. Else it ends, and is remembered.
        load: builds the engine; called in a thread of its own.
        pictures: takes those that are to be seen.
    """

    def __init__(
        self,
        source: str,
        settings: Settings,
        *,
        options: Mapping[str, Any] | None = None,
        looped: bool = False,
        load: Callable[[Settings], InferenceEngine] = build,
        pictures: Pictures | None = None,
    ) -> None:
        self.name, self._model, self.examples = described(source, settings)
        self._spec, self._looped = source, looped
        self._settings, self._load = settings, load
        self._changeable = _changeable(settings)
        self._options: dict[str, Any] = dict(options or {})
        if settings.sample_fps:  # else every frame is wanted
            self._options.setdefault("fps", max(A_SECOND, settings.sample_fps))
        self._pictures, self._counters = pictures or Pictures(), FrameCounters()
        self._worker = self._make_worker(settings)
        self._ingest = FrameIngest(
            settings,
            self._counters,
            deliver=lambda frames: self._worker.append(frames),
            restart=lambda: self._worker.reset(Drop.TIME_JUMP),
            report=lambda cause, words: self._note(words),
        )
        self._keeper = self._make_keeper(self._worker)
        self._answers: AnswerLog | None = None
        self._ready = threading.Event()  # the model is there, or nothing ever will be
        self._closing = threading.Event()
        self._ended, self._fault, self._noted = "", "", ""  # words
        self._noted_at = 0.0
        self._changing = False  # another memory is put in place of this one
        self._tried: tuple[Any, ...] = ()  # the policy that an engine was built of last
        self._loads = 0  # that have not ended; those beyond the first are refused
        self._lag: float | None = None
        self._told_ns: int | None = None  # of the newest frame when that was measured
        self._seen_at: float | None = None  # when a picture came last; None: none came yet
        self._image: np.ndarray | None = None  # of the newest frame
        self._started_at = 0.0
        self._player = threading.Thread(target=self._watch, name="source", daemon=True)
        self._ticking: asyncio.Task[None] | None = None

    # -- its life ----------------------------------------------------------------------------

    async def start(self) -> None:
        self._answers = self._open_answers()
        self._started_at = time.monotonic()
        self._begin(self._worker)
        self._player.start()
        self._ticking = asyncio.get_running_loop().create_task(self._tick())

    async def close(self) -> None:
        if self._closing.is_set():
            return
        self._closing.set()
        self._ready.set()
        if self._ticking is not None:
            self._ticking.cancel()
        self._ingest.active = False
        self._ingest.clear(Drop.RESET)
        await asyncio.to_thread(self._stop)

    def _stop(self) -> None:
        if self._worker.loaded.done():  # a model that is being loaded is left alone
            self._worker.stop(END_TIMEOUT)
        if self._player.ident is not None:
            self._player.join(END_TIMEOUT)
        self._keeper.close()
        if self._answers is not None:
            self._answers.close()

    def _open_answers(self) -> AnswerLog:
        file, most = self._settings.answers_file, self._settings.answers_megabytes << 20
        try:
            path = Path(os.path.expanduser(file)) if file else None
            return AnswerLog(path, most, self._report)
        except AnswerLogError as refusal:
            self._note(f"past answers are kept in memory alone: {refusal}")
            return AnswerLog(None, most, self._report)

    def _make_worker(self, settings: Settings) -> EngineWorker:
        return EngineWorker(
            lambda: self._load(settings),
            self._counters,
            settings.queue_size,
            settings.max_questions,
            settings.ingest_share,
            changed=self._on_change,
            report=self._report,
            why_empty=self._why_empty,
        )

    def _make_keeper(self, worker: EngineWorker) -> MemoryKeeper:
        return MemoryKeeper(worker, lambda: self._settings, time.time_ns, self._note)

    def _begin(self, worker: EngineWorker) -> None:
        worker.loaded.add_done_callback(self._on_loaded)
        worker.start()

    def _on_loaded(self, loaded: Future[str]) -> None:
        """In the worker's thread."""
        if (fault := loaded.exception()) is not None:
            self._fault = _words(fault)
            if not isinstance(fault, StreamVlmError):
                self._report(fault)
        else:
            self._ingest.resume(self._worker.memory.latest_ns)
            self._take_frames()
        self._ready.set()

    async def _tick(self) -> None:
        while True:
            await asyncio.sleep(TICK)
            try:
                self._ingest.flush_overdue(time.time_ns())
                if self._settings.memory_folder and not self._changing:
                    self._keeper.save_when_due()
            except Exception as fault:  # the next one may go well
                self._report(fault)

    # -- the source, in a thread of its own --------------------------------------------------

    def _watch(self) -> None:
        live = False
        while not self._closing.is_set():
            words, live = self._watched(live)
            if not live:
                self._ended = words
                return
            self._note(f"{words} It is tried again")
            self._closing.wait(AGAIN)

    def _watched(self, live: bool) -> tuple[str, bool]:
        """Play the source to its end: why that came, and whether it is a camera, as it was if it is
        not there now."""
        try:
            source = open_source(self._spec, **self._options)
            live = source.live and not self._options.get("end")
            self._play(source)
            self._ingest.deliver_open()
            words = [source.state.damage or ENDED, *source.state.notes]
            if self._seen_at is None:
                words.insert(0, f"{self.name} gave no frames.")
            return " ".join(words), live
        except StreamVlmError as fault:
            return _words(fault), live
        except Exception as fault:  # of this package, or a library's: the memory stays
            self._report(fault)
            return _words(fault), live

    def _play(self, source: Source) -> None:
        again = self._looped and not source.live and not source.endless
        pace, began_ns, stamp = None, 0, 0
        for frame in loop(source) if again else source:
            if self._closing.is_set():
                return
            if source.live:
                self._take(frame, time.time_ns())
                continue
            if pace is None:
                self._pictures.offer(frame.image, time.time_ns())
                self._ready.wait()  # whatever is not remembered need not be played
            due = pace.due(frame.stamp_ns) if pace is not None else 0.0
            if self._closing.wait(max(0.0, due - time.monotonic())):
                return
            if pace is None or time.monotonic() - due > LATE:
                # The system's clock may have been set back meanwhile.
                pace, began_ns = (
                    Pace(frame.stamp_ns, time.monotonic()),
                    max(time.time_ns(), stamp + 1),
                )
            stamp = began_ns + frame.stamp_ns - pace.first_stamp_ns
            self._take(frame, stamp)

    def _take(self, frame: Frame, stamp_ns: int) -> None:
        self._seen_at, self._image = time.monotonic(), frame.image
        self._pictures.offer(frame.image, stamp_ns)
        self._ingest.receive(_Seen(stamp_ns, frame.image), time.time_ns())

    # -- what is told ------------------------------------------------------------------------

    @property
    def status(self) -> Status:
        worker, saved = self._worker, self._keeper.state
        state, words = self._state()
        told = f"{saved.name} ({bytes_text(saved.bytes)})" if saved.name else ""
        return Status(
            memory=worker.memory,
            state=state,
            words=words,
            paused=self._ingest.paused,
            counters=self._counts(),
            lag=self._lag,
            model=self._model,
            device=worker.device,
            used_bytes=used_bytes(worker.device),
            settings={name: getattr(self._settings, name) for name in self._changeable},
            saved=saved.error or told,
        )

    def _state(self) -> tuple[str, str]:
        worker = self._worker
        if self._changing or not worker.loaded.done():
            return "loading", "the model is being loaded"
        if fault := self._fault or str(worker.ended or ""):
            return "inactive", fault
        if self._ended:
            return "ended", self._ended
        now = time.monotonic()
        noted = self._noted if now - self._noted_at < NOTED else ""
        silent = now - (self._seen_at or self._started_at)
        if silent > SILENT and not noted:
            noted = f"no picture came for {silent:.0f} s"
        return "active", noted or worker.last_fault or worker.memory.history_fault

    def _counts(self) -> dict[str, int]:
        worker = self._worker
        more = {"queue_depth": worker.depth, "resets": worker.resets}
        return self._counters.snapshot() | more | {"time_jumps": self._ingest.time_jumps}

    @property
    def picture(self) -> Picture | None:
        return self._pictures.newest

    def _why_empty(self) -> str:
        return self._state()[1] or "the first ones are on their way"

    def _on_change(self) -> None:
        """In the worker's thread, after each of its commands."""
        newest = self._worker.memory.newest_ns
        if newest is not None and newest != self._told_ns:
            self._told_ns, self._lag = newest, max(0.0, (time.time_ns() - newest) / SECOND)

    def _note(self, words: str) -> None:
        """Tell it for a while, and log it once for as long as it is told."""
        now = time.monotonic()
        if words != self._noted or now - self._noted_at > NOTED:
            log.warning("%s: %s", self.name, words)
        self._noted, self._noted_at = words, now

    def _report(self, fault: BaseException) -> None:
        if isinstance(fault, StreamVlmError):
            self._note(str(fault))
        else:
            log.error("%s: internal error", self.name, exc_info=fault)

    # -- what is asked -----------------------------------------------------------------------

    def ask(self, question: Question) -> LiveAnswer:
        if question.history and not self._settings.has_history:
            question = replace(question, history="")
        asked = _Asked(asyncio.get_running_loop())
        if (refusal := self._refusal()) is not None:
            ticket = Ticket(question)
            ticket.future.set_result(Outcome(question, error=refusal, memory=self._worker.memory))
        else:
            ticket = self._worker.ask(question, asked.grow)
        ticket.future.add_done_callback(self._keep_answer)
        asked.follow(ticket)
        return asked

    def _refusal(self) -> StreamVlmError | None:
        state, words = self._state()
        return NotActiveError(words) if state in ("loading", "inactive") else None

    def _keep_answer(self, future: Future[Outcome]) -> None:
        outcome, kept = future.result(), self._answers
        if kept is None or self._closing.is_set():
            return
        question, text = outcome.question, outcome.answer
        fields = {
            "question": question.text,
            "choices": list(question.choices),
            "text": text,
            "error_message": _words(outcome.error),
        }  # named as in a node's Answer, whose file it may be
        kept.add(time.time_ns(), question.text, text, fields)

    async def thumbnail(self, stamp_ns: int, size: int = 320) -> bytes | None:
        if self._refusal() is not None:
            return None
        found = await _done(self._worker.picture_near(stamp_ns, round(NEAR * SECOND), size))
        return None if found is None else found[1]

    async def past_answers(self, text: str = "", limit: int = 100) -> Sequence[PastAnswer]:
        if self._answers is None:
            return []
        found = await _done(self._answers.find(text=text, limit=limit))
        return [_past(answered_ns, fields) for answered_ns, fields in found.answers]

    # -- what is ordered ---------------------------------------------------------------------

    async def reset(self) -> str:
        self._check_active()
        self._ingest.clear(Drop.RESET)
        await _done(self._worker.reset(Drop.RESET))
        return "the memory is empty"

    async def pause(self) -> str:
        self._check_active()
        self._ingest.pause()
        return "paused: pictures are dropped, questions are answered"

    async def resume(self) -> str:
        self._ingest.paused = False
        return "pictures are taken again"

    async def save(self, name: str = "") -> str:
        self._check_active()
        if not name:
            camera = re.sub(r"[^A-Za-z0-9_]+", "_", self.name)[:60]
            name = f"{camera}_{time.strftime('%Y-%m-%d_%H-%M-%S')}"
        return (await _done(self._keeper.save(name))).words

    async def load(self, name: str = "") -> str:
        self._check_active()
        if not name and not (name := next(iter(await self.saved_names()), "")):
            raise MemoryFileError(f"no memory is saved yet in {self._settings.memory_folder}")
        # Frames that came before are of the memory that goes; later ones wait for the stamps of the
        # one that comes.
        self._loads += 1
        self._ingest.active = False
        try:
            self._ingest.deliver_open()
            done = await _done(self._keeper.load(name))
            self._ingest.go_on_behind(done.newest_ns)
        finally:
            self._loads -= 1
            self._take_frames()
        return done.words

    def _take_frames(self) -> None:
        """Unless another memory is on its way, or none will be."""
        waits = self._changing or self._loads or self._closing.is_set()
        self._ingest.active = not (waits or self._fault or not self._worker.loaded.done())

    async def saved_names(self) -> Sequence[str]:
        if not self._settings.memory_folder:
            return []
        return await _done(self._keeper.names())

    async def check(self, **settings: Any) -> None:
        await self._checked(settings)

    async def _checked(self, settings: Mapping[str, Any]) -> Settings:
        """The settings as they would be."""
        for name in settings:
            if name not in self._changeable:
                raise InvalidParameterError(f"{name} cannot be changed while the memory is at work")
        before, after = self._settings, self._settings.changed(settings)
        read = self._options.get("fps")
        if read and after.sample_fps != before.sample_fps and not 0 < after.sample_fps <= read:
            raise InvalidParameterError(
                f"{read:g} frames/s are read of this source, from which sample_fps chooses: start "
                "again with --fps for more"
            )
        if after != before:
            self._check_active()
        if _policy(after) not in (_policy(before), self._tried):
            await self._try(after)
        if self._settings is not before:
            raise StreamBusyError("another setting has changed meanwhile; try again")
        return after

    async def _try(self, settings: Settings) -> None:
        """Refuse a policy of which no engine takes a chunk; the present one, next to it, stays."""
        alone = replace(
            settings,
            history="never",
            history_feature_megabytes=0,
            frame_store="",
            compile_chunks="never",
        )
        try:
            await asyncio.to_thread(self._try_a_chunk, alone)
        except DeviceUnavailableError as refusal:
            if settings.max_cache_tokens > self._worker.memory.cap:
                raise InvalidParameterError(
                    f"there is no room for it next to the present memory, which stays: {refusal}"
                ) from refusal
        except StreamVlmError:
            raise
        except Exception as fault:
            self._report(fault)
            raise InvalidParameterError(_words(fault)) from fault
        self._tried = _policy(settings)

    def _try_a_chunk(self, settings: Settings) -> None:
        engine = self._load(settings)
        try:
            if self._image is not None:
                number = settings.chunk_frames
                stamps = [float(second) for second in range(number)]
                engine.append_video_chunk([self._image] * number, timestamps=stamps)
        finally:
            engine.close()

    async def set(self, **settings: Any) -> str:
        before = self._settings
        after = await self._checked(settings)
        changes = [
            f"{name}: {then} -> {now}"
            for name in settings
            if (then := getattr(before, name)) != (now := getattr(after, name))
        ]
        if not changes:
            return "nothing has changed"
        if after.pixel_limit != before.pixel_limit:
            self._worker.limit_pixels(*after.pixel_limit)
        if _policy(before) != _policy(after):
            await self._begin_new_memory(after)
            changes.append("a new memory begins")
        self._settings = after
        self._ingest.apply(after)
        self._worker.queue_size = after.queue_size
        self._worker.ingest_share = after.ingest_share
        return "; ".join(changes)

    async def _begin_new_memory(self, settings: Settings) -> None:
        """Put an engine of other settings in the place of the present one."""
        self._changing, self._ingest.active = True, False
        old, before = self._worker, self._settings
        try:
            self._ingest.clear(Drop.RESET)
            old.abandon(Drop.RESET, NotActiveError("a new memory was begun, with other settings"))
            if not await asyncio.to_thread(old.stop, END_TIMEOUT):
                raise StreamBusyError("the engine is busy; try again")
            try:
                await self._replace_engine(settings)
            except Exception as refusal:
                await self._replace_engine(before)
                raise InvalidParameterError(
                    f"{_words(refusal)}. A new memory begins, with the settings as they were"
                ) from refusal
        finally:
            self._changing = False
            self._take_frames()

    async def _replace_engine(self, settings: Settings) -> None:
        self._fault = ""
        self._keeper.close()
        saved = self._keeper.state
        self._worker = self._make_worker(settings)
        self._keeper = self._make_keeper(self._worker)
        self._keeper.state = saved
        self._begin(self._worker)
        await _done(self._worker.loaded)

    def _check_active(self) -> None:
        if (refusal := self._refusal()) is not None:
            raise refusal


class _Asked(GrowingAnswer):
    """An answer of a worker, followed in an event loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(loop.create_future())
        self._loop = loop
        self._ticket: Ticket | None = None

    def follow(self, ticket: Ticket) -> None:
        self._ticket = ticket
        ticket.future.add_done_callback(lambda done: self._call(self._end, done.result()))

    def grow(self, state: str, text: str) -> None:
        """The worker's progress, in its thread."""
        self._call(self._grow, text)

    def _call(self, do: Callable[[Any], None], given: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody follows any more
            self._loop.call_soon_threadsafe(do, given)

    def _end(self, outcome: Outcome) -> None:
        self._outcome.set_result(outcome)
        self._grow(outcome.answer or self._text)

    def cancel(self) -> None:
        if self._ticket is not None:
            self._ticket.cancel()


async def _done(future: Future[Result]) -> Result:
    """What a future of another thread gives; one who waits no more does not cancel it.

    Raises StreamVlmError alone.
    """
    try:
        return await asyncio.shield(asyncio.wrap_future(future))
    except StreamVlmError:
        raise
    except asyncio.CancelledError:
        if future.cancelled():
            raise NotActiveError("it was broken off, as another memory begins") from None
        raise
    except Exception as fault:
        log.error("internal error", exc_info=fault)
        raise StreamVlmError(_words(fault)) from fault


def _words(fault: BaseException | None) -> str:
    if fault is None:
        return ""
    return str(fault) if isinstance(fault, StreamVlmError) else f"internal error: {fault!r}"


def _past(answered_ns: int, fields: Mapping[str, Any]) -> PastAnswer:
    """From what somebody else may have written, too."""
    told = {name: str(fields.get(name, "")) for name in ("question", "text", "error_message")}
    choices = fields.get("choices")
    return PastAnswer(
        answered_ns,
        told["question"],
        tuple(map(str, choices)) if isinstance(choices, list) else (),
        told["text"],
        told["error_message"],
    )
