# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A source fed to the engine, chunk by chunk, drop-free."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from stream_vlm_ros.config import Settings
from stream_vlm_ros.console import plural
from stream_vlm_ros.engine.inputs.chunking import gather
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import InvalidImageError
from stream_vlm_ros.sources import Frame, Source

if TYPE_CHECKING:
    from stream_vlm_ros.engine import InferenceEngine


FRAMES_PER_GRID = 2  # Qwen2.5-VL sees frames in pairs
# What of a chunk that is not full is encoded for a question, of so many frames.
AT_QUESTION: dict[str, Callable[[int], int]] = {
    "grids": lambda waiting: waiting - waiting % FRAMES_PER_GRID,
    "all": lambda waiting: waiting,
    "complete": lambda waiting: 0,
}


def frame_seconds(fps: float, source: Source) -> float:
    """Seconds from one frame to the next of a ``source`` sampled at ``fps``.

    0 takes every frame: then by the source's own rate, or 0 where that is not known.
    """
    rate = fps or source.rate
    return 1 / rate if rate else 0.0


@dataclass
class Fed:
    """What has gone into the memory so far. ``seconds`` is the machine's time spent encoding;
    ``closed_seconds`` of pauses are left out for the model;
    ``cut``: frames reached the time up to which it was to be fed;
    ``refused``: frames whose pictures the model cannot use, and ``refusal`` the first reason."""

    frames: int = 0
    chunks: int = 0
    tokens: int = 0
    evicted_tokens: int = 0
    closed_seconds: float = 0.0
    seconds: float = 0.0
    first_ns: int | None = None
    last_ns: int | None = None
    cut: bool = False
    refused: int = 0
    refusal: str = ""

    @property
    def note(self) -> str | None:
        """For who reads the answers, where frames were refused."""
        if not self.refused:
            return None
        return f"{plural(self.refused, 'frame')} left out (the first: {self.refusal})"

    def span(self, about: tuple[float, float] | None) -> tuple[float, float] | None:
        """Seconds from the first frame as the source's own."""
        first = (self.first_ns or 0) / SECOND
        return None if about is None else (first + about[0], first + about[1])

    def asked_late(self, at: float, source: Source, fps: float) -> str | None:
        """A note if ``source``, sampled at ``fps`` (0: every frame), ended before ``at`` seconds;
        else None."""
        last = ((self.last_ns or 0) - (self.first_ns or 0)) / SECOND
        end = source.duration
        if end is None:
            end = last + 2 * frame_seconds(fps, source)
        if self.cut or source.state.damage or at <= end:
            return None
        return f"{source.name} ends before {at:g} s: asked at its end, after {last:g} s."


class UpTo:
    """The frames up to so many seconds after the first of them, one at exactly that time included.

    ``cut`` says afterwards whether they reach that time; None seconds: all frames.
    """

    def __init__(self, frames: Iterable[Frame], seconds: float | None) -> None:
        self._frames, self.cut = frames, False
        self._length_ns = None if seconds is None else round(seconds * SECOND)

    def __iter__(self) -> Iterator[Frame]:
        first = None
        for frame in self._frames:
            first = frame.stamp_ns if first is None else first
            left = 1 if self._length_ns is None else first + self._length_ns - frame.stamp_ns
            if left >= 0:
                yield frame
            if left <= 0:
                self.cut = True
                return


class Behind:
    """Frames that go on behind a loaded memory.

    Where the first of them is not later than that memory's newest, as of a second video, all are
    moved behind it: ``moved_ns`` says afterwards by how much.

    Args:
        newest_ns: of the memory, in the source's time; None: there is none, nothing is moved.
    """

    STEP_NS = SECOND  # from the newest frame in memory to the first one that is moved

    def __init__(self, frames: Iterable[Frame], newest_ns: int | None) -> None:
        self._frames, self._newest_ns, self.moved_ns = frames, newest_ns, 0

    def __iter__(self) -> Iterator[Frame]:
        moved_ns = None
        for frame in self._frames:
            if moved_ns is None:
                newest_ns, moved_ns = self._newest_ns, 0
                if newest_ns is not None and frame.stamp_ns <= newest_ns:
                    moved_ns = newest_ns + self.STEP_NS - frame.stamp_ns
                self.moved_ns = moved_ns
            yield replace(frame, stamp_ns=frame.stamp_ns + moved_ns) if moved_ns else frame

    @property
    def note(self) -> str | None:
        """For who reads the answers, where frames were moved."""
        if not self.moved_ns:
            return None
        return (
            "the source begins before the end of the loaded memory: its time was moved by "
            f"{self.moved_ns / SECOND:.1f} s, behind it"
        )


def loaded_until(settings: Settings) -> int | None:
    """The newest stamp of the memory that a run begins with, in ns; None: it begins with none.

    Raises MemoryFileError where the file is of no use.
    """
    if not settings.load_memory:
        return None
    from stream_vlm_ros.engine.saving.memory_copy import about_memory

    saved = about_memory(settings.load_memory)
    return saved.origin_ns + round((saved.newest_timestamp or 0.0) * SECOND)


def chunks(frames: Iterable[Frame], size: int) -> Iterator[list[Frame]]:
    """``frames`` in lists of ``size``; a list ends early where the picture size changes, and the
    last may be shorter. Raises InvalidParameterError for a size below 1."""
    return gather(frames, size, lambda frame: frame.image.shape)


def feed(
    engine: InferenceEngine,
    frames: Iterable[Frame],
    chunk_frames: int = 4,
    on_chunk: Callable[[Fed], None] | None = None,
    at: float | None = None,
    at_question: str = "grids",
) -> Fed:
    """Append ``frames`` to ``engine``, each chunk before the next is read.

    A picture that the model cannot use is left out and counted.

    With ``at``, what a replay encodes before a question at that time.

    Args:
        engine: the stream goes on where it stands.
        frames: in order of their stamps; a source, for example.
        chunk_frames: frames encoded together.
        on_chunk: called after each chunk with the sums so far.
        at: seconds from the first frame at which to stop; None: at the last frame.
        at_question: what is then done with a chunk that is not full, if the frames reach that
            time; a key of `AT_QUESTION`.

    Raises:
        What ``append_video_chunk`` raises; everything before stays in the memory.
    """
    fed, shown = Fed(), UpTo(frames, at)
    for chunk in chunks(shown, chunk_frames):
        if shown.cut and len(chunk) < chunk_frames:
            # Better an odd frame than none at all.
            chunk = chunk[: AT_QUESTION[at_question](len(chunk)) or (0 if fed.frames else None)]
            if not chunk:
                break
        begin = time.perf_counter()
        try:
            result = engine.append_video_chunk(
                [frame.image for frame in chunk], timestamps=[frame.seconds for frame in chunk]
            )
        except InvalidImageError as error:
            fed.refused += len(chunk)
            fed.refusal = fed.refusal or str(error)
            continue
        fed.seconds += time.perf_counter() - begin
        fed.frames += len(chunk)
        fed.chunks += 1
        fed.tokens += result.tokens
        fed.evicted_tokens += result.evicted_tokens
        fed.closed_seconds += result.closed_seconds
        fed.first_ns = chunk[0].stamp_ns if fed.first_ns is None else fed.first_ns
        fed.last_ns = chunk[-1].stamp_ns
        if on_chunk is not None:
            on_chunk(fed)
    fed.cut = shown.cut
    return fed
