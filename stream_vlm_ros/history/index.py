# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`KeyIndex`: keys of a few heads for every grid of a stream, searched by a question's queries.

Keys and queries are those before the rotation (`engine.attention.base.Readout`), so that a key does
not know when it was seen. A grid is as good as its best token: a thing takes a few of them, and
their mean would hide it.

What the index holds is a value, `IndexState`: it goes with the memory's state, to snapshots and
back. The keys themselves lie in slots that all states share (`history.key_slots`). Only the newest
state keeps its slots; an older one finds out what was overwritten since, and does without.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch

from stream_vlm_ros.engine.attention.base import by_layer
from stream_vlm_ros.engine.cache.mrope import VisionSpan
from stream_vlm_ros.engine.cache.state import Change
from stream_vlm_ros.errors import FrameStoreError, InvalidParameterError, real_number, whole_number
from stream_vlm_ros.history.key_files import KeyFiles
from stream_vlm_ros.history.key_slots import KeySlots

NEW_STREAM = 1000  # serials that are left out where a stream begins
ROW_BYTES = 128  # what is known of a slot and its grid counts with
_LAST_RESORT = 1 << 60  # no grid stands for so many
# Tokens of a slot, at most: of grids that are always whole, and where tokens are left out.
_WHOLE, _PART = 512, 64

_ROW = np.dtype(
    [
        ("ticket", np.int64),
        ("serial", np.int64),
        ("span", np.int64),
        ("first", np.float64),
        ("last", np.float64),
        ("slot", np.int64),
        ("parts", np.int64),
    ]
)


class Found(NamedTuple):
    """What a search gives for each grid that is held, the oldest first.

    Attributes:
        serials: of the grids, rising, int64 ``[g]``. Those of grids that follow each other follow
            each other; where another stream begins, at least 1,000 are left out.
        spans: how many grids of the stream each stands for, itself the first, int64 ``[g]``.
        stamps: the source's time of its first frame, and of the last one of what it stands for, in
            seconds, float64 ``[g, 2]``.
        left_out: of those that each stands for, how many had keys that were left out for lack of
            room, int64 ``[g]``. (The others had none.)
        scores: ``[query heads, g]`` in float32, on the index's device.
    """

    serials: np.ndarray
    spans: np.ndarray
    stamps: np.ndarray
    left_out: np.ndarray
    scores: torch.Tensor


class _Forgotten(NamedTuple):
    """A time that was forgotten, for states that are older than that.

    Attributes:
        epoch: that it is a time of.
        ticket: of the next grid then.
        start, stop: both included.
    """

    epoch: int
    ticket: int
    start: float
    stop: float


class _Rows:
    """What is known of grids, for a state and those that it came from: the oldest first.

    Only the newest state of an index is appended to, so each may write behind what it came from.

    Attributes:
        rows: with room behind.
    """

    def __init__(self, rows: np.ndarray):
        self.rows = np.empty(2 * len(rows) + 16, _ROW)
        self.rows[: len(rows)] = rows


@dataclass(frozen=True, eq=False)
class IndexState:
    """What an index holds at a time. Never changed.

    Attributes:
        grids: how many.
        next_serial: of the grid that comes next.
        parts: slots that the grids take.
        slot_bytes: of each.
        epoch: what its stamps are times of.
        left_out: grids whose keys were left out for lack of room; others stand for them.
    """

    grids: int
    next_serial: int
    parts: int
    left_out: int
    slot_bytes: int
    epoch: int
    _rows: _Rows
    # Of the newest grid, whose row says what it stood for when the next one came.
    _span: int
    _last: float

    @property
    def oldest(self) -> float | None:
        """The source's time of the first frame, in seconds; None without a grid."""
        return float(self._rows.rows["first"][0]) if self.grids else None

    @property
    def newest(self) -> float | None:
        """The source's time of the last frame, in seconds; None without a grid."""
        return self._last if self.grids else None

    @property
    def nbytes(self) -> int:
        """Bytes that its keys take, and what is known of them."""
        return self.parts * (self.slot_bytes + ROW_BYTES)

    def table(self, first: int = 0) -> np.ndarray:
        """A copy of what is known of the grids from a place on."""
        rows = self._rows.rows[first : self.grids].copy()
        rows["span"][-1:], rows["last"][-1:] = self._span, self._last
        return rows

    @classmethod
    def of(cls, rows: np.ndarray, next_serial: int, slot_bytes: int, epoch: int) -> IndexState:
        span, last = (int(rows["span"][-1]), float(rows["last"][-1])) if len(rows) else (0, 0.0)
        parts = int(rows["parts"].sum())
        left_out = int(_left_out(rows).sum())
        return cls(
            len(rows), next_serial, parts, left_out, slot_bytes, epoch, _Rows(rows), span, last
        )

    def stands_for_next(self, last: float) -> IndexState:
        """The next grid has no keys: the one before stands for it, if there is one."""
        follows = self.grids and self._newest_serial + self._span == self.next_serial
        span, last = (self._span + 1, last) if follows else (self._span, self._last)
        return replace(self, next_serial=self.next_serial + 1, _span=span, _last=last)

    def with_next(
        self, ticket: int, stamps: tuple[float, float], slots: Sequence[int]
    ) -> IndexState:
        """The next grid, with its keys in these slots."""
        shared, count, left_out = self._rows, self.grids, self.left_out
        if count == len(shared.rows):
            shared = _Rows(self.table())
        if count:
            shared.rows["span"][count - 1], shared.rows["last"][count - 1] = self._span, self._last
            left_out += min(self._span, ticket - int(shared.rows["ticket"][count - 1])) - 1
        shared.rows[count] = (ticket, self.next_serial, 1, *stamps, slots[0], len(slots))
        return IndexState(
            count + 1,
            self.next_serial + 1,
            self.parts + len(slots),
            left_out,
            self.slot_bytes,
            self.epoch,
            shared,
            1,
            stamps[1],
        )

    @property
    def _newest_serial(self) -> int:
        return int(self._rows.rows["serial"][self.grids - 1])


class _Behind(NamedTuple):
    """Keys of a chunk that are still to be written to host or folder.

    Attributes:
        slots: where they belong.
        pages: ``[heads, slots, tokens, head_dim]``.
        rows: of its grids, where there are files.
        common: what was taken off, ``[heads, 1, 1, head_dim]``; None where the files know it.
        event: has come when they have arrived on the host.
    """

    slots: list[int]
    pages: torch.Tensor
    rows: np.ndarray | None
    common: torch.Tensor | None
    event: torch.cuda.Event | None = None

    def on_its_way(self) -> _Behind:
        """Sent from the GPU to the host; nobody waits."""
        pages, common = (
            one
            if one is None
            else torch.empty_like(one, device="cpu", pin_memory=True).copy_(one, non_blocking=True)
            for one in (self.pages, self.common)
        )
        assert pages is not None
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(self.pages.device))
        return self._replace(pages=pages, common=common, event=event)

    def arrived(self) -> _Behind:
        if self.event is not None:
            self.event.synchronize()
        return self


Given = ParamSpec("Given")
Result = TypeVar("Result")


def _in_inference_mode(
    method: Callable[Concatenate[KeyIndex, Given], Result],
) -> Callable[Concatenate[KeyIndex, Given], Result]:
    """Because chunks are appended in it, and what is made in it may be changed in it alone."""

    @functools.wraps(method)
    def inside(self: KeyIndex, *args: Given.args, **options: Given.kwargs) -> Result:
        with torch.inference_mode():
            return method(self, *args, **options)

    return inside


class KeyIndex:
    """Keys of some heads of every grid so far, in a bounded number of bytes.

    A companion of the memory (`engine.cache.state.Companion`), told what was read of `reads`.

    Once it is full, grids are left out where they lie the densest, the oldest first, and their
    neighbour before stands for them too. So a stream of any length is held, all of it equally
    densely to a factor of about two. What lasts for fewer grids than one stands for may be missed.

    Not thread-safe.

    Args:
        heads: layer and KV head of the keys, each once.
        head_dim: their width.
        max_bytes: that the keys may take, with what is known of them.
        dtype: that they are kept in, less what those of the first chunk have in common: large
            numbers that all keys share take no precision.
        device: where they are kept and searched.
        folder: keeps them for the next process, too (`history.key_files`): on a CPU memory-mapped,
            else as a second copy. None: memory alone. What another model or other heads left
            there is set aside.
        model: names what the keys are of; bound with the folder.
        write_behind: host and folder get a chunk's keys by a thread of the index, so that nobody
            waits for them; a process that is killed may lose the last chunk. None: where keys come
            from a GPU.

    Raises:
        InvalidParameterError: a count below 1, or no heads, or one twice.
        FrameStoreError: the folder cannot be used, or another process has it open.
    """

    def __init__(
        self,
        heads: Sequence[tuple[int, int]],
        head_dim: int,
        max_bytes: int,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: str | torch.device = "cpu",
        folder: str | Path | None = None,
        model: str = "",
        write_behind: bool | None = None,
    ):
        self.heads = tuple((int(layer), int(head)) for layer, head in heads)
        if not self.heads or len(set(self.heads)) != len(self.heads):
            raise InvalidParameterError(
                f"heads must be pairs of a layer and a KV head, each once: {list(heads)}"
            )
        self.head_dim = whole_number("head_dim", head_dim, least=1)
        self.max_bytes = whole_number("max_bytes", max_bytes, least=1)
        self.dtype, self.device = dtype, torch.device(device)
        self._ticket = 0  # of the next grid that is written
        self._serial = 0  # above any that was given
        self._epoch = 0  # counts how often the source's time restarted
        self._forgotten: list[_Forgotten] = []
        self._slots: KeySlots | None = None
        self._common: torch.Tensor | None = None  # of the keys, [heads, 1, 1, head_dim]
        self._newest: IndexState | None = None  # whose grids have their slots for sure
        self._opened: IndexState | None = None  # what the folder held
        self._write_behind = write_behind
        self._writer: ThreadPoolExecutor | None = None
        self._behind: tuple[_Behind, Future[None]] | None = None  # what it writes
        self._fault: FrameStoreError | None = None  # that nobody was told of
        self._files: KeyFiles | None = None
        if folder is not None:
            binding = {
                "heads": list(map(list, self.heads)),
                "head_dim": self.head_dim,
                "dtype": str(dtype),
                "model": model,
            }
            self._files = KeyFiles(folder, binding, dtype)
            try:
                self._take_up(self._files)
            except BaseException:
                self._files.close()
                raise

    def __enter__(self) -> KeyIndex:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    @property
    def reads(self) -> dict[int, list[int]]:
        """The KV heads of each layer, for `Readout`."""
        return by_layer(self.heads)

    @property
    def nbytes(self) -> int:
        """Bytes taken, with the room kept for the next grids."""
        return 0 if self._slots is None else self._slots.nbytes + len(self._slots) * ROW_BYTES

    # -- what comes and goes -------------------------------------------------------------------

    def empty(self) -> IndexState:
        """What a memory without a token begins with: what the folder held, until `clear`."""
        if self._opened is None:
            return IndexState.of(np.empty(0, _ROW), self._begin(), self._slot_bytes, self._epoch)
        return replace(self._opened, next_serial=self._begin())

    @_in_inference_mode
    def start_epoch(self, held: IndexState) -> IndexState:
        """The source's time restarts: nothing of before is found any more.

        Raises FrameStoreError, as `forget` does.
        """
        self._try_to_catch_up()  # who appends next is told of a fault
        self._epoch, self._opened = self._epoch + 1, None
        return self._settled(self.empty())

    @_in_inference_mode
    def settle(self, held: IndexState) -> IndexState:
        """Let slots and files hold what this state holds and no more: the memory went back to it.

        Nothing to do where it is the newest. Raises FrameStoreError: the folder cannot be written;
        ``held`` stays as good as it was.
        """
        self._try_to_catch_up()
        if self._slots is not None:
            self._newest = held = self._settled(held)
        return held

    def clear(self) -> IndexState:
        """Forget everything, and give the room back. Raises FrameStoreError, as `forget` does."""
        self._try_to_catch_up()
        self._slots = self._common = self._newest = self._opened = self._fault = None
        self._forgotten.clear()
        if self._files is not None:
            self._files.clear()
        return self.empty()

    @_in_inference_mode
    def close(self) -> None:
        """Write what is still to be written, and give the folder back."""
        try:
            self._catch_up()
        finally:
            if self._writer is not None:
                if self._files is not None:
                    # Behind what it writes; it does so also where this wait is interrupted.
                    self._writer.submit(self._files.close).result()
                self._writer.shutdown()
                self._writer = None
            elif self._files is not None:
                self._files.close()
            self._slots = self._newest = self._opened = None

    @_in_inference_mode
    def draft(self, held: IndexState, change: Change) -> IndexState:
        """What is held once these spans are appended; see `Companion`.

        A grid of which no token is there is stood for by the one before.

        Raises:
            InvalidParameterError: the keys were not read, or not even two grids of this size fit
                ``max_bytes``; nothing changes.
            FrameStoreError: the folder cannot be written: no room on the disk, say. ``held`` stays
                as good as it was.
        """
        grids = _grids_of(change)
        if not grids:
            return held
        self._catch_up()
        keys = self._keys_of(change)
        sizes = [stop - start for _, start, stop in grids]
        slots = self._slots_for(change, max(sizes))
        held = self._settled(held)
        self._newest = None
        before, first_ticket, thinned = held.grids, self._ticket, False
        at: dict[int, tuple[int, int]] = {}  # which part of which grid each slot gets
        for number, (stamps, _, _) in enumerate(grids):
            count = -(-sizes[number] // slots.tokens)
            if not count:
                held = self._with_none(held, stamps[1])
                continue
            while slots.free < count:
                if not slots.grow():
                    held, thinned = self._thinned(held, count), True
            taken = slots.take(count, self._ticket, stamps)
            at |= {slot: (number, part) for part, slot in enumerate(taken)}
            held = held.with_next(self._ticket, stamps, taken)
            self._ticket += 1
        self._serial = max(self._serial, held.next_serial)
        rows = None
        if self._files is not None and thinned:
            table = held.table()
            new = table["ticket"] >= first_ticket
            self._files.sync(slots, table[~new])
            rows = table[new]
        elif self._files is not None:
            if before and not sizes[0]:
                self._files.update(slots, held.table(before - 1)[:1])  # it stands for more
            rows = held.table(before)
        if at:
            pages, common = self._pages(keys, grids, list(at.values()), slots.tokens)
            self._store(_Behind(list(at), pages, rows, common))
        self._newest = held
        return held

    @_in_inference_mode
    def forget(self, held: IndexState, start: float, stop: float) -> IndexState:
        """Erase the grids of this time, both ends included, in seconds of the source.

        One that stands for some of that time and for other goes with all. Keys that ``held`` does
        not refer to any more are erased, too, and what was set aside in the folder.

        Raises:
            FrameStoreError: the folder cannot be written. Nothing of that time is found any more;
                try again, so that it is erased.
        """
        self._try_to_catch_up()  # who appends next is told of a fault
        if self._files is not None:
            self._files.remove_set_aside()
        if self._slots is None:
            return held
        held, slots = self._settled(held), self._slots
        self._newest = None
        self._forgotten.append(_Forgotten(held.epoch, self._ticket, start, stop))
        rows = held.table()
        gone = _within(rows["first"], rows["last"], start, stop)
        erased = _within(slots.stamps[:, 0], slots.stamps[:, 1], start, stop)
        erased[slots.parts_of(rows["slot"][gone])[0]] = True
        slots.give_back(rows["slot"][gone])
        places = np.flatnonzero(erased)
        slots.disown(places)
        if not self._mapped:
            slots.erase(places)
        held = IndexState.of(rows[~gone], held.next_serial, held.slot_bytes, held.epoch)
        if self._files is not None:
            # In this order: what is void was erased.
            self._files.erase(slots, places)
            self._files.sync(slots, held.table())
        self._newest = held
        return held

    def _take_up(self, files: KeyFiles) -> None:
        """What a process before this one has left in the folder."""
        if not files.tokens:
            return
        per_segment = files.segment_slots
        slots = self._new_slots(files.tokens, len(files.rows), per_segment)
        segments = self.max_bytes // (per_segment * (slots.slot_bytes + ROW_BYTES))
        if not segments:
            files.set_aside(f"takes more than max_bytes of {self.max_bytes:,}")
            return
        self._slots, self._common = slots, torch.from_numpy(files.common)[:, None, None]
        while slots.grow():
            pass
        loaded = files.load(slots)
        rows = np.zeros(len(loaded), _ROW)
        for name in _ROW.names or ():
            rows[name] = loaded[name]
        held = IndexState.of(rows, 0, slots.slot_bytes, self._epoch)
        if len(slots) > segments * per_segment:
            held = self._shrunk(held, files, segments)
        slots.capacity = segments * per_segment
        if not self._mapped:
            for number, segment in enumerate(slots.segments):
                segment.copy_(files.segment(number))
        self._ticket = int(rows["ticket"].max(initial=-1)) + 1
        self._serial = int((rows["serial"] + rows["span"]).max(initial=0))
        self._opened = held

    def _shrunk(self, held: IndexState, files: KeyFiles, segments: int) -> IndexState:
        """Leave out what ``max_bytes`` have no room for, and move the rest together.

        A grid is copied before it is void in its old place: with room for one such more.
        """
        assert self._slots is not None
        slots, room = self._slots, segments * self._slots.segment_slots
        spare = int(held.table()["parts"].max(initial=0))
        while held.grids and held.parts > room - spare:
            held = self._thinned(held, held.parts - (room - spare))
        files.sync(slots, held.table())
        rows = held.table()
        used, of = slots.parts_of(rows["slot"])
        for number in np.unique(of[used >= room]).tolist():
            row = rows[number]
            old = used[of == number].tolist()
            pages = torch.stack([files.page(slot) for slot in old], dim=1)
            new = slots.take(len(old), int(row["ticket"]), (row["first"], row["last"]))
            files.write_keys(slots, new, pages)
            slots.give_back(rows["slot"][[number]])
            rows["slot"][number] = new[0]
            files.update(slots, rows[[number]])
        files.sync(slots, rows)
        slots.shrink(segments)
        files.shrink(segments)
        return IndexState.of(rows, held.next_serial, held.slot_bytes, held.epoch)

    def _begin(self) -> int:
        """The first serial of a stream that begins now."""
        return self._serial + NEW_STREAM if self._serial else 0

    @property
    def _slot_bytes(self) -> int:
        return 0 if self._slots is None else self._slots.slot_bytes

    def _keys_of(self, change: Change) -> torch.Tensor:
        """The heads' keys of the chunk's tokens, ``[heads, tokens, head_dim]``."""
        read = change.read
        missing = read is None or any(
            head not in read.heads[1].get(layer, ()) for layer, head in self.heads
        )
        if read is None or missing:
            raise InvalidParameterError(
                f"the index is to be told the keys of layers and KV heads {list(self.heads)}: "
                "accompany the memory with Readout(keys=index.reads)"
            )
        layers = {layer: read.keys(layer) for layer in self.reads}
        places = [(layer, read.heads[1][layer].index(head)) for layer, head in self.heads]
        in_order = [
            (layer, at) for layer, heads in read.heads[1].items() for at in range(len(heads))
        ]
        if places == in_order:  # as a rule: one call
            return torch.cat(list(layers.values()))
        return torch.stack([layers[layer][at] for layer, at in places])

    def _slots_for(self, change: Change, tokens: int) -> KeySlots:
        """The slots, which the first chunk decides the size of; room for two such grids at least.

        Args:
            tokens: of the largest grid.
        """
        slots = self._slots
        if slots is None:
            span = next(span for span in change.appended if isinstance(span, VisionSpan))
            whole = span.height * span.width
            pieces = -(-whole // (_WHOLE if span.places is None else _PART))
            size = -(-whole // pieces)
            number_bytes = len(self.heads) * self.head_dim * self.dtype.itemsize
            capacity = self.max_bytes // (size * number_bytes + ROW_BYTES)
            slots = self._new_slots(size, capacity)
        needed = 2 * -(-tokens // slots.tokens)
        if needed > slots.capacity:
            raise InvalidParameterError(
                f"max_bytes of the index is {self.max_bytes:,}, but the keys of two grids of "
                f"{tokens} tokens take {needed * (slots.slot_bytes + ROW_BYTES):,}: allow for them"
            )
        if self._slots is None and self._files is not None:
            self._files.lay_out(slots.tokens, slots.segment_slots)
        self._slots = slots
        return slots

    def _new_slots(self, tokens: int, capacity: int, segment_slots: int = 0) -> KeySlots:
        return KeySlots(
            len(self.heads),
            self.head_dim,
            tokens,
            capacity,
            self.dtype,
            self.device,
            segment_slots,
            None if self._files is None else self._new_segment,
        )

    @property
    def _mapped(self) -> bool:
        """Whether the slots are the files themselves."""
        return self._files is not None and self.device.type == "cpu"

    def _new_segment(self, number: int) -> torch.Tensor:
        """The keys of a segment where there are files."""
        assert self._files is not None and self._slots is not None
        if number * self._slots.segment_slots == len(self._files.rows):
            self._files.add_segment()
        return self._files.segment(number) if self._mapped else self._slots.zeros()

    def _pages(
        self,
        keys: torch.Tensor,
        grids: Sequence[tuple[Any, int, int]],
        parts: Sequence[tuple[int, int]],
        tokens: int,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Keys to be kept, ``[heads, parts, tokens, head_dim]``, and what was taken off.

        Args:
            parts: number of the grid, and which part of it.
            tokens: of a part.
        """
        first, last = parts[0][0], parts[-1][0]
        _, start, _ = grids[first]
        _, _, stop = grids[last]
        a_slot_each = parts == [(number, 0) for number in range(first, last + 1)]
        if a_slot_each and stop - start == len(parts) * tokens:  # as a rule
            return self._kept(keys[:, start:stop].unflatten(1, (len(parts), tokens)))
        pieces = []
        for number, part in parts:
            _, start, stop = grids[number]
            piece = keys[:, start + part * tokens : min(stop, start + (part + 1) * tokens)]
            if missing := tokens - piece.shape[1]:
                # A slot that is not filled holds a token more than once: the best is the same.
                piece = torch.cat([piece, piece[:, -1:].expand(-1, missing, -1)], dim=1)
            pieces.append(piece)
        return self._kept(torch.stack(pieces, dim=1))

    def _kept(self, pages: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        if self._common is None:
            self._common = pages.float().mean((1, 2))[:, None, None]  # [heads, 1, 1, head_dim]
        self._common = self._common.to(pages.device)
        return pages - self._common, self._common  # in float32, as one of them is

    def _store(self, new: _Behind) -> None:
        """Put a chunk's keys where they are kept; on another device than they are, later."""
        assert self._slots is not None
        on_gpu = new.pages.device.type != "cpu"
        behind = on_gpu if self._write_behind is None else self._write_behind
        if not self._mapped and new.pages.device.type == self.device.type:
            self._slots.write(new.slots, new.pages)
            if self._files is None:
                return
        known = self._files is None or self._files.common is not None
        new = new._replace(pages=new.pages.to(self.dtype), common=None if known else new.common)
        sent = new.on_its_way() if on_gpu else new
        if behind:
            if self._writer is None:
                self._writer = ThreadPoolExecutor(1, thread_name_prefix="keys")
            self._behind = new, self._writer.submit(self._write, sent)
            return
        try:
            self._write(sent)
        except BaseException:  # whatever it was: they are not there
            self._without(new)
            raise

    def _catch_up(self) -> None:
        """Wait until the last chunk is written; raise what came of it, now or before."""
        self._try_to_catch_up()
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    def _try_to_catch_up(self) -> None:
        if self._behind is None:
            return
        new, written = self._behind
        wait([written])  # interrupted, it is for the next one to look what came of it
        fault = written.exception()
        if fault is not None:
            # A search goes on without these keys; who appends or forgets next is told.
            self._without(new)
            self._fault = _as_told(fault)
        self._behind = None

    def _without(self, new: _Behind) -> None:
        """These keys could not be written, all or some of them: nobody searches them."""
        self._newest = None
        if self._slots is not None:
            self._slots.disown(np.array(new.slots))

    @_in_inference_mode
    def _write(self, new: _Behind) -> None:
        """Put keys where they belong on the host. Whoever changes slots or files waits for it."""
        assert self._slots is not None
        new, files, slots = new.arrived(), self._files, self._slots
        if files is None:
            slots.write(new.slots, new.pages)
            return
        files.write_keys(slots, new.slots, new.pages)
        if new.common is not None:
            files.write_common(new.common.flatten(1).numpy())
        # The last, since now they have their keys. (One that was left out at once has no row.)
        rows = {row[0]: row for row in new.rows.tolist()} if new.rows is not None else {}
        tickets = [(slot, slots.owner.item(slot)) for slot in new.slots]
        files.write_rows([(slot, rows[ticket]) for slot, ticket in tickets if ticket in rows])

    def _settled(self, held: IndexState) -> IndexState:
        """The state that slots are given to from now on: what is still there of ``held``."""
        if held is self._newest or self._slots is None:
            return held
        self._newest = None
        rows = self._there(held)
        self._slots.give_back_all_but(rows["slot"])
        if self._files is not None:
            self._files.sync(self._slots, rows)
        return IndexState.of(rows, held.next_serial, self._slot_bytes, held.epoch)

    def _there(self, held: IndexState) -> np.ndarray:
        """What is known of the grids whose keys were not overwritten since."""
        rows = held.table()
        if held is self._newest or not len(rows):
            return rows
        if self._slots is None:
            return rows[:0]
        forgotten = self._forgotten_of(held, rows["ticket"], rows["first"], rows["last"])
        gone = forgotten | ~self._slots.owned(rows["slot"], rows["ticket"])
        return _without(rows, gone, self._follows(held, rows) & ~forgotten)

    def _with_none(self, held: IndexState, last: float) -> IndexState:
        """The next grid has no keys; nobody stands for it over a time that was forgotten."""
        reached = held.stands_for_next(last)
        newest = reached.table(max(0, reached.grids - 1))
        if self._forgotten_of(held, newest["ticket"], newest["first"], newest["last"]).any():
            return replace(held, next_serial=reached.next_serial)
        return reached

    def _follows(self, held: IndexState, rows: np.ndarray) -> np.ndarray:
        """Which grids the one before may stand for: of one stretch, no time between forgotten."""
        follows = np.zeros(len(rows), bool)
        follows[1:] = rows["serial"][:-1] + rows["span"][:-1] == rows["serial"][1:]
        follows[1:] &= ~self._forgotten_of(
            held, rows["ticket"][:-1], rows["last"][:-1], rows["first"][1:]
        )
        return follows

    def _forgotten_of(
        self, held: IndexState, tickets: np.ndarray, firsts: np.ndarray, lasts: np.ndarray
    ) -> np.ndarray:
        """Which times, each known of by a grid of this state, were forgotten since, in part."""
        forgotten = np.zeros(len(tickets), bool)
        for one in self._forgotten:
            if one.epoch == held.epoch:
                forgotten |= (tickets < one.ticket) & _within(firsts, lasts, one.start, one.stop)
        return forgotten

    def _thinned(self, held: IndexState, count: int) -> IndexState:
        """Leave out as many grids as a segment has, none of them a neighbour of another, or fewer;
        ``count`` slots at least, if there are."""
        assert self._slots is not None
        count = max(count, self._slots.segment_slots)
        rows = held.table()
        spans, parts = rows["span"], rows["parts"]
        # What the one before would stand for; the first of a stretch has none before.
        sums = np.full(len(rows), _LAST_RESORT)
        follows = self._follows(held, rows)
        sums[1:][follows[1:]] = (spans[:-1] + spans[1:])[follows[1:]]
        leaving = np.zeros(len(rows) + 2, bool)  # with one on either side
        freed = 0
        for at in np.argsort(sums, kind="stable").tolist():  # the densest, the oldest first
            if freed >= count or (freed and sums[at] == _LAST_RESORT):
                break
            if not leaving[at] and not leaving[at + 2]:
                leaving[at + 1] = True
                freed += int(parts[at])
        gone = leaving[1:-1]
        self._slots.give_back(rows["slot"][gone])
        left = _without(rows, gone, follows)
        return IndexState.of(left, held.next_serial, held.slot_bytes, held.epoch)

    # -- searching -----------------------------------------------------------------------------

    @_in_inference_mode
    def search(
        self,
        held: IndexState,
        queries: torch.Tensor,
        of: Sequence[int],
        between: tuple[float, float] | None = None,
    ) -> Found:
        """Score every grid by the queries of a question.

        A head's score of a grid is the maximum over its tokens of the products with a query, the
        mean over the queries, less the same of all grids of the stream: what all grids have in
        common says nothing, and a threshold holds for streams of any length.

        Args:
            queries: ``[query heads, n, head_dim]``, not rotated.
            of: for each query head which of `heads` it looks for keys of.
            between: only grids that stand for some of this time, both ends included, in seconds of
                the source. Their scores are the same.

        Raises:
            InvalidParameterError: another shape, no such head, or a time that is none.
        """
        of = self._check_queries(queries, of)
        times = None if between is None else _times(between)
        if self._files is None or self._mapped:
            self._try_to_catch_up()  # else the device has them
        rows = self._there(held)
        serials, spans, left_out = rows["serial"].copy(), rows["span"].copy(), _left_out(rows)
        stamps = np.stack([rows["first"], rows["last"]], axis=1)
        if len(rows):
            scores = self._scores(rows["slot"], rows["parts"], queries, of)
            weights = torch.from_numpy(spans).to(self.device, torch.float32)
            scores -= (scores @ weights / weights.sum())[:, None]
        else:
            scores = torch.empty(len(of), 0, device=self.device)
        if times is not None:
            cut = np.flatnonzero(_within(stamps[:, 0], stamps[:, 1], *times))
            return Found(serials[cut], spans[cut], stamps[cut], left_out[cut], scores[:, cut])
        return Found(serials, spans, stamps, left_out, scores)

    def _check_queries(self, queries: torch.Tensor, of: Sequence[int]) -> list[int]:
        shape = tuple(queries.shape)
        if len(shape) != 3 or 0 in shape or shape[2] != self.head_dim:
            raise InvalidParameterError(
                f"queries of shape {list(shape)} were given to an index of keys of "
                f"{self.head_dim}: it takes [query heads, queries, head_dim]"
            )
        heads = [int(head) for head in of]
        if len(heads) != shape[0] or not all(0 <= head < len(self.heads) for head in heads):
            raise InvalidParameterError(
                f"of must name one of {len(self.heads)} heads for each of {shape[0]} query heads: "
                f"{heads}"
            )
        return heads

    def _scores(
        self, firsts: np.ndarray, parts: np.ndarray, queries: torch.Tensor, of: list[int]
    ) -> torch.Tensor:
        """Each grid's best token, the mean over the queries: ``[query heads, grids]``."""
        assert self._slots is not None
        lowest, n = min(of), queries.shape[1]
        asking: dict[int, list[int]] = {head: [] for head in range(lowest, max(of) + 1)}
        for number, head in enumerate(of):
            asking[head].append(number)
        most = max(map(len, asking.values()))
        packed = queries.new_zeros(len(asking), most, *queries.shape[1:])
        for head, numbers in asking.items():
            for place, number in enumerate(numbers):
                packed[head - lowest, place] = queries[number]
        best = self._slots.best(packed.flatten(1, 2).to(self.device), lowest)
        best = best.unflatten(1, (most, n))  # [heads, asking, n, slots]
        best = torch.stack(
            [best[head - lowest, asking[head].index(number)] for number, head in enumerate(of)]
        )
        return self._best_of_grids(best, firsts, parts).mean(1)

    def _best_of_grids(
        self, best: torch.Tensor, firsts: np.ndarray, parts: np.ndarray
    ) -> torch.Tensor:
        """``[..., slots]`` of each slot to ``[..., grids]``."""
        assert self._slots is not None
        on_device = lambda places: torch.from_numpy(places).to(self.device)  # noqa: E731
        if (parts == 1).all():
            return best[..., on_device(firsts)]
        found = best.new_empty(*best.shape[:-1], len(firsts))
        slots, of = self._slots.parts_of(firsts)
        order = np.argsort(of, kind="stable")
        slots, ends = slots[order], np.cumsum(parts)
        for count in np.unique(parts).tolist():
            grids = np.flatnonzero(parts == count)
            own = slots[(ends[grids] - count)[:, None] + np.arange(count)]  # [grids, parts]
            found[..., on_device(grids)] = best[..., on_device(own)].amax(-1)
        return found


def room_for_two(heads: int, head_dim: int, dtype: torch.dtype, tokens: int) -> int:
    """Bytes without which an index takes no grids of so many tokens: those of two."""
    parts = -(-tokens // _WHOLE)
    slot_bytes = -(-tokens // parts) * heads * head_dim * dtype.itemsize
    return 2 * parts * (slot_bytes + ROW_BYTES)


def _grids_of(change: Change) -> list[tuple[tuple[float, float], int, int]]:
    """Of each grid that comes its stamps, and from where to where its tokens are in the chunk."""
    found, at = [], 0
    for span in change.appended:
        if not isinstance(span, VisionSpan):
            at += span.count
            continue
        whole = span.height * span.width
        sizes = [whole] * len(span.ticks) if span.places is None else list(map(len, span.places))
        for stamps, size in zip(span.stamps, sizes, strict=True):
            found.append((stamps, at, at + size))
            at += size
    return found


def _as_told(fault: BaseException) -> FrameStoreError:
    """What ended the writing of keys, as that which who appends or forgets is told."""
    if isinstance(fault, FrameStoreError):
        return fault
    told = FrameStoreError(f"keys could not be written: {fault!r}")
    told.__cause__ = fault
    return told


def _times(between: tuple[float, float]) -> tuple[float, float]:
    start, stop = map(real_number, between)
    if start is None or stop is None or not start <= stop:
        raise InvalidParameterError(f"between must be two times, rising: {between!r}")
    return start, stop


def _within(firsts: np.ndarray, lasts: np.ndarray, start: float, stop: float) -> np.ndarray:
    """What lies in a time at least in part, both ends included."""
    return (firsts <= stop) & (lasts >= start)


def _left_out(rows: np.ndarray) -> np.ndarray:
    """How many grids that had keys each one stands for: they had the tickets up to the next one's.

    (Tickets are left out, too, where the memory went back; but nobody stands for what went.)
    """
    following = np.append(rows["ticket"][1:], rows["ticket"][-1:] + 1)
    left_out: np.ndarray = np.minimum(rows["span"], following - rows["ticket"]) - 1
    return left_out


def _without(rows: np.ndarray, gone: np.ndarray, follows: np.ndarray) -> np.ndarray:
    """Rows without those that are gone: the grid before stands for them, where they follow it."""
    if not gone.any():
        return rows
    stretch = np.cumsum(~follows)
    kept = np.flatnonzero(~gone)
    left = rows[kept]
    lost = np.flatnonzero(gone)
    heirs = np.searchsorted(kept, lost) - 1  # the last kept one before
    stood = heirs >= 0
    stood[stood] = stretch[kept[heirs[stood]]] == stretch[lost[stood]]
    heirs, lost = heirs[stood], lost[stood]
    np.add.at(left["span"], heirs, rows["span"][lost])
    left["last"][heirs] = rows["last"][lost]  # rising: the last one's stays
    return left
