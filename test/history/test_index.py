# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The index finds what a look at every key finds, within its bytes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.history.index import KeyIndex

HEADS, WIDE = 2, 8
GRID_BYTES = HEADS * 3 * WIDE * 4  # of three tokens in float32
SEEDS = st.integers(0, 10_000)


def index(max_bytes=1 << 30, **options):
    return KeyIndex(HEADS, WIDE, max_bytes, **({"dtype": torch.float32} | options))


def drawn(seed, *shape):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def looked_through(keys, queries):
    """Head by head, grid by grid, query by query: the best token, then means."""
    scores = torch.empty(len(keys), len(keys[0]))
    for head in range(len(keys)):
        for number, grid in enumerate(keys[head]):
            best = [max(float(token @ query) for token in grid) for query in queries[head]]
            scores[head, number] = sum(best) / len(best)
        scores[head] -= scores[head].mean()
    return scores


@settings(max_examples=30, deadline=None)
@given(
    seed=SEEDS, sizes=st.lists(st.integers(1, 9), min_size=1, max_size=8), count=st.integers(1, 4)
)
def test_scores_are_those_of_a_look_at_every_key_however_grids_came(seed, sizes, count):
    keys = drawn(seed, HEADS, sum(sizes), 3, WIDE)
    queries = drawn(seed + 1, HEADS, count, WIDE)
    one = index(max_bytes=400 * GRID_BYTES)  # several blocks
    for part in keys.split(sizes, dim=1):
        one.append(part)
    found = one.search(queries)
    assert found.numbers.tolist() == list(range(sum(sizes)))
    assert set(found.spans.tolist()) == {1}
    torch.testing.assert_close(found.scores, looked_through(keys, queries), rtol=1e-5, atol=1e-5)


@settings(max_examples=30, deadline=None)
@given(
    seed=SEEDS,
    steps=st.lists(st.tuples(st.integers(1, 40), st.sampled_from([3, 3, 3, 5])), max_size=25),
    room=st.integers(3, 120),  # of the larger grids, which take two slots
)
def test_it_stays_within_its_bytes_and_holds_the_keys_of_the_grids_that_it_names(seed, steps, room):
    one = index(max_bytes=room * HEADS * 5 * WIDE * 4)
    every = []
    for number, (grids, tokens) in enumerate(steps):
        keys = drawn(seed + number, HEADS, grids, tokens, WIDE)
        every += list(keys.unbind(1))
        one.append(keys)
        assert one.nbytes <= one.max_bytes
        assert one.grids <= one.grids_seen == len(every)
    queries = drawn(seed, HEADS, 1, WIDE)
    found = one.search(queries)
    assert len(found.numbers) == one.grids
    held = [every[number] for number in found.numbers.tolist()]
    raw = [[max(float(t @ queries[h, 0]) for t in grid[h]) for grid in held] for h in range(HEADS)]
    raw = torch.tensor(raw).reshape(HEADS, -1)
    # Each head's scores are those less one number.
    torch.testing.assert_close(
        found.scores - found.scores[:, :1], raw - raw[:, :1], rtol=1e-4, atol=1e-4
    )


@settings(max_examples=20, deadline=None)
@given(count=st.integers(1, 3000), room=st.integers(2, 300))
def test_what_is_left_out_is_stood_for_by_a_neighbour_and_all_is_about_equally_dense(count, room):
    one = index(max_bytes=room * GRID_BYTES)
    for _ in range(0, count, 7):
        one.append(torch.ones(HEADS, 7, 3, WIDE))
    found = one.search(torch.ones(HEADS, 1, WIDE))
    numbers, spans = found.numbers.tolist(), found.spans.tolist()
    assert numbers[0] == 0
    # One after the other without a gap or an overlap, up to the newest grid.
    assert [n + s for n, s in zip(numbers, spans, strict=True)] == [*numbers[1:], one.grids_seen]
    # Twice as thin as it must be, by powers of two, and a little more while it is being thinned.
    assert one.max_span <= max(1, 4 * one.grids_seen / room)
    assert one.grids >= min(one.grids_seen, room) / 3


@settings(max_examples=20, deadline=None)
@given(seed=SEEDS, room=st.integers(10, 60), first=st.integers(0, 79), count=st.integers(1, 60))
def test_what_is_forgotten_is_erased_and_all_else_is_found_as_before(seed, room, first, count):
    keys, queries = drawn(seed, HEADS, 80, 3, WIDE), drawn(seed + 1, HEADS, 1, WIDE)
    one = index(max_bytes=room * GRID_BYTES)
    one.append(keys)
    before = one.search(queries)
    gone = one.forget(first, first + count)
    after = one.search(queries)
    stop = first + count
    left = [
        (n, s, float(score))
        for n, s, score in zip(before.numbers, before.spans, before.scores[0], strict=True)
        if n >= stop or n + s <= first
    ]
    assert gone == len(before.numbers) - len(left)
    assert after.numbers.tolist() == [n for n, _, _ in left]
    assert after.spans.tolist() == [s for _, s, _ in left]
    if left:
        moved = [
            float(score) - old for score, (_, _, old) in zip(after.scores[0], left, strict=True)
        ]
        assert moved == pytest.approx([moved[0]] * len(moved), abs=1e-4)
    # The stream goes on, and no neighbour comes to stand for what was forgotten.
    one.append(drawn(seed + 2, HEADS, 70, 3, WIDE))
    found = one.search(queries)
    for number, span in zip(found.numbers.tolist(), found.spans.tolist(), strict=True):
        assert number >= min(stop, 80) or number + span <= first
    assert one.grids_seen == 150 and one.nbytes <= one.max_bytes


def test_nothing_is_left_of_forgotten_keys_in_memory():
    one = index()
    one.append(torch.full((HEADS, 20, 3, WIDE), 7.0))
    one.forget(0, 20)
    assert not any(segment.any() for segment in one.segments)


def test_the_mean_that_is_taken_off_counts_each_grid_of_the_stream_once():
    # 1 in the first half and 0 in the second; the first half is thinned first, and still a half.
    one = index(max_bytes=64 * GRID_BYTES)
    one.append(torch.ones(HEADS, 48, 3, WIDE))
    one.append(torch.zeros(HEADS, 48, 3, WIDE))
    found = one.search(torch.ones(HEADS, 1, WIDE) / WIDE)
    assert one.max_span > 1
    assert found.scores[0, 0] == pytest.approx(0.5)
    assert found.scores[0, -1] == pytest.approx(-0.5)


def test_what_all_keys_have_in_common_changes_no_score():
    keys, queries = drawn(1, HEADS, 30, 3, WIDE), drawn(2, HEADS, 2, WIDE)
    plain, moved = index(), index()
    plain.append(keys)
    moved.append(keys + 10 * drawn(3, HEADS, 1, 1, WIDE))
    one, other = plain.search(queries).scores, moved.search(queries).scores
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_an_empty_index_finds_nothing():
    found = index().search(drawn(1, HEADS, 1, WIDE))
    assert found.numbers.tolist() == [] and found.scores.shape == (HEADS, 0)
    assert index().nbytes == index().grids == 0


def test_what_does_not_fit_is_refused_in_words_and_leaves_the_index_as_it_was():
    one = index(max_bytes=10 * GRID_BYTES)
    one.append(drawn(1, HEADS, 4, 3, WIDE))
    for keys in (drawn(1, HEADS, 4, WIDE), drawn(1, 1, 4, 3, WIDE), drawn(1, HEADS, 0, 3, WIDE)):
        with pytest.raises(InvalidParameterError, match=r"it takes \[heads, grids, tokens"):
            one.append(keys)
    with pytest.raises(InvalidParameterError, match="allow for two of them"):
        one.append(drawn(1, HEADS, 1, 16, WIDE))
    for queries in (drawn(1, HEADS, WIDE), drawn(1, HEADS, 0, WIDE), drawn(1, HEADS, 1, WIDE + 1)):
        with pytest.raises(InvalidParameterError, match=r"it takes \[heads, queries"):
            one.search(queries)
    assert one.grids == one.grids_seen == 4
    with pytest.raises(InvalidParameterError, match="max_bytes"):
        index(max_bytes=0)
