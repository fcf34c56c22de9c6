# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Questions with known answers about a drawn world, in batches, and the age of their evidence."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from stream_vlm_ros.engine import VideoStreamingInference
from stream_vlm_ros.world import questions as about
from stream_vlm_ros.world.questions import History, Question

from .pictures import WorldPictures

TYPES = tuple(name for name in about.TYPES if name != "unknown")
# Answered by what is in view; all others ask memory.
PERCEPTION = ("now", "last")


@dataclass(frozen=True)
class Item:
    """A question at a moment.

    ``age``: seconds since what answers it could last be seen (of several things, the one longest
    gone); None where the true answer is that something was not there.
    """

    question: Question
    age: float | None


def make_items(
    world: Any, stamps: Sequence[float], seed: object, each: int = 1, types: Sequence[str] = TYPES
) -> list[Item]:
    """Up to ``each`` questions of every type about what frames at ``stamps`` have shown.

    Fewer where the moment has none; none at all while something has just come or gone.
    """
    history = History(world.sightings(stamps[-1]), list(stamps))
    if not history.settled:
        return []
    # This text decides which questions are asked: those whose answers bench/results holds.
    rng = random.Random(f"exam {seed} {stamps[-1]}")
    items: dict[str, Item] = {}
    for type_ in types:
        for _ in range(each):
            question = about.ask(rng, history, type_)
            if question is not None:
                items[question.text] = Item(question, evidence_age(question, history))
    return list(items.values())


def evidence_age(question: Question, history: History) -> float | None:
    """See `Item.age`."""
    if question.type == "now":
        return 0.0
    moment = _moment_named(question.text, history)
    if moment is not None:
        return history.now - moment
    if question.answer in (about.NOT_SEEN, about.NOTHING, "no") or not history.seen:
        return None
    found = _shown(question, history)
    if not found:
        return None
    return history.now - min(min(history.last_frame_of(s), history.now) for s in found)


def _moment_named(text: str, history: History) -> float | None:
    match = re.search(r"(\d+) (second|minute)s? (ago|after)|at (\d+) (second|minute)s?", text)
    if match is None:
        return None
    count, unit = match[1] or match[4], match[2] or match[5]
    seconds = float(count) * (60 if unit == "minute" else 1)
    return history.now - seconds if match[3] == "ago" else history.start + seconds


def _shown(question: Question, history: History) -> list[Any]:
    """The sightings that answer a question, of each thing the latest."""
    latest = {sighting.thing.name: sighting for sighting in history.seen}
    if question.type == "first":
        return history.seen[:1]
    if question.type == "last":
        return history.seen[-1:]
    if question.type == "sign":
        return [s for s in history.seen if s.thing.is_sign][-1:]
    if question.type == "how_many":
        return [s for s in latest.values() if not s.thing.is_sign]
    words = question.answer if question.type == "choice" else f"{question.text} {question.answer}"
    named = [s for name, s in latest.items() if re.search(rf"\b{name}\b", words)]
    if named:
        return named
    # By colour, shape, or one asked of the other: of things alike, any will do.
    tokens = set(re.findall(r"[a-z]+", words.lower()))
    given = 2 if question.type in ("colour_of", "shape_of") else 1
    alike = [s for s in latest.values() if len({s.thing.kind, s.thing.colour} & tokens) >= given]
    return sorted(alike, key=lambda sighting: sighting.end)[-1:]


def grade(engine: VideoStreamingInference, questions: Sequence[Question]) -> list[bool]:
    """Whether each question would be answered right by `VideoStreamingInference.ask`, greedily.

    The accepted texts are forced and compared with what the model would have said at each token: a
    batch costs little more than one question. Leaves no trace.
    """
    chat, ends = engine._chat, engine._end_ids
    close = chat.answer_end[0]
    manager = engine.cache_manager
    inside, room = manager.state.open_segment, manager.max_tail_tokens
    prompts = [chat.question(question.text, inside, room) for question in questions]
    texts = [
        [[*chat.plain(text), close] for text in (question.answer, *question.accepted)]
        for question in questions
    ]
    said: list[list[int]] = [[] for _ in questions]  # greedily, as far as is known
    right = [False] * len(questions)
    open_ = list(range(len(questions)))
    while open_:
        tries = {}
        for index in open_:
            fitting = (t for t in texts[index] if t[: len(said[index])] == said[index])
            if (text := next(fitting, None)) is not None:
                tries[index] = text
        chosen = _greedy(engine, [(prompts[index], text) for index, text in tries.items()])
        open_ = []
        for (index, text), tokens in zip(tries.items(), chosen, strict=True):
            wrong = [at for at, (a, b) in enumerate(zip(tokens, text, strict=True)) if a != b]
            if not wrong or (wrong == [len(text) - 1] and tokens[-1] in ends):
                right[index] = True
            else:
                said[index] = [*text[: wrong[0]], tokens[wrong[0]]]
                open_.append(index)
    return right


def _greedy(
    engine: VideoStreamingInference, rows: list[tuple[list[int], list[int]]], batch: int = 64
) -> list[list[int]]:
    """For each (prompt, text) the likeliest token at each place of the text, given all before."""
    chosen: list[list[int]] = []
    model, manager = engine.model, engine.cache_manager
    start = torch.tensor(manager.ledger.next_position)[:, None]
    for first in range(0, len(rows), batch):
        some = rows[first : first + batch]
        shared = 1  # prompts begin alike: computed once, the rest in a batch behind it
        shortest = min(len(prompt) for prompt, _ in some)
        while shared < shortest - 1 and len({tuple(p[: shared + 1]) for p, _ in some}) == 1:
            shared += 1
        longest = max(len(prompt) + len(text) for prompt, text in some) - shared
        ids = [[*p[shared:], *t] for p, t in some]
        ids = [row + [0] * (longest - len(row)) for row in ids]  # behind all that is read
        with manager.question_fork(shared, longest) as fork:
            model.stream_forward(
                model.embed_tokens(some[0][0][:shared])[None], start + torch.arange(shared), fork
            )
            with fork.branch(longest, len(some)) as branch:
                hidden = model.stream_forward(
                    model.embed_tokens(torch.tensor(ids)),
                    start + torch.arange(shared, shared + longest),
                    branch,
                )
        for (prompt, text), row in zip(some, hidden, strict=True):
            at = len(prompt) - shared - 1
            chosen.append(model.logits(row[at : at + len(text)]).argmax(-1).tolist())
    return chosen


class Dataset:
    """Questions on the end of a stream of a drawn world, the same for every memory compared."""

    def __init__(self, pictures: WorldPictures, frames: int, seed: int, most: int) -> None:
        stamps = [index / pictures.fps for index in range(frames)]
        found: list[Item] = []
        for turn in range(most):
            found += make_items(pictures.world, stamps, f"{seed} {turn}")
            if len(found) >= most or not found:
                break
        self.items = found[:most]

    @staticmethod
    def settled(pictures: WorldPictures, step: int) -> int:
        """The most frames, in steps, at whose end nothing has just come or gone."""
        for frames in range(pictures.frames // step * step, step, -step):
            if make_items(pictures.world, [n / pictures.fps for n in range(frames)], 0):
                return frames
        return pictures.frames

    def share_right(self, engine: VideoStreamingInference) -> float | None:
        """Of 0 to 1; None where the moment has no question."""
        if not self.items:
            return None
        return sum(grade(engine, [item.question for item in self.items])) / len(self.items)
