"""The engine that a command works with."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from stream_vlm_ros.demo.defaults import default_model

if TYPE_CHECKING:
    from stream_vlm_ros.engine import VideoStreamingInference


def load_model(model: str | Path | None, device: str = "auto") -> tuple[Any, Any, str]:
    """Network and processor of the checkpoint folder ``model``, and the device they are for.

    ``model`` None: the small model that the package ships. ``device`` auto takes a GPU if there is
    one; bfloat16 on a GPU, float32 on a CPU. Raises ModelLoadError.
    """
    import torch
    from transformers.utils import logging

    from stream_vlm_ros.engine import StreamProcessor, StreamQwenModel

    logging.disable_progress_bar()  # stderr is for what goes wrong
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    folder = Path(model).expanduser() if model is not None else default_model()
    dtype = torch.bfloat16 if device.startswith("cuda") else torch.float32
    processor = StreamProcessor.from_pretrained(folder)
    network = StreamQwenModel.from_pretrained(folder, torch_dtype=dtype)
    return network.eval(), processor, device


def load_engine(
    model: str | Path | None,
    device: str = "auto",
    max_cache_tokens: int = 16384,
    eviction: dict[str, int] | None = None,
    **options: Any,
) -> VideoStreamingInference:
    """A streaming engine on ``load_model(model, device)``.

    ``eviction``: the other settings of its EvictionConfig. ``options`` go to
    VideoStreamingInference. Raises ModelLoadError, DeviceUnavailableError, InvalidParameterError.
    """
    from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference

    network, processor, device = load_model(model, device)
    options["max_pixels"] = processor.image_settings.at_most(options.get("max_pixels"))
    bound = EvictionConfig(max_cache_tokens=max_cache_tokens, **(eviction or {}))
    return VideoStreamingInference(network, processor, device, bound, **options)
