"""From the node's parameters to a running engine. Imports torch only when called: the node is on
the graph, and says what it is doing, while the libraries load."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Any

from stream_vlm_ros.demo.defaults import default_model
from stream_vlm_ros.engine.errors import DeviceUnavailableError
from stream_vlm_ros.node.parameters import Parameters

if TYPE_CHECKING:
    import torch


def load_engine(parameters: Parameters) -> Any:
    """The engine that ``parameters`` ask for.

    Raises:
        ModelLoadError: the folder is missing, incomplete or of another kind of model.
        DeviceUnavailableError: the device is not there.
        InvalidParameterError, CapTooSmallError: a setting the engine refuses.
    """
    from stream_vlm_ros.engine import StreamProcessor, StreamQwenModel

    device = resolve_device(parameters.device)
    dtype = resolve_dtype(parameters.dtype, device)
    path = os.path.expanduser(parameters.model_path) or default_model()
    processor = StreamProcessor.from_pretrained(path)  # quick, and names what is missing
    model = StreamQwenModel.from_pretrained(path, torch_dtype=dtype)
    build = _delayed if parameters.engine == "delayed_batch" else _streaming
    return build(
        parameters,
        model.to(device).eval(),
        processor,
        device,
        layout=parameters.layout,
        min_pixels=parameters.min_pixels or None,
        system_prompt=parameters.system_prompt or None,
        max_tail_tokens=parameters.max_tail_tokens,
    )


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
        max_pixels=processor.image_settings.at_most(parameters.max_pixels),
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
        max_pixels=processor.image_settings.at_most(parameters.sampled_max_pixels),
        **options,
    )


def resolve_device(name: str) -> torch.device:
    """The torch device for auto, cpu, cuda or cuda:N.

    Raises :class:`DeviceUnavailableError` for a GPU that is not there.
    """
    import torch

    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if name == "auto":
        return torch.device("cuda:0" if count else "cpu")
    device = torch.device(name)
    if device.type == "cuda" and (device.index or 0) >= count:
        found = f"{count} CUDA device(s)" if count else "no CUDA device"
        raise DeviceUnavailableError(
            f"device is {name!r}, but torch {torch.__version__} finds {found} here; set device to "
            "'auto' or 'cpu', or install a torch built for this machine's GPU"
        )
    return device


def resolve_dtype(name: str, device: torch.device) -> torch.dtype:
    """The torch dtype; 'auto' is bfloat16 on a GPU and float32 on a CPU."""
    import torch

    if name == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    dtype: torch.dtype = getattr(torch, name)
    return dtype


def release_memory() -> None:
    """Give the GPU's memory back after the last reference to an engine is gone."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
