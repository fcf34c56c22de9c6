# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How the next tokens of several answers run through the model: in one pass.

A token of one answer is bound by reading the weights, which those of several answers share.
`DecodePath` is the plain way, on any device. `CapturedDecode` records one step for a token of each
of `LANES` answers as a CUDA graph, and leaves to each engine's own path what that does not serve.
"""

from __future__ import annotations

import contextlib
import logging
import time
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from stream_vlm_ros.engine.attention.base import Readout
from stream_vlm_ros.engine.attention.step import StepAttention, StepInputs, StepMemory
from stream_vlm_ros.engine.attention.verified import Verified, relative_difference
from stream_vlm_ros.engine.cache.requests import Fork
from stream_vlm_ros.engine.captured import (
    MIN_WRONG,
    PLAIN_STEP,
    Ready,
    Recording,
    SharedMemory,
    StepKernels,
    record_graph,
    reserved_bytes,
    triton_kernels,
    weights_at,
)
from stream_vlm_ros.engine.graph_runner import TextRunner, step_functions, text_positions
from stream_vlm_ros.engine.model.base import StreamModel
from stream_vlm_ros.errors import in_words

LANES = 8  # answers of a step; fewer cost as much

_log = logging.getLogger(__name__)


class Continuation:
    """Text that is to be appended to a fork, for the logits that follow it.

    Args:
        path: that of the engine by itself.
        start: where the fork's text begins.
        readout: reads of queries and keys before they are rotated.
        together: computes it with others'; None: it goes by itself.
    """

    def __init__(
        self,
        path: TextRunner,
        ids: list[int],
        start: Sequence[int],
        fork: Fork,
        readout: Readout | None = None,
        together: DecodePath | None = None,
    ):
        self.ids, self.fork, self.together = ids, fork, together
        self._path, self._start, self._readout = path, start, readout
        self._logits: torch.Tensor | None = None

    @property
    def positions(self) -> torch.Tensor:
        """``[3, len(ids)]``."""
        return text_positions(self._start, self.fork.length, len(self.ids))

    @property
    def is_computed(self) -> bool:
        """Whether its logits are there."""
        return self._logits is not None

    def begin(self) -> None:
        """Go ahead with it, if that costs the host no time."""
        if not self.is_computed:
            self._path.begin(self.ids, self._start, self.fork)

    def computed(self, logits: torch.Tensor) -> None:
        """It was computed with others': its logits ``[vocabulary]``, and the fork has its text."""
        self._logits = logits

    def run(self) -> torch.Tensor:
        """Logits ``[vocabulary]`` after the last token; they hold until the next call."""
        if self._logits is not None:
            return self._logits
        return self._path.append(self.ids, self._start, self.fork, self._readout)


class DecodePath:
    """The next tokens of several answers through the model, call by call.

    Attributes:
        answers: that are being written now.
    """

    def __init__(self, model: StreamModel):
        self._model = model
        self.answers = 0

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """While an answer is being written."""
        self.answers += 1
        try:
            yield
        finally:
            self.answers -= 1

    def warm_up(self) -> tuple[float, int]:
        """Make ready what the first answers would wait for; seconds and bytes that it took."""
        return 0.0, 0

    def compute_all(self, several: Sequence[Continuation]) -> None:
        """Compute those that can be computed together; the others are left as they are.

        Each is of one token, and of another fork. None is changed by what raises.
        """
        _computed(several, self._plainly(several))

    def _plainly(self, several: Sequence[Continuation]) -> torch.Tensor:
        """Logits ``[answers, vocabulary]``; each fork has its token."""
        lengths = [one.fork.length for one in several]
        embeddings = self._model.embed_tokens([one.ids[0] for one in several])
        positions = torch.cat([one.positions for one in several], dim=1)
        try:
            hidden = self._model.batch_forward(
                embeddings,
                positions,
                [(one.fork, None) for one in several],
                [1] * len(several),
                self._model.functions,
            )
            return self._model.logits(hidden)
        except BaseException:
            for one, length in zip(several, lengths, strict=True):
                one.fork.rewind(length)
            raise


class CapturedDecode(DecodePath):
    """A token of each of `LANES` answers in a step of fixed shape, recorded once as a CUDA graph.

    Lanes that no answer takes are padding. The first step is held against plain calls.

    Args:
        memory: where the engines have their memories and the tails of their questions.
        kernels: the step's own.
        graph: record and replay the step; otherwise it is run again each time.
        compiled: fuse what lies between the matrix products by ``torch.compile``.
        recorder: records a step; None: `record_graph`.

    Attributes:
        steps: steps taken so far.
        detours: how often a token was left to its engine's own path, by reason.
        refused: why no step is taken; empty as long as steps are.
    """

    def __init__(
        self,
        model: StreamModel,
        memory: SharedMemory,
        kernels: StepKernels = PLAIN_STEP,
        graph: bool = False,
        compiled: bool = False,
        recorder: Callable[[Any, Any], Recording] | None = None,
    ):
        super().__init__(model)
        self._memory, self._kernels = memory, kernels
        self._graph, self._compiled = graph, compiled
        self._recorder = recorder or record_graph
        # Being too large for the device is a reason not to take a graph, too.
        self._verified: Verified[Any] = Verified("answers are written by turns", ())
        self.steps = 0
        self.detours: Counter[str] = Counter()
        self._ready: Ready[_Step, torch.Tensor] | None = None
        self._read: list[weakref.ref[Fork]] = []  # what the step's memory is loaded for
        self._weights_at = 0

    @property
    def refused(self) -> dict[Any, str]:
        return self._verified.refused

    def warm_up(self) -> tuple[float, int]:
        if self._ready is not None:
            return 0.0, 0
        begin, before = time.perf_counter(), reserved_bytes(self._model.device)
        self._verified.attempt("", self._prepared)
        seconds = time.perf_counter() - begin
        taken = reserved_bytes(self._model.device) - before
        _log.info("a step of %d answers: ready in %.1f s, %.0f MB", LANES, seconds, taken / 1e6)
        return seconds, taken

    def compute_all(self, several: Sequence[Continuation]) -> None:
        ready = []
        for one in several:
            if obstacle := self.refused.get("") or self._memory.obstacle(one.fork):
                self.detours[obstacle] += 1
            else:
                ready.append(one)
        for first in range(0, len(ready), LANES):
            some = ready[first : first + LANES]
            if len(some) > 1 and not self.refused:
                self._compute(some)

    def _compute(self, several: Sequence[Continuation]) -> None:
        lengths = [one.fork.length for one in several]

        def plain() -> torch.Tensor:
            for one, length in zip(several, lengths, strict=True):
                one.fork.rewind(length)
            return self._plainly(several)

        logits = self._verified.run("", lambda: self._together(several), plain, _differ)
        _computed(several, logits)

    @torch.inference_mode()
    def _together(self, several: Sequence[Continuation]) -> torch.Tensor:
        """Logits ``[answers, vocabulary]``."""
        ready = self._prepared()
        step = ready.step
        forks = [one.fork for one in several]
        if [read() for read in self._read] != forks:
            self._read = []
            step.memory.load(*(fork.parts for fork in forks))
            self._read = [weakref.ref(fork) for fork in forks]
        step.inputs.load_tokens(
            [one.ids[0] for one in several],
            torch.cat([one.positions for one in several], dim=1),
            [self._memory.tail_slot(fork) for fork in forks],
            [fork.length for fork in forks],
        )
        self.steps += 1
        for fork in forks:
            fork.advance(1)
        return ready.take()[: len(several)].clone()  # the next step would overwrite them

    def _prepared(self) -> Ready[_Step, torch.Tensor]:
        now_at = weights_at(self._model)
        if self._ready is None or self._weights_at != now_at:
            self._read = []
            shared = self._memory
            memory = StepMemory(shared.memory, shared.tail, LANES, shared.longest)
            step = _Step(self._model, memory, self._kernels, self._compiled)
            take = self._recorder(step, None).replay if self._graph else step
            self._ready, self._weights_at = Ready(step, take), now_at
        return self._ready


class _Step:
    """The model over a token of each of `LANES` answers, as a function of tensors."""

    def __init__(
        self, model: StreamModel, memory: StepMemory, kernels: StepKernels, compiled: bool
    ):
        self._model, self.memory = model, memory
        self.device = model.device
        self.inputs = StepInputs(1, memory)
        scaling = model.kv_shape.head_dim**-0.5
        self._attention = StepAttention(memory, self.inputs, kernels.attend, kernels.place, scaling)
        self._functions = step_functions(model, compiled)

    @torch.inference_mode()
    def __call__(self) -> torch.Tensor:
        """Write keys and values to the tails; logits ``[LANES, vocabulary]`` in float32."""
        hidden = self._model.embed(self.inputs.ids)
        positions = self.inputs.positions
        hidden = self._model.decode(hidden, positions, self._attention, self._functions)
        return self._model.logits(hidden)


def decode_path(model: StreamModel, memory: SharedMemory, captured: bool) -> DecodePath:
    """The path of answers that are written together; ``captured`` where its kernels can be had."""
    if captured:
        loading: Verified[StepKernels] = Verified("answers are written by turns")
        kernels = loading.attempt("", lambda: triton_kernels(model, model.device))
        if kernels is not None:
            return CapturedDecode(model, memory, kernels, graph=True, compiled=True)
    return DecodePath(model)


def compute_together(several: Sequence[Continuation]) -> None:
    """Compute what follows in each of several answers, as far as that can be done together."""
    alike: dict[DecodePath, list[Continuation]] = {}
    for one in several:
        if one.together is not None and one.fork.alive and not one.is_computed:
            alike.setdefault(one.together, []).append(one)
    for path, some in alike.items():
        if len(some) > 1:
            try:
                path.compute_all(some)
            except Exception as fault:  # one of them may be at fault: then each goes by itself
                _log.warning("%d answers go on one by one: %s", len(some), in_words(fault))


def _computed(several: Sequence[Continuation], logits: torch.Tensor) -> None:
    for one, row in zip(several, logits, strict=True):
        one.computed(row)


def _differ(found: torch.Tensor, expected: torch.Tensor) -> str | None:
    return relative_difference(found, expected, MIN_WRONG)
