# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Question files about a drawn world."""

import itertools

import pytest

from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.world.question_file import question_file
from stream_vlm_ros.world.world import World


def test_what_is_right_is_what_the_world_shows_at_that_time():
    world, checked = World(7), 0
    for seed in range(8):
        for entry in question_file("world:7", 90, every=3, seed=seed)["questions"]:
            if entry["type"] == "now":
                shown = [sighting.thing.phrase for sighting in world.visible(entry["at"])]
                orders = [" and ".join(order) for order in itertools.permutations(shown)]
                assert {order or "nothing" for order in orders} & set(entry["expect"])
                checked += 1
    assert checked >= 5


def test_a_replay_sees_all_frames_up_to_the_question():
    times = [entry["at"] for entry in question_file("world:7", 60, every=5)["questions"]]
    assert len(times) >= 6
    assert all((2 * time + 1) % 2 == 0 for time in times)  # frames 0, 0.5, ... up to it: pairs
    assert all(later - earlier >= 5 for earlier, later in itertools.pairwise(times))


def test_it_is_the_same_each_time():
    assert question_file("world:7", 60) == question_file("world:7", 60)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(end=60, every=0.5), "too many"),
        (dict(end=1), "no time"),
        (dict(end=60, fps=0), "above 0"),
        (dict(end=60, every=float("nan")), "too many"),
    ],
)
def test_what_cannot_be_is_refused(arguments, words):
    with pytest.raises(InvalidParameterError, match=words):
        question_file("world:7", **arguments)
