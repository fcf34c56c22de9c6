# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Which part of a source to read."""

from __future__ import annotations

from stream_vlm_ros.engine.inputs.sampling import StampSampler
from stream_vlm_ros.errors import InvalidParameterError

MAX_SECONDS = 2.0**31  # of any source, and of any question's time: what stamps can hold


def check_part(fps: float | None, start: float, end: float | None) -> None:
    """Raise InvalidParameterError unless a source can be read from ``start`` to ``end`` seconds.

    Args:
        fps: frames a second to take; None: every frame.
        end: None: to the source's end.
    """
    if fps is not None:
        StampSampler(fps)
    if not 0 <= start <= MAX_SECONDS or (end is not None and not start < end <= MAX_SECONDS):
        raise InvalidParameterError(
            f"The part to read is {start} s to {end} s; it must start at 0 or later and end "
            f"after its start, at {MAX_SECONDS:.0f} s at the latest."
        )
