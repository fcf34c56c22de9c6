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
