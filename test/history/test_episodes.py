# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Hits close to each other are one episode; those apart are several."""

import dataclasses
from itertools import pairwise

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from stream_vlm_ros.history.episodes import MAX_APART, Episode, Scored, join_hits

HITS = st.sets(st.integers(0, 200), max_size=60).map(sorted)


@given(hits=HITS, apart=st.integers(1, 6))
def test_two_neighbouring_hits_share_an_episode_just_if_they_are_close(hits, apart):
    episodes = join_hits(hits, apart)
    home = {
        hit: k for k, one in enumerate(episodes) for hit in hits if one.first <= hit <= one.last
    }
    assert sorted(home) == hits, "each hit is in one episode"
    for one, other in pairwise(hits):
        assert (home[one] == home[other]) == (other - one <= apart)
    for one in episodes:
        assert {one.first, one.last} <= set(hits), "an episode begins and ends with a hit"
    assert episodes == sorted(episodes)


def test_neighbours_end_where_the_stream_does():
    assert Episode(5, 7).widened(2, 2, 100) == range(3, 10)
    assert Episode(1, 7).widened(2, 14, 10) == range(0, 10)
    assert Episode(5, 7).size == 3


# -- scored grids ----------------------------------------------------------------------------------


@st.composite
def scored_grids(draw):
    """Grids with scores; some stand for several, some follow a pause or another stream."""
    count = draw(st.integers(0, 30))
    spans = draw(st.lists(st.integers(1, 4), min_size=count, max_size=count))
    gaps = draw(st.lists(st.sampled_from([0, 0, 0, 1, 2, 1000]), min_size=count, max_size=count))
    scores = draw(st.lists(st.integers(-4, 9), min_size=count, max_size=count))
    serials, at = [], 0
    for span, gap in zip(spans, gaps, strict=True):
        serials.append(at + gap)
        at += gap + span
    firsts = np.array(serials, np.float64)
    return Scored(
        np.array(serials, np.int64),
        np.array(spans, np.int64),
        np.stack([firsts, firsts + np.array(spans) - 0.5], axis=1).reshape(count, 2),
        np.array([draw(st.integers(0, span - 1)) for span in spans], np.int64),
        np.array(scores, np.float32),
        draw(st.sampled_from([0.4, 0.7, 1.0])),
    )


def steps(scored, one, other):
    """Numbers in the stream from the last that ``one`` stands for to ``other``."""
    return scored.serials[other] - (scored.serials[one] + scored.spans[one] - 1)


@given(scored=scored_grids(), threshold=st.integers(0, 8), share=st.sampled_from([0.0, 0.5, 0.9]))
def test_a_hit_reaches_the_threshold_and_its_share_of_the_best(scored, threshold, share):
    best = max(scored.scores.tolist(), default=0)
    assert scored.hits(threshold, share).tolist() == [
        place
        for place, score in enumerate(scored.scores.tolist())
        if score >= threshold and score >= np.float32(share * best)
    ]


@given(scored=scored_grids(), threshold=st.integers(1, 8))
def test_episodes_are_hits_close_in_the_stream_with_what_belongs_to_them(scored, threshold):
    hits = scored.hits(threshold).tolist()
    episodes = scored.episodes(hits)
    for one, other in pairwise(episodes):
        assert one.last < other.first, "in the order of time, and apart"
    home = {}
    for number, one in enumerate(episodes):
        inside = range(one.first, one.last + 1)
        assert any(place in hits for place in inside)
        for place in inside:
            home[place] = number
        for here, there in pairwise(inside):
            assert steps(scored, here, there) <= MAX_APART, "no pause within an episode"
    assert set(hits) <= set(home), "each hit is in one"
    for one, other in pairwise(hits):
        if steps(scored, one, other) <= MAX_APART:
            assert home[one] == home[other], "close hits share one"


def test_two_that_grow_into_one_another_are_one():
    numbers = np.arange(8)
    stamps = np.stack([numbers, numbers + 0.5], axis=1)
    scores = np.array([1, 5, 3, 3, 3, 6, 1, 1], np.float32)
    none = np.zeros(8, np.int64)
    scored = Scored(numbers, np.ones(8, np.int64), stamps, none, scores, tail=0.5)
    assert scored.episodes(scored.hits(4)) == [Episode(1, 5)]
    assert dataclasses.replace(scored, tail=0.7).episodes(scored.hits(4)) == [
        Episode(1, 1),
        Episode(5, 5),
    ]


@given(scored=scored_grids(), threshold=st.integers(1, 8))
def test_an_episode_ends_where_the_next_grid_scores_too_little(scored, threshold):
    hits = set(scored.hits(threshold).tolist())
    for one in scored.episodes(sorted(hits)):
        # As much as belongs to any of the joined ones belongs to the least of them.
        least = scored.tail * min(
            float(scored.scores[place]) for place in range(one.first, one.last + 1) if place in hits
        )
        for outer, inner in ((one.first - 1, one.first), (one.last, one.last + 1)):
            place = outer if inner == one.first else inner
            if 0 <= place < len(scored.scores) and steps(scored, outer, inner) <= 1:
                assert scored.scores[place] < max(scored.tail * scored.best_of(one), least)


@given(scored=scored_grids(), count=st.integers(1, 5))
def test_the_best_episodes_are_those_with_the_highest_scores_in_the_order_of_time(scored, count):
    every = scored.episodes(scored.hits(1))
    best = scored.best_episodes(1, count)
    assert best == sorted(best) and set(best) <= set(every)
    assert len(best) == min(count, len(every))
    left = [scored.best_of(one) for one in every if one not in best]
    assert not left or max(left) <= min(scored.best_of(one) for one in best)


@given(scored=scored_grids(), data=st.data(), before=st.integers(0, 4), after=st.integers(0, 4))
def test_a_neighbourhood_does_not_reach_over_a_pause(scored, data, before, after):
    if not len(scored.serials):
        return
    first = data.draw(st.integers(0, len(scored.serials) - 1))
    last = data.draw(st.integers(first, len(scored.serials) - 1))
    low, high = first, last
    if first and scored.left_out[first - 1]:
        before = max(before, 1)
    while low > max(0, first - before) and steps(scored, low - 1, low) <= MAX_APART:
        low -= 1
    end = len(scored.serials) - 1
    while high < min(end, last + after) and steps(scored, high, high + 1) <= MAX_APART:
        high += 1
    found = scored.stamps_of(Episode(first, last), before, after)
    assert found == (scored.stamps[low, 0], scored.stamps[high, 1])


@given(pause=st.sampled_from([0.0, 4.0, 30.0, 3600.0]), step=st.sampled_from([0.2, 1.0, 5.0]))
def test_a_time_without_grids_is_no_part_of_an_episode(pause, step):
    """The thing is there up to the pause and behind it: two sightings, unless it was short."""
    numbers = np.arange(40)
    firsts = numbers * step + np.where(numbers >= 20, pause * step, 0.0)
    stamps = np.stack([firsts, firsts + step / 2], axis=1)
    scores = np.where((numbers >= 16) & (numbers < 25), 5.0, 0.0).astype(np.float32)
    ones = np.ones(40, np.int64)
    scored = Scored(numbers, ones, stamps, 0 * ones, scores, tail=0.5)
    found = scored.episodes(scored.hits(3.0))
    assert found == ([Episode(16, 24)] if pause < 10 else [Episode(16, 19), Episode(20, 24)])
    first, last = scored.stamps_of(found[-1], before=2)
    assert (first, last) == (stamps[found[-1].first - (2 if pause < 10 else 0), 0], stamps[24, 1])


def test_frames_of_one_stamp_alone_have_no_pauses():
    ones = np.ones(6, np.int64)
    stamps, scores = np.full((6, 2), 7.0), np.array([0, 5, 5, 5, 0, 0], np.float32)
    scored = Scored(np.arange(6), ones, stamps, 0 * ones, scores, tail=0.5)
    assert scored.episodes(scored.hits(3.0)) == [Episode(1, 3)]
