# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Rare things come as stated, and what the exam holds true is what each frame shows."""

from itertools import groupby, islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.world.evaluate import FIRST_SEED
from stream_vlm_ros.world.questions import NUMBERS, History
from stream_vlm_ros.world.rare import (
    AGES,
    CALIBRATION,
    COUNTED,
    HOLISTIC,
    LATE,
    MEASURING,
    NEVER,
    RECALL,
    RareWorld,
    exam,
)
from stream_vlm_ros.world.world import COLUMNS, ROWS, SHAPES, World, region_phrase

SEEDS = st.integers(min_value=0, max_value=1_000_000)
STEP = 0.5  # 2 frames a second


def half_an_hour(seed):
    return RareWorld(seed, hours=0.5)


class Frames:
    """What every frame shows, looked through one by one: {name: (thing, place)} of each."""

    def __init__(self, world):
        count = int(world.length / STEP)
        self.views: list[dict] = []
        self._there: dict[str, list[int]] = {}
        for index in range(count):
            t = index * STEP
            self.views.append({s.thing.name: (s.thing, s.position(t)) for s in world.visible(t)})

    def runs(self, name, now):
        """The stretches of frames up to ``now`` that show it, as (first, last) indices."""
        if name not in self._there:
            self._there[name] = [i for i, view in enumerate(self.views) if name in view]
        seen = [index for index in self._there[name] if index <= round(now / STEP)]
        groups = groupby(enumerate(seen), lambda pair: pair[1] - pair[0])
        runs = [[index for _, index in group] for _, group in groups]
        return [(run[0], run[-1]) for run in runs]

    def appeared(self, first, last):
        """The things in order of appearance from frame to frame; those there at once by name."""
        order, before = [], {}
        for view in self.views[first : last + 1]:
            order += [thing for name, (thing, _) in sorted(view.items()) if name not in before]
            before = view
        return order

    def region(self, name, index):
        """Where it is on a frame: the nearest of the nine places."""
        x, y = self.views[index][name][1]
        column = min(COLUMNS, key=lambda name: abs(COLUMNS[name] - x))
        row = min(ROWS, key=lambda name: abs(ROWS[name] - y))
        return region_phrase(column, row)

    def way(self, name, first, last):
        """Which way it went between two frames."""
        (x, y), (u, v) = (self.views[index][name][1] for index in (first, last))
        if max(abs(u - x), abs(v - y)) < 0.15:
            return "it did not move"
        if abs(u - x) > abs(v - y):
            return "to the right" if u > x else "to the left"
        return "down" if v > y else "up"

    def answer(self, asked, first=0, last=None):
        """The answer that the frames from ``first`` to ``last`` give; None: they do not say."""
        now = round(asked.now / STEP)
        last = now if last is None else last
        if asked.type == "how_many":
            names = {name for view in self.views[: now + 1] for name in view}
            return NUMBERS[len(names - {"sign"})]
        if asked.type == "first":
            return self.appeared(0, now)[0].phrase
        if asked.type in ("earlier", "later"):
            ends = {name: self.runs(name, asked.now)[0][0] for name in asked.things}
            picked = min if asked.type == "earlier" else max
            name = picked(ends, key=ends.get)
            return next(s.phrase for s in SHAPES if s.name == name)
        (name,) = asked.things
        runs = [run for run in self.runs(name, asked.now) if first <= run[0] <= run[1] <= last]
        if asked.type == "was_there":
            return "yes" if runs else "no"
        if not runs:
            return "not seen"
        begin, end = runs[-1]
        if asked.type == "where_left":
            return self.region(name, end)
        if asked.type == "direction":
            return self.way(name, begin, end)
        if asked.type == "left_ago":
            gone = (now - end) * STEP
            count, unit = (round(gone), "second") if gone < 99.5 else (round(gone / 60), "minute")
            return f"{count} {unit}{'' if count == 1 else 's'} ago"
        if asked.type == "together":
            with_it = {n for view in self.views[begin : end + 1] for n in view} - {name}
            assert len(with_it) < 2
            views = [view for view in self.views[begin : end + 1] if with_it & set(view)]
            return views[0][with_it.pop()][0].phrase if views else "nothing"
        order = self.appeared(first, last)
        place = [thing.name for thing in order].index(name) + (-1 if asked.type == "before" else 1)
        return order[place].phrase if 0 <= place < len(order) else None


@settings(max_examples=5)
@given(seed=SEEDS)
def test_answers_and_evidence_agree_with_a_look_through_all_frames(seed):
    world = half_an_hour(seed)
    frames = Frames(world)
    types = set()
    for asked in exam(world):
        types.add(asked.type)
        assert asked.question.answer == frames.answer(asked), asked
        if asked.type in COUNTED or asked.band == NEVER:
            assert asked.evidence == ()
            continue
        if asked.type in RECALL:
            begin, end = frames.runs(asked.things[0], asked.now)[-1]
            assert asked.evidence == ((begin * STEP, end * STEP),)
        for name, stretch in zip(asked.things, asked.evidence, strict=True):
            runs = frames.runs(name, asked.now)
            assert (stretch.first / STEP, stretch.last / STEP) in runs
    assert types >= {*RECALL, *HOLISTIC}  # up to twenty can be counted, which is soon exceeded


@settings(max_examples=5)
@given(seed=SEEDS)
def test_what_is_needed_for_an_answer_is_enough_for_it(seed):
    world = half_an_hour(seed)
    frames = Frames(world)
    for asked in exam(world):
        if asked.type in RECALL and asked.band != NEVER:
            (needed,) = asked.needed
            within = round(needed.first / STEP), round(needed.last / STEP)
            assert frames.answer(asked, *within) == asked.question.answer, asked


@settings(max_examples=5)
@given(seed=SEEDS)
def test_ages_fall_within_the_band_that_is_stated(seed):
    world = half_an_hour(seed)
    frames, bands = Frames(world), set()
    for asked in exam(world):
        assert asked.now < world.length
        index = round(asked.now / STEP)
        assert index % 2 == 1, "asked when a grid is whole"
        if asked.type in RECALL and asked.band != NEVER:
            bands.add(asked.band)
            low, high = AGES[asked.band]
            last = frames.runs(asked.things[0], asked.now)[-1][1]
            assert asked.age == (index - last) * STEP
            assert low <= asked.age < high
            # It is the last for good, or until then: nothing of it came since.
            assert all(asked.things[0] not in view for view in frames.views[last + 1 : index + 1])
    assert bands == {"1-10 min", "10-60 min"}


@settings(max_examples=20)
@given(seed=SEEDS, shape=st.sampled_from([(0.2, 9, 3), (0.5, 20, 4), (1.0, 30, 2), (6.0, 20, 4)]))
def test_rare_things_come_within_their_window_alone_and_others_never(seed, shape):
    hours, once, repeated = shape
    world = RareWorld(seed, hours=hours, once=once, repeated=repeated, never=0 if once > 20 else 8)
    assert len(world.rare) == once + repeated
    assert sum(rare.once for rare in world.rare) == once
    reserved = [rare.thing for rare in world.rare] + list(world.never)
    assert sorted([*reserved, *world.usual], key=SHAPES.index) == list(SHAPES)
    assert len({thing.name for thing in reserved}) == len(reserved)
    starts = {}
    for sighting in world.sightings(world.length):
        starts.setdefault(sighting.thing.name, []).append(sighting.start)
    for rare in world.rare:
        assert rare.window.first == rare.due[0] and len(rare.due) in (1, 2, 3)
        assert rare.window.last == rare.due[-1] + LATE
        for start, due in zip(starts.get(rare.thing.name, []), rare.due, strict=False):
            assert due <= start <= due + LATE
        # All of them come but those that are due when the world ends.
        due_before_the_end = [due for due in rare.due if due + LATE < world.length]
        assert len(due_before_the_end) <= len(starts.get(rare.thing.name, [])) <= len(rare.due)
    assert not any(thing.name in starts for thing in world.never)
    if hours >= 1:
        assert all(len(starts[thing.name]) > 1 for thing in world.usual)


def test_six_hours_reach_every_age_with_enough_questions_over_the_worlds_for_measuring():
    asked = {}
    for seed in MEASURING:
        for one in exam(RareWorld(seed)):
            asked[one.type, one.band] = asked.get((one.type, one.band), 0) + 1
    assert len(MEASURING) >= 8
    for band in AGES:
        for type_ in RECALL:
            assert asked[type_, band] >= 150
    assert sum(count for (_, band), count in asked.items() if band == NEVER) >= 600


def test_worlds_for_calibration_measuring_and_evaluation_are_disjoint():
    seeds = {*CALIBRATION, *MEASURING}
    assert len(seeds) == len(CALIBRATION) + len(MEASURING)
    assert min(seeds) > FIRST_SEED + 100_000
    stories = {
        tuple(s.start for s in world.sightings(60.0))
        for seed in (*CALIBRATION, *MEASURING)
        for world in (RareWorld(seed, hours=0.5), World(seed))
    }
    assert len(stories) == 2 * len(seeds), "and none is the plain world of its seed"


@settings(max_examples=5)
@given(seed=SEEDS, numbers=st.lists(st.integers(0, 1799), min_size=2, max_size=6))
def test_a_grid_is_drawn_again_from_its_number_whatever_was_drawn_before(seed, numbers):
    one, other = half_an_hour(seed), half_an_hour(seed)
    drawn = {number: one.grid(number) for number in numbers}
    for number in reversed(numbers):
        assert np.array_equal(drawn[number], other.grid(number))
        assert drawn[number].shape == (2, 112, 140, 3)
    assert exam(one) == exam(other)


def test_a_grid_holds_the_two_frames_of_its_second():
    world = half_an_hour(3)
    stream = list(islice(world.frames(fps=2.0, width=140, height=112), 40))
    for number in range(20):
        pair = [stream[2 * number].image, stream[2 * number + 1].image]
        assert np.array_equal(world.grid(number), np.stack(pair))


@settings(max_examples=5)
@given(seed=SEEDS)
def test_questions_are_asked_when_nothing_has_just_come_or_gone(seed):
    world = RareWorld(seed, hours=0.2, once=8, repeated=1)
    for asked in exam(world):
        stamps = [index * STEP for index in range(round(asked.now / STEP) + 1)]
        assert History(world.sightings(stamps[-1]), stamps).settled


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"hours": 0.01}, "hours is 0.01"),
        ({"hours": float("nan")}, "hours is nan"),
        ({"once": 40}, "must be left to come as usual"),
        ({"never": -1}, "-1 things are reserved"),
        ({"hours": 0.1}, "24 rare things are too many for 360 s"),
    ],
)
def test_a_world_that_cannot_be_is_refused_in_words(options, said):
    with pytest.raises(InvalidParameterError, match=said):
        RareWorld(1, **options)


@settings(max_examples=20)
@given(seed=SEEDS, times=st.lists(st.floats(0, 900), min_size=1, max_size=20))
def test_what_is_visible_is_every_sighting_under_way(seed, times):
    world, other = World(seed), World(seed)
    story = other.sightings(1000.0)
    for t in times:
        assert world.visible(t) == [s for s in story if s.start <= t < s.end]
        assert world.sightings(t) == [s for s in story if s.start <= t]
