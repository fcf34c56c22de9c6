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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

LONGEST = 65_536  # bytes of a card that are read


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
        told = _front_matter(folder / "README.md")
        ours = told.get("stream_vlm")
        ours = ours if isinstance(ours, dict) else {}
        sources = ours.get("sources")
        return cls(
            _line(told.get("model_name")) or _name_of(folder.absolute()),
            _line(ours.get("knows_only")),
            tuple(map(_line, sources)) if isinstance(sources, list) else (),
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


def _front_matter(card: Path) -> dict[Any, Any]:
    import yaml

    try:
        with card.open("rb") as file:
            begin, _, rest = file.read(LONGEST).decode(errors="replace").partition("\n")
        told = yaml.safe_load(rest.partition("\n---")[0]) if begin.strip() == "---" else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):  # not one of ours, then
        return {}
    return told if isinstance(told, dict) else {}


def _line(value: object) -> str:
    """A text from a card, fit for one line."""
    from stream_vlm_ros.console import one_line

    return one_line(value, 80) if isinstance(value, str) else ""
