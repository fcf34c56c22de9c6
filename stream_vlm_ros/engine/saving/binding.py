# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What a memory is bound to. Keys and values mean nothing to another model, prompt or layout."""

from __future__ import annotations

import hashlib
import json
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch

from stream_vlm_ros.errors import cut

if TYPE_CHECKING:
    from stream_vlm_ros.engine.cache.manager import KVCacheManager
    from stream_vlm_ros.engine.inputs.chat import ChatLayout
    from stream_vlm_ros.engine.model.base import StreamModel

_SAMPLES = 64  # words of each weight that are hashed one by one
_PIECE = 2**20  # words of a weight that are summed together

# Of a model's configuration: what computes with the weights otherwise than their shapes say.
_TEXT = "num_attention_heads num_key_value_heads num_hidden_layers rms_norm_eps rope_parameters"
_VISION = (
    "num_heads depth patch_size spatial_merge_size temporal_patch_size window_size "
    "fullatt_block_indexes tokens_per_second in_channels"
)
_IDS = "video_token_id vision_start_token_id vision_end_token_id"

# What to say where a hash is another one.
_OTHERS = {
    "config": "the model's configuration",
    "weights": "the model: its weights",
    "tokenizer": "the tokenizer: its words",
    "chat": "the chat template or the system prompt",
}

_HASHES: weakref.WeakKeyDictionary[StreamModel, str] = weakref.WeakKeyDictionary()


def binding_of(
    model: StreamModel, chat: ChatLayout, layout: str, manager: KVCacheManager
) -> dict[str, Any]:
    """Name -> what must be the same in the engine that loads a memory of this one."""
    config, shape = manager.evictor.config, manager.shape
    sampled, important = config.shares if config else (0.0, 0.0)
    score = type(manager.evictor.score)
    return {
        "keys_and_values": f"{shape.layers} layers of {shape.kv_heads} heads of {shape.head_dim}",
        "dtype": str(shape.dtype).removeprefix("torch."),
        "config": _config_hash(model.config),
        "weights": weights_hash(model),
        **chat.identity,
        "layout": layout,
        "position_policy": manager.ledger.policy,
        "max_cache_tokens": config.max_cache_tokens if config else 0,
        "sink_size": config.sink_size if config else 0,
        "window_size": config.window_size if config else 0,
        "sampled_share": sampled,
        "important_share": important,
        "importance": f"{score.__module__}.{score.__qualname__}" if important else "",
    }


def difference(saved: Mapping[str, Any], ours: Mapping[str, Any]) -> str | None:
    """Why a memory bound to ``saved`` is not for an engine bound to ``ours``; None: it is."""
    for name, value in ours.items():
        if name not in saved:
            return f"it does not say its {name}"
        if saved[name] == value:
            continue
        if name in _OTHERS:
            return f"it was saved with another {_OTHERS[name].removeprefix('the ')}"
        theirs = cut(str(saved[name]), 80)
        return f"it was saved with {name} {theirs}, and here {name} is {value}"
    return None


def weights_hash(model: StreamModel) -> str:
    """A fingerprint of all weights, computed once for a model, where it lies.

    Of each weight's bytes, read as whole numbers of 64 bits, sums of pieces in which each number
    counts by its place, so that it sees two rows that changed places; and 64 of those numbers
    evenly spaced. It does not see weights that were changed after the first call.
    """
    if model not in _HASHES:
        _HASHES[model] = _weights_hash(model)
    return _HASHES[model]


@torch.inference_mode()
def _weights_hash(model: StreamModel) -> str:
    names, words = [], []
    for name, weight in sorted(model.released()):
        data = weight.contiguous().flatten().view(torch.uint8)
        data = torch.nn.functional.pad(data, (0, -len(data) % 8))  # a copy only where it must be
        if data.storage_offset() % 8:
            data = data.clone()
        data = data.view(torch.int64)
        names.append(f"{name} {list(weight.shape)} {weight.dtype}")
        # (Odd factors: whatever is changed, its piece's sum is another. In pieces: an order of
        # their own, and little memory meanwhile.)
        odd = torch.arange(1, 2 * _PIECE, 2, device=data.device)
        words += [(piece * odd[: len(piece)]).sum()[None] for piece in data.split(_PIECE)]
        words.append(data[:: -(-len(data) // _SAMPLES)])
    digest = hashlib.sha256("\n".join(names).encode())
    digest.update(torch.cat(words).cpu().numpy().tobytes())
    return digest.hexdigest()


def _config_hash(config: Any) -> str:
    def some(of: Any, names: str) -> dict[str, Any]:
        return {name: getattr(of, name, None) for name in names.split()}

    text, vision = some(config.text_config, _TEXT), some(config.vision_config, _VISION)
    return _hash([text, vision, some(config, _IDS)])


def _hash(value: Any) -> str:
    text = json.dumps(value, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
