# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The memory itself: keys and values of the whole stream in one buffer, taken once.

Nothing in the window ever moves: it is a ring behind the sink and the grids kept for long.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from stream_vlm_ros.engine.cache.mrope import MultimodalRotary, Vec, rotate
from stream_vlm_ros.errors import DeviceUnavailableError

# Numbers of keys that a GPU rotates together, which takes some times as much in float32 meanwhile:
# as many layers as make no more. Short memories are so rotated in few calls. A CPU is faster layer
# by layer, each of which stays in its cache.
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
        try:
            return torch.empty(size, dtype=self.dtype, device=device)
        except (RuntimeError, MemoryError) as error:  # the CPU's allocator raises the former
            gigabytes = (batch or 1) * tokens * self.bytes_per_token / 1024**3
            raise DeviceUnavailableError(
                f"keys and values of {(batch or 1) * tokens} tokens take {gigabytes:.1f} GiB, "
                f"which {device} cannot give: set max_cache_tokens, or lower it"
            ) from error


class KVBuffer:
    """The stream's keys and values: the sink, then grids kept for long, then a ring.

    Window tokens have running numbers; number ``i`` lies in slot ``base + i % (capacity - base)``,
    where ``base`` is the sink's length and the room for kept grids. The live ones are ``window``.
    Kept grids fill their room from the front, without holes and in no order: attention needs none.

    Args:
        originals: keep the keys of sink and kept grids a second time, as first computed, so that
            they can be rotated again and again without drift. Room for so many tokens is
            taken at once, more only if they become more; None: not kept.
    """

    def __init__(
        self, shape: KVShape, capacity: int, device: torch.device, originals: int | None = None
    ):
        self._shape, self._device = shape, device
        self.data = shape.allocate(capacity, device)
        self._room_for_originals = None if originals is None else self._take_originals(originals)
        self.clear()

    def clear(self) -> None:
        self.sink = 0
        self.window = range(0)
        self._room = 0  # slots for kept grids, behind the sink
        self._owner = torch.empty(0, dtype=torch.long)  # number of the grid in each of its slots
        self._place = torch.empty(0, dtype=torch.long)  # which token of the grid that is
        self._originals: torch.Tensor | None = None  # [layers, kv_heads, base, head_dim]

    @property
    def capacity(self) -> int:
        return self.data.shape[3]

    @property
    def kept(self) -> int:
        """Tokens of kept grids."""
        return len(self._owner)

    @property
    def base(self) -> int:
        """First slot of the ring."""
        return self.sink + self._room

    @property
    def length(self) -> int:
        return self.sink + self.kept + len(self.window)

    @property
    def nbytes(self) -> int:
        room = self._room_for_originals
        return self.data.nbytes + (0 if room is None else room.nbytes)

    @property
    def rotates_base(self) -> bool:
        """The keys of sink and kept grids are rotated again whenever something is forgotten."""
        return self._originals is not None

    def seal_sink(self, length: int, room: int) -> None:
        """The first ``length`` tokens leave the ring for good; behind them, room for kept grids."""
        behind = self.data[:, :, :, length : self.window.stop]
        if room and behind.shape[3]:
            self.data[:, :, :, length + room : self.window.stop + room] = behind.clone()
        self.sink, self._room = length, room
        self.window = range(0, self.window.stop - length)
        if room and self._room_for_originals is not None:
            if self._room_for_originals.shape[2] < self.base:
                self._room_for_originals = None  # the old one first
                self._room_for_originals = self._take_originals(self.base)
            self._originals = self._room_for_originals[:, :, : self.base]
            self._originals[:, :, :length] = self.data[:, 0, :, :length]

    def _take_originals(self, tokens: int) -> torch.Tensor:
        layers, _, heads, _, size = self.data.shape
        return self.data.new_empty(layers, heads, tokens, size)

    def unseal_sink(self) -> None:
        """Put the sink back into the ring; nothing may have been evicted since it was sealed."""
        assert self.window.start == 0 and not self.kept
        behind = self.data[:, :, :, self.base : self.base + len(self.window)]
        if self._room and behind.shape[3]:
            self.data[:, :, :, self.sink : self.sink + len(self.window)] = behind.clone()
        self.window = range(0, self.window.stop + self.sink)
        self.sink = self._room = 0
        self._originals = None

    def overwritten_by(self, count: int) -> range:
        """Running numbers of the tokens whose slots the next ``count`` tokens would take."""
        ring = self.capacity - self.base
        return range(self.window.stop - ring, self.window.stop + count - ring)

    def evict(self, count: int) -> None:
        """Forget the ``count`` oldest tokens of the window."""
        self.window = self.window[count:]

    def keep_oldest(self, number: int, count: int) -> None:
        """Move the window's oldest ``count`` tokens, grid ``number``, to the kept ones."""
        start = self.sink + self.kept
        assert start + count <= self.base
        done = start
        for slots in self._slots(self.window[:count]):
            size = slots.stop - slots.start
            self.data[:, :, :, done : done + size] = self.data[:, :, :, slots]
            done += size
        if self._originals is not None:
            self._originals[:, :, start:done] = self.data[:, 0, :, start:done]
        self._owner = torch.cat([self._owner, torch.full((count,), number)])
        self._place = torch.cat([self._place, torch.arange(count)])
        self.evict(count)

    def drop_kept(self, number: int) -> None:
        """Forget a kept grid; the last kept tokens move into its slots."""
        gone = self._owner == number
        left = self.kept - int(gone.sum())
        holes = gone[:left].nonzero()[:, 0]
        movers = (~gone[left:]).nonzero()[:, 0] + left
        self._owner[holes], self._place[holes] = self._owner[movers], self._place[movers]
        self._owner, self._place = self._owner[:left], self._place[:left]
        if len(holes):
            to, of = (self.sink + holes).to(self._device), (self.sink + movers).to(self._device)
            self.data[:, :, :, to] = self.data[:, :, :, of]
            if self._originals is not None:
                self._originals[:, :, to] = self._originals[:, :, of]

    def rotate_base(self, rotary: MultimodalRotary, sink: Vec, kept: list[tuple[int, Vec]]) -> None:
        """Rotate the keys of sink and kept grids again, from the originals.

        So that a query in the frame of the newest run sees them as it would if it stood further
        by the given offset: turning a key back is turning the query on.
        """
        assert self._originals is not None
        # One angle for the sink and for each grid, not for each of their tokens.
        offsets = torch.tensor([sink, *(offset for _, offset in kept)])  # [1 + grids, 3]
        angles = rotary.angles(-offsets.T.to(self._device))
        numbers = torch.tensor([number for number, _ in kept], dtype=torch.long)  # rising
        owner = torch.zeros(self.sink + self.kept, dtype=torch.long)  # of each token
        owner[self.sink :] = 1 + torch.searchsorted(numbers, self._owner)
        owner = owner.to(self._device)
        cos, sin = (turn.float()[owner].repeat(1, 2) for turn in (angles.cos(), angles.sin()))
        originals = self._originals[:, :, : len(owner)]
        keys = self.data[:, 0, :, : len(owner)]
        at_once = _ROTATED_AT_ONCE if keys.is_cuda else 0
        together = max(1, at_once // originals[0].numel())  # layers
        for some, of in zip(keys.split(together), originals.split(together), strict=True):
            rotate(of, cos, sin, out=some)

    def write(self, tokens: torch.Tensor) -> None:
        """Append ``[layers, 2, kv_heads, n, head_dim]`` behind the window."""
        count = tokens.shape[3]
        first = self.window.stop
        self.window = range(self.window.start, first + count)
        assert len(self.window) <= self.capacity - self.base
        done = 0
        for slots in self._slots(range(first, first + count)):
            size = slots.stop - slots.start
            self.data[:, :, :, slots] = tokens[:, :, :, done : done + size]
            done += size

    def forget_back(self, length: int) -> None:
        """Shorten the stream to its first ``length`` tokens, all the others being in the window."""
        self.window = self.window[: length - self.sink - self.kept]

    def grow(self, capacity: int) -> None:
        """A larger buffer with the same content; only where there is no sink yet."""
        assert self.window.start == 0 and self.sink == 0
        old = self.data
        self.data = self._shape.allocate(capacity, self._device)
        self.data[:, :, :, : self.length] = old[:, :, :, : self.length]

    def order(self) -> torch.Tensor:
        """The slots of all tokens, in order of time: ``[length]``."""
        kept = self.sink + torch.argsort(self._owner * (1 << 32) + self._place)
        ring = self.capacity - self.base
        window = self.base + torch.tensor(self.window, dtype=torch.long) % ring
        return torch.cat([torch.arange(self.sink), kept, window])

    def slices(self, start: int, stop: int) -> list[slice]:
        """Slots of the stream's tokens ``start`` to ``stop``, in as few slices as there can be.

        Sink and window may be cut anywhere; the kept grids only as a whole.
        """
        kept_start, kept_stop = self.sink, self.sink + self.kept
        assert not kept_start < start < kept_stop and not kept_start < stop < kept_stop
        slices = []
        if start < kept_stop:
            slices.append(slice(start, min(stop, kept_stop)))
        if stop > kept_stop:
            first = max(start, kept_stop) - kept_stop
            slices += self._slots(self.window[first : stop - kept_stop])
        joined: list[slice] = []
        for slots in sorted(slices, key=lambda slots: slots.start):
            if joined and joined[-1].stop == slots.start:
                joined[-1] = slice(joined[-1].start, slots.stop)
            else:
                joined.append(slots)
        return joined

    def _slots(self, numbers: range) -> list[slice]:
        if not numbers:
            return []
        first = self.base + numbers.start % (self.capacity - self.base)
        until_end = self.capacity - first
        if len(numbers) <= until_end:
            return [slice(first, first + len(numbers))]
        return [
            slice(first, self.capacity),
            slice(self.base, self.base + len(numbers) - until_end),
        ]
