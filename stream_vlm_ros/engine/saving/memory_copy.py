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
from concurrent.futures import Future
from contextlib import contextmanager
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
            expect(isinstance(bound, dict), "what it is bound to")
            if reason := difference(bound, binding):
                raise file.refusal(reason)
        if check is not None:  # what that raises is not about the file's bookkeeping
            check(saved)
        with _in_words(file):
            text, arrays = file.text("bookkeeping"), file.text("arrays")
            book = Unpacker(arrays).unpack(Bookkeeping, json.loads(text))
            if origin_ns is not None:
                book = moved(book, (saved.origin_ns - origin_ns) / SECOND)
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
    expect(isinstance(about, dict), "what it holds")
    saved = Unpacker(b"").unpack(SavedMemory, {**about, "bytes": file.size})
    ends = [stamp for span in saved.time_spans for stamp in span]
    expect(bool(ends) and ends == sorted(ends), "its stretches of time")
    return saved


def _load(
    file: MemoryFile,
    book: Bookkeeping,
    now: MemoryState,
    present: KVBuffer,
    manager: KVCacheManager,
) -> None:
    ledger, rules = understood(book, now.ledger, manager.evictor)
    shape = manager.shape
    wanted = {f"layers.{number}" for number in range(shape.layers)}
    expect(file.names() == {"bookkeeping", "arrays", *wanted}, "its parts")
    size = [2, shape.kv_heads, ledger.length, shape.head_dim]
    for name in wanted:
        expect(file.shape(name) == (shape.dtype, size), "the shape of its keys and values")
    slots = slots_of(book, ledger, rules, now.slots)
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


def _fill(buffer: KVBuffer, slots: Slots, file: MemoryFile, manager: KVCacheManager) -> None:
    shape, base = manager.shape, slots.sink + slots.kept
    window = slots.of_newest(len(slots.window))
    sizes = (2, shape.kv_heads, slots.length, shape.head_dim)
    held = [torch.empty(sizes, dtype=shape.dtype) for _ in range(1 + _AHEAD)]
    with threads(_AHEAD) as (pool, over):  # to read and check the next layers meanwhile

        def coming(number: int) -> Future[torch.Tensor]:
            return pool.submit(file.read, f"layers.{number}", held[number % len(held)], over)

        ahead = deque(coming(number) for number in range(min(_AHEAD, shape.layers)))
        for number, data in enumerate(buffer.data):
            if number + _AHEAD < shape.layers:
                ahead.append(coming(number + _AHEAD))
            layer = ahead.popleft().result()
            data[:, :, :base] = layer[:, :, :base]
            if slots.room and buffer.originals is not None:
                buffer.originals[number, :, :base] = layer[0, :, :base]
            done = base
            for taken in window:
                size = taken.stop - taken.start
                data[:, :, taken] = layer[:, :, done : done + size]
                done += size
