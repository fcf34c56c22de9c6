"""Sources streamed through the engine without a robot and without a ROS graph."""

import importlib
from typing import Any

# Looked up only when asked for: the experiments run where no source of frames is installed.
_HOMES = {"Fed": "feeding", "chunks": "feeding", "feed": "feeding", "load_engine": "engines"}

__all__ = ["Fed", "chunks", "feed", "load_engine"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
