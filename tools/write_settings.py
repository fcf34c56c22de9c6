# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Write what is made from the package: config/*.yaml, tables of some pages of docs/, and the schema
of the protocol between cameras and a server.

python tools/write_settings.py [ROOT of the checkout]
"""

from __future__ import annotations

import json
import re
import sys
import textwrap
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from stream_vlm_ros.config import NODE, REPLAY, Settings
from stream_vlm_ros.demo.settings import DEMO
from stream_vlm_ros.remote import protocol
from stream_vlm_ros.replay.hardware import Hardware, markdown_table
from stream_vlm_ros.setting import Setting, SettingTable

YAML_HEAD = """\
# Every parameter of the node stream_vlm with its default. Made from the table in
# stream_vlm_ros/config.py; docs/node.md explains them.
"""
DEMO_HEAD = """\
# What the demo changes in config/stream_vlm.yaml, so that it runs well on a CPU. Made from
# stream_vlm_ros/demo/settings.py.
"""
ROS = "/**:\n  ros__parameters:\n"


def taken_by(table: type[SettingTable], taker: str) -> list[Setting]:
    """The rows of a table that ``taker`` takes."""
    return [row for row in table.table().values() if taker in row.takers]


def parameter_file(rows: Iterable[Setting]) -> str:
    """A ROS parameter file with every default, its text and range above it."""
    lines = [YAML_HEAD + ROS]
    for row in rows:
        note = row.text + (f" ({row.allowed})" if row.allowed else "")
        lines += [f"    # {line}\n" for line in textwrap.wrap(note, 92, break_on_hyphens=False)]
        lines.append(f"    {row.name}: {_yaml(row.default)}\n")
    return "".join(lines)


def demo_file(settings: Settings) -> str:
    """A ROS parameter file with what differs from the node's defaults."""
    lines = [f"    {name}: {_yaml(value)}\n" for name, value in settings.changes(NODE).items()]
    return DEMO_HEAD + ROS + "".join(lines)


def node_table(rows: Iterable[Setting]) -> str:
    """The table of docs/node.md."""
    lines = [
        "| Parameter | Type | Default | Range | Set | Meaning |",
        "|---|---|---|---|---|---|",
        *(
            f"| `{row.name}` | {_type(row)} | `{_yaml(row.default)}` | {row.allowed} "
            f"| {row.change} | {row.text} |"
            for row in rows
        ),
    ]
    return "\n".join(lines)


def replay_table(rows: Iterable[Setting]) -> str:
    """The table of docs/replay.md."""
    lines = [
        "| Setting | Default | Range | Meaning |",
        "|---|---|---|---|",
        *(
            f"| `{row.name}`{_also(row)} | `{_yaml(row.default)}` | {row.allowed} | {row.text} |"
            for row in rows
        ),
    ]
    return "\n".join(lines)


def weights_table() -> str:
    """The tables of docs/weights.md: what `stream-vlm hardware` shows."""
    shown = Hardware((640, 480), Settings())
    return f"{markdown_table(shown.by_cap())}\n\n{markdown_table(shown.by_device())}"


def jetson_table() -> str:
    """The table of docs/jetson.md: what is free is what the system leaves of a shared memory."""
    return markdown_table(Hardware((640, 480), Settings()).by_device((8, 16, 32, 64, 128), used=4))


def protocol_tables() -> str:
    """The tables of docs/camera-protocol.md: the events of both sides, and of what they are."""
    schema = protocol.schema()
    parts = dict(schema["$defs"])
    kinds = {name: part["properties"].pop("type")["enum"][0]
             for name, part in parts.items() if "type" in part["properties"]}  # fmt: skip
    sides = {"A camera sends": "client", "The server sends": "server"}
    tables = []
    for title, side in sides.items():
        rows = [f"| {title} | Fields | |", "|---|---|---|"]
        for one in schema[side]["anyOf"]:
            name = one["$ref"].rpartition("/")[2]
            rows.append(_row(kinds[name], parts.pop(name), kinds))
        tables.append("\n".join(rows))
    rows = [_row(name, part, kinds) for name, part in parts.items()]
    tables.append("\n".join(["| Part of them | Fields | |", "|---|---|---|", *rows]))
    return "\n\n".join(tables)


def _row(name: str, part: dict[str, Any], kinds: dict[str, str]) -> str:
    """Of an event, or a part of one; fields that may be missing have a question mark."""
    fields = ", ".join(
        f"`{field}`{_made_of(told)}{'' if field in part.get('required', ()) else '?'}"
        for field, told in part["properties"].items()
        if field != "event_id"
    )
    words = part.get("description", "").partition("Attributes:")[0]
    words = re.sub(r"`+([\w.\"]+)`+", lambda one: f"`{kinds.get(one[1], one[1])}`", words)
    return f"| `{name}` | {fields} | {' '.join(words.split())} |"


def _made_of(told: dict[str, Any]) -> str:
    """Which part a field is, or is a list of."""
    found = re.search(r"#/\$defs/(\w+)", json.dumps(told))
    return f" ({found[1]})" if found else ""


def with_table(page: str, table: str) -> str:
    """``page`` with what stands between its two markers replaced."""
    head, begin, _, end, tail = re.split(
        r"(<!-- [a-z]+: made [^>]*-->)(.*?)(<!-- end of [a-z]+ -->)", page, flags=re.DOTALL
    )
    return f"{head}{begin}\n\n{table}\n\n{end}{tail}"


def files(table: type[SettingTable] = Settings) -> dict[str, str]:
    """The files that are written whole, by their paths in the checkout."""
    return {
        "config/stream_vlm.yaml": parameter_file(taken_by(table, NODE)),
        "config/demo.yaml": demo_file(DEMO),
        "docs/protocol.schema.json": json.dumps(protocol.schema(), indent=1) + "\n",
    }


def tables(table: type[SettingTable] = Settings) -> dict[str, str]:
    """The tables that are written into pages, by the paths of these."""
    return {
        "docs/node.md": node_table(taken_by(table, NODE)),
        "docs/replay.md": replay_table(taken_by(table, REPLAY)),
        "docs/jetson.md": jetson_table(),
        "docs/weights.md": weights_table(),
        "docs/camera-protocol.md": protocol_tables(),
    }


def _also(row: Setting) -> str:
    return f", `{row.short}`" if row.short != row.name else ""


def _type(row: Setting) -> str:
    return "list of str" if row.type is tuple else row.type.__name__


def _yaml(value: Any) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):  # ROS has no empty list
        return f"[{', '.join(map(_yaml, value or ('',)))}]"
    return f'"{value}"' if isinstance(value, str) else repr(value)


def main(root: Path) -> None:
    for path, text in files().items():
        root.joinpath(path).write_text(text)
    for path, text in tables().items():
        page = root / path
        page.write_text(with_table(page.read_text(), text))


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
