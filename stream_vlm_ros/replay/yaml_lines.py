# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""YAML and JSON files whose every value knows the line it stands on.

Both become one stream of events, of libyaml's parser or of the tokens of a JSON text, and one
builder makes plain values of them: strings, numbers, truth values, lists and dicts by strings. It
keeps no recursion and bounds all it does by what the file holds; what is beyond that is refused
with its line.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from stream_vlm_ros.errors import StreamVlmError, cut

MAX_BYTES = 16 * 1024**2  # of a file
MAX_VALUES = 300_000  # in a file, keys counted too: some 20,000 questions
MAX_REPEATED_VALUES = 10_000  # by all aliases of a file together
MAX_DEPTH = 64
MAX_DIGITS = 64  # of a number

Place = tuple[str | int, ...]  # keys and indices from the root to a value


class QuestionFileError(StreamVlmError):
    """A question file that cannot be used; every message names the file and the line.

    ``words`` is the message without them, ``line`` counts from 1.
    """

    code = "QUESTION_FILE"

    def __init__(self, message: str, line: int = 1, words: str = "") -> None:
        super().__init__(message)
        self.line, self.words = line, words or message


@dataclass
class Document:
    """What a file holds, and on which line (from 1) each value of it stands."""

    path: Path
    content: Any
    lines: dict[Place, int] = field(default_factory=dict)

    def line(self, place: Place) -> int:
        """The line of a value, or of the nearest that encloses it."""
        place = tuple(place)
        while place and place not in self.lines:
            place = place[:-1]
        return self.lines.get(place, 1)

    def numbers(self) -> Iterator[tuple[Place, float]]:
        """Every number with a point in it, and its place."""

        def below(value: Any, place: Place) -> Iterator[tuple[Place, float]]:
            if isinstance(value, float):
                yield place, value
            items: Iterable[tuple[str | int, Any]] = ()
            if isinstance(value, dict):
                items = value.items()
            elif isinstance(value, list):
                items = enumerate(value)
            for key, item in items:
                yield from below(item, (*place, key))

        return below(self.content, ())

    def error(self, place: Place, message: str) -> QuestionFileError:
        """An error about the value at ``place``."""
        line, words = self.line(place), cut(message)
        return QuestionFileError(f"{self.path}:{line}: {words}", line, words)


def load_document(
    path: str | Path, events: Callable[[str], Iterator[Event]] | None = None
) -> Document:
    """Read a YAML or JSON file, or one of another kind by its ``events``; raises QuestionFileError
    with the line where it goes wrong."""
    path = Path(path)
    text = _text_of(path)
    if events is None:
        events = _json_events if path.suffix.lower() == ".json" else yaml_events
    document = Document(path, None)
    builder = _Builder(document.lines)
    try:
        for event in events(text):
            builder.take(event)
    except Mistake as mistake:
        raise QuestionFileError(f"{path}:{mistake.line}: {cut(mistake.words)}") from mistake
    document.content = builder.root
    if document.content is None:
        raise QuestionFileError(f"{path} is empty: it needs a list 'questions'.")
    return document


def _text_of(path: Path) -> str:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise QuestionFileError(
                f"{path} has {path.stat().st_size:,} bytes; a question file may have at most "
                f"{MAX_BYTES:,}."
            )
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)  # what says no size, a pipe, may have no end either
    except FileNotFoundError:
        raise QuestionFileError(f"There is no question file {path}. Check the path.") from None
    except (OSError, ValueError) as error:
        raise QuestionFileError(f"{path} cannot be read: {error}") from error
    if len(data) > MAX_BYTES:
        raise QuestionFileError(f"{path} is longer than {MAX_BYTES:,} bytes: not a question file.")
    marked = data.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    name, codec = ("UTF-16", "utf-16") if marked else ("UTF-8", "utf-8-sig")
    try:
        text = data.decode(codec)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise QuestionFileError(f"{path}:{line}: not text in {name}: {error.reason}") from error
    if text[:2].count("\0") == 1 and len(text) > 1:  # UTF-16 without its mark
        raise QuestionFileError(f"{path}:1: no text, or in another encoding: save it as UTF-8")
    return text


class Mistake(Exception):
    """What is wrong with a file, and on which line."""

    def __init__(self, line: int, words: str) -> None:
        super().__init__(words)
        self.line, self.words = line, words


class Event(NamedTuple):
    """The begin of a list or mapping ("[", "{"), its end ("]"), a text, a scalar that its words
    decide about (a word), or an alias ("*")."""

    kind: str
    line: int
    text: str = ""
    anchor: str | None = None
    tag: str | None = None


# -- YAML ----------------------------------------------------------------------------------------

# libyaml's, where PyYAML was built with it: the same events, many times faster.
_PARSER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def yaml_events(text: str) -> Iterator[Event]:
    documents = 0
    try:
        for event in yaml.parse(text, Loader=_PARSER):
            line = event.start_mark.line + 1 if event.start_mark else 1
            anchor, tag = getattr(event, "anchor", None), getattr(event, "tag", None)
            if isinstance(event, yaml.DocumentStartEvent):
                documents += 1
                if documents > 1:
                    raise Mistake(line, "a second document begins; a question file has only one")
            elif isinstance(event, yaml.ScalarEvent):
                kind = "word" if event.implicit[0] else "text"
                yield Event(kind, line, event.value, anchor, tag)
            elif isinstance(event, yaml.SequenceStartEvent):
                yield Event("[", line, anchor=anchor, tag=tag)
            elif isinstance(event, yaml.MappingStartEvent):
                yield Event("{", line, anchor=anchor, tag=tag)
            elif isinstance(event, (yaml.SequenceEndEvent, yaml.MappingEndEvent)):
                yield Event("]", line)
            elif isinstance(event, yaml.AliasEvent):
                yield Event("*", line, anchor=anchor)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        words = " ".join(filter(None, (error.context, error.problem)))
        hint = " (inside { } put texts in quotes)" if "flow mapping" in words else ""
        raise Mistake(mark.line + 1 if mark else 1, f"not valid YAML: {words}{hint}") from error
    except yaml.YAMLError as error:  # the reader's, of control characters
        position = getattr(error, "position", None) or 0
        line = text.count("\n", 0, position) + 1
        raise Mistake(line, f"not valid YAML: {' '.join(str(error).split())}") from error


# -- JSON ----------------------------------------------------------------------------------------

_JSON_TOKEN = re.compile(r'\s+|"(?:[^"\\]|\\.)*"|[{}\[\],:]|[^\s{}\[\],:"]+', re.DOTALL)


def _json_events(text: str) -> Iterator[Event]:
    try:
        # Whether it is JSON; its numbers are read by the builder, which bounds them.
        json.loads(text, parse_int=len, parse_float=len, parse_constant=len)
    except RecursionError:
        pass  # the builder allows far less, and says on which line it is too much
    except json.JSONDecodeError as error:
        raise Mistake(error.lineno, f"not valid JSON: {error}") from error
    line = 1
    for match in _JSON_TOKEN.finditer(text):
        token = match[0]
        if token.isspace():
            line += token.count("\n")
        elif token in "{[":
            yield Event(token, line)
        elif token in "}]":
            yield Event("]", line)
        elif token[0] == '"':
            yield Event("text", line, json.loads(token))
        elif token not in ",:":
            yield Event("word", line, _JSON_WORDS.get(token, token))


# Numbers that JSON has no words for, but Python's writer has.
_JSON_WORDS = {"NaN": ".nan", "Infinity": ".inf", "-Infinity": "-.inf"}


# -- what the events make ------------------------------------------------------------------------

_BOOLEANS = {"true": True, "True": True, "TRUE": True}
_BOOLEANS |= {"false": False, "False": False, "FALSE": False}
_NULLS = ("", "~", "null", "Null", "NULL")
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(
    r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)"
)
_BASES = {"0o": 8, "0x": 16}
# Half of a pair that stands for nothing, and what no terminal, report or message should be given.
_NO_TEXT = re.compile("[\ud800-\udfff]|[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")


def _boolean(text: str) -> bool:
    return _BOOLEANS[text]


def _integer(text: str) -> int:
    if not _INTEGER.fullmatch(text):
        raise ValueError(text)
    return int(text, _BASES.get(text[:2], 10))


def _float(text: str) -> float:
    if not _FLOAT.fullmatch(text):
        raise ValueError(text)
    return float(text.replace(".inf", "inf").replace(".nan", "nan").replace(".Inf", "inf"))


def _null(text: str) -> None:
    if text not in _NULLS:
        raise ValueError(text)


_TAG = "tag:yaml.org,2002:"
_TAGS: dict[str, tuple[str, Callable[[str], Any]]] = {
    f"{_TAG}str": ("text", str),
    f"{_TAG}bool": ("true or false", _boolean),
    f"{_TAG}int": ("a whole number", _integer),
    f"{_TAG}float": ("a number", _float),
    f"{_TAG}null": ("null", _null),
}
_MERGE = "<<"


def _scalar(event: Event) -> Any:
    """The value of a scalar, by YAML 1.2's core schema: yes, no and dates are text, 010 is 10."""
    if broken := _NO_TEXT.search(event.text):
        line = event.line + event.text.count("\n", 0, broken.start())
        raise Mistake(line, _what_is_no_text(broken[0]))
    if event.kind == "text" and event.tag in (None, "!"):
        return event.text
    numeric = _INTEGER.fullmatch(event.text) or _FLOAT.fullmatch(event.text)
    if numeric and len(event.text) > MAX_DIGITS and event.tag != f"{_TAG}str":
        raise Mistake(
            event.line,
            f"a number of {len(event.text):,} characters; at most {MAX_DIGITS} are allowed",
        )
    if event.tag not in (None, "!"):
        what, convert = _TAGS.get(event.tag, ("", str))
        if not what:
            raise Mistake(event.line, f"the tag {event.tag!r} is not supported here")
        try:
            return convert(event.text)
        except (ValueError, KeyError):
            raise Mistake(event.line, f"{event.text!r} is not {what}") from None
    if event.text in _NULLS:
        return None
    if event.text in _BOOLEANS:
        return _BOOLEANS[event.text]
    if _INTEGER.fullmatch(event.text):
        return _integer(event.text)
    return _float(event.text) if numeric else event.text


def _what_is_no_text(character: str) -> str:
    if "\ud800" <= character <= "\udfff":
        return f"\\u{ord(character):04x} is half of a pair that stands for no character"
    return f"the control character \\x{ord(character):02x} is no text"


@dataclass
class _Open:
    """A list or mapping whose end has not come."""

    value: list[Any] | dict[str, Any]
    place: Place
    anchor: str | None
    begun: int  # values before it
    key: str | None = None
    key_line: int = 0
    height: int = 1  # levels of lists and mappings from here down
    is_merge: bool = False
    merged: list[tuple[Any, int]] = field(default_factory=list)  # under <<, and on which line


class _Builder:
    """Plain values of events, and the line of each."""

    def __init__(self, lines: dict[Place, int]) -> None:
        self.root: Any = None
        self._lines = lines
        self._open: list[_Open] = []
        # Value, values in it, its height; None: not ended.
        self._anchors: dict[str, tuple[Any, int, int] | None] = {}
        self._values = self._repeated = 0

    def take(self, event: Event) -> None:
        """The next event of a document."""
        if event.kind == "]":
            self._end(event)
            return
        self._count(event.line, 1)
        inside = self._open[-1] if self._open else None
        if inside is not None and isinstance(inside.value, dict) and inside.key is None:
            self._take_key(inside, event)
            return
        if event.kind == "*":
            self._put(self._aliased(event), event)
        elif event.kind in "[{":
            self._begin(event)
        else:
            value = _scalar(event)
            self._put(value, event)
            if event.anchor is not None:
                self._anchors[event.anchor] = (value, 1, 0)

    def _count(self, line: int, values: int) -> None:
        self._values += values
        if self._values > MAX_VALUES:
            raise Mistake(line, f"more than {MAX_VALUES:,} values in one file")

    def _take_key(self, inside: _Open, event: Event) -> None:
        key = _scalar(event) if event.kind in ("text", "word") else None
        if not isinstance(key, str):
            shown = event.text if event.kind == "word" else "this"
            hint = f": write '{shown}'" if event.kind == "word" else ""
            raise Mistake(event.line, f"{shown!r} is not text; a key must be text{hint}")
        inside.is_merge = event.kind == "word" and key == _MERGE
        if key in inside.value and not inside.is_merge:
            raise Mistake(event.line, f"{key!r} is given twice")
        inside.key, inside.key_line = key, event.line

    def _check_depth(self, line: int, height: int) -> None:
        """A value of so many levels is to be put where the next one belongs."""
        if len(self._open) + height > MAX_DEPTH:
            raise Mistake(line, f"nested deeper than {MAX_DEPTH} levels")
        if self._open:
            self._open[-1].height = max(self._open[-1].height, height + 1)

    def _aliased(self, event: Event) -> Any:
        name = event.anchor or ""
        known = self._anchors.get(name)
        if known is None:
            why = "stands in what it names" if name in self._anchors else "names nothing before it"
            raise Mistake(event.line, f"the alias *{name} {why}")
        value, size, height = known
        self._check_depth(event.line, height)
        self._repeated += size
        if self._repeated > MAX_REPEATED_VALUES:
            raise Mistake(
                event.line, f"aliases repeat more than {MAX_REPEATED_VALUES:,} values in one file"
            )
        self._count(event.line, size)
        return value

    def _begin(self, event: Event) -> None:
        self._check_depth(event.line, 1)
        wanted = "seq" if event.kind == "[" else "map"
        if event.tag not in (None, "!", f"{_TAG}{wanted}"):
            raise Mistake(event.line, f"the tag {event.tag!r} is not supported here")
        value: list[Any] | dict[str, Any] = [] if event.kind == "[" else {}
        place = self._put(value, event)
        self._open.append(_Open(value, place, event.anchor, self._values))
        if event.anchor is not None:
            self._anchors[event.anchor] = None

    def _put(self, value: Any, event: Event) -> Place:
        """Put a value where the next one belongs; its place."""
        if not self._open:
            self.root = value
            self._lines[()] = event.line
            return ()
        inside = self._open[-1]
        if isinstance(inside.value, list):
            place: Place = (*inside.place, len(inside.value))
            self._lines[place] = event.line
            inside.value.append(value)
            return place
        assert inside.key is not None
        key, inside.key = inside.key, None
        place = (*inside.place, key)
        if inside.is_merge:
            inside.merged.append((value, event.line))
            return place
        self._lines[place] = inside.key_line
        inside.value[key] = value
        return place

    def _end(self, event: Event) -> None:
        done = self._open.pop()
        if isinstance(done.value, dict):
            for brought, line in done.merged:
                for mapping in brought if isinstance(brought, list) else [brought]:
                    if not isinstance(mapping, dict):
                        raise Mistake(line, "<< takes a mapping, or a list of mappings")
                    for key, value in mapping.items():
                        done.value.setdefault(key, value)
        if self._open:
            self._open[-1].height = max(self._open[-1].height, done.height + 1)
        if done.anchor is not None:
            self._anchors[done.anchor] = (done.value, self._values - done.begun + 1, done.height)
