# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A source replayed through an engine in a closed loop: drop-free, and the same every time.

The next frame is read when everything before it has been encoded and every question that was due
before it has been answered, so the machine's speed changes the times in the report and nothing
else. Read ``Replay.run`` from top to bottom.
"""

from __future__ import annotations

import time
import zlib
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from stream_vlm_ros.config import Settings
from stream_vlm_ros.engine.inputs.chunking import Chunker
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import InvalidParameterError, OutOfHorizonError, StreamVlmError
from stream_vlm_ros.sources import Frame, Source

from .feeding import AT_QUESTION, Behind, frame_seconds, loaded_until
from .questions import Question, QuestionSet
from .records import (
    AnswerRecord,
    answered,
    closed_note,
    forgotten,
    is_time,
    merged_of,
    note_held,
    refused,
    unanswered,
)
from .schedule import Ask, Schedule
from .settings import as_reported

if TYPE_CHECKING:
    from stream_vlm_ros.engine import (
        AnswerMetrics,
        ChoiceMetrics,
        EvidenceEpisode,
        InferenceEngine,
    )


Pictures = Sequence[Sequence[bytes]]
PICTURES = 2  # an episode


class Listener(Protocol):
    """Follows a run. A subclass of ``Silence`` overrides what it wants."""

    def on_chunk(self, camera: str, offset_ns: int, frames: list[Frame], entry: dict) -> None: ...
    def on_answer(
        self, record: AnswerRecord, image: np.ndarray | None, pictures: Pictures = ()
    ) -> None:
        """``image``: the newest one at the question; ``pictures``: JPEGs of each of its episodes,
        of an answer that was given just now."""


class Silence:
    """A listener that does nothing."""

    def on_chunk(self, camera: str, offset_ns: int, frames: list[Frame], entry: dict) -> None:
        pass

    def on_answer(
        self, record: AnswerRecord, image: np.ndarray | None, pictures: Pictures = ()
    ) -> None:
        pass


@dataclass
class Stream:
    """One camera's memory, the frames that wait to be encoded, and the questions it is asked."""

    camera: str
    engine: InferenceEngine
    schedule: Schedule
    chunker: Chunker[Frame]
    newest: np.ndarray | None = None
    ingested: int = 0

    @property
    def empty(self) -> bool:
        return self.ingested == 0


class Replay:
    """One run of a source through one configuration.

    Args:
        settings: the configuration.
        questions: what is asked, and when.
        make_engine: a fresh engine for each camera.
        known: an answer that an earlier, interrupted run gave to an ask of this id, if any.
        listener: notified of chunks and answers.
        start, end: the part of the source that is given, in seconds; times of questions count from
            the beginning of the whole source.
        describe_model: what the report says of the model; called when it is loaded.
    """

    def __init__(
        self,
        settings: Settings,
        questions: QuestionSet,
        make_engine: Callable[[], InferenceEngine],
        known: Callable[[str], AnswerRecord | None] = lambda ask_id: None,
        listener: Listener | None = None,
        start: float = 0.0,
        end: float | None = None,
        describe_model: Callable[[Settings], dict[str, Any]] = lambda settings: {},
    ) -> None:
        self.settings = settings
        self.questions = questions
        self.make_engine = make_engine
        self.known = known
        self.listener = listener or Silence()
        self.start_ns = round(start * SECOND)
        self.end_ns = None if end is None else round(end * SECOND)
        self._describe_model = describe_model
        self.answers: list[AnswerRecord] = []
        self.series: list[dict[str, Any]] = []
        self.streams: dict[str, Stream] = {}
        self._ready: list[InferenceEngine] = []
        self.origin_ns: int | None = None
        self.newest_ns = 0  # offset of the newest frame read
        self.refused: dict[str, int] = {}
        self.complete = False
        self.seconds = 0.0
        self._behind = Behind([], None)

    def run(self, source: Source) -> dict[str, Any]:
        """Replay ``source``; the run as a part of the report.

        Ctrl-C is left to pass, with ``complete`` false and everything so far kept: ``result``
        gives it.
        """
        begin = time.perf_counter()
        if source.cameras is not None:
            self._check_cameras(source.cameras)
        if source.live:  # its frames do not wait until a model is loaded
            self._ready.append(self.make_engine())
        try:
            self._behind = Behind(source, loaded_until(self.settings))
            for frame in self._behind:
                self._see(frame)
            self._end(source)
            self.complete = True
        finally:
            self.seconds = time.perf_counter() - begin
        return self.result(source)

    def result(self, source: Source) -> dict[str, Any]:
        """What there is so far."""
        counts = source.state.counts
        ingested = sum(stream.ingested for stream in self.streams.values())
        waiting = sum(len(stream.chunker.frames) for stream in self.streams.values())
        drops = {
            "sampling": counts.unwanted,
            "unusable": counts.unusable,
            "unordered": counts.unordered,
            **self.refused,
        }
        if waiting and not self.complete:
            drops["interrupted"] = waiting
        gaps = [str(gap) for s in self.streams.values() for gap in s.schedule.passed]
        for stream in self.streams.values():
            info = stream.engine.get_cache_info()
            if info.closed_pauses:
                gaps.append(closed_note(info.closed_pauses, info.closed_seconds, stream.camera))
        moved = [self._behind.note] if self._behind.note else []
        return {
            "name": self.settings.title,
            "settings": as_reported(self.settings),
            "model": self._describe_model(self.settings) if self.streams else {},
            "complete": self.complete,
            "frames": {"decoded": counts.decoded, "ingested": ingested, "drops": drops},
            "source": {
                "damage": source.state.damage,
                "notes": [*source.state.notes, *moved, *gaps],
            },
            "memory": {camera: _memory(s.engine) for camera, s in self.streams.items()},
            "answers": self.answers,
            "merged": merged_of(self.questions.questions, self.answers),
            "series": self.series,
            "times": {"wall": self.seconds},
        }

    # -- seeing ------------------------------------------------------------------------------

    def _see(self, frame: Frame) -> None:
        """Ask what was due before the frame, then take it in."""
        if self.origin_ns is None:
            self.origin_ns = frame.stamp_ns - self.start_ns
        stream = self.streams.get(frame.source) or self._open(frame.source)
        offset = frame.stamp_ns - self.origin_ns
        for ask in stream.schedule.before(offset):
            self._ask(stream, ask)
        stream.schedule.saw(offset)
        self.newest_ns = max(self.newest_ns, offset)
        for chunk in stream.chunker.add(frame, frame.image.shape):
            self._encode(stream, chunk)

    def _end(self, source: Source) -> None:
        """Encode what waits, and ask what is due up to the end of the source."""
        end = self.newest_ns + round(SECOND * frame_seconds(self.settings.sample_fps, source))
        if source.duration is not None and source.state.damage is None:
            end = max(end, round(source.duration * SECOND))
        if self.end_ns is not None:
            end = max(self.newest_ns, min(end, self.end_ns))
        for stream in self.streams.values():
            for ask in stream.schedule.before(self.newest_ns + 1):
                self._ask(stream, ask)
            self._encode(stream, stream.chunker.flush())
            for ask in stream.schedule.until(end):
                self._ask(stream, ask)
            for ask in stream.schedule.rest():
                self._not_reached(stream.camera, ask)
        if not self.streams:
            for question in self.questions.questions:
                due = None if question.at is None else round(question.at * SECOND)
                self._not_reached("", Ask(question, due, question.id))
        else:
            self._check_cameras(self.streams)

    def _open(self, camera: str) -> Stream:
        """The memory of a camera, from its first frame on."""
        mine = [q for q in self.questions.questions if self._is_for(q, camera)]
        assert self.origin_ns is not None
        stream = Stream(
            camera,
            self._ready.pop() if self._ready else self.make_engine(),
            Schedule(mine, self.origin_ns, where_frames_are=True),
            Chunker(self.settings.chunk_frames),
        )
        self.streams[camera] = stream
        return stream

    def _is_for(self, question: Question, camera: str) -> bool:
        """A question that names no camera goes to the first one seen."""
        if question.camera is not None:
            return question.camera.strip("/") == camera.strip("/")
        return not self.streams

    def _check_cameras(self, cameras: Collection[str]) -> None:
        """Raise InvalidParameterError if a question is for another than these."""
        there = {camera.strip("/") for camera in cameras}
        if unseen := [c for c in self.questions.cameras if c.strip("/") not in there]:
            raise InvalidParameterError(
                f"The questions name the camera {', '.join(unseen)}, but frames come from "
                f"{', '.join(cameras)} only."
            )

    def _encode(self, stream: Stream, frames: list[Frame]) -> None:
        """Append frames, if there are any, to the memory."""
        if not frames:
            return
        offset = frames[-1].stamp_ns - (self.origin_ns or 0)
        try:
            appended = stream.engine.append_video_chunk(
                [f.image for f in frames], timestamps=[f.seconds for f in frames]
            )
        except StreamVlmError as error:
            key = f"refused: {error.code.lower()}"
            self.refused[key] = self.refused.get(key, 0) + len(frames)
            if error.code == "CAP_TOO_SMALL":
                raise  # no later chunk would fit either
            return
        stream.ingested += len(frames)
        stream.newest = frames[-1].image
        info = stream.engine.get_cache_info()
        entry = {
            "camera": stream.camera,
            "at": offset / SECOND,
            "frames": len(frames),
            "tokens": appended.tokens,
            "evicted_tokens": appended.evicted_tokens,
            "closed_seconds": appended.closed_seconds,
            "cache_length": appended.cache_length,
            "memory_bytes": info.cache_memory_bytes,
            "times": {"latency": appended.latency},
        }
        self.series.append(entry)
        self.listener.on_chunk(stream.camera, offset, frames, entry)

    # -- asking ------------------------------------------------------------------------------

    def _ask(self, stream: Stream, ask: Ask) -> None:
        ready = AT_QUESTION[self.settings.at_question](len(stream.chunker.frames))
        self._encode(stream, stream.chunker.flush(ready))
        if stream.empty:  # better an odd frame than none at all
            self._encode(stream, stream.chunker.flush())
        record = self.known(ask.id)
        pictures: Pictures = ()
        if record is None:
            record, pictures = self._answered(stream, ask)
        self.answers.append(record)
        self.listener.on_answer(record, stream.newest, pictures)

    def _answered(self, stream: Stream, ask: Ask) -> tuple[AnswerRecord, Pictures]:
        question, settings = ask.question, self.settings
        record = self._record(stream.camera, ask)
        origin = (self.origin_ns or 0) / SECOND
        about = question.about and (origin + question.about[0], origin + question.about[1])
        metrics: AnswerMetrics | ChoiceMetrics
        origin_ns = self.origin_ns or 0
        try:
            if question.choices:
                answer, metrics = stream.engine.ask_choice(
                    question.text, list(question.choices), about=about
                )
            else:
                answer, metrics = stream.engine.ask(
                    question.text,
                    question.max_new_tokens or settings.max_new_tokens,
                    do_sample=settings.temperature > 0,
                    temperature=settings.temperature or 1.0,
                    seed=settings.seed + zlib.crc32(ask.id.encode()),
                    about=about,
                )
        except StreamVlmError as error:
            info = stream.engine.get_cache_info()
            note_held(record, info, origin_ns)
            if isinstance(error, OutOfHorizonError) and question.about is not None:
                error = forgotten(question.about, info, origin_ns)
            return refused(record, error.code, str(error)), ()
        note_held(record, stream.engine.get_cache_info(), origin_ns)
        seen, tokens = metrics.time_spans, settings.token_logprobs
        record = answered(record, question, answer, metrics.as_dict(), seen, origin_ns, tokens)
        return record, evidence_pictures(stream.engine, metrics.episodes)

    def _record(self, camera: str, ask: Ask) -> AnswerRecord:
        return unanswered(ask, camera, self.newest_ns, self.origin_ns)

    def _not_reached(self, camera: str, ask: Ask) -> None:
        record = self._record(camera, ask)
        self.answers.append(record)
        self.listener.on_answer(record, None)


def evidence_pictures(
    engine: InferenceEngine, episodes: Sequence[EvidenceEpisode]
) -> list[list[bytes]]:
    """A few JPEGs of each episode; fewer where frames are gone."""
    found = [[engine.thumbnail(stamp) for stamp in one.spread(PICTURES)] for one in episodes]
    return [[data for data in some if data is not None] for some in found]


def _memory(engine: InferenceEngine) -> dict[str, Any]:
    info = engine.get_cache_info()
    keys = (
        "cache_seq_length",
        "cache_memory_bytes",
        "max_cache_tokens",
        "sink_size",
        "window_size",
    )
    memory = {key: info[key] for key in keys} | info.eviction_stats.as_dict()
    kept = info.get("frame_memory", {})  # of the delayed batch engine
    if tiers := info.get("tiers"):  # of a history
        memory["history"] = [tier.as_dict() for tier in tiers]
    return memory | {key: value for key, value in kept.items() if not is_time(key)}
