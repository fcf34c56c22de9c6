# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How the time of an answer is shared with chunks; the clock is the test's own."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from stream_vlm_ros.session.turns import Turns

SECONDS = st.floats(0.001, 10.0)


class Clock:
    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def written(share, tokens, chunks):
    """Seconds that an answer takes where chunks always wait: in all, and those of the chunks."""
    clock, chunks = Clock(), iter(chunks)
    turns, spent = Turns(clock), []
    for token in tokens:
        clock.now += token
        if turns.is_chunks(share):
            with turns.chunk():
                spent.append(next(chunks))
                clock.now += spent[-1]
    assert turns.chunks == len(spent)
    return clock.now - 100.0, spent


TIMES = st.lists(SECONDS, min_size=1, max_size=20)


@given(st.floats(0.0, 0.95), TIMES, TIMES, st.integers(1, 5))
def test_an_answer_takes_no_longer_than_its_share_and_one_chunk_allow(
    share, tokens, chunks, rounds
):
    tokens = tokens * rounds
    took, spent = written(share, tokens, itertools.cycle(chunks))
    alone = sum(tokens)
    assert took <= (alone + max(spent, default=0.0)) / (1 - share) + 1e-6


def test_a_share_of_a_half_lets_chunks_and_tokens_have_the_same_time():
    # 100 tokens of 1/64 s and chunks of five times that: after the first and after every fifth.
    took, spent = written(0.5, [1 / 64] * 100, [5 / 64] * 100)
    assert len(spent) == 21 and took == (100 + 105) / 64


def test_no_share_is_no_chunk_and_the_whole_is_one_after_every_token():
    assert written(0.0, [0.01] * 10, [1.0] * 10)[1] == []
    assert len(written(1.0, [0.01] * 10, [1.0] * 10)[1]) == 10


def test_a_chunk_that_fails_took_its_time_too_and_closed_turns_stay_closed():
    clock = Clock()
    turns = Turns(clock)
    clock.now += 1.0
    try:
        with turns.chunk():
            clock.now += 5.0
            raise RuntimeError
    except RuntimeError:
        pass
    assert not turns.is_chunks(0.5)  # 5 of 6 s
    clock.now += 4.0
    assert turns.is_chunks(0.5)
    turns.closed = True
    assert not turns.is_chunks(1.0)
