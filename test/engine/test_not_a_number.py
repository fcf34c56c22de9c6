# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What is infinite or not a number is neither kept nor answered with.

After a chunk or a question that was refused, a stream is that of an engine which never saw it.
"""

from contextlib import contextmanager

import numpy as np
import pytest
import torch
from toy_qwen import SINK_AND_WINDOW

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.engine.cache.requests import TailLayer
from stream_vlm_ros.errors import NotFiniteError

LEVELS = {"sampled_share": 0.3, "important_share": 0.3}
# Of the vision tower's first and the decoder's last layer, and of the two norms at their ends.
IN_A_CHUNK = [
    "visual.blocks.0.attn.qkv.weight",
    "visual.merger.mlp.2.bias",
    "model.layers.1.self_attn.k_proj.weight",
    "model.layers.1.mlp.down_proj.weight",
]
IN_A_QUESTION = ["lm_head.weight", "model.norm.weight", "model.layers.0.self_attn.v_proj.bias"]


@pytest.fixture(scope="module")
def fragile(toys):
    """A model of its own: its weights are damaged and mended."""
    return toys.model()


@contextmanager
def damaged(model, name, value=torch.nan):
    weight = model.state_dict()[name]
    before = weight.clone()
    weight[(-1,) * weight.ndim] = value
    try:
        yield
    finally:
        weight.copy_(before)


def make(model, processor, shares=SINK_AND_WINDOW, path="eager"):
    config = EvictionConfig(max_cache_tokens=150, **shares)
    return VideoStreamingInference(
        model, processor, eviction_config=config, question_path=path, skip_similarity=0.999
    )


def chunk(toys, number):
    return {
        "frames": toys.frames(4, 56, 84, seed=number),
        "timestamps": [2.0 * number + index / 2 for index in range(4)],
    }


def assert_equal(one, other):
    assert torch.equal(one.cache_manager.gather(), other.cache_manager.gather())
    assert torch.equal(one.cache_manager.ledger.positions(), other.cache_manager.ledger.positions())
    seen, expected = one.get_cache_info(), other.get_cache_info()
    assert {**seen, "reserved_memory_bytes": 0} == {**expected, "reserved_memory_bytes": 0}
    assert one.ask("What?", 4)[0] == other.ask("What?", 4)[0]


@contextmanager
def infinite_key(number, head, sign):
    """In one layer the last token's key overflows: a softmax gives it all the weight, or none."""
    update, layers = TailLayer.update, []

    def overflow(layer, keys, values):
        if layer not in layers:
            layers.append(layer)
        if layers.index(layer) % 2 == number:  # of two layers, in their order
            keys = keys.clone()
            keys[:, head, -1, 3] = sign * torch.inf
        return update(layer, keys, values)

    TailLayer.update = overflow
    try:
        yield
    finally:
        TailLayer.update = update


@pytest.mark.parametrize("call", ["chunk", "exchange"])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("head", [0, 1])
@pytest.mark.parametrize("number", [0, 1])
def test_an_infinite_key_that_no_query_sees_yet_is_refused(
    toys, model, processor, number, head, sign, call
):
    engine, straight = (make(model, processor) for _ in range(2))
    for one in (engine, straight):
        one.append_video_chunk(**chunk(toys, 0))
    with infinite_key(number, head, sign), pytest.raises(NotFiniteError):
        if call == "chunk":
            engine.append_video_chunk(**chunk(toys, 1))
        else:
            engine.ask("What?", 1, update_state=True)
    for at in (1, 2):
        for one in (engine, straight):
            one.append_video_chunk(**chunk(toys, at))
        assert_equal(engine, straight)


@pytest.mark.parametrize("shares", [SINK_AND_WINDOW, LEVELS], ids=["window", "levels"])
@pytest.mark.parametrize("before", [0, 6])
@pytest.mark.parametrize("name", IN_A_CHUNK)
def test_a_chunk_of_no_numbers_is_refused_and_the_next_ten_are_as_if_it_never_came(
    toys, fragile, processor, name, before, shares
):
    engine, straight = (make(fragile, processor, shares) for _ in range(2))
    for number in range(before):
        engine.append_video_chunk(**chunk(toys, number))
        straight.append_video_chunk(**chunk(toys, number))
    for value in (torch.nan, torch.inf):
        with damaged(fragile, name, value), pytest.raises(NotFiniteError, match="bfloat16"):
            engine.append_video_chunk(**chunk(toys, before))
    for number in range(before, before + 10):
        engine.append_video_chunk(**chunk(toys, number))
        straight.append_video_chunk(**chunk(toys, number))
        assert_equal(engine, straight)


def test_frames_that_overflow_float16_are_refused_one_chunk_after_the_other(toys, processor):
    model = toys.model().half()
    # A white picture sums up to three times the largest float16, a grey one to a hundredth of it.
    weight = model.state_dict()["visual.patch_embed.proj.weight"]
    weight.fill_(3 * 65_504 / (1.9 * weight[0].numel()))

    def frames(level):
        return [np.full((56, 84, 3), level, np.uint8)] * 4

    engine, straight = (make(model, processor) for _ in range(2))
    with pytest.raises(NotFiniteError, match="float16 does beyond 65,504"):
        engine.append_video_chunk(frames(255), fps=2)
    for level in range(118, 128):
        for one in (engine, straight):
            one.append_video_chunk(frames(level), fps=2)
        with pytest.raises(NotFiniteError):
            engine.append_video_chunk(frames(255), fps=2)
        assert_equal(engine, straight)
    bright = make(toys.model().bfloat16(), processor)  # the remedy
    weight = bright.model.state_dict()["visual.patch_embed.proj.weight"]
    weight.fill_(3 * 65_504 / (1.9 * weight[0].numel()))
    bright.append_video_chunk(frames(255), fps=2)


@pytest.mark.parametrize("path", ["eager", "static"])
@pytest.mark.parametrize("name", IN_A_QUESTION)
def test_a_question_of_no_numbers_gets_an_error_and_leaves_no_trace(
    toys, fragile, processor, name, path
):
    engine, straight = (make(fragile, processor, path=path) for _ in range(2))
    for one in (engine, straight):
        one.append_video_chunk(**chunk(toys, 0))
    # (With an infinite weight in the head the one logit that is not finite may be -inf, which is
    # only a token that never comes.)
    for value in (torch.nan,) if name == "lm_head.weight" else (torch.nan, torch.inf):
        with damaged(fragile, name, value):
            for options in ({}, {"do_sample": True}, {"repetition_penalty": 2.0}):
                with pytest.raises(NotFiniteError, match="bfloat16"):
                    engine.ask("What?", 4, update_state=True, **options)
            with pytest.raises(NotFiniteError, match="choices"):
                engine.ask_choice("Which?", ["left", "right"])
    assert_equal(engine, straight)
    choices = [one.ask_choice("Which?", ["left", "right"])[1].scores for one in (engine, straight)]
    assert choices[0] == choices[1]


@pytest.mark.parametrize("path", ["eager", "static"])
@pytest.mark.parametrize("at", range(4))
def test_an_exchange_of_no_numbers_is_not_kept_wherever_they_begin(
    toys, fragile, processor, path, at
):
    engine, straight = (make(fragile, processor, path=path) for _ in range(2))
    for one in (engine, straight):
        one.append_video_chunk(**chunk(toys, 0))
    whole = list(straight.ask_stream("What is it?", 4))
    answer = engine.ask_stream("What is it?", 4, update_state=True)
    pieces = [next(answer) for _ in whole[:at]]
    with damaged(fragile, "model.layers.0.mlp.down_proj.weight"), pytest.raises(NotFiniteError):
        pieces += list(answer)
    assert pieces == whole[: len(pieces)]
    assert_equal(engine, straight)
