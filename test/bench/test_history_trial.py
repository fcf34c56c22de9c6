# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The trial's arithmetic: intervals, precision, which episodes are read."""

import numpy as np
import pytest
from history_trial import (
    MAX_GRIDS,
    choose,
    names_evidence,
    read_with_present,
)
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stream_vlm_ros.experiments.intervals import wilson
from stream_vlm_ros.history.episodes import Episode, hits_of
from stream_vlm_ros.world.questions import Question
from stream_vlm_ros.world.rare import Asked, Stretch


@given(asked=st.integers(1, 400), share=st.floats(0, 1))
def test_the_interval_holds_the_shares_that_the_score_test_does_not_reject(asked, share):
    right = round(share * asked)
    low, high = wilson(right, asked)
    assert 0 <= low <= right / asked + 1e-12 and right / asked - 1e-12 <= high <= 1
    for bound in (low, high):
        if 1e-9 < bound < 1 - 1e-9:  # there the test's statistic is the normal quantile
            spread = (bound * (1 - bound) / asked) ** 0.5
            assert abs(right / asked - bound) / spread == pytest.approx(1.959964, rel=1e-4)


def test_no_mistake_in_ten_leaves_a_quarter_open():
    # Brown, Cai and DasGupta (2001): n = 10, no success, Wilson: 0 to 0.278.
    assert wilson(0, 10) == pytest.approx((0.0, 0.2775), abs=1e-4)


SCORES = arrays.arrays(np.float32, st.integers(5, 80), elements=st.floats(0, 8, width=32))


@given(scores=SCORES, threshold=st.floats(1, 7))
def test_the_newest_episode_ends_with_the_newest_hit_and_the_best_holds_the_highest(
    scores, threshold
):
    hits = hits_of(scores, threshold)
    newest, best = (choose(hits, scores, type_) for type_ in ("where_left", "was_there"))
    if not hits:
        assert scores.max() < threshold and newest == best == []
        return
    assert newest[0].last == max(k for k, score in enumerate(scores) if score >= threshold)
    assert scores[best[0].first : best[0].last + 1].max() == scores.max()


@given(scores=SCORES, threshold=st.floats(1, 7), type_=st.sampled_from(["earlier", "where_left"]))
def test_what_is_read_is_in_time_order_bounded_and_ends_with_the_last_four_frames(
    scores, threshold, type_
):
    now = len(scores) - 1
    named = choose(hits_of(scores, threshold), scores, type_)
    grids = read_with_present(named, type_, now)
    assert grids == sorted(set(grids)) and grids[-2:] == [now - 1, now]
    assert grids[0] >= 0 and len(grids) <= MAX_GRIDS + 2


def test_what_came_before_is_looked_for_further_back_and_what_came_after_further_on():
    one = [Episode(50, 52)]
    assert read_with_present(one, "where_left", 99) == [*range(48, 55), 98, 99]
    assert read_with_present(one, "before", 99) == [*range(36, 55), 98, 99]
    assert read_with_present(one, "after", 99) == [*range(48, 67), 98, 99]


def asked(*evidence):
    stretches = tuple(Stretch(*pair) for pair in evidence)
    return Asked(Question("?", "!", "x"), "x", 99.5, ("it",), 1.0, "", stretches, stretches)


def test_evidence_is_named_where_an_episode_meets_each_stretch_of_it():
    question = asked((10.0, 12.5), (40.5, 44.0))  # seconds; a grid a second
    assert names_evidence([Episode(12, 12), Episode(30, 40)], question)
    assert not names_evidence([Episode(12, 12)], question)
    assert not names_evidence([Episode(13, 39), Episode(45, 60)], question)
    assert names_evidence([], asked()), "nothing is to be named where there is nothing"
    assert not names_evidence([Episode(3, 3)], asked())
