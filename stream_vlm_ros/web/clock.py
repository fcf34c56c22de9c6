# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A source's time as people read it."""

from __future__ import annotations

from datetime import datetime

from stream_vlm_ros.engine.inputs.timestamps import SECOND

CLOCK = 1e8  # s: later stamps are told as times of day; no recording that begins at 0 is as long


def clock_text(stamp_ns: int) -> str:
    """``14:03:07.2`` by this machine's clock, or ``1:03.4`` of a recording that begins at 0."""
    seconds = stamp_ns / SECOND
    if seconds >= CLOCK:
        return f"{datetime.fromtimestamp(int(seconds)):%H:%M:%S}.{int(seconds * 10) % 10}"
    tenths = round(seconds * 10)
    minutes, tenths = divmod(abs(tenths), 600)
    sign = "-" if seconds < 0 else ""
    hours, minutes = divmod(minutes, 60)
    ahead = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    return f"{sign}{ahead}:{tenths / 10:04.1f}"
