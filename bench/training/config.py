# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The small model's shape: Qwen2.5-VL in every part, narrow."""

from __future__ import annotations

import json
from pathlib import Path

from stream_vlm_ros.world import tokenizer as words

MIN_PIXELS, MAX_PIXELS = 4 * 28 * 28, 16_800  # 640x480 becomes 140x112: 4 x 5 tokens a grid
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def model_config():
    """The `Qwen2_5_VLConfig` of the small model.

    Of the 32 rotary frequencies of a head 20 go to time, from one turn in 6 positions to one in
    23,000, so that both the last seconds and a whole hour can be told apart; where in the picture a
    thing is comes from the vision tower, so rows and columns need few.
    """
    from transformers import Qwen2_5_VLConfig

    tokenizer = words.build_tokenizer()
    ids = {name: tokenizer.token_to_id(name) for name in words.SPECIAL}
    size = tokenizer.get_vocab_size()
    rope = {"rope_type": "default", "type": "default", "mrope_section": [20, 6, 6]}
    text = dict(
        vocab_size=size, hidden_size=256, intermediate_size=640, num_hidden_layers=8,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=32768,
        rms_norm_eps=1e-6, rope_theta=1e6, tie_word_embeddings=True,
        bos_token_id=ids["<|endoftext|>"], eos_token_id=ids["<|im_end|>"],
        pad_token_id=ids["<|endoftext|>"], use_sliding_window=False,
    )  # fmt: skip
    vision = dict(
        depth=4, hidden_size=192, intermediate_size=384, num_heads=4, in_channels=3, in_chans=3,
        out_hidden_size=256, patch_size=14, spatial_merge_size=2, temporal_patch_size=2,
        tokens_per_second=2, window_size=448, fullatt_block_indexes=[0, 1, 2, 3],
    )  # fmt: skip
    return Qwen2_5_VLConfig(
        text_config={**text, "rope_parameters": {**rope, "rope_theta": 1e6}, "rope_scaling": rope},
        vision_config=vision,
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
        vision_token_id=ids["<|vision_pad|>"],
        tie_word_embeddings=True,
    )


def save_settings(folder: str | Path) -> None:
    """Write all files of the model folder but config.json and the weights."""
    folder = Path(folder)
    ids = words.save(folder)
    image = {
        "image_processor_type": "Qwen2VLImageProcessor", "processor_class": "Qwen2_5_VLProcessor",
        "min_pixels": MIN_PIXELS, "max_pixels": MAX_PIXELS, "patch_size": 14,
        "temporal_patch_size": 2, "merge_size": 2, "image_mean": list(MEAN), "image_std": list(STD),
    }  # fmt: skip
    generation = {
        "bos_token_id": ids["<|endoftext|>"], "pad_token_id": ids["<|endoftext|>"],
        "eos_token_id": [ids["<|im_end|>"], ids["<|endoftext|>"]], "do_sample": False,
    }  # fmt: skip
    for name, settings in (("preprocessor_config", image), ("generation_config", generation)):
        (folder / f"{name}.json").write_text(json.dumps(settings, indent=2) + "\n")
