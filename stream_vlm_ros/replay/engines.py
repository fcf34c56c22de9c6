"""The engine that a command works with."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stream_vlm_ros.demo.defaults import default_model

from .settings import EngineSettings

if TYPE_CHECKING:
    from stream_vlm_ros.engine import Checkpoint


@lru_cache(maxsize=1)  # several cameras, or several runs, share the weights
def load_model(model: str | Path | None, device: str = "auto") -> Checkpoint:
    """The checkpoint folder ``model``; None: the small model that the package ships.

    ``device`` auto takes a GPU if there is one; bfloat16 on a GPU, float32 on a CPU. Raises
    ModelLoadError, DeviceUnavailableError.
    """
    from stream_vlm_ros.engine import load_checkpoint

    return load_checkpoint(model if model is not None else default_model(), device)


def load_engine(settings: EngineSettings) -> Any:
    """The engine of a configuration, its model loaded, its memory empty.

    Raises ModelLoadError, DeviceUnavailableError, InvalidParameterError.
    """
    network, processor, device = load_model(settings.model, settings.device)
    build = _delayed_batch if settings.engine == "delayed_batch" else _streaming
    return build(
        settings,
        network,
        processor,
        device,
        layout=settings.layout,
        min_pixels=settings.min_pixels,
        system_prompt=settings.system_prompt,
        max_tail_tokens=settings.max_tail_tokens,
    )


def _streaming(settings: EngineSettings, network: Any, processor: Any, device: Any, **common: Any):
    from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference

    eviction = EvictionConfig(
        max_cache_tokens=settings.max_cache_tokens,
        sink_size=settings.sink_size,
        window_size=settings.window_size,
        eviction_interval=settings.eviction_interval,
        sampled_share=settings.sampled_share,
        important_share=settings.important_share,
    )
    return VideoStreamingInference(
        network,
        processor,
        device,
        eviction,
        position_policy=settings.position_policy,
        max_pixels=processor.image_settings.at_most(settings.max_pixels),
        skip_similarity=settings.skip_similarity or None,
        **common,
    )


def _delayed_batch(
    settings: EngineSettings, network: Any, processor: Any, device: Any, **common: Any
):
    from stream_vlm_ros.memory import DelayedBatchInferenceEngine, FrameStore, SmartFrameManager

    store = FrameStore(
        max_bytes=settings.frame_store_megabytes * 2**20,
        max_seconds=settings.frame_store_hours * 3600,
    )
    return DelayedBatchInferenceEngine(
        network,
        processor,
        device,
        memory=SmartFrameManager(store, target_fps=settings.keep_fps),
        max_sampled_frames=settings.max_sampled_frames,
        max_pixels=settings.sampled_max_pixels,
        **common,
    )
