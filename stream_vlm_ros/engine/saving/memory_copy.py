# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A stream's memory on the host: taken from an engine in a moment and written in another thread, or
read in another thread and handed to an engine in a moment.

Keys that are kept a second time, as first computed, are saved so; their rotated copies follow.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stream_vlm_ros import __version__
from stream_vlm_ros.engine.cache.buffer import KVBuffer
from stream_vlm_ros.engine.cache.eviction import (
    HeldAlone,
    KVCacheEvictor,
)
from stream_vlm_ros.engine.cache.ledger import PositionLedger
from stream_vlm_ros.engine.cache.manager import KVCacheManager
from stream_vlm_ros.engine.cache.slots import Slots
from stream_vlm_ros.engine.cache.state import MemoryState
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.engine.inputs.token_reduction import Known
from stream_vlm_ros.engine.results import SavedMemory
from stream_vlm_ros.engine.saving.binding import difference
from stream_vlm_ros.engine.saving.bookkeeping import (
    Bookkeeping,
    bookkeeping_of,
    expect,
    moved,
    slots_of,
    understood,
)
from stream_vlm_ros.engine.saving.memory_file import MemoryFile, threads, write
from stream_vlm_ros.engine.saving.plain import MAX_WHOLE_NUMBER, Packer, PlainError, Unpacker
from stream_vlm_ros.errors import (
    DeviceUnavailableError,
    EmptyMemoryError,
    InvalidParameterError,
    MemoryFileError,
    StreamBusyError,
    in_words,
    whole_number,
)

_AHEAD = 2  # layers that are read while another is taken over


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
    def take(
        cls, manager: KVCacheManager, binding: Mapping[str, Any], course: int = 0
    ) -> MemoryCopy:
        """Copy the memory of an engine, in the thread that owns it.

        Args:
            course: of time, by its history; 0: it has none.

        Raises:
            EmptyMemoryError: there is nothing to save.
            InvalidParameterError: a user's importance score describes frames by what no file holds.
            StreamBusyError: an answer is being written, and room for what came meanwhile is yet
                to be made.
        """
        return manager.reading(
            lambda state, buffer: cls._of(state, buffer, manager, binding, course)
        )

    @classmethod
    def _of(
        cls,
        state: MemoryState,
        buffer: KVBuffer,
        manager: KVCacheManager,
        binding: Mapping[str, Any],
        course: int,
    ) -> MemoryCopy:
        if not state.stream.frames:
            raise EmptyMemoryError("nothing has been seen yet: there is no memory to save")
        if not state.ledger.grids:
            raise EmptyMemoryError("no frame is left in the memory: there is nothing to save")
        if state.waiting:
            raise StreamBusyError("an answer is being written: finish or cancel it first")
        packer = Packer()
        try:
            packed = packer.pack(bookkeeping_of(state))
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:  # of a user's importance score: it may describe by anything
            what = error if isinstance(error, PlainError) else f"what raises ({in_words(error)})"
            raise InvalidParameterError(
                f"the memory cannot be saved: the importance score describes frames by {what}"
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
                course=course,
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
            book = Unpacker(self._arrays).unpack(Bookkeeping, text)
            understood(book, PositionLedger(self._binding["position_policy"]), self._rules)
        except PlainError as error:
            raise InvalidParameterError(
                f"the memory cannot be saved, as it could not be loaded again: {error}. An "
                "importance score is to describe each frame by an array of one shape"
            ) from error


def about_memory(path: str | Path) -> SavedMemory:
    """What a file says that it holds, without loading it; MemoryFileError as for `load_memory`."""
    with MemoryFile(path) as file, _in_words(file.refusal):
        return _about(file)


@dataclass(frozen=True)
class ReadMemory:
    """A saved memory that was read and checked, for `InferenceEngine.load_memory`.

    Attributes:
        saved: what it is.
        bound: what an engine that takes it has in common with the one that saved it.
        book: its bookkeeping.
        layers: gives keys and values of each layer, ``[2, kv_heads, length, head_dim]`` on the
            host. Each may be written over once the next is asked for.
        refusal: what to raise, from a reason.
    """

    saved: SavedMemory
    bound: Mapping[str, Any]
    book: Bookkeeping
    layers: Callable[[], Generator[torch.Tensor]]
    refusal: Callable[[str], MemoryFileError]


class MemoryReader:
    """Reads saved memories for an engine, in whose thread it is made."""

    def __init__(self, manager: KVCacheManager, binding: Mapping[str, Any]) -> None:
        self._binding, self._shape = dict(binding), manager.shape
        self._ledger = PositionLedger(binding["position_policy"])
        self._slots, self._rules = manager.reading(
            lambda state, _: (state.slots, manager.evictor.over(HeldAlone(state.evictor)))
        )

    def read(self, path: str | Path, over: threading.Event | None = None) -> ReadMemory:
        """Read a file into the host's memory, in any thread.

        Args:
            over: once it is set nobody wants it any more.

        Raises MemoryFileError as `InferenceEngine.load_memory`, and CancelledError.
        """
        with MemoryFile(path) as file:
            read, names, size = self._checked(file)
            with closing(_layers_in(file, names, size, self._shape.dtype, over)) as layers:
                held = list(layers)

        def given() -> Generator[torch.Tensor]:
            yield from held

        return dataclasses.replace(read, layers=given)

    @contextmanager
    def reading(self, path: str | Path) -> Iterator[ReadMemory]:
        """The same of a file that stays open: its layers are read as they are asked for, and never
        more than a few of them are held."""
        with MemoryFile(path) as file:
            read, names, size = self._checked(file)
            few = [torch.empty(size, dtype=self._shape.dtype) for _ in range(1 + _AHEAD)]
            yield dataclasses.replace(
                read, layers=lambda: _layers_in(file, names, size, self._shape.dtype, into=few)
            )

    def _checked(self, file: MemoryFile) -> tuple[ReadMemory, list[str], list[int]]:
        """What a file holds, the names of its layers, and their size."""
        shape = self._shape
        with _in_words(file.refusal):
            saved = _about(file)
            bound = json.loads(file.metadata.get("binding", "null"))
            expect(isinstance(bound, dict), "what it is bound to")
            _check_bound(bound, self._binding, file.refusal)
            text, arrays = file.text("bookkeeping"), file.text("arrays")
            book = Unpacker(arrays).unpack(Bookkeeping, json.loads(text))
            slots = _placed(book, self._ledger, self._rules, self._slots)[1]
            names = [f"layers.{number}" for number in range(shape.layers)]
            expect(file.names() == {"bookkeeping", "arrays", *names}, "its parts")
            size = [2, shape.kv_heads, slots.length, shape.head_dim]
            for name in names:
                expect(file.shape(name) == (shape.dtype, size), "the shape of its keys and values")
        return ReadMemory(saved, bound, book, _nothing, file.refusal), names, size


@torch.inference_mode()
def load_memory(
    source: str | Path | ReadMemory,
    manager: KVCacheManager,
    binding: Mapping[str, Any],
    origin_ns: int | None = None,
    check: Callable[[SavedMemory], None] | None = None,
) -> SavedMemory:
    """Put a saved memory in the place of the present one; see `InferenceEngine.load_memory`."""
    if origin_ns is not None:
        origin_ns = _nanoseconds(origin_ns)
    manager.check_unread()
    if isinstance(source, ReadMemory):
        _check_bound(source.bound, binding, source.refusal)
        return _load(source, manager, origin_ns, check)
    with MemoryReader(manager, binding).reading(source) as read:
        return _load(read, manager, origin_ns, check)


def _nanoseconds(origin_ns: int) -> int:
    """InvalidParameterError for a time that no file holds."""
    return whole_number("origin_ns", origin_ns, -MAX_WHOLE_NUMBER, MAX_WHOLE_NUMBER)


@contextmanager
def _in_words(refusal: Callable[[str], MemoryFileError]) -> Iterator[None]:
    try:
        yield
    except (ValueError, RecursionError) as error:  # PlainError, and those of json
        raise refusal(f"its bookkeeping contradicts itself ({error})") from error


def _about(file: MemoryFile) -> SavedMemory:
    about = json.loads(file.metadata.get("about", "null"))
    expect(isinstance(about, dict), "what it holds")
    saved = Unpacker(b"").unpack(SavedMemory, {**about, "bytes": file.size})
    ends = [stamp for span in saved.time_spans for stamp in span]
    expect(bool(ends) and ends == sorted(ends), "its stretches of time")
    return saved


def _check_bound(
    bound: Mapping[str, Any],
    binding: Mapping[str, Any],
    refusal: Callable[[str], MemoryFileError],
) -> None:
    if reason := difference(bound, binding):
        raise refusal(reason)


def _placed(
    book: Bookkeeping, now: PositionLedger, present: KVCacheEvictor, slots: Slots
) -> tuple[PositionLedger, Slots]:
    ledger, rules = understood(book, now, present)
    return ledger, slots_of(book, ledger, rules, slots)


def _load(
    read: ReadMemory,
    manager: KVCacheManager,
    origin_ns: int | None,
    check: Callable[[SavedMemory], None] | None,
) -> SavedMemory:
    book, saved = read.book, read.saved
    if check is not None:
        check(saved)
    if origin_ns is not None:
        saved = dataclasses.replace(saved, origin_ns=origin_ns)

    def take(now: MemoryState, present: KVBuffer) -> None:
        ledger, slots = _placed(book, now.ledger, manager.evictor, now.slots)
        buffer = _unread_buffer(now, present, slots, manager)
        _fill(buffer, slots, read)
        known = book.stream.known
        if known is not None:
            known = Known(*(part.to(buffer.data.device) for part in known))
        stream = dataclasses.replace(book.stream, known=known)
        manager.take_over(MemoryState(slots, ledger, book.evictor, stream=stream), buffer)

    with _in_words(read.refusal):
        if origin_ns is not None:
            book = moved(book, (read.saved.origin_ns - origin_ns) / SECOND)
        manager.reading(take)
    return saved


def _bytes_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data) or bytearray(1), dtype=torch.uint8)[: len(data)]


# -- from a memory -----------------------------------------------------------------------------


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
            buffer = KVBuffer(
                manager.shape, slots.capacity, present.data.device, room, manager.room
            )
        if buffer.keeps_originals and slots.room:
            buffer = buffer.with_room_for_originals(slots.base)
        buffer.forget_rotations()
        return buffer
    except (DeviceUnavailableError, torch.OutOfMemoryError) as error:
        raise DeviceUnavailableError(
            f"{present.data.device} has no room for a second memory while the present one is kept: "
            "reset() first, or load into a new engine"
        ) from error


def _fill(buffer: KVBuffer, slots: Slots, read: ReadMemory) -> None:
    base, window = slots.sink + slots.kept, slots.of_newest(len(slots.window))
    with closing(read.layers()) as layers:
        for number, (data, layer) in enumerate(zip(buffer.data, layers, strict=True)):
            data[:, :, :base] = layer[:, :, :base]
            if slots.room and buffer.originals is not None:
                buffer.originals[number, :, :base] = layer[0, :, :base]
            done = base
            for taken in window:
                size = taken.stop - taken.start
                data[:, :, taken] = layer[:, :, done : done + size]
                done += size


def _layers_in(
    file: MemoryFile,
    names: Sequence[str],
    size: Sequence[int],
    dtype: torch.dtype,
    over: threading.Event | None = None,
    into: Sequence[torch.Tensor] = (),
) -> Generator[torch.Tensor]:
    """The layers of a file, of which the next are read and checked while one is used.

    Args:
        over: see `MemoryReader.read`.
        into: tensors that they are read into by turns; none: each is one of its own.
    """
    with threads(_AHEAD, over) as (pool, done):

        def coming(number: int) -> Future[torch.Tensor]:
            held = into[number % len(into)] if into else torch.empty(size, dtype=dtype)
            return pool.submit(file.read, names[number], held, done)

        ahead = deque(coming(number) for number in range(min(_AHEAD, len(names))))
        for number in range(len(names)):
            if number + _AHEAD < len(names):
                ahead.append(coming(number + _AHEAD))
            yield ahead.popleft().result()


def _nothing() -> Generator[torch.Tensor]:
    yield from ()
