# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A checkpoint folder, ready to work: its network on the device, and its processor."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, NamedTuple

import torch

from stream_vlm_ros.engine.inputs.frames import read_json_object
from stream_vlm_ros.engine.inputs.processor import StreamProcessor
from stream_vlm_ros.engine.model.base import StreamModel
from stream_vlm_ros.engine.model.config import check_tokens
from stream_vlm_ros.engine.model.device import resolve_device, resolve_dtype
from stream_vlm_ros.engine.model.qwen2_5_vl import StreamQwenModel
from stream_vlm_ros.engine.model.weights import CheckpointFiles
from stream_vlm_ros.errors import ModelLoadError, folder_named

# By the ``model_type`` of config.json.
FAMILIES: dict[str, type[StreamModel]] = {"qwen2_5_vl": StreamQwenModel}


class Checkpoint(NamedTuple):
    """What an engine is built from."""

    network: StreamModel
    processor: StreamProcessor
    device: torch.device


def load_checkpoint(
    folder: str | Path,
    device: str | torch.device = "auto",
    dtype: str = "auto",
) -> Checkpoint:
    """Load a folder of this machine; nothing is downloaded.

    Args:
        folder: of the checkpoint; ``~`` is the user's home.
        device: see `resolve_device`.
        dtype: see `resolve_dtype`.

    Raises:
        ModelLoadError: the folder is missing, incomplete or of another family, or its files do not
            fit one another.
        DeviceUnavailableError: there is no such device, or it cannot be used.
        InvalidParameterError: the device or the number format is not one that is known.
    """
    place = resolve_device(device)
    number_format = resolve_dtype(dtype, place)
    folder = Path(os.path.expanduser(folder_named(folder)))
    # What is quick comes first, and names what is missing.
    CheckpointFiles.find(folder)
    family = family_of(folder)
    config = family.read_config(folder)
    processor = StreamProcessor.from_pretrained(folder)
    check_fit(config, processor)
    network = family.from_pretrained(folder, number_format, device=place)
    return Checkpoint(network.eval(), processor, place)


def family_of(folder: Path) -> type[StreamModel]:
    """The class of a checkpoint folder's model; ModelLoadError where config.json cannot be read.

    For a type that none is for it is StreamQwenModel, whose `read_config` refuses it in words.
    """
    kind = read_json_object(folder / "config.json").get("model_type")
    return next((found for name, found in FAMILIES.items() if name == kind), StreamQwenModel)


def check_fit(config: Any, processor: StreamProcessor) -> None:
    """Raise ModelLoadError if pictures are cut into other patches than the model's, or the
    tokenizer or the configuration has words that the model has no embedding for."""
    vision, settings = config.vision_config, processor.image_settings
    for ours, theirs in (
        ("patch_size", "patch_size"),
        ("merge_size", "spatial_merge_size"),
        ("temporal_patch_size", "temporal_patch_size"),
    ):
        given, wanted = getattr(settings, ours), getattr(vision, theirs)
        if given != wanted:
            raise ModelLoadError(
                f"the processor's {ours} is {given}, the model's is {wanted}: take both from the "
                "same checkpoint folder"
            )
    tokenizer, embedded = processor.tokenizer, config.text_config.vocab_size
    words = 1 + max(len(tokenizer) - 1, *tokenizer.added_tokens_decoder)
    if words > embedded:
        raise ModelLoadError(
            f"the tokenizer has {words:,} words, the model's embedding {embedded:,}: take both "
            "from the same checkpoint folder"
        )
    check_tokens(config)
