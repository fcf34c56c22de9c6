# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A report as JSON, Markdown, CSV, one HTML page and JUnit XML."""

from __future__ import annotations

import base64
import contextlib
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import junitparser

from stream_vlm_ros.console import (
    CLOCK,
    bytes_text,
    duration_text,
    markdown,
    plural,
    span_text,
    visible,
)
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.owned import write_whole
from stream_vlm_ros.session.counters import ON_PURPOSE

from .ages import age_text, correction
from .answer_table import render_csv
from .journal import as_json
from .plots import COLOURS, plots_of
from .summary import is_judged, place_of_evidence
from .time_line import TimeLine

_TEMPLATES = Path(__file__).parent
LONGEST_CELL = 280  # characters in a table of the Markdown


def write_report(report: dict[str, Any], folder: Path) -> dict[str, str]:
    """Write ``report.json``, ``.md``, ``.csv``, ``.html`` and ``junit.xml``, each for itself.

    Each file is complete at any moment: it takes its name when it has been written. What cannot be
    written does not keep the others from it.

    Returns:
        What failed, and why: a file's name, or a plot's, and the reason.
    """
    failed: dict[str, str] = {}
    views: dict[str, Callable[[], str]] = {
        "report.json": lambda: as_json(report, indent=1),
        "junit.xml": lambda: render_junit(report),
        "report.md": lambda: render_markdown(report),
        "report.csv": lambda: render_csv(report),
        "report.html": lambda: render_html(report, folder, failed),
    }
    for name, render in views.items():
        with noting(name, failed):
            write_whole(folder / name, render().encode("utf-8", "replace"))
    return failed


@contextlib.contextmanager
def noting(name: str, failed: dict[str, str]) -> Iterator[None]:
    """Note an error of the block under ``name``, the first one if there are several."""
    try:
        yield
    except Exception as error:  # one view, however it fails, must cost neither answers nor others
        words = error.strerror if isinstance(error, OSError) else None
        failed.setdefault(name, words or " ".join(f"{type(error).__name__}: {error}".split()))


def render_markdown(report: dict[str, Any]) -> str:
    """The report as Markdown; texts of the user's and of the model's are shown as they are."""
    return _environment(markdown).get_template("report.md.jinja").render(report=report)


def render_html(report: dict[str, Any], folder: Path, failed: dict[str, str] | None = None) -> str:
    """The report as one page that needs no other file; thumbnails are read from ``folder``.

    A plot that cannot be drawn is noted in ``failed``, and its place in the page says so.
    """
    template = _environment(visible, autoescape=True).get_template("report.html.jinja")
    return template.render(
        report=report,
        plots=plots_of(report["runs"], {} if failed is None else failed),
        rows=answer_rows(report["runs"]),
        picture=lambda path: _data_uri(folder / path),
        colours=COLOURS,
        line=TimeLine.of(report),
        table=base64.b64encode(render_csv(report).encode()).decode(),
    )


def answer_rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row a question asked, with what each run answered, in the order of time."""
    rows: dict[str, dict[str, Any]] = {}
    for number, run in enumerate(runs):
        for answer in run["answers"]:
            row = rows.setdefault(
                answer["id"],
                {
                    "first": answer,
                    "answers": [None] * len(runs),
                    "thumbnail": None,
                    "evidence": [],
                    "latency": -1.0,
                },
            )
            row["answers"][number] = answer
            row["thumbnail"] = row["thumbnail"] or answer.get("thumbnail")
            row["evidence"] = row["evidence"] or answer.get("evidence_pictures", [])
            row["latency"] = max(row["latency"], answer.get("times", {}).get("latency", -1.0))
    return sorted(rows.values(), key=lambda row: row["first"]["at"])


def render_junit(report: dict[str, Any]) -> str:
    """A suite a run, a case a question: a wrong answer is a failure, none at all an error."""
    xml = junitparser.JUnitXml()
    for run in report["runs"]:
        suite = junitparser.TestSuite(_xml_text(f"{report['source']['name']} {run['name']}"))
        cases = []
        for answer in run["answers"]:
            case = junitparser.TestCase(
                _xml_text(f"{answer['id']}: {answer['question']}"),
                _xml_text(f"{run['name']}.{answer['type'] or 'untyped'}"),
                answer.get("times", {}).get("latency", 0.0),
            )
            if outcome := _outcome(answer):
                case.result = [outcome]
            case.system_out = _xml_text(f"at {answer['at']:.2f} s: {answer['answer']}")
            cases.append(case)
        suite.add_testcases(cases)  # one by one, it counts all of them at each
        xml.add_testsuite(suite)
    xml.update_statistics()
    return xml.tostring().decode("utf-8")


def _outcome(answer: dict[str, Any]) -> Any:
    if answer["status"] == "error":
        error = answer["error"]
        return junitparser.Error(_xml_text(error["message"]), _xml_text(error["code"]))
    if answer["status"] == "not_reached":
        return junitparser.Skipped("the source ended before")
    if answer["right"] is False:
        expected = " or ".join(answer["expect"])
        words = f"expected {expected} ({answer['judge']}), got {answer['answer']}"
        return junitparser.Failure(_xml_text(words), "wrong")
    return None


def _xml_text(text: str) -> str:
    """Without the characters that XML cannot hold."""
    return visible(str(text))


def _data_uri(path: Path) -> str:
    try:
        data = base64.b64encode(path.read_bytes()).decode()
    except OSError:
        return ""
    return f"data:image/jpeg;base64,{data}"


@lru_cache(maxsize=2)
def _environment(shown: Callable[[str], str], autoescape: bool = False) -> jinja2.Environment:
    """``shown`` is what becomes of every text that a template puts in, after its filters."""

    def finalize(value: Any) -> Any:
        return shown(value) if isinstance(value, str) and not hasattr(value, "__html__") else value

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_TEMPLATES),
        autoescape=autoescape,
        finalize=finalize,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        undefined=jinja2.StrictUndefined,
    )
    environment.filters.update(
        percent=_percent,
        share=share_text,
        seconds=seconds_text,
        clock=_clock,
        bytes=bytes_text,
        duration=duration_text,
        plural=plural,
        cell=lambda text: text if len(text) <= LONGEST_CELL else text[: LONGEST_CELL - 1] + "…",
        verdict=_verdict,
        judge=judge_text,
        models=models_of,
        factor=factor_text,
        p_value=p_value_text,
    )
    environment.globals.update(
        lost=_lost,
        is_judged=is_judged,
        place_of_evidence=place_of_evidence,
        seen=_seen,
        correction=_correction,
        zip=zip,
    )
    return environment


def _percent(share: float | None) -> str:
    return "–" if share is None else f"{100 * share:.1f} %"


def share_text(figure: dict[str, Any]) -> str:
    """``83.3 % (5 of 6; 95 %: 44–97 %)``."""
    if not figure["judged"]:
        return "nothing judged"
    interval = f"{100 * figure['low']:.0f}–{100 * figure['high']:.0f} %"
    counts = f"{figure['right']} of {figure['judged']}"
    return f"{_percent(figure['accuracy'])} ({counts}; 95 %: {interval})"


def judge_text(answer: dict[str, Any]) -> str:
    """How an answer is judged: ``number (within 1): 3``."""
    options = [
        name if value is True else f"{name} {value}"
        for name, value in answer.get("judge_options", {}).items()
    ]
    judge = f"{answer['judge']} ({', '.join(options)})" if options else answer["judge"]
    return f"{judge}: {' or '.join(answer['expect'])}" if answer["expect"] else judge


def models_of(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The models of the runs, each once."""
    found: list[dict[str, Any]] = []
    for run in runs:
        if run["model"] not in found:
            found.append(run["model"])
    return found


def factor_text(value: float | None) -> str:
    return "–" if value is None else f"{value:.3g} ×"


def seconds_text(value: float | None) -> str:
    if value is None:
        return "–"
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.2f} s"


def _seen(answer: dict[str, Any]) -> list[str]:
    """When each episode was that an answer rests on, how long before the question, and where."""
    stamp = answer.get("stamp_ns")
    origin = 0.0 if stamp is None else stamp / SECOND - answer["at"]
    told = []
    for one in answer.get("episodes", ()):
        start, end = one["start"], one["end"]
        words = [f"{_clock(start)}–{_clock(end)}", age_text(end, answer["at"])]
        if origin + start >= CLOCK:
            words.insert(1, span_text(origin + start, origin + end))
        told.append(" · ".join([*words, one["tier"], f"score {one['score']:.2f}"]))
    return told


def _correction(answer: dict[str, Any]) -> str:
    episodes = [(one["start"], one["end"]) for one in answer.get("episodes", ())]
    return correction(answer["answer"] or "", episodes, answer["at"])


def _clock(seconds: float) -> str:
    minutes, rest = divmod(seconds, 60)
    return f"{int(minutes)}:{rest:04.1f}"


def _verdict(answer: dict[str, Any] | None) -> str:
    if answer is None:
        return "missing"
    if answer["status"] != "answered":
        return answer["status"]
    return {True: "right", False: "wrong", None: "unjudged"}[answer["right"]]


def p_value_text(p: float | None) -> str:
    if p is None:
        return "no difference"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def _lost(run: dict[str, Any]) -> list[tuple[str, int]]:
    """Causes and counts of frames that were lost against one's will."""
    drops = run["frames"]["drops"]
    return [(c, n) for c, n in drops.items() if n and c not in ON_PURPOSE]
