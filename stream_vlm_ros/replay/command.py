# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the verbs ``replay`` and ``report`` of the command line do and print."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from rich.console import Console, JustifyMethod
from rich.table import Table
from rich.text import Text

from stream_vlm_ros.config import Settings
from stream_vlm_ros.console import plural, printable, say
from stream_vlm_ros.errors import InvalidParameterError, cut

from .comparison import compare
from .job import ReplayJob
from .rendering import p_value_text, seconds_text, share_text
from .report import ReportError, read_report
from .settings import changed

# Exit statuses; BELOW also where something could not be written.
BELOW, REGRESSED, INTERRUPTED = 1, 3, 130


def settings_of(base: Settings, engine: str | None, compared: Sequence[str]) -> list[Settings]:
    """The configurations of ``--engine`` and of each ``--compare``, which changes it."""
    named = engine is not None and ":" in engine.split(",")[0].split("=")[0]
    first = changed(base, engine)
    if not named:  # the first run is called after its engine, whatever else was changed
        first = dataclasses.replace(first, name="")
    return [first, *(changed(first, text) for text in compared)]


def run_job(job: ReplayJob, fail_under: float | None, out: Console) -> int:
    """Run, print the figures, and say how it ended: 0, BELOW or INTERRUPTED."""
    if fail_under is not None and not 0 <= fail_under <= 1:
        raise InvalidParameterError(f"--fail-under is {fail_under}; it must be between 0 and 1.")
    report = job.run()
    out.print(summary_table(report["runs"]))
    for run in report["runs"]:
        _print_troubles(run, out)
    for name, reason in job.failed.items():
        _say(out, f"{name} could not be written: {reason}", "red")
    if "report.json" in job.failed and not job.realtime:
        journal = job.out / "journal.jsonl"
        _say(out, f"The answers are in {journal}: the same command takes them from there.")
    if "report.html" not in job.failed:
        # A path stays whole, to be copied.
        out.print(Text(printable(f"Report: {job.out / 'report.html'}")), soft_wrap=True)
    if job.interrupted:
        goes_on = "" if job.realtime else " Run the same command to resume."
        _say(out, f"Interrupted: the report is partial.{goes_on}")
        return INTERRUPTED
    return BELOW if fails(report, fail_under, out) or job.failed else 0


def fails(report: dict[str, Any], fail_under: float | None, out: Console) -> bool:
    """Whether a run ended early, saw nothing, or answered too few of its questions right."""
    failed = False
    for run in report["runs"]:
        if "error" in run:
            failed = True
        elif not run["frames"]["ingested"]:
            _say(out, f"{run['name']} fails: no frame of the source could be used")
            failed = True
        share = run["summary"]["accuracy"]["accuracy"]
        if fail_under is not None and (share is None or share < fail_under):
            found = "nothing was judged" if share is None else f"{100 * share:.1f} % right"
            _say(out, f"{run['name']} fails: {found}, wanted at least {100 * fail_under:g} %")
            failed = True
    return failed


def summary_table(runs: Sequence[dict[str, Any]]) -> Table:
    """One line a run."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for title in ("", "right", "first token", "answer", "frames", "lost", "cache"):
        side: JustifyMethod = "left" if title in ("", "right") else "right"
        table.add_column(title, justify=side, no_wrap=title != "", overflow="fold")
    for run in runs:
        figures = run["summary"]
        ttft, latency = figures["times"]["ttft"], figures["times"]["latency"]
        table.add_row(
            Text(printable(run["name"])),
            _short_share(figures["accuracy"]),
            seconds_text(ttft and ttft["p50"]),
            seconds_text(latency and latency["p50"]),
            f"{figures['frames']:,}",
            f"{figures['lost']:,}",
            f"{figures['longest_cache']:,}",
        )
    return table


def _short_share(figure: dict[str, Any]) -> str:
    if not figure["judged"]:
        return "not judged"
    return f"{100 * figure['accuracy']:.1f} % ({figure['right']} of {figure['judged']})"


def diff(a: str, b: str, run_a: str | None = None, run_b: str | None = None) -> dict[str, Any]:
    """Run ``run_b`` of report ``b`` against ``run_a`` of report ``a``; None: the first run.

    Raises ReportError, also where no question was asked in both.
    """
    reports = read_report(a), read_report(b)
    before, now = _run_of(reports[0], a, run_a), _run_of(reports[1], b, run_b)
    difference = compare(before, now)
    if not difference["common"]:
        counts = f"{len(before['answers'])} and {len(now['answers'])}"
        raise ReportError(
            f"{cut(a)} and {cut(b)} have no question in common that both were asked, of {counts}: "
            "questions are paired by id and text."
        )
    return difference | {"notes": [*_notes(reports, (before, now))]}


def _notes(reports: Sequence[dict[str, Any]], runs: Sequence[dict[str, Any]]) -> Iterator[str]:
    """What makes a comparison say less than it seems to."""
    sources = [one["source"] if isinstance(one.get("source"), dict) else {} for one in reports]
    digests, names = ([one.get(key) for one in sources] for key in ("digest", "name"))
    told = digests if all(digests) else names  # a file is the same wherever it lies
    if all(told) and told[0] != told[1]:
        words = " and ".join(cut(str(name)) for name in names)
        yield f"the sources differ: {words}"
    for letter, report, run in zip("AB", reports, runs, strict=True):
        if not (report.get("complete", True) and run.get("complete", True)):
            yield f"the run of {letter} is not complete"


def print_diff(difference: dict[str, Any], out: Console) -> None:
    """A comparison in words."""
    accuracy = difference["accuracy"]
    _say(out, f"{plural(difference['common'], 'question')} in both", "bold")
    for note in difference["notes"]:
        _say(out, f"Note: {note}", "yellow")
    for key in ("only_in_a", "only_in_b"):
        if count := difference[key]:
            _say(out, f"{plural(count, 'answer')} {key.replace('_', ' ')[:-1]}{key[-1].upper()}")
    for key, (before, after) in difference["settings"].items():
        _say(out, f"{key}: {before} -> {after}")
    _say(out, f"Right        {share_text(accuracy['a'])} -> {share_text(accuracy['b'])}")
    words = p_value_text(accuracy["p"])
    if accuracy["p"] is not None:
        words += ", significant" if accuracy["significant"] else ", may be chance"
    _say(out, f"             {words} (McNemar's exact test)")
    for name, ids in (("Lost", difference["regressions"]), ("Won", accuracy["only_b_right"])):
        if ids:
            _say(out, f"{name:<13}{_some(ids)}")
    _say(out, f"Same words   {difference['same_words']} of {difference['common']}")
    for key, title in (("ttft", "First token"), ("latency", "Whole answer")):
        if times := difference["times"][key]:
            meaning = "significant" if times["significant"] else "may be chance"
            _say(
                out,
                f"{title:<13}{seconds_text(times['a'])} -> {seconds_text(times['b'])} on average; "
                f"{p_value_text(times['p'])}, {meaning}",
            )


def print_regressions(difference: dict[str, Any], out: Console) -> None:
    """Of what was right before and is not now, the last line; nothing if there is none."""
    if ids := difference["regressions"]:
        _say(out, f"{plural(len(ids), 'regression')}: {_some(ids)}", "red")


def _some(ids: Sequence[str]) -> str:
    """Their first twelve, and how many more."""
    return ", ".join(ids[:12]) + (f" and {len(ids) - 12} more" if len(ids) > 12 else "")


def print_rate(found: dict[str, Any], out: Console) -> None:
    """The trials of a search for the highest rate, and its result."""
    table = Table(box=None, pad_edge=False, padding=(0, 3, 0, 0))
    for title in ("images/s", "published", "received", "taken in", "lost", "share", "causes"):
        table.add_column(title, justify="left" if title == "causes" else "right")
    for trial in found["trials"]:
        causes = [f"{n} {c.removeprefix('dropped_')}" for c, n in trial["drops"].items()]
        if lost := trial["published"] - trial["received"]:
            causes.append(f"{lost} transport")
        table.add_row(
            f"{trial['rate']:.1f}",
            *(f"{trial[key]:,}" for key in ("published", "received", "ingested", "missed")),
            f"{100 * trial['lost']:.1f} %",
            ", ".join(causes),
        )
    out.print(table)
    allowed = f"less than {100 * found['loss_allowed']:g} % lost"
    if found["highest_rate"]:
        _say(out, f"Highest rate with {allowed}: {found['highest_rate']:.1f} images/s", "bold")
    else:
        _say(out, f"No rate from 1 image/s on had {allowed}.", "bold")


def _run_of(report: dict[str, Any], path: str, name: str | None) -> dict[str, Any]:
    runs: list[dict[str, Any]] = report["runs"]
    if name is None:
        return runs[0]
    for run in runs:
        if run["name"] == name:
            return run
    raise ReportError(
        f"The report {path} has no run {name!r}, only {', '.join(r['name'] for r in runs)}."
    )


def _print_troubles(run: dict[str, Any], out: Console) -> None:
    for note in filter(None, [run["source"]["damage"], *run["source"]["notes"]]):
        _say(out, f"{run['name']}: {note}", "yellow")
    if "error" in run:
        _say(out, f"{run['name']} ended early: {run['error']['message']}", "red")
    for text in _without_verdict(run):
        _say(out, f"{run['name']}: {text}", "yellow")
    if count := run["summary"]["errors"]:
        first = next(a for a in run["answers"] if a["status"] == "error")
        message = first["error"]["message"]
        _say(out, f"{run['name']}: {count} not answered; the first: {message}", "yellow")


def _without_verdict(run: dict[str, Any]) -> list[str]:
    """What the share of right answers does not tell: questions that were never asked, and answers
    that could not be judged."""
    figures, answers = run["summary"], run["answers"]
    found = []
    if count := figures["not_reached"]:
        last = max((entry["at"] for entry in run["series"]), default=None)
        if not run["complete"]:
            why = "were not reached"
        elif last is None:
            why = "were not asked: no frame had come"
        else:
            why = f"lie after the end and were not asked (last frame at {last:g} s)"
        found.append(f"{count} of {plural(figures['questions'], 'question')} {why}")
    failures = [a["judge_error"] for a in answers if "judge_error" in a]
    unjudged = sum(a["status"] == "answered" and a["right"] is None for a in answers)
    if unjudged and (figures["accuracy"]["judged"] or failures):
        why = f"; the first judge that failed: {failures[0]}" if failures else ""
        found.append(f"{unjudged} of {plural(figures['answered'], 'answer')} not judged{why}")
    return found


def _say(out: Console, text: str, style: str = "") -> None:
    say(out, Text(printable(text), style=style))
