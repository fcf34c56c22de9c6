"""The streaming engine: torch and transformers, no ROS, no threads, no video files.

Read `inference` first: it conducts the others.

The whole
    abstract        `InferenceEngine`: what every engine can be asked for
    inference       `VideoStreamingInference`: append a chunk, ask, choose
    results         what they return: typed, and answering [...]
    errors          what can go wrong, in the user's words
    reference_names the prototype's names for all this

The checkpoint
    loading         a folder -> network and processor on the device
    model           `StreamQwenModel`: patches -> features, embeddings -> hidden states -> logits
    processor       tokenizer, chat template, settings of the pictures
    prompts         which text tokens stand around the frames and around a question

A chunk comes in
    stamps          when its frames were taken
    picture_sizes   how large a picture may be, asked of its header before it is decoded
    stamp_check     which stamps are believed: one wrong one is one lost frame
    frames          images -> patches and their grid, on the device
    vision          where patches stand in its tower, reckoned once a size; its matrices padded
    reduction       tokens that say nothing new, left out
    decoder         the language model's layers over a fork, one loop for chunks and text
    layers          a layer of either tower in two halves around its attention, to be compiled
    packed          weights that read the same input as one matrix
    compiled        torch.compile for a chunk's elementwise work

The memory
    cache           `KVCacheManager`: buffer, ledger, evictor and forks as one
    buffer          keys and values, taken once; nothing in the window moves
    ledger          where each token lies: plain integers
    eviction        what to forget: sink, window, sampled and important frames
    positions       M-RoPE ids and rotations
    budget          whether it fits the device

A question reads it
    forks           readers with a tail of their own; the stream is read-only to them
    attention       over a memory in parts, merged by log-sum-exp
    long_past       when cuDNN's attention is the one for a chunk's many queries
    merging         one kernel for that merge, where there is a GPU
    merging_kernel  that kernel in Triton
    question_path   how a question's text runs: call by call, or as recorded steps
    static_step     such a step: one pass over tensors of fixed shape
    kernels         its attention in Triton
    decoding        which token comes next, when to stop; `Answer`
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .abstract import InferenceEngine
    from .cache import KVCacheManager
    from .decoding import Answer
    from .errors import StreamVlmError
    from .eviction import EvictionConfig, FeatureNovelty, ImportanceScore, KVCacheEvictor
    from .inference import VideoStreamingInference
    from .loading import Checkpoint, load_checkpoint
    from .model import StreamQwenModel
    from .processor import StreamProcessor
    from .reference_names import AutoProcessor
    from .results import AnswerMetrics, CacheInfo, ChoiceMetrics, ChunkResult

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
    "EvictionConfig": "eviction",
    "FeatureNovelty": "eviction",
    "ImportanceScore": "eviction",
    "InferenceEngine": "abstract",
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
    "AnswerMetrics",
    "AutoProcessor",
    "CacheInfo",
    "Checkpoint",
    "ChoiceMetrics",
    "ChunkResult",
    "EvictionConfig",
    "FeatureNovelty",
    "ImportanceScore",
    "InferenceEngine",
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
