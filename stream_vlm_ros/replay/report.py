# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A report: what was asked of what, what came of it, and the figures. Written and read as JSON."""

from __future__ import annotations

import json
import os
import platform
import shlex
from collections.abc import Sequence
from datetime import datetime, timezone
from functools import lru_cache
from pathlib import Path
from typing import Any

import jsonschema

from stream_vlm_ros import __version__
from stream_vlm_ros.errors import StreamVlmError, cut
from stream_vlm_ros.machine import processor_name, revision, versions
from stream_vlm_ros.owned import open_regular
from stream_vlm_ros.sources import redacted

from .comparison import compare
from .summary import summary_of

SCHEMA, VERSION = "stream_vlm.replay.report", 1
SCHEMA_FILE = Path(__file__).with_name("report.schema.json")
KIND = "report"  # in the mark of its folder
WRITES = (
    "journal.jsonl",
    "report.json",
    "report.md",
    "report.csv",
    "report.html",
    "junit.xml",
    "thumbnails",
)


class ReportError(StreamVlmError):
    """A report that cannot be read or compared."""

    code = "REPORT"


def build_report(
    *,
    mode: str,
    source: dict[str, Any],
    questions: dict[str, Any],
    runs: list[dict[str, Any]],
    complete: bool,
    wall: float,
    command: Sequence[str] = (),
) -> dict[str, Any]:
    """The report of all runs. All that depends on the machine or the hour is under a key
    ``times``, here and below; everything else is the same for the same input."""
    runs = [{**run, "summary": summary_of(run)} for run in runs]
    return {
        "schema": SCHEMA,
        "version": VERSION,
        "stream_vlm": __version__,
        "mode": mode,
        "complete": complete,
        "source": source,
        "questions": questions,
        "runs": runs,
        "comparisons": [compare(runs[0], run) for run in runs[1:]],
        "times": {
            "written": datetime.now(timezone.utc).isoformat(timespec="seconds"),
            "wall": wall,
            "command": command_line(command) if command else "",
            "revision": revision(),
            "machine": machine(),
        },
    }


def command_line(arguments: Sequence[str]) -> str:
    """The command line as a report shows it: addresses without user, password and query."""
    return shlex.join(["stream-vlm", *map(redacted, arguments)])


def machine() -> dict[str, Any]:
    """What the times were measured on."""
    import torch

    found = {
        "platform": platform.platform(),
        "processor": processor_name(),
        "cores": os.cpu_count(),
        **versions(torch),
    }
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found


def without_times(value: Any) -> Any:
    """A report without what depends on the machine: the part that is the same every time."""
    if isinstance(value, dict):
        return {key: without_times(item) for key, item in value.items() if key != "times"}
    return [without_times(item) for item in value] if isinstance(value, list) else value


def is_report(folder: Path) -> bool:
    """Whether ``folder`` holds a report, or the journal of one, from before there were marks."""
    try:
        read_report(folder)
        return True
    except ReportError:
        pass
    try:
        with open(open_regular(folder / "journal.jsonl"), "rb") as journal:
            first = json.loads(journal.readline())
        return isinstance(first, dict) and len(str(first.get("run"))) == 32
    except (OSError, ValueError, RecursionError):
        return False


def read_report(path: str | Path) -> dict[str, Any]:
    """A report's JSON, from its file or its folder; raises ReportError."""
    path = Path(path)
    file = path / "report.json" if path.is_dir() else path
    try:
        report = json.loads(file.read_text(encoding="utf-8"), parse_constant=_no_number)
    except FileNotFoundError:
        raise ReportError(f"There is no report {file}. Check the path.") from None
    except OSError as error:
        raise ReportError(f"{file} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ReportError(f"{file} is cut off, or no JSON: {cut(str(error))}") from error
    if not isinstance(report, dict) or report.get("schema") != SCHEMA:
        raise ReportError(f"{file} is not a report of stream-vlm replay.")
    if report.get("version") != VERSION:
        raise ReportError(
            f"{file} is of version {cut(str(report.get('version')), 80)}; this program reads "
            f"version {VERSION}."
        )
    if wrong := next(_validator().iter_errors(report), None):
        place = "/".join(map(str, wrong.absolute_path))
        raise ReportError(f"{file} is not what replay has written: {place}: {cut(wrong.message)}")
    return report


def _no_number(text: str) -> None:
    raise ValueError(f"{text} is no number of JSON")


@lru_cache(maxsize=1)
def _validator() -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads(SCHEMA_FILE.read_text(encoding="utf-8")))
