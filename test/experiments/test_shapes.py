# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Named shapes: the released sizes with random weights."""

import pytest
import torch
from transformers import Qwen2_5_VLForConditionalGeneration

from stream_vlm_ros.engine import StreamQwenModel
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.experiments.model_under_test import ModelUnderTest
from stream_vlm_ros.experiments.shapes import (
    random_network,
    shape_config,
    words_processor,
)


def parameters(hidden, inner, layers, kv, words, tied):
    """Counted from the architecture: the language model, then the vision tower of the releases."""
    layer = hidden * hidden * 2 + 2 * hidden * kv * 128 + hidden + 2 * kv * 128  # q o k v, biases
    layer += 3 * hidden * inner + 2 * hidden
    language = layers * layer + hidden + words * hidden * (1 if tied else 2)
    v, m = 1280, 3420
    block = 4 * v * v + 4 * v + 3 * v * m + 2 * m + v + 2 * v
    merger = v + (4 * v) ** 2 + 4 * v + 4 * v * hidden + hidden
    return language + 32 * block + 3 * 2 * 14 * 14 * v + merger


@pytest.mark.parametrize(
    ("name", "size"),
    [("3b", (2048, 11008, 36, 2, 151_936, True)), ("7b", (3584, 18944, 28, 4, 152_064, False))],
)
def test_a_shape_has_the_parameters_of_the_release(name, size):
    with torch.device("meta"):
        network = Qwen2_5_VLForConditionalGeneration(shape_config(name, words_processor()))
    assert sum(weight.numel() for weight in network.parameters()) == parameters(*size)
    ours = StreamQwenModel(network.config, torch.bfloat16, "meta")
    assert ours.released_parameters == parameters(*size)  # though its tensors are padded
    assert sum(weight.numel() for weight in ours.parameters()) > parameters(*size)


def test_the_3b_shape_has_the_heads_and_rotation_of_the_release():
    config = shape_config("3b", words_processor())
    text, vision = config.text_config, config.vision_config
    head = text.hidden_size // text.num_attention_heads
    # Keys and values, 2 bytes each: what the reference counts a token.
    assert 2 * 2 * text.num_hidden_layers * text.num_key_value_heads * head == 36_864
    assert text.rope_parameters["mrope_section"] == [16, 24, 24]
    assert vision.fullatt_block_indexes == [7, 15, 23, 31] and vision.tokens_per_second == 2


def test_random_weights_are_those_of_their_seed_and_leave_the_default_type():
    config = shape_config("toy", words_processor())
    one, same, other = (
        random_network(config, torch.device("cpu"), torch.bfloat16, seed).state_dict()
        for seed in (1, 1, 2)
    )
    name = "model.layers.0.mlp.up_proj.weight"
    assert one[name].dtype == torch.bfloat16 and torch.get_default_dtype() == torch.float32
    assert torch.equal(one[name], same[name]) and not torch.equal(one[name], other[name])


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"shape": "13b"}, "13b"),
        ({"shape": "toy", "model": "folder"}, "not both"),
        ({"shape": "toy", "dtype": "int8"}, "int8"),
    ],
)
def test_what_cannot_be_is_refused_in_words(wrong, says):
    with pytest.raises(InvalidParameterError, match=says):
        ModelUnderTest.load(device="cpu", **wrong)
