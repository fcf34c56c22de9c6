# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The model under test: a network, its processor, and where both came from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stream_vlm_ros.engine import (
    EvictionConfig,
    StreamProcessor,
    StreamQwenModel,
    VideoStreamingInference,
)
from stream_vlm_ros.engine.model.device import resolve_device, resolve_dtype
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.factory import default_model
from stream_vlm_ros.model_card import ModelCard

from .shapes import random_network, shape_config, words_processor

SMALL_MODEL = default_model()


@dataclass
class ModelUnderTest:
    """A model on its device.

    Attributes:
        name: of the folder or the shape.
        random: the weights are random: lengths, times and memory are those of a trained model,
            answers are noise.
        tokenizer: where the text tokens come from, in words.
        folder: of the weights, if there is one.
    """

    network: StreamQwenModel
    processor: StreamProcessor
    device: torch.device
    name: str
    random: bool
    tokenizer: str
    folder: Path | None = None

    @property
    def card(self) -> ModelCard:
        """What the model says of itself."""
        return ModelCard(self.name) if self.folder is None else ModelCard.of(self.folder)

    @classmethod
    def load(
        cls,
        model: str | Path | None = None,
        shape: str | None = None,
        processor: str | Path | None = None,
        device: str = "auto",
        dtype: str = "auto",
        seed: int = 0,
    ) -> ModelUnderTest:
        """A checkpoint folder; a named shape with random weights; or neither: the small model of
        this package.

        Args:
            processor: folder of tokenizer, chat template and image settings, instead of the
                model's own; with a shape, instead of the small model's words.
            dtype: auto is bfloat16 on a GPU and float32 on a CPU.

        Raises ModelLoadError, DeviceUnavailableError, InvalidParameterError.
        """
        if model is not None and shape is not None:
            raise InvalidParameterError("Give either a model's folder or a shape, not both.")
        place = resolve_device(device)
        number_format = resolve_dtype(dtype, place)
        own = StreamProcessor.from_pretrained(processor) if processor is not None else None
        if shape is None:
            folder = SMALL_MODEL if model is None else Path(os.path.expanduser(model))
            network = StreamQwenModel.from_pretrained(folder, torch_dtype=number_format)
            tokens = f"of {processor}" if own is not None else "the model's own"
            own = own or StreamProcessor.from_pretrained(folder)
            network = network.to(place).eval()
            return cls(network, own, place, folder.name, False, tokens, folder)
        tokens = (
            f"of {processor}"
            if own is not None
            else "the small model's words: the chat layout takes as many tokens as with Qwen's own "
            "tokenizer, other text may take more or fewer"
        )
        own = own or words_processor()
        network = random_network(shape_config(shape, own), place, number_format, seed)
        return cls(network, own, place, f"shape {shape}", True, tokens)

    def engine(self, cap: int | None = None, **options: Any) -> VideoStreamingInference:
        """A new engine on this model.

        Args:
            cap: max_cache_tokens; None: no bound.
            options: fields of `EvictionConfig` (sink and window alone without them), and what
                `VideoStreamingInference` takes.
        """
        fields = EvictionConfig.__dataclass_fields__
        shares = {name: options.pop(name) for name in list(options) if name in fields}
        bound = None if cap is None else EvictionConfig(max_cache_tokens=cap, **shares)
        return VideoStreamingInference(self.network, self.processor, self.device, bound, **options)

    def describe(self) -> dict[str, Any]:
        """What a report says about it."""
        return {
            "name": self.name,
            "weights": "random: answers are noise" if self.random else "trained",
            "parameters": self.network.released_parameters,
            "dtype": str(self.network.dtype).removeprefix("torch."),
            "kv_bytes_per_token": self.network.kv_shape.bytes_per_token,
            "tokenizer": self.tokenizer,
        }
