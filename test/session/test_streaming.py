# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The node's worker appends chunks to the streaming engine between the tokens of an answer."""

import numpy as np
import pytest
from patience import PATIENCE
from toy_qwen import chatter_model, toy_frames, toy_processor

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.session.counters import Drop, FrameCounters
from stream_vlm_ros.session.question import Question
from stream_vlm_ros.session.timed_frame import TimedFrame
from stream_vlm_ros.session.worker import EngineWorker
from stream_vlm_ros.web.figures import choice_shares

CAP, CHUNK = 150, 12  # tokens


class Rig:
    """A worker over a toy engine whose memory is full."""

    def __init__(self, share, slack, shares=(-1.0, -1.0)):
        config = EvictionConfig(CAP, 0, 0, 1, *shares)
        self.engine = VideoStreamingInference(
            chatter_model(), toy_processor(), eviction_config=config, fork_slack_tokens=slack
        )
        self.counters = FrameCounters()
        self.worker = EngineWorker(lambda: self.engine, self.counters, 2, 8, ingest_share=share)
        self.worker.start()
        self.worker.loaded.result(PATIENCE)
        self.chunks = 0
        while self.chunks < 12:
            self.come()
            self.answer("settled?", 1)

    def come(self):
        """The next chunk."""
        images = toy_frames(4, seed=self.chunks)
        stamps = [round((4 * self.chunks + k) * SECOND / 2) for k in range(4)]
        for _ in images:
            self.counters.receive()
        self.worker.append(
            [TimedFrame(s, i, f"at {s}") for s, i in zip(stamps, images, strict=True)]
        )
        self.chunks += 1

    def answer(self, text, tokens, come=0, **options):
        """An answer, while which so many chunks come: one with each piece of text."""
        self.lengths, left = [], iter(range(come))

        def progress(state, text):
            self.lengths.append(self.worker.memory.length)
            if text and next(left, None) is not None:
                self.come()

        question = Question(text, max_new_tokens=tokens, **options)
        return self.worker.ask(question, progress).future.result(PATIENCE)


@pytest.fixture
def make_rig():
    rigs = []

    def make(*arguments, **options):
        rigs.append(Rig(*arguments, **options))
        return rigs[-1]

    yield make
    for rig in rigs:
        assert rig.worker.stop(PATIENCE)


@pytest.mark.parametrize("shares", [(-1.0, -1.0), (0.0, 0.0)])
def test_no_frame_is_lost_because_somebody_asks_and_the_answer_is_the_same(make_rig, shares):
    during, waiting = (make_rig(share, 6 * CHUNK, shares) for share in (1.0, 0.0))
    answers = [rig.answer("What is it?", 40, come=5).answer for rig in (during, waiting)]
    assert answers[0] == answers[1]
    assert during.counters.ingested == 4 * (12 + 5)
    assert waiting.counters.dropped[Drop.OVERFLOW] == 4 * 3  # two may wait
    assert max(during.lengths) <= CAP + 6 * CHUNK
    assert (max(during.lengths) > CAP) == (shares != (0.0, 0.0))
    assert during.worker.memory.length <= CAP


def test_beyond_the_slack_chunks_wait_as_if_there_were_none(make_rig):
    rig = make_rig(1.0, 2 * CHUNK)
    rig.answer("What is it?", 40, come=5)
    rig.answer("settled?", 1)
    # Two of the five found room beside the answer, two waited, and one was pushed out.
    assert rig.counters.dropped[Drop.OVERFLOW] == 4
    assert rig.counters.ingested == 4 * (12 + 4) and rig.counters.pending == 0
    assert rig.worker.memory.length <= CAP


def test_an_exchange_is_kept_behind_the_chunks_that_came(make_rig):
    rig = make_rig(1.0, 2 * CHUNK, (0.2, 0.0))
    outcome = rig.answer("So?", 8, come=1, keep_exchange=True)
    assert outcome.error is None and outcome.memory.frames == 4 * 12
    assert rig.engine.get_cache_info()["exchanges"] == 1
    assert rig.worker.memory.frames == 4 * 13 and rig.worker.memory.length <= CAP


def test_choices_are_scored_from_a_memory_that_nothing_is_appended_to(make_rig):
    rig = make_rig(1.0, 2 * CHUNK)
    outcome = rig.answer("Which?", 8, come=1, choices=("red", "blue"))
    assert np.isfinite(outcome.choice_scores).all() and outcome.memory.frames == 4 * 12
    shares = choice_shares(outcome)  # as the console shows them
    assert all(0 <= share <= 1 for share in shares) and sum(shares) == pytest.approx(1)
    assert outcome.choice_index == np.argmax(shares)
