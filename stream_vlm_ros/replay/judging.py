# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Whether an answer is right.

Expressions, the user's and those here, run on RE2: its time grows with the length of expression and
text alone. A limit on time instead would let a verdict depend on how busy a machine is.
"""

from __future__ import annotations

import importlib
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import re2

_NUMBER_WORDS = {
    word: number
    for number, word in enumerate(
        "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
        "fifteen sixteen seventeen eighteen nineteen twenty".split()
    )
} | {"no": 0, "none": 0, "nothing": 0, "once": 1, "twice": 2, "a": 1, "an": 1, "half": 0.5}
_NUMBER_WORDS |= {"thirty": 30, "forty": 40, "fifty": 50, "sixty": 60}
_COUNTING = set(_NUMBER_WORDS) - {"a", "an", "no", "half"}
_UNIT_SECONDS = {"h": 3600.0, "m": 60.0, "s": 1.0}
_DIGITS = r"[-+]?\d+(?:,\d{3})*(?:\.\d+)?"
_CLOCK = re2.compile(r"\b(?:(\d+):)?(\d{1,3}):(\d{2}(?:\.\d+)?)\b")
_DURATION = re2.compile(
    rf"(?i)({_DIGITS}|\b(?:{'|'.join(_NUMBER_WORDS)})\b)\s*"
    r"(h(?:ours?|r|rs)?|m(?:in(?:ute)?s?)?|s(?:ec(?:ond)?s?)?)\b"
)
_NUMBER = re2.compile(
    rf"(?i){_DIGITS}|\b(?:{'|'.join(sorted(_COUNTING, key=len, reverse=True))})\b"
)
# Not the comma between thousands, nor that of a list.
_DECIMAL_COMMA = re.compile(r"\d,\d(?!\d\d(?!\d))")
_NO_WORD = r"[^\p{L}\p{M}\p{N}_]"
MAX_JUDGED = 20_000  # characters of an answer that are looked at
_EXPRESSION_BYTES = 1 << 20  # of memory for one expression
# More than RE2 repeats, and so many digits that it takes the braces for text.
_HUGE_REPETITION = re.compile(r"(?<!\\)\{(\d*,)?\d{4,}")

Judging = Callable[[str], "bool | None"]


@dataclass(frozen=True)
class Judge:
    """Whether an answer is right; None if that cannot be judged.

    ``options`` are those that the question file gives it, such as ``within``.
    """

    name: str
    function: Judging
    options: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, answer: str) -> bool | None:
        return self.function(answer[:MAX_JUDGED])


def make_judge(spec: Any, expect: tuple[str, ...], choices: tuple[str, ...] = ()) -> Judge:
    """The judge of one question.

    Args:
        spec: as in a question file: a name, ``{name: {option: value}}`` or
            ``python:module:function``; None: by what is there to judge by.
        expect: the answers that count as right.
        choices: what there was to choose from.

    Raises:
        ValueError: what is expected does not go with the judge; the message is for the user.
    """
    name, options = (next(iter(spec.items()))) if isinstance(spec, dict) else (spec, {})
    options = options or {}
    if name is None:
        name = "none" if not expect else "choice" if choices else "exact"
    if name == "none":
        return Judge("none", lambda answer: None)
    if name.startswith("python:"):
        return Judge(name, _callable(name, expect, choices))
    if not expect:
        raise ValueError(f"the judge {name!r} needs 'expect': the right answer")
    if name == "choice":
        strangers = [e for e in expect if e not in choices]
        if strangers:
            raise ValueError(f"expected is {strangers[0]!r}, which is not one of the choices")
        return Judge(name, lambda answer: answer in expect)
    if name in ("exact", "contains") and (empty := [e for e in expect if not plain(e)]):
        raise ValueError(
            f"expected is {empty[0]!r}, of which nothing is left to compare: spaces, quotes and "
            "punctuation at the ends do not count"
        )
    if name == "exact":
        wanted = {plain(e) for e in expect}
        return Judge(name, lambda answer: plain(answer) in wanted)
    if name == "contains":
        patterns = [_whole_words(e) for e in expect]
        needed = all if options.get("all") else any
        return Judge(
            name, lambda answer: needed(p.search(plain(answer)) for p in patterns), options
        )
    if name == "regex":
        found = [_expression(e) for e in expect]
        return Judge(name, lambda answer: any(p.search(answer) for p in found))
    read, what = {"number": (number_in, "number"), "time": (seconds_in, "time")}[name]
    if comma := next((e for e in expect if _DECIMAL_COMMA.search(e)), None):
        raise ValueError(f"expected is {comma!r}: write a decimal point, not a comma")
    values = [read(e) for e in expect]
    if None in values:
        raise ValueError(f"expected is {expect[values.index(None)]!r}, which holds no {what}")
    within = float(options.get("within", 0.0)) + 1e-9
    return Judge(name, lambda answer: _near(read(answer), values, within), options)


def plain(text: str) -> str:
    """Lower case, single spaces, without quotes, closing punctuation and leading articles."""
    text = " ".join(text.casefold().split()).strip(" .,;:!?\"'`*")
    return re.sub(r"^(the|an|a) ", "", text)


def number_in(text: str) -> float | None:
    """The first number in a text, in digits or, up to twenty, in words."""
    match = _NUMBER.search(text)
    return _value(match[0]) if match else None


def seconds_in(text: str) -> float | None:
    """The first time or duration in a text, in seconds: ``1:05``, ``two minutes 5 s``, ``12.5``."""
    if clock := _CLOCK.search(text):
        hours, minutes, seconds = clock.groups()
        return float(hours or 0) * 3600 + float(minutes) * 60 + float(seconds)
    total, last = None, 0
    for part in _DURATION.finditer(text):
        if total is not None and text[last : part.start()].strip(" ,") not in ("", "and"):
            break
        total = (total or 0.0) + _value(part[1]) * _UNIT_SECONDS[part[2][0].lower()]
        last = part.end()
    return number_in(text) if total is None else total


def _value(text: str) -> float:
    word = _NUMBER_WORDS.get(text.lower())
    return float(text.replace(",", "")) if word is None else float(word)


def _near(value: float | None, wanted: list[Any], within: float) -> bool:
    return value is not None and any(abs(value - w) <= within for w in wanted)


def _whole_words(text: str) -> Any:
    return re2.compile(f"(?:^|{_NO_WORD}){re2.escape(plain(text))}(?:$|{_NO_WORD})")


def _expression(text: str) -> Any:
    """A compiled expression of the user's, whatever the case, its dot for line ends, too."""
    options = re2.Options()
    options.case_sensitive, options.dot_nl = False, True
    options.log_errors, options.max_mem = False, _EXPRESSION_BYTES
    try:
        if huge := _HUGE_REPETITION.search(text):
            raise ValueError(f"not a regular expression: {huge[0]}}} repeats more than 999 times")
        return re2.compile(text, options)
    except re2.error as error:
        said = error.args[0] if error.args else error
        words = said.decode(errors="replace") if isinstance(said, bytes) else str(said)
        raise ValueError(
            f"not a regular expression: {words} (RE2 has no lookaround and no back-references)"
        ) from error


def _callable(name: str, expect: tuple[str, ...], choices: tuple[str, ...]) -> Judging:
    """``python:module:function``, called as ``function(answer, expect=..., choices=...)``."""
    _, module, attribute = name.split(":")
    try:
        function = getattr(importlib.import_module(module), attribute)
    except Exception as error:  # a module of the user's: anything may come out of it
        raise ValueError(f"the judge {name!r} cannot be loaded: {error}") from error
    if not callable(function):
        raise ValueError(f"the judge {name!r} is not a function")

    def judge(answer: str) -> bool | None:
        verdict = function(answer, expect=expect, choices=choices)
        return None if verdict is None else bool(verdict)

    return judge
