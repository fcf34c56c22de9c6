# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A memory's state in words and figures."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from stream_vlm_ros.console import bytes_text, duration_text, plural
from stream_vlm_ros.session.counters import ON_PURPOSE, Drop
from stream_vlm_ros.session.question import Outcome

from .live_memory import Status

STATES = {
    "active": "Live",
    "inactive": "Inactive",
    "loading": "Loading",
    "away": "Not answering",
    "ended": "Ended",
}
WHY_DROPPED = {
    Drop.SAMPLING: "left out by the sample rate",
    Drop.INACTIVE: "came while the memory was not active",
    Drop.PAUSED: "came during a pause",
    Drop.INVALID_IMAGE: "could not be used as a picture",
    Drop.INVALID_STAMP: "had a time that cannot be right",
    Drop.TIME_JUMP: "waiting when the time jumped",
    Drop.OVERFLOW: "dropped, since the model is slower than the camera",
    Drop.RESET: "waiting at a reset",
    Drop.ERROR: "refused by the model",
}
TO_SEE = 0.0005  # s: a shorter time is not told


@dataclass(frozen=True)
class Figure:
    """``label`` names ``value``; ``more`` says what it means."""

    label: str
    value: str
    more: str = ""


def state_text(status: Status) -> str:
    """In a word or two."""
    if status.paused and status.state == "active":
        return "Paused"
    return STATES.get(status.state, status.state.capitalize())


def figures(status: Status) -> list[Figure]:
    """What is worth a look."""
    memory = status.memory
    lag = "–" if status.lag is None else duration_text(max(0.0, status.lag))
    used = bytes_text(status.used_bytes) if status.used_bytes else "–"
    return [
        Figure("Frames held", f"{sum(level.frames for level in memory.levels):,}"),
        Figure(
            "Evictions",
            f"{memory.evictions:,}",
            f"{plural(memory.evicted_tokens, 'token')} let go in all",
        ),
        Figure("Behind", lag, "from a picture's time to its being remembered"),
        Figure("GPU memory" if status.device.startswith("cuda") else "RAM", used, "in use"),
    ]


def share(status: Status) -> float:
    """Of the cap that is filled, 0 to 1."""
    memory = status.memory
    return min(1.0, memory.length / memory.cap) if memory.cap else 0.0


def length_text(status: Status) -> str:
    """Tokens held, of how many."""
    memory = status.memory
    cap = f" of {memory.cap:,}" if memory.cap else ""
    return f"{memory.length:,}{cap} tokens"


def dropped(counters: Mapping[str, int]) -> list[tuple[str, bool]]:
    """Why pictures did not get into the memory, in words, and whether somebody wanted it so."""
    return [
        (f"{counters[drop.value]:,} {words}", drop.cause in ON_PURPOSE)
        for drop, words in WHY_DROPPED.items()
        if counters.get(drop.value)
    ]


def taken_text(counters: Mapping[str, int]) -> str:
    """How many pictures came, and how many are remembered."""
    received, ingested = counters.get("frames_received", 0), counters.get("frames_ingested", 0)
    return f"{plural(received, 'picture')} came, {ingested:,} remembered"


def outcome_text(outcome: Outcome) -> str:
    """What an answer took, and what it was read from; "" where none was begun."""
    if not (outcome.answer or outcome.error is None):
        return ""
    parts = []
    if outcome.waiting >= 0.1:
        parts.append(f"waited {duration_text(outcome.waiting)}")
    if outcome.ttft > TO_SEE:
        parts.append(f"first token {seconds_text(outcome.ttft)}")
    if outcome.latency > TO_SEE:
        parts.append(f"{seconds_text(outcome.latency)} in all")
    if outcome.answer_tokens:
        parts.append(plural(outcome.answer_tokens, "token"))
    if outcome.memory.length:
        parts.append(f"read from {outcome.memory.length + outcome.fetched_tokens:,} tokens")
    if outcome.fetched_tokens:
        parts.append(f"{outcome.fetched_tokens:,} of them fetched from the history")
    return " · ".join(parts)


def unnamed_text(outcome: Outcome) -> str:
    """What an answer from a memory with a history rests on that names no episode; else ""."""
    if outcome.error is not None or outcome.evidence or not outcome.memory.tiers:
        return ""
    none_named = "no single time is named"
    if outcome.fetched_tokens or outcome.question.about_ns:
        return none_named
    return f"read from the memory as a whole: {none_named}"


def choice_shares(outcome: Outcome) -> list[float]:
    """How likely each choice is among them, 0 to 1, 1 in all: softmax of the log-probabilities."""
    if not outcome.choice_scores:
        return []
    top = max(outcome.choice_scores)
    weights = [math.exp(score - top) for score in outcome.choice_scores]
    return [weight / sum(weights) for weight in weights]


def seconds_text(seconds: float) -> str:
    """``210 ms``, ``1.25 s``."""
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.2f} s"
