# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Which frames to take for a target rate, decided by their stamps alone."""

from __future__ import annotations

from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import InvalidParameterError, real_number

_MIN_FPS, _MAX_FPS = 1e-6, 1e6


class StampSampler:
    """Takes the frame nearest to each tick of a grid of ``fps`` ticks a second.

    The grid starts at the first frame, so it does not drift; a source that runs at ``fps`` itself
    is taken whole as long as its stamps jitter by less than a quarter of their distance, and a
    slower one always. Stamps must not decrease; call ``reset`` when they start again.
    """

    def __init__(self, fps: float) -> None:
        rate = real_number(fps)
        if rate is None or not _MIN_FPS <= rate <= _MAX_FPS:
            raise InvalidParameterError(
                f"The sampling rate is {fps} frames/s; it must be above 0 "
                f"({_MIN_FPS:g} to {_MAX_FPS:g}). Leave it out to take every frame."
            )
        self.period_ns = max(1, round(SECOND / rate))
        self.reset()

    def reset(self) -> None:
        self._first: int | None = None
        self._previous = 0
        self._tick = -1

    def wants(self, stamp_ns: int) -> bool:
        """Whether to take the frame of this stamp; to be asked once for each frame, in order."""
        if self._first is None:
            self._first = self._previous = stamp_ns
            self._tick = 0
            return True
        interval = min(stamp_ns - self._previous, self.period_ns)
        self._previous = stamp_ns
        # The tick that is at most half an interval ahead: no later frame will be nearer to it.
        tick = (2 * (stamp_ns - self._first) + interval) // (2 * self.period_ns)
        if tick <= self._tick:
            return False
        self._tick = tick
        return True
