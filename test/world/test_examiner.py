import math

from stream_vlm_ros.world.examiner import (
    Question,
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
        _, truth = examiner._pending
        assert question.text == truth.text
        assert examiner.judge(question, truth.answer, float(time)).right is True
        wrong = examiner.judge(question, "an elephant made of glass", float(time))
        assert wrong == (False, truth.answer)
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
    made = next(t for t in range(10, 60) if (q := examiner.question(t)) and "now" in q.text)
    question = Question(examiner._pending[1].text)
    early = examiner._pending[1].answer
    verdicts = {}
    for time in range(made, made + 40):
        later = examiner._again(examiner._pending[1], float(time))
        if later is not None and later.answer != early:
            verdicts[time] = later.answer
            assert examiner.judge(question, later.answer, float(time)).right is True
            assert examiner.judge(question, early, float(time)).right is False
    assert len(verdicts) > 3


def test_a_question_that_has_no_clear_answer_any_more_is_not_judged():
    examiner = examiner_for("world:7", [])
    arrival = next(s.start for s in World(7).sightings(60.0) if s.start > 10)
    frame = math.ceil(arrival * 2) / 2  # something has just come
    time = next(t / 2 for t in range(20, 120) if examiner.question(t / 2) is not None)
    found = examiner._pending[1]
    assert time != frame
    assert examiner.judge(Question(found.text), found.answer, frame).right is None


def test_the_same_world_gets_the_same_questions():
    one, other = ([e.question(t / 2) for t in range(99)] for e in map(WorldExaminer, "77"))
    assert one == other and any(one)
