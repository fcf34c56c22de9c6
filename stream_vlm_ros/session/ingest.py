# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""From image messages to chunks: what the node does with a frame before the engine sees it."""

from __future__ import annotations

import copy
import math
import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from stream_vlm_ros.config import Settings
from stream_vlm_ros.engine.inputs.chunking import Chunker
from stream_vlm_ros.engine.inputs.sampling import StampSampler
from stream_vlm_ros.engine.inputs.stamp_check import (
    FRAMES_TO_BELIEVE,
    Decision,
    StampCheck,
    check_stamp,
)
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import InvalidImageError, InvalidTimestampError, cut
from stream_vlm_ros.session.counters import Drop, FrameCounters
from stream_vlm_ros.session.timed_frame import TimedFrame

STEPS_TO_WAIT = 3  # from frame to frame, for the next one after a pause


class Arrived(Protocol):
    """What ingest needs of a `stream_vlm_ros.node.serialized_image.SerializedImage`."""

    @property
    def stamp_ns(self) -> int | None:
        """Its own stamp, None if it cannot be read; InvalidTimestampError if it is none."""

    def read(self) -> tuple[Any, np.ndarray]:
        """Its header, and its picture as uint8 [height, width, 3]; raises InvalidImageError."""


@dataclass(frozen=True)
class _Received:
    """A frame whose stamp is known, and when it arrived by a clock that never stands."""

    arrival: Arrived
    stamp_ns: int
    now_ns: int


class FrameIngest:
    """Checks, samples, decodes and gathers frames; counts each one exactly once.

    Stamps: a source whose first frame has a stamp of zero is taken to have no clock; its frames
    are timed by their arrival (the node's clock), and headers stay as they are, until three real
    stamps come in a row. A zero stamp among real ones is refused. After a pause or a jump of the
    source's time frames wait until it is believed (`StampCheck`). A new memory begins where time
    ran back, or where the frames before had wrong stamps. However far ahead it jumped, the memory
    goes on: what nobody saw is a pause. Safe to call from several threads.

    Args:
        parameters: the settings; :meth:`apply` takes later ones.
        counters: where every frame is counted.
        deliver: takes a finished chunk.
        restart: called when a new memory begins, before its first frame.
        report: called for each refused frame, with the cause and a text.
        taken: called for each frame that was sampled.
        dropped: called for each frame that was not delivered, in its place in the order, with the
            cause and a text: what arrived, or the `TimedFrame` that came of it.
        admitted: called for each frame whose stamp is believed, before it is sampled.

    Frames are taken while :attr:`active` is true and :attr:`paused` is not.
    """

    def __init__(
        self,
        parameters: Settings,
        counters: FrameCounters,
        deliver: Callable[[list[TimedFrame]], None],
        restart: Callable[[], object],
        report: Callable[[Drop, str], None],
        taken: Callable[[TimedFrame], None] = lambda frame: None,
        dropped: Callable[[Any, Drop, str], None] = lambda what, cause, words: None,
        admitted: Callable[[Any], object] = lambda arrived: None,
    ) -> None:
        self.active = self.paused = False
        self.time_jumps = 0
        self.arrival_timed: bool | None = None  # None until the first frame decides
        self._counters = counters
        self._deliver = deliver
        self._restart = restart
        self._report = report
        self._taken = taken
        self._dropped = dropped
        self._admitted = admitted
        self._lock = threading.RLock()
        self._stamps: StampCheck[_Received] = StampCheck(0, 0)
        self._offered_ns = 0  # when the last stamp came
        self._real_stamps = 0  # in a row, while frames are timed by their arrival
        self._sampler: StampSampler | None = None  # None takes every frame
        self._sample_fps = 0.0
        self._chunker: Chunker[TimedFrame] = Chunker(parameters.chunk_frames)
        self.apply(parameters)

    def apply(self, parameters: Settings) -> None:
        """Use these settings from the next frame on."""
        with self._lock:
            self._parameters = parameters
            self._stamps.tolerance_ns = round(parameters.time_jump_tolerance * SECOND)
            self._stamps.max_gap_ns = round(_longest_gap(parameters) * SECOND)
            self._stamps.believe_backwards = parameters.on_time_jump != "reject"
            self._chunker.chunk_frames = parameters.chunk_frames
            if parameters.sample_fps != self._sample_fps:
                self._sample_fps = parameters.sample_fps
                self._sampler = StampSampler(self._sample_fps) if self._sample_fps else None

    def receive(self, arrival: Arrived, now_ns: int, running_ns: int | None = None) -> None:
        """Take one image in, which arrived at ``now_ns`` by the node's clock.

        That may stand, ``running_ns`` not: what waits, waits by it. None: they are the same.
        """
        with self._lock:
            self._counters.receive()
            if not self.active or self.paused:
                self._drop(Drop.PAUSED if self.active else Drop.INACTIVE, [arrival])
                return
            stamp_ns = self._stamp(arrival, now_ns)
            if stamp_ns is None:
                return
            self._offered_ns = now_ns if running_ns is None else running_ns
            received = _Received(arrival, stamp_ns, self._offered_ns)
            self._follow(self._stamps.offer(stamp_ns, received))

    def _follow(self, decision: Decision[_Received]) -> None:
        """Take and drop frames as their stamps decided."""
        for frame, words in decision.refused:
            self._refuse(frame.arrival, Drop.INVALID_STAMP, words)
        if decision.jump_ns is not None:
            if decision.outvoted or not 0 < decision.jump_ns <= self._longest_kept_ns:
                self._start_anew(decision.jump_ns)
            else:  # the memory goes on; no grid is of frames from both sides of the gap
                self.deliver_open()
        faults = []
        for frame in decision.admitted:
            self._admitted(frame.arrival)
            try:
                self._take(frame)
            except Exception as fault:  # of this package; the others are counted all the same
                faults.append(fault)
        if faults:  # the thread of the images tells it
            raise faults[0]

    def _take(self, received: _Received) -> None:
        """Sample and decode a frame whose turn has come."""
        before = copy.copy(self._sampler)
        if self._sampler is not None and not self._sampler.wants(received.stamp_ns):
            self._drop(Drop.SAMPLING, [received.arrival])
            return
        try:
            header, image = received.arrival.read()
        except InvalidImageError as fault:
            self._sampler = before  # the next frame takes its place
            self._refuse(received.arrival, Drop.INVALID_IMAGE, str(fault))
            return
        except Exception as fault:
            self._sampler = before
            self._drop(Drop.ERROR, [received.arrival], repr(fault))
            raise
        frame = TimedFrame(received.stamp_ns, image, header)
        self._taken(frame)
        size: Hashable = image.shape
        for chunk in self._chunker.add(frame, size, received.now_ns):
            self._deliver(chunk)

    def flush_overdue(self, now_ns: int) -> None:
        """Deliver the open chunk if it has waited for ``max_chunk_delay``, and before it frames
        after a pause that nothing followed for so long, nor for `STEPS_TO_WAIT` usual steps; by the
        clock that never stands."""
        with self._lock:
            delay_ns = round(self._parameters.max_chunk_delay * SECOND)
            patience_ns = max(delay_ns, STEPS_TO_WAIT * self._stamps.usual_step_ns)
            if delay_ns and not 0 <= now_ns - self._offered_ns < patience_ns:
                self._follow(self._stamps.release())
            if self._chunker.is_overdue(now_ns, delay_ns):
                self._deliver(self._chunker.flush())

    def clear(self, cause: Drop) -> None:
        """Drop what waits for ``cause`` and forget all stamps: the next frame is the first."""
        with self._lock:
            self._drop_open_chunk(cause)
            self._drop(cause, [frame.arrival for frame in self._stamps.clear()])
            self.arrival_timed = None
            self._real_stamps = 0

    def pause(self) -> None:
        """Take no more frames until :attr:`paused` is false again; what waits is remembered."""
        with self._lock:
            self.paused = True
            self._follow(self._stamps.release())
            self.deliver_open()

    def deliver_open(self) -> None:
        """Deliver the open chunk as it is."""
        with self._lock:
            if self._chunker.frames:
                self._deliver(self._chunker.flush())

    def go_on_behind(self, newest_ns: int | None) -> None:
        """A memory was loaded that ends there: forget all stamps, and go on from it."""
        self.clear(Drop.RESET)
        with self._lock:
            if self._sampler is not None:
                self._sampler.reset()
            self.resume(newest_ns)

    def resume(self, newest_ns: int | None) -> None:
        """Continue after the newest frame in memory; None if it is empty, as after `clear`."""
        with self._lock:
            if self._stamps.newest_ns is None:
                self._stamps.resume(newest_ns)

    @property
    def open_frames(self) -> int:
        """Frames that wait here: in the open chunk, or for a pause or jump to be believed."""
        return len(self._chunker.frames) + self._stamps.waiting

    def _stamp(self, arrival: Arrived, now_ns: int) -> int | None:
        """By which stamp the frame is placed in time; None if it is refused."""
        try:
            own_ns = arrival.stamp_ns
            if own_ns is None:
                words = "a message breaks off before the end of its header"
                self._refuse(arrival, Drop.INVALID_IMAGE, words)
                return None
            check_stamp(own_ns)
            if self._is_arrival_timed(own_ns):
                return check_stamp(now_ns)
        except InvalidTimestampError as fault:
            self._refuse(arrival, Drop.INVALID_STAMP, str(fault))
            return None
        if own_ns:
            return own_ns
        words = "a frame has a stamp of zero among frames with real ones"
        self._refuse(arrival, Drop.INVALID_STAMP, words)
        return None

    def _is_arrival_timed(self, own_ns: int) -> bool:
        """Whether frames are timed by their arrival, with one of this stamp of its own."""
        if self.arrival_timed is None:
            self.arrival_timed = own_ns == 0
        elif self.arrival_timed:
            self._real_stamps = self._real_stamps + 1 if own_ns else 0
            self.arrival_timed = self._real_stamps < FRAMES_TO_BELIEVE
        return self.arrival_timed

    def _start_anew(self, jump_ns: int) -> None:
        """The source's time jumped: the stream begins with the next frame."""
        self.time_jumps += 1
        self._report(
            Drop.TIME_JUMP,
            f"the source's time jumped by {jump_ns / SECOND:+.3f} s; a new memory begins",
        )
        self._drop_open_chunk(Drop.TIME_JUMP)
        self._restart()

    @property
    def _longest_kept_ns(self) -> float:
        """Across how long a step ahead a memory goes on: frames on disk have a bound in time."""
        if self._parameters.engine == "delayed_batch":
            return self._parameters.frame_store_hours * 3600 * SECOND
        return math.inf

    def _drop_open_chunk(self, cause: Drop) -> None:
        self._drop(cause, self._chunker.flush())
        if self._sampler is not None:
            self._sampler.reset()

    def _refuse(self, arrival: Arrived, cause: Drop, words: str) -> None:
        self._drop(cause, [arrival], cut(words))
        self._report(cause, cut(words))

    def _drop(self, cause: Drop, frames: Sequence[Any], words: str = "") -> None:
        """Count frames out, and tell each."""
        self._counters.drop(cause, len(frames))
        for frame in frames:
            self._dropped(frame, cause, words)


def _longest_gap(parameters: Settings) -> float:
    """Up to how many seconds ahead a single stamp is believed: never more than the frames kept on
    disk may span, or it would push them all out."""
    if parameters.keeps_frames:
        return min(parameters.max_time_gap, parameters.frame_store_hours * 3600)
    return parameters.max_time_gap
