# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The delayed batch engine by the prototype's names."""

import pytest

from stream_vlm_ros.history import DelayedBatchInferenceEngine, SmartFrameManager


@pytest.fixture
def engine(small, noise):
    """Ten frames at 1 fps have come, six are to be encoded, and a question was asked."""
    memory = SmartFrameManager(target_fps=1.0)
    engine = DelayedBatchInferenceEngine(
        *small, memory=memory, max_sampled_frames=6, max_pixels=56 * 56
    )
    for second, picture in enumerate(noise(10)):
        engine.append_frame(picture, float(second))
    engine.ask("What?", 2)
    return engine


def test_sampling_metadata_says_what_was_chosen_and_what_it_spans(engine):
    found = engine.sampling_metadata
    assert found["original_frames"] == 10
    assert found["sampled_frames"] == 6 and found["temporal_grids"] == 3
    assert found["sampling_ratio"] == 0.6
    assert found["real_span"] == 9.0  # the first and the last are among them
    # Positions span the real duration: three grids of three seconds.
    assert found["second_per_grid_t"] == pytest.approx(3.0)
    assert found["covered_span"] == pytest.approx(9.0)


def test_statistics_and_metrics_have_the_prototype_s_keys(engine):
    pytest.importorskip("stream_vlm_ros.history.results", reason="results are not typed yet")
    statistics = engine.get_statistics()
    assert statistics["total_frames_added"] == 10
    assert statistics["stream_memory_size"] == 10
    for key in ("encode_count", "cache_valid", "star_memory_size", "unique_frames",
                "compression_ratio", "disk_cache_enabled"):  # fmt: skip
        assert key in statistics
    _, metrics = engine.ask("And now?", 2)
    assert metrics["output_tokens"] == metrics["answer_tokens"]
    assert metrics["encoding_latency"] == metrics["encode_latency"]
    for key in ("total_latency", "generation_latency", "frames_encoded", "visual_tokens"):
        assert key in metrics
