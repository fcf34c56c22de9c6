# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A stream's memory on the host: taken from an engine in a moment, written in another thread.

Keys that are kept a second time, as first computed, are saved so; their rotated copies follow.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stream_vlm_ros import __version__
from stream_vlm_ros.engine.cache.buffer import KVBuffer
from stream_vlm_ros.engine.cache.eviction import (
    Candidate,
    EvictorState,
    HeldAlone,
    KVCacheEvictor,
)
from stream_vlm_ros.engine.cache.ledger import PositionLedger
from stream_vlm_ros.engine.cache.manager import KVCacheManager
from stream_vlm_ros.engine.cache.mrope import Grid, Run, Vec, VisionRun
from stream_vlm_ros.engine.cache.slots import Slots
from stream_vlm_ros.engine.cache.state import MemoryState, StreamState
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.engine.inputs.token_reduction import Known
from stream_vlm_ros.engine.results import SavedMemory
from stream_vlm_ros.engine.saving.binding import difference
from stream_vlm_ros.engine.saving.memory_file import MemoryFile, write
from stream_vlm_ros.engine.saving.plain import MAX_WHOLE_NUMBER, Packer, PlainError, Unpacker
from stream_vlm_ros.errors import (
    DeviceUnavailableError,
    EmptyMemoryError,
    InvalidParameterError,
    StreamBusyError,
    whole_number,
)

_MAX_GRID = 10**7  # tokens of a grid, which may be there in part
_MAX_POSITION = 2**40


@dataclass(frozen=True)
class _Positions:
    """A `PositionLedger`."""

    sink: tuple[Run, ...]
    kept: tuple[VisionRun, ...]
    window: tuple[Run, ...]
    sink_length: int | None
    evicted: int
    end: Vec
    segment: int
    grids_seen: int


@dataclass(frozen=True)
class _Bookkeeping:
    """A `MemoryState`, but for what follows from it and from the engine's settings.

    Attributes:
        window_start: running number of the window's first token.
        owner, place: of `Slots`. Keys and values are saved in the order of their slots, the window
            last.
    """

    positions: _Positions
    window_start: int
    owner: np.ndarray
    place: np.ndarray
    evictor: EvictorState
    stream: StreamState


class MemoryCopy:
    """A copy of a stream's memory, as large on the host as the stream; see `take`.

    Attributes:
        nbytes: of its keys and values.
    """

    def __init__(
        self,
        layers: Sequence[torch.Tensor],
        bookkeeping: bytes,
        arrays: bytes,
        binding: Mapping[str, Any],
        saved: SavedMemory,
        rules: KVCacheEvictor,
    ) -> None:
        self._layers, self._bookkeeping, self._arrays = layers, bookkeeping, arrays
        self._binding, self._saved, self._rules = dict(binding), saved, rules
        self.nbytes = sum(layer.nbytes for layer in layers)

    @classmethod
    def take(cls, manager: KVCacheManager, binding: Mapping[str, Any]) -> MemoryCopy:
        """Copy the memory of an engine, in the thread that owns it.

        Raises:
            EmptyMemoryError: there is nothing to save.
            InvalidParameterError: a user's importance score describes frames by what no file holds.
            StreamBusyError: an answer is being written, and room for what came meanwhile is yet
                to be made.
        """
        return manager.reading(lambda state, buffer: cls._of(state, buffer, manager, binding))

    @classmethod
    def _of(
        cls,
        state: MemoryState,
        buffer: KVBuffer,
        manager: KVCacheManager,
        binding: Mapping[str, Any],
    ) -> MemoryCopy:
        if not state.stream.frames:
            raise EmptyMemoryError("nothing has been seen yet: there is no memory to save")
        if not state.ledger.grids:
            raise EmptyMemoryError("no frame is left in the memory: there is nothing to save")
        if state.waiting:
            raise StreamBusyError("an answer is being written: finish or cancel it first")
        packer = Packer()
        try:
            packed = packer.pack(_bookkeeping_of(state))
        except PlainError as error:  # of a user's importance score
            raise InvalidParameterError(
                f"the memory cannot be saved: the importance score describes frames by {error}"
            ) from error
        return cls(
            _layers_of(state.slots, buffer, manager),
            json.dumps(packed, allow_nan=False).encode(),
            packer.arrays,
            binding,
            SavedMemory(
                tokens=state.slots.length,
                frames=state.stream.frames,
                time_spans=tuple(state.ledger.time_spans()),
                saved_at=time.time(),
                bytes=0,
            ),
            manager.evictor.over(HeldAlone(state.evictor)),
        )

    def write(self, path: str | Path, *, origin_ns: int = 0, frame_id: str = "") -> SavedMemory:
        """Write it as a file, in any thread; see `InferenceEngine.save_memory`."""
        origin_ns = _nanoseconds(origin_ns)
        if not isinstance(frame_id, str):
            raise InvalidParameterError(f"frame_id must be text, not {frame_id!r}")
        self._check_loads()
        saved = dataclasses.replace(self._saved, origin_ns=origin_ns, frame_id=frame_id)
        about = Packer().pack(saved)
        del about["bytes"]
        metadata = {
            "package": __version__,
            "binding": json.dumps(self._binding),
            "about": json.dumps(about),
        }
        parts = [
            ("bookkeeping", _bytes_tensor(self._bookkeeping)),
            ("arrays", _bytes_tensor(self._arrays)),
            *((f"layers.{number}", layer) for number, layer in enumerate(self._layers)),
        ]
        return dataclasses.replace(saved, bytes=write(path, metadata, parts))

    def _check_loads(self) -> None:
        """Raise InvalidParameterError for what no engine would load again.

        Before anything is written: it would take the place of a file that is good. What is not
        ours in it is how a user's importance score describes frames.
        """
        text = json.loads(self._bookkeeping)
        try:
            book = Unpacker(self._arrays).unpack(_Bookkeeping, text)
            _understood(book, PositionLedger(self._binding["position_policy"]), self._rules)
        except PlainError as error:
            raise InvalidParameterError(
                f"the memory cannot be saved, as it could not be loaded again: {error}. An "
                "importance score is to describe each frame by an array of one shape"
            ) from error


def about_memory(path: str | Path) -> SavedMemory:
    """What a file says that it holds, without loading it; MemoryFileError as for `load_memory`."""
    with MemoryFile(path) as file, _in_words(file):
        return _about(file)


@torch.inference_mode()
def load_memory(
    path: str | Path,
    manager: KVCacheManager,
    binding: Mapping[str, Any],
    origin_ns: int | None = None,
    check: Callable[[SavedMemory], None] | None = None,
) -> SavedMemory:
    """Put a saved memory in the place of the present one; see `InferenceEngine.load_memory`."""
    if origin_ns is not None:
        origin_ns = _nanoseconds(origin_ns)
    manager.check_unread()
    with MemoryFile(path) as file:
        with _in_words(file):
            saved = _about(file)
            bound = json.loads(file.metadata.get("binding", "null"))
            _check(isinstance(bound, dict), "what it is bound to")
            if reason := difference(bound, binding):
                raise file.refusal(reason)
        if check is not None:  # what that raises is not about the file's bookkeeping
            check(saved)
        with _in_words(file):
            text, arrays = file.text("bookkeeping"), file.text("arrays")
            book = Unpacker(arrays).unpack(_Bookkeeping, json.loads(text))
            if origin_ns is not None:
                book = _moved(book, (saved.origin_ns - origin_ns) / SECOND)
                saved = dataclasses.replace(saved, origin_ns=origin_ns)
            manager.reading(lambda now, buffer: _load(file, book, now, buffer, manager))
        return saved


def _nanoseconds(origin_ns: int) -> int:
    """InvalidParameterError for a time that no file holds."""
    return whole_number("origin_ns", origin_ns, -MAX_WHOLE_NUMBER, MAX_WHOLE_NUMBER)


@contextmanager
def _in_words(file: MemoryFile) -> Iterator[None]:
    try:
        yield
    except (ValueError, RecursionError) as error:  # PlainError, and those of json
        raise file.refusal(f"its bookkeeping contradicts itself ({error})") from error


def _about(file: MemoryFile) -> SavedMemory:
    about = json.loads(file.metadata.get("about", "null"))
    _check(isinstance(about, dict), "what it holds")
    saved = Unpacker(b"").unpack(SavedMemory, {**about, "bytes": file.size})
    ends = [stamp for span in saved.time_spans for stamp in span]
    _check(bool(ends) and ends == sorted(ends), "its stretches of time")
    return saved


def _load(
    file: MemoryFile,
    book: _Bookkeeping,
    now: MemoryState,
    present: KVBuffer,
    manager: KVCacheManager,
) -> None:
    ledger, rules = _understood(book, now.ledger, manager.evictor)
    shape = manager.shape
    wanted = {f"layers.{number}" for number in range(shape.layers)}
    _check(file.names() == {"bookkeeping", "arrays", *wanted}, "its parts")
    size = [2, shape.kv_heads, ledger.length, shape.head_dim]
    for name in wanted:
        _check(file.shape(name) == (shape.dtype, size), "the shape of its keys and values")
    slots = _slots(book, ledger, rules, now.slots)
    buffer = _unread_buffer(now, present, slots, manager)
    _fill(buffer, slots, file, manager)
    known = book.stream.known
    if known is not None:
        known = Known(*(part.to(buffer.data.device) for part in known))
    stream = dataclasses.replace(book.stream, known=known)
    manager.take_over(MemoryState(slots, ledger, book.evictor, stream=stream), buffer)


def _bytes_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data) or bytearray(1), dtype=torch.uint8)[: len(data)]


# -- from a memory -----------------------------------------------------------------------------


def _bookkeeping_of(state: MemoryState) -> _Bookkeeping:
    ledger, slots = state.ledger, state.slots
    return _Bookkeeping(
        _Positions(
            sink=tuple(ledger.runs(["sink"])),
            kept=_kept_runs(ledger),
            window=tuple(ledger.runs(["window"])),
            sink_length=ledger.sink_length,
            evicted=ledger.evicted,
            end=ledger.next_position,
            segment=ledger.segment,
            grids_seen=ledger.grids_seen,
        ),
        slots.window.start,
        slots.owner,
        slots.place,
        state.evictor,
        state.stream,
    )


def _layers_of(slots: Slots, buffer: KVBuffer, manager: KVCacheManager) -> list[torch.Tensor]:
    """``[2, kv_heads, length, head_dim]`` of each layer, on the host, in the order of the slots."""
    shape, base = manager.shape, slots.sink + slots.kept
    layers = []
    for number, data in enumerate(buffer.data):  # [2, kv_heads, slots, head_dim]
        layer = torch.empty((2, shape.kv_heads, slots.length, shape.head_dim), dtype=shape.dtype)
        layer[:, :, :base] = data[:, :, :base]
        if manager.rotates_long_lived and buffer.originals is not None:
            layer[0, :, :base] = buffer.originals[number, :, :base]
        done = base
        for taken in slots.of_newest(len(slots.window)):
            size = taken.stop - taken.start
            layer[:, :, done : done + size] = data[:, :, taken]
            done += size
        layers.append(layer)
    return layers


# -- into a memory -----------------------------------------------------------------------------


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise PlainError(what)


def _rising(numbers: Iterable[int]) -> bool:
    return all(one < other for one, other in pairwise(numbers))


def _kept_runs(ledger: PositionLedger) -> tuple[VisionRun, ...]:
    return tuple(run for run in ledger.runs(["kept"]) if isinstance(run, VisionRun))


def _grids(runs: Iterable[Run]) -> list[Grid]:
    return [grid for run in runs if isinstance(run, VisionRun) for grid in run.grids]


def _moved(book: _Bookkeeping, seconds: float) -> _Bookkeeping:
    """With all stamps so much later."""

    def grid(one: Grid) -> Grid:
        first, last = one.stamps
        return dataclasses.replace(one, stamps=(first + seconds, last + seconds))

    def vision(run: VisionRun) -> VisionRun:
        return dataclasses.replace(run, grids=tuple(map(grid, run.grids)))

    def runs(before: tuple[Run, ...]) -> tuple[Run, ...]:
        return tuple(vision(run) if isinstance(run, VisionRun) else run for run in before)

    def candidates(before: tuple[Candidate, ...]) -> tuple[Candidate, ...]:
        return tuple(one._replace(seconds=one.seconds + seconds) for one in before)

    def stamp(one: float | None) -> float | None:
        return None if one is None else one + seconds

    positions, evictor, stream = book.positions, book.evictor, book.stream
    return dataclasses.replace(
        book,
        positions=dataclasses.replace(
            positions,
            sink=runs(positions.sink),
            kept=tuple(map(vision, positions.kept)),
            window=runs(positions.window),
        ),
        evictor=dataclasses.replace(
            evictor,
            sink_end=evictor.sink_end + seconds,
            sampled=candidates(evictor.sampled),
            important=candidates(evictor.important),
        ),
        stream=dataclasses.replace(
            stream, first_stamp=stamp(stream.first_stamp), last_stamp=stamp(stream.last_stamp)
        ),
    )


def _check_run(run: Run) -> None:
    """PlainError where a run contradicts itself."""
    grids = _grids([run])
    ticks = [grid.tick for grid in grids]
    _check(max(map(abs, [*run.origin, *run.shift, *ticks])) < _MAX_POSITION, "a position")
    if not isinstance(run, VisionRun):
        _check(run.count > 0, "a run without tokens")
        return
    _check(bool(grids) and _rising(grid.number for grid in grids), "the order of grids")
    _check(ticks == sorted(ticks), "the order of grids")
    for grid in grids:
        size = grid.height * grid.width
        there = range(size) if grid.places is None else grid.places
        first, last = grid.stamps
        _check(min(grid.height, grid.width) > 0 and size <= _MAX_GRID, "a grid's size")
        _check(len(there) > 0 and there[0] >= 0 and there[-1] < size, "a grid's places")
        _check(grid.places is None or _rising(grid.places), "a grid's places")
        _check(first <= last and grid.number >= 0, "a grid's stamps or number")
    _check(0 <= run.cut < grids[0].count and 0 <= run.cut_end < grids[-1].count, "a run's cut")
    _check(run.count > 0 and abs(run.step_after) < _MAX_POSITION, "a run's cut")


def _understood(
    book: _Bookkeeping, now: PositionLedger, rules: KVCacheEvictor
) -> tuple[PositionLedger, KVCacheEvictor]:
    """Positions and rules of a saved memory in the place of these; PlainError: they are none."""
    ledger = _ledger(book.positions, now)
    _check_stream(book.stream, ledger)
    return ledger, _rules(book.evictor, ledger, rules)


def _ledger(saved: _Positions, now: PositionLedger) -> PositionLedger:
    runs = (*saved.sink, *saved.kept, *saved.window)
    for run in runs:
        _check_run(run)
    grids = _grids(runs)
    _check(bool(grids), "it holds no frame")
    # (One grid that the sink was cut through is in the window, too.)
    _check(all(a.number <= b.number for a, b in pairwise(grids)), "the order of grids")
    _check(all(a.stamps <= b.stamps for a, b in pairwise(grids)), "the stamps of grids")
    _check(grids[-1].number < saved.grids_seen < _MAX_POSITION, "the number of its grids")
    whole = all(len(run.grids) == 1 and not run.cut and not run.cut_end for run in saved.kept)
    _check(whole and _rising(run.grids[0].number for run in saved.kept), "the grids kept for long")
    sealed = saved.sink_length
    _check(sum(run.count for run in saved.sink) == (sealed or 0), "the length of its sink")
    _check(sealed is not None or not (saved.kept or saved.evicted), "what it forgot")
    _check(0 <= saved.evicted < _MAX_POSITION, "what it forgot")
    _check(max(map(abs, (*saved.end, saved.segment))) < _MAX_POSITION, "what it forgot")
    ledger = PositionLedger.of_runs(
        now.policy,
        saved.sink,
        saved.kept,
        saved.window,
        sink_length=sealed,
        evicted=saved.evicted,
        end=saved.end,
        segment=saved.segment,
        grids_seen=saved.grids_seen,
    )
    return now.replaced_by(ledger)


def _rules(state: EvictorState, ledger: PositionLedger, now: KVCacheEvictor) -> KVCacheEvictor:
    """The engine's rules over a saved state; PlainError where that is none of theirs."""
    counts = (
        state.later_tokens,
        state.first_chunk,
        state.first_vision,
        state.first_grid,
        state.evictions,
        state.tokens_evicted,
    )
    _check(state.chunks > 0 and min(counts) >= 0, "the counts of its chunks")
    _check(max(counts) < _MAX_POSITION, "the counts of its chunks")
    rules = now.over(HeldAlone(state))
    config, sealed = rules.config, ledger.sink_length
    if config is None:
        _check(state.sink_size == 0 and sealed is None, "its sink")
    else:
        _check(state.sink_size == (config.sink_size or state.first_chunk), "its sink")
        _check(0 < state.sink_size <= config.max_cache_tokens, "its sink")
        _check(sealed in (None, state.sink_size), "its sink")
        _check(sealed is not None or ledger.length < state.sink_size, "its sink")
        _check(ledger.length <= config.max_cache_tokens, "its length, beyond the cap")
    tokens = {run.grids[0].number: run.count for run in _kept_runs(ledger)}
    offered = (*state.sampled, *state.important)
    _check(sorted(one.number for one in offered) == sorted(tokens), "the grids kept for long")
    _check(all(one.tokens == tokens[one.number] for one in offered), "the sizes of kept grids")
    for level, size in (
        (state.sampled, rules.sampled_size),
        (state.important, rules.important_size),
    ):
        _check(_rising(one.number for one in level), "the order of kept grids")
        _check(sum(one.tokens for one in level) <= size, "its kept grids, beyond their share")
    described = [one.descriptor for one in state.important], state.descriptors.values()
    shapes = {descriptor.shape for some in described for descriptor in some}
    _check(len(shapes) <= 1, "the descriptions of its frames")
    return rules


def _check_stream(stream: StreamState, ledger: PositionLedger) -> None:
    first, last = stream.first_stamp, stream.last_stamp
    _check(min(stream.chunks, stream.frames) > 0 and stream.exchanges >= 0, "its counts")
    _check(max(stream.chunks, stream.frames, stream.exchanges) < _MAX_POSITION, "its counts")
    line, newest_tick = stream.timeline, _grids(ledger.runs())[-1].tick
    _check(line.newest is not None and newest_tick <= line.newest < _MAX_POSITION, "its pauses")
    _check(0 <= (line.step or 0) < _MAX_POSITION, "its pauses")
    _check(min(line.closed, line.pauses) >= 0, "its pauses")
    _check(max(line.closed, line.pauses) < _MAX_POSITION, "its pauses")
    newest = max(grid.stamps[1] for grid in _grids(ledger.runs()))
    _check(first is not None and last is not None and first <= newest <= last, "its stamps")
    if stream.known is not None:
        features, grids = stream.known
        _check(features.ndim == 3 and grids.shape == features.shape[:2], "what it compares with")
        _check(features.is_floating_point() and grids.dtype == torch.int64, "what it compares with")


def _slots(book: _Bookkeeping, ledger: PositionLedger, rules: KVCacheEvictor, now: Slots) -> Slots:
    """Where the tokens go: into the slots that they had, where the buffer is as large."""
    sealed = ledger.sink_length
    sink, room = sealed or 0, 0 if sealed is None else rules.room_for_grids
    length = ledger.window_length
    kept = [
        (run.grids[0].number, place) for run in _kept_runs(ledger) for place in range(run.count)
    ]
    for one in (book.owner, book.place):
        _check(one.dtype == np.int64 and one.shape == (len(kept),), "its kept grids")
    placed = sorted(zip(book.owner.tolist(), book.place.tolist(), strict=True))
    _check(placed == kept and len(kept) <= room, "the places of kept grids")
    start = book.window_start
    _check(sink <= start < _MAX_POSITION, "the number of its first token")
    _check(start == sink or rules.config is not None, "the number of its first token")
    needed = sink + room + length
    capacity = max(now.capacity, needed) if rules.config is None else now.capacity
    _check(needed <= capacity, "its length, beyond the cap")
    return Slots(capacity, sink, room, range(start, start + length), book.owner, book.place)


def _unread_buffer(
    now: MemoryState, present: KVBuffer, slots: Slots, manager: KVCacheManager
) -> KVBuffer:
    """A buffer that nobody reads: the present one's room if that is empty, else a second one.

    DeviceUnavailableError where the device has no room for a second one.
    """
    originals = present.originals
    try:
        if not now.slots.length and slots.capacity == present.capacity:
            buffer = copy.copy(present)
        else:
            room = None if originals is None else originals.shape[2]
            buffer = KVBuffer(manager.shape, slots.capacity, present.data.device, room)
        if buffer.keeps_originals and slots.room:
            buffer = buffer.with_room_for_originals(slots.base)
        buffer.forget_rotations()
        return buffer
    except (DeviceUnavailableError, torch.OutOfMemoryError) as error:
        raise DeviceUnavailableError(
            f"{present.data.device} has no room for a second memory while the present one is kept: "
            "reset() first, or load into a new engine"
        ) from error


def _fill(buffer: KVBuffer, slots: Slots, file: MemoryFile, manager: KVCacheManager) -> None:
    shape, base = manager.shape, slots.sink + slots.kept
    window = slots.of_newest(len(slots.window))
    layer = torch.empty((2, shape.kv_heads, slots.length, shape.head_dim), dtype=shape.dtype)
    for number, data in enumerate(buffer.data):
        file.read(f"layers.{number}", layer)
        data[:, :, :base] = layer[:, :, :base]
        if slots.room and buffer.originals is not None:
            buffer.originals[number, :, :base] = layer[0, :, :base]
        done = base
        for taken in window:
            size = taken.stop - taken.start
            data[:, :, taken] = layer[:, :, done : done + size]
            done += size
