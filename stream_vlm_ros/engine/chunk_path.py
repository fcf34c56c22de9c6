# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How a chunk runs through the model: call by call, or, if it is small, in captured steps.

A chunk of a small camera is some 1,200 launches of kernels that are done before the next one is
launched: the host sets the pace. `ChunkPath` is the plain way, on any device. `CapturedChunks`
records the vision tower and the language model once a size, as CUDA graphs that serve a memory of
any length (see `attention.step`), and leaves to plain calls what they do not serve.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Hashable
from dataclasses import replace
from typing import Any, Generic, NamedTuple, TypeVar

import torch

from stream_vlm_ros.engine.attention.base import Readout
from stream_vlm_ros.engine.attention.step import MAX_PARTS, StepAttention, StepInputs, StepMemory
from stream_vlm_ros.engine.attention.verified import Verified, relative_difference
from stream_vlm_ros.engine.cache.manager import KVCacheManager
from stream_vlm_ros.engine.cache.requests import Fork
from stream_vlm_ros.engine.graph_runner import (
    MIN_WRONG,
    PLAIN_STEP,
    Recording,
    StepKernels,
    record_graph,
    reserved_bytes,
    triton_kernels,
)
from stream_vlm_ros.engine.inputs.frames import PatchGrid
from stream_vlm_ros.engine.model.base import LayerFunctions, StreamModel

MAX_TOKENS = 1024  # of a chunk in a step: larger ones keep the device busy by plain calls, too
_ROUNDED = 64  # tokens of a step are a multiple of
MAX_GRIDS = 4  # sizes of pictures whose vision is recorded: a camera has one or two

_log = logging.getLogger(__name__)


class ChunkPath:
    """A chunk through the model, call by call.

    Args:
        functions: how its layers run.
    """

    def __init__(self, model: StreamModel, functions: LayerFunctions):
        self._model, self._functions = model, functions

    def encode(self, patches: PatchGrid) -> torch.Tensor:
        """Vision features ``[tokens, hidden]``."""
        return self._model.encode_frames(patches, self._functions)

    def append(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        fork: Fork,
        readout: Readout | None = None,
    ) -> torch.Tensor:
        """Append embeddings ``[n, hidden]`` at ``positions [3, n]`` to a fork that has no tokens.

        ``readout`` reads of its queries and keys before they are rotated.

        Returns:
            Hidden states after the last norm, ``[n, hidden]``; they hold until the next call.
        """
        return self._model.stream_forward(
            embeddings[None], positions, fork, self._functions, readout=readout
        )[0]


class CapturedChunks(ChunkPath):
    """Small chunks in steps of fixed shape, each recorded once as a CUDA graph.

    The first chunk of a size is held against plain calls, in what it returns and what it stores.
    After a capture that fails, all chunks go the plain way.

    Args:
        manager: whose memory the chunks are appended to.
        kernels: the steps' own.
        graph: record and replay the steps; otherwise they are run again each time.
        recorder: records a step, given the pool of those recorded before, None at first. None:
            `record_graph`.

    Attributes:
        captures: graphs recorded so far.
        detours: how often the language model went the plain way, by reason.
        refused: why a step does not serve, by what it computes and its size.
    """

    def __init__(
        self,
        model: StreamModel,
        functions: LayerFunctions,
        manager: KVCacheManager,
        kernels: StepKernels = PLAIN_STEP,
        graph: bool = False,
        recorder: Callable[[Any, Any], Recording] | None = None,
    ):
        super().__init__(model, functions)
        self._manager, self._kernels, self._graph = manager, kernels, graph
        self._recorder = recorder or record_graph
        # Being too large for the device is a reason not to take a graph, too.
        self._verified: Verified[torch.Tensor] = Verified("chunks take longer", ())
        self.captures = 0
        self.detours: Counter[str] = Counter()
        self._failed = ""  # why captures are not tried any more
        self._tail: torch.Tensor | None = None  # of the steps, [layers, 2, kv_heads, room, d]
        self._memory: StepMemory | None = None
        self._grids: set[tuple[int, int, int]] = set()  # whose vision was to be recorded
        self._visions: dict[Any, _Taken[_Vision]] = {}
        self._chunks: dict[Any, _Taken[_Chunk]] = {}
        self._pool: Any = None  # of the graphs' memory
        self._weights_at = 0
        manager.follow(self)

    @property
    def refused(self) -> dict[Any, str]:
        return self._verified.refused

    def memory_replaced(self) -> None:
        self._memory = None
        self._chunks.clear()

    # -- seeing ------------------------------------------------------------------------------

    def encode(self, patches: PatchGrid) -> torch.Tensor:
        plain, grid = super().encode, patches.grid_thw
        many = grid not in self._grids and len(self._grids) == MAX_GRIDS
        if self._failed or patches.tokens > MAX_TOKENS or many:
            return plain(patches)
        self._grids.add(grid)
        kind = ("vision", grid)
        features = self._verified.run(
            kind, lambda: self._see(patches), lambda: plain(patches), _differ
        )
        if kind in self.refused:
            self._visions.pop(grid, None)
        return features

    @torch.inference_mode()
    def _see(self, patches: PatchGrid) -> torch.Tensor:
        self._check_weights()
        taken = self._visions.get(patches.grid_thw)
        if taken is None:
            taken = self._recorded(_Vision(self._model, patches, self._functions))
            self._visions[patches.grid_thw] = taken
        taken.step.patches.pixel_values.copy_(patches.pixel_values, non_blocking=True)
        # A copy: the stream keeps features, and any replay of the same pool may overwrite these.
        return taken.take().clone()

    # -- appending ---------------------------------------------------------------------------

    def append(
        self,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        fork: Fork,
        readout: Readout | None = None,
    ) -> torch.Tensor:
        plain = super().append
        size = -(-len(embeddings) // _ROUNDED) * _ROUNDED
        kind = ("decoder", size, () if readout is None else _items(readout))
        if obstacle := self._obstacle(kind, len(embeddings), fork):
            self.detours[obstacle] += 1
            return plain(embeddings, positions, fork, readout)
        stored: list[torch.Tensor] = []

        def apart() -> torch.Tensor:
            with self._manager.fork(len(embeddings)) as other:
                hidden = plain(embeddings, positions, other)
                stored.append(other.own().clone())
            return hidden

        def differ(found: torch.Tensor, expected: torch.Tensor) -> str | None:
            why = _differ(found, expected)
            return _differ(fork.own(), stored[0]) if why == "" else why

        by_step = lambda: self._append(kind, size, embeddings, positions, fork, readout)  # noqa: E731
        hidden = self._verified.run(kind, by_step, apart, differ)
        if kind in self.refused:  # what was computed apart is not in the fork
            self._chunks.pop(kind, None)
            fork.rewind(0)
            if readout is not None:
                readout.clear()
            return plain(embeddings, positions, fork, readout)
        return hidden

    def _obstacle(self, kind: Hashable, count: int, fork: Fork) -> str:
        if self._failed or kind in self.refused:
            return self._failed or self.refused[kind]
        if count > MAX_TOKENS:
            return f"it has more than {MAX_TOKENS} tokens"
        if not fork.parts:
            return "it is the first"  # with text before it, as no other: not worth a step
        if len(fork.parts) > MAX_PARTS:
            return f"the memory is read in more than {MAX_PARTS} parts"
        return ""

    @torch.inference_mode()
    def _append(
        self,
        kind: Hashable,
        size: int,
        embeddings: torch.Tensor,
        positions: torch.Tensor,
        fork: Fork,
        readout: Readout | None,
    ) -> torch.Tensor:
        self._check_weights()
        memory, count = self._own_memory(), len(embeddings)
        taken = self._chunks.get(kind)
        if taken is None:
            step = _Chunk(self._model, memory, size, self._kernels, self._functions, readout)
            taken = self._chunks[kind] = self._recorded(step)
        step = taken.step
        memory.load(fork.parts)
        step.inputs.load([0] * count, positions, 0, count)
        step.embeddings[:count] = embeddings
        hidden = taken.take()
        fork.advance(count)
        fork.own().copy_(memory.tail[:, :, :, :count])
        if readout is not None:
            readout.extend(step.readout, count)
        return hidden[:count]

    def _own_memory(self) -> StepMemory:
        """What the steps read and write: the stream's memory, and a tail of their own."""
        stream = self._manager.memory
        if self._memory is None or self._memory.stream is not stream:
            self._chunks.clear()
            if self._tail is None:
                shape = self._model.kv_shape
                self._tail = shape.allocate(MAX_TOKENS + 1, stream.device, batch=1)[:, :, 0].zero_()
            self._memory = StepMemory(stream, self._tail)
        return self._memory

    # -- recording ---------------------------------------------------------------------------

    def _recorded(self, step: Step) -> _Taken[Step]:
        if not self._graph:
            return _Taken(step, step)
        device = self._model.device
        if device.type == "cuda":
            torch.cuda.empty_cache()  # as a capture does, so that what it takes can be told
        begin, before = time.perf_counter(), reserved_bytes(device)
        try:
            replay, self._pool = self._recorder(step, self._pool)
        except Exception:
            self._failed = "a step could not be recorded"
            raise
        self.captures += 1
        taken = reserved_bytes(device) - before
        _log.info("%s: recorded in %.1f s, %.0f MB", step, time.perf_counter() - begin, taken / 1e6)
        return _Taken(step, replay)

    def _check_weights(self) -> None:
        """A graph reads them where they were."""
        weights_at = next(self._model.parameters()).data_ptr()
        if self._weights_at != weights_at:
            self._visions.clear()
            self._chunks.clear()
            self._pool = None
            self._weights_at = weights_at


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
    """The language model over ``size`` embeddings, of which the last may be padding."""

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
        self.embeddings = model.embed_tokens([0] * size).clone()
        self.readout = (reads or Readout()).like()
        scaling = model.kv_shape.head_dim**-0.5
        self._attention = StepAttention(
            memory, self.inputs, kernels.attend, kernels.place, scaling, self.readout
        )

    def __str__(self) -> str:
        return f"the language model for {self.inputs.size} tokens of a chunk"

    @torch.inference_mode()
    def __call__(self) -> torch.Tensor:
        """Write keys and values to the memory's tail; hidden states ``[size, hidden]``."""
        self.readout.clear()
        with self._functions.running():
            return self._model.decode(
                self.embeddings.clone(), self.inputs.positions, self._attention, self._functions
            )


Step = TypeVar("Step", _Vision, _Chunk)


class _Taken(NamedTuple, Generic[Step]):
    """A step, and how to take it: as it is each time or, once recorded, by replaying that."""

    step: Step
    take: Callable[[], torch.Tensor]


def chunk_path(
    model: StreamModel, functions: LayerFunctions, manager: KVCacheManager, captured: bool
) -> ChunkPath:
    """The path of chunks; ``captured`` on a GPU where its kernels can be had."""
    if captured:
        loading: Verified[StepKernels] = Verified("chunks take longer")
        kernels = loading.attempt("", lambda: triton_kernels(model, model.device))
        if kernels is not None:
            return CapturedChunks(model, functions, manager, kernels, graph=True)
    return ChunkPath(model, functions)


def _items(readout: Readout) -> tuple[Any, ...]:
    return tuple(tuple(sorted(heads.items())) for heads in readout.heads)


def _differ(found: torch.Tensor, expected: torch.Tensor) -> str | None:
    return relative_difference(found, expected, MIN_WRONG)
