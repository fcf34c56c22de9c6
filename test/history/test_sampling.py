# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The target rate decides by stamps alone."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.history.sampling import TargetRate


def taken(fps, stamps):
    rate = TargetRate(fps)
    return [stamp for stamp in stamps if rate.wants(stamp)]


@pytest.mark.parametrize("start", [0.0, 1_700_000_000.25])
@pytest.mark.parametrize("source_fps", [1, 2, 5, 30])
def test_a_faster_source_is_thinned_to_the_rate_and_not_below(source_fps, start):
    stamps = [start + k / source_fps for k in range(60 * source_fps)]
    kept = taken(1.0, stamps)
    assert len(kept) == 60
    gaps = [b - a for a, b in itertools.pairwise(kept)]
    assert all(abs(gap - 1) < 1 / source_fps for gap in gaps)


def test_a_slower_source_is_taken_whole():
    stamps = [2.5 * k for k in range(40)]
    assert taken(1.0, stamps) == stamps


@given(st.lists(st.floats(-0.24, 0.24), min_size=2, max_size=200))
def test_a_source_at_the_rate_is_taken_whole_in_spite_of_jitter(jitter):
    stamps = [10.0 + k + shift for k, shift in enumerate(jitter)]
    stamps[0] = 10.0
    assert taken(1.0, stamps) == stamps


@given(st.lists(st.floats(0, 3), max_size=200), st.floats(0.2, 5))
def test_never_more_than_the_rate_over_any_long_time(gaps, fps):
    stamps = [sum(gaps[: k + 1]) for k in range(len(gaps))]
    kept = taken(fps, stamps)
    if len(kept) > 1:
        # One for each tick between the first and the last, and half a tick at either end.
        assert len(kept) <= (kept[-1] - kept[0]) * fps + 2


def test_rate_zero_takes_every_frame():
    assert taken(0, [0, 0.001, 0.002]) == [0, 0.001, 0.002]


@pytest.mark.parametrize("fps", [-1, float("nan"), float("inf"), "2"])
def test_a_rate_that_is_none_is_refused(fps):
    with pytest.raises(InvalidParameterError, match="target_fps"):
        TargetRate(fps)
