# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""One wrong stamp is one lost frame: which stamps are believed."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from stream_vlm_ros.engine.inputs.stamp_check import (
    SECOND,
    StampCheck,
    Timing,
    check_stamp,
    join_stamp,
)
from stream_vlm_ros.errors import InvalidTimestampError

GAP, TOLERANCE = 60, 2  # the bounds of the small cases, in any unit


def check_at(newest_ns):
    return StampCheck(tolerance_ns=SECOND, max_gap_ns=3600 * SECOND, newest_ns=newest_ns)


def test_the_first_frame_is_in_order_whatever_its_stamp():
    assert check_at(None).classify(-5) is Timing.IN_ORDER


def test_a_stamp_is_judged_by_its_distance_to_the_newest():
    check = check_at(10_000 * SECOND)
    verdicts = {
        1: Timing.IN_ORDER,
        3600 * SECOND: Timing.IN_ORDER,
        3600 * SECOND + 1: Timing.JUMP,
        0: Timing.LATE,  # the same frame twice
        -SECOND: Timing.LATE,
        -SECOND - 1: Timing.JUMP,
    }
    assert {d: check.classify(10_000 * SECOND + d) for d in verdicts} == verdicts


def told(check, stamps):
    """Which of ``stamps`` were admitted, which refused, and the jumps believed."""
    admitted, refused, jumps = [], [], []
    for stamp in stamps:
        decision = check.offer(stamp, stamp)
        admitted += decision.admitted
        refused += [frame for frame, _ in decision.refused]
        jumps += [decision.jump_ns] if decision.jump_ns is not None else []
    return admitted, refused, jumps


def small(**options):
    return StampCheck(TOLERANCE, GAP, **options)


@pytest.mark.parametrize("wrong", [10**6, 161, 0, 97])
def test_one_wrong_stamp_is_refused_and_the_next_frame_is_taken(wrong):
    admitted, refused, jumps = told(small(), [99, 100, wrong, 101, 102])
    assert (admitted, refused, jumps) == ([99, 100, 101, 102], [wrong], [])


def test_two_wrong_stamps_in_a_row_are_two_lost_frames():
    assert told(small(), [100, 900, 901, 101]) == ([100, 101], [900, 901], [])


@pytest.mark.parametrize("begin", [900, 10])
def test_three_frames_that_agree_are_believed_and_none_of_them_is_lost(begin):
    row = [begin, begin + GAP, begin + GAP + 1]
    assert told(small(), [100, *row, row[-1] + 1]) == (
        [100, *row, row[-1] + 1],
        [],
        [begin - 100],
    )


def test_frames_further_apart_than_the_gap_do_not_agree():
    assert told(small(), [100, 900, 961, 1022, 1083])[0] == [100]


def test_a_repeated_or_overtaken_frame_does_not_break_the_row():
    admitted, refused, _ = told(small(), [100, 900, 900, 902, 901, 903])
    assert (admitted, refused) == ([100, 900, 902, 903], [900, 901])


def test_a_loop_hardly_longer_than_the_tolerance_is_believed_unless_forbidden():
    loop = [100, 101, 102, 103]
    assert told(small(), 3 * loop)[0] == 3 * loop
    assert told(small(believe_backwards=False), 3 * loop)[0] == loop


def test_two_sources_on_one_topic_leave_the_first_one_its_time():
    stamps = [stamp for k in range(50) for stamp in (1000 + k, 10 + k)]
    admitted, refused, jumps = told(small(), stamps)
    assert (admitted, len(refused), jumps) == ([1000 + k for k in range(50)], 49, [])


def test_a_jump_back_can_be_forbidden_a_jump_ahead_cannot():
    check = small(newest_ns=100, believe_backwards=False)
    assert told(check, [10, 11, 12, 13, 99, 101]) == ([101], [10, 11, 12, 13, 99], [])
    assert told(check, [900, 901, 902]) == ([900, 901, 902], [], [799])


def test_a_first_frame_that_nobody_confirmed_bars_nothing():
    check = small(believe_backwards=False)
    assert told(check, [900, 10, 11, 12]) == ([900, 10, 11, 12], [], [-890])


@pytest.mark.parametrize("wrong", [0, 900])
@pytest.mark.parametrize("place", range(6))
def test_of_a_source_read_to_its_end_one_wrong_stamp_is_one_lost_frame_wherever_it_is(wrong, place):
    check = small(confirm_first=True)
    good = [101, 102, 103, 104, 105]
    admitted, refused, _ = told(check, [*good[:place], wrong, *good[place:]])
    refused += [frame for frame, _ in check.finish().refused]
    assert (admitted, refused) == (good, [wrong])


def test_a_source_of_one_frame_gives_it_at_its_end():
    check = small(confirm_first=True)
    assert told(check, [10]) == ([], [], [])
    assert check.finish().admitted == (10,)
    assert small(confirm_first=True).finish().admitted == ()


def test_a_source_whose_first_frames_all_disagree_begins_where_two_agree():
    check = small(confirm_first=True, believe_backwards=False)
    admitted, refused, jumps = told(check, [10, 900, 5000, 300, 301])
    assert (admitted, refused, jumps) == ([300, 301], [10, 900, 5000], [])
    assert told(check, [5, 6, 7])[0] == []  # what two frames began stands


def test_what_waits_at_the_end_is_refused_with_its_cause():
    check = small(newest_ns=100)
    told(check, [900, 901])
    ((frame, words), _) = check.finish().refused
    assert frame == 900 and "ahead" in words
    assert check.waiting == 0


def test_what_waits_when_the_past_is_forgotten_is_given_back():
    check = small(newest_ns=100)
    told(check, [900, 901])
    assert check.clear() == (900, 901)
    assert told(check, [5]) == ([5], [], [])


@pytest.mark.parametrize("stamp", [-1, (2**31 - 1) * SECOND, 2**63, 2**80])
def test_a_stamp_that_no_message_can_hold_is_refused(stamp):
    with pytest.raises(InvalidTimestampError, match="what a message can hold"):
        check_stamp(stamp)


def test_the_fields_of_a_stamp_make_nanoseconds():
    assert join_stamp(2**31 - 2, SECOND - 1) == check_stamp((2**31 - 1) * SECOND - 1)
    for nanoseconds in (SECOND, 2**32 - 1):
        with pytest.raises(InvalidTimestampError, match="a second or more"):
            join_stamp(5, nanoseconds)


def by_hindsight(stamps, newest, backwards):
    """What the rule says of a whole source, by looking ahead instead of waiting.

    Returns the fate of each frame: "in", "out", or "open" where the end came first.
    """
    fates = [None] * len(stamps)
    believed = 3 if newest is not None else 0

    def relation(stamp, other):
        if other is None:
            return "next"
        if other < stamp <= other + GAP:
            return "next"
        return "late" if other - TOLERANCE <= stamp <= other else "jump"

    def row_from(first):
        """The frames that agree with ``first``, those passed over, and whether the row broke."""
        row, late = [first], []
        for k in range(first + 1, len(stamps)):
            if relation(stamps[k], newest) == "next":
                return row, late, True
            if relation(stamps[k], newest) == "late" and not backwards:
                return row, late, True
            now = relation(stamps[k], stamps[row[-1]])
            if now == "jump":
                return row, late, True
            (row if now == "next" else late).append(k)
            if len(row) == 3:
                break
        return row, late, False

    k = 0
    while k < len(stamps):
        what = relation(stamps[k], newest)
        if what == "next":
            fates[k], newest, believed = "in", stamps[k], believed + 1
            k += 1
            continue
        if what == "late":
            fates[k] = "out"
            k += 1
            continue
        if newest is not None and stamps[k] < newest and not backwards and believed >= 3:
            fates[k] = "out"
            k += 1
            continue
        row, late, broke = row_from(k)
        for j in late:
            fates[j] = "out"
        for j in row:
            fates[j] = "in" if len(row) == 3 else "out" if broke else "open"
        if len(row) == 3:
            newest, believed = stamps[row[-1]], 3
        k = max([*row, *late]) + 1
    return fates


STAMPS = st.one_of(
    st.integers(0, 12), st.integers(90, 110), st.integers(140, 180), st.integers(10**6, 10**6 + 80)
)


@settings(max_examples=1000)
@given(
    stamps=st.lists(STAMPS, max_size=25),
    newest=st.none() | STAMPS,
    backwards=st.booleans(),
)
def test_waiting_decides_as_hindsight_would(stamps, newest, backwards):
    check = small(newest_ns=newest, believe_backwards=backwards)
    fates = [None] * len(stamps)
    for k, stamp in enumerate(stamps):
        decision = check.offer(stamp, k)
        for j in decision.admitted:
            fates[j] = "in"
        for j, _ in decision.refused:
            fates[j] = "out"
    waiting = [k for k, fate in enumerate(fates) if fate is None]
    assert len(waiting) == check.waiting
    assert [fate or "open" for fate in fates] == by_hindsight(stamps, newest, backwards)


class Stream(RuleBasedStateMachine):
    """Frames of a clock that is set, set back, paused and wrong now and then."""

    @initialize(backwards=st.booleans())
    def begin(self, backwards):
        self.check = small(believe_backwards=backwards)
        self.offered = self.out = self.highest = 0
        self.admitted = []
        self.now = 1000

    def offer(self, stamp):
        self.offered += 1
        self.highest = max(self.highest, stamp)
        decision = self.check.offer(stamp, stamp)
        self.out += len(decision.refused)
        if decision.jump_ns is not None:
            assert len(decision.admitted) == 3
            assert decision.admitted[0] - self.admitted[-1] == decision.jump_ns
        before = self.admitted[-1] if self.admitted and decision.jump_ns is None else None
        for stamp in decision.admitted:
            assert before is None or 0 < stamp - before <= GAP
            before = stamp
        self.admitted += decision.admitted

    @rule(step=st.integers(1, GAP))
    def good(self, step):
        self.now += step
        self.offer(self.now)

    @rule(stamp=st.integers(0, 10**7))
    def wrong(self, stamp):
        self.offer(stamp)

    @rule(to=st.integers(0, 10**6))
    def set_clock(self, to):
        self.now = to

    @rule(backwards=st.booleans())
    def change_policy(self, backwards):
        self.check.believe_backwards = backwards

    @rule()
    def three_good_ones_are_enough(self):
        self.now = self.highest + 10**3
        for _ in range(3):
            self.now += 1 + TOLERANCE
            self.offer(self.now)
        assert self.admitted[-1] == self.check.newest_ns == self.now

    @rule()
    def clear(self):
        self.out += len(self.check.clear())
        self.admitted.clear()
        self.offered = self.out

    @invariant()
    def every_frame_has_one_fate_and_few_wait(self):
        if hasattr(self, "check"):
            assert self.check.waiting <= 2
            assert self.offered == len(self.admitted) + self.out + self.check.waiting


TestStream = Stream.TestCase
