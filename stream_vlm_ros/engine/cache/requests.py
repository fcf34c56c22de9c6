# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Readers of the stream: a fork sees the stream, and puts its own tokens into a tail.

So the stream is read-only to every forward pass, a fork costs a few integers and its tail, and
dropping it leaves no trace.
"""

from __future__ import annotations

import functools
import weakref
from collections import deque
from collections.abc import Callable, Sequence

import torch

from stream_vlm_ros.engine.attention.base import KVPart
from stream_vlm_ros.engine.cache.buffer import KVShape, TakesRoom
from stream_vlm_ros.engine.cache.mrope import Vec


class TailLayer:
    """One layer of a fork's own tokens.

    Args:
        storage: all layers', ``[layers, 2, batch, kv_heads, capacity, head_dim]``.
        number: which layer of it.
    """

    def __init__(self, storage: torch.Tensor, number: int):
        self._storage, self._number = storage, number
        # Keys and values, taken out when first written: steps of fixed shape never ask for them.
        self._own: tuple[torch.Tensor, ...] = ()
        self.length = 0

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Append ``[batch, kv_heads, n, head_dim]``; return all own keys and values."""
        start, count = self.length, key_states.shape[2]
        self.length += count
        if not self._own:
            self._own = self._storage[self._number].unbind()
        keys, values = self._own
        keys.narrow(2, start, count).copy_(key_states)
        values.narrow(2, start, count).copy_(value_states)
        return keys.narrow(2, 0, self.length), values.narrow(2, 0, self.length)


class Fork:
    """One reader of the stream, with a tail of its own tokens.

    Made by `KVCacheManager.fork` or `Fork.branch`; give it back with `release`. One that nobody
    refers to any more gives itself back.

    Attributes:
        parts: what of the stream (and of the fork it branched from) attention sees.
        window: the ring's tokens it reads, as a range of their running numbers.
        start: where its first token lies, if that is text.
    """

    _storage: torch.Tensor | None = None

    def __init__(
        self,
        pool: TailPool,
        parts: Sequence[KVPart],
        window: range,
        start: Vec,
        capacity: int,
        batch: int = 1,
        question: bool = False,
    ):
        self._pool = pool
        self.parts = list(parts)
        self.window, self.start = window, start
        self.capacity = capacity
        self.layers: list[TailLayer] = []
        pool.readers.add(self)
        take = pool.take_question if question else pool.take
        self._storage = take(batch, capacity)
        self.layers += [TailLayer(self._storage, number) for number in range(len(self._storage))]

    @property
    def length(self) -> int:
        """Own tokens."""
        return self.layers[0].length

    @property
    def alive(self) -> bool:
        return self._storage is not None

    @property
    def has_question_tail(self) -> bool:
        """Its tokens go to `TailPool.question_tail`, whose place never changes."""
        return self._storage is self._pool.question_tail

    @property
    def tail(self) -> torch.Tensor:
        """Where its tokens go, ``[layers, 2, kv_heads, capacity, head_dim]``."""
        assert self._storage is not None
        return self._storage[:, :, 0]

    def advance(self, count: int) -> None:
        """Take in ``count`` tokens whose keys and values somebody wrote behind its own."""
        for layer in self.layers:
            layer.length += count

    def rewind(self, length: int) -> None:
        """Forget the own tokens behind so many, also where only some layers have them."""
        for layer in self.layers:
            layer.length = length

    def own(self) -> torch.Tensor:
        """Keys and values of the own tokens, ``[layers, 2, kv_heads, length, head_dim]``."""
        assert self._storage is not None
        return self._storage[:, :, 0, :, : self.length]

    def twin(self) -> Fork:
        """Another reader of the same, without own tokens. Keep this one alive."""
        return Fork(self._pool, self.parts, self.window, self.start, self.capacity)

    def branch(self, capacity: int, batch: int) -> Fork:
        """A batch of forks that read this one's tokens and go on apart. Keep this one alive."""
        assert self._storage is not None
        own = KVPart(self._storage[:, :, 0], slice(0, self.length), None)
        parts = [*self.parts, own]
        return Fork(self._pool, parts, self.window, self.start, capacity, batch)

    @property
    def nbytes(self) -> int:
        """Bytes of its tail."""
        return 0 if self._storage is None else self._storage.nbytes

    def release(self) -> None:
        """Give the tail back. The fork cannot be used any more."""
        storage, self._storage = self._storage, None
        if storage is not None:
            self.parts = []
            self.layers.clear()
            self._pool.give_back(storage)

    def __del__(self) -> None:
        self.release()

    def __enter__(self) -> Fork:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


class TailPool:
    """Buffers for tails, used again so that the memory taken stays flat.

    Who has a tail is asked of the forks themselves, so that no interruption can leave one lent.

    Args:
        question_tokens: room for a question with its answer, taken at once.
        given_back: gives what is called whenever a fork has given back its tail, maybe by another
            thread; None: nothing is.
        room: where the question's tail lies with those of other engines; None: it is by itself.

    Attributes:
        question_tail: that room, ``[layers, 2, 1, kv_heads, question_tokens + 1, head_dim]``.
        readers: forks made; those alive have a tail.
    """

    _KEPT = 3  # free buffers: a chunk's, a second question's, a batch of choices

    def __init__(
        self,
        shape: KVShape,
        device: torch.device,
        question_tokens: int,
        given_back: Callable[[], Callable[[], None] | None] = lambda: None,
        room: TakesRoom | None = None,
    ):
        self._shape, self._device, self._given_back = shape, device, given_back
        self._free: list[torch.Tensor] = []
        self._returned: deque[torch.Tensor] = deque()  # by any thread, until they are free
        self.readers: weakref.WeakSet[Fork] = weakref.WeakSet()
        # One slot more than a question may take: where padding is written.
        take = shape.allocate if room is None else functools.partial(room.take, shape)
        self._taken = take(question_tokens + 1, device)  # it is taken as long as this tensor lives
        self.question_tail = self._taken[:, :, None]

    @property
    def living(self) -> list[Fork]:
        return [fork for fork in self.readers if fork.alive]

    @property
    def reserved_bytes(self) -> int:
        lent = sum(fork.nbytes for fork in self.readers if not fork.has_question_tail)
        free = sum(buffer.nbytes for buffer in (*self._free, *self._returned))
        return self.question_tail.nbytes + lent + free

    def take_question(self, batch: int, tokens: int) -> torch.Tensor:
        """`question_tail` if nobody has it: one question at a time finds it in its place."""
        fits = batch == 1 and tokens < self.question_tail.shape[4]
        if not fits or any(fork.has_question_tail for fork in self.readers):
            return self.take(batch, tokens)
        return self.question_tail

    def take(self, batch: int, tokens: int) -> torch.Tensor:
        """``[layers, 2, batch, kv_heads, at least tokens, head_dim]``, of any content."""
        while self._returned:
            free = [*self._free, self._returned.popleft()]
            self._free = sorted(free, key=lambda b: b.nbytes)[-self._KEPT :]
        fitting = [b for b in self._free if b.shape[2] == batch and b.shape[4] >= tokens]
        if fitting:
            buffer = min(fitting, key=lambda b: b.shape[4])
            self._free = [b for b in self._free if b is not buffer]
            return buffer
        # A larger one of the same batch takes the place of a smaller one.
        smaller = [b for b in self._free if b.shape[2] == batch]
        if len(self._free) >= self._KEPT and smaller:
            self._free = [b for b in self._free if b is not smaller[0]]
        return self._shape.allocate(tokens, self._device, batch)

    def give_back(self, buffer: torch.Tensor) -> None:
        if buffer is not self.question_tail:
            self._returned.append(buffer)
        if (call := self._given_back()) is not None:
            call()
