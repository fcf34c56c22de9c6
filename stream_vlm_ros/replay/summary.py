# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Figures out of a run's answers: accuracy by type, tag and age of the evidence, times, drops."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from stream_vlm_ros.experiments import intervals
from stream_vlm_ros.session.counters import ON_PURPOSE

from .records import AnswerRecord

# Seconds since what answers a question was last seen.
AGES = ((0.0, 5.0), (5.0, 15.0), (15.0, 30.0), (30.0, 60.0), (60.0, 180.0), (180.0, math.inf))


def summary_of(run: dict[str, Any]) -> dict[str, Any]:
    """The figures of one run of a report, times apart under ``times``."""
    answers = run["answers"]
    answered = [a for a in answers if a["status"] == "answered"]
    drops = run["frames"]["drops"]
    return {
        "questions": len(answers),
        "answered": len(answered),
        "errors": sum(a["status"] == "error" for a in answers),
        "not_reached": sum(a["status"] == "not_reached" for a in answers),
        "accuracy": accuracy(answers),
        "by_type": grouped(answers, lambda a: [a["type"]] if a["type"] else []),
        "by_tag": grouped(answers, lambda a: a["tags"]),
        "by_age": by_age(answers),
        "by_memory": grouped(answers, _memory_group),
        "frames": run["frames"]["ingested"],
        "lost": sum(count for cause, count in drops.items() if cause not in ON_PURPOSE),
        "evicted_tokens": sum(entry["evicted_tokens"] for entry in run["series"]),
        "longest_cache": max((entry["cache_length"] for entry in run["series"]), default=0),
        "largest_memory_bytes": max((entry["memory_bytes"] for entry in run["series"]), default=0),
        "times": {
            "ttft": distribution(a["times"].get("ttft") for a in answered),
            "latency": distribution(a["times"].get("latency") for a in answered),
            "encode": distribution(e["times"].get("latency") for e in run["series"]),
            "realtime_factor": realtime_factor(run["series"]),
            "wall": run["times"].get("wall"),
        },
    }


def realtime_factor(series: Sequence[dict[str, Any]]) -> float | None:
    """Seconds of the source that a second of encoding takes in, above 1 faster than a camera.

    Over the chunks after the first, without pauses that positions leave out and without the
    questions; of several cameras, all of them. None where there is one chunk, or no times.
    """
    later = series[1:]
    if not later or any("latency" not in entry["times"] for entry in later):
        return None
    latency = sum(entry["times"]["latency"] for entry in later)
    covered = later[-1]["at"] - series[0]["at"] - sum(e["closed_seconds"] for e in later)
    return covered / latency if latency > 0 else None


def accuracy(answers: Iterable[AnswerRecord]) -> dict[str, Any]:
    """How many judged answers are right, with a 95 % interval (Wilson's). An error instead of an
    answer counts as wrong; a question that the source ended before does not count."""
    judged = [a for a in answers if is_judged(a)]
    right = sum(bool(a["right"]) for a in judged)
    low, high = wilson(right, len(judged))
    share = right / len(judged) if judged else None
    return {"judged": len(judged), "right": right, "accuracy": share, "low": low, "high": high}


def is_judged(answer: AnswerRecord) -> bool:
    """Whether an answer counts in the accuracy."""
    if answer["status"] == "answered":
        return answer["right"] is not None
    return answer["status"] == "error" and answer["judge"] != "none"


def wilson(right: int, count: int) -> tuple[float | None, float | None]:
    """Wilson's score interval of a share, rounded for a report; None for nothing counted."""
    if count == 0:
        return None, None
    low, high = intervals.wilson(right, count)
    return round(low, 6), round(high, 6)


def grouped(
    answers: Iterable[AnswerRecord], keys: Callable[[AnswerRecord], Iterable[str]]
) -> dict[str, dict[str, Any]]:
    """The accuracy in each group; ``keys(answer)`` names an answer's groups."""
    groups: dict[str, list[AnswerRecord]] = {}
    for answer in answers:
        for key in keys(answer):
            groups.setdefault(key, []).append(answer)
    figures = {key: accuracy(members) for key, members in groups.items()}
    return {key: figure for key, figure in figures.items() if figure["judged"]}


def by_age(answers: Sequence[AnswerRecord]) -> dict[str, dict[str, Any]]:
    """The accuracy by the age of the evidence, in the order of age; empty groups left out."""
    found = {}
    for low, high in AGES:
        members = [
            a for a in answers if a["evidence_age"] is not None and low <= a["evidence_age"] < high
        ]
        figure = accuracy(members)
        if figure["judged"]:
            found[age_label(low, high)] = figure
    return found


def age_label(low: float, high: float) -> str:
    return f"{low:g} s or more" if math.isinf(high) else f"{low:g}-{high:g} s"


# Where the evidence was when the question was asked, in words.
PLACES = {
    "window": "in the window",
    "memory": "in memory, before the window",
    "history": "in the history alone",
    "forgotten": "forgotten",
}


def place_of_evidence(answer: AnswerRecord) -> str | None:
    """Where an answer's evidence was, in words; None if there is none, or nobody knows."""
    if "evidence_held" in answer:
        return PLACES[answer["evidence_held"]]
    held = answer.get("evidence_in_memory")  # all that a node tells
    return None if held is None else "in memory" if held else "not in memory"


def _memory_group(answer: AnswerRecord) -> list[str]:
    place = place_of_evidence(answer)
    return [] if place is None else [place]


def distribution(values: Iterable[float | None]) -> dict[str, float] | None:
    """Count, mean and percentiles; None for no values."""
    numbers = np.array([v for v in values if v is not None], float)
    if not numbers.size:
        return None
    p50, p90, p99 = np.percentile(numbers, [50, 90, 99])
    return {
        "count": int(numbers.size),
        "mean": float(numbers.mean()),
        "p50": float(p50),
        "p90": float(p90),
        "p99": float(p99),
        "max": float(numbers.max()),
    }
