# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Questions about a time of which nothing is held: the model answers them all the same."""

from __future__ import annotations

import re
from collections.abc import Sequence

GUESS = "a guess, nothing of that time is held"  # the mark of such an answer

UNITS = {"second": 1, "minute": 60, "hour": 3600}
WORDS = "one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen"
NUMBERS = {word: number for number, word in enumerate(WORDS.split(), 1)}
NUMBERS |= {"a": 1, "an": 1, "twenty": 20, "thirty": 30, "forty": 40, "fifty": 50, "sixty": 60}
AGO = re.compile(
    rf"\b(\d+(?:\.\d+)?|{'|'.join(NUMBERS)})\s+({'|'.join(UNITS)})s?\s+ago\b", re.IGNORECASE
)


def is_forgotten(question: str, held_ago: Sequence[tuple[float, float]]) -> bool:
    """Whether ``question`` is about a time, such as "ten seconds ago", of which nothing is held.

    Args:
        held_ago: stretches of time that can be answered of, in seconds before the newest frame.
    """
    asked = [
        (float(NUMBERS.get(number.lower(), number)) * UNITS[unit.lower()], UNITS[unit.lower()])
        for number, unit in AGO.findall(question)
    ]
    return any(
        not any(end - near <= ago <= begin + near for begin, end in held_ago)
        for ago, near in ((ago, max(2, unit / 2)) for ago, unit in asked)
    )
