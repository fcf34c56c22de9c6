# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A source's time as people read it."""

from __future__ import annotations

from datetime import datetime

from stream_vlm_ros.engine.inputs.timestamps import SECOND

CLOCK = 1e8  # s: later stamps are told as times of day; no recording that begins at 0 is as long
DAY = 86_400
STEPS = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 14_400, 21_600, 43_200)


def clock_text(stamp_ns: int, tenths: bool = True) -> str:
    """``14:03:07.2`` by this machine's clock, or ``1:03.4`` of a recording that begins at 0."""
    if of_day(stamp_ns) is not None:
        whole, rest = divmod(stamp_ns // (SECOND // 10), 10)
        text = f"{datetime.fromtimestamp(whole):%H:%M:%S}"
        return f"{text}.{rest}" if tenths else text
    whole, rest = divmod(abs(stamp_ns) // (SECOND // 10), 10)
    minutes, seconds = divmod(whole, 60)
    hours, minutes = divmod(minutes, 60)
    ahead = f"{hours}:{minutes:02d}" if hours else f"{minutes}"
    sign = "-" if stamp_ns < 0 else ""
    return f"{sign}{ahead}:{seconds:02d}" + (f".{rest}" if tenths else "")


def span_text(start_ns: int, end_ns: int) -> str:
    """Two times with a dash between, or one where both read the same."""
    first, last = clock_text(start_ns), clock_text(end_ns)
    return first if first == last else f"{first}–{last}"


def of_day(stamp_ns: int) -> float | None:
    """Seconds since this machine's midnight; None for a recording that begins at 0."""
    if stamp_ns / SECOND < CLOCK:
        return None
    then = datetime.fromtimestamp(stamp_ns // SECOND)
    return then.hour * 3600 + then.minute * 60 + then.second + stamp_ns % SECOND / SECOND


def marks(start_ns: int, end_ns: int, most: int = 6) -> list[tuple[int, str]]:
    """Round times between the two with their texts, at most so many."""
    length = (end_ns - start_ns) / SECOND
    step = next((s for s in STEPS if length / s <= most), DAY * (1 + int(length / DAY / most)))
    shift = of_day(start_ns)
    first = shift if shift is not None else start_ns / SECOND  # s, on the clock that is shown
    found, number = [], -int(-first // step)
    while (ahead := number * step - first) <= length:
        stamp_ns = start_ns + round(ahead * SECOND)
        text = clock_text(stamp_ns, tenths=False)
        found.append((stamp_ns, text[:5] if shift is not None and step >= 60 else text))
        number += 1
    return found
