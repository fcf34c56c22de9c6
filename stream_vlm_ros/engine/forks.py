"""Readers of the stream: a fork sees the stream, and puts its own tokens into a tail.

So the stream is read-only to every forward pass, a fork costs a few integers and its tail, and
dropping it leaves no trace.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from .buffer import KVShape


class Part(NamedTuple):
    """Cached tokens that a fork reads, all of them seen alike.

    Attributes:
        keys: ``[layers, kv_heads, tokens, head_dim]``, like ``values``.
        turn: cos and sin, ``[head_dim]``, by which a query is rotated further to see this part;
            None: not at all.
    """

    keys: torch.Tensor
    values: torch.Tensor
    turn: tuple[torch.Tensor, torch.Tensor] | None


class TailLayer(CacheLayerMixin):
    """One layer of a fork's own tokens."""

    def __init__(self, storage: torch.Tensor):
        super().__init__()
        self._storage = storage  # [2, batch, kv_heads, capacity, head_dim]
        self.length = 0
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """The storage is taken before the layer is made."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append ``[batch, kv_heads, n, head_dim]``; return all own keys and values."""
        start, self.length = self.length, self.length + key_states.shape[2]
        keys, values = self._storage
        keys[:, :, start : self.length] = key_states
        values[:, :, start : self.length] = value_states
        return keys[:, :, : self.length], values[:, :, : self.length]

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.length + query_length, 0

    def get_seq_length(self) -> int:
        return self.length

    def get_max_length(self) -> int:
        return self._storage.shape[3]


class Fork(Cache):
    """One reader of the stream, with a tail of its own tokens.

    Made by `KVCacheManager.fork` or `Fork.branch`; give it back with `release`.

    Attributes:
        parts: what of the stream (and of the fork it branched from) attention sees.
        window: the ring's tokens it reads, as a range of their running numbers.
    """

    def __init__(
        self,
        pool: TailPool,
        parts: Sequence[Part],
        window: range,
        capacity: int,
        batch: int = 1,
    ):
        self._pool = pool
        self._storage: torch.Tensor | None = pool.take(batch, capacity)
        self.parts = list(parts)
        self.window = window
        self.capacity = capacity
        super().__init__(layers=[TailLayer(layer) for layer in self._storage])

    @property
    def length(self) -> int:
        """Own tokens."""
        return self.layers[0].get_seq_length()

    @property
    def alive(self) -> bool:
        return self._storage is not None

    def own(self) -> torch.Tensor:
        """Keys and values of the own tokens, ``[layers, 2, kv_heads, length, head_dim]``."""
        assert self._storage is not None
        return self._storage[:, :, 0, :, : self.length]

    def branch(self, capacity: int, batch: int) -> Fork:
        """A batch of forks that read this one's tokens and go on apart. Keep this one alive."""
        own = self.own()
        parts = [*self.parts, Part(own[:, 0], own[:, 1], None)]
        return Fork(self._pool, parts, self.window, capacity, batch)

    def release(self) -> None:
        """Give the tail back. The fork cannot be used any more."""
        if self._storage is not None:
            self._pool.give_back(self._storage)
            self._storage, self.parts = None, []
            self.layers.clear()

    def __enter__(self) -> Fork:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


class TailPool:
    """Buffers for tails, used again so that the memory taken stays flat."""

    _KEPT = 3  # free buffers: a chunk's, a question's, a batch of choices

    def __init__(self, shape: KVShape, device: torch.device):
        self._shape, self._device = shape, device
        self._free: list[torch.Tensor] = []
        self._lent_bytes = 0

    @property
    def reserved_bytes(self) -> int:
        return self._lent_bytes + sum(buffer.nbytes for buffer in self._free)

    def take(self, batch: int, tokens: int) -> torch.Tensor:
        """``[layers, 2, batch, kv_heads, at least tokens, head_dim]``, of any content."""
        fitting = [b for b in self._free if b.shape[2] == batch and b.shape[4] >= tokens]
        if fitting:
            buffer = min(fitting, key=lambda b: b.shape[4])
            self._free = [b for b in self._free if b is not buffer]
        else:
            # A larger one of the same batch takes the place of a smaller one.
            smaller = [b for b in self._free if b.shape[2] == batch]
            if len(self._free) >= self._KEPT and smaller:
                self._free = [b for b in self._free if b is not smaller[0]]
            buffer = self._shape.allocate(tokens, self._device, batch)
        self._lent_bytes += buffer.nbytes
        return buffer

    def give_back(self, buffer: torch.Tensor) -> None:
        self._lent_bytes -= buffer.nbytes
        self._free.append(buffer)
        if len(self._free) > self._KEPT:
            smallest = min(self._free, key=lambda b: b.nbytes)
            self._free = [b for b in self._free if b is not smallest]
