# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Frames kept for later, and the engine that encodes them when a question comes."""

from stream_vlm_ros.errors import FrameStoreError, PictureLostError

from .delayed import DelayedBatchInferenceEngine
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
