# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The star memory covers what was new with few frames."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream_vlm_ros.history import NoveltyMeasure
from stream_vlm_ros.history.stars import StarMemory


class OnALine(NoveltyMeasure):
    """Pictures are points on a line; novelty is their distance, at most 1."""

    def describe(self, image):
        return np.array([float(image)])

    def novelty(self, descriptor, others):
        return np.minimum(1, np.abs(others - descriptor).max(axis=-1))


def fed(points, capacity=20, threshold=0.6):
    stars = StarMemory(OnALine(), capacity, threshold)
    verdicts = [stars.consider(number, np.array([p])) for number, p in enumerate(points)]
    return stars, verdicts


def test_the_first_frame_is_new_and_a_star():
    stars, (verdict,) = fed([0.3])
    assert (verdict.novelty, verdict.is_star, stars.ids) == (1.0, True, (0,))


def test_a_frame_becomes_a_star_from_the_threshold_on():
    stars, verdicts = fed([0.0, 0.59, 0.6])
    assert stars.ids == (0, 2)
    assert [round(v.novelty, 2) for v in verdicts] == [1.0, 0.59, 0.6]


def test_when_full_the_star_goes_that_the_others_cover_best():
    # 0.0, 0.9 and 1.6 (0.7 apart): of the two nearest, 0.9 is also the nearer to 0.0.
    stars, verdicts = fed([0.0, 0.9, 1.6, 3.0], capacity=3)
    assert verdicts[-1].dropped == 1
    assert stars.ids == (0, 2, 3)


def test_a_newcomer_that_is_covered_best_is_not_taken():
    stars, verdicts = fed([0.0, 2.0, 0.9], capacity=2)
    assert not verdicts[-1].is_star and verdicts[-1].dropped is None
    assert stars.ids == (0, 1)


def test_without_capacity_there_are_no_stars():
    stars, verdicts = fed([0.0, 5.0], capacity=0)
    assert stars.ids == () and not any(v.is_star for v in verdicts)


@given(st.lists(st.floats(0, 20), max_size=60), st.integers(1, 6), st.floats(0.05, 1))
def test_stars_are_few_and_apart_and_bookkeeping_agrees(points, capacity, threshold):
    stars, verdicts = fed(points, capacity, threshold)
    assert len(stars) <= capacity
    kept = [points[number] for number in stars.ids]
    assert list(stars.ids) == sorted(stars.ids)
    for k, one in enumerate(kept):
        for other in kept[:k]:
            assert min(1, abs(one - other)) >= threshold
    taken = {n for n, v in enumerate(verdicts) if v.is_star}
    dropped = {v.dropped for v in verdicts if v.dropped is not None}
    assert set(stars.ids) == taken - dropped


@given(st.lists(st.integers(0, 5), min_size=1, max_size=40))
def test_what_was_seen_again_and_again_has_one_star(points):
    stars, _ = fed([float(p) for p in points])
    assert len(stars) == len(set(points))
