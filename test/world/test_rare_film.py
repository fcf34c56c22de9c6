# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A world with rare things as footage: its pictures, and what its questions rest on."""

from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import pytest

from stream_vlm_ros.world.rare import NEVER, RECALL, RareWorld, exam
from stream_vlm_ros.world.rare_film import RareFilm

MADE = {"once": 6, "repeated": 1, "never": 3}


@pytest.fixture(scope="module")
def world():
    return RareWorld(5, hours=0.15, **MADE)


def test_its_frames_are_the_worlds_wherever_they_are_drawn(world):
    here = RareFilm(5, 0.15, size=(70, 56), **MADE)
    with ThreadPoolExecutor(2) as drawers:
        there = RareFilm(5, 0.15, size=(70, 56), drawers=drawers, jobs=2, **MADE)
        both = zip(here.frames(), there.frames(), strict=True)
        for number, ((one, at), (other, then)) in enumerate(islice(both, 300)):
            assert at == then == number / 2
            assert np.array_equal(one, other)
            assert np.array_equal(one, world.render(at, 70, 56))


def test_it_lasts_as_long_as_the_world(world):
    film = RareFilm(5, 0.15, size=(28, 28), **MADE)
    stamps = [at for _, at in film.frames()]
    assert stamps == [k / 2 for k in range(2 * world.grids)]


def test_a_question_knows_all_that_shows_its_thing_and_what_of_it_counts(world):
    asked = [one for one in exam(world) if one.type in RECALL]
    film = RareFilm(5, 0.15, **MADE)
    assert len(film.probes) == len(asked) > 30
    for probe, one in zip(film.probes, asked, strict=True):
        assert (probe.text, probe.at) == (one.question.text, one.now)
        assert probe.shown == tuple(map(tuple, world.shown(one.things[0], one.now)))
        assert (probe.shown == ()) == (one.band == NEVER)
        assert probe.evidence == probe.shown[-1:]  # the last visit is what is asked about
        assert all(last <= probe.at for _, last in probe.shown)
        assert probe.wanted == ("best" if one.type == "was_there" else "newest")
