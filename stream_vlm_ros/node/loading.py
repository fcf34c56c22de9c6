"""From the node's parameters to a running engine. Imports torch only when called: the node is on
the graph, and says what it is doing, while the libraries load."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from stream_vlm_ros.demo.defaults import default_model
from stream_vlm_ros.node.parameters import Parameters

if TYPE_CHECKING:
    from stream_vlm_ros.engine.frames import ImageSettings


def load_engine(parameters: Parameters) -> Any:
    """The engine that ``parameters`` ask for.

    Raises:
        ModelLoadError: the folder is missing, incomplete or of another kind of model.
        DeviceUnavailableError: the device is not there.
        InvalidParameterError, CapTooSmallError: a setting the engine refuses.
    """
    from stream_vlm_ros.engine import load_checkpoint
    from stream_vlm_ros.memory.engines import build_engine

    checkpoint = load_checkpoint(
        parameters.model_path or default_model(), parameters.device, parameters.dtype
    )
    return build_engine(
        parameters,
        checkpoint,
        parameters.frame_store or None,
        slack_tokens(parameters, checkpoint.processor.image_settings),
    )


def slack_tokens(parameters: Parameters, images: ImageSettings) -> int:
    """Room for chunks that come while an answer is being written, in tokens."""
    from stream_vlm_ros.engine.budget import usual_slack

    if parameters.fork_slack_tokens >= 0:
        return parameters.fork_slack_tokens
    return usual_slack(
        images, parameters.max_pixels, parameters.chunk_frames, parameters.max_cache_tokens
    )


def pixel_limit(parameters: Parameters) -> tuple[str, int]:
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
