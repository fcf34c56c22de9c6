# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Qwen2.5-VL in named sizes with random weights, for whatever depends only on shapes."""

from __future__ import annotations

import tempfile
from typing import Any

import torch
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig

from stream_vlm_ros.engine import StreamProcessor, StreamQwenModel
from stream_vlm_ros.engine.inputs.frames import ImageSettings
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.world import tokenizer as words

_VISION = dict(
    depth=32,
    hidden_size=1280,
    intermediate_size=3420,
    num_heads=16,
    fullatt_block_indexes=[7, 15, 23, 31],
)
# From the releases' config.json: the language model's part, the vision tower's, tied embeddings.
_SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "3b": (
        dict(
            hidden_size=2048,
            intermediate_size=11008,
            num_hidden_layers=36,
            num_attention_heads=16,
            num_key_value_heads=2,
            vocab_size=151_936,
        ),
        _VISION,
        True,
    ),
    "7b": (
        dict(
            hidden_size=3584,
            intermediate_size=18944,
            num_hidden_layers=28,
            num_attention_heads=28,
            num_key_value_heads=4,
            vocab_size=152_064,
        ),
        _VISION,
        False,
    ),
    "toy": (
        dict(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=2048,
        ),
        dict(depth=2, hidden_size=32, intermediate_size=64, num_heads=2, fullatt_block_indexes=[1]),
        False,
    ),
}
SHAPES = tuple(_SHAPES)


def shape_config(name: str, processor: StreamProcessor) -> Qwen2_5_VLConfig:
    """The configuration of a shape, with the token ids of ``processor``.

    Raises InvalidParameterError for an unknown name, or a tokenizer with more words than the shape.
    """
    if name not in _SHAPES:
        raise InvalidParameterError(f"There is no shape {name!r}: choose from {', '.join(SHAPES)}.")
    text, vision, tied = _SHAPES[name]
    tokenizer = processor.tokenizer
    if len(tokenizer) > text["vocab_size"]:
        raise InvalidParameterError(
            f"The tokenizer has {len(tokenizer):,} words, but the shape {name} has room for "
            f"{text['vocab_size']:,}."
        )
    id_of = tokenizer.convert_tokens_to_ids
    eighth = text["hidden_size"] // text["num_attention_heads"] // 16
    rope = {
        "rope_type": "default",
        "rope_theta": 1e6,
        "mrope_section": [2 * eighth, 3 * eighth, 3 * eighth],  # of a head of 128: 16, 24, 24
    }
    return Qwen2_5_VLConfig(
        text_config=dict(
            text,
            rope_parameters=rope,
            max_position_embeddings=128_000,
            rms_norm_eps=1e-6,
            use_sliding_window=False,
            tie_word_embeddings=tied,
            bos_token_id=id_of("<|endoftext|>"),
            eos_token_id=id_of("<|im_end|>"),
            pad_token_id=id_of("<|endoftext|>"),
        ),
        vision_config=dict(
            vision,
            out_hidden_size=text["hidden_size"],
            patch_size=14,
            spatial_merge_size=2,
            temporal_patch_size=2,
            window_size=112,
            tokens_per_second=2,
        ),
        image_token_id=id_of("<|image_pad|>"),
        video_token_id=id_of("<|video_pad|>"),
        vision_start_token_id=id_of("<|vision_start|>"),
        vision_end_token_id=id_of("<|vision_end|>"),
        tie_word_embeddings=tied,
    )


def random_network(
    config: Qwen2_5_VLConfig, device: torch.device, dtype: torch.dtype, seed: int = 0
) -> StreamQwenModel:
    """A model with random weights, made where it will work (on a CPU 3B take minutes)."""
    return StreamQwenModel.with_random_weights(config, seed, dtype, device)


def words_processor() -> StreamProcessor:
    """The small model's own tokenizer, with the image settings of the released models.

    In the chat layout it takes as many tokens as the real one: the words in it are whole.
    """
    with tempfile.TemporaryDirectory() as folder:
        words.save(folder)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    tokenizer.chat_template = words.CHAT_TEMPLATE
    settings = ImageSettings(min_pixels=56 * 56, max_pixels=12_845_056)
    return StreamProcessor(tokenizer, settings, words.CHAT_TEMPLATE)
