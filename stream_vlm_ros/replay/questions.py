# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Question files: what is asked, when, and what would be right.

``docs/replay.md`` describes the format; ``questions.schema.json`` next to this file defines it.
Files of other makers are read by an importer: ``IMPORTERS[name](path) -> QuestionSet``.
"""

from __future__ import annotations

import difflib
import hashlib
import json
import math
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema

from stream_vlm_ros.engine.inputs.stamp_check import check_stamp
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import InvalidTimestampError, cut
from stream_vlm_ros.sources.sampling import MAX_SECONDS

from .csv_lines import csv_events
from .judging import Judge, make_judge
from .yaml_lines import Document, Place, QuestionFileError, load_document

SCHEMA_FILE = Path(__file__).with_name("questions.schema.json")
DEFAULT_SIMILARITY = 0.9
_MAX_TOLD = 640  # characters of the mistakes behind the first
Stretch = tuple[float, float]
_WHEN = ("at", "at_stamp", "every")  # keys that say when a question is asked
_OF_KEYS = ("additionalProperties", "required", "oneOf")  # the schema's words about keys alone
_TIMES = ("at", "from", "until", "about", "evidence")  # keys of a question that hold times


@dataclass(frozen=True)
class Question:
    """One question. Times are seconds from the source's first frame.

    Exactly one of ``at``, ``at_stamp_ns``, ``every`` and ``at_end`` says when it is asked.
    ``evidence`` is when that could be seen which answers it; ``about`` is the time that the engine
    is told to look at.
    """

    id: str
    text: str
    judge: Judge
    at: float | None = None
    at_stamp_ns: int | None = None
    at_end: bool = False
    every: float | None = None
    first: float | None = None
    until: float | None = None
    camera: str | None = None
    choices: tuple[str, ...] = ()
    expect: tuple[str, ...] = ()
    about: Stretch | None = None
    evidence: tuple[Stretch, ...] = ()
    type: str = ""
    tags: tuple[str, ...] = ()
    max_new_tokens: int | None = None
    merge_similarity: float | None = None
    extra: Any = None


@dataclass(frozen=True)
class QuestionSet:
    """The questions of one file, in its order. ``digest`` tells whether the file has changed."""

    path: Path
    questions: tuple[Question, ...]
    title: str = ""
    digest: str = ""
    extra: Any = None
    cameras: tuple[str, ...] = field(init=False)

    def __post_init__(self) -> None:
        named = dict.fromkeys(q.camera for q in self.questions if q.camera)
        object.__setattr__(self, "cameras", tuple(named))


@lru_cache(maxsize=1)
def schema() -> dict[str, Any]:
    """The JSON Schema of question files."""
    return json.loads(SCHEMA_FILE.read_text(encoding="utf-8"))


def load_questions(path: str | Path, importer: str = "stream_vlm") -> QuestionSet:
    """Read and check a question file.

    Raises QuestionFileError: the message names the file, and every mistake with its line.
    """
    if importer not in IMPORTERS:
        raise QuestionFileError(
            f"There is no importer {importer!r}; choose from {', '.join(IMPORTERS)}."
        )
    return IMPORTERS[importer](Path(path))


def _load_own(path: Path) -> QuestionSet:
    is_table = path.suffix.lower() in (".csv", ".tsv")
    document = load_document(path, csv_events if is_table else None)
    content = document.content
    mistakes, wrong = _mistakes(document)
    known = schema()["properties"]["defaults"]["properties"]
    defaults = _mapping(_mapping(content).get("defaults"))
    defaults = {key: value for key, value in defaults.items() if key in known}
    entries = _mapping(content).get("questions")
    questions: list[Question] = []
    lines: dict[str, int] = {}
    for index, own in enumerate(entries if isinstance(entries, list) else []):
        if not isinstance(own, dict):
            continue
        place: Place = ("questions", index)
        bad = wrong.get(index, set()) | (wrong.get(None, set()) - own.keys())
        entry = _Entry({**defaults, **own}, document, place, bad)
        question = entry.question(f"q{index + 1:03d}")
        if "id" not in bad:
            name = own.get("id", f"q{index + 1:03d}")
            if name in lines:
                entry.wrong("id", f"the id {name!r} is already used in line {lines[name]}")
            lines.setdefault(name, document.line(place))
        mistakes += entry.mistakes
        if question is not None:
            questions.append(question)
    if mistakes:
        raise _all_of(mistakes)
    canonical = json.dumps(content, sort_keys=True, default=str)
    return QuestionSet(
        path=path,
        questions=tuple(questions),
        title=content.get("title", ""),
        digest=hashlib.sha256(canonical.encode()).hexdigest(),
        extra=content.get("extra"),
    )


IMPORTERS: dict[str, Callable[[Path], QuestionSet]] = {"stream_vlm": _load_own}


def _all_of(mistakes: Collection[QuestionFileError]) -> QuestionFileError:
    """One error of them all, by line: the first in full, and of many what has room."""
    first, *others = sorted(mistakes, key=lambda mistake: mistake.line)
    told, left = str(first), _MAX_TOLD
    for number, other in enumerate(others):
        more = f"\nline {other.line}: {cut(other.words, 120)}"
        if (left := left - len(more)) < 0:
            told += f"\nand {len(others) - number} more mistakes"
            break
        told += more
    return QuestionFileError(told)


def _mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _mistakes(
    document: Document,
) -> tuple[list[QuestionFileError], dict[int | None, set[str]]]:
    """Every mistake in the form of the file, and the keys that cannot be used for them: of each
    question by its index, and of ``defaults`` under None."""
    validator = jsonschema.Draft202012Validator(schema())
    told: dict[Place, dict[str, bool]] = {}  # words, and whether they say what a question lacks
    wrong: dict[int | None, set[str]] = {}

    def tell(path: Place, place: Place, words: str, lacks: bool = False) -> None:
        told.setdefault(place, {})[words] = lacks
        if path[:1] == ("questions",) and len(path) > 1:
            wrong.setdefault(int(path[1]), set()).update(map(str, path[2:3] or _WHEN))
        elif path[:1] == ("defaults",):
            wrong.setdefault(None, set()).update(map(str, path[1:2]))

    # NaN passes every limit of the schema, and infinity breaks it in worse words.
    unusable = {place: value for place, value in document.numbers() if not math.isfinite(value)}
    for place, value in unusable.items():
        key = next((key for key in reversed(place) if isinstance(key, str)), "the file")
        tell(place, place, f"{key}: {value} is not a usable time or number")
    around = {place[:end] for place in unusable for end in range(len(place) + 1)}
    misspelt: set[Place] = set()
    for error in map(_cause, validator.iter_errors(document.content)):
        path = tuple(error.absolute_path)
        if path in around and error.validator not in _OF_KEYS:
            continue
        if error.validator == "additionalProperties":
            misspelt.add(path)
        lacks = error.validator in ("oneOf", "required")
        tell(path, _place_of(error, path), _in_words(error, path), lacks)
    return [
        document.error(place, words)
        for place, said in told.items()
        for words, lacks in said.items()
        # A misspelt key says better what is wrong than what its question lacks.
        if not (lacks and place in misspelt)
    ], wrong


def _place_of(error: jsonschema.ValidationError, place: Place) -> Place:
    """Where the error stands: an unknown key at its own line, not at its mapping's."""
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = _schema_of(error).get("properties", {})
        unknown = next((key for key in error.instance if key not in known), None)
        if unknown is not None:
            return (*place, unknown)
    return place


def _schema_of(error: jsonschema.ValidationError) -> Mapping[str, Any]:
    """The part of the schema that the error breaks, where it is more than true or false."""
    return error.schema if isinstance(error.schema, Mapping) else {}


def _in_words(error: jsonschema.ValidationError, place: Place) -> str:
    where = next((f"{key}: " for key in reversed(place) if isinstance(key, str)), "")
    where = "" if where == "questions: " and len(place) > 1 else where
    if error.validator == "additionalProperties" and isinstance(error.instance, dict):
        known = _schema_of(error).get("properties", {})
        unknown = [str(key) for key in error.instance if key not in known]
        return f"unknown key {', '.join(unknown)}; known are {', '.join(known)}"
    if error.validator == "oneOf" and error.schema is schema()["$defs"]["question"]:
        return "a question needs exactly one of at, at_stamp and every"
    if error.validator == "pattern" and error.validator_value == _not_blank():
        if not str(error.instance).strip():
            return f"{where}a text of spaces alone" if error.instance else f"{where}an empty text"
        return f"{where}a text in which nothing can be seen ({error.instance!a})"
    if error.validator == "required":
        return f"{where}{error.message.replace(' is a required property', ' is missing')}"
    if error.validator in ("maxLength", "maxItems") and isinstance(error.instance, (str, list)):
        what = "characters" if error.validator == "maxLength" else "entries"
        return f"{where}{len(error.instance):,} {what}, too many: at most {error.validator_value:,}"
    if _said_whole(error):
        say = _unknown_judge if place[-1] == "judge" else _no_time
        return f"{where}{say(error.instance, str(place[-1]))}"
    described = _schema_of(error).get("description")
    hint = f" ({described})" if described else ""
    return f"{where}{error.message}{hint}"


def _cause(error: jsonschema.ValidationError) -> jsonschema.ValidationError:
    """Of an error about alternatives the one below it that tells most; else the error itself."""
    if error.validator != "anyOf" or _said_whole(error):
        return error
    return jsonschema.exceptions.best_match([error])


def _said_whole(error: jsonschema.ValidationError) -> bool:
    """Whether there are words of our own for it: a time that is none, an unknown judge."""
    key = error.absolute_path[-1] if error.absolute_path else None
    if key == "judge" and error.validator == "anyOf":
        judge = error.instance
        name = next(iter(judge)) if isinstance(judge, dict) and len(judge) == 1 else judge
        return name not in _judges()
    return key in _TIMES and error.validator == "anyOf"


def _not_blank() -> str:
    """The schema's pattern of a text that says something."""
    return schema()["$defs"]["type"]["pattern"]


def _judges() -> list[str]:
    return schema()["$defs"]["judge"]["anyOf"][0]["enum"]


def _unknown_judge(judge: Any, key: str) -> str:
    name = next(iter(judge)) if isinstance(judge, dict) and len(judge) == 1 else judge
    near = difflib.get_close_matches(str(name), _judges(), 1)
    hint = f"; did you mean {near[0]}?" if near else ""
    known = ", ".join(_judges())
    return f"there is no judge {name!r}; known are {known}, python:module:function{hint}"


def _no_time(value: Any, key: str) -> str:
    """What to say of a value that is no time, or no stretch of time where there may be one."""
    form = 'a time is seconds, such as 12.5, or "1:05"' + (", or end" if key == "at" else "")
    if key in ("at", "from", "until") or not isinstance(value, list):
        return f"{value!r} is no time; {form}"
    one_time = {"$ref": "#/$defs/seconds", "$defs": schema()["$defs"]}
    times = jsonschema.Draft202012Validator(one_time)
    flat = [part for item in value for part in (item if isinstance(item, list) else [item])]
    wrong = [part for part in flat if not times.is_valid(part)]
    if wrong:
        return f"{wrong[0]!r} is no time; {form}"
    return f"{value!r}: {key} needs two times, [begin, end], or one"


class _Entry:
    """One question as it stands in a file, with the defaults, and every mistake in what it means.

    Args:
        bad: keys whose form is wrong, which has been told: nothing is said of them here.
    """

    def __init__(
        self, values: dict[str, Any], document: Document, place: Place, bad: Collection[str]
    ) -> None:
        self._values = {key: value for key, value in values.items() if key not in bad}
        self._document, self._place, self._bad = document, place, bad
        self.mistakes: list[QuestionFileError] = []

    def wrong(self, key: str, words: str) -> None:
        self.mistakes.append(self._document.error((*self._place, key), words))

    def question(self, default_id: str) -> Question | None:
        """The question; None where anything is wrong with it."""
        entry = self._values
        expect = entry.get("expect", [])
        expect = [_text(e) for e in (expect if isinstance(expect, list) else [expect])]
        choices = tuple(_text(choice) for choice in entry.get("choices", ()))
        judge = self._judge(tuple(expect), choices)
        if len(set(choices)) < len(choices):
            self.wrong("choices", "a choice is given twice")
        for key in ("from", "until", "merge"):
            if key in entry and "every" not in entry and "every" not in self._bad:
                self.wrong(key, f"'{key}' can only be used with 'every'")
        first, until = self._time("from"), self._time("until")
        asked = None if entry.get("at") == "end" else self._time("at")
        stamp = self._stamp()
        evidence, about = self._stretches("evidence"), self._stretches("about")
        self._check_order(first, until, asked, evidence, about)
        merge = entry.get("merge", False)
        similarity = DEFAULT_SIMILARITY if merge in (True, {}) else None
        if isinstance(merge, dict) and merge:
            similarity = float(merge["similarity"])
        if self.mistakes or self._bad or judge is None:
            return None
        return Question(
            id=entry.get("id", default_id),
            text=entry["text"],
            judge=judge,
            at=asked,
            at_stamp_ns=stamp,
            at_end=entry.get("at") == "end",
            every=entry.get("every"),
            first=first,
            until=until,
            camera=entry.get("camera"),
            choices=choices,
            expect=tuple(expect),
            about=next(iter(about), None),
            evidence=evidence,
            type=entry.get("type", ""),
            tags=tuple(entry.get("tags", ())),
            max_new_tokens=_whole(entry.get("max_new_tokens")),
            merge_similarity=similarity,
            extra=entry.get("extra"),
        )

    def _judge(self, expect: tuple[str, ...], choices: tuple[str, ...]) -> Judge | None:
        if not {"judge", "expect", "choices"}.isdisjoint(self._bad):
            return None
        try:
            return make_judge(self._values.get("judge"), expect, choices)
        except ValueError as error:
            self.wrong("judge" if "judge" in self._values else "expect", str(error))
            return None

    def _check_order(
        self,
        first: float | None,
        until: float | None,
        asked: float | None,
        evidence: tuple[Stretch, ...],
        about: tuple[Stretch, ...],
    ) -> None:
        """That it is asked at all, and after what it is about could be seen."""
        begin = self._values.get("every", 0.0) if first is None else first
        if until is not None and until < begin:
            self.wrong(
                "until", f"until is {until:g} s, before the question is asked first, at {begin:g} s"
            )
        last = until if asked is None else asked
        if last is None:
            return
        for key, stretches in (("evidence", evidence), ("about", about)):
            # Some of it may come later: a thing is seen again, or still.
            begins = min((start for start, _ in stretches), default=0.0)
            if begins > last:
                self.wrong(
                    key, f"{key} begins at {begins:g} s, after the question is asked, at {last:g} s"
                )

    def _time(self, key: str) -> float | None:
        """The time under ``key``, if there is one that can be."""
        return self._seconds(self._values[key], key) if key in self._values else None

    def _seconds(self, value: float | str, key: str) -> float | None:
        seconds = parse_seconds(value)
        if seconds <= MAX_SECONDS:
            return seconds
        self.wrong(key, f"{key}: {value} is later than any source's end ({MAX_SECONDS:.0f} s)")
        return None

    def _stamp(self) -> int | None:
        value = self._values.get("at_stamp")
        if value is None:
            return None
        try:
            return check_stamp(int(Decimal(str(value)) * SECOND))
        except InvalidTimestampError as error:
            self.wrong("at_stamp", f"at_stamp: {error}")
            return None

    def _stretches(self, key: str) -> tuple[Stretch, ...]:
        """The stretches under ``key``: a time, [begin, end], or a list of those."""
        value = self._values.get(key)
        if value is None:
            return ()
        single = isinstance(value, list) and len(value) == 2 and list not in map(type, value)
        if single or not isinstance(value, list):
            value = [value]
        found = []
        for item in value:
            begin, end = item if isinstance(item, list) else (item, item)
            stretch = self._seconds(begin, key), self._seconds(end, key)
            if stretch[0] is None or stretch[1] is None:
                continue
            if stretch[1] < stretch[0]:
                self.wrong(key, f"{key} ends at {end}, before it begins at {begin}")
                continue
            found.append((stretch[0], stretch[1]))
        return tuple(found)


def parse_seconds(value: float | str) -> float:
    """``12.5``, ``"1:05.5"`` or ``"1:02:03"`` in seconds."""
    if not isinstance(value, str):
        return float(value)
    seconds = 0.0
    for part in value.split(":"):
        seconds = seconds * 60 + float(part)
    return seconds


def _whole(value: float | None) -> int | None:
    return None if value is None else int(value)  # JSON writes 32.0, too


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
