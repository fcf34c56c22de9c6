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
from dataclasses import dataclass, replace
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np
import torch

from stream_vlm_ros.engine.cache.mrope import VisionSpan
from stream_vlm_ros.engine.cache.state import Change
from stream_vlm_ros.errors import InvalidParameterError, real_number, whole_number
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
            each other; where a stream began anew at least 1,000 are left out.
        spans: how many grids of the stream each stands for, itself the first, int64 ``[g]``.
        stamps: the source's time of its first frame, and of the last one of what it stands for, in
            seconds, float64 ``[g, 2]``.
        scores: ``[query heads, g]`` in float32, on the index's device.
    """

    serials: np.ndarray
    spans: np.ndarray
    stamps: np.ndarray
    scores: torch.Tensor


class _Forgotten(NamedTuple):
    """A time that was forgotten, for states that are older than that.

    Attributes:
        epoch: the first serial of the epoch that it is a time of.
        ticket: of the next grid then.
        start, stop: both included.
    """

    epoch: int
    ticket: int
    start: float
    stop: float

    def concerns(self, rows: np.ndarray) -> np.ndarray:
        """Which of these grids stand for some of it."""
        known = (rows["serial"] >= self.epoch) & (rows["ticket"] < self.ticket)
        return known & _within(rows["first"], rows["last"], self.start, self.stop)


class _Rows:
    """What is known of grids, for a state and those that it came from: the oldest first.

    Attributes:
        rows: with room behind.
        filled: how many there are. Only who has all of them may write behind.
    """

    def __init__(self, rows: np.ndarray):
        self.filled = len(rows)
        self.rows = np.empty(2 * self.filled + 16, _ROW)
        self.rows[: self.filled] = rows


@dataclass(frozen=True, eq=False)
class IndexState:
    """What an index holds at a time. Never changed.

    Attributes:
        grids: how many.
        next_serial: of the grid that comes next.
        parts: slots that the grids take.
        slot_bytes: of each.
    """

    grids: int
    next_serial: int
    parts: int
    slot_bytes: int
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

    def table(self) -> np.ndarray:
        """A copy of what is known of the grids."""
        rows = self._rows.rows[: self.grids].copy()
        rows["span"][-1:], rows["last"][-1:] = self._span, self._last
        return rows

    @classmethod
    def of(cls, rows: np.ndarray, next_serial: int, slot_bytes: int) -> IndexState:
        span, last = (int(rows["span"][-1]), float(rows["last"][-1])) if len(rows) else (0, 0.0)
        parts = int(rows["parts"].sum())
        return cls(len(rows), next_serial, parts, slot_bytes, _Rows(rows), span, last)

    def stands_for_next(self, last: float) -> IndexState:
        """The next grid has no keys: the one before stands for it, if there is one."""
        follows = self.grids and self._newest_serial + self._span == self.next_serial
        span, last = (self._span + 1, last) if follows else (self._span, self._last)
        return replace(self, next_serial=self.next_serial + 1, _span=span, _last=last)

    def with_next(
        self, ticket: int, stamps: tuple[float, float], slots: Sequence[int]
    ) -> IndexState:
        """The next grid, with its keys in these slots."""
        shared, count = self._rows, self.grids
        if shared.filled != count or count == len(shared.rows):
            shared = _Rows(self.table())
        if count:
            shared.rows["span"][count - 1], shared.rows["last"][count - 1] = self._span, self._last
        shared.rows[count] = (ticket, self.next_serial, 1, *stamps, slots[0], len(slots))
        shared.filled = count + 1
        return replace(
            self,
            grids=count + 1,
            next_serial=self.next_serial + 1,
            parts=self.parts + len(slots),
            _rows=shared,
            _span=1,
            _last=stamps[1],
        )

    @property
    def _newest_serial(self) -> int:
        return int(self._rows.rows["serial"][self.grids - 1])


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

    Raises:
        InvalidParameterError: a count below 1, or no heads, or one twice.
    """

    def __init__(
        self,
        heads: Sequence[tuple[int, int]],
        head_dim: int,
        max_bytes: int,
        *,
        dtype: torch.dtype = torch.bfloat16,
        device: str | torch.device = "cpu",
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
        self._epoch = 0  # the first serial since the source's time restarted
        self._forgotten: list[_Forgotten] = []
        self._slots: KeySlots | None = None
        self._common: torch.Tensor | None = None  # of the keys, [heads, 1, 1, head_dim]
        self._newest: IndexState | None = None  # whose grids have their slots for sure

    @property
    def reads(self) -> dict[int, tuple[int, ...]]:
        """The KV heads of each layer, for `Readout`."""
        layers: dict[int, tuple[int, ...]] = {}
        for layer, head in self.heads:
            layers[layer] = (*layers.get(layer, ()), head)
        return layers

    @property
    def nbytes(self) -> int:
        """Bytes taken, with the room kept for the next grids."""
        return 0 if self._slots is None else self._slots.nbytes + len(self._slots) * ROW_BYTES

    # -- what comes and goes -------------------------------------------------------------------

    def empty(self) -> IndexState:
        """What a memory without a token begins with: nothing."""
        return IndexState.of(np.empty(0, _ROW), self._begin(), self._slot_bytes)

    def start_epoch(self, held: IndexState) -> IndexState:
        """The source's time restarts: nothing of before is found any more."""
        self._epoch = self._begin()
        return self.empty()

    def clear(self) -> IndexState:
        """Forget everything, and give the room back."""
        self._slots = self._common = self._newest = None
        self._forgotten.clear()
        return self.empty()

    @_in_inference_mode
    def draft(self, held: IndexState, change: Change) -> IndexState:
        """What is held once these spans are appended; see `Companion`.

        A grid of which no token is there is stood for by the one before.

        Raises:
            InvalidParameterError: the keys were not read, or not even two grids of this size fit
                ``max_bytes``; nothing changes.
        """
        grids = _grids_of(change)
        if not grids:
            return held
        keys = self._keys_of(change)
        slots = self._slots_for(change, max(stop - start for _, start, stop in grids))
        held, self._newest = self._settled(held), None
        at: dict[int, tuple[int, int]] = {}  # which part of which grid each slot gets
        for number, (stamps, start, stop) in enumerate(grids):
            count = -(-(stop - start) // slots.tokens)
            if not count:
                held = held.stands_for_next(stamps[1])
                continue
            while slots.free < count:
                if not slots.grow():
                    held = self._thinned(held, count)
            taken = slots.take(count, self._ticket, stamps)
            at |= {slot: (number, part) for part, slot in enumerate(taken)}
            held = held.with_next(self._ticket, stamps, taken)
            self._ticket += 1
        self._serial = max(self._serial, held.next_serial)
        if at:
            slots.write(list(at), self._pages(keys, grids, list(at.values()), slots.tokens))
        self._newest = held
        return held

    @_in_inference_mode
    def forget(self, held: IndexState, start: float, stop: float) -> IndexState:
        """Erase the grids of this time, both ends included, in seconds of the source.

        One that stands for some of that time and for other goes with all. Keys that ``held`` does
        not refer to any more are erased, too.
        """
        if self._slots is None:
            return held
        held, slots = self._settled(held), self._slots
        self._newest = None
        rows = held.table()
        gone = _within(rows["first"], rows["last"], start, stop)
        self._forgotten.append(_Forgotten(self._epoch, self._ticket, start, stop))
        shown = (slots.owner >= 0) & _within(slots.stamps[:, 0], slots.stamps[:, 1], start, stop)
        slots.give_back(rows["slot"][gone])
        shown[slots.parts_of(rows["slot"][gone])[0]] = True
        slots.erase(np.flatnonzero(shown))
        self._newest = IndexState.of(rows[~gone], held.next_serial, held.slot_bytes)
        return self._newest

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
        return torch.stack(
            [layers[layer][read.heads[1][layer].index(head)] for layer, head in self.heads]
        )

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
            slots = KeySlots(
                len(self.heads), self.head_dim, size, capacity, self.dtype, self.device
            )
        needed = 2 * -(-tokens // slots.tokens)
        if needed > slots.capacity:
            raise InvalidParameterError(
                f"max_bytes of the index is {self.max_bytes:,}, but the keys of two grids of "
                f"{tokens} tokens take {needed * (slots.slot_bytes + ROW_BYTES):,}: allow for them"
            )
        self._slots = slots
        return slots

    def _pages(
        self,
        keys: torch.Tensor,
        grids: Sequence[tuple[Any, int, int]],
        parts: Sequence[tuple[int, int]],
        tokens: int,
    ) -> torch.Tensor:
        """Keys as they are kept, ``[heads, parts, tokens, head_dim]``.

        Args:
            parts: number of the grid, and which part of it.
            tokens: of a part.
        """
        pieces = []
        for number, part in parts:
            _, start, stop = grids[number]
            piece = keys[:, start + part * tokens : min(stop, start + (part + 1) * tokens)]
            if missing := tokens - piece.shape[1]:
                # A slot that is not filled holds a token more than once: the best is the same.
                piece = torch.cat([piece, piece[:, -1:].expand(-1, missing, -1)], dim=1)
            pieces.append(piece)
        pages = torch.stack(pieces, dim=1).float()
        if self._common is None:
            self._common = pages.mean((1, 2))[:, None, None]
        return (pages - self._common.to(pages.device)).to(self.dtype)

    def _settled(self, held: IndexState) -> IndexState:
        """The state that slots are given to from now on: what is still there of ``held``."""
        if held is self._newest or self._slots is None:
            return held
        rows = self._there(held)
        self._slots.give_back_all_but(rows["slot"])
        return IndexState.of(rows, held.next_serial, self._slot_bytes)

    def _there(self, held: IndexState) -> np.ndarray:
        """What is known of the grids whose keys were not overwritten since."""
        rows = held.table()
        if held is self._newest or not len(rows):
            return rows
        if self._slots is None:
            return rows[:0]
        forgotten = np.zeros(len(rows), bool)
        for one in self._forgotten:
            forgotten |= one.concerns(rows)
        gone = forgotten | ~self._slots.owned(rows["slot"], rows["ticket"])
        return _without(rows, gone, forgotten)

    def _thinned(self, held: IndexState, count: int) -> IndexState:
        """Leave out as many grids as a segment has, none of them a neighbour of another, or fewer;
        ``count`` slots at least, if there are."""
        assert self._slots is not None
        count = max(count, self._slots.segment_slots)
        rows = held.table()
        serials, spans, parts = rows["serial"], rows["span"], rows["parts"]
        # What the one before would stand for; the first of a stretch has none before.
        sums = np.full(len(rows), _LAST_RESORT)
        follows = serials[:-1] + spans[:-1] == serials[1:]
        sums[1:][follows] = (spans[:-1] + spans[1:])[follows]
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
        return IndexState.of(_without(rows, gone), held.next_serial, held.slot_bytes)

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
        if between is not None:
            start, stop = map(real_number, between)
            if start is None or stop is None or not start <= stop:
                raise InvalidParameterError(f"between must be two times, rising: {between!r}")
        rows = self._there(held)
        serials, spans = rows["serial"].copy(), rows["span"].copy()
        stamps = np.stack([rows["first"], rows["last"]], axis=1)
        if len(rows):
            scores = self._scores(rows["slot"], rows["parts"], queries, of)
            weights = torch.from_numpy(spans).to(self.device, torch.float32)
            scores -= (scores @ weights / weights.sum())[:, None]
        else:
            scores = torch.empty(len(of), 0, device=self.device)
        if between is not None:
            # Stamps never fall, so these follow each other.
            inside = _within(stamps[:, 0], stamps[:, 1], start, stop)
            first, count = int(inside.argmax()) if inside.any() else 0, int(inside.sum())
            cut = slice(first, first + count)
            return Found(serials[cut], spans[cut], stamps[cut], scores[:, cut])
        return Found(serials, spans, stamps, scores)

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


def _within(firsts: np.ndarray, lasts: np.ndarray, start: float, stop: float) -> np.ndarray:
    """What lies in a time at least in part, both ends included."""
    return (firsts <= stop) & (lasts >= start)


def _without(rows: np.ndarray, gone: np.ndarray, forgotten: np.ndarray | None = None) -> np.ndarray:
    """Rows without those that are gone: the grid before stands for them, where they follow it.

    Nobody stands for one that was ``forgotten``.
    """
    if not gone.any():
        return rows
    follows = np.zeros(len(rows), bool)
    follows[1:] = rows["serial"][:-1] + rows["span"][:-1] == rows["serial"][1:]
    if forgotten is not None:
        follows &= ~forgotten
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
