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
    from stream_vlm_ros.memory.engines import build_engine

    return build_engine(settings, load_model(settings.model, settings.device))
