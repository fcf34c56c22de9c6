# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What waits to be sent is bounded, and told in its order."""

import asyncio
import itertools

from stream_vlm_ros.remote.protocol import (
    Dropped,
    MemoryStatus,
    ResponseReading,
    SessionEnding,
    Status,
    TextDelta,
)
from stream_vlm_ros.serve.outbox import Outbox


def make(max_events=10):
    count = itertools.count(1)
    return Outbox(lambda: MemoryStatus(status=Status(queue_depth=next(count))), max_events)


def taken(outbox, count):
    async def take():
        return [await outbox.get() for _ in range(count)]

    return asyncio.run(take())


def lost(number):
    return Dropped(first=number, last=number, frames=1, cause="error")


def test_of_the_status_the_newest_alone_waits_and_is_made_when_it_is_sent():
    outbox = make()
    for _ in range(3):
        outbox.put(None)
    outbox.put(lost(1))
    first, second = taken(outbox, 2)
    assert (first.status.queue_depth, second) == (1, lost(1))
    outbox.put(None)
    assert taken(outbox, 1)[0].status.queue_depth == 2


def test_pieces_of_one_answer_that_wait_are_one_and_those_of_others_stay_apart():
    outbox = make()
    outbox.put(ResponseReading(response_id="a"))
    for id, delta in (("a", "red "), ("b", "two "), ("a", "circle"), ("b", "things")):
        outbox.put(TextDelta(response_id=id, delta=delta))
    told = taken(outbox, 3)
    assert [event.delta for event in told[1:]] == ["red circle", "two things"]
    outbox.put(TextDelta(response_id="a", delta="!"))
    assert taken(outbox, 1)[0].delta == "!"


def test_with_one_more_than_may_wait_it_is_full_and_takes_the_last_word_alone():
    outbox = make(max_events=3)
    for number in range(10):
        outbox.put(lost(number))
    assert outbox.full
    ending = SessionEnding(code="TOO_SLOW", message="")
    outbox.end(ending)
    outbox.put(lost(10))
    assert taken(outbox, 5) == [lost(0), lost(1), lost(2), lost(3), ending]
