# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What a model says of itself: the front matter of the README.md in its folder.

It is read where people are told what to expect of a model. Of most checkpoints there is nothing to
tell; one that was trained on a small world alone says so::

    ---
    model_name: a small model
    stream_vlm:
      knows_only: its drawn world   # in words
      sources: ["world:"]           # how the names of sources begin that show it
    ---
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stream_vlm_ros.owned import open_regular

if TYPE_CHECKING:
    import yaml

LONGEST = 65_536  # bytes of a card that are read
_ENTRY = re.compile(r"\n(?=[^\s#-])")  # where one begins: the last before a cut may not be whole
_TEXT = "tag:yaml.org,2002:str"


@dataclass(frozen=True)
class ModelCard:
    """Of one checkpoint.

    Attributes:
        name: what to call it in front of people.
        knows_only: what it was trained on, if that is all it knows; "" where it is not said.
        sources: how the names of sources begin that show it.
    """

    name: str
    knows_only: str = ""
    sources: tuple[str, ...] = ()

    @classmethod
    def of(cls, folder: str | Path) -> ModelCard:
        """Of the checkpoint in ``folder``; its name alone, where it says nothing of use."""
        folder = Path(os.path.expanduser(folder))  # of Path it raises for ~nobody
        told = _entries(_front_matter(folder / "README.md"))
        ours = _entries(told.get("stream_vlm"))
        sources = _items(ours.get("sources"))
        return cls(
            _line(told.get("model_name")) or _name_of(folder.absolute()),
            _line(ours.get("knows_only")),
            tuple(filter(None, map(_line, sources))),  # "" would be every source's beginning
        )

    def __str__(self) -> str:
        return f"{self.name}, which knows only {self.knows_only}" if self.knows_only else self.name

    def warning(self, source: str = "") -> str:
        """What to expect of its answers about ``source`` ("": not known); "" where it knows it."""
        if not self.knows_only or (source and source.startswith(self.sources)):
            return ""
        return f"The model is {self}: of anything else it does not know what it sees, and guesses"


def _name_of(folder: Path) -> str:
    """The folder's name; in a cache of Hugging Face's the repository's."""
    if folder.parent.name == "snapshots":  # models--Qwen--Qwen2.5-VL-3B-Instruct/snapshots/...
        return folder.parent.parent.name.removeprefix("models--").replace("--", "/")
    return folder.name


def _front_matter(card: Path) -> yaml.Node | None:
    """As YAML's nodes: no value is made of a tag, an alias or a merge key, whatever it costs."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("an alias")
            return super().compose_node(parent, index)

    try:
        with os.fdopen(open_regular(card.resolve()), "rb") as file:  # in a cache it is a link
            text = file.read(LONGEST).decode("utf-8-sig", errors="replace")
            whole = not file.read(1)
        begin, _, rest = text.partition("\n")
        matter, closed, _ = rest.partition("\n---")
        if not closed and not whole:
            matter = matter[: max((found.start() for found in _ENTRY.finditer(matter)), default=0)]
        return yaml.compose(matter, Loader) if begin.strip() == "---" else None
    except (OSError, ValueError, yaml.YAMLError, RuntimeError):  # RuntimeError: too deep
        return None


def _entries(node: yaml.Node | None) -> dict[str, yaml.Node]:
    import yaml

    pairs = node.value if isinstance(node, yaml.MappingNode) else []
    return {key.value: value for key, value in pairs if isinstance(key, yaml.ScalarNode)}


def _items(node: yaml.Node | None) -> list[yaml.Node]:
    import yaml

    items: list[yaml.Node] = node.value if isinstance(node, yaml.SequenceNode) else []
    return items


def _line(node: yaml.Node | None) -> str:
    """A text from a card, fit for one line."""
    from stream_vlm_ros.console import one_line

    return one_line(node.value, 80) if node is not None and node.tag == _TEXT else ""
