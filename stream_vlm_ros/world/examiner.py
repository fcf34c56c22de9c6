# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the demo's client asks, and whether an answer was right."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol


@dataclass(frozen=True)
class Question:
    """A question in plain English; with ``choices``, one of them is to be picked."""

    text: str
    choices: tuple[str, ...] = ()


class Verdict(NamedTuple):
    """Whether an answer is right (None: nobody knows), and what would have been."""

    right: bool | None = None
    truth: str = ""


class Examiner(Protocol):
    """Asks about one source. Times are seconds of the source, from its first frame."""

    exact: bool  # the truth is known: ask right after a chunk, before the memory moves on
    every: float  # seconds between two questions, if nothing else is asked for

    def question(self, time: float) -> Question | None:
        """What to ask a memory whose newest frame is of ``time``; None: nothing just now."""

    def judge(self, question: Question, answer: str, time: float) -> Verdict:
        """Whether ``answer`` is right, the memory's newest frame being of ``time`` by then."""


class VideoExaminer:
    """Asks of any video what can be asked of any video; the truth is not known."""

    exact = False
    every = 5.0
    QUESTIONS: tuple[Question, ...] = (
        Question("What do you see now?"),
        Question("Is this indoors or outdoors?", ("indoors", "outdoors")),
        Question("What has happened so far?"),
        Question("Have you seen a person?", ("yes", "no")),
        Question("What was there ten seconds ago?"),
        Question("What moved, and which way?"),
        Question("Have you seen a vehicle?", ("yes", "no")),
        Question("What changed in the last seconds?"),
    )

    def __init__(self) -> None:
        self._asked = 0

    def question(self, time: float) -> Question:
        question = self.QUESTIONS[self._asked % len(self.QUESTIONS)]
        self._asked += 1
        return question

    def judge(self, question: Question, answer: str, time: float) -> Verdict:
        return Verdict()


class ListExaminer(VideoExaminer):
    """Asks the questions given, in turn."""

    def __init__(self, texts: list[str]) -> None:
        super().__init__()
        self.QUESTIONS = tuple(Question(text) for text in texts)


class WorldExaminer:
    """Asks about a drawn world, whose truth is known.

    Args:
        world: as given to ``open_source`` after ``world:``.
        sample_fps: frames per second that the memory takes; it decides what was seen.
    """

    exact = True
    every = 2.0

    def __init__(self, world: str, sample_fps: float = 2.0) -> None:
        from stream_vlm_ros.world.source import WorldSource

        source = WorldSource(world)
        self._world = source.world
        self._random = random.Random(f"questions {source.seed}")
        self._step = 1 / sample_fps
        self._asked = 0
        self._pending: tuple[float, Any] | None = None  # when the last question was made, and it

    def question(self, time: float) -> Question | None:
        from stream_vlm_ros.world import questions

        history = self._seen_by(time)
        first = self._asked % len(questions.CORE)
        kinds = (questions.CORE + questions.CORE)[first : first + len(questions.CORE)]
        made = (questions.ask(self._random, history, kind) for kind in kinds)
        found = next(filter(None, made), None)
        if found is None:  # something has just come or gone: no question has one clear answer
            return None
        self._asked += 1
        self._pending = time, found
        return Question(found.text, found.choices if found.type == "choice" else ())

    def judge(self, question: Question, answer: str, time: float) -> Verdict:
        made_at, found = self._pending or (time, None)
        if found is not None and found.text != question.text:
            found = None
        if found is not None and abs(time - made_at) > 1e-3:
            found = self._again(found, time)
        return Verdict() if found is None else Verdict(found.is_right(answer), found.answer)

    def _seen_by(self, time: float) -> Any:
        """What a memory has seen whose newest frame is of ``time``."""
        from stream_vlm_ros.world import questions

        count = max(2, round(time / self._step) + 1)
        stamps = [index * self._step for index in range(count)]
        return questions.History(self._world.sightings(stamps[-1]), stamps)

    def _again(self, found: Any, time: float) -> Any:
        """The same question at a later time, with the truth by then; None: it has none now.

        Chunks that were waiting for the model come before a question, so that the memory has often
        seen more by the time it is asked than when the question was made.
        """
        from stream_vlm_ros.world import questions

        history, draws = self._seen_by(time), random.Random(0)
        for _ in range(self._DRAWS):
            one = questions.ask(draws, history, found.type)
            if one is None:
                return None
            if one.text == found.text:
                return one
        return None

    _DRAWS = 5000  # a type has some hundreds of phrasings and subjects; a draw takes 20 us


def examples_for(source: str) -> list[str]:
    """Three questions that anybody can ask about ``source``."""
    if source.startswith("world:"):
        return ["What do you see now?", "What appeared first?", "What was visible 6 seconds ago?"]
    questions = [one.text for one in VideoExaminer.QUESTIONS if not one.choices]
    return questions[:3]


def examiner_for(source: str, questions: list[str], sample_fps: float = 2.0) -> Examiner:
    """Who asks about ``source`` (as given to ``open_source``); ``questions`` instead if given."""
    if questions:
        return ListExaminer(questions)
    if source.startswith("world:"):
        return WorldExaminer(source.removeprefix("world:"), sample_fps)
    return VideoExaminer()
