# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""When frames were taken, in seconds of their source: checked where they enter."""

from __future__ import annotations

import math
from collections.abc import Sequence

from stream_vlm_ros.errors import InvalidParameterError, InvalidTimestampError, real_number

SECOND = 1_000_000_000  # nanoseconds
DEFAULT_FPS = 2.0
# Of one stream: 136 years. So far float64 angles are exact, and no stamp in seconds goes further;
# stamps in nanoseconds do within seconds.
MAX_SPAN = 2.0**32


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
        rate = DEFAULT_FPS if fps is None else real_number(fps)
        if rate is None or not 1 / MAX_SPAN < rate < math.inf:
            raise InvalidTimestampError(f"fps must be a number above 0: {fps!r}")
        first = 0.0 if newest is None else newest + 1 / rate
        return [first + index / rate for index in range(count)]
    if fps is not None:
        raise InvalidTimestampError("give either fps or timestamps, not both")
    try:
        stamps = [float(stamp) for stamp in timestamps]
    except (TypeError, ValueError, OverflowError) as error:
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
                f"time runs backwards: a frame of {stamp:.6f} s comes after one of {newest:.6f} s. "
                "Sort the frames, or reset() if the source started again"
            )
        newest = stamp


def check_span(first: float, last: float) -> None:
    """Raise InvalidTimestampError if a stream from ``first`` to ``last`` is longer than any."""
    if last - first > MAX_SPAN:
        raise InvalidTimestampError(
            f"a frame of {last:.6g} s comes {last - first:.3g} s after the stream's first: time "
            "stamps are seconds (divide nanoseconds by 1e9); reset() if the source started again"
        )


def check_about(about: tuple[float, float] | None) -> tuple[float, float] | None:
    """``about`` as (from, to) in seconds, or InvalidParameterError. Infinite ends are allowed."""
    if about is None:
        return None
    try:
        start, stop = (float(second) for second in about)
    except (TypeError, ValueError) as error:
        raise InvalidParameterError(
            f"the time asked about is (from, to) in seconds, not {about!r}"
        ) from error
    if not start <= stop:
        raise InvalidParameterError(f"the time asked about ends before it begins: {start, stop}")
    return start, stop
