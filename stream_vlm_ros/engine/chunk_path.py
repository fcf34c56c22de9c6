# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How a chunk runs through the model: call by call, or, if it is small, in captured steps.

A chunk of a small camera is some 1,200 launches of kernels that are done before the next one is
launched: the host sets the pace. `ChunkPath` is the plain way, on any device. `CapturedChunks`
records the vision tower and the language model once a size, as CUDA graphs that serve a memory of
any length (see `attention.step`), and leaves to plain calls what they do not serve. Both take the
chunks of several engines at once.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

import torch

from stream_vlm_ros.engine.attention.base import Readout
from stream_vlm_ros.engine.attention.step import StepAttention, StepInputs, StepMemory
from stream_vlm_ros.engine.attention.verified import (
    Verified,
    is_out_of_memory,
    relative_difference,
)
from stream_vlm_ros.engine.cache.manager import KVCacheManager
from stream_vlm_ros.engine.cache.requests import Fork
from stream_vlm_ros.engine.captured import (
    FIRST_CALLS,
    MIN_WRONG,
    PLAIN_STEP,
    Ready,
    Recording,
    StepKernels,
    call_aside,
    capture_graph,
    reserved_bytes,
    triton_kernels,
    unreadable,
    weights_at,
)
from stream_vlm_ros.engine.inputs.frames import PatchGrid
from stream_vlm_ros.engine.model.base import LayerFunctions, StreamModel
from stream_vlm_ros.errors import StreamBusyError

if TYPE_CHECKING:
    from stream_vlm_ros.engine.together import Room

MAX_TOKENS = 1024  # of a chunk in a step: larger ones keep the device busy by plain calls, too
_ROUNDED = 64  # tokens of a step are a multiple of
MAX_GRIDS = 4  # sizes of pictures whose vision is recorded: a camera has one or two
BATCHES = (8, 4, 2, 1)  # chunks of a step, where engines compute together

_Kind = tuple[Any, ...]  # of a step: what it computes, its size, what it reads, how many chunks

CHANGED = "the memory was changed while this chunk was on its way: nothing was appended"

_log = logging.getLogger(__name__)


class Encoding(NamedTuple):
    """Pictures of a chunk that are to be encoded."""

    path: ChunkPath
    patches: PatchGrid

    @property
    def kind(self) -> Hashable:
        """What is alike in those that can be encoded together."""
        return self.path, self.patches.grid_thw

    def run(self) -> torch.Tensor:
        """Vision features ``[tokens, hidden]``."""
        return self.path.encode(self.patches)


class Encoded(NamedTuple):
    """Pictures of a chunk that were encoded ahead."""

    patches: PatchGrid
    features: torch.Tensor

    @property
    def kind(self) -> Hashable:
        """Nothing is to be computed."""
        return id(self)

    def run(self) -> torch.Tensor:
        """Vision features ``[tokens, hidden]``."""
        return self.features


class Appending(NamedTuple):
    """Embeddings ``[n, hidden]`` of a chunk that are to be appended at ``positions [3, n]`` to a
    fork that has no tokens. ``readout`` reads of its queries and keys before they are rotated."""

    path: ChunkPath
    embeddings: torch.Tensor
    positions: torch.Tensor
    fork: Fork
    readout: Readout | None = None

    @property
    def kind(self) -> Hashable:
        """What is alike in those that can be appended together."""
        return self.path

    def run(self) -> torch.Tensor:
        """Hidden states after the last norm, ``[n, hidden]``; they hold until the next call."""
        if not self.fork.alive:  # the memory was emptied
            raise StreamBusyError(CHANGED)
        return self.path.append_all([self])[0]


class ChunkPath:
    """A chunk through the model, call by call. Engines that have one in common compute together.

    Args:
        functions: how its layers run.
    """

    def __init__(self, model: StreamModel, functions: LayerFunctions):
        self._model, self._functions = model, functions

    def encode(self, patches: PatchGrid) -> torch.Tensor:
        """Vision features ``[tokens, hidden]``."""
        return self.encode_all([patches])[0]

    def encode_all(self, several: Sequence[PatchGrid]) -> list[torch.Tensor]:
        """Vision features of chunks whose ``grid_thw`` is one, each ``[tokens, hidden]``."""
        features = self._model.encode_frames(_joined(several), self._functions)
        return list(features.split([patches.tokens for patches in several]))

    def append(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        fork: Fork,
        readout: Readout | None = None,
    ) -> torch.Tensor:
        """See `Appending`."""
        return Appending(self, embeddings, positions, fork, readout).run()

    def append_all(self, several: Sequence[Appending]) -> list[torch.Tensor]:
        """See `Appending.run`: of each of several engines' chunks."""
        if len(several) == 1:
            _, embeddings, positions, fork, readout = several[0]
            given = (embeddings[None], positions, fork, self._functions)
            return [self._model.stream_forward(*given, readout=readout)[0]]
        lengths = [len(one.embeddings) for one in several]
        forks = [(one.fork, one.readout) for one in several]
        together = (torch.cat([one.embeddings for one in several]), _positions(several))
        hidden = self._model.batch_forward(*together, forks, lengths, self._functions)
        return list(hidden.split(lengths))

    def is_prepared(self, most: int = BATCHES[0]) -> bool:
        """Whether `prepare_next` has nothing to do."""
        return True

    def prepare_next(self, most: int = BATCHES[0]) -> None:
        """Do a piece of what makes ready what later chunks would have to wait for: who comes
        meanwhile waits for two steps at most, or a recording.

        Args:
            most: how many chunks there may be in a step.
        """


class CapturedChunks(ChunkPath):
    """Small chunks in steps of fixed shape, each recorded once as a CUDA graph.

    The first chunk of a size is held against plain calls, in what it returns and what it stores;
    the first of several together, against steps of each.
    After a recording that fails no other is tried, unless memory is all that it lacked: then once
    some was given back. What was recorded before goes on to serve.

    Args:
        store: its ``memory`` is what the chunks are appended to: a `KVCacheManager`, or a `Room` in
            which several engines have theirs.
        kernels: the steps' own.
        graph: record and replay the steps; otherwise they are run again each time.
        recorder: records a step that has had its `FIRST_CALLS`, given the pool of those recorded
            before, None at first. None: `capture_graph`.
        batches: how many engines' chunks there may be in a step, falling to 1.

    Attributes:
        captures: graphs recorded so far.
        detours: how often the language model went the plain way, by reason.
        refused: why a step does not serve, by what it computes and its size.
    """

    def __init__(
        self,
        model: StreamModel,
        functions: LayerFunctions,
        store: KVCacheManager | Room,
        kernels: StepKernels = PLAIN_STEP,
        graph: bool = False,
        recorder: Callable[[Any, Any], Recording] | None = None,
        batches: Sequence[int] = (1,),
    ):
        super().__init__(model, functions)
        self._store, self._kernels, self._graph = store, kernels, graph
        self._recorder = recorder or capture_graph
        self._batches = tuple(batches)
        # Being too large for the device is a reason not to take a graph, too.
        self._verified: Verified[Any] = Verified("chunks take longer", ())
        self.captures = 0
        self.detours: Counter[str] = Counter()
        self._failed = ""  # why nothing more is recorded
        self._lacks_memory = False  # which is why
        self._given_back = False  # memory, since that was looked at
        self._tail: torch.Tensor | None = None  # of the steps, [layers, 2, kv_heads, room, d]
        self._stream: torch.Tensor | None = None
        self._memories: dict[int, StepMemory] = {}  # by how many chunks share a step
        self._grids: set[tuple[int, int, int]] = set()  # whose vision was to be recorded
        self._visions: dict[Any, Ready[_Vision, torch.Tensor]] = {}
        self._chunks: dict[Any, Ready[_Chunk, torch.Tensor]] = {}
        # What was begun ahead, which any piece of work may come between: no step is kept for it.
        self._called: Counter[_Kind] = Counter()  # of their first calls, until they are recorded
        self._untried: set[_Kind] = set()  # that were recorded
        self._pool: Any = None  # of the graphs' memory
        self._weights_at = 0
        store.follow(self)

    @property
    def refused(self) -> dict[Any, str]:
        return self._verified.refused

    def memory_replaced(self) -> None:
        """What it is appended to is another tensor, and the one before is let go."""
        self._let_go()
        self.memory_given_back()

    def _let_go(self) -> None:
        """Of what was recorded for another memory."""
        self._stream = None
        self._memories.clear()
        self._chunks.clear()
        self._called.clear()

    def memory_given_back(self) -> None:
        """The device has more memory than before. Called by any thread."""
        self._given_back = True

    def _serves(self, kind: _Kind) -> bool:
        """Whether a step of that kind was recorded, or may be."""
        if self._given_back:
            self._given_back = False
            self._verified.memory_given_back()
            if self._lacks_memory:
                self._failed, self._lacks_memory = "", False
        is_there = kind in self._visions or kind in self._chunks
        return kind not in self.refused and (is_there or not self._failed)

    def _pieces(
        self, alike: _Kind, several: Sequence[_Item]
    ) -> Iterator[tuple[_Kind | None, Sequence[_Item]]]:
        """As many at a time as the largest step takes that serves, and its kind; where none does,
        None with all that are left."""
        while several:
            kinds = ((*alike, size) for size in self._batches if size <= len(several))
            kind = next(filter(self._serves, kinds), None)
            size = len(several) if kind is None else kind[-1]
            yield kind, several[:size]
            several = several[size:]

    # -- seeing ------------------------------------------------------------------------------

    def encode_all(self, several: Sequence[PatchGrid]) -> list[torch.Tensor]:
        plain, grid = super().encode_all, several[0].grid_thw
        many = grid not in self._grids and len(self._grids) == MAX_GRIDS
        if several[0].tokens > MAX_TOKENS or many:
            return plain(several)
        self._grids.add(grid)
        found: list[torch.Tensor] = []
        for kind, some in self._pieces(("vision", grid), several):
            if kind is None:
                found += plain(some)
                continue
            found += self._encode_alike(kind, some)
        return found

    def _encode_alike(self, kind: _Kind, several: Sequence[PatchGrid]) -> list[torch.Tensor]:
        """Vision features of chunks that one step takes together."""
        self._untried.discard(kind)
        see, plain = partial(self._see, kind, several), partial(super().encode_all, several)
        found = self._verified.run(kind, see, plain, _differ_all)
        if kind in self.refused:
            self._visions.pop(kind, None)
        return found

    @torch.inference_mode()
    def _see(self, kind: _Kind, several: Sequence[PatchGrid]) -> list[torch.Tensor]:
        self._check_weights()
        taken = self._vision(kind, several)
        pixels = taken.step.patches.pixel_values
        for patches, place in zip(several, pixels.chunk(len(several)), strict=True):
            place.copy_(patches.pixel_values, non_blocking=True)
        # A copy: the stream keeps features, and any replay of the same pool may overwrite these.
        return list(taken.take().clone().chunk(len(several)))

    # -- appending ---------------------------------------------------------------------------

    def append_all(self, several: Sequence[Appending]) -> list[torch.Tensor]:
        found: dict[int, torch.Tensor] = {}
        by_kind: dict[_Kind, list[tuple[int, Appending]]] = {}
        for number, one in enumerate(several):
            size = -(-len(one.embeddings) // _ROUNDED) * _ROUNDED
            alike: _Kind = ("decoder", size, () if one.readout is None else _items(one.readout))
            if obstacle := self._obstacle(one):
                self.detours[obstacle] += 1
                found[number] = super().append_all([one])[0]
            else:
                by_kind.setdefault(alike, []).append((number, one))
        for alike, numbered in by_kind.items():
            for kind, some in self._pieces(alike, numbered):
                if kind is None:
                    self.detours[self.refused.get((*alike, 1), self._failed)] += len(some)
                hidden = self._append_alike(kind, [one for _, one in some])
                for (number, _), states in zip(some, hidden, strict=True):
                    # The next step of the pool would overwrite what one chunk's left.
                    found[number] = states.clone() if len(some) == 1 < len(several) else states
        return [found[number] for number in range(len(several))]

    def _append_alike(self, kind: _Kind | None, several: list[Appending]) -> list[torch.Tensor]:
        """Append chunks that one step takes together; None: each by itself, call by call."""
        plain = super().append_all
        if kind is None:
            return [plain([one])[0].clone() for one in several]
        stored: list[torch.Tensor] = []
        # One chunk's step is quicker than calls, of which eight chunks' would take half a second
        # just when chunks pile up.
        alone = (*kind[:-1], 1)
        steps = len(several) > 1 and self._verified.has_proved(alone)

        def together() -> list[torch.Tensor]:
            hidden = self._append(kind, several)
            return hidden if len(several) == 1 else [states.clone() for states in hidden]

        def apart() -> list[torch.Tensor]:
            hidden: list[torch.Tensor] = []
            if kind in self.refused:  # there is nothing to hold against it
                return hidden
            for one in several:
                with one.fork.twin() as other:
                    unread = None if one.readout is None else one.readout.like()
                    itself = [one._replace(fork=other, readout=unread)]
                    [states] = self._append(alone, itself) if steps else plain(itself)
                    hidden.append(states.clone())
                    stored.append(other.own().clone())
            return hidden

        def differ(found: list[torch.Tensor], expected: list[torch.Tensor]) -> str | None:
            why = _differ_all(found, expected)
            return _differ_all([one.fork.own() for one in several], stored) if why == "" else why

        hidden = self._verified.run(kind, together, apart, differ)
        if kind in self.refused:  # what was computed apart is not in the forks
            self._chunks.pop(kind, None)
            for one in several:
                one.fork.rewind(0)
                if one.readout is not None:
                    one.readout.clear()
            if steps:
                return [self._append_alike(alone, [one])[0].clone() for one in several]
            return [plain([one])[0].clone() for one in several]
        return hidden

    def _obstacle(self, one: Appending) -> str:
        if len(one.embeddings) > MAX_TOKENS:
            return f"it has more than {MAX_TOKENS} tokens"
        if not one.fork.parts:
            return "it is the first"  # with text before it, as no other: not worth a step
        return unreadable(one.fork.parts, self._store.holds)

    @torch.inference_mode()
    def _append(self, kind: _Kind, several: list[Appending]) -> list[torch.Tensor]:
        self._check_weights()
        size, memory = kind[1], self._memory_for(len(several))
        taken = self._chunk(kind, several[0].readout)
        step = taken.step
        memory.load(*(one.fork.parts for one in several))
        step.inputs.load_chunks([one.positions for one in several])
        for place, one in zip(step.embeddings.split(size), several, strict=True):
            place[: len(one.embeddings)] = one.embeddings
        hidden = taken.take().split(size)
        for number, one in enumerate(several):
            count, first = len(one.embeddings), number * memory.room
            one.fork.advance(count)
            one.fork.own().copy_(memory.tail[:, :, :, first : first + count])
            if one.readout is not None:
                one.readout.extend(step.readout, count, number * size)
        return [states[: len(one.embeddings)] for states, one in zip(hidden, several, strict=True)]

    def _memory_for(self, chunks: int) -> StepMemory:
        """What steps of so many chunks read and write: the memory, and a tail of their own."""
        stream = self._store.memory
        if self._stream is not stream:
            self._let_go()
            self._stream = stream
        if chunks not in self._memories:
            most = self._batches[0]
            if self._tail is None:
                room = most * MAX_TOKENS + 1
                shape = self._model.kv_shape
                self._tail = shape.allocate(room, stream.device, batch=1)[:, :, 0].zero_()
            tail = self._tail[:, :, :, : chunks * MAX_TOKENS + 1]
            self._memories[chunks] = StepMemory(stream, tail, chunks, self._store.longest)
        return self._memories[chunks]

    # -- recording ---------------------------------------------------------------------------

    def is_prepared(self, most: int = BATCHES[0]) -> bool:
        return next(self._missing(most), None) is None

    @torch.inference_mode()
    def prepare_next(self, most: int = BATCHES[0]) -> None:
        """Go on with a step for a number of chunks that have not come together yet, of a size that
        has come: when they do, they come faster than they are appended. A piece is one of its first
        calls, its recording, or, of the vision tower, the trial; the language model, for which
        there are no memories, is tried when they come."""
        self._check_weights()
        if (kind := next(self._missing(most), None)) is not None:
            self._verified.attempt(kind, lambda: self._prepare(kind))

    def _prepare(self, kind: _Kind) -> None:
        alike, chunks = kind[:-1], kind[-1]
        if kind[0] == "vision":
            other, seen = _like(alike, self._visions)
            several = [_first(seen.step.patches, other)] * chunks
            if kind in self._untried:
                self._encode_alike(kind, several)
            elif not self._call_ahead(kind, partial(self._vision_step, several)):
                self._vision(kind, several)
                self._untried.add(kind)
        else:
            readout = _like(alike, self._chunks)[1].step.readout
            if not self._call_ahead(kind, partial(self._chunk_step, kind, readout)):
                self._chunk(kind, readout)

    def _call_ahead(self, kind: _Kind, make: Callable[[], _Vision | _Chunk]) -> bool:
        """Call a step of that kind, as it is called before it is recorded; False: it has been."""
        if not self._graph or self._called[kind] == FIRST_CALLS:
            return False
        with self._noting_failure():
            call_aside(make())
        self._called[kind] += 1
        return True

    def _vision(self, kind: _Kind, several: Sequence[PatchGrid]) -> Ready[_Vision, torch.Tensor]:
        """The step of that kind, recorded on these patches if it is the first time."""
        if kind not in self._visions:
            with self._noting_failure():
                self._visions[kind] = self._recorded(kind, self._vision_step(several))
        return self._visions[kind]

    def _vision_step(self, several: Sequence[PatchGrid]) -> _Vision:
        return _Vision(self._model, _joined(several), self._functions)

    def _chunk(self, kind: _Kind, readout: Readout | None) -> Ready[_Chunk, torch.Tensor]:
        """The step of that kind, recorded if it is the first time."""
        with self._noting_failure():
            self._memory_for(kind[-1])  # first: it lets go of what read a replaced one
            if kind not in self._chunks:
                self._chunks[kind] = self._recorded(kind, self._chunk_step(kind, readout))
        return self._chunks[kind]

    def _chunk_step(self, kind: _Kind, readout: Readout | None) -> _Chunk:
        _, size, _, chunks = kind
        memory = self._memory_for(chunks)
        return _Chunk(self._model, memory, size, self._kernels, self._functions, readout)

    def _missing(self, most: int) -> Iterator[_Kind]:
        """Steps of sizes that have come, for numbers of chunks up to ``most`` that have not; the
        fewest first."""
        there = (*self._visions, *self._chunks)
        for chunks in reversed([size for size in self._batches if size <= most]):
            for alike in dict.fromkeys(kind[:-1] for kind in there):
                kind = (*alike, chunks)
                if (kind not in there or kind in self._untried) and self._serves(kind):
                    yield kind

    @contextmanager
    def _noting_failure(self) -> Iterator[None]:
        """While a step is made that was not there."""
        try:
            yield
        except Exception as fault:
            self._failed = "a step could not be recorded"
            self._lacks_memory = is_out_of_memory(fault)
            raise

    def _recorded(self, kind: _Kind, step: _Step) -> Ready[_Step, torch.Tensor]:
        if not self._graph:
            return Ready(step, step)
        device, begin = self._model.device, time.perf_counter()
        for _ in range(self._called[kind], FIRST_CALLS):
            call_aside(step)
        self._called[kind] = FIRST_CALLS
        if device.type == "cuda":
            torch.cuda.empty_cache()  # as a capture does, so that what it takes can be told
        before = reserved_bytes(device)
        replay, self._pool = self._recorder(step, self._pool)
        self.captures += 1
        taken = reserved_bytes(device) - before
        _log.info("%s: recorded in %.1f s, %.0f MB", step, time.perf_counter() - begin, taken / 1e6)
        return Ready(step, replay)

    def _check_weights(self) -> None:
        """A graph reads them where they were."""
        if self._weights_at != (now_at := weights_at(self._model)):
            self._visions.clear()
            self._chunks.clear()
            self._called.clear()
            self._untried.clear()
            self._pool = None
            self._weights_at = now_at


class _Vision:
    """The vision tower over patches of one shape, as a function of tensors."""

    def __init__(self, model: StreamModel, like: PatchGrid, functions: LayerFunctions):
        self._model, self._functions = model, functions
        self.device = model.device
        self.patches = replace(like, pixel_values=like.pixel_values.clone())
        self._layout = model.vision_layout(like.grid_thw)  # a graph reads it where it lies

    def __str__(self) -> str:
        return f"the vision tower for {self.patches.grid_thw} patches"

    def __call__(self) -> torch.Tensor:
        return self._model.encode_frames(self.patches, self._functions)


class _Chunk:
    """The language model over ``size`` embeddings a chunk, of which the last may be padding."""

    def __init__(
        self,
        model: StreamModel,
        memory: StepMemory,
        size: int,
        kernels: StepKernels,
        functions: LayerFunctions,
        reads: Readout | None,
    ):
        self._model, self._functions = model, functions
        self.device = model.device
        self.inputs = StepInputs(size, memory)
        self.embeddings = model.embed_tokens([0] * self.inputs.tokens).clone()
        self.readout = (reads or Readout()).like()
        scaling = model.kv_shape.head_dim**-0.5
        self._attention = StepAttention(
            memory, self.inputs, kernels.attend, kernels.place, scaling, self.readout
        )

    def __str__(self) -> str:
        size, chunks = self.inputs.size, self.inputs.tokens // self.inputs.size
        return f"the language model for {size} tokens of each of {chunks} chunks"

    @torch.inference_mode()
    def __call__(self) -> torch.Tensor:
        """Write keys and values to the memory's tail; hidden states ``[chunks * size, hidden]``."""
        self.readout.clear()
        with self._functions.running():
            return self._model.decode(
                self.embeddings.clone(), self.inputs.positions, self._attention, self._functions
            )


_Step = TypeVar("_Step", _Vision, _Chunk)
_Item = TypeVar("_Item")


def chunk_path(
    model: StreamModel,
    functions: LayerFunctions,
    store: KVCacheManager | Room,
    captured: bool,
    batches: Sequence[int] = (1,),
) -> ChunkPath:
    """The path of chunks; ``captured`` on a GPU where its kernels can be had."""
    if captured:
        loading: Verified[StepKernels] = Verified("chunks take longer")
        kernels = loading.attempt("", lambda: triton_kernels(model, model.device))
        if kernels is not None:
            return CapturedChunks(model, functions, store, kernels, graph=True, batches=batches)
    return ChunkPath(model, functions)


def _joined(several: Sequence[PatchGrid]) -> PatchGrid:
    """The patches of chunks whose pictures are of one size, as of one chunk of more grids."""
    if len(several) == 1:
        return several[0]
    pixels = torch.cat([patches.pixel_values for patches in several])
    grids = sum(patches.grid_thw[0] for patches in several)
    return replace(several[0], pixel_values=pixels, grid_thw=(grids, *several[0].grid_thw[1:]))


def _first(together: PatchGrid, chunks: int) -> PatchGrid:
    """The first of so many chunks' patches."""
    pixels = together.pixel_values.chunk(chunks)[0]
    grids = together.grid_thw[0] // chunks
    return replace(together, pixel_values=pixels, grid_thw=(grids, *together.grid_thw[1:]))


def _like(
    alike: _Kind, steps: Mapping[_Kind, Ready[_Step, torch.Tensor]]
) -> tuple[int, Ready[_Step, torch.Tensor]]:
    """One for another number of chunks, and for how many."""
    return next((kind[-1], taken) for kind, taken in steps.items() if kind[:-1] == alike)


def _positions(several: Sequence[Appending]) -> torch.Tensor:
    return torch.cat([one.positions for one in several], dim=1)


def _items(readout: Readout) -> tuple[Any, ...]:
    return tuple(tuple(sorted(heads.items())) for heads in readout.heads)


def _differ(found: torch.Tensor, expected: torch.Tensor) -> str | None:
    return relative_difference(found, expected, MIN_WRONG)


def _differ_all(found: Sequence[torch.Tensor], expected: Sequence[torch.Tensor]) -> str | None:
    """As `_differ`, of those that are a measure; None if none is."""
    told = [_differ(one, other) for one, other in zip(found, expected, strict=True)]
    return None if set(told) == {None} else next(filter(None, told), "")
