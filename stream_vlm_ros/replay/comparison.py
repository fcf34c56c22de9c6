# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Two runs of the same questions side by side: what differs, and whether that may be chance."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np

from .records import AnswerRecord
from .summary import accuracy, is_judged

LEVEL = 0.05  # below it a difference is called significant
_RESAMPLES = 10_000


def compare(a: dict[str, Any], b: dict[str, Any]) -> dict[str, Any]:
    """Run ``b`` against run ``a``, over the questions that both were asked.

    Accuracy: McNemar's exact test over the questions that one answered right and the other wrong.
    Times: the mean of the differences question by question, with a 95 % interval and a p-value by
    changing signs at random (seeded: the same each time).

    ``regressions`` are the ids of those that ``a`` answered right and ``b`` did not: wrong, without
    a verdict, not at all, not reached, or not asked in the same words.
    """
    pairs = _pairs(a, b)
    judged = [(x, y) for x, y in pairs if is_judged(x) and is_judged(y)]
    only_a = [x["id"] for x, y in judged if x["right"] and not y["right"]]
    only_b = [y["id"] for x, y in judged if y["right"] and not x["right"]]
    p = mcnemar(len(only_a), len(only_b))
    types = sorted({x["type"] for x, _ in judged if x["type"]})
    return {
        "a": a["name"],
        "b": b["name"],
        "settings": _differences(a["settings"], b["settings"]),
        "common": len(pairs),
        "only_in_a": len(_asked(a)) - len(pairs),
        "only_in_b": len(_asked(b)) - len(pairs),
        "regressions": _regressions(a, b),
        "same_words": sum(x["answer"] == y["answer"] for x, y in pairs),
        "accuracy": {
            "a": accuracy(x for x, _ in judged),
            "b": accuracy(y for _, y in judged),
            "only_a_right": only_a,
            "only_b_right": only_b,
            "p": p,
            "significant": p is not None and p < LEVEL,
        },
        "by_type": {
            kind: {
                "a": accuracy(x for x, _ in judged if x["type"] == kind),
                "b": accuracy(y for x, y in judged if x["type"] == kind),
            }
            for kind in types
        },
        "times": {key: _time_difference(pairs, key) for key in ("ttft", "latency")},
    }


def mcnemar(only_a: int, only_b: int) -> float | None:
    """Two-sided exact p-value that this many differences fall so unevenly by chance; None: no
    difference at all."""
    count = only_a + only_b
    if count == 0:
        return None
    tail = sum(math.comb(count, k) for k in range(min(only_a, only_b) + 1))
    return min(1.0, 2 * tail / 2**count)


def paired_difference(a: list[float], b: list[float]) -> dict[str, Any] | None:
    """Mean of b - a with a 95 % interval (bootstrap) and a p-value (sign flips)."""
    if len(a) < 2:
        return None
    difference = np.asarray(b, float) - np.asarray(a, float)
    rng = np.random.default_rng(0)
    resamples = max(500, min(_RESAMPLES, 5_000_000 // len(difference)))
    draws = rng.integers(len(difference), size=(resamples, len(difference)))
    means = difference[draws].mean(1)
    signs = rng.choice([-1.0, 1.0], size=(resamples, len(difference)))
    mean = float(difference.mean())
    extreme = np.abs((signs * difference).mean(1)) >= abs(mean) - 1e-15
    p = (int(extreme.sum()) + 1) / (resamples + 1)
    low, high = np.percentile(means, [2.5, 97.5])
    return {
        "count": len(difference),
        "a": float(np.mean(a)),
        "b": float(np.mean(b)),
        "difference": mean,
        "low": float(low),
        "high": float(high),
        "p": p,
        "significant": p < LEVEL,
    }


def _time_difference(
    pairs: list[tuple[AnswerRecord, AnswerRecord]], key: str
) -> dict[str, Any] | None:
    both = [
        (x["times"][key], y["times"][key])
        for x, y in pairs
        if key in x.get("times", {}) and key in y.get("times", {})
    ]
    return paired_difference([x for x, _ in both], [y for _, y in both])


def _asked(run: dict[str, Any]) -> list[AnswerRecord]:
    """What came of a run's questions, but for those that its source ended before."""
    return [one for one in run["answers"] if one["status"] != "not_reached"]


def _regressions(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    now = {key for key, y in _keyed(b).items() if y["right"]}
    return [x["id"] for key, x in _keyed(a).items() if x["right"] and key not in now]


def _keyed(run: dict[str, Any]) -> dict[tuple[str, str, int], AnswerRecord]:
    """What came of a run's questions by id, words, and how many were the same before."""
    keyed: dict[tuple[str, str, int], AnswerRecord] = {}
    times: Counter[tuple[str, str]] = Counter()
    for one in run["answers"]:
        same = one["id"], one["question"]
        key = (*same, times[same])
        keyed[key] = one
        times[same] += 1
    return keyed


def _pairs(a: dict[str, Any], b: dict[str, Any]) -> list[tuple[AnswerRecord, AnswerRecord]]:
    """What came of questions that both asked, in the same words, in the order of ``a``."""
    others = _keyed(b)
    found = ((x, others[key]) for key, x in _keyed(a).items() if key in others)
    return [pair for pair in found if all(one["status"] != "not_reached" for one in pair)]


def _differences(a: dict[str, Any], b: dict[str, Any]) -> dict[str, list[Any]]:
    keys = [key for key in {**a, **b} if key != "name"]
    return {key: [a.get(key), b.get(key)] for key in keys if a.get(key) != b.get(key)}
