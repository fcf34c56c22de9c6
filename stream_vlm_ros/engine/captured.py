# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What captured steps have in common: what they are made of, what they read, how one is recorded.

A step is the model over a fixed number of tokens, as a function of tensors that stay where they are
(see `attention.step`), so that a CUDA graph can replay it. `graph_runner` has those of a question,
`decode_path` those of the next tokens of several answers, `chunk_path` those of chunks.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import torch

from stream_vlm_ros.engine.attention.base import KVPart
from stream_vlm_ros.engine.attention.flash3 import fastest_step_attention
from stream_vlm_ros.engine.attention.step import (
    MAX_PARTS,
    AttendStep,
    PlaceStep,
    attend_step,
    place_step,
)
from stream_vlm_ros.engine.cache.manager import KVCacheManager
from stream_vlm_ros.engine.cache.requests import Fork
from stream_vlm_ros.engine.model.base import LayerFunctions, Linear, StreamModel
from stream_vlm_ros.engine.model.compiled import recompiling
from stream_vlm_ros.errors import InvalidParameterError

# Kernels that round differently are some 1 % apart at the end of a large model in bfloat16; a wrong
# one is as far from the other as answers to different questions, more than 100 %.
MIN_WRONG = 0.2

ELSEWHERE = "the memory lies elsewhere"

FIRST_CALLS = 2  # of a step, before it is captured

Step = TypeVar("Step")
Result = TypeVar("Result")

# -- what they are made of -----------------------------------------------------------------------


class Joined(NamedTuple):
    """What steps of one token are made of, where kernels that do the work of several serve.

    Attributes:
        functions: makes the layers' functions of the plain ones.
        attend, place: see `StepKernels`.
    """

    functions: Callable[[LayerFunctions], LayerFunctions]
    attend: AttendStep = attend_step
    place: PlaceStep = place_step


class StepKernels(NamedTuple):
    """What steps are made of.

    Attributes:
        attend: a step's attention.
        place: rotates its queries and keys, and writes to the tail.
        matvec: takes the matrix products of steps of one token; None: as all others.
        joined: those of steps of one token, if they have others.
    """

    attend: AttendStep = attend_step
    place: PlaceStep = place_step
    matvec: Linear | None = None
    joined: Joined | None = None


PLAIN_STEP = StepKernels()


def triton_kernels(model: StreamModel, device: torch.device) -> StepKernels:
    """The fastest for this model and GPU; raises where they cannot be had."""
    size = model.kv_shape.head_dim
    if size < 16 or size & (size - 1):
        raise InvalidParameterError(
            f"unsupported head_dim {size}: Triton needs a power of two >= 16"
        )
    from stream_vlm_ros.engine.attention.triton_decode import (
        matvec,
        overlaps,
        place,
        split_attention,
    )
    from stream_vlm_ros.engine.model.triton_layer import join

    found = torch.cuda.get_device_properties(device)
    shared = getattr(found, "shared_memory_per_block_optin", 0)
    split = split_attention(found.multi_processor_count, shared)
    text = model.config.text_config
    heads = (text.num_attention_heads, model.kv_shape.kv_heads, size)
    attend = fastest_step_attention(split, device, model.dtype, heads)
    if not overlaps(device) or model.dtype == torch.float32:
        return StepKernels(attend, place, matvec)
    overlapped = Joined(
        functools.partial(join, overlapped=True),
        split_attention(found.multi_processor_count, shared, overlapped=True),
        functools.partial(place, overlapped=True),
    )
    return StepKernels(attend, place, matvec, overlapped)


# -- what they read --------------------------------------------------------------------------------


def unreadable(parts: Sequence[KVPart], holds: Callable[[torch.Tensor], bool]) -> str:
    """Why no step can read these parts of a memory, "" if one can.

    Args:
        holds: whether a tensor lies in the memory that the step reads.
    """
    if len(parts) > MAX_PARTS:
        return f"the memory is read in more than {MAX_PARTS} parts"
    return "" if all(holds(part.memory) for part in parts) else ELSEWHERE


def unservable(fork: Fork, holds: Callable[[torch.Tensor], bool]) -> str:
    """Why no step can go on with a question's fork, "" if one can. ``holds``: see `unreadable`."""
    if not fork.has_question_tail:
        return "another answer is being written from its memory"
    return unreadable(fork.parts, holds)


class OwnMemory:
    """Where the steps of one engine's questions read and write: its memory and its tail."""

    longest: int | None = None

    def __init__(self, manager: KVCacheManager):
        self.manager = manager

    @property
    def tail(self) -> torch.Tensor:
        """``[layers, 2, kv_heads, slots, head_dim]``"""
        return self.manager.question_tail

    def stream(self, fork: Fork) -> torch.Tensor:
        """What this fork reads, ``[layers, 2, kv_heads, slots, head_dim]``."""
        return fork.parts[0].memory if fork.parts else self.manager.memory

    def tail_slot(self, fork: Fork) -> int:
        """Where in the tail its own tokens begin."""
        return 0

    def obstacle(self, fork: Fork) -> str:
        """Why no step can go on with it, "" if one can."""
        stream = self.stream(fork)
        return unservable(fork, lambda memory: memory is stream)


class SharedMemory:
    """The same for several engines, whose memories and tails lie side by side.

    Args:
        room, tails: where they do.
    """

    manager = None  # it is no single engine's

    def __init__(self, room: TakenInParts, tails: TakenInParts):
        self._room, self._tails, self.longest = room, tails, room.longest

    @property
    def tail(self) -> torch.Tensor:
        return self._tails.memory

    @property
    def memory(self) -> torch.Tensor:
        """Of all of them, ``[layers, 2, kv_heads, slots, head_dim]``."""
        return self._room.memory

    def stream(self, fork: Fork) -> torch.Tensor:
        return self.memory

    def tail_slot(self, fork: Fork) -> int:
        return self._tails.slot_of(fork.tail)

    def obstacle(self, fork: Fork) -> str:
        if obstacle := unservable(fork, self._room.holds):
            return obstacle
        return "" if self._tails.holds(fork.tail) else ELSEWHERE


class TakenInParts(Protocol):
    """A tensor of whose slots several memories take some each (`together.Room`)."""

    longest: int

    @property
    def memory(self) -> torch.Tensor: ...

    def holds(self, memory: torch.Tensor) -> bool: ...

    def slot_of(self, memory: torch.Tensor) -> int: ...


# -- how they are recorded ------------------------------------------------------------------------


class Recording(NamedTuple):
    """A step that was recorded: how to take it again, and the pool that its memory is from."""

    replay: Callable[[], Any]
    pool: Any


@dataclass(frozen=True)  # Python 3.10 has no named tuple that is generic
class Ready(Generic[Step, Result]):
    """A step, and how to take it: as it is each time or, once recorded, by replaying that."""

    step: Step
    take: Callable[[], Result]


class OnDevice(Protocol):
    """A function of tensors that lie on a device, and of nothing else."""

    @property
    def device(self) -> torch.device: ...

    def __call__(self) -> Any: ...


def record_graph(step: OnDevice, pool: Any) -> Recording:
    """Record a step as a CUDA graph whose memory is shared with those of the same ``pool``.

    The inputs of a step are all padding, which leaves no trace but in the slot for that.
    """
    for _ in range(FIRST_CALLS):
        call_aside(step)
    return capture_graph(step, pool)


def call_aside(step: OnDevice) -> None:
    """One of the `FIRST_CALLS` of a step, until the device has finished it: what is compiled,
    loaded or allocated then cannot be in a capture. Those of a step like it serve as well."""
    if step.device.type != "cuda":
        step()
        return
    with torch.cuda.device(step.device), recompiling():
        usual, aside = torch.cuda.current_stream(), _aside(step.device)
        try:
            aside.wait_stream(usual)
            with torch.cuda.stream(aside):
                step()
            aside.synchronize()
        finally:
            torch.cuda.set_stream(usual)
            usual.wait_stream(aside)  # which, where it failed, may still read what is given back


def capture_graph(step: OnDevice, pool: Any) -> Recording:
    """`record_graph` of a step that has had its `FIRST_CALLS`."""
    with torch.cuda.device(step.device), recompiling():
        usual, graph = torch.cuda.current_stream(), torch.cuda.CUDAGraph()
        try:
            # Other threads may go on using the device meanwhile.
            with torch.cuda.graph(graph, pool, capture_error_mode="thread_local"):
                outputs = step()
        except BaseException:
            _end_recording(graph)
            torch.cuda.set_stream(usual)
            raise

    def replay() -> Any:
        graph.replay()
        return outputs

    return Recording(replay, graph.pool())


@functools.cache
def _aside(device: torch.device) -> Any:
    """A device's stream for a step's first calls, always the same: for each that multiplies
    matrices cuBLAS keeps 32 MiB for good."""
    return torch.cuda.Stream(device)


def _end_recording(graph: torch.cuda.CUDAGraph) -> None:
    """End it where its own context did not: begun in vain, no longer valid, or aborted on its way.

    That context then leaves its stream current, too.
    """
    if torch.cuda.is_current_stream_capturing():
        with contextlib.suppress(RuntimeError):  # ended all the same: what it recorded is not valid
            graph.capture_end()


def weights_at(model: StreamModel) -> int:
    """Where a model's weights lie: a graph reads them where they were when it was recorded."""
    return next(model.parameters()).data_ptr()


def reserved_bytes(device: torch.device) -> int:
    """Bytes of the device's memory that torch has taken, in use or not."""
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0
