"""From image messages to chunks: what the node does with a frame before the engine sees it."""

from __future__ import annotations

import copy
import threading
from collections.abc import Callable, Hashable
from typing import Any, Protocol

import numpy as np

from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import InvalidImageError
from stream_vlm_ros.node.counters import Drop, FrameCounters
from stream_vlm_ros.node.sampling import (
    SECOND,
    Chunker,
    StampCheck,
    TimedFrame,
    Timing,
)
from stream_vlm_ros.sources.sampling import StampSampler


class Arrived(Protocol):
    """What an image is asked for; see :class:`stream_vlm_ros.node.arrival.Arrival`."""

    @property
    def stamp_ns(self) -> int | None:
        """Its own stamp, None if it cannot be read."""

    def read(self) -> tuple[Any, np.ndarray]:
        """Its header, and its picture as uint8 [height, width, 3]; raises InvalidImageError."""


class FrameIntake:
    """Checks, samples, decodes and gathers frames; counts each one exactly once.

    Stamps: a source whose first frame has a stamp of zero is taken to have no clock; all its
    frames are timed by their arrival (the node's clock), and headers stay as they are. A zero
    stamp among real ones is refused. Safe to call from several threads.

    Args:
        parameters: the settings; :meth:`apply` takes later ones.
        counters: where every frame is counted.
        deliver: takes a finished chunk.
        restart: called when the source's time jumped, before the first frame after it.
        report: told of each frame that was refused: the cause, and words.

    Frames are taken while :attr:`active` is true.
    """

    def __init__(
        self,
        parameters: Settings,
        counters: FrameCounters,
        deliver: Callable[[list[TimedFrame]], None],
        restart: Callable[[], None],
        report: Callable[[Drop, str], None],
    ) -> None:
        self.active = False
        self.time_jumps = 0
        self.arrival_timed: bool | None = None  # None until the first frame decides
        self._counters = counters
        self._deliver = deliver
        self._restart = restart
        self._report = report
        self._lock = threading.RLock()
        self._stamps = StampCheck(0, 0)
        self._sampler: StampSampler | None = None  # None takes every frame
        self._sample_fps = 0.0
        self._chunker = Chunker(1)
        self.apply(parameters)

    def apply(self, parameters: Settings) -> None:
        """Use these settings from the next frame on."""
        with self._lock:
            self._parameters = parameters
            self._stamps.tolerance_ns = round(parameters.time_jump_tolerance * SECOND)
            self._stamps.max_gap_ns = round(parameters.max_time_gap * SECOND)
            self._chunker.chunk_frames = parameters.chunk_frames
            if parameters.sample_fps != self._sample_fps:
                self._sample_fps = parameters.sample_fps
                self._sampler = StampSampler(self._sample_fps) if self._sample_fps else None

    def receive(self, arrival: Arrived, now_ns: int) -> None:
        """Take one image in, which arrived at ``now_ns`` by the node's clock."""
        with self._lock:
            self._counters.receive()
            if not self.active:
                self._counters.drop(Drop.INACTIVE)
                return
            stamp_ns = self._stamp(arrival.stamp_ns, now_ns)
            if stamp_ns is None or not self._in_time(stamp_ns):
                return
            before = copy.copy(self._sampler)
            if self._sampler is not None and not self._sampler.wants(stamp_ns):
                self._counters.drop(Drop.SAMPLING)
                return
            try:
                header, image = arrival.read()
            except InvalidImageError as fault:
                self._sampler = before  # the next frame takes its place
                self._refuse(Drop.INVALID_IMAGE, str(fault))
                return
            except Exception:  # a fault of this package: the thread of the images tells it
                self._sampler = before
                self._counters.drop(Drop.ERROR)
                raise
            frame = TimedFrame(stamp_ns, image, header)
            size: Hashable = image.shape
            for chunk in self._chunker.add(frame, size, now_ns):
                self._deliver(chunk)

    def flush_overdue(self, now_ns: int) -> None:
        """Deliver the open chunk if it has waited for ``max_chunk_delay``."""
        with self._lock:
            delay_ns = round(self._parameters.max_chunk_delay * SECOND)
            if self._chunker.is_overdue(now_ns, delay_ns):
                self._deliver(self._chunker.flush())

    def clear(self, cause: Drop) -> None:
        """Drop the open chunk for ``cause`` and forget all stamps: the next frame is the first."""
        with self._lock:
            waiting = len(self._chunker.flush())
            self._counters.drop(cause, waiting)
            self._stamps.clear()
            if self._sampler is not None:
                self._sampler.reset()
            self.arrival_timed = None

    @property
    def open_frames(self) -> int:
        """Frames in the open chunk."""
        return len(self._chunker.frames)

    def _stamp(self, own_ns: int | None, now_ns: int) -> int | None:
        """By which stamp the frame is placed in time; None if it is refused."""
        if own_ns is None:
            self._refuse(Drop.INVALID_IMAGE, "a message breaks off before the end of its header")
            return None
        if self.arrival_timed is None:
            self.arrival_timed = own_ns == 0
        if self.arrival_timed:
            return now_ns
        if own_ns > 0:
            return own_ns
        self._refuse(
            Drop.INVALID_STAMP,
            "a frame has a stamp of zero among frames with real ones"
            if own_ns == 0
            else f"a frame has the negative stamp {own_ns / SECOND:.3f} s",
        )
        return None

    def _in_time(self, stamp_ns: int) -> bool:
        """Whether the frame is in order, after the stream has been restarted if it must be."""
        timing = self._stamps.classify(stamp_ns)
        newest_ns = self._stamps.newest_ns or 0
        backwards = stamp_ns <= newest_ns
        jump = timing is Timing.JUMP
        if timing is Timing.LATE or (
            jump and backwards and self._parameters.on_time_jump == "reject"
        ):
            self._refuse(
                Drop.INVALID_STAMP,
                f"a frame is {(newest_ns - stamp_ns) / SECOND:.3f} s older than the newest one",
            )
            return False
        if jump:
            self.time_jumps += 1
            arrival_timed = self.arrival_timed
            self._report(
                Drop.TIME_JUMP,
                f"the source's time jumped by {(stamp_ns - newest_ns) / SECOND:+.3f} s; "
                "the memory starts anew",
            )
            self.clear(Drop.TIME_JUMP)
            self.arrival_timed = arrival_timed
            self._restart()
        self._stamps.advance(stamp_ns)
        return True

    def _refuse(self, cause: Drop, words: str) -> None:
        self._counters.drop(cause)
        self._report(cause, words)
