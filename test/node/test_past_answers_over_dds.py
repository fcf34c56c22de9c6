# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Where past answers are kept, when the file that was named cannot be."""

import pytest

pytestmark = pytest.mark.ros


@pytest.mark.parametrize("here", [{"answers_file": __file__}], indirect=True)
def test_where_the_file_is_somebody_elses_answers_are_kept_in_memory_and_that_is_said(here):
    from stream_vlm.srv import GetAnswers

    here.client.ask("Who?")
    reply = here.client.graph.call(GetAnswers, "/here/stream_vlm/get_answers")
    assert (reply.success, reply.message, reply.found) == (True, "kept in memory", 1)
    (past,) = reply.answers
    assert past.answer.question == "Who?" and past.answer.error_code == past.answer.EMPTY_MEMORY
    assert past.answered.sec > 0


def test_answers_that_could_not_be_kept_are_told_with_those_that_are(here, monkeypatch):
    from stream_vlm.srv import GetAnswers

    from stream_vlm_ros.session.answer_log import AnswerLog

    find = AnswerLog.find

    def after_a_loss(log, *arguments):
        log.lost, log.why_lost = 2, "disk full"
        return find(log, *arguments)

    monkeypatch.setattr(AnswerLog, "find", after_a_loss)
    reply = here.client.graph.call(GetAnswers, "/here/stream_vlm/get_answers")
    assert reply.message == "kept in memory; 2 answers could not be kept: disk full"


@pytest.mark.parametrize(
    "fields",
    [
        {"question": 5},
        {"choices": [1]},
        {"seen": [5]},
        {"seen": 5},
        {"ttft": {"sec": "a"}},
        {"ttft": {"sec": 1 << 40}},
        {"error_code": -1},
    ],
)
def test_what_a_message_cannot_have_is_refused_before_it_would_be_sent(fields):
    from stream_vlm.msg import Answer

    from stream_vlm_ros.plain_messages import fill

    with pytest.raises((AssertionError, TypeError)):
        fill(Answer(), fields)
