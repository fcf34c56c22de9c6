# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

import math

from stream_vlm_ros.world.examiner import (
    VideoExaminer,
    WorldExaminer,
    examiner_for,
)
from stream_vlm_ros.world.world import World


def test_questions_about_a_video_take_turns_and_are_not_judged():
    examiner = VideoExaminer()
    count = len(VideoExaminer.QUESTIONS)
    asked = [examiner.question(float(i)) for i in range(count + 1)]
    assert asked[0] == asked[count] and len(set(asked)) == count
    assert examiner.judge(asked[0], "anything", 3.0).right is None


def test_own_questions_are_asked_instead():
    examiner = examiner_for("drive.mp4", ["One?", "Two?"])
    assert [examiner.question(0.0).text for _ in range(3)] == ["One?", "Two?", "One?"]


def test_answers_about_a_drawn_world_are_judged_by_its_truth():
    examiner = examiner_for("world:7", [])
    assert isinstance(examiner, WorldExaminer) and examiner.exact
    judged = 0
    for time in range(10, 60, 2):
        question = examiner.question(float(time))
        if question is None:
            continue
        wrong = examiner.judge(question, "an elephant made of glass", float(time))
        assert wrong.right is False
        assert examiner.judge(question, wrong.truth, float(time)) == (True, wrong.truth)
        judged += 1
    assert judged >= 10


def test_nothing_is_asked_at_the_moment_when_something_comes():
    examiner = examiner_for("world:7", [])
    arrival = next(s.start for s in World(7).sightings(60.0) if s.start > 10)
    frame = math.ceil(arrival * 2) / 2  # the first frame that shows it
    assert examiner.question(frame) is None


def test_an_answer_is_judged_by_what_the_memory_has_seen_when_it_answers():
    examiner = examiner_for("world:7", [])
    # "What is visible now?" made early, answered when all has changed: the later truth counts.
    made, question = next(
        (t, q) for t in range(10, 60) if (q := examiner.question(t)) and "now" in q.text
    )
    early = examiner.judge(question, "", float(made)).truth
    sightings = World(7).sightings(120.0)
    changed = 0
    for time in range(made, made + 40):
        verdict = examiner.judge(question, early, float(time))
        if verdict.right is None:  # something has just come or gone
            continue
        there = {s.thing.phrase for s in sightings if s.start <= time < s.end}
        assert verdict.right == (set(early.split(" and ")) == (there or {"nothing"}))
        assert examiner.judge(question, verdict.truth, float(time)).right is True
        changed += not verdict.right
    assert changed > 3


def test_a_question_that_has_no_clear_answer_any_more_is_not_judged():
    examiner = examiner_for("world:7", [])
    arrival = next(s.start for s in World(7).sightings(60.0) if s.start > 10)
    frame = math.ceil(arrival * 2) / 2  # something has just come
    time, question = next(
        (t / 2, asked) for t in range(20, 120) if (asked := examiner.question(t / 2)) is not None
    )
    truth = examiner.judge(question, "", time).truth
    assert time != frame and examiner.judge(question, truth, time).right is True
    assert examiner.judge(question, truth, frame).right is None


def test_the_same_world_gets_the_same_questions():
    one, other = ([e.question(t / 2) for t in range(99)] for e in map(WorldExaminer, "77"))
    assert one == other and any(one)
