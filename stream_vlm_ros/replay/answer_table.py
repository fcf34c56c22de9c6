# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A report's answers as CSV: a line for each answer of each run."""

from __future__ import annotations

import csv
import io
import re
from typing import Any

from stream_vlm_ros.console import visible

from .records import AnswerRecord
from .summary import place_of_evidence

# What makes a formula, where a spreadsheet may begin a cell: also one that splits at other
# delimiters than the comma.
_FORMULA = re.compile(r"(^|[;\t\n])(\s*)(?=[-=+@＝＋－＠])")
_COLUMNS = (
    "id", "question_id", "camera", "at", "question", "type", "tags", "choices", "expect", "judge",
    "status", "answer", "right", "error", "evidence_age", "evidence", "cache_length",
    "prompt_tokens", "answer_tokens", "ttft", "latency",
)  # fmt: skip


def render_csv(report: dict[str, Any]) -> str:
    """All answers, in the order of the report. Several texts of one cell have a | between them.

    No text becomes a formula: what a spreadsheet would take for one has an apostrophe in front.
    """
    out = io.StringIO()
    table = csv.writer(out, lineterminator="\n")
    table.writerow(("run", *_COLUMNS))
    for run in report["runs"]:
        for answer in run["answers"]:
            cells = _cells(answer)
            table.writerow([_cell(run["name"]), *(_cell(cells.get(name)) for name in _COLUMNS)])
    return out.getvalue()


def _cells(answer: AnswerRecord) -> dict[str, Any]:
    return {
        **answer.get("metrics", {}),
        **answer.get("times", {}),
        **answer,
        "error": answer["error"]["message"] if answer["status"] == "error" else None,
        "evidence": place_of_evidence(answer),
    }


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        value = "|".join(map(str, value))
    if isinstance(value, bool):
        return str(value).lower()
    return _FORMULA.sub(r"\1\2'", visible(value)) if isinstance(value, str) else value
