"""From the node's parameters to a running engine. Imports torch only when called: the node is on
the graph, and says what it is doing, while the libraries load."""

from __future__ import annotations

import gc
from typing import Any

from stream_vlm_ros.demo.defaults import default_model
from stream_vlm_ros.node.parameters import Parameters


def load_engine(parameters: Parameters) -> Any:
    """The engine that ``parameters`` ask for.

    Raises:
        ModelLoadError: the folder is missing, incomplete or of another kind of model.
        DeviceUnavailableError: the device is not there.
        InvalidParameterError, CapTooSmallError: a setting the engine refuses.
    """
    from stream_vlm_ros.engine import load_checkpoint

    checkpoint = load_checkpoint(
        parameters.model_path or default_model(), parameters.device, parameters.dtype
    )
    build = _delayed if parameters.engine == "delayed_batch" else _streaming
    _, max_pixels = pixel_limit(parameters)
    return build(
        parameters,
        *checkpoint,
        max_pixels=checkpoint.processor.image_settings.at_most(max_pixels),
        layout=parameters.layout,
        min_pixels=parameters.min_pixels or None,
        system_prompt=parameters.system_prompt or None,
        max_tail_tokens=parameters.max_tail_tokens,
    )


def pixel_limit(parameters: Parameters) -> tuple[str, int]:
    """Which parameter bounds the pictures of the engine in use, and its value."""
    if parameters.engine == "delayed_batch":
        return "sampled_max_pixels", parameters.sampled_max_pixels
    return "max_pixels", parameters.max_pixels


def _streaming(parameters: Parameters, model: Any, processor: Any, device: Any, **options: Any):
    from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference

    eviction = EvictionConfig(
        max_cache_tokens=parameters.max_cache_tokens,
        sink_size=parameters.sink_size,
        window_size=parameters.window_size,
        eviction_interval=parameters.eviction_interval,
        sampled_share=parameters.sampled_share,
        important_share=parameters.important_share,
    )
    return VideoStreamingInference(
        model,
        processor,
        device,
        eviction,
        position_policy=parameters.position_policy,
        skip_similarity=parameters.skip_similarity or None,
        **options,
    )


def _delayed(parameters: Parameters, model: Any, processor: Any, device: Any, **options: Any):
    from stream_vlm_ros.memory import DelayedBatchInferenceEngine, FrameStore, SmartFrameManager

    store = FrameStore(
        parameters.frame_store or None,
        max_bytes=parameters.frame_store_megabytes * 2**20,
        max_seconds=parameters.frame_store_hours * 3600,
    )
    return DelayedBatchInferenceEngine(
        model,
        processor,
        device,
        memory=SmartFrameManager(store, target_fps=parameters.keep_fps),
        max_sampled_frames=parameters.max_sampled_frames,
        **options,
    )


def release_memory() -> None:
    """Give the GPU's memory back after the last reference to an engine is gone."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
