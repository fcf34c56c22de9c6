# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How soon a cancelled answer ends, with an engine that writes a token when it is told to."""

import asyncio
import threading

import pytest
from fake_engine import FakeEngine, answer_metrics
from patience import PATIENCE

from stream_vlm_ros.engine.decoding import Answer

pytestmark = pytest.mark.ros


class SteppedEngine(FakeEngine):
    """Writes one token for each release of :attr:`steps`."""

    def __init__(self):
        super().__init__()
        self.steps = threading.Semaphore(0)

    def ask_stream(self, question, max_new_tokens=128, cancel=None, **options):
        def write():
            for count in range(max_new_tokens):
                if cancel():
                    return answer_metrics(count, "cancelled")
                assert self.steps.acquire(timeout=PATIENCE)
                yield "x"
            return answer_metrics(max_new_tokens)

        return Answer(write(), lambda: None)


@pytest.fixture
def fake_engine():
    return SteppedEngine()


def test_after_a_cancel_at_most_the_token_that_is_being_written_comes(here):
    from stream_vlm_ros.client import StreamVlmClient

    here.client.send(here.client.image())
    here.client.wait_status(lambda status: status.frames == 1)

    async def ask():
        async with (
            StreamVlmClient("/here/stream_vlm", patience=PATIENCE) as client,
            client.stream("Tell.", max_new_tokens=50) as stream,
        ):
            for _ in range(3):
                here.engine.steps.release()
                await anext(stream)
            await stream.cancel()
            here.engine.steps.release(40)
            return await stream.answer()

    answer = asyncio.run(ask())
    assert answer.finish_reason == "cancelled" and answer.text in ("xxx", "xxxx")
