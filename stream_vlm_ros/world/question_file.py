# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Question files for ``stream-vlm replay`` about a drawn world, whose truth is known."""

from __future__ import annotations

import random
from typing import Any

from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.world.questions import TYPES, History, ask
from stream_vlm_ros.world.source import WorldSource

MAX_WORK = 1e9  # questions x frames that each may look back at


def question_file(
    source: str, end: float, every: float = 5.0, fps: float = 2.0, seed: int = 0
) -> dict[str, Any]:
    """The content of a question file (docs/replay.md) about the world ``source`` ("world:7").

    Every ``every`` seconds up to ``end``, one question of each type in turn, with what is right by
    what a memory has seen that takes ``fps`` frames a second. Where something has just come or
    gone, nothing is asked. The same for the same arguments. Raises InvalidParameterError.
    """
    if not 0 < fps <= 1000:
        raise InvalidParameterError(f"The rate is {fps:g} frames/s; it must be above 0.")
    if not every >= 2 / fps:
        raise InvalidParameterError(
            f"Questions every {every:g} s are too many: the memory takes in two frames at a time, "
            f"so once in {2 / fps:g} s at most."
        )
    if not end >= every:
        raise InvalidParameterError(
            f"In {end:g} s there is no time for a question every {every:g} s."
        )
    if not (end / every) * end * fps <= MAX_WORK:
        raise InvalidParameterError(
            f"{end:g} s are too long for a question every {every:g} s: each looks at all before it."
        )
    world = WorldSource(source.removeprefix("world:"), end=end)
    rng = random.Random(f"question file {world.seed} {seed}")
    entries: list[dict[str, Any]] = []
    for turn in range(1, int(end / every) + 1):
        # An even number of frames, so that none of them waits for its partner when it is asked.
        stamps = [index / fps for index in range(2 * round(turn * every * fps / 2))]
        history = History(world.world.sightings(stamps[-1]), stamps)
        first = len(entries) % len(TYPES)
        asked = (ask(rng, history, type_) for type_ in TYPES[first:] + TYPES[:first])
        question = next(filter(None, asked), None) if history.settled else None
        if question is None:
            continue
        entry: dict[str, Any] = {"text": question.text, "at": stamps[-1], "type": question.type}
        if question.type == "choice":
            entry |= {"choices": list(question.choices), "expect": question.answer}
        else:
            entry["expect"] = list(dict.fromkeys((question.answer, *question.accepted)))
        entries.append(entry)
    return {"title": f"The drawn world of seed {world.seed}", "questions": entries}
