# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The streaming engine: torch and transformers, no ROS, no threads, no video files.

Read `inference` first: it conducts the others. Each folder says at its door what it holds.

    abstract        `InferenceEngine`: what every engine can be asked for
    inference       `VideoStreamingInference`: append a chunk, ask, choose
    results         what they return: typed, and answering [...]
    decoding        which token comes next, when to stop; `Answer`
    copies          between host and device, that nobody waits for
    together        several engines on one model: memories side by side, their work in one pass
    chunk_path      how a chunk runs: call by call or, if it is small, in captured steps
    decode_path     how the next tokens of several engines' answers run: in one pass
    captured        what captured steps are made of, what they read, how one is recorded
    graph_runner    how text runs, in prefill and decode: call by call, or in captured steps
    finite          not-a-number is neither kept nor answered with
    loading         a folder -> network and processor on the device
    reference_names what the reference calls things, for its scripts

    inputs/         frames -> patches, the chat's layout, time stamps
    model/          the network
    cache/          the memory: keys and values, positions, eviction
    attention/      over a memory in parts
    saving/         the memory in a file
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stream_vlm_ros.engine.abstract import InferenceEngine
    from stream_vlm_ros.engine.cache.eviction import (
        EvictionConfig,
        FeatureNovelty,
        ImportanceScore,
        KVCacheEvictor,
    )
    from stream_vlm_ros.engine.cache.manager import KVCacheManager
    from stream_vlm_ros.engine.decoding import Answer
    from stream_vlm_ros.engine.inference import VideoStreamingInference
    from stream_vlm_ros.engine.inputs.processor import StreamProcessor
    from stream_vlm_ros.engine.loading import Checkpoint, load_checkpoint
    from stream_vlm_ros.engine.model.qwen2_5_vl import StreamQwenModel
    from stream_vlm_ros.engine.reference_names import AutoProcessor
    from stream_vlm_ros.engine.results import (
        AnswerMetrics,
        CacheInfo,
        ChoiceMetrics,
        ChunkResult,
        EvidenceEpisode,
        SavedMemory,
    )
    from stream_vlm_ros.errors import StreamVlmError

# Imported when first used: torch takes seconds, and who only needs the errors (a source, a client,
# the command line's help) should not wait for it.
_HOMES = {
    "Answer": "decoding",
    "AutoProcessor": "reference_names",
    "AnswerMetrics": "results",
    "CacheInfo": "results",
    "Checkpoint": "loading",
    "ChoiceMetrics": "results",
    "ChunkResult": "results",
    "EvictionConfig": "cache.eviction",
    "EvidenceEpisode": "results",
    "FeatureNovelty": "cache.eviction",
    "ImportanceScore": "cache.eviction",
    "InferenceEngine": "abstract",
    "KVCacheEvictor": "cache.eviction",
    "KVCacheManager": "cache.manager",
    "SavedMemory": "results",
    "StreamProcessor": "inputs.processor",
    "StreamQwenModel": "model.qwen2_5_vl",
    "StreamVlmError": ".errors",
    "VideoStreamingInference": "inference",
    "load_checkpoint": "loading",
}

__all__ = [
    "Answer",
    "AnswerMetrics",
    "AutoProcessor",
    "CacheInfo",
    "Checkpoint",
    "ChoiceMetrics",
    "ChunkResult",
    "EvictionConfig",
    "EvidenceEpisode",
    "FeatureNovelty",
    "ImportanceScore",
    "InferenceEngine",
    "KVCacheEvictor",
    "KVCacheManager",
    "SavedMemory",
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
