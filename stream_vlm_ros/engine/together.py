# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Several engines that share a model: their memories side by side, their work in one pass.

Each keeps a memory of its own and is asked by itself. What a batch shares is the reading of the
weights and the launching of kernels, which is most of what a small camera's chunk costs, and almost
all that a token of an answer does.
"""

from __future__ import annotations

import logging
import weakref
from collections.abc import Generator, Hashable, Sequence
from operator import is_
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias, TypeVar, cast
from weakref import WeakKeyDictionary

import torch

from stream_vlm_ros.engine.attention.base import Readout
from stream_vlm_ros.engine.cache.buffer import KVShape, lies_in, slot_in
from stream_vlm_ros.engine.captured import SharedMemory
from stream_vlm_ros.engine.chunk_path import (
    BATCHES,
    Appending,
    CapturedChunks,
    ChunkPath,
    Encoded,
    Encoding,
    chunk_path,
)
from stream_vlm_ros.engine.decode_path import DecodePath, compute_together, decode_path
from stream_vlm_ros.engine.decoding import Answer
from stream_vlm_ros.engine.finite import FiniteCheck
from stream_vlm_ros.engine.graph_runner import TextRunner, text_runner
from stream_vlm_ros.engine.results import ChunkResult
from stream_vlm_ros.errors import InvalidParameterError, in_words

if TYPE_CHECKING:
    from stream_vlm_ros.engine.inference import VideoStreamingInference
    from stream_vlm_ros.engine.model.base import LayerFunctions, StreamModel

log = logging.getLogger(__name__)

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
                steps.throw(fault)
                raise AssertionError("a chunk went on after its work failed") from fault
    except StopIteration as done:
        return done.value
    finally:
        steps.close()


class Room:
    """Where the memories of several engines lie: one tensor, so that one kernel reads them all.

    Args:
        tokens: of each of the memories it is taken for.
            There is room for one more, as large as the largest: a memory that is loaded is there
            before the present one is given up, and a session before another has ended.
        otherwise: what becomes of one that it has no room for, for the log.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        otherwise: str = "its chunks are computed by themselves, which takes longer",
    ):
        self.longest, self._otherwise = max(tokens), otherwise
        self._slots = sum(tokens) + (self.longest if len(tokens) > 1 else 0)
        self._memory: torch.Tensor | None = None
        self._taken: dict[int, int] = {}  # slots from, up to
        self._followers: weakref.WeakSet[CapturedChunks] = weakref.WeakSet()

    @property
    def memory(self) -> torch.Tensor:
        """``[layers, 2, kv_heads, slots, head_dim]``, once one has taken of it."""
        assert self._memory is not None
        return self._memory

    def follow(self, follower: CapturedChunks) -> None:
        """Call its ``memory_given_back()``, as long as it lives, when one that did not lie here is
        let go: the device has more memory then."""
        self._followers.add(follower)

    def has(self, tokens: int) -> bool:
        """Whether there is room for so many."""
        return self._free(tokens) is not None

    def take(self, shape: KVShape, tokens: int, device: torch.device) -> torch.Tensor:
        """Room for so many tokens, ``[layers, 2, kv_heads, tokens, head_dim]``.

        It is free again when nobody refers to it. Where there is none it lies elsewhere.
        DeviceUnavailableError if the device has none.
        """
        start = self._free(tokens)
        if start is None:
            log.warning(
                "a memory of %d tokens has no room next to those of its group: %s",
                tokens,
                self._otherwise,
            )
            elsewhere = shape.allocate(tokens, device)
            weakref.finalize(elsewhere, self._given_back)
            return elsewhere
        if self._memory is None:
            self._memory = shape.allocate(self._slots, device)
        self._taken[start] = start + tokens
        memory = self._memory.narrow(3, start, tokens)
        weakref.finalize(memory, self._taken.pop, start, None)
        return memory

    def _given_back(self) -> None:
        for follower in list(self._followers):
            follower.memory_given_back()

    def holds(self, memory: torch.Tensor) -> bool:
        """Whether a memory ``[layers, 2, kv_heads, slots, head_dim]`` lies in it."""
        return self._memory is not None and lies_in(memory, self._memory)

    def slot_of(self, memory: torch.Tensor) -> int:
        """Where one that it holds begins."""
        return slot_in(memory, self.memory)

    def _free(self, tokens: int) -> int | None:
        """Where so many slots are free."""
        start = 0
        for first, stop in sorted(self._taken.items()):
            if first - start >= tokens:
                break
            start = stop
        fits = tokens <= self.longest and start + tokens <= self._slots
        return start if fits else None


class EngineGroup:
    """What engines have in common that compute together: give it to each of them.

    Args:
        tokens: of each engine's memory: its cap, with ``fork_slack_tokens``.

    Attributes:
        room: where their memories lie.
        decode_path: how tokens of their answers run together, once `path` was asked for.
    """

    decode_path: DecodePath

    def __init__(self, tokens: Sequence[int]):
        if not tokens or min(tokens) < 1:
            raise InvalidParameterError(
                f"a group wants the tokens of each engine's memory, 1 or more, not {[*tokens]}"
            )
        self.room = Room(tokens)
        self._engines = len(tokens)
        self._tails: Room | None = None
        self._model: StreamModel | None = None
        self._path: ChunkPath | None = None
        self._text_paths: dict[Hashable, TextRunner] = {}

    def tails(self, tokens: int) -> Room:
        """Where the tails of their questions lie, as large as the first engine's: so many tokens,
        and a slot for padding."""
        if self._tails is None:
            otherwise = "answers from it are written by themselves, which takes longer"
            self._tails = Room([tokens + 1] * self._engines, otherwise)
        return self._tails

    @property
    def has_room(self) -> bool:
        """Whether another engine's memory, and its tail, can lie with the others'."""
        return all(room is None or room.has(room.longest) for room in (self.room, self._tails))

    @property
    def memory(self) -> SharedMemory:
        """Where their questions read and write, once one of the engines has its memory."""
        assert self._tails is not None
        return SharedMemory(self.room, self._tails)

    def path(self, model: StreamModel, functions: LayerFunctions, captured: bool) -> ChunkPath:
        """How chunks of all of them run. Raises InvalidParameterError for another model."""
        if self._path is None:
            self._model = model
            batches = [chunks for chunks in BATCHES if chunks <= self._engines]
            self._path = chunk_path(model, functions, self.room, captured, batches)
            self.decode_path = decode_path(model, self.memory, captured)
        if self._model is not model:
            raise InvalidParameterError("engines of a group share one model")
        return self._path

    def is_prepared(self, most: int = BATCHES[0]) -> bool:
        """Whether `prepare_next` has nothing to do."""
        return self._path is None or self._path.is_prepared(most)

    def prepare_next(self, most: int = BATCHES[0]) -> None:
        """While nobody waits, a piece of what makes a step ready that chunks of several engines,
        ``most`` at most, will take; see `ChunkPath.prepare_next`."""
        if self._path is not None:
            self._path.prepare_next(most)

    def text_path(self, wanted: str, model: StreamModel, reads: Readout | None) -> TextRunner:
        """How questions to one of them run, by the name of `QUESTION_PATHS`: what is recorded for
        that serves all. Raises as `text_runner`."""
        kind = (wanted, None if reads is None else repr(reads.heads))
        if kind not in self._text_paths:
            self._text_paths[kind] = text_runner(wanted, model, self.memory, model.device, reads)
        return self._text_paths[kind]


def append_together(chunks: Sequence[Chunk]) -> list[ChunkResult | BaseException]:
    """Append a chunk to each of several engines: see `Together.append`."""
    return finished(Together().append(chunks))


def write_together(answers: Sequence[Answer]) -> None:
    """Go on with several answers, up to where the device computes what follows in each.

    Their next pieces are then there for who iterates over them. Those of engines of one
    `EngineGroup` are computed in one pass, up to rounding as by themselves; the rest one by one,
    when they are asked for. What fails fails in its own answer.
    """
    compute_together([text for answer in answers if (text := answer.coming()) is not None])


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
        # Weak: an engine that is let go leaves its room to others.
        self._ahead: WeakKeyDictionary[VideoStreamingInference, _Ahead] = WeakKeyDictionary()

    def append(
        self, chunks: Sequence[Chunk], ahead: Sequence[tuple[VideoStreamingInference, Any]] = ()
    ) -> Generator[None, None, list[ChunkResult | BaseException]]:
        """Append a chunk to each of these engines, an engine at most once.

        In pieces: between two of them questions may be answered, whose exchange is not kept.

        Args:
            ahead: engines with frames that will be appended next: their pictures are encoded while
                the host is busy with what these chunks leave of the memory. Do not write to them.

        Returns:
            For each what was appended, or what `append_video_chunk` would have raised.

        Raises InvalidParameterError where an engine is named twice.
        """
        if len({id(engine) for engine, *_ in chunks}) < len(chunks):
            raise InvalidParameterError("an engine takes one chunk at a time")
        found: dict[int, ChunkResult | BaseException] = {}
        waiting: dict[int, tuple[Steps[ChunkResult], Work]] = {}
        try:
            for number, (engine, frames, timestamps) in enumerate(chunks):
                encoded = self._encoded(engine, frames)
                steps = engine.append_steps(frames, timestamps=timestamps, encoding=encoded)
                _put(_go_on(steps, None), number, steps, waiting, found)
            coming = dict(ahead)
            for engine, kept in list(self._ahead.items()):  # those that do not come next after all
                if engine not in coming or not kept.is_of(engine, coming[engine]):
                    del self._ahead[engine]
            ahead = [one for one in ahead if one[0] not in self._ahead]
            while waiting:
                alike: dict[Hashable, list[int]] = {}
                for number, (_, work) in waiting.items():
                    alike.setdefault((type(work), work.kind), []).append(number)
                if ahead and any(isinstance(work, FiniteCheck) for _, work in waiting.values()):
                    self._encode(ahead)
                    ahead = ()
                for numbers in alike.values():
                    works = [waiting[number][1] for number in numbers]
                    for number, result in zip(numbers, _results(works), strict=True):
                        steps, _ = waiting.pop(number)
                        _put(_go_on(steps, result), number, steps, waiting, found)
                    if isinstance(works[0], Encoding | Appending):
                        yield
            return [found[number] for number in range(len(chunks))]
        finally:  # interrupted, or dropped between two pieces: what they have lent is given back
            for steps, _ in waiting.values():
                steps.close()

    def _encoded(self, engine: VideoStreamingInference, frames: Sequence[Any]) -> Encoded | None:
        """What was encoded ahead of these frames, if that is what would be encoded now."""
        ahead = self._ahead.pop(engine, None)
        return ahead.encoded if ahead is not None and ahead.is_of(engine, frames) else None

    def _encode(self, ahead: Sequence[tuple[VideoStreamingInference, Any]]) -> None:
        prepared: dict[Hashable, list[tuple[VideoStreamingInference, Any, Encoding]]] = {}
        for engine, frames in ahead:
            try:
                encoding = engine.prepare(frames)
            except Exception:  # raised again when they are appended
                continue
            prepared.setdefault(encoding.kind, []).append((engine, frames, encoding))
        for alike in prepared.values():
            results = _results([encoding for *_, encoding in alike])
            for (engine, frames, encoding), features in zip(alike, results, strict=True):
                if isinstance(features, torch.Tensor):
                    encoded = Encoded(encoding.patches, features)
                    self._ahead[engine] = _Ahead(frames, [*frames], _bounds(engine), encoded)


class _Ahead(NamedTuple):
    """Pictures encoded ahead, and of what."""

    frames: Sequence[Any]
    pictures: list[Any]
    bounds: tuple[int, int | None]
    encoded: Encoded

    def is_of(self, engine: VideoStreamingInference, frames: Sequence[Any]) -> bool:
        same = (
            frames is self.frames
            and len(frames) == len(self.pictures)
            and all(map(is_, frames, self.pictures))
        )
        return same and self.bounds == _bounds(engine)


def _bounds(engine: VideoStreamingInference) -> tuple[int, int | None]:
    return engine.min_pixels, engine.max_pixels


def _go_on(steps: Steps[ChunkResult], given: Any) -> Work | ChunkResult | BaseException:
    """Send what came of the last work; the next one, or what came of the chunk."""
    try:
        work = steps.throw(given) if isinstance(given, BaseException) else steps.send(given)
        while isinstance(work, Finishing):  # nobody waits for the device
            work = steps.send(None)
        return work
    except StopIteration as done:
        return done.value
    except (Exception, SystemExit) as error:  # of this chunk alone; a user's score raises anything
        return error


def _put(
    result: Work | ChunkResult | BaseException,
    number: int,
    steps: Steps[ChunkResult],
    waiting: dict[int, tuple[Steps[ChunkResult], Work]],
    found: dict[int, ChunkResult | BaseException],
) -> None:
    if isinstance(result, ChunkResult | BaseException):
        found[number] = result
    else:
        waiting[number] = (steps, result)


def _results(works: Sequence[Work]) -> list[Any]:
    """What comes of works of one kind; together, or where that fails one by one."""
    first = works[0]
    try:
        if len(works) > 1 and isinstance(first, Encoding):
            encodings = cast("Sequence[Encoding]", works)
            return [*first.path.encode_all([one.patches for one in encodings])]
        if len(works) > 1 and isinstance(first, Appending):
            return [*first.path.append_all(cast("Sequence[Appending]", works))]
    except Exception as fault:  # one of them may be at fault: then the others go on without it
        log.warning("%d chunks are computed one by one: %s", len(works), in_words(fault))
        for work in works:
            if isinstance(work, Appending):
                work.fork.rewind(0)
                if work.readout is not None:
                    work.readout.clear()
    return [_result(work, alone=len(works) == 1) for work in works]


def _result(work: Work, alone: bool) -> Any:
    try:
        result = work.run()
    except Exception as fault:
        return fault
    return result if alone else result.clone()  # until the next call it holds
