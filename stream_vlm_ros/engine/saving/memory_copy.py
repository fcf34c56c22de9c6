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
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch

from stream_vlm_ros import __version__
from stream_vlm_ros.engine.cache.buffer import KVBuffer
from stream_vlm_ros.engine.cache.eviction import Candidate, EvenSample, KVCacheEvictor, StarMemory
from stream_vlm_ros.engine.cache.ledger import PositionLedger
from stream_vlm_ros.engine.cache.manager import KVCacheManager, StreamState
from stream_vlm_ros.engine.cache.mrope import Grid, Run, TextRun, Vec, VisionRun
from stream_vlm_ros.engine.inputs.token_reduction import Known
from stream_vlm_ros.engine.results import SavedMemory
from stream_vlm_ros.engine.saving.binding import difference
from stream_vlm_ros.engine.saving.memory_file import MemoryFile, write
from stream_vlm_ros.engine.saving.plain import Packer, PlainError, Unpacker
from stream_vlm_ros.errors import (
    DeviceUnavailableError,
    EmptyMemoryError,
    InvalidParameterError,
    StreamBusyError,
)

_MAX_GRID = 10**7  # tokens of a grid, which may be there in part
_MAX_POSITION = 2**40


@dataclass(frozen=True)
class _Run:
    """A run of text (no grids), or of vision."""

    origin: Vec
    shift: Vec
    count: int
    grids: list[Grid] | None = None
    segment: int = 0
    cut: int = 0
    cut_end: int = 0
    step_after: int = 0
    continues: bool = False

    @classmethod
    def of(cls, run: Run) -> _Run:
        if isinstance(run, TextRun):
            return cls(run.origin, run.shift, run.count)
        return cls(
            run.origin,
            run.shift,
            run.count,
            list(run.grids),
            run.segment,
            run.cut,
            run.cut_end,
            run.step_after,
            run.continues,
        )

    def made(self) -> Run:
        """The run; PlainError where it contradicts itself."""
        _check(self.count > 0, "a run without tokens")
        ticks = [grid.tick for grid in self.grids or ()]
        places = [*self.origin, *self.shift, *ticks, self.step_after]
        _check(max(map(abs, places)) < _MAX_POSITION, "a position")
        if self.grids is None:
            return TextRun(self.origin, self.count, self.shift)
        for grid in self.grids:
            size = grid.height * grid.width
            there = range(size) if grid.places is None else grid.places
            first, last = grid.stamps
            _check(min(grid.height, grid.width) > 0 and size <= _MAX_GRID, "a grid's size")
            _check(len(there) > 0 and there[0] >= 0 and there[-1] < size, "a grid's places")
            _check(grid.places is None or _rising(grid.places), "a grid's places")
            _check(first <= last and grid.number >= 0, "a grid's stamps or number")
        _check(_rising([grid.number for grid in self.grids]), "the order of grids")
        _check(min(self.cut, self.cut_end) >= 0, "a run's cut")
        run = VisionRun(self.origin, self.segment, self.grids, self.shift)
        run.cut, run.cut_end, run.step_after = self.cut, self.cut_end, self.step_after
        run.continues = self.continues
        _check(run.count == self.count, "the length of a run")
        return run


@dataclass(frozen=True)
class _Positions:
    """A `PositionLedger`."""

    sink: list[_Run]
    kept: list[_Run]
    window: list[_Run]
    sink_length: int | None
    evicted: int
    end: Vec
    segment: int
    grids_seen: int


@dataclass(frozen=True)
class _Evictor:
    """A `KVCacheEvictor`."""

    chunks: int
    later_tokens: int
    sink_size: int
    first_chunk: int
    first_vision: int
    first_grid: int
    sink_end: float
    evictions: int
    tokens_evicted: int
    descriptors: list[Candidate]  # of grids in the window: number and descriptor
    sampled: list[Candidate]
    important: list[Candidate]


@dataclass(frozen=True)
class _Slots:
    """Where the tokens lie in a `KVBuffer`: saved in the order of their slots, the window last."""

    window_start: int  # running number of its first token
    owner: torch.Tensor  # [kept]
    place: torch.Tensor


@dataclass(frozen=True)
class _Stream:
    """Everything but keys and values."""

    positions: _Positions
    evictor: _Evictor
    slots: _Slots
    state: StreamState


class MemoryCopy:
    """A copy of a stream's memory, as large on the host as the stream; see `take`.

    Attributes:
        nbytes: of its keys and values.
    """

    def __init__(
        self,
        layers: Sequence[torch.Tensor],
        stream: bytes,
        arrays: bytes,
        binding: Mapping[str, Any],
        saved: SavedMemory,
    ) -> None:
        self._layers, self._stream, self._arrays = layers, stream, arrays
        self._binding, self._saved = dict(binding), saved
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
        manager.apply_pending_evictions()
        if not manager.state.frames:
            raise EmptyMemoryError("nothing has been seen yet: there is no memory to save")
        if manager.waiting:
            raise StreamBusyError("an answer is being written: finish or cancel it first")
        packer = Packer()
        try:
            stream = json.dumps(packer.pack(_stream_of(manager)), allow_nan=False).encode()
        except PlainError as error:  # of a user's importance score
            raise InvalidParameterError(
                f"the memory cannot be saved: the importance score describes frames by {error}"
            ) from error
        return cls(
            _layers_of(manager),
            stream,
            packer.arrays,
            binding,
            SavedMemory(
                tokens=manager.get_seq_length(),
                frames=manager.state.frames,
                time_spans=manager.time_spans(),
                saved_at=time.time(),
                bytes=0,
            ),
        )

    def write(self, path: str | Path, *, origin_ns: int = 0, frame_id: str = "") -> SavedMemory:
        """Write it as a file, in any thread; see `InferenceEngine.save_memory`."""
        saved = dataclasses.replace(self._saved, origin_ns=origin_ns, frame_id=frame_id)
        about = Packer().pack(saved)
        del about["bytes"]
        metadata = {
            "package": __version__,
            "binding": json.dumps(self._binding),
            "about": json.dumps(about),
        }
        parts = [
            ("stream", _bytes_tensor(self._stream)),
            ("arrays", _bytes_tensor(self._arrays)),
            *((f"layers.{number}", layer) for number, layer in enumerate(self._layers)),
        ]
        return dataclasses.replace(saved, bytes=write(Path(path), metadata, parts))


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
    if manager._living():
        raise StreamBusyError("an answer is being written: finish or cancel it first")
    with MemoryFile(path) as file, _in_words(file):
        saved = _about(file)
        bound = json.loads(file.metadata.get("binding", "null"))
        _check(isinstance(bound, dict), "what it is bound to")
        if reason := difference(bound, binding):
            raise file.refusal(reason)
        if check is not None:
            check(saved)
        text, arrays = file.text("stream"), file.text("arrays")
        stream = Unpacker(arrays).unpack(_Stream, json.loads(text))
        if origin_ns is not None:
            stream = _moved(stream, (saved.origin_ns - origin_ns) / 1e9)
            saved = dataclasses.replace(saved, origin_ns=origin_ns)
        _load(file, manager, stream)
        return saved


@contextmanager
def _in_words(file: MemoryFile) -> Iterator[None]:
    try:
        yield
    except (PlainError, RecursionError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise file.refusal(f"its bookkeeping contradicts itself ({error})") from error


def _about(file: MemoryFile) -> SavedMemory:
    about = json.loads(file.metadata.get("about", "null"))
    _check(isinstance(about, dict), "what it holds")
    saved = Unpacker(b"").unpack(SavedMemory, {**about, "bytes": file.size})
    ends = [stamp for span in saved.time_spans for stamp in span]
    _check(bool(ends) and ends == sorted(ends), "its stretches of time")
    return saved


def _load(file: MemoryFile, manager: KVCacheManager, stream: _Stream) -> None:
    ledger = _ledger(stream.positions, manager.ledger)
    evictor = _evictor(stream.evictor, manager.evictor, ledger)
    _check_state(stream.state, ledger)
    layers, length = manager.shape.layers, ledger.length
    size = [2, manager.shape.kv_heads, length, manager.shape.head_dim]
    wanted = {"stream", "arrays", *(f"layers.{number}" for number in range(layers))}
    _check(file.names() == wanted, "its parts")
    for number in range(layers):
        found = file.shape(f"layers.{number}")
        _check(found == (manager.shape.dtype, size), "the shape of its keys and values")
    buffer = _buffer(file, stream.slots, manager, ledger, evictor)
    known = stream.state.known
    if known is not None:
        known = Known(*(part.to(manager._device) for part in known))
    _take_over(manager, buffer, ledger, evictor, dataclasses.replace(stream.state, known=known))


def _bytes_tensor(data: bytes) -> torch.Tensor:
    return (
        torch.frombuffer(bytearray(data), dtype=torch.uint8)
        if data
        else torch.empty(0, dtype=torch.uint8)
    )


# -- from a manager ----------------------------------------------------------------------------


def _stream_of(manager: KVCacheManager) -> _Stream:
    ledger, evictor, buffer = manager.ledger, manager.evictor, manager._buffer
    sampled, important = evictor._levels or (EvenSample(0), StarMemory(0, evictor._score))
    return _Stream(
        _Positions(
            sink=[_Run.of(run) for run in ledger.runs(["sink"])],
            kept=[_Run.of(run) for run in ledger.runs(["kept"])],
            window=[_Run.of(run) for run in ledger.runs(["window"])],
            sink_length=ledger.sink_length,
            evicted=ledger.evicted,
            end=ledger.next_position,
            segment=ledger._segment,
            grids_seen=ledger.grids_seen,
        ),
        _Evictor(
            evictor._chunks,
            evictor._later_tokens,
            evictor.effective_sink_size,
            evictor._first_chunk,
            evictor._first_vision,
            evictor._first_grid,
            evictor._sink_end,
            evictor.total_evictions,
            evictor.total_tokens_evicted,
            [Candidate(number, 0, 0.0, one) for number, one in evictor._descriptors.items()],
            sampled._grids,
            important._grids,
        ),
        _Slots(buffer.window.start, buffer._owner, buffer._place),
        manager.state,
    )


def _layers_of(manager: KVCacheManager) -> list[torch.Tensor]:
    """``[2, kv_heads, length, head_dim]`` of each layer, on the host, in the order of the slots."""
    buffer, shape = manager._buffer, manager.shape
    base = buffer.sink + buffer.kept
    window = buffer._slots(buffer.window)
    layers = []
    for number, data in enumerate(buffer.data):  # [2, kv_heads, slots, head_dim]
        layer = torch.empty((2, shape.kv_heads, buffer.length, shape.head_dim), dtype=shape.dtype)
        layer[:, :, :base] = data[:, :, :base]
        if buffer._originals is not None:
            layer[0, :, :base] = buffer._originals[number, :, :base]
        done = base
        for slots in window:
            size = slots.stop - slots.start
            layer[:, :, done : done + size] = data[:, :, slots]
            done += size
        layers.append(layer)
    return layers


# -- into a manager ----------------------------------------------------------------------------


def _check(holds: bool, what: str) -> None:
    if not holds:
        raise PlainError(what)


def _rising(numbers: Sequence[int]) -> bool:
    return all(one < other for one, other in pairwise(numbers))


def _kept_runs(ledger: PositionLedger) -> list[VisionRun]:
    return [run for run in ledger.runs(["kept"]) if isinstance(run, VisionRun)]


def _grids(ledger: PositionLedger) -> list[Grid]:
    return [grid for run in ledger.runs() if isinstance(run, VisionRun) for grid in run.grids]


def _moved(stream: _Stream, seconds: float) -> _Stream:
    """With all stamps so much later."""

    def runs(before: list[_Run]) -> list[_Run]:
        return [
            dataclasses.replace(run, grids=run.grids and list(map(grid, run.grids)))
            for run in before
        ]

    def grid(one: Grid) -> Grid:
        first, last = one.stamps
        return dataclasses.replace(one, stamps=(first + seconds, last + seconds))

    def candidates(before: list[Candidate]) -> list[Candidate]:
        return [one._replace(seconds=one.seconds + seconds) for one in before]

    def stamp(one: float | None) -> float | None:
        return None if one is None else one + seconds

    positions, evictor, state = stream.positions, stream.evictor, stream.state
    return dataclasses.replace(
        stream,
        positions=dataclasses.replace(
            positions,
            sink=runs(positions.sink),
            kept=runs(positions.kept),
            window=runs(positions.window),
        ),
        evictor=dataclasses.replace(
            evictor,
            sink_end=evictor.sink_end + seconds,
            sampled=candidates(evictor.sampled),
            important=candidates(evictor.important),
        ),
        state=dataclasses.replace(
            state, first_stamp=stamp(state.first_stamp), last_stamp=stamp(state.last_stamp)
        ),
    )


def _ledger(saved: _Positions, before: PositionLedger) -> PositionLedger:
    ledger = PositionLedger(before.policy)
    sink, kept, window = (
        [run.made() for run in runs] for runs in (saved.sink, saved.kept, saved.window)
    )
    visions = [run for run in kept if isinstance(run, VisionRun) and len(run.grids) == 1]
    _check(len(visions) == len(kept), "the grids kept for long")
    grids = [
        grid for run in (*sink, *kept, *window) if isinstance(run, VisionRun) for grid in run.grids
    ]
    _check(bool(grids), "it holds no frame")
    # (One grid that the sink was cut through is in the window, too.)
    _check(all(a.number <= b.number for a, b in pairwise(grids)), "its grids")
    _check(all(grid.number < saved.grids_seen for grid in grids), "the number of its grids")
    _check(_rising([run.grids[0].number for run in visions]), "the order of kept grids")
    sealed = saved.sink_length
    _check(sum(run.count for run in sink) == (sealed or 0), "the length of its sink")
    _check(sealed is not None or not (kept or saved.evicted), "what it forgot without a sink")
    _check(saved.evicted >= 0, "what it forgot")
    ledger._sink, ledger._kept, ledger._window = sink, visions, deque(window)
    ledger._sink_length, ledger.evicted = sealed, saved.evicted
    ledger.length = sum(run.count for run in (*sink, *kept, *window))
    ledger._end, ledger._segment, ledger._grids_seen = saved.end, saved.segment, saved.grids_seen
    ledger.follow(before)
    return ledger


def _evictor(saved: _Evictor, before: KVCacheEvictor, ledger: PositionLedger) -> KVCacheEvictor:
    evictor = KVCacheEvictor(before.config, before._score)
    counts = (
        saved.later_tokens,
        saved.sink_size,
        saved.first_chunk,
        saved.first_vision,
        saved.first_grid,
        saved.evictions,
        saved.tokens_evicted,
    )
    _check(saved.chunks > 0 and min(counts) >= 0, "the counts of its chunks")
    evictor._chunks, evictor._later_tokens = saved.chunks, saved.later_tokens
    evictor._sink_size, evictor._first_chunk = saved.sink_size, saved.first_chunk
    evictor._first_vision, evictor._first_grid = saved.first_vision, saved.first_grid
    evictor._sink_end = saved.sink_end
    evictor.total_evictions = saved.evictions
    evictor.total_tokens_evicted = saved.tokens_evicted
    limit, sink = evictor.limit, ledger.sink_length
    _check(sink is None or sink == saved.sink_size, "the size of its sink")
    _check(limit is None or ledger.length <= limit, "its length, beyond the cap")
    tokens = {run.grids[0].number: run.count for run in _kept_runs(ledger)}
    offered = [*saved.sampled, *saved.important]
    _check(sorted(one.number for one in offered) == sorted(tokens), "the grids kept for long")
    _check(all(one.tokens == tokens[one.number] for one in offered), "the sizes of kept grids")
    sizes = {one.descriptor.shape for one in (*saved.important, *saved.descriptors)}
    _check(len(sizes) <= 1, "the descriptions of its frames")
    evictor._descriptors = {one.number: one.descriptor for one in saved.descriptors}
    if offered:
        sampled, important = evictor._kept_levels()
        sampled._grids, important._grids = saved.sampled, saved.important
        level: EvenSample | StarMemory
        for level in (sampled, important):
            level.tokens = sum(one.tokens for one in level._grids)
            _check(_rising([one.number for one in level._grids]), "the order of kept grids")
            _check(level.tokens <= level.budget, "its kept grids, beyond their share")
    return evictor


def _check_state(state: StreamState, ledger: PositionLedger) -> None:
    first, last = state.first_stamp, state.last_stamp
    _check(min(state.chunks, state.frames) > 0 and state.exchanges >= 0, "its counts")
    newest = max(grid.stamps[1] for grid in _grids(ledger))
    _check(first is not None and last is not None and first <= newest <= last, "its stamps")
    if state.known is not None:
        features, grids = state.known
        _check(features.ndim == 3 and grids.shape == features.shape[:2], "what it compares with")


def _buffer(
    file: MemoryFile,
    slots: _Slots,
    manager: KVCacheManager,
    ledger: PositionLedger,
    evictor: KVCacheEvictor,
) -> KVBuffer:
    """The keys and values, in the place of the present ones where nobody reads those."""
    sink, kept, window = ledger.sink_length or 0, ledger.kept_length, ledger.window_length
    room = evictor.room_for_grids if ledger.sink_length is not None else 0
    _check(kept <= room, "its kept grids, beyond their room")
    for one in (slots.owner, slots.place):
        _check(one.dtype == torch.int64 and list(one.shape) == [kept], "the places of kept grids")
    placed = sorted(zip(slots.owner.tolist(), slots.place.tolist(), strict=True))
    wanted = [
        (run.grids[0].number, place) for run in _kept_runs(ledger) for place in range(run.count)
    ]
    _check(placed == wanted and slots.window_start >= 0, "the places of kept grids")
    buffer = _spare_buffer(manager, sink + room + window)
    _check(sink + room + window <= buffer.capacity, "its length, beyond the cap")
    buffer.clear()
    buffer.sink, buffer._room = sink, room
    buffer.window = range(slots.window_start, slots.window_start + window)
    buffer._owner, buffer._place = slots.owner, slots.place
    if room and buffer._room_for_originals is not None:
        if buffer._room_for_originals.shape[2] < buffer.base:
            buffer._room_for_originals = buffer._take_originals(buffer.base)
        buffer._originals = buffer._room_for_originals[:, :, : buffer.base]
    base, places = sink + kept, buffer._slots(buffer.window)
    layer = torch.empty(
        (2, manager.shape.kv_heads, ledger.length, manager.shape.head_dim),
        dtype=manager.shape.dtype,
    )
    for number, data in enumerate(buffer.data):
        file.read(f"layers.{number}", layer)
        data[:, :, :base] = layer[:, :, :base]
        if buffer._originals is not None:
            buffer._originals[number, :, :base] = layer[0, :, :base]
        done = base
        for there in places:
            size = there.stop - there.start
            data[:, :, there] = layer[:, :, done : done + size]
            done += size
    if buffer.rotates_base:
        buffer.rotate_base(manager._rotary, ledger.sink_offset, ledger.kept_offsets())
    return buffer


def _spare_buffer(manager: KVCacheManager, slots: int) -> KVBuffer:
    """A buffer that nobody reads: the present one's room if that is empty, else a second one.

    DeviceUnavailableError where the device has no room for a second one.
    """
    present = manager._buffer
    capacity = present.capacity
    if manager.evictor.config is None:
        capacity = max(capacity, slots)
    if not present.length and capacity == present.capacity:
        return copy.copy(present)
    room = present._room_for_originals
    try:
        return KVBuffer(
            manager.shape, capacity, manager._device, None if room is None else room.shape[2]
        )
    except DeviceUnavailableError as error:
        raise DeviceUnavailableError(
            f"{manager._device} has no room for a second memory while the present one is kept: "
            "reset() first, or load into a new engine"
        ) from error


def _take_over(
    manager: KVCacheManager,
    buffer: KVBuffer,
    ledger: PositionLedger,
    evictor: KVCacheEvictor,
    state: StreamState,
) -> None:
    replaced = buffer.data is not manager._buffer.data
    manager._changed()
    manager._buffer, manager.ledger, manager.evictor, manager.state = (
        buffer,
        ledger,
        evictor,
        state,
    )
    if replaced:
        manager._memory_replaced()
