# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""One wrong stamp is one lost frame: which stamps are believed."""

from itertools import combinations, pairwise

import pytest
from amounts import examples
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from stream_vlm_ros.engine.inputs.stamp_check import (
    FIRST_STEP_NS,
    MAX_WAITING,
    ODD_STEP,
    RECENT_STEPS,
    StampCheck,
    Timing,
    check_stamp,
    join_stamp,
)
from stream_vlm_ros.engine.inputs.timestamps import SECOND
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
        10 * SECOND - 1: Timing.IN_ORDER,
        10 * SECOND: Timing.PAUSE,  # while no step is known
        3600 * SECOND: Timing.PAUSE,
        3600 * SECOND + 1: Timing.JUMP,
        0: Timing.LATE,  # the same frame twice
        -SECOND: Timing.LATE,
        -SECOND - 1: Timing.JUMP,
    }
    assert {d: check.classify(10_000 * SECOND + d) for d in verdicts} == verdicts


def test_a_step_is_judged_by_the_longest_of_the_last_four():
    check = check_at(0)
    for stamp in (9, 10, 11, 14, 15):  # steps of 9, 1, 1, 3 and 1 s
        assert check.offer(stamp * SECOND, stamp).admitted == (stamp,)
    verdicts = {6 * SECOND - 1: Timing.IN_ORDER, 6 * SECOND: Timing.PAUSE}
    assert {d: check.classify(15 * SECOND + d) for d in verdicts} == verdicts


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


@pytest.mark.parametrize("jump", [-900, 900])
@pytest.mark.parametrize("before", [1, 2, 3])
def test_fewer_than_three_frames_are_outvoted_by_three_that_agree(before, jump):
    check = small()
    told(check, range(1000, 1000 + before))
    row = [1000 + jump + k for k in range(3)]
    decision = [check.offer(stamp, stamp) for stamp in row][-1]
    assert (list(decision.admitted), decision.outvoted) == (row, before < 3)


@pytest.mark.parametrize("wrong", [10**6, 161, 0, 97])
def test_one_wrong_stamp_is_refused_and_the_next_frame_is_taken(wrong):
    admitted, refused, jumps = told(small(), [99, 100, wrong, 101, 102])
    assert (admitted, refused, jumps) == ([99, 100, 101, 102], [wrong], [])


def test_two_wrong_stamps_in_a_row_are_two_lost_frames():
    assert told(small(), [100, 900, 901, 101]) == ([100, 101], [900, 901], [])


@pytest.mark.parametrize("wrong", [0, 70, 97, 99, 101, 103, 112, 120, 150, 161, 900])
@pytest.mark.parametrize("place", range(1, 8))
def test_however_far_off_one_wrong_stamp_among_regular_ones_is_one_lost_frame(wrong, place):
    good = [99 + 4 * k for k in range(8)]
    check = small(believe_backwards=False, newest_ns=95)
    told(check, [])
    admitted, refused, jumps = told(check, [*good[:place], wrong, *good[place:]])
    assert len(admitted) >= len(good) and jumps == []
    assert len(admitted) + len(refused) + check.waiting == len(good) + 1


def test_a_pause_loses_nothing_and_two_wrong_stamps_within_the_gap_are_two_lost_frames():
    assert told(small(), [98, 99, 100, 150, 151, 152]) == ([98, 99, 100, 150, 151, 152], [], [])
    assert told(small(), [98, 99, 100, 150, 151, 101]) == ([98, 99, 100, 101], [150, 151], [])


def test_what_waits_after_a_pause_is_admitted_when_none_may_follow():
    for end in (StampCheck.release, StampCheck.finish):
        check = small()
        assert told(check, [98, 99, 100, 150, 151])[0] == [98, 99, 100]
        assert end(check).admitted == (150, 151)
        assert told(check, [152])[0] == [152] and check.waiting == 0


def test_a_source_that_became_slow_waits_once():
    check = small()
    told(check, [98, 99, 100, 150])
    check.release()
    assert told(check, [200, 250]) == ([200, 250], [], [])


def test_what_waits_after_a_jump_is_not_released():
    check = small(newest_ns=100)
    told(check, [900])
    assert check.release() == small().release() and check.waiting == 1


def test_pauses_need_not_be_doubted():
    assert told(small(doubt_pauses=False), [98, 99, 100, 150])[0] == [98, 99, 100, 150]


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


@pytest.mark.parametrize("wrong", [0, 130, 900])
@pytest.mark.parametrize("place", range(5))
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


def test_a_source_whose_first_frames_all_disagree_begins_where_three_agree():
    check = small(confirm_first=True, believe_backwards=False)
    admitted, refused, jumps = told(check, [10, 900, 5000, 300, 301, 302])
    assert (admitted, refused, jumps) == ([300, 301, 302], [10, 900, 5000], [])
    assert told(check, [5, 6, 7])[0] == []  # what three frames began stands


@pytest.mark.parametrize("wrong", [[900, 901], [10, 11], [150, 151], [900, 10], [150, 10]])
def test_two_wrong_first_stamps_are_two_lost_frames(wrong):
    check = small(confirm_first=True, believe_backwards=False)
    good = [100, 101, 102, 103, 104]
    assert told(check, [*wrong, *good]) == (good, wrong, [])


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


def by_the_rule(stamps, newest, backwards):
    """What the rule says of a whole source: every choice of those that wait is tried.

    Returns the fate of each frame: "in", "out", or "open" where the end came first.
    """
    fates = ["open"] * len(stamps)
    agreed, steps = 3 if newest is not None else 0, []

    def waiting(before):
        return [j for j in range(before) if fates[j] == "open"]

    def follow(row):
        sides = {newest is None or stamps[j] > newest for j in row}
        return len(sides) == 1 and all(0 < stamps[b] - stamps[a] <= GAP for a, b in pairwise(row))

    def alike(a, b, c):
        return stamps[c] - stamps[b] < ODD_STEP * (stamps[b] - stamps[a])

    for k, stamp in enumerate(stamps):
        ahead = None if newest is None else stamp - newest
        usual = max(steps[-RECENT_STEPS:], default=FIRST_STEP_NS)
        if ahead is None or (0 < ahead <= GAP and ahead < ODD_STEP * usual):
            for j in waiting(k):
                fates[j] = "out"
            fates[k], agreed = "in", agreed + 1
            steps += [] if ahead is None else [ahead]
            newest = stamp
            continue
        if any(stamps[j] == stamp for j in waiting(k)):
            fates[k] = "out"
            continue
        may_go_back = backwards or agreed < 3
        goes_on = may_go_back and any(follow([j, k]) for j in waiting(k))
        newest_stands = agreed >= 3 or ahead == 0
        if -TOLERANCE <= ahead <= 0 and newest_stands and not goes_on:
            fates[k] = "out"
            continue
        if not may_go_back:
            for j in waiting(k + 1):
                fates[j] = "out" if stamps[j] <= newest else "open"
            if fates[k] == "out":
                continue
        all_rows = [
            row
            for count in range(3, len(waiting(k + 1)) + 1)
            for row in combinations(waiting(k + 1), count)
            if row[-1] == k and follow(row)
        ]
        full = len(waiting(k + 1)) > MAX_WAITING
        if all_rows and (full or any(len(row) == 3 and alike(*row) for row in all_rows)):
            length = max(map(len, all_rows))
            believed = min(row for row in all_rows if len(row) == length)
            for j in waiting(k + 1):
                fates[j] = "in" if j in believed else "out"
            jumped = not 0 < stamps[believed[0]] - newest <= GAP
            agreed = length if jumped else agreed + length
            steps = [stamps[b] - stamps[a] for a, b in pairwise(believed)]
            newest = stamp
        elif full:
            fates[waiting(k)[0]] = "out"
    return fates


STAMPS = st.one_of(
    st.integers(0, 12), st.integers(90, 110), st.integers(140, 180), st.integers(10**6, 10**6 + 80)
)


@settings(max_examples=examples(250))
@given(
    stamps=st.lists(STAMPS, max_size=25),
    newest=st.none() | STAMPS,
    backwards=st.booleans(),
)
@example([98, 99, 100, 150, 151, 152], None, True)
def test_waiting_decides_as_the_rule_says(stamps, newest, backwards):
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
    assert [fate or "open" for fate in fates] == by_the_rule(stamps, newest, backwards)


@st.composite
def sources(draw):
    """Stamps of a regular source with pauses, and where wrong ones come between.

    Good stamps are even and wrong ones odd: of two frames with one stamp the first is taken. No
    wrong one is of a pause just over: it would be the next in order. One alone may be as little
    ahead as a pause is; it may be taken then, and makes the usual step, so that the others are
    further away.
    """
    stamp, good, wrong = 100, [], {}
    near = draw(st.integers(0, 4))
    for block in range(draw(st.integers(1, 5))):
        pause = range(stamp, stamp + 2 * draw(st.integers(1, GAP // 2)))
        stamp = pause.stop - 2
        for _ in range(draw(st.integers(4, 7))):
            stamp += 2
            good.append(stamp)
        place = draw(st.integers(len(good) - 3, len(good) - 1))
        odd = (STAMPS | st.integers(0, 400)).map(lambda w: w | 1)
        alike = pause if block == near else range(pause.start, good[place] + 2 * len(pause))
        wrong[place] = draw(odd.filter(lambda w, alike=alike: w not in alike))
    return good, wrong


@settings(max_examples=examples(250))
@given(source=sources(), read_to_end=st.booleans(), backwards=st.booleans())
def test_each_wrong_stamp_costs_one_frame_and_a_pause_none(source, read_to_end, backwards):
    good, wrong = source
    if not read_to_end:  # no step is known before the second frame
        wrong.pop(1, None)
    stamps = []
    for k, stamp in enumerate(good):
        stamps += [wrong[k], stamp] if k in wrong else [stamp]
    check = small(believe_backwards=backwards, confirm_first=read_to_end)
    refused = [*told(check, stamps)[1], *(frame for frame, _ in check.finish().refused)]
    assert len(refused) <= len(wrong)


def test_a_wrong_stamp_taken_for_the_next_makes_the_step_that_the_one_after_it_is_held_against():
    check = small()
    # 107 cannot be told from a frame that came early; by its step of 3 neither can 117, by 5.
    decided = told(check, [100, 102, 104, 107, 106, 108, 110, 112, 117, 114, 116, 118])
    assert decided[1] == [106, 114, 116]


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
        self.take(self.check.offer(stamp, stamp))

    def take(self, decision):
        self.out += len(decision.refused)
        if decision.jump_ns is not None:
            assert 3 <= len(decision.admitted) <= MAX_WAITING + 1
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
    def release(self):
        self.take(self.check.release())

    @rule()
    def clear(self):
        self.out += len(self.check.clear())
        self.admitted.clear()
        self.offered = self.out

    @invariant()
    def every_frame_has_one_fate_and_few_wait(self):
        if hasattr(self, "check"):
            assert self.check.waiting <= MAX_WAITING
            assert self.offered == len(self.admitted) + self.out + self.check.waiting


TestStream = Stream.TestCase
