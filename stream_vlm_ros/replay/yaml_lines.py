"""YAML and JSON files whose every value knows the line it stands on."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from stream_vlm_ros.errors import StreamVlmError

Place = tuple[str | int, ...]  # keys and indices from the root to a value


class QuestionFileError(StreamVlmError):
    """A question file that cannot be used; every message names the file and the line."""

    code = "QUESTION_FILE"


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
            items = value.items() if isinstance(value, dict) else ()
            if isinstance(value, list):
                items = enumerate(value)
            for key, item in items:
                yield from below(item, (*place, key))

        return below(self.content, ())

    def error(self, place: Place, message: str) -> QuestionFileError:
        """An error about the value at ``place``."""
        return QuestionFileError(f"{self.path}:{self.line(place)}: {message}")


class _Loader(yaml.SafeLoader):
    """YAML as people mean it: ``yes`` and ``no`` are words (an answer!), dates are text, and a key
    given twice is an error."""


_Loader.yaml_implicit_resolvers = {
    first: [
        (tag, pattern) for tag, pattern in resolvers if not tag.endswith((":bool", ":timestamp"))
    ]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:bool", re.compile(r"^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF")
)


def load_document(path: str | Path) -> Document:
    """Read a YAML or JSON file; raises QuestionFileError with the line where it goes wrong."""
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise QuestionFileError(f"There is no question file {path}. Check the path.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise QuestionFileError(f"{path} cannot be read as text: {error}") from error
    if path.suffix.lower() == ".json":
        try:
            json.loads(text)
        except ValueError as error:
            line = getattr(error, "lineno", 1)
            raise QuestionFileError(f"{path}:{line}: not valid JSON: {error}") from error
        text = text.replace("\t", " ")  # JSON indents with tabs too; YAML does not
    loader = None
    try:
        loader = _Loader(text)  # refuses control characters at once
        node = loader.get_single_node()
        document = Document(path, None)
        if node is not None:
            _note_lines(node, (), document)
            document.content = loader.construct_document(node)
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        words = " ".join(filter(None, (error.context, error.problem)))
        hint = " (inside { } put texts in quotes)" if "got '?'" in words else ""
        raise QuestionFileError(f"{path}:{line}: not valid YAML: {words}{hint}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise QuestionFileError(f"{path}: not valid YAML: {error}") from error
    finally:
        if loader is not None:
            loader.dispose()
    if document.content is None:
        raise QuestionFileError(f"{path} is empty: it needs a list 'questions'.")
    return document


def _note_lines(node: yaml.Node, place: Place, document: Document) -> None:
    document.lines.setdefault(place, node.start_mark.line + 1)
    if isinstance(node, yaml.MappingNode):
        seen: set[str] = set()
        for key, value in node.value:
            name = str(key.value)
            if name in seen and name != "<<":
                raise QuestionFileError(
                    f"{document.path}:{key.start_mark.line + 1}: {name!r} is given twice"
                )
            seen.add(name)
            document.lines[(*place, name)] = key.start_mark.line + 1
            _note_lines(value, (*place, name), document)
    elif isinstance(node, yaml.SequenceNode):
        for index, value in enumerate(node.value):
            _note_lines(value, (*place, index), document)
