# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How long before a question a thing was seen: the stamps know it, the model guesses."""

from __future__ import annotations

import re
from collections.abc import Sequence

from stream_vlm_ros.console import duration_text

_SECONDS = {"second": 1, "minute": 60, "hour": 3600, "day": 86_400}
_LENGTH = re.compile(rf"(\d+(?:\.\d+)?)\s+({'|'.join(_SECONDS)})s?\b", re.IGNORECASE)
_AGO = re.compile(r"\bago\b", re.IGNORECASE)


def age_text(end: float, at: float) -> str:
    """How long before a question at ``at`` a stretch ended, both in seconds: for people."""
    return f"{duration_text(max(0.0, at - end))} before the question"


def correction(answer: str, episodes: Sequence[tuple[float, float]], at: float) -> str:
    """What the stamps say where an answer tells another time ago; "": it does not.

    Args:
        episodes: from when to when each is that the answer rests on.
        at: when it was asked.
    """
    lengths = [(float(n), _SECONDS[unit.lower()]) for n, unit in _LENGTH.findall(answer)]
    if not (episodes and lengths and _AGO.search(answer)):
        return ""
    told = sum(number * unit for number, unit in lengths)
    finest = min(unit for _, unit in lengths)
    for start, end in episodes:
        within = max(2, finest / 2, 0.1 * (at - end))
        if at - end - within <= told <= at - start + within:
            return ""
    newest = max(end for _, end in episodes)
    return f"By the stamps it was {duration_text(max(0.0, at - newest))} ago, not as the model says"
