# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A memory's state as plain data, and back: for whoever writes it to a file.

A state is made of dataclasses and named tuples of numbers, texts, tuples and tensors. Here each of
these becomes a dictionary that JSON can hold, with the tensors apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from stream_vlm_ros.engine.cache.eviction import Appended, Candidate, EvictorState
from stream_vlm_ros.engine.cache.ledger import PositionLedger
from stream_vlm_ros.engine.cache.mrope import Grid, TextRun, Vec, VisionRun
from stream_vlm_ros.engine.cache.slots import Slots
from stream_vlm_ros.engine.cache.state import MemoryState, StreamState
from stream_vlm_ros.engine.inputs.token_reduction import Known
from stream_vlm_ros.errors import InvalidParameterError

# All that a state is made of. What is none of these is refused in both directions.
_KINDS: dict[str, type] = {
    kind.__name__: kind
    for kind in (
        MemoryState,
        Slots,
        PositionLedger,
        EvictorState,
        Appended,
        StreamState,
        Known,
        Candidate,
        Grid,
        TextRun,
        VisionRun,
        Vec,
    )
}


def to_plain(state: MemoryState) -> tuple[Any, dict[str, torch.Tensor]]:
    """A state as what JSON can hold, and its tensors by the names that stand there for them.

    InvalidParameterError for what no state of this package is made of.
    """
    tensors: dict[str, torch.Tensor] = {}

    def plain(value: Any) -> Any:
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, torch.Tensor):
            name = f"tensor.{len(tensors)}"
            tensors[name] = value.detach().cpu().contiguous()
            return {"tensor": name}
        if isinstance(value, np.ndarray):
            return {"array": plain(torch.from_numpy(np.ascontiguousarray(value)))["tensor"]}
        if isinstance(value, range):
            return {"range": [value.start, value.stop]}
        if isinstance(value, Mapping):
            return {"map": [[plain(key), plain(held)] for key, held in value.items()]}
        kind = type(value).__name__
        if _KINDS.get(kind) is type(value):
            return {"kind": kind, **{name: plain(held) for name, held in _fields(value).items()}}
        if type(value) in (tuple, list):
            return [plain(one) for one in value]
        raise InvalidParameterError(f"a memory's state has no room for {value!r}")

    return plain(state), tensors


def from_plain(plain: Any, tensors: Mapping[str, torch.Tensor]) -> MemoryState:
    """The state that `to_plain` was given.

    InvalidParameterError where it is something else: of another version, or damaged.
    """
    try:
        state = _value(plain, tensors)
        parts = (state.slots, Slots), (state.ledger, PositionLedger), (state.evictor, EvictorState)
        for part, kind in (*parts, (state.stream, StreamState), (state, MemoryState)):
            if not isinstance(part, kind):
                raise TypeError(f"{part!r} is no {kind.__name__}")
        return state
    except (KeyError, TypeError, ValueError, IndexError, AttributeError) as fault:
        raise InvalidParameterError(f"this is no memory's state: {fault!r}") from fault


def _value(plain: Any, tensors: Mapping[str, torch.Tensor]) -> Any:
    if isinstance(plain, list):
        return tuple(_value(one, tensors) for one in plain)
    if not isinstance(plain, dict):
        return plain
    if "tensor" in plain:
        return tensors[plain["tensor"]]
    if "array" in plain:
        return tensors[plain["array"]].numpy()
    if "range" in plain:
        return range(*plain["range"])
    if "map" in plain:
        return {_value(key, tensors): _value(held, tensors) for key, held in plain["map"]}
    kind = _KINDS[plain["kind"]]
    fields = {name: _value(held, tensors) for name, held in plain.items() if name != "kind"}
    if kind is PositionLedger:
        ledger = PositionLedger(fields["policy"])
        if fields.keys() != vars(ledger).keys():
            raise ValueError(f"positions have other fields: {', '.join(sorted(fields))}")
        vars(ledger).update(fields)
        return ledger
    return kind(**fields)


def _fields(value: Any) -> dict[str, Any]:
    if isinstance(value, tuple):
        return value._asdict()  # type: ignore[attr-defined]
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return dict(vars(value))
