# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Question files from a spreadsheet: a first line of keys, then a question a line.

They become the same events as YAML does, so that all else is checked and told in the same way.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterator

from .yaml_lines import Event, Mistake, yaml_events

DELIMITERS = ",;\t"  # the spreadsheet of another country writes another one
LISTS = ("choices", "expect", "tags")  # of texts with a | between them
TEXTS = ("id", "text", "type", "camera", "at_stamp")


def csv_events(text: str) -> Iterator[Event]:
    """Events of ``{questions: [...]}``. A cell of any other key is read as in YAML: ``12.5``,
    ``end``, ``[3, 7.5]``. An empty cell says nothing, nor does a line of them.

    Raises Mistake where the text is no CSV, or has a cell without a key.
    """
    rows = _rows(text)
    line, keys = next(rows, (1, []))
    if keys and keys[0].lower() == "sep=":  # some spreadsheets say first what separates
        line, keys = next(rows, (1, []))
    keys = [key.lower() for key in keys]
    comma = _delimiter(text) != ","
    if "text" not in keys:
        raise Mistake(line, "the first line of a CSV file holds the keys; 'text' is not among them")
    yield from (Event("{", line), Event("text", line, "questions"), Event("[", line))
    for line, cells in rows:
        if len(cells) > len(keys):
            words = f"{len(cells)} cells, but the first line has {len(keys)} keys"
            raise Mistake(line, f"{words}; put what holds a {_delimiter(text)!r} in quotes")
        yield Event("{", line)
        for key, cell in zip(keys, cells, strict=False):
            if cell:
                yield Event("text", line, key)
                if comma and key not in LISTS + TEXTS:
                    cell = _with_point(cell)
                yield from _value(key, cell, line)
        yield Event("]", line)
    yield from (Event("]", line), Event("]", line))


def _rows(text: str) -> Iterator[tuple[int, list[str]]]:
    """The rows that say something, each with the line on which it begins."""
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=_delimiter(text), strict=True)
    line = 1
    try:
        for row in reader:
            cells = [cell.strip() for cell in row]
            if any(cells):
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise Mistake(line, f"not valid CSV: {error}") from error


def _delimiter(text: str) -> str:
    first = text.lstrip().partition("\n")[0]
    said = first.strip("\r ").lower().removeprefix("sep=")
    if len(said) == 1 and said in DELIMITERS:
        return said
    return max(DELIMITERS, key=first.count)


def _with_point(cell: str) -> str:
    """A number with a decimal comma, as spreadsheets that separate by semicolons write it, in
    YAML's way. Whether the comma of ``1,500`` is one, nobody knows: as it is."""
    number = re.fullmatch(r"([-+]?\d+),(\d+)", cell)
    return cell if number is None or len(number[2]) == 3 else f"{number[1]}.{number[2]}"


def _value(key: str, cell: str, line: int) -> Iterator[Event]:
    if key in LISTS:
        yield Event("[", line)
        yield from (Event("text", line, part.strip()) for part in cell.split("|"))
        yield Event("]", line)
        return
    found: list[Event] = []
    if key not in TEXTS:
        try:
            found = [event._replace(line=line) for event in yaml_events(cell)]
        except Mistake as mistake:
            raise Mistake(line, f"{key}: {mistake.words}") from mistake
    yield from found or [Event("text", line, cell)]
