# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Hits close to each other are one episode; those apart are several."""

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from stream_vlm_ros.history.episodes import Episode, join_hits

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
