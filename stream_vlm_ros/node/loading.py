# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""From the node's parameters to a running engine. Imports torch only when called: the node is on
the graph, and says what it is doing, while the libraries load."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable
from typing import TYPE_CHECKING

from stream_vlm_ros.config import Settings
from stream_vlm_ros.factory import build_engine, load_model

if TYPE_CHECKING:
    from stream_vlm_ros.engine import InferenceEngine


def engine_loader(parameters: Settings) -> Callable[[Settings], InferenceEngine]:
    """What builds the engines of a node's cameras, each with its own settings, over the one model
    that ``parameters`` name; loaded for the first of them.

    It raises:
        ModelLoadError: the folder is missing, incomplete or of another kind of model.
        DeviceUnavailableError: the device is not there, or has no room for one more memory.
        InvalidParameterError, CapTooSmallError: a setting the engine refuses.
    """
    model = functools.cache(functools.partial(load_model, parameters))
    return lambda settings: build_engine(settings, model())


def pixel_limit(parameters: Settings) -> tuple[str, int]:
    """Which parameter bounds the pictures of the engine in use, and its value."""
    if parameters.engine == "delayed_batch":
        return "sampled_max_pixels", parameters.sampled_max_pixels
    return "max_pixels", parameters.max_pixels


def release_memory() -> None:
    """Give the GPU's memory back after the last reference to an engine is gone."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
