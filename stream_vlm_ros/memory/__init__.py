"""Frames kept for later, and the engine that encodes them when a question comes."""

from .delayed import DelayedBatchInferenceEngine
from .errors import FrameStoreError, PictureLostError
from .importance import NoveltyMeasure, ThumbnailNovelty, VisionNovelty
from .manager import SmartFrameManager
from .store import FrameStore, KeptFrame

__all__ = [
    "DelayedBatchInferenceEngine",
    "FrameStore",
    "FrameStoreError",
    "KeptFrame",
    "NoveltyMeasure",
    "PictureLostError",
    "SmartFrameManager",
    "ThumbnailNovelty",
    "VisionNovelty",
]
