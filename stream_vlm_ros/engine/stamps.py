"""When frames were taken, in seconds of their source: checked where they enter."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stream_vlm_ros.engine.errors import InvalidTimestampError

DEFAULT_FPS = 2.0


def frame_times(
    count: int, fps: float | None, timestamps: Sequence[float] | None, newest: float | None
) -> list[float]:
    """The times of ``count`` frames in seconds.

    Args:
        fps: frames a second, going on where the newest frame ended; 2 with neither.
        timestamps: instead, the time of each.
        newest: of the frames before; None: there is none.

    Raises:
        InvalidTimestampError: both or unusable ones given, a wrong number, time runs backwards.
    """
    if timestamps is None:
        fps = DEFAULT_FPS if fps is None else fps
        if not isinstance(fps, (int, float)) or not math.isfinite(fps) or fps <= 0:
            raise InvalidTimestampError(f"fps must be a number above 0: {fps!r}")
        first = 0.0 if newest is None else newest + 1 / fps
        return [first + index / fps for index in range(count)]
    if fps is not None:
        raise InvalidTimestampError("give either fps or timestamps, not both")
    try:
        stamps = [float(stamp) for stamp in timestamps]
    except (TypeError, ValueError) as error:
        raise InvalidTimestampError(f"time stamps must be seconds: {error}") from error
    if len(stamps) != count:
        raise InvalidTimestampError(f"{count} frames came with {len(stamps)} time stamps")
    check_order(stamps, newest)
    return stamps


def check_order(stamps: Sequence[float], newest: float | None) -> None:
    """Raise InvalidTimestampError unless the stamps are finite and never fall from ``newest``."""
    for stamp in stamps:
        if not math.isfinite(stamp):
            raise InvalidTimestampError(f"a time stamp is not finite: {stamp}")
        if newest is not None and stamp < newest:
            raise InvalidTimestampError(
                f"time runs backwards: a frame of {stamp:.3f} s comes after one of {newest:.3f} s. "
                "Sort the frames, or reset() if the source started anew"
            )
        newest = stamp
