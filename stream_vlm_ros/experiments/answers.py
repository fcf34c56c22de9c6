# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Answers are judged where the truth is known: the trained small model on its drawn world.

Random weights say nothing, and the small model knows nothing but its world. So an experiment whose
own answers cannot be judged streams a drawn world to the small model, too, through a memory of the
same kind.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterable, Sequence
from typing import Any

from stream_vlm_ros.engine import VideoStreamingInference
from stream_vlm_ros.world.questions import NOT_UNDERSTOOD, Question

from .context import Context
from .dataset import PERCEPTION, Dataset, make_items
from .model_under_test import ModelUnderTest
from .pictures import WorldPictures

ENOUGH = 0.9  # share of right answers that passes
# A minute of a world, through a memory that holds a third of it.
SMALL: dict[str, Any] = {
    "model": None, "shape": None, "processor": None, "source": "world:7", "size": None,
    "min_pixels": None, "max_pixels": None, "fps": 1.0, "frames": 60, "chunk_frames": 4,
    "cap": 250, "first_text": 0, "question": None,
}  # fmt: skip

# What models say of a picture without text, in plain words: see `plain`.
_THERE = r"(there (is|are|was|were) |i (can )?see )?"
_TEXT = r"((visible|readable|legible|discernible|clear) )*(text|texts|words?|writing)"
_NO_TEXT = re.compile(
    rf"{_THERE}(no|not any) {_TEXT}"
    r"( (is|are|was|were|can be|visible|readable|legible|present|shown|displayed|seen|read|found|"
    r"detected|in|on|the|this|screen|image|picture|video|frames?))*"
    rf"|the (screen|image|picture|video|frames?) (does not|do not|doesn t) \w+ any {_TEXT}.*"
    r"|i (do not|don t|cannot|can not|can t) (understand|see|read)( .*)?"
    r"|none|nothing|not seen|n a"
)


def plain(line: str) -> str:
    """Without case, punctuation and further spaces."""
    return re.sub(r"[\W_]+", " ", line.lower()).strip()


def merge(texts: Iterable[str]) -> list[str]:
    """The lines of all texts in order, each once; those that say that there is none are dropped."""
    found: dict[str, str] = {}
    for text in texts:
        for line in text.splitlines():
            key = plain(line)
            if key and not _NO_TEXT.fullmatch(key):
                found.setdefault(key, line.strip())
    return list(found.values())


def is_answer(text: str) -> bool:
    return plain(text) not in ("", plain(NOT_UNDERSTOOD))


def small_context(context: Context, **changes: Any) -> Context:
    """The same experiment for the small model on a drawn world; it shares record and screen."""
    options = argparse.Namespace(**{**vars(context.options), **SMALL, **changes})
    # A minute of a small model is over before anything has been compiled.
    quick = {"compile": False, "question_path": "eager"}
    small = Context(options, context.record, context.screen, **quick)
    small.model = ModelUnderTest.load(device=options.device, dtype=options.dtype)
    return small


def settled(context: Context) -> int:
    """Frames to stream: where answers are judged, so many that nothing has just come or gone."""
    world = context.world() if context.truth_is_known else None
    if world is None:
        return int(context.options.frames)
    return Dataset.settled(world, context.options.chunk_frames)


def questions_now(pictures: WorldPictures, stamps: Sequence[float], seed: int) -> list[Question]:
    """About what frames at ``stamps`` have just shown; none where something has just changed."""
    items = make_items(pictures.world, stamps, seed, each=5, types=PERCEPTION)
    return [item.question for item in items]


def is_right(question: Question, answer: str) -> bool:
    return answer.strip() in (question.answer, *question.accepted)


def judge(context: Context, what: str, right: int, asked: int, wanted: float = ENOUGH) -> None:
    """Judge answers whose truth is known."""
    name = f"right answers: {what}"
    context.record.summary[name] = {"right": right, "asked": asked}
    context.record.check(
        name,
        right >= wanted * asked if asked else None,
        f"{right} of {asked}" if asked else "nothing to ask at that moment",
        f">= {100 * wanted:.0f} %",
    )


def judge_present(
    context: Context, engine: VideoStreamingInference, pictures: WorldPictures, frames: int
) -> None:
    """Ask what is to be seen at the end of a stream of so many frames."""
    stamps = [index / pictures.fps for index in range(frames)]
    questions = questions_now(pictures, stamps, context.options.seed)
    right = sum(is_right(one, engine.ask(one.text, 24)[0]) for one in questions)
    judge(context, f"{context.model.card.name} about {pictures.name}", right, len(questions))
