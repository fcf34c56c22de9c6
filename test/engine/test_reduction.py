# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Token reduction: static scenes cost little, and nothing else changes."""

import numpy as np
import pytest
import torch
from toy_qwen import SINK_AND_WINDOW

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.engine.inputs.token_reduction import StaticTokenFilter
from stream_vlm_ros.errors import InvalidParameterError, OutOfHorizonError


def scene(seed=0, changed=None):
    """Four equal frames of 2 x 3 tokens, with one token's square of pixels repainted."""
    frame = np.random.default_rng(seed).integers(0, 256, (56, 84, 3), dtype=np.uint8)
    if changed is not None:
        row, column = divmod(changed, 3)
        frame[28 * row : 28 * row + 28, 28 * column : 28 * column + 28] = 255 * (seed % 2)
    return [frame] * 4


@pytest.fixture
def local_model(toys):
    """A vision tower without attention between patches that matters: features stay local."""
    model = toys.model(3)
    for name, weight in model.state_dict().items():
        if ".attn.proj." in name:
            weight.zero_()
    return model


def test_a_static_scene_costs_one_token_a_grid(local_model, processor):
    engine = VideoStreamingInference(local_model, processor, skip_similarity=0.999)
    first = engine.append_video_chunk(scene(), fps=2)
    later = engine.append_video_chunk(scene(), fps=2)
    assert first["tokens"] == 45 + 6 + 1  # text and a whole grid, then one token
    assert later["tokens"] == 2
    assert engine.get_cache_info()["grids_in_memory"] == 4


def test_what_changes_is_appended_at_its_own_position(local_model, processor):
    plain = VideoStreamingInference(local_model, processor)
    sparing = VideoStreamingInference(local_model, processor, skip_similarity=0.999)
    for engine in (plain, sparing):
        engine.append_video_chunk(scene(), fps=2)
        engine.append_video_chunk(scene(changed=4), fps=2)
    everything = plain.cache_manager.ledger.positions()
    some = sparing.cache_manager.ledger.positions()
    # 45 text tokens, grids of 6 at seconds 0 to 3. Sparing: grid 0 whole; of grid 1 the token that
    # differs most, of 2 the one repainted; of 3 any one.
    assert torch.equal(some[:, :51], everything[:, :51])
    assert torch.equal(some[:, 52], everything[:, 45 + 2 * 6 + 4])
    assert some.shape[1] == 54
    assert sparing.cache_manager.ledger.next_position == plain.cache_manager.ledger.next_position


def test_a_threshold_of_one_and_moving_pictures_leave_nothing_out(toys, local_model, processor):
    plain = VideoStreamingInference(local_model, processor)
    sparing = VideoStreamingInference(local_model, processor, skip_similarity=0.9999)
    for number in range(4):
        for engine in (plain, sparing):
            engine.append_video_chunk(toys.frames(4, seed=number), fps=2)
    assert torch.equal(plain.cache_manager.gather(), sparing.cache_manager.gather())


def test_what_the_window_forgot_is_appended_again(local_model, processor):
    # Room for 100 tokens, 52 in the sink: a static scene must not slip out of the window.
    engine = VideoStreamingInference(
        local_model,
        processor,
        eviction_config=EvictionConfig(100, **SINK_AND_WINDOW),
        skip_similarity=0.999,
    )
    for _ in range(60):
        engine.append_video_chunk(scene(), fps=2)
        assert engine.get_cache_info()["cache_seq_length"] <= 100
    window = engine.cache_manager.ledger.runs(["window"])
    places = {place for run in window for grid in run.grids for place in grid.places}
    assert places == set(range(6))


def test_a_restored_snapshot_takes_back_what_was_known(local_model, processor):
    engine = VideoStreamingInference(local_model, processor, skip_similarity=0.999)
    engine.append_video_chunk(scene(), fps=2)
    saved = engine.cache_manager.snapshot()
    engine.append_video_chunk(scene(seed=1), fps=2)
    engine.cache_manager.restore(saved)
    step = engine.append_video_chunk(scene(seed=1), fps=2)
    assert step["tokens"] == 6 + 1  # new again
    engine.reset()
    assert engine.append_video_chunk(scene(seed=1), fps=2)["tokens"] == 45 + 6 + 1


@pytest.mark.parametrize("interval", [1, 3])
def test_every_place_of_the_picture_is_in_the_window_after_every_chunk(
    local_model, processor, interval
):
    random, frame = np.random.default_rng(0), scene()[0]
    engine = VideoStreamingInference(
        local_model,
        processor,
        eviction_config=EvictionConfig.novelty(75, eviction_interval=interval),
        skip_similarity=0.999,
    )
    engine.append_video_chunk([frame] * 4, fps=2)
    for _ in range(100):
        if random.random() < 0.2:  # at times much changes at once, and pushes out what did not
            for place in random.permutation(6)[:5]:
                row, column = 28 * (place // 3), 28 * (place % 3)
                frame = frame.copy()
                frame[row : row + 28, column : column + 28] = random.integers(0, 256, (28, 28, 3))
        engine.append_video_chunk([frame] * 4, fps=2)
        window = [
            grid for run in engine.cache_manager.ledger.runs(["window"]) for grid in run.grids
        ]
        assert {place for grid in window for place in grid.places or range(6)} == set(range(6))


def test_pictures_of_another_shape_are_taken_whole(local_model, processor):
    engine = VideoStreamingInference(local_model, processor, skip_similarity=0.9)
    for height, width, tokens in [(56, 84, 45 + 6 + 1), (84, 56, 6 + 1), (84, 56, 1 + 1)]:
        grey = [np.full((height, width, 3), 90, np.uint8)] * 4
        assert engine.append_video_chunk(grey, fps=2)["tokens"] == tokens


@pytest.mark.parametrize("kind", ["snapshot", "clone"])
def test_what_is_known_goes_back_with_the_stream(local_model, processor, kind):
    engine, straight = (
        VideoStreamingInference(local_model, processor, skip_similarity=0.999) for _ in range(2)
    )
    for one in (engine, straight):
        one.append_video_chunk(scene(), fps=2)
        one.append_video_chunk(scene(changed=2), fps=2)
    saved = getattr(engine.cache_manager, kind)()
    if kind == "clone":
        engine.reset()
    engine.append_video_chunk(scene(seed=1, changed=4), fps=2)
    engine.cache_manager.restore(saved)
    for one in (engine, straight):
        one.append_video_chunk(scene(seed=1, changed=4), fps=2)
        one.append_video_chunk(scene(changed=2), fps=2)
    assert torch.equal(engine.cache_manager.gather(), straight.cache_manager.gather())


@pytest.mark.parametrize("similarity", [0, -1, 1.5, "x", True])
def test_a_threshold_out_of_range_is_refused(similarity):
    StaticTokenFilter(1)  # only what is exactly alike
    with pytest.raises(InvalidParameterError, match="skip_similarity"):
        StaticTokenFilter(similarity)


def test_a_question_about_a_time_not_remembered_is_refused_instead_of_guessed(
    toys, model, processor
):
    engine = VideoStreamingInference(
        model, processor, eviction_config=EvictionConfig(100, **SINK_AND_WINDOW)
    )
    for number in range(10):
        engine.append_video_chunk(toys.frames(4, seed=number), timestamps=[10.0 * number] * 4)
    # In memory: second 0 (the sink) and 60 to 90.
    for about in [(0.0, 3.0), (55.0, 61.0), (90.0, 99.0)]:
        engine.ask("What was there?", 2, about=about)
    with pytest.raises(OutOfHorizonError, match=r"from 20\.000 to 30\.000 s is remembered.*0\.000"):
        engine.ask("What was there?", 2, about=(20.0, 30.0))
    with pytest.raises(OutOfHorizonError):
        engine.ask_choice("What was there?", ["a", "b"], about=(91.0, 92.0))
    for about in ((float("-inf"), -1.0), (91.0, float("inf"))):  # no limit on one side
        with pytest.raises(OutOfHorizonError):
            engine.ask("What was there?", 2, about=about)
    engine.ask("What was there?", 2, about=(float("-inf"), 0.0))
    with pytest.raises(InvalidParameterError, match="ends before it begins"):
        engine.ask("What was there?", 2, about=(3.0, 2.0))
    for about in (5.0, (1.0,), (1, 2, 3), ("a", 3)):
        with pytest.raises(InvalidParameterError, match=r"is \(from, to\) in seconds, not"):
            engine.ask("What was there?", 2, about=about)


def test_a_cap_can_be_said_as_a_span_at_a_rate_of_tokens():
    config = EvictionConfig.for_span(600, 40.5, sampled_share=0.5)
    assert (config.max_cache_tokens, config.sampled_share) == (24_300, 0.5)
    with pytest.raises(InvalidParameterError, match="cannot derive a cap"):
        EvictionConfig.for_span(0, 10)
    with pytest.raises(InvalidParameterError, match="cannot derive a cap"):
        EvictionConfig.for_span(10, float("inf"))
