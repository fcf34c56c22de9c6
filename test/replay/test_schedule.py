"""When questions are due."""

from __future__ import annotations

from stream_vlm_ros.replay.judging import make_judge
from stream_vlm_ros.replay.questions import Question
from stream_vlm_ros.replay.schedule import Schedule

SECOND = 1_000_000_000
NONE = make_judge("none", ())


def question(name, **when):
    return Question(name, name, NONE, **when)


def ids(asks):
    return [ask.id for ask in asks]


def test_questions_come_in_the_order_of_their_times_and_of_the_file():
    schedule = Schedule([question("late", at=9.0), question("b", at=2.0), question("a", at=2.0)], 0)
    assert ids(schedule.before(2 * SECOND)) == []
    assert ids(schedule.before(2 * SECOND + 1)) == ["b", "a"]
    assert schedule.next_ns == 9 * SECOND
    assert ids(schedule.rest()) == ["late"]


def test_a_stamp_of_the_source_is_counted_from_its_first_frame():
    schedule = Schedule([question("a", at_stamp_ns=107 * SECOND)], 100 * SECOND)
    assert schedule.next_ns == 7 * SECOND


def test_a_question_asked_every_so_often_ends_with_the_source_or_before():
    schedule = Schedule(
        [
            question("x", every=2.0, until=5.0),
            question("y", every=3.0, first=0.0),
            question("z", at_end=True),
        ],
        0,
    )
    assert ids(schedule.until(6 * SECOND)) == ["y@0", "x@2", "y@3", "x@4", "y@6", "z"]
    assert ids(schedule.rest()) == []
    assert schedule.next_ns == 9 * SECOND
