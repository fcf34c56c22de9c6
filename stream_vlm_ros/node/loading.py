# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""From the node's parameters to a running engine. Imports torch only when called: the node is on
the graph, and says what it is doing, while the libraries load."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

from stream_vlm_ros.config import Settings
from stream_vlm_ros.factory import build_engine, load_model

if TYPE_CHECKING:
    from stream_vlm_ros.engine import InferenceEngine


def load_engine(parameters: Settings) -> InferenceEngine:
    """The engine that ``parameters`` ask for.

    Raises:
        ModelLoadError: the folder is missing, incomplete or of another kind of model.
        DeviceUnavailableError: the device is not there.
        InvalidParameterError, CapTooSmallError: a setting the engine refuses.
    """
    return build_engine(parameters, load_model(parameters))


def release_memory() -> None:
    """Give the GPU's memory back after the last reference to an engine is gone."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
