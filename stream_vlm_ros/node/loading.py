# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""From the node's parameters to a running engine. Imports torch only when called: the node is on
the graph, and says what it is doing, while the libraries load."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from stream_vlm_ros.config import Settings
from stream_vlm_ros.factory import build_engine, group_of, load_model
from stream_vlm_ros.session.engine_thread import together_appender

if TYPE_CHECKING:
    from stream_vlm_ros.engine import InferenceEngine
    from stream_vlm_ros.session.engine_thread import AppendTogether


def engine_loader(cameras: Sequence[Settings]) -> Callable[[Settings], InferenceEngine]:
    """What builds the engines of a node's cameras, each with its own settings, over one model,
    loaded for the first of them. On a GPU they compute together.

    It raises:
        ModelLoadError: the folder is missing, incomplete or of another kind of model.
        DeviceUnavailableError: the device is not there, or has no room for one more memory.
        InvalidParameterError, CapTooSmallError: a setting the engine refuses.
    """
    model = functools.cache(functools.partial(load_model, cameras[0]))
    group = functools.cache(lambda: group_of(cameras, model()))
    return lambda settings: build_engine(settings, model(), group())


def chunk_appender(cameras: Sequence[Settings]) -> AppendTogether | None:
    """What appends chunks of several cameras' engines at once; None: they go one by one."""
    if len(cameras) < 2 or cameras[0].engine != "streaming":
        return None
    return together_appender()


def release_memory() -> None:
    """Give the GPU's memory back after the last reference to an engine is gone."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
