# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What a level of cameras came to: which of its questions and frames count against it."""

import asyncio

import pytest
from serve import Camera, figures, holds

from stream_vlm_ros.remote import protocol


class Connection:
    """What a server says, and then no more."""

    def __init__(self, events):
        self.events = [protocol.encoded(event) for event in events]

    async def send(self, message):
        pass

    async def recv(self):
        if self.events:
            return self.events.pop(0)
        raise EOFError


async def asked(*events):
    """A camera that asks one question, and hears this."""
    camera = Camera("camera", 1)
    camera.connection = Connection(events)
    await camera.ask("q0")
    with pytest.raises(EOFError):
        await camera.listen()
    return camera


TEXT = protocol.TextDelta(response_id="q0", delta="a box")
REFUSED = protocol.Fault(code="QUEUE_FULL", message="8 questions are waiting already")


@pytest.mark.parametrize(
    ("events", "failed"),
    [
        ([TEXT, protocol.ResponseDone(response=protocol.Response(id="q0"))], 0),
        ([protocol.ResponseDone(response=protocol.Response(id="q0"))], 0),  # an empty answer
        ([protocol.ResponseDone(response=protocol.Response(id="q0", error=REFUSED))], 1),
        ([TEXT, protocol.ResponseDone(response=protocol.Response(id="q0", error=REFUSED))], 1),
        ([], 1),
    ],
)
def test_a_question_without_an_answer_counts_against_its_level(events, failed):
    level = figures([asyncio.run(asked(*events))])
    assert level["questions_failed"] == failed
    assert holds(level) == (not failed)
    assert (level["first_token_ms"]["p99"] is not None) == (TEXT in events)


@pytest.mark.parametrize(("waited", "kept_up"), [(1999.0, True), (2001.0, False)])
def test_a_level_keeps_up_if_chunks_are_remembered_as_fast_as_they_come(waited, kept_up):
    """Of 4 frames at 2 a second, in the second half: the first one finds steps unrecorded."""
    camera = Camera("camera", 1)
    camera.sent = camera.ingested = camera.ended = 8
    camera.remembered = {4: 5000.0, 8: waited}
    assert holds(figures([camera])) is kept_up
