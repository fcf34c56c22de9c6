# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Answers about the drawn world hold when computed again from what each frame shows."""

import os
import random
import re
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st

from stream_vlm_ros.world.questions import (
    CORE,
    NOT_SEEN,
    NUMBERS,
    TYPES,
    History,
    Question,
    ask,
)
from stream_vlm_ros.world.world import SHAPES, Sighting, World

STILL = {
    "origin": (0.5, 0.5),
    "target": (0.5, 0.5),
    "radius": 0.1,
    "angle": 0.0,
    "region": "in the middle",
    "last_region": "in the middle",
    "direction": "",
}
SEEDS = st.integers(min_value=0, max_value=1_000_000)


class Watcher:
    """Truth from frames alone: which names are in view on each frame, in order."""

    def __init__(self, world, stamps):
        self.stamps = stamps
        self.views = [[s.thing for s in world.visible(t)] for t in stamps]
        self.appeared, before = [], set()
        for view in self.views:
            names = {thing.name for thing in view}
            self.appeared += [thing for thing in view if thing.name not in before]
            before = names

    def phrase(self, view):
        things = sorted(view, key=lambda thing: thing.name)
        return " and ".join(thing.phrase for thing in things) or "nothing"

    def at(self, t):
        index = max(i for i, stamp in enumerate(self.stamps) if stamp <= t + 1e-9)
        return self.phrase(self.views[index])

    def neighbour(self, name, step):
        index = [thing.name for thing in self.appeared].index(name) + step
        return self.appeared[index].phrase if 0 <= index < len(self.appeared) else "nothing"


def seconds_in(text):
    number, unit = re.search(r"(\d+) (second|minute)", text).groups()
    return int(number) * (60 if unit == "minute" else 1)


def named(text):
    """The thing a question names, by its last two words, or "sign"."""
    words = text.rstrip("?").split()
    return "sign" if "sign" in words else " ".join(words[-2:])


@settings(max_examples=60)
@given(seed=SEEDS, frames=st.integers(4, 130), slow=st.sampled_from([1.0, 40.0]))
def test_answers_agree_with_what_the_frames_show(seed, frames, slow):
    world = World(seed, pace=slow)
    stamps = [slow * index / 2 for index in range(frames)]
    history = History(world.sightings(stamps[-1]), stamps)
    if not history.settled:
        return
    watcher, rng = Watcher(world, stamps), random.Random(seed)
    names = [thing.name for thing in watcher.appeared]
    for type_ in TYPES:
        question = ask(rng, history, type_)
        if question is None:
            continue
        text, answer = question.text, question.answer
        if type_ == "now":
            assert answer == watcher.phrase(watcher.views[-1])
        elif type_ == "ago":
            assert answer == watcher.at(stamps[-1] - seconds_in(text))
        elif type_ == "at":
            assert answer == watcher.at(seconds_in(text))
        elif type_ in ("first", "last"):
            seen = watcher.appeared
            expected = seen[0 if type_ == "first" else -1].phrase if seen else "nothing"
            assert answer == expected
        elif type_ in ("before", "after"):
            name = named(text)
            if answer == NOT_SEEN:
                assert name not in names
            else:
                assert names.count(name) == 1
                assert answer == watcher.neighbour(name, -1 if type_ == "before" else 1)
        elif type_ == "how_many":
            assert answer == NUMBERS[len(set(names) - {"sign"})]
        elif type_ == "sign":
            texts = [thing.text for thing in watcher.appeared if thing.is_sign]
            assert answer == (texts[-1] if texts else NOT_SEEN)


@settings(max_examples=60)
@given(seed=SEEDS, frames=st.integers(4, 130))
def test_choices_hold_the_answer_once_and_no_other_right_one(seed, frames):
    world, rng = World(seed), random.Random(seed)
    stamps = [index / 2 for index in range(frames)]
    history = History(world.sightings(stamps[-1]), stamps)
    for type_ in TYPES:
        question = ask(rng, history, type_)
        if question is None:
            assert not history.settled or type_ != "now"
            continue
        assert question.type == type_
        assert len(set(question.choices)) == len(question.choices) >= 2
        assert [c for c in question.choices if question.is_right(c)] == [question.answer]


def test_a_history_in_which_something_has_just_come_is_not_settled():
    world = World(5)
    sighting = world.sightings(60.0)[3]
    first = next(t for t in (index / 2 for index in range(200)) if t >= sighting.start)
    stamps = [index / 2 for index in range(int(first * 2) + 1)]
    history = History(world.sightings(stamps[-1]), stamps)
    assert not history.settled
    assert all(ask(random.Random(1), history, type_) is None for type_ in CORE)


def test_an_answer_is_right_whatever_its_case_and_closing_stop():
    question = Question("?", "a red star and a sign", "now", accepted=("a sign and a red star",))
    assert question.is_right(" A red star and a sign. ")
    assert question.is_right("a sign and a red star")
    assert not question.is_right("a red star")


def test_once_every_shape_was_seen_questions_still_end_and_name_none_that_was_not():
    sightings = [
        Sighting(shape, start=4.0 * k, end=4.0 * k + 3.0, **STILL) for k, shape in enumerate(SHAPES)
    ]
    sightings.append(Sighting(SHAPES[0], 4.0 * len(SHAPES), 999.0, **STILL))
    sightings.append(Sighting(SHAPES[1], 4.0 * len(SHAPES) + 2, 999.0, **STILL))
    history = History(sightings, [k / 2 for k in range(8 * len(SHAPES) + 40)])
    assert history.settled and len(history.visible(history.now)) == 2
    rng = random.Random(7)
    asked = {type_: [ask(rng, history, type_) for _ in range(60)] for type_ in TYPES}
    assert all(asked["now"]), "two things in view can be asked about, whatever was seen"
    for question in filter(None, (q for several in asked.values() for q in several)):
        assert question.answer != NOT_SEEN or question.type == "sign"
        assert question.type != "was_there" or question.answer == "yes"


QUESTIONS_IN_A_PROCESS = """
import os
import random
from stream_vlm_ros.world.questions import TYPES, History, ask
from stream_vlm_ros.world.world import World
for count in range(20, 60, 2):
    stamps = [index / 2 for index in range(count)]
    history = History(World(3).sightings(stamps[-1]), stamps)
    for type_ in TYPES:
        for seed in range(20):
            print(ask(random.Random(seed), history, type_))
"""


def test_equal_seeds_ask_the_same_in_every_process():
    # Python orders sets of strings otherwise in each process, unless this variable says how.
    one, other = (
        subprocess.run(
            [sys.executable, "-c", QUESTIONS_IN_A_PROCESS],
            env=os.environ | {"PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    )
    assert one == other
    assert "type='choice'" in one
