# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Qwen2.5-VL's configuration as the library parses it, and what of it is refused, in words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from transformers import Qwen2_5_VLConfig

from stream_vlm_ros.engine.inputs.frames import read_json_object
from stream_vlm_ros.errors import ModelLoadError, real_number

MODEL_TYPE = "qwen2_5_vl"
_MOST_LAYERS = 1024  # each of them takes memory before a file of weights is looked at
_MARKS = ("image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id")
_LARGEST_SIZE = 10**7


def read_config(folder: Path) -> Qwen2_5_VLConfig:
    """The configuration of a checkpoint folder; the library knows its styles, old and new.

    Raises ModelLoadError saying why the model is not one that the engine runs.
    """
    file = folder / "config.json"
    given = read_json_object(file)
    if given.get("model_type") != MODEL_TYPE:
        raise ModelLoadError(
            f"{folder} holds a model of type '{given.get('model_type')}': only Qwen2.5-VL "
            f"('{MODEL_TYPE}') is supported"
        )
    if quantised := given.get("quantization_config"):
        method = quantised.get("quant_method") if isinstance(quantised, dict) else None
        raise ModelLoadError(
            f"{folder} holds quantised weights ({method or quantised!r}): only weights of 16 or 32 "
            "bits are supported; take the model that is not quantised"
        )
    try:
        config = Qwen2_5_VLConfig.from_pretrained(folder, local_files_only=True)
    except Exception as error:  # the library validates by errors of many kinds
        said = " ".join(str(error).split())
        raise ModelLoadError(f"cannot read {file}: {said}") from error
    check_config(config, str(file))
    return config


def token_problem(name: str, value: Any, words: int) -> str | None:
    """Why ``value`` is no token, nor a list of them, of a model with an embedding of ``words``."""
    for token in value if isinstance(value, list) else [value]:
        if type(token) is not int or not 0 <= token < words:
            return f"{name} is {value!r}, not a token (a number from 0 to {words - 1:,})"
    return None


def check_tokens(config: Any) -> None:
    """Raise ModelLoadError unless what marks a video, and what ends an answer, are tokens."""
    text = config.text_config
    named = {name: getattr(config, name) for name in _MARKS}
    if text.eos_token_id is not None:
        named["eos_token_id"] = text.eos_token_id
    for name, value in named.items():
        if problem := token_problem(name, value, text.vocab_size):
            raise _refusal("config.json", problem)
    pad = getattr(config, "pad_token_id", None)
    if pad is not None and type(pad) is not int:  # not used, but the library compares it
        raise _refusal("config.json", f"pad_token_id is {pad!r}, not a number")


def check_config(config: Any, where: str = "its configuration") -> None:
    """Raise ModelLoadError, naming ``where`` it stands, if the engine cannot run such a model."""
    text, vision = config.text_config, config.vision_config
    for of, sizes in (
        (text, "hidden_size intermediate_size num_hidden_layers num_attention_heads vocab_size "
               "num_key_value_heads"),
        (vision, "hidden_size intermediate_size depth num_heads out_hidden_size patch_size "
                 "spatial_merge_size temporal_patch_size window_size in_channels"),
    ):  # fmt: skip
        for name in sizes.split():
            value = getattr(of, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise _refusal(where, f"{name} is {value!r}, not a whole number above 0")
            most = _MOST_LAYERS if name in ("num_hidden_layers", "depth") else _LARGEST_SIZE
            if value > most:
                raise _refusal(where, f"{name} is {value:,}; at most {most:,} are taken")
    if text.hidden_size % text.num_attention_heads:
        raise _refusal(
            where, f"{text.num_attention_heads} heads do not divide hidden_size {text.hidden_size}"
        )
    if text.num_attention_heads % text.num_key_value_heads:
        raise _refusal(
            where,
            f"{text.num_key_value_heads} key-value heads do not divide {text.num_attention_heads} "
            "heads",
        )
    if vision.hidden_size % (4 * vision.num_heads):
        raise _refusal(
            where,
            f"the vision tower's {vision.num_heads} heads of hidden_size {vision.hidden_size} have "
            "no size that 4 divides",
        )
    if vision.out_hidden_size != text.hidden_size:
        raise _refusal(
            where,
            f"the vision tower's features are {vision.out_hidden_size} wide, the language model's "
            f"hidden states {text.hidden_size}",
        )
    if vision.window_size < vision.patch_size * vision.spatial_merge_size:
        raise _refusal(where, f"a window of {vision.window_size} pixels holds no token")
    for of in (text, vision):
        if of.hidden_act != "silu":
            raise _refusal(where, f"hidden_act is '{of.hidden_act}': only 'silu' is supported")
    if not vision.tokens_per_second > 0:
        raise _refusal(where, f"tokens_per_second is {vision.tokens_per_second}")
    if text.use_sliding_window:
        raise _refusal(where, "this checkpoint uses sliding window attention: not supported")
    _check_rotation(text, where)


def _check_rotation(text: Any, where: str) -> None:
    rope = text.rope_parameters
    kind = rope.get("rope_type", "default")
    if kind != "default":
        raise _refusal(where, f"this checkpoint scales its rotary embedding ('{kind}')")
    sections = rope.get("mrope_section", [16, 24, 24])
    half = text.hidden_size // text.num_attention_heads // 2
    whole = isinstance(sections, (list, tuple)) and all(type(n) is int and n > 0 for n in sections)
    if not whole or len(sections) != 3 or sum(sections) != half:
        raise _refusal(
            where,
            f"mrope_section is {sections!r}: three whole numbers (of t, h, w) were expected that "
            f"add up to {half}, half the size of a head",
        )
    theta = rope.get("rope_theta")
    base = real_number(theta)
    if base is None or not 0 < base < math.inf:
        raise _refusal(where, f"rope_theta is {theta!r}")


def _refusal(where: str, why: str) -> ModelLoadError:
    return ModelLoadError(f"the model is not supported, by {where}: {why}")
