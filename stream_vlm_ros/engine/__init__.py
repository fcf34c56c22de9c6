"""The streaming engine: torch and transformers, no ROS, no threads, no video files."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .cache import KVCacheManager
    from .decoding import Answer
    from .errors import StreamVlmError
    from .eviction import EvictionConfig, FeatureNovelty, ImportanceScore, KVCacheEvictor
    from .inference import VideoStreamingInference
    from .loading import Checkpoint, load_checkpoint
    from .model import StreamQwenModel
    from .processor import StreamProcessor

# Imported when first used: torch takes seconds, and who only needs the errors (a source, a client,
# the command line's help) should not wait for it.
_HOMES = {
    "Answer": "decoding",
    "Checkpoint": "loading",
    "EvictionConfig": "eviction",
    "FeatureNovelty": "eviction",
    "ImportanceScore": "eviction",
    "KVCacheEvictor": "eviction",
    "KVCacheManager": "cache",
    "StreamProcessor": "processor",
    "StreamQwenModel": "model",
    "StreamVlmError": "errors",
    "VideoStreamingInference": "inference",
    "load_checkpoint": "loading",
}

__all__ = [
    "Answer",
    "Checkpoint",
    "EvictionConfig",
    "FeatureNovelty",
    "ImportanceScore",
    "KVCacheEvictor",
    "KVCacheManager",
    "StreamProcessor",
    "StreamQwenModel",
    "StreamVlmError",
    "VideoStreamingInference",
    "load_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
