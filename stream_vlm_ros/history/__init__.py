# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Frames kept for later, and the engine that encodes them when a question comes.

    delayed         `DelayedBatchInferenceEngine`: frames in, answers out
    manager         which frames are worth keeping, and which of them a question needs
    store           pictures in files, what is known of them in SQLite
    pictures        JPEG or PNG, in a folder or in memory
    stars           a few frames that between them cover what was new
    importance      how new a picture is
    selection       which of the kept frames a question is answered from
    results         what this engine returns in addition
    reference_names what the reference calls things, for its scripts

For the streaming engine, by trials only so far (bench/history_trial.py):

    index           keys of a few heads for every grid of a stream, searched by a question
    episodes        hits among these grids, joined
    calibration     which heads of a checkpoint find, and what counts as a hit; a file
    calibrating     how that is made, on footage with known answers
    limits          what counts as a hit, chosen by how often the right episode is named
"""

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
