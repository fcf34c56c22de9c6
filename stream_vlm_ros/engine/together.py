# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Several engines that share a model: their memories side by side, their chunks in one pass.

Each keeps a memory of its own and is asked by itself. What a batch shares is the reading of the
weights and the launching of kernels, which is most of what a small camera's chunk costs.
"""

from __future__ import annotations

import weakref
from collections.abc import Generator, Hashable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar, cast

import torch

from stream_vlm_ros.engine.cache.buffer import KVShape
from stream_vlm_ros.engine.chunk_path import (
    BATCHES,
    Appending,
    ChunkPath,
    Encoded,
    Encoding,
    chunk_path,
)
from stream_vlm_ros.engine.finite import FiniteCheck
from stream_vlm_ros.engine.results import ChunkResult
from stream_vlm_ros.errors import InvalidParameterError, StreamVlmError

if TYPE_CHECKING:
    from stream_vlm_ros.engine.inference import VideoStreamingInference
    from stream_vlm_ros.engine.model.base import LayerFunctions, StreamModel

Result = TypeVar("Result")
# Engine, frames and time stamps, as `VideoStreamingInference.append_video_chunk` takes them.
Chunk: TypeAlias = "tuple[VideoStreamingInference, Sequence[Any], Sequence[float]]"


class Work(Protocol):
    """A piece of a chunk's work for the device."""

    @property
    def kind(self) -> Hashable:
        """What is alike in pieces that can be computed together."""

    def run(self) -> Any:
        """Compute it."""


class Finishing(NamedTuple):
    """Until the device has finished what it was given."""

    device: torch.device

    @property
    def kind(self) -> Hashable:
        return self.device

    def run(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)


# A chunk on its way: yields what the device has to do, is sent what came of it.
Steps = Generator[Work, Any, Result]


def run(steps: Steps[Result]) -> Result:
    """Carry a chunk's steps out, one after the other."""
    given: Any = None
    try:
        while True:
            work = steps.send(given)
            try:
                given = work.run()
            except BaseException as fault:
                work, given = steps.throw(fault), None
                raise AssertionError("a chunk went on after its work failed") from fault
    except StopIteration as done:
        return done.value


class Room:
    """Where the memories of several engines lie: one tensor, so that one kernel reads them all.

    Args:
        memories: how many it is taken for, of the size of the first. What does not fit lies
            elsewhere, and its chunks are computed by themselves.
    """

    def __init__(self, memories: int):
        self.memories = memories
        self._memory: torch.Tensor | None = None
        self._taken: dict[int, int] = {}  # slots from, up to
        self.longest = 0

    @property
    def is_taken(self) -> bool:
        """Whether the first memory lies in it, so that there is room for the others, too."""
        return self._memory is not None

    @property
    def memory(self) -> torch.Tensor:
        """``[layers, 2, kv_heads, slots, head_dim]``."""
        assert self._memory is not None
        return self._memory

    def follow(self, follower: Any) -> None:
        """It is never another tensor: nothing to tell."""

    def take(self, shape: KVShape, tokens: int, device: torch.device) -> torch.Tensor:
        """Room for so many tokens, ``[layers, 2, kv_heads, tokens, head_dim]``.

        It is free again when nobody refers to it. DeviceUnavailableError if there is none.
        """
        if self._memory is None:
            self._memory = shape.allocate(self.memories * tokens, device)
            self.longest = tokens
        slots, start = self._memory.shape[3], 0
        for first, stop in sorted(self._taken.items()):
            if first - start >= tokens:
                break
            start = stop
        if start + tokens > slots or tokens > self.longest:
            return shape.allocate(tokens, device)
        self._taken[start] = start + tokens
        memory = self._memory.narrow(3, start, tokens)
        weakref.finalize(memory, self._taken.pop, start, None)
        return memory


class EngineGroup:
    """What engines have in common that compute together: give it to each of them.

    Args:
        engines: how many there will be.

    Attributes:
        room: where their memories lie. One more than there are engines: a memory that is loaded
            is there before the present one is given up.
    """

    def __init__(self, engines: int):
        if engines < 1:
            raise InvalidParameterError(f"a group has one engine or more, not {engines}")
        self.room = Room(engines + 1 if engines > 1 else 1)
        self._model: StreamModel | None = None
        self._path: ChunkPath | None = None

    def path(self, model: StreamModel, functions: LayerFunctions, captured: bool) -> ChunkPath:
        """How chunks of all of them run. Raises InvalidParameterError for another model."""
        if self._path is None:
            self._model = model
            self._path = chunk_path(model, functions, self.room, captured, BATCHES)
        if self._model is not model:
            raise InvalidParameterError("engines of a group share one model")
        return self._path


def append_together(chunks: Sequence[Chunk]) -> list[ChunkResult | Exception]:
    """Append a chunk to each of several engines: see `Together.append`."""
    return finished(Together().append(chunks))


def finished(pieces: Generator[None, None, Result]) -> Result:
    """What comes of them, once all are carried out."""
    while True:
        try:
            next(pieces)
        except StopIteration as done:
            return done.value


class Together:
    """Appends chunks to several engines in as few passes over the model as may be.

    What can be computed together is (pictures of one size; engines of one `EngineGroup`), up to
    rounding as by `append_video_chunk`; the rest one by one. What fails fails alone.
    """

    def __init__(self) -> None:
        self._ahead: dict[int, tuple[Sequence[Any], Encoded]] = {}  # by the number of the frames

    def append(
        self, chunks: Sequence[Chunk], ahead: Sequence[tuple[VideoStreamingInference, Any]] = ()
    ) -> Generator[None, None, list[ChunkResult | Exception]]:
        """Append a chunk to each of these engines, an engine at most once.

        In pieces: between two of them questions may be answered, whose exchange is not kept.

        Args:
            ahead: engines with frames that will be appended next: their pictures are encoded while
                the host is busy with what these chunks leave of the memory.

        Returns:
            For each what was appended, or what `append_video_chunk` would have raised.
        """
        found: list[ChunkResult | Exception | None] = [None] * len(chunks)
        waiting: dict[int, tuple[Steps[ChunkResult], Work]] = {}

        def go_on(number: int, steps: Steps[ChunkResult], given: Any, fault: Any = None) -> None:
            try:
                work = steps.send(given) if fault is None else steps.throw(fault)
                while isinstance(work, Finishing):  # nobody waits for the device
                    work = steps.send(None)
            except StopIteration as done:
                found[number] = done.value
            except Exception as error:  # of this chunk alone
                found[number] = error
            else:
                waiting[number] = (steps, work)

        for number, (engine, frames, timestamps) in enumerate(chunks):
            _, encoded = self._ahead.pop(id(frames), (None, None))
            steps = engine.append_steps(frames, timestamps=timestamps, encoding=encoded)
            go_on(number, steps, None)
        self._ahead.clear()
        while waiting:
            now, waiting = waiting, {}
            alike: dict[Hashable, list[int]] = {}
            for number, (_, work) in now.items():
                alike.setdefault((type(work), work.kind), []).append(number)
            if ahead and any(isinstance(work, FiniteCheck) for _, work in now.values()):
                self._encode(ahead)
                ahead = ()
            for numbers in alike.values():
                results = _results([now[number][1] for number in numbers])
                for number, result in zip(numbers, results, strict=True):
                    fault = result if isinstance(result, BaseException) else None
                    go_on(number, now[number][0], None if fault else result, fault)
                if any(isinstance(now[number][1], Encoding | Appending) for number in numbers):
                    yield
        return [one for one in found if one is not None]

    def _encode(self, ahead: Sequence[tuple[VideoStreamingInference, Any]]) -> None:
        prepared: dict[Hashable, list[tuple[Any, Encoding]]] = {}
        for engine, frames in ahead:
            try:
                encoding = engine.prepare(frames)
            except StreamVlmError:  # raised again when they are appended
                continue
            prepared.setdefault(encoding.kind, []).append((frames, encoding))
        for alike in prepared.values():
            results = _results([encoding for _, encoding in alike])
            for (frames, encoding), features in zip(alike, results, strict=True):
                if isinstance(features, torch.Tensor):
                    self._ahead[id(frames)] = frames, Encoded(encoding.patches, features)


def _results(works: Sequence[Work]) -> list[Any]:
    """What comes of works of one kind; together, or where that fails one by one."""
    if len(works) > 1:
        try:
            first = works[0]
            if isinstance(first, Encoding):
                encodings = cast("Sequence[Encoding]", works)
                return [*first.path.encode_all([one.patches for one in encodings])]
            if isinstance(first, Appending):
                return [*first.path.append_all(cast("Sequence[Appending]", works))]
        except Exception:  # one of them may be at fault: then the others go on without it
            for work in works:
                if isinstance(work, Appending):
                    work.fork.rewind(0)
                    if work.readout is not None:
                        work.readout.clear()
    found: list[Any] = []
    for work in works:
        try:
            result = work.run()
            found.append(
                result.clone() if len(works) > 1 else result
            )  # until the next call it holds
        except Exception as fault:
            found.append(fault)
    return found
