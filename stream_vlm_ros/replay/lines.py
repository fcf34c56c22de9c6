# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Lines of text read off a long video again and again, each kept once."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from difflib import SequenceMatcher
from typing import Any


@dataclass
class Line:
    """A line and when it was read, in seconds: the first and last time, and how often."""

    text: str
    first: float
    last: float
    times: int = 1

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def merged_lines(answers: Iterable[tuple[float, str]], similarity: float = 0.9) -> list[Line]:
    """The lines of ``answers`` (time, text) in the order they were first read, each once.

    Two lines are one if they are alike but for case, spaces and punctuation, or, beyond that, to
    the degree of ``similarity`` (0 to 1, difflib's ratio); the one with more letters is kept.
    """
    lines: list[Line] = []
    keys: list[str] = []
    for at, answer in answers:
        for text in answer.splitlines():
            text = _without_bullet(text)
            key = _key(text)
            if not key:
                continue
            index = _find(key, keys, similarity)
            if index is None:
                lines.append(Line(text, at, at))
                keys.append(key)
                continue
            line = lines[index]
            line.last, line.times = at, line.times + 1
            if len(key) > len(keys[index]):
                line.text, keys[index] = text, key
    return lines


def _find(key: str, keys: list[str], similarity: float) -> int | None:
    if key in keys:
        return keys.index(key)
    for index, known in enumerate(keys):
        matcher = SequenceMatcher(None, known, key, autojunk=False)
        # The two quick ones are upper bounds of the ratio.
        if matcher.real_quick_ratio() < similarity or matcher.quick_ratio() < similarity:
            continue
        # Numbers tell lines apart that are otherwise alike: "Gate 12" is not "Gate 13".
        if re.findall(r"\d+", known) == re.findall(r"\d+", key) and matcher.ratio() >= similarity:
            return index
    return None


def _without_bullet(text: str) -> str:
    return re.sub(r"^\s*(?:[-*•]|\d{1,2}[.)])\s+", "", text).strip()


def _key(text: str) -> str:
    return " ".join(re.sub(r"[\W_]+", " ", text.casefold()).split())
