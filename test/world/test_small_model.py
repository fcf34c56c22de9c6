# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The shipped model answers about worlds it never saw: breaks where the engine breaks.

Small versions of `stream-vlm demo-model evaluate`. The thresholds lie below the model's
accuracies (see its card) by more than chance, and far above what it reaches with wrong positions,
patches or leftovers of questions.
"""

import random

import pytest

from stream_vlm_ros.world.evaluate import engine_for, load, run, settled, watch
from stream_vlm_ros.world.questions import CORE, TYPES, ask
from stream_vlm_ros.world.world import World

SEED = 2_000_000


@pytest.fixture(scope="module")
def small():
    return load()


@pytest.fixture(scope="module")
def scores(small):
    return run(*small, span=24.0, worlds=5, each=1, seed=SEED, streaming=False)["end"]


def test_it_answers_questions_about_half_a_minute(scores):
    assert scores["questions"] >= 80
    assert scores["core_mean"] >= 96.0


def test_it_chooses_among_answers(scores):
    assert scores["choice_mean"] >= 96.0


def test_it_answers_in_the_segmented_layout(small):
    found = run(
        *small, span=16.0, worlds=3, each=1, seed=SEED + 50, layout="segmented", streaming=False,
        choose=False, types=("now", "first", "last", "before", "after", "was_there", "where"),
    )["end"]  # fmt: skip
    assert found["core_mean"] >= 80.0


def test_questions_asked_while_streaming_leave_no_trace(small):
    """After questions in between, every answer and the memory are those of a stream left alone."""
    world, rng = World(SEED + 60), random.Random(1)
    stamps = [index / 2 for index in range(32)]
    asked, alone = engine_for(*small), engine_for(*small)
    for _ in watch(asked, world, stamps, (640, 480)):
        before = asked.get_cache_info()["cache_seq_length"]
        asked.ask("What do you see now?", max_new_tokens=12)
        asked.ask_choice("Was there a red star?", ["yes", "no"])
        assert asked.get_cache_info()["cache_seq_length"] == before
    for _ in watch(alone, world, stamps, (640, 480)):
        pass
    history = settled(world, stamps, 32)
    questions = [ask(rng, history, type_) for type_ in TYPES]
    for question in filter(None, questions):
        choices = list(question.choices)
        assert (
            asked.ask(question.text, max_new_tokens=16)[0]
            == alone.ask(question.text, max_new_tokens=16)[0]
        )
        one, other = (engine.ask_choice(question.text, choices)[1] for engine in (asked, alone))
        assert one["scores"] == pytest.approx(other["scores"], abs=1e-3)


def test_the_answer_follows_what_was_seen_since(small):
    world = World(SEED + 70, signs=0.0)
    stamps = [index / 2 for index in range(60)]
    engine, right, changes, total, before = engine_for(*small), 0, 0, 0, None
    for count in watch(engine, world, stamps, (640, 480)):
        history = settled(world, stamps, count)
        if history is None or not history.seen:
            continue
        truth = history.seen[-1].thing.phrase
        answer, _ = engine.ask("What appeared last?", max_new_tokens=12)
        right += answer == truth
        changes += truth != before
        before = truth
        total += 1
    assert changes >= 3
    assert right >= 0.9 * total


@pytest.mark.parametrize(
    "question", ["How are you?", "Tell me a joke.", "Was there a dog?", "xyzzy 日本語 {}"]
)
def test_it_says_that_it_does_not_understand_what_is_not_of_its_world(small, question):
    engine = engine_for(*small)
    for _ in watch(engine, World(SEED + 80), [0.0, 0.5, 1.0, 1.5], (640, 480)):
        pass
    assert engine.ask(question, max_new_tokens=12)[0] == "I do not understand."


def test_every_core_type_is_asked(scores):
    assert set(CORE) <= set(scores["asked"])


def test_a_pause_changes_no_answer_of_any_core_type(small):
    """All of it over more worlds and pauses: bench/pauses.py."""
    world, rng = World(SEED + 80), random.Random(2)
    stamps = [index / 2 for index in range(64)]
    pauses = {"none": 0.0, "24 h": 86_400.0, "clock set": 1.79e9}
    engines = {name: engine_for(*small) for name in pauses}
    for first in range(0, 64, 4):
        frames = [world.render(t, 640, 480) for t in stamps[first : first + 4]]
        for name, pause in pauses.items():
            late = pause if first >= 32 else 0.0
            shifted = [late + t for t in stamps[first : first + 4]]
            engines[name].append_video_chunk(frames, timestamps=shifted)
    history = settled(world, stamps, 64)
    for question in filter(None, [ask(rng, history, type_) for type_ in CORE for _ in range(2)]):
        answers = {
            name: engine.ask(question.text, max_new_tokens=16)[0]
            for name, engine in engines.items()
        }
        assert set(answers.values()) == {answers["none"]}, (question.type, answers)
