# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The memory itself: keys and values of the whole stream in one buffer, taken once.

`slots` says which token lies where; here is what is written there.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np
import torch

from stream_vlm_ros.engine.cache.kept import SINK, Shifts
from stream_vlm_ros.engine.cache.mrope import MultimodalRotary, Vec
from stream_vlm_ros.engine.cache.slots import Slots
from stream_vlm_ros.engine.copies import to_device
from stream_vlm_ros.errors import DeviceUnavailableError

# Elements of keys that a GPU rotates in one call, as whole layers: that takes a few times as much
# memory in float32 meanwhile, and short memories need few calls. A CPU is faster layer by layer,
# each of which stays in its cache.
_ROTATED_AT_ONCE = 2**24


@dataclass(frozen=True)
class KVShape:
    """Size of the KV memory of one model."""

    layers: int
    kv_heads: int
    head_dim: int
    dtype: torch.dtype

    @property
    def bytes_per_token(self) -> int:
        """Keys and values of all layers."""
        return 2 * self.layers * self.kv_heads * self.head_dim * self.dtype.itemsize

    def allocate(self, tokens: int, device: torch.device, batch: int | None = None) -> torch.Tensor:
        """``[layers, 2, (batch,) kv_heads, tokens, head_dim]``: keys, then values.

        DeviceUnavailableError if the device has not that much memory.
        """
        lead = (self.layers, 2) if batch is None else (self.layers, 2, batch)
        size = (*lead, self.kv_heads, tokens, self.head_dim)
        # What was never written must be numbers on a GPU: a kernel may read a whole tile of it,
        # and give it no weight.
        make = torch.zeros if device.type == "cuda" else torch.empty
        try:
            return make(size, dtype=self.dtype, device=device)
        except (RuntimeError, MemoryError) as error:  # the CPU's allocator raises the former
            gigabytes = (batch or 1) * tokens * self.bytes_per_token / 1024**3
            raise DeviceUnavailableError(
                f"keys and values of {(batch or 1) * tokens} tokens take {gigabytes:.1f} GiB, "
                f"which {device} cannot give: set max_cache_tokens, or lower it"
            ) from error


class TakesRoom(Protocol):
    """Where memories of several engines lie together, see `together.Room`."""

    def take(self, shape: KVShape, tokens: int, device: torch.device) -> torch.Tensor: ...


def lies_in(memory: torch.Tensor, whole: torch.Tensor) -> bool:
    """Whether a memory ``[layers, 2, kv_heads, slots, head_dim]`` is some slots of another."""
    return (
        memory.untyped_storage().data_ptr() == whole.untyped_storage().data_ptr()
        and memory.stride() == whole.stride()
    )


def slot_in(memory: torch.Tensor, whole: torch.Tensor) -> int:
    """Where one that `lies_in` another begins."""
    return (memory.storage_offset() - whole.storage_offset()) // whole.stride(3)


class Moved(NamedTuple):
    """Tokens of kept grids that lay elsewhere before.

    Attributes:
        to: the slots where they go, ``[m]``.
        kv: ``[layers, 2, kv_heads, m, head_dim]``, keys as first computed.
        grids: numbers of the grids that they are of; True: the whole grid moved.
    """

    to: torch.Tensor
    kv: torch.Tensor
    grids: Mapping[int, bool]


class Writing(NamedTuple):
    """What is to be written so that a buffer holds what its slots say.

    It may be done again and again: nothing of what is read here lies in the buffer.

    Attributes:
        tokens: new ones, ``[layers, 2, kv_heads, n, head_dim]``; None: none.
        slots: where these go, in their order.
        moved: what else goes elsewhere.
        sealed: tokens of a sink that is one from now on; 0: none.
    """

    tokens: torch.Tensor | None
    slots: Sequence[slice]
    moved: Moved | None
    sealed: int = 0


class _Rotated(NamedTuple):
    """By how many positions keys are rotated, compared with those first computed.

    Never changed. Of the sink and of kept grids; not listed: what is there is not valid.
    """

    numbers: np.ndarray  # [n], rising
    by: np.ndarray  # [n, 3]

    @classmethod
    def nothing(cls) -> _Rotated:
        return cls(np.empty(0, np.int64), np.empty((0, 3), np.int64))

    def of(self, numbers: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which of these are listed ``[n]``, and by how many positions they are ``[n, 3]``."""
        at = self.numbers.searchsorted(numbers)
        at[at == len(self.numbers)] = 0
        by = np.zeros((len(numbers), 3), np.int64)
        if not len(self.numbers):
            return np.zeros(len(numbers), bool), by
        valid = self.numbers[at] == numbers
        by[valid] = self.by[at[valid]]
        return valid, by

    def without(self, numbers: Collection[int]) -> _Rotated:
        left = ~np.isin(self.numbers, list(numbers))
        return _Rotated(self.numbers[left], self.by[left])

    def with_originals(self, numbers: Collection[int]) -> _Rotated:
        """With keys as first computed of further ones."""
        together = np.concatenate([self.numbers, np.array([*numbers], np.int64)])
        by = np.concatenate([self.by, np.zeros((len(numbers), 3), np.int64)])
        order = together.argsort()
        return _Rotated(together[order], by[order])


class KVBuffer:
    """The stream's keys and values.

    Where grids are kept, the keys of sink and kept grids are there a second time, as first
    computed (the *originals*), so that they can be rotated again and again without drift. What of
    them lies in ``data`` is made from those, when it is read: see `rotate_base`.

    Args:
        originals: room for so many tokens is taken at once, more only if they become more; None:
            no second copy.
        room: to take the first copy's from; None: it is by itself.
    """

    def __init__(
        self,
        shape: KVShape,
        capacity: int,
        device: torch.device,
        originals: int | None = None,
        room: TakesRoom | None = None,
    ):
        self._shape, self._device = shape, device
        self.data = (
            shape.allocate(capacity, device) if room is None else room.take(shape, capacity, device)
        )
        self.originals: torch.Tensor | None = None  # [layers, kv_heads, tokens, head_dim]
        self.keeps_originals = originals is not None
        if originals is not None:
            self.originals = self._take_originals(originals)
        self._rotated = _Rotated.nothing()

    @property
    def capacity(self) -> int:
        return self.data.shape[3]

    @property
    def nbytes(self) -> int:
        return self.data.nbytes + (0 if self.originals is None else self.originals.nbytes)

    def with_room_for_originals(self, tokens: int) -> KVBuffer:
        """One over the same ``data`` whose second copy, of any content, has room for so many."""
        if self.originals is not None and self.originals.shape[2] >= tokens:
            return self
        twin = copy.copy(self)
        twin.originals, twin._rotated = self._take_originals(tokens), _Rotated.nothing()
        return twin

    def _take_originals(self, tokens: int) -> torch.Tensor:
        layers, _, heads, _, size = self.data.shape
        return self.data.new_empty(layers, heads, tokens, size)

    def forget_rotations(self) -> None:
        """Let all keys of sink and kept grids be rotated from the originals when read next."""
        self._rotated = _Rotated.nothing()

    def grown(self, capacity: int, length: int) -> KVBuffer:
        """A larger one with the same first ``length`` slots; only without a second copy."""
        assert not self.keeps_originals
        larger = KVBuffer(self._shape, capacity, self._device)
        larger.data[:, :, :, :length] = self.data[:, :, :, :length]
        return larger

    def copy(self) -> KVBuffer:
        twin = copy.copy(self)
        twin.data = self.data.clone()
        twin.originals = None if self.originals is None else self.originals.clone()
        return twin

    def read(self, slots: np.ndarray, base: int) -> torch.Tensor:
        """A copy of ``slots [n]``: ``[layers, 2, kv_heads, n, head_dim]``.

        The keys as first computed; those of slots below ``base`` are there a second time.
        """
        kv = self.data.index_select(3, self.numbers(slots))
        below = np.flatnonzero(slots < base)
        if len(below) and self.originals is not None:
            from_base = self.originals.index_select(2, self.numbers(slots[below]))
            kv[:, 0].index_copy_(2, self.numbers(below), from_base)
        return kv

    def numbers(self, slots: np.ndarray) -> torch.Tensor:
        """On its device."""
        return to_device(torch.from_numpy(slots), self._device)

    def write(self, new: Writing) -> None:
        if new.tokens is not None:
            done = 0
            for slots in new.slots:
                size = slots.stop - slots.start
                self.data[:, :, :, slots] = new.tokens[:, :, :, done : done + size]
                done += size
        if new.sealed and self.originals is not None:
            self._rotated = _Rotated.nothing()
            self.originals[:, :, : new.sealed] = self.data[:, 0, :, : new.sealed]
            self._rotated = _Rotated.nothing().with_originals([SINK])
        if new.moved is not None:
            to, kv, grids = new.moved
            self._rotated = self._rotated.without(grids)
            self.data.index_copy_(3, to, kv)
            if self.originals is not None:
                self.originals.index_copy_(2, to, kv[:, 0])
            whole = [number for number in grids if grids[number]]
            self._rotated = self._rotated.with_originals(whole)

    def rotate_base(
        self,
        rotary: MultimodalRotary,
        slots: Slots,
        shifts: Shifts,
        frame: Vec,
    ) -> Vec:
        """Rotate keys of sink and kept grids so that one RoPE offset of a query fits all of them.

        A query may be rotated further by an offset, or a key back by the same. Of the offsets, that
        is taken which leaves as many keys as possible as they are; the others are rotated from the
        originals.

        Args:
            shifts: of the sink and of each kept grid.
            frame: the shift of the newest run: keys of that shift need a query of offset 0.

        Returns:
            The offset of the query.
        """
        numbers, tokens, at = shifts
        valid, here = self._rotated.of(numbers)
        # The offset that fits a key is its shift plus its own rotation, less the frame: it has to
        # be the same for all.
        fitting = at[valid] + here[valid]
        shared = np.array(frame)
        if len(fitting):
            shared = fitting[0]
            if not (fitting == shared).all():
                # (Of two that fit as many keys, that of the older ones.)
                _, first, which = np.unique(fitting, axis=0, return_index=True, return_inverse=True)
                votes = np.bincount(which.ravel(), tokens[valid])
                shared = fitting[first[votes == votes.max()].min()]
        wanted = shared - at
        stale = ~valid | (wanted != here).any(axis=1)
        if stale.any():
            self._rotated = _Rotated(numbers[~stale], wanted[~stale])  # the others are not valid
            self._rotate(rotary, slots, numbers[stale], wanted[stale])
        self._rotated = _Rotated(numbers, wanted)
        return Vec(*shared.tolist()).minus(frame)

    def _rotate(
        self, rotary: MultimodalRotary, slots: Slots, numbers: np.ndarray, by: np.ndarray
    ) -> None:
        """Rotate the keys of these, the sink or grids, from the originals: ``[n]``, ``[n, 3]``."""
        assert self.originals is not None
        owner = np.concatenate([np.full(slots.sink, SINK), slots.owner])
        ranks = numbers.searchsorted(owner).clip(max=len(numbers) - 1)
        taken = np.flatnonzero(numbers[ranks] == owner)
        rows, at = self.numbers(ranks[taken]), self.numbers(taken)
        # One angle for each grid, not for each of its tokens.
        angles = rotary.angles(self.numbers(by).T)  # [grids, head_dim // 2]
        cos, sin = angles.cos().float(), angles.sin().float()
        cos, sin = torch.cat([cos, cos], 1)[rows], torch.cat([-sin, sin], 1)[rows]
        keys, originals = self.data[:, 0], self.originals
        if keys.is_cuda:
            together = max(1, _ROTATED_AT_ONCE // (keys[0, :, 0].numel() * len(at)))  # layers
            layers = zip(keys.split(together), originals.split(together), strict=True)
        else:
            layers = zip(keys.unbind(), originals.unbind(), strict=True)
        for some, of in layers:
            x = of.index_select(-2, at).float()
            other_half = x.roll(cos.shape[1] // 2, dims=-1)
            x.mul_(cos).addcmul_(other_half, sin)
            some.index_copy_(-2, at, x.to(some.dtype))
