# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Which frames are taken for a rate, by their stamps alone."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_vlm_ros.engine.inputs.sampling import StampSampler
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import InvalidParameterError


def taken(stamps, fps):
    sampler = StampSampler(fps)
    return [stamp for stamp in stamps if sampler.wants(stamp)]


def nearest_to_ticks(stamps, interval, period):
    """By definition: for each tick of the grid the frame nearest to it, the earlier of two."""
    chosen, tick = [], stamps[0]
    while 2 * (tick - stamps[-1]) <= interval:
        nearest = min(stamps, key=lambda stamp: (abs(stamp - tick), stamp))
        if nearest not in chosen:
            chosen.append(nearest)
        tick += period
    return chosen


@given(
    interval=st.integers(1_000_000, 200_000_000),
    factor=st.integers(100, 4000),
    start=st.integers(0, 2_000_000_000 * SECOND),
)
def test_takes_the_frame_nearest_to_each_tick(interval, factor, start):
    period_wanted = interval * factor / 100
    fps = SECOND / period_wanted
    stamps = [start + i * interval for i in range(60)]
    assert taken(stamps, fps) == nearest_to_ticks(stamps, interval, round(SECOND / fps))


@given(seed=st.integers(0, 2**32), fps=st.sampled_from([1, 2, 5]))
def test_jitter_neither_loses_a_sample_nor_makes_the_grid_drift(seed, fps):
    jitter = random.Random(seed)
    stamps = [0] + [i * SECOND // 30 + jitter.randint(-5_000_000, 5_000_000) for i in range(1, 300)]
    samples = taken(stamps, fps)
    assert len(samples) == 10 * fps
    for tick, stamp in enumerate(samples):
        # Two frames are 23.3 to 43.3 ms apart. The one taken is at most half of that early; the one
        # before it was earlier than half of it, so it is at most 43.3 - 23.3 / 2 late.
        assert -21_700_000 <= stamp - tick * SECOND // fps <= 31_700_000


@given(st.lists(st.integers(-25_000_000, 25_000_000), min_size=50, max_size=50))
def test_a_source_at_the_target_rate_is_taken_whole_despite_jitter(jitter):
    stamps = [i * SECOND // 10 + (j if i else 0) for i, j in enumerate(jitter)]
    assert taken(stamps, 10) == stamps


def test_a_slower_source_is_taken_whole():
    stamps = [i * SECOND for i in range(20)]
    assert taken(stamps, 2) == stamps


def test_after_a_pause_sampling_goes_on_without_catching_up():
    stamps = [0, SECOND // 2, 60 * SECOND, 60 * SECOND + SECOND // 30, 60 * SECOND + SECOND // 2]
    assert taken(stamps, 2) == [0, SECOND // 2, 60 * SECOND, 60 * SECOND + SECOND // 2]


@pytest.mark.parametrize("fps", [0, -1, float("nan"), float("inf")])
def test_a_rate_that_is_no_rate_is_refused(fps):
    with pytest.raises(InvalidParameterError, match="sampling rate"):
        StampSampler(fps)


@pytest.mark.parametrize("start", [0, 1_700_000_000_250_000_000])
@pytest.mark.parametrize("source_fps", [1, 2, 5, 30])
def test_a_faster_source_is_thinned_to_the_rate_and_not_below(source_fps, start):
    kept = taken([start + k * SECOND // source_fps for k in range(60 * source_fps)], 1.0)
    assert len(kept) == 60
    gaps = [b - a for a, b in itertools.pairwise(kept)]
    assert all(abs(gap - SECOND) * source_fps < SECOND for gap in gaps)


@given(st.lists(st.integers(0, 3 * SECOND), max_size=200), st.floats(0.2, 5))
def test_never_more_than_the_rate_over_any_long_time(gaps, fps):
    kept = taken(list(itertools.accumulate(gaps)), fps)
    if len(kept) > 1:
        # One for each tick between the first and the last, and half a tick at either end.
        assert len(kept) <= (kept[-1] - kept[0]) / SECOND * fps + 2
