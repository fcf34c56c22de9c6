# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""From the node's parameters to a running engine. Imports torch only when called: the node is on
the graph, and says what it is doing, while the libraries load."""

from __future__ import annotations

import functools
import gc
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from stream_vlm_ros.access import read_key
from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.factory import build_engine, group_of, load_model
from stream_vlm_ros.session.engine_thread import together_appender

if TYPE_CHECKING:
    from stream_vlm_ros.engine import InferenceEngine
    from stream_vlm_ros.remote.link import LinkThread
    from stream_vlm_ros.remote.worker import RemoteWorker
    from stream_vlm_ros.session.counters import FrameCounters
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


def link_thread() -> LinkThread:
    """The thread of the connections, for the engine remote."""
    try:
        from stream_vlm_ros.remote.link import LinkThread
    except ModuleNotFoundError as fault:
        raise InvalidParameterError(
            f"engine remote needs the package {fault.name}: pip install -r requirements/remote.txt"
        ) from None
    return LinkThread()


def remote_worker(
    settings: Settings,
    session: str,
    counters: FrameCounters,
    thread: LinkThread,
    **callbacks: Any,
) -> RemoteWorker:
    """What a camera has of the engine remote, in the place of an `EngineWorker`.

    Raises InvalidParameterError for a key that is of no use.
    """
    from stream_vlm_ros.remote.link import Address
    from stream_vlm_ros.remote.pictures import packing
    from stream_vlm_ros.remote.worker import RemoteWorker

    key = read_key(settings.engine_key_file)
    return RemoteWorker(
        Address(settings.engine_url, settings.session_name or session, key),
        counters,
        settings.queue_size,
        settings.max_questions,
        packing(settings),
        thread=thread,
        **callbacks,
    )


def release_memory() -> None:
    """Give the GPU's memory back after the last reference to an engine is gone."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
