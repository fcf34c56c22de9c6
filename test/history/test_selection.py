# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The order in which frames are spread: even at any moment, and stable while frames come."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_vlm_ros.engine.inputs.timestamps import check_about
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.history.selection import Shares, nested, seconds_per_grid


@given(st.integers(0, 300), st.integers(-5, 300))
def test_nested_gives_every_number_once(first, size):
    last = first + size - 1
    assert sorted(nested(first, last)) == list(range(first, last + 1))


def test_nested_goes_from_coarse_to_fine():
    assert list(nested(0, 8)) == [0, 8, 4, 2, 6, 1, 3, 5, 7]
    assert list(nested(3, 9)) == [8, 4, 6, 3, 5, 7, 9]


@given(st.integers(0, 1000), st.integers(16, 2000), st.integers(4, 60))
def test_the_first_of_nested_lie_evenly(first, size, count):
    last = first + size - 1
    some = sorted(itertools.islice(nested(first, last), count))
    if len(some) < count:
        return
    # The finest step begun lies between size / count / 2 and 2 size / count, rounded to a power.
    gaps = [b - a for a, b in zip([first, *some], [*some, last], strict=True)]
    assert max(gaps) <= 4 * size / count


@given(st.integers(8, 400), st.integers(1, 50))
def test_most_of_a_choice_stands_while_frames_come(last, count):
    before = set(itertools.islice(nested(0, last), count))
    after = set(itertools.islice(nested(0, last + 1), count))
    assert len(before - after) <= 1


def test_shares_leave_a_sixth_to_be_spread():
    assert Shares.of(24, 10, 20, named=False) == Shares(0, 10, 10)
    assert Shares.of(24, 10, 3, named=False) == Shares(0, 10, 3)
    assert Shares.of(24, 10, 20, named=True) == Shares(12, 5, 5)


@given(st.integers(1, 200), st.integers(0, 50), st.integers(0, 50), st.booleans())
def test_shares_never_exceed_the_whole_but_for_one_pair_each(pairs, window, star, named):
    shares = Shares.of(pairs, window, star, named)
    assert shares.near + shares.window + shares.star <= max(pairs, shares.near + 2)


@pytest.mark.parametrize(("span", "seconds"), [(49, 2.0417), (59, 2.4583)])
def test_seconds_a_grid_are_those_of_the_references_log(span, seconds):
    assert seconds_per_grid(span, 48) == pytest.approx(seconds, abs=5e-5)


def test_no_frames_have_no_seconds_a_grid():
    assert seconds_per_grid(0, 0) == 0


@pytest.mark.parametrize("about", [(2, 1), (float("nan"), 1), (1,), "ab", 3, ("x", "y")])
def test_a_time_that_is_none_is_refused(about):
    with pytest.raises(InvalidParameterError, match="asked about"):
        check_about(about)
