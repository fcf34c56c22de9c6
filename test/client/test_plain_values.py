# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What a node says comes out as what it was made of, by the node's own way to messages."""

from dataclasses import replace

import pytest

from stream_vlm_ros.session.memory_summary import EpisodeState, LevelState, MemorySummary, TierState
from stream_vlm_ros.session.question import Outcome, Question, QueueFullError

pytest.importorskip("rclpy")
pytestmark = pytest.mark.ros

AT = 1_700_000_000_123_456_789  # ns; not a float of seconds
SPANS = ((AT, AT + 1), (AT + 5_000_000_000, AT + 9_999_999_999))


@pytest.fixture
def memory():
    from stream_vlm_ros.node.interfaces import to_header

    levels = [
        LevelState(name, 2 * number, 7 * number, SPANS[: number % 3])
        for number, name in enumerate(("sink", "sampled", "important", "window"))
    ]
    return MemorySummary(
        length=700, cap=16_384, sink=35, window=500, memory_bytes=1 << 33, chunks=1 << 40, frames=9,
        evictions=3, evicted_tokens=40, closed_pauses=2, closed_seconds=0.5,
        oldest_ns=AT, newest_ns=SPANS[-1][1], spans_ns=SPANS, levels=tuple(levels),
        tiers=(TierState("keys", 4, 8, 100, 1 << 40, "/data", AT, AT + 7, left_out=3),
               TierState("pictures", 0, 0, 0, 9, "memory", None, None)),
        header=to_header(SPANS[-1][1], "camera"),
    )  # fmt: skip


def told(memory):
    from stream_vlm_ros.node.interfaces import to_cache_status

    return to_cache_status(memory, "active", {"frames_received": 1})


@pytest.mark.parametrize("full", [True, False])
def test_a_memory(memory, full):
    from stream_vlm_ros.client.plain_values import to_memory

    one = memory if full else MemorySummary()
    assert to_memory(told(one)) == one


def test_an_answer_with_its_evidence_and_the_memory_it_was_read_from(memory):
    from stream_vlm_ros.client.plain_values import to_outcome
    from stream_vlm_ros.node.interfaces import to_answer

    episode = EpisodeState(
        AT, AT + 9, 0.5, "history", (AT, AT + 9), thumbnails=((AT + 9, b"\xff\xd8 a picture"),)
    )
    outcome = Outcome(
        Question("Who?", ("a", "b")), answer="b", choice_index=1, choice_scores=(-2.0, -0.25),
        choice_tokens=(1, 3), waiting=0.25, ttft=0.5, latency=1.75, prompt_tokens=12,
        fetched_tokens=40, answer_tokens=3, finish_reason="choice", memory=memory,
        evidence=(episode,),
    )  # fmt: skip
    later = replace(memory, oldest_ns=AT + 1, newest_ns=AT + 2, spans_ns=SPANS[:1])
    assert to_outcome(to_answer(outcome, told(later)), outcome.question) == outcome


def test_an_error_by_its_code_and_words(memory):
    from stream_vlm_ros.client.plain_values import to_outcome
    from stream_vlm_ros.node.interfaces import to_answer

    question = Question("Who?")
    failed = Outcome(question, error=QueueFullError("8 wait"), memory=memory)
    error = to_outcome(to_answer(failed, told(memory)), question).error
    assert (error.code, str(error)) == ("QUEUE_FULL", "8 wait")
