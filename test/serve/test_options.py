# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How many sessions a key may have."""

import random
from collections import Counter

import pytest

from stream_vlm_ros.serve.options import Limits


@pytest.mark.parametrize(
    ("sessions", "keys", "share"), [(16, 2, 8), (3, 2, 2), (1, 2, 1), (16, 1, 99), (16, 0, 99)]
)
def test_of_several_keys_none_takes_all_sessions_and_a_single_one_may(sessions, keys, share):
    limits, others = Limits(max_sessions=sessions), {"b": 1} if keys > 1 else {}
    assert not limits.why_not_one_more("a", {"a": share - 1, **others}, keys)
    assert bool(limits.why_not_one_more("a", {"a": share, **others}, keys)) is (keys > 1)


@pytest.mark.parametrize("said", [0, 5])
def test_what_is_said_holds_however_many_keys_there_are(said):
    limits = Limits(max_sessions=16, max_sessions_per_key=said)
    assert not limits.why_not_one_more("a", {"a": 4}, 99)
    assert bool(limits.why_not_one_more("a", {"a": 5}, 99)) is bool(said)


@pytest.mark.parametrize(("sessions", "keys"), [(16, 10), (16, 16), (60, 3), (5, 9), (2, 2)])
def test_whoever_comes_first_as_many_keys_as_half_of_the_sessions_get_one(sessions, keys):
    limits, draw = Limits(max_sessions=sessions), random.Random(0)
    for _ in range(50):
        held, greedy = Counter(), [str(draw.randrange(keys)) for _ in range(4 * sessions)]
        for owner in [*greedy, *map(str, range(keys))]:
            if sum(held.values()) < sessions and not limits.why_not_one_more(owner, held, keys):
                held[owner] += 1
        assert len(held) >= min(keys, sessions // 2)


@pytest.mark.parametrize("keys", [16, 1000])
def test_keys_that_open_no_session_keep_no_robot_from_its_second_camera(keys):
    limits, held = Limits(max_sessions=16), Counter()
    for robot in "abcdefgh":  # each with two
        for _ in range(2):
            assert not limits.why_not_one_more(robot, held, keys)
            held[robot] += 1


def test_where_one_key_takes_all_it_may_the_first_sessions_of_others_are_kept():
    limits, held = Limits(max_sessions=16), {"a": 8, "b": 2}
    # Of 8 that are kept two are taken: with 6 for others, the 16 are full.
    assert "keys that have none" in limits.why_not_one_more("b", held, 1000)
    assert not limits.why_not_one_more("b", {"a": 8, "b": 1}, 1000)
    assert not limits.why_not_one_more("c", held, 1000)
