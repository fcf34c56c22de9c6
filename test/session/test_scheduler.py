# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Whose turn it is, by the times that the test says each piece takes."""

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_vlm_ros.session.scheduler import FairQueue, Scheduler, Wants

SECONDS = st.floats(0.001, 10.0)
TIMES = st.lists(SECONDS, min_size=1, max_size=20)
WEIGHTS = st.lists(st.sampled_from([0.25, 0.5, 1.0, 2.0, 7.0]), min_size=2, max_size=5)
TINY = 1e-6


def written(share, tokens, chunks):
    """Seconds that an answer takes where chunks always wait: in all, and those of the chunks."""
    scheduler, chunks, tokens = Scheduler(share), iter(chunks), list(tokens)
    elapsed, spent, left = 0.0, [], list(tokens)
    while left:
        began = len(left) == len(tokens)
        wants = {"camera": Wants(answer=True, begins=began, chunk=not began)}
        choice = scheduler.choose(wants)
        seconds = next(chunks) if choice.is_chunk else left.pop(0)
        spent += [seconds] if choice.is_chunk else []
        elapsed += seconds
        scheduler.done(choice, seconds, wants, began=began, answered=not left)
    return elapsed, spent


@given(st.floats(0.0, 0.95), TIMES, TIMES, st.integers(1, 5))
def test_an_answer_takes_no_longer_than_its_share_and_one_chunk_allow(
    share, tokens, chunks, rounds
):
    tokens = tokens * rounds
    took, spent = written(share, tokens, itertools.cycle(chunks))
    assert took <= (sum(tokens) + max(spent, default=0.0)) / (1 - share) + TINY


def test_a_share_of_a_half_lets_chunks_and_tokens_have_the_same_time():
    # Chunks of five tokens' time: after the 1st token and after every fifth; none after the last,
    # with which the answer ends.
    took, spent = written(0.5, [1 / 64] * 100, [5 / 64] * 100)
    assert len(spent) == 20 and took == (100 + 100) / 64


def test_no_share_is_no_chunk_and_the_whole_is_one_after_every_token():
    assert written(0.0, [0.01] * 10, [1.0] * 10)[1] == []
    assert len(written(1.0, [0.01] * 10, [1.0] * 10)[1]) == 9


def serve(queue, sessions, weights, costs, got):
    """One piece of who is next."""
    session = queue.ordered(sessions)[0]
    seconds = next(costs)
    queue.serve(session, seconds, weights[session])
    got[session].append(seconds)
    return session


def check_fair(got, weights, longest):
    """The bound of start-time fair queueing, for any two that never idled meanwhile."""
    normal = {one: sum(times) / weights[one] for one, times in got.items()}
    for one, other in itertools.combinations(got, 2):
        bound = longest / weights[one] + longest / weights[other]
        assert abs(normal[one] - normal[other]) <= bound + TINY


@given(WEIGHTS, TIMES, st.integers(1, 100))
def test_who_never_idles_gets_time_by_its_weight(weights, costs, pieces):
    queue, times, sessions = FairQueue(), itertools.cycle(costs), range(len(weights))
    got = {one: [] for one in sessions}
    for _ in range(pieces):
        serve(queue, sessions, weights, times, got)
        check_fair(got, weights, max(costs))


@given(WEIGHTS, TIMES, st.integers(1, 60), st.integers(1, 60))
def test_who_was_idle_is_next_and_gets_nothing_for_it(weights, costs, alone, together):
    queue, times, sessions = FairQueue(), itertools.cycle(costs), range(len(weights))
    for _ in range(alone):
        serve(queue, sessions[1:], weights, times, {one: [] for one in sessions})
    got = {one: [] for one in sessions}
    served = [serve(queue, sessions, weights, times, got)]
    assert served == [0]
    for _ in range(together):
        serve(queue, sessions, weights, times, got)
        check_fair(got, weights, max(costs))


def test_pieces_that_take_no_time_are_served_by_turns():
    queue = FairQueue()
    got = {one: [] for one in "abc"}
    order = [
        serve(queue, "abc", dict.fromkeys("abc", 1), itertools.repeat(0.0), got) for _ in "x" * 6
    ]
    assert order == list("abcabc")


class Load:
    """Sessions that are asked and get chunks, as the thread of the engines would serve them."""

    def __init__(self, share, names="abc", weights=None, answers=1):
        self.scheduler = Scheduler(share, answers=answers)
        self.weights = weights or dict.fromkeys(names, 1.0)
        self.questions = {one: [] for one in names}  # pieces left of each
        self.begun = dict.fromkeys(names, False)
        self.chunks = dict.fromkeys(names, 0)

    def wants(self):
        return {
            one: Wants(
                answer=bool(asked),
                begins=bool(asked) and not self.begun[one],
                joins="model" if self.begun[one] else None,
                # Without an answer under way one that came before the question would be its part.
                chunk=self.chunks[one] > 0 and (self.begun[one] or not asked),
                weight=self.weights[one],
            )
            for one, asked in self.questions.items()
        }

    def step(self, seconds=1.0):
        """What was done, and for which sessions; None: nothing."""
        wants = self.wants()
        if (choice := self.scheduler.choose(wants)) is None:
            return None
        began = answered = False
        for session in choice.sessions:
            if choice.is_chunk:
                assert wants[session].chunk and len(choice.sessions) == 1
                self.chunks[session] -= 1
                continue
            assert wants[session].answer
            began |= not self.begun[session]
            self.begun[session] = True
            self.questions[session][0] -= 1
            if not self.questions[session][0]:
                self.questions[session].pop(0)
                self.begun[session], answered = False, True
        assert not began or len(choice.sessions) == 1  # a first piece is no further one's
        self.scheduler.done(choice, seconds, wants, began=began, answered=answered)
        return ("chunk" if choice.is_chunk else "piece"), "".join(choice.sessions)


def test_answers_of_several_sessions_are_written_token_by_token():
    load = Load(0.5)
    load.questions = {"a": [3], "b": [3], "c": [3]}
    assert [load.step()[1] for _ in range(9)] == list("abcabcabc")


def test_further_pieces_of_answers_go_together_as_many_as_may():
    load = Load(0.5, "abcd", answers=3)
    load.questions = {"a": [3], "b": [3], "c": [4], "d": [2]}
    done = [load.step()[1] for _ in range(8)]
    # Each begins by itself; then up to three go on, and who was left out is first.
    assert done == ["a", "b", "c", "d", "abc", "dab", "c", "c"]
    assert load.step() is None


def test_only_answers_that_can_go_together_do():
    scheduler = Scheduler(0.5, answers=8)
    wants = {
        "a": Wants(answer=True, joins=1),
        "b": Wants(answer=True, joins=2),
        "c": Wants(answer=True, joins=1, chunk=True),
        "d": Wants(answer=True),
        "e": Wants(answer=True),
    }
    turns = []
    for _ in range(4):
        choice = scheduler.choose(wants)
        scheduler.done(choice, 1.0, wants)
        turns.append("".join(choice.sessions))
        wants["c"] = Wants(answer=True, joins=1)
    assert turns == ["ac", "b", "d", "e"]


@given(WEIGHTS, TIMES, st.integers(1, 8), st.integers(1, 100))
def test_weights_hold_where_answers_go_together(weights, costs, most, pieces):
    """None is ahead of another by more than its longest piece and the longest there is."""
    scheduler, times = Scheduler(0.5, answers=most), itertools.cycle(costs)
    wants = {
        one: Wants(answer=True, joins="model", weight=weight) for one, weight in enumerate(weights)
    }
    got, longest = dict.fromkeys(wants, 0.0), dict.fromkeys(wants, 0.0)
    for _ in range(pieces):
        choice = scheduler.choose(wants)
        seconds = next(times)
        scheduler.done(choice, seconds, wants)
        assert 1 <= len(choice.sessions) <= most
        for one in choice.sessions:
            each = seconds / len(choice.sessions) / weights[one]
            got[one] += each
            longest[one] = max(longest[one], each)
        for one, other in itertools.permutations(got, 2):
            assert got[one] - got[other] <= longest[one] + max(longest.values()) + TINY


@given(st.floats(0.0, 0.95), TIMES, TIMES, st.lists(st.integers(1, 12), min_size=2, max_size=4))
def test_answers_that_go_together_leave_chunks_no_more_than_their_share(
    share, costs, chunk_costs, lengths
):
    load = Load(share, "abcd"[: len(lengths)], answers=8)
    load.questions = {one: [count] for one, count in zip("abcd", lengths, strict=False)}
    pieces, chunks, elapsed = itertools.cycle(costs), itertools.cycle(chunk_costs), 0.0
    written, longest = 0.0, 0.0
    while any(load.questions.values()):
        load.chunks = dict.fromkeys(load.chunks, 1)
        wants = load.wants()
        seconds = next(chunks) if load.scheduler.choose(wants).is_chunk else next(pieces)
        kind, _ = load.step(seconds)
        elapsed += seconds
        written += seconds if kind == "piece" else 0.0
        longest = max(longest, seconds if kind == "chunk" else 0.0)
    if share:  # with none, chunks go all the same where one of several has ended
        assert elapsed <= (written + longest) / (1 - share) + TINY


EVENTS = st.tuples(
    st.sampled_from(["ask", "chunk", "step", "step", "step"]),
    st.sampled_from("abc"),
    st.integers(1, 4),
    st.sampled_from([0.0, 0.01, 1.0]),
)


@given(st.sampled_from([0.0, 0.25, 0.5, 1.0]), st.lists(EVENTS, max_size=80), st.integers(1, 3))
def test_a_question_waits_for_no_chunk_that_was_not_begun_before_it(share, events, answers):
    """Where it is its session's first since a chunk; and in the end everything is done."""
    load, fresh = Load(share, answers=answers), set()
    let_ahead = set()
    for event, session, pieces, seconds in events:
        if event == "ask":
            if not load.questions[session] and session not in let_ahead:
                fresh.add(session)
            load.questions[session].append(pieces)
        elif event == "chunk":
            load.chunks[session] += 1
        elif (done := load.step(seconds)) is not None:
            kind, served = done
            assert kind == "piece" or not fresh
            if kind == "piece":
                fresh.difference_update(served)
                let_ahead.update(served)
            else:
                let_ahead.clear()
    while load.step() is not None:
        pass
    assert not any(load.chunks.values()) and not any(load.questions.values())


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("answers", [1, 2])
def test_chunks_get_their_turns_though_questions_never_cease(share, pieces, answers):
    load, asking = Load(share, answers=answers), "ab"
    # What a chunk waits for: its share, or with none the end of an answer; and one question of each
    # session that was not begun, with the other's pieces before it, twice.
    earned = math.ceil((1 - share) / share) if share else len(asking) * pieces
    waited = 0
    for _ in range(500):
        for one in asking:
            load.questions[one].extend([pieces] * (3 - len(load.questions[one])))
        load.chunks["c"] = 2
        waited = waited + 1 if load.step() != ("chunk", "c") else 0
        assert waited <= earned + 2 * len(asking)


def test_a_session_of_three_times_the_weight_gets_three_times_the_chunks():
    load = Load(0.5, weights={"a": 1.0, "b": 3.0, "c": 1.0})
    done = []
    for _ in range(500):
        load.chunks = dict.fromkeys("abc", 2)
        done.append(load.step()[1])
    assert [done.count(one) for one in "abc"] == [100, 300, 100]


def test_chunks_of_several_sessions_are_handed_out_together_while_nobody_waits():
    scheduler = Scheduler(0.5, together=2)
    wants = {one: Wants(chunk=True) for one in "abc"}
    turns = []
    for _ in range(3):
        choice = scheduler.choose(wants)
        scheduler.done(choice, 1.0, wants)
        turns.append(choice.sessions)
    assert turns == [("a", "b"), ("c", "a"), ("b", "c")]
    wants["c"] = Wants(answer=True, begins=True)
    choice = scheduler.choose(wants)
    assert (choice.sessions, choice.is_chunk) == (("c",), False)
    scheduler.done(choice, 1.0, wants, began=True)
    wants["c"] = Wants(answer=True)
    choice = scheduler.choose(wants)
    assert (len(choice.sessions), choice.is_chunk) == (1, True)


@pytest.mark.parametrize("weight", [1.0, 2.0, 8.0])
def test_weights_hold_where_chunks_are_handed_out_together(weight):
    scheduler, served = Scheduler(0.5, together=8), Counter()
    wants = {"a": Wants(chunk=True, weight=weight), "b": Wants(chunk=True)}
    for _ in range(900):
        choice = scheduler.choose(wants)
        scheduler.done(choice, 0.1 * len(choice.sessions), wants)
        served.update(choice.sessions)
    assert served["a"] / served["b"] == pytest.approx(weight, rel=0.05)
    assert served["b"] > 0
