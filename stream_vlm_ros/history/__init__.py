# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the memory has let go: frames kept for later, and the engines that answer from them.

Behind the streaming engine:

    recall          `RecallingInference`: streams, and looks back where a question calls for it
    calibration     which heads find what a question asks for, and from which score on
    calibrating     how that is made: footage with known answers goes through the engine
    limits          how its limits are chosen
    index           keys of a few heads for every grid of a stream, searched by a question
    key_slots       where these keys lie
    key_files       these keys in a folder
    episodes        hits among the grids, joined
    wants           which of the past a question wants
    tiers           the stream's frames as pictures, found by their stamps
    reading         a few frames read apart from the stream
    poses           where the robot was, next to the frames
    room            whether what they may take is there
    folder          all of it in a folder, while no engine has it open

Without a stream:

    delayed         `DelayedBatchInferenceEngine`: frames in, encoded when a question comes
    manager         which frames are worth keeping, and which of them a question needs
    stars           a few frames that between them cover what was new
    importance      how new a picture is
    selection       which of the kept frames a question is answered from
    reference_names what the reference calls things, for its scripts

For both:

    store           pictures in files, what is known of them in SQLite
    pictures        JPEG or PNG, in a folder or in memory
    evidence        how an answer names what it rests on
    results         what these engines return in addition
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from stream_vlm_ros.errors import FrameStoreError, PictureLostError

if TYPE_CHECKING:
    from .delayed import DelayedBatchInferenceEngine
    from .importance import NoveltyMeasure, ThumbnailNovelty, VisionNovelty
    from .manager import SmartFrameManager
    from .store import FrameStore, KeptFrame

# Imported when first used: who erases a time of a folder should not wait for torch and a model.
_HOMES = {
    "DelayedBatchInferenceEngine": "delayed",
    "FrameStore": "store",
    "KeptFrame": "store",
    "NoveltyMeasure": "importance",
    "SmartFrameManager": "manager",
    "ThumbnailNovelty": "importance",
    "VisionNovelty": "importance",
}

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
