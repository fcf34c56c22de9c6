# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Plain data to JSON and back, by the types that dataclasses and named tuples give their fields.

A field added later travels by itself; a file without it gives its default. Arrays go into one
string of bytes. Nothing is read but what the types say: the text may come from anywhere.
"""

from __future__ import annotations

import collections
import dataclasses
import math
import types
import typing
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import torch

MAX_WHOLE_NUMBER = 2**63 - 1  # nanoseconds since 1970 are among them

Kind = TypeVar("Kind")

_NUMBERS: dict[str, torch.dtype] = {
    "float64": torch.float64,
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int64": torch.int64,
    "int32": torch.int32,
    "uint8": torch.uint8,
    "bool": torch.bool,
}
_NAMES = {number: name for name, number in _NUMBERS.items()}


class PlainError(ValueError):
    """A value that cannot be written so, or a text that does not hold what its type says."""


class Packer:
    """Turns values into what ``json`` writes. `arrays` are the bytes of the arrays among them."""

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._size = 0

    @property
    def arrays(self) -> bytes:
        return b"".join(self._parts)

    def pack(self, value: Any) -> Any:
        """What ``json`` writes for a value; PlainError for one that has no such form."""
        if value is None or isinstance(value, (bool, int, float, str)):
            return value
        if isinstance(value, (torch.Tensor, np.ndarray)):
            return self._array(value)
        kind: Any = type(value)
        if dataclasses.is_dataclass(kind) or _is_named_tuple(kind):
            return {name: self.pack(getattr(value, name)) for name in _fields(kind)}
        if isinstance(value, Mapping):
            return [[self.pack(key), self.pack(one)] for key, one in value.items()]
        if isinstance(value, (list, tuple, collections.deque)):
            return [self.pack(one) for one in value]
        raise PlainError(f"{type(value).__name__} is no plain data")

    def _array(self, value: torch.Tensor | np.ndarray) -> Any:
        if isinstance(value, np.ndarray):  # reversed, or of another machine's byte order
            value = np.ascontiguousarray(value, value.dtype.newbyteorder("=")).reshape(value.shape)
        try:
            array = torch.as_tensor(value).detach().cpu().contiguous()
            numbers = _NAMES[array.dtype]
        except (TypeError, KeyError):
            raise PlainError(f"an array of {value.dtype}") from None
        _check_finite(array)
        place = {"numbers": numbers, "shape": list(array.shape), "at": self._size}
        self._parts.append(bytes_of(array))
        self._size += len(self._parts[-1])
        return place


class Unpacker:
    """Turns what ``json`` has read into values of a type, and refuses everything else.

    Args:
        arrays: the bytes of the arrays.
    """

    def __init__(self, arrays: bytes) -> None:
        self._arrays = arrays

    def unpack(self, kind: type[Kind], text: Any) -> Kind:
        """A value of ``kind``; PlainError names what is not as it should be."""
        value: Kind = self._any(kind, text)
        return value

    def _any(self, kind: Any, text: Any) -> Any:
        origin, inner = typing.get_origin(kind), typing.get_args(kind)
        if origin in (typing.Union, types.UnionType):
            if text is None and type(None) in inner:
                return None
            kinds = [one for one in inner if one is not type(None)]
            return self._any(kinds[0] if len(kinds) == 1 else _the_one(kinds, text), text)
        if origin is tuple and inner[-1] is not Ellipsis:
            items = self._items(text)
            if len(items) != len(inner):
                raise PlainError(f"{len(items)} items, not {len(inner)}")
            return tuple(map(self._any, inner, items))
        if origin in (list, tuple, collections.deque):
            return origin(self._any(inner[0], one) for one in self._items(text))
        if origin in (dict, Mapping):
            pairs: Any = tuple[inner]  # type: ignore[valid-type]
            return dict(self._any(pairs, pair) for pair in self._items(text))
        if kind in (torch.Tensor, np.ndarray):
            array = self._array(text)
            if kind is torch.Tensor:
                return array
            if array.dtype == torch.bfloat16:  # numpy has none
                raise PlainError("an array of bfloat16")
            return array.numpy()
        if dataclasses.is_dataclass(kind) or _is_named_tuple(kind):
            return self._record(kind, text)
        return _simple(kind, text)

    def _items(self, text: Any) -> list[Any]:
        if not isinstance(text, list):
            raise PlainError(f"{_shown(text)} where a list should be")
        return text

    def _record(self, kind: Any, text: Any) -> Any:
        fields = _fields(kind)
        if not isinstance(text, dict):
            raise PlainError(f"{_shown(text)} where a {kind.__name__} should be")
        if unknown := text.keys() - fields.keys():
            raise PlainError(f"a {kind.__name__} has no {_shown(min(unknown))}")
        values = {}
        for name, (inner, required) in fields.items():
            if name in text:
                values[name] = self._any(inner, text[name])
            elif required:
                raise PlainError(f"a {kind.__name__} lacks its {name}")
        return kind(**values)

    def _array(self, text: Any) -> torch.Tensor:
        place = self._record(_Place, text)
        numbers = _NUMBERS.get(place.numbers)
        sizes = (0, *place.shape)  # an empty array may have any
        if numbers is None or min(sizes) < 0 or max(sizes) >= 2**32 or len(place.shape) > 8:
            raise PlainError(f"an array of {_shown(place.numbers)}, shape {place.shape}")
        size = math.prod(place.shape) * numbers.itemsize
        if place.at < 0 or place.at + size > len(self._arrays):
            raise PlainError("an array that ends beyond the file")
        if not size:
            return torch.empty(place.shape, dtype=numbers)
        data = bytearray(self._arrays[place.at : place.at + size])
        array = torch.frombuffer(data, dtype=numbers).reshape(place.shape)
        _check_finite(array)
        return array


class _Place(typing.NamedTuple):
    """Where an array lies among the bytes."""

    numbers: str
    shape: list[int]
    at: int


def bytes_of(array: torch.Tensor) -> bytes:
    """Of a contiguous array on the host."""
    if not array.numel():  # whose strides may be anything
        return b""
    return array.flatten().view(torch.uint8).numpy().tobytes()


def _check_finite(array: torch.Tensor) -> None:
    if array.is_floating_point() and not torch.isfinite(array).all():
        raise PlainError("an array with a value that is not a finite number")


def _simple(kind: Any, text: Any) -> Any:
    if kind is float and type(text) is int:
        text = float(text) if abs(text) <= MAX_WHOLE_NUMBER else math.nan
    fits = type(text) is kind
    if fits and kind is int:
        fits = abs(text) <= MAX_WHOLE_NUMBER
    if fits and kind is float:
        fits = math.isfinite(text)
    if not fits:
        raise PlainError(f"{_shown(text)} where a {kind.__name__} should be")
    return text


def _shown(text: Any) -> str:
    if isinstance(text, (list, dict)):
        return f"a {type(text).__name__}"
    return f"{text!s:.40}"


def _the_one(kinds: list[Any], text: Any) -> Any:
    """Which of several records a text is of, by its fields."""
    for kind in kinds:
        fields = _fields(kind)
        required = {name for name, (_, needed) in fields.items() if needed}
        if isinstance(text, dict) and required <= text.keys() <= fields.keys():
            return kind
    raise PlainError(
        f"{_shown(text)} where one of {', '.join(k.__name__ for k in kinds)} should be"
    )


def _is_named_tuple(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, tuple) and hasattr(kind, "_fields")


@lru_cache(maxsize=64)
def _fields(kind: Any) -> dict[str, tuple[Any, bool]]:
    """Name -> type, and whether a value must be given."""
    hints: Callable[[Any], dict[str, Any]] = typing.get_type_hints
    if _is_named_tuple(kind):
        return {
            name: (hints(kind)[name], name not in kind._field_defaults) for name in kind._fields
        }
    missing = dataclasses.MISSING
    return {
        one.name: (hints(kind)[one.name], one.default is one.default_factory is missing)
        for one in dataclasses.fields(kind)
        if one.init
    }
