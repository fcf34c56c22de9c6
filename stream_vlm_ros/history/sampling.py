# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Which frames to keep for a target rate, decided by their stamps alone."""

from __future__ import annotations

import math

from stream_vlm_ros.errors import InvalidParameterError, real_number

_MAX_FPS = 1e6


class TargetRate:
    """Takes the frame nearest to each tick of a grid of ``fps`` ticks a second.

    The grid begins at the first frame and so does not drift. A source that runs at ``fps`` itself
    is taken whole as long as its stamps jitter by less than a quarter of their distance, and a
    slower one always. ``fps`` 0: every frame.

    Raises:
        InvalidParameterError: a rate that is negative or not a number.
    """

    def __init__(self, fps: float):
        rate = real_number(fps)
        if rate is None or not 0 <= rate <= _MAX_FPS:
            raise InvalidParameterError(f"target_fps must be a number of at least 0: {fps!r}")
        self.fps = rate
        self.clear()

    def clear(self) -> None:
        """The next frame is the first of a new grid."""
        self._first: float | None = None
        self._previous = 0.0
        self._tick = -1

    def wants(self, stamp: float) -> bool:
        """Whether to take the frame of this stamp (seconds); asked once a frame, in order."""
        if self.fps == 0:
            return True
        if self._first is None:
            self._first = self._previous = stamp
            self._tick = 0
            return True
        interval = min((stamp - self._previous) * self.fps, 1.0)
        self._previous = stamp
        # The tick at most half an interval ahead: no later frame will be nearer to it. The grain
        # makes up for stamps that a float does not hold exactly.
        tick = math.floor((stamp - self._first) * self.fps + interval / 2 + 1e-6)
        if tick <= self._tick:
            return False
        self._tick = tick
        return True
