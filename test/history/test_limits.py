# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Hits, episodes, and the limits that name the right ones most often."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from stream_vlm_ros.history.episodes import Episode, extended, hits_of
from stream_vlm_ros.history.limits import (
    Probe,
    Scored,
    average_precision,
    best_episodes,
    choose_limits,
    names_evidence,
    relevant,
    share_right,
    wanted_episodes,
)

SCORES = arrays.arrays(np.float64, st.integers(1, 60), elements=st.floats(0, 8))


def stamps(count):
    """A grid a second, its two frames half a second apart."""
    return np.array([[k, k + 0.5] for k in range(count)])


@given(st.data())
def test_average_precision_is_the_mean_precision_at_each_relevant_rank(data):
    count = data.draw(st.integers(2, 30))
    order = data.draw(st.permutations(range(count)))
    good = data.draw(st.sets(st.sampled_from(range(count)), min_size=1))
    scores = [float(order[k]) for k in range(count)]
    ranked = sorted(range(count), key=lambda k: -scores[k])
    precisions = [
        len(good & set(ranked[: rank + 1])) / (rank + 1)
        for rank in range(count)
        if ranked[rank] in good
    ]
    found = average_precision(
        torch.tensor([scores]), torch.tensor([[k in good for k in range(count)]])
    )
    assert float(found) == pytest.approx(sum(precisions) / len(precisions), abs=1e-6)


def test_a_grid_is_relevant_if_one_of_its_frames_is():
    found = relevant([(1.5, 1.5), (3.0, 4.5), (7.6, 7.9)], stamps(9))
    assert np.flatnonzero(found).tolist() == [1, 3, 4]


@given(scores=SCORES, threshold=st.floats(1, 7), of_best=st.floats(0, 1))
def test_the_newest_episode_ends_with_the_newest_hit_and_the_best_holds_the_highest(
    scores, threshold, of_best
):
    limit = max(threshold, of_best * float(scores.max()))
    expected = [k for k, score in enumerate(scores.tolist()) if score >= limit]
    hits = hits_of(scores, threshold, of_best)
    assert hits == expected
    newest, best = (wanted_episodes(hits, scores, which) for which in ("newest", "best"))
    if not hits:
        assert newest == best == []
        return
    assert newest[-1].last == hits[-1] and len(newest) == len(best) == 1
    assert scores[best[0].first : best[0].last + 1].max() == scores.max()
    assert [k for e in wanted_episodes(hits, scores, "all") for k in hits if e[0] <= k <= e[1]] == (
        hits
    )
    few = best_episodes(scores, threshold)
    assert (
        few == sorted(few, reverse=True)
        and len(few) <= 4
        and best[0].first in {e.first for e in best_episodes(scores, limit)}
    )


def test_an_episode_ends_where_its_neighbours_fall_below_the_share_of_its_best():
    scores = np.array([3.0, 0.0, 2.4, 4.0, 3.9, 2.5, 1.9, 3.9])
    assert extended(Episode(3, 4), scores, 0.6) == (2, 5)
    assert extended(Episode(3, 4), scores, 0.7) == (3, 4)
    assert extended(Episode(3, 4), scores, 0.4) == (2, 7)
    assert extended(Episode(0, 0), scores, 0.1) == (0, 0)


@given(scores=SCORES, tail=st.floats(0, 1), data=st.data())
def test_a_longer_tail_only_adds_neighbours(scores, tail, data):
    first = data.draw(st.integers(0, len(scores) - 1))
    last = data.draw(st.integers(first, len(scores) - 1))
    wide = extended(Episode(first, last), scores, tail)
    narrow = extended(Episode(first, last), scores, min(1.0, tail + 0.2))
    assert wide.first <= narrow.first <= first and last <= narrow.last <= wide.last
    limit = tail * scores[first : last + 1].max()
    assert all(scores[k] >= limit for k in range(wide.first, first))
    assert all(scores[k] >= limit for k in range(last + 1, wide.last + 1))


def test_evidence_is_named_where_an_episode_meets_each_stretch_of_it():
    evidence = ((10.0, 12.5), (40.5, 44.0))
    seconds = stamps(70)
    assert names_evidence([Episode(12, 12), Episode(30, 40)], evidence, seconds)
    assert not names_evidence([Episode(12, 12)], evidence, seconds)
    assert not names_evidence([Episode(13, 39), Episode(45, 60)], evidence, seconds)
    assert names_evidence([], (), seconds), "nothing is to be named where there is nothing"
    assert not names_evidence([Episode(3, 3)], (), seconds)


# -- choosing ------------------------------------------------------------------------------------


def visit(count, places, level, edge, rng, noise=1.0):
    """Scores of noise below ``noise``, and of visits that begin and end with a weaker grid."""
    scores = rng.uniform(-noise, noise, count)
    for first, last in places:
        scores[first : last + 1] = level + rng.uniform(-0.1, 0.1, last - first + 1)
        scores[[first, last]] = edge
    return scores.astype(np.float32)


def footage(level=6.0, edge=4.0, other=0.0, seed=0):
    """Twelve questions about a thing seen twice, the newest time counts, and four about nothing;
    ``other``: how much something else scores that is seen later."""
    rng = np.random.default_rng(seed)
    rows = []
    for number in range(12):
        seen = [(20, 26), (60 + number, 66 + number)]
        scores = visit(120, seen, level, edge, rng)
        if other:
            scores[100:104] = other
        spans = tuple((float(a), b + 0.5) for a, b in seen)
        rows.append(Scored(Probe("?", 119.5, spans, spans[1:]), stamps(120), scores))
    for _ in range(4):
        scores = visit(120, [], 0, 0, rng)
        if other:
            scores[100:104] = other / 2
        rows.append(Scored(Probe("?", 119.5, (), ()), stamps(120), scores))
    return rows


def test_limits_that_tell_all_apart_are_found_and_ends_are_exact():
    rows = footage()
    limits = choose_limits(rows)
    assert limits.right == limits.among == limits.ends == 1.0
    assert limits.looks <= limits.threshold
    assert share_right(rows, limits.threshold, limits.of_best) == 1.0
    # The visits' edges score two thirds of their middle, all else at most a sixth.
    assert 1 / 6 < limits.tail < 4 / 6


def test_what_something_else_scores_is_kept_out_by_the_share_of_the_best():
    # Later than what is asked about, something alike scores 4.5 where the thing itself scores 6:
    # no threshold is right for weaker things too, but a share of the best is.
    rows = footage(other=4.5) + footage(level=4.6, edge=4.1, other=3.3, seed=1)
    limits = choose_limits(rows)
    assert limits.right == 1.0 and limits.of_best > 4.5 / 6.1  # the best grid scores up to 6.1
    assert share_right(rows, limits.threshold, 0.0) < 1.0


def test_where_nothing_was_shown_a_hit_is_a_mistake():
    rows = [row._replace(scores=row.scores + 3 * (not row.probe.shown)) for row in footage()]
    limits = choose_limits(rows)  # noise up to 4 there: no hit of the others is lost above it
    assert limits.right == 1.0 and limits.threshold > max(
        row.scores.max() for row in rows if not row.probe.shown
    )


def test_whether_there_was_one_is_counted_only_where_there_was_none():
    # Any sighting says yes, so a missed one tells nothing; a hit where nothing was shown does.
    rows = [row._replace(probe=replace(row.probe, wanted="best")) for row in footage()]
    assert share_right(rows, 50.0, 0.0) == 1.0  # nothing is named
    assert share_right(rows, -1.0, 0.0) == 0.0  # everything is


@given(seed=st.integers(0, 1000), level=st.floats(2, 7), other=st.floats(0, 7))
@settings(max_examples=10)
def test_the_share_that_is_reported_is_what_the_limits_reach(seed, level, other):
    rows = footage(level, 0.7 * level, other, seed)
    limits = choose_limits(rows)
    assert share_right(rows, limits.threshold, limits.of_best) == pytest.approx(limits.right)
