# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""bench/ingest_while_answering.py counts right; the clock is the test's own."""

import itertools
from pathlib import Path

import pytest
from toy_qwen import chatter_model, toy_frames, toy_processor

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "ingest_while_answering.py"
CHUNK = 12  # tokens


@pytest.fixture(scope="module")
def bench(load):
    return load(SCRIPT)


@pytest.fixture
def make_rig(bench):
    rigs = []

    def make(slack):
        engine = VideoStreamingInference(
            chatter_model(),
            toy_processor(),
            eviction_config=EvictionConfig.novelty(150),
            fork_slack_tokens=slack,
        )
        chunks = [toy_frames(4, seed=number) for number in range(12)]
        for images in chunks:
            engine.append_video_chunk(images, fps=2)
        ticks = itertools.count()
        # A second passes whenever somebody looks at the clock: here, at each piece of an answer.
        rigs.append(bench.Rig(engine, chunks, 40, lambda: float(next(ticks))))
        return rigs[-1]

    yield make
    for rig in rigs:
        rig.close()


def test_what_is_delivered_is_encoded_meanwhile_waits_or_is_lost(make_rig):
    rig = make_rig(50 * CHUNK)
    assert rig.answer()["delivered"] == 0
    waiting = rig.answer(0.0, 4.0)
    assert waiting["delivered"] > 4 and waiting["encoded"] == 0
    assert waiting["lost"] == waiting["delivered"] - 2
    encoded = rig.answer(1.0, 4.0)
    assert encoded["delivered"] == waiting["delivered"] and encoded["lost"] == 0
    assert encoded["encoded"] >= encoded["delivered"] - 1  # one may come with the last piece
    crowded = make_rig(2 * CHUNK).answer(1.0, 4.0)
    assert crowded["encoded"] == 2 and crowded["lost"] == crowded["delivered"] - 4


def test_the_table_has_a_row_for_every_camera_and_share(bench, make_rig):
    told = []
    report = bench.measure(make_rig(50 * CHUNK), (0.1, 0.9), (0.0, 1.0), 1, told.append)
    assert report["rows"] == told
    assert [(row["load"], row["ingest_share"]) for row in told] == [
        (0.1, 0.0),
        (0.1, 1.0),
        (0.9, 0.0),
        (0.9, 1.0),
    ]
    for row in told:
        assert row["ingest_rate_loss"] == pytest.approx(1 - row["encoded"], abs=1e-3)
        assert row["answer_speed_loss"] == pytest.approx(1 - 1 / row["answer_ratio"], abs=2e-3)
