# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How text runs through the model, in prefill and decode: call by call, or in captured steps.

`TextRunner` is the plain way, on any device. `GraphRunner` takes steps of a few sizes, which a CUDA
graph replays, and comes back to the plain way where a step cannot serve.
"""

from __future__ import annotations

import functools
import logging
import time
import weakref
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import accumulate, takewhile
from typing import Any, NamedTuple, TypeAlias

import numpy as np
import torch

from stream_vlm_ros.engine.attention.base import KVPart, Readout
from stream_vlm_ros.engine.attention.step import StepAttention, StepInputs, StepMemory
from stream_vlm_ros.engine.attention.verified import Verified, relative_difference
from stream_vlm_ros.engine.cache.manager import KVCacheManager
from stream_vlm_ros.engine.cache.mrope import Vec
from stream_vlm_ros.engine.cache.requests import Fork
from stream_vlm_ros.engine.captured import (
    MIN_WRONG,
    PLAIN_STEP,
    OwnMemory,
    Ready,
    Recording,
    SharedMemory,
    StepKernels,
    record_graph,
    reserved_bytes,
    triton_kernels,
    weights_at,
)
from stream_vlm_ros.engine.model.base import LayerFunctions, StreamModel
from stream_vlm_ros.errors import InvalidParameterError

QUESTION_PATHS = ("auto", "eager", "static", "graph")

# Tokens of a step: one to decode, the others to prefill, padded to the next.
SIZES = (1, 16, 32, 64, 128, 256)

_log = logging.getLogger(__name__)


class TextRunner:
    """Text through the model, appended to a fork.

    Attributes:
        name: "eager", "static" or "graph".
        reason: why it is not the one that was asked for, "" if it is.
    """

    name = "eager"

    def __init__(self, model: StreamModel, reason: str = ""):
        self._model, self.reason = model, reason

    def warm_up(self, manager: KVCacheManager | None = None) -> dict[str, Any]:
        """Make ready, before the first question, what it would have to wait for.

        Args:
            manager: of an engine, whose memory may be tried on; needed where several share this.

        Returns:
            ``path`` that questions take, ``reason`` if that is not the one asked for, ``seconds``
            taken, ``bytes`` of the device's memory taken for good.
        """
        return {"path": self.name, "reason": self.reason, "seconds": 0.0, "bytes": 0}

    def append(
        self, ids: list[int], start: Sequence[int], fork: Fork, readout: Readout | None = None
    ) -> torch.Tensor:
        """Append text that begins at ``start`` to a fork, behind what of it is there.

        ``readout`` reads of its queries and keys before they are rotated.

        Returns the logits ``[vocabulary]`` after its last token; they hold until the next call.
        """
        embeddings = self._model.embed_tokens(ids)[None]
        positions = text_positions(start, fork.length, len(ids))
        hidden = self._model.stream_forward(embeddings, positions, fork, readout=readout)
        return self._model.logits(hidden[0, -1])

    def begin(self, ids: list[int] | torch.Tensor, start: Sequence[int], fork: Fork) -> bool:
        """Go ahead with what `append` will be called for next, if that costs the host no time;
        whether it was begun.

        ``ids`` may be a tensor ``[1]`` of the device that the host has not read yet. Then this is
        to be called again once it has, if `append` is to find what was begun.
        """
        return False

    def score(
        self,
        prompt: list[int],
        texts: Sequence[list[int]],
        end: int,
        start: Sequence[int],
        fork: Fork,
        readout: Readout | None = None,
    ) -> list[float]:
        """Append a prompt; log-probability of each text and then ``end`` behind it.

        ``readout`` reads of the prompt alone.
        """
        first = self.append(prompt, start, fork, readout)
        longest = max(map(len, texts))
        # Padded on the right: no real token ever attends to what stands after it.
        ids = torch.tensor([text + [end] * (longest - len(text)) for text in texts])
        with fork.branch(longest, batch=len(texts)) as branch:
            positions = text_positions(start, fork.length, longest)
            hidden = self._model.stream_forward(self._model.embed_tokens(ids), positions, branch)
            logits = self._model.logits(hidden)  # [texts, longest, vocabulary]
        before = first.expand(len(texts), 1, -1)
        log_probs = torch.cat([before, logits], dim=1).log_softmax(-1)
        return [
            float(log_probs[row, range(len(text) + 1), [*text, end]].double().sum())
            for row, text in enumerate(texts)
        ]


StepResult = tuple[torch.Tensor, torch.Tensor]  # hidden states and logits, as `Step` gives them
_ReadyStep: TypeAlias = "Ready[Step, StepResult]"


class GraphRunner(TextRunner):
    """Text in steps of fixed shape, each recorded once as a CUDA graph.

    One question of an engine at a time takes it: the one that has the question's tail. Another that
    is asked meanwhile, or whose memory has more parts than a step has room for, goes the plain way.

    Args:
        memory: an engine's, which the questions read; or what several engines share.
        kernels: the steps' own.
        graph: record and replay the steps; otherwise they are run again each time.
        compiled: fuse what lies between the matrix products by ``torch.compile``.
        reads: which heads the steps read before they are rotated; text that asks for others goes
            the plain way.
        recorder: records a step, given the pool of those recorded before, None at first; what it
            raises is the reason why there are no graphs. None: `record_graph`.

    Attributes:
        captures: graphs recorded so far: one a size, however the memory grows.
        steps: steps taken so far.
        detours: how often text went the plain way, by reason.
        fused: `verified.Verified` of torch.compile for steps.
        joined: the same of the joined kernels.
    """

    def __init__(
        self,
        model: StreamModel,
        memory: KVCacheManager | SharedMemory,
        kernels: StepKernels = PLAIN_STEP,
        graph: bool = False,
        compiled: bool = False,
        reads: Readout | None = None,
        recorder: Callable[[Step, Any], Recording] | None = None,
    ):
        super().__init__(model)
        self._recorder = recorder or record_graph
        self._reads = reads
        self.name = "graph" if graph else "static"
        self._lies_in = memory if isinstance(memory, SharedMemory) else OwnMemory(memory)
        self._kernels = kernels
        self._graph, self._compiled = graph, compiled
        # Being too large for the device is a reason not to take a graph, too.
        self.fused: Verified[Any] = Verified("questions are answered without torch.compile", ())
        self.joined: Verified[Any] = Verified("a further token takes longer", ())
        self._graphs: Verified[Any] = Verified(
            "questions are answered more slowly: no CUDA graph serves", ()
        )
        self.captures = self.steps = 0
        self.detours: Counter[str] = Counter()
        self._memory: StepMemory | None = None
        self._reader: weakref.ref[Fork] | None = None  # whose parts the steps read now
        self._weights_at = 0
        self._ready: dict[int, _ReadyStep] = {}
        self._pool: Any = None  # of the graphs' memory
        self._begun: weakref.WeakKeyDictionary[Fork, _Begun] = weakref.WeakKeyDictionary()
        self._is_warm = False
        if self._lies_in.manager is not None:
            self._lies_in.manager.follow(self)

    @torch.inference_mode()
    def warm_up(self, manager: KVCacheManager | None = None) -> dict[str, Any]:
        own = self._lies_in.manager
        manager = own or manager
        if manager is None or (own is None and self._is_warm):  # the first engine's has served all
            return super().warm_up()
        begin, before = time.perf_counter(), reserved_bytes(self._model.device)
        with manager.question_fork(0, 0) as fork:
            for size in reversed(SIZES):  # the smaller ones share the largest one's memory
                if not self._takes(fork, [size]):
                    break
            else:
                self._compare(fork, manager)
                self._is_warm = not self.reason
        seconds = time.perf_counter() - begin
        taken = reserved_bytes(self._model.device) - before
        _log.info("questions take the path '%s', warmed up in %.1f s", self.name, seconds)
        return {**super().warm_up(), "seconds": seconds, "bytes": taken}

    @torch.inference_mode()
    def begin(self, ids: list[int] | torch.Tensor, start: Sequence[int], fork: Fork) -> bool:
        if not self._graph or self.reason or not fork.has_question_tail:
            return False  # the device does not go on alone
        begun = self._begun.get(fork)
        if isinstance(ids, list):
            if begun is not None and begun.ids is None:
                self._begun[fork] = begun._replace(ids=ids)
            elif begun is None or begun.ids != ids or begun.length != fork.length:
                logits = self._kept(self.append(ids, start, fork))
                self._begun[fork] = _Begun(ids, logits, fork.length)
            return True
        if 1 not in self._ready or not self._takes(fork, [1]):
            return False  # nothing is to be recorded before a first token
        positions = text_positions(start, fork.length, 1)
        _, logits = self._step([0], positions, fork, 1, given=ids)
        self._begun[fork] = _Begun(None, self._kept(logits), fork.length)
        return True

    def _kept(self, logits: torch.Tensor) -> torch.Tensor:
        """They hold while another engine's question takes the steps."""
        return logits.clone() if self._lies_in.manager is None else logits

    @torch.inference_mode()
    def append(
        self, ids: list[int], start: Sequence[int], fork: Fork, readout: Readout | None = None
    ) -> torch.Tensor:
        begun = self._begun.pop(fork, None)
        if begun is not None and begun.ids == ids and begun.length == fork.length:
            return begun.logits  # it was not taken back meanwhile
        logits = None
        for piece in _pieces(ids):
            if not self._takes(fork, [_size_for(len(piece))], readout):
                logits = super().append(piece, start, fork, readout)
                continue
            positions = text_positions(start, fork.length, len(piece))
            _, logits = self._step(piece, positions, fork, len(piece))
            if readout is not None:
                readout.extend(self._ready[_size_for(len(piece))].step.readout, len(piece))
        assert logits is not None
        return logits

    @torch.inference_mode()
    def score(
        self,
        prompt: list[int],
        texts: Sequence[list[int]],
        end: int,
        start: Sequence[int],
        fork: Fork,
        readout: Readout | None = None,
    ) -> list[float]:
        # The prompt's last tokens and all texts behind it side by side, as one step: each token
        # sees the prompt and, of the texts, its own up to itself.
        *before, shared = _pieces(prompt)
        for piece in before:
            self.append(piece, start, fork, readout)
        room = fork.capacity - fork.length - len(shared)
        longest = max(map(len, texts))
        ready = self._takes(fork, SIZES, readout)
        if not ready or longest > min(SIZES[-1], room):
            return super().score(shared, texts, end, start, fork, readout)
        first = None  # log-probabilities of what follows the prompt
        scores: list[float] = []
        while len(scores) < len(texts):
            together = _fitting(texts[len(scores) :], min(SIZES[-1] - len(shared), room))
            behind = text_positions(start, fork.length + len(shared), longest)
            ids, begins = list(shared), [0] * len(shared)
            positions = [text_positions(start, fork.length, len(shared))]
            for text in together:
                begins += [len(ids)] * len(text)
                ids += text
                positions.append(behind[:, : len(text)])
            hidden, logits = self._step(ids, torch.cat(positions, 1), fork, len(shared), begins)
            if first is None:
                first = logits.log_softmax(-1)
                if readout is not None:
                    step = self._ready[_size_for(len(ids))].step
                    readout.extend(step.readout, len(shared))
            if together:
                after = self._model.logits(hidden[len(shared) : len(ids)])
                scores += _log_probabilities(first, after, together, end)
            shared = []
        return scores

    # -- inside ------------------------------------------------------------------------------

    def _takes(self, fork: Fork, sizes: Sequence[int], readout: Readout | None = None) -> bool:
        """Whether steps can serve this fork; then those of ``sizes`` are ready."""
        obstacle = self.reason or self._lies_in.obstacle(fork)
        if not obstacle and readout and (not self._reads or readout.heads != self._reads.heads):
            obstacle = "heads are read that the steps do not read"
        if not obstacle:
            self._read(fork)
            obstacle = self._prepare(sizes)
        if obstacle:
            if not self.detours[obstacle] and not self.reason:  # that was said
                _log.warning("questions are answered more slowly: %s", obstacle)
            self.detours[obstacle] += 1
        return not obstacle

    def _read(self, fork: Fork) -> None:
        """Let the steps read the fork's parts. (A fork's parts stay as they were made.)"""
        stream = self._lies_in.stream(fork)
        if self._memory is None or self._memory.stream is not stream:  # the first, or it grew
            memory = StepMemory(stream, self._lies_in.tail, longest=self._lies_in.longest)
            self._reader = None
            self._forget_steps()  # first: once the memory is another, nobody asks about them
            self._memory = memory
        if self._reader is None or self._reader() is not fork:
            if self._weights_at != (now_at := weights_at(self._model)):
                self._forget_steps()
                self._weights_at = now_at
            self._reader = None  # until all of them are loaded
            self._memory.load(fork.parts)
            self._reader = weakref.ref(fork)

    def memory_replaced(self) -> None:
        """Let go of the old memory, unless an answer is still read from it."""
        reader = None if self._reader is None else self._reader()
        if reader is None or not reader.alive:
            self._memory = self._reader = None
            self._forget_steps()

    def _compare(self, fork: Fork, manager: KVCacheManager) -> None:
        """Hold steps against plain calls, over noise in place of a memory that is still empty.

        What a graph, a kernel or a compiler gets wrong on a machine that nobody tried must not
        become an answer.
        """
        memory, room = manager.memory, manager.max_tail_tokens
        if not self._graph or manager.get_seq_length() or room < 2:
            return
        size = min(400, memory.shape[3])
        memory[:, :, :, :size].normal_()
        offset = self._model.rotary.offset(Vec(5, 3, 1), memory.device)
        fork.parts = [
            KVPart(memory, slice(0, size // 3), offset),
            KVPart(memory, slice(size // 3, size), None),
        ]
        self._reader = None  # of other parts
        ids = list(range(min(20, room - 1)))  # any tokens
        with manager.fork(len(ids) + 1) as other:
            other.parts = fork.parts
            for said in (ids, [1]):
                plain = super().append(said, (size,) * 3, other)
                while why := relative_difference(
                    self.append(said, (size,) * 3, fork), plain, MIN_WRONG
                ):
                    why = f"{why}, compared with plain calls"
                    if not self._joins(len(said)):
                        self._graphs.refuse("", why)
                        self._give_up()
                        return
                    self.joined.refuse("", why)
                    del self._ready[1]
                    fork.advance(-1)

    def _give_up(self) -> None:
        self.name, self.reason = "eager", f"no CUDA graph serves: {self._graphs.refused['']}"
        self._forget_steps()

    def _forget_steps(self) -> None:
        self._ready.clear()
        self._pool = None  # it ends with the last of its graphs

    def _prepare(self, sizes: Sequence[int]) -> str:
        """Make steps of those sizes ready, together: what fails at one may take back the others.

        "" or why there are none, which is found out once.
        """
        while not self.reason and (missing := [n for n in sizes if n not in self._ready]):
            self._prepare_one(missing[0])
        return self.reason

    def _prepare_one(self, size: int) -> None:
        if not self._graph:
            self._ready[size] = self._make(size)
            return
        joins, fuses = self._joins(size), self._compiled and not self.fused.refused
        guard = self.joined if joins else self.fused if fuses else self._graphs
        ready = guard.attempt("", lambda: self._record(size))
        if ready is not None:
            self._ready[size] = ready
        elif joins:
            pass  # the next attempt is without
        elif fuses:
            self._forget_steps()
        else:
            self._give_up()

    def _joins(self, size: int) -> bool:
        """Whether a step of that size is made of joined kernels."""
        return size == 1 and self._kernels.joined is not None and not self.joined.refused

    def _make(self, size: int) -> _ReadyStep:
        assert self._memory is not None
        inputs, fuses = StepInputs(size, self._memory), self._compiled and not self.fused.refused
        kernels = self._kernels if self._joins(size) else self._kernels._replace(joined=None)
        step = Step(self._model, self._memory, inputs, kernels, fuses, self._reads)
        return Ready(step, step)

    def _record(self, size: int) -> _ReadyStep:
        step = self._make(size).step
        replay, self._pool = self._recorder(step, self._pool)
        self.captures += 1
        return Ready(step, replay)

    def _step(
        self,
        ids: Sequence[int],
        positions: torch.Tensor,
        fork: Fork,
        kept: int,
        begins: Sequence[int] = (),
        given: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take a step; the first ``kept`` of its tokens stay in the fork. See `StepInputs.load`.

        ``given``: tokens of the device, in place of ``ids``.
        """
        ready = self._ready[_size_for(len(ids))]
        first = self._lies_in.tail_slot(fork)
        ready.step.inputs.load(ids, positions, fork.length, kept, begins, first)
        if given is not None:
            ready.step.inputs.ids.copy_(given)
        self.steps += 1
        fork.advance(kept)
        return ready.take()


class Step:
    """The model over ``n`` tokens, of which the last may be padding, as a function of tensors.

    Args:
        memory: what it reads and writes.
        inputs: what it is given.
        kernels: its own.
        compiled: fuse what lies between the matrix products by ``torch.compile``.
        reads: which heads it reads before they are rotated.

    Attributes:
        joined: it is made of joined kernels.
        readout: what was read of the last step's tokens, padding included; recorded in a graph, it
            is read again at each replay.
    """

    def __init__(
        self,
        model: StreamModel,
        memory: StepMemory,
        inputs: StepInputs,
        kernels: StepKernels = PLAIN_STEP,
        compiled: bool = False,
        reads: Readout | None = None,
    ):
        self.readout = (reads or Readout()).like()
        self._model, self.inputs, self.compiled = model, inputs, compiled
        attend, place, matvec, joined = kernels
        self.joined = joined is not None and inputs.tokens == 1
        if joined is not None and self.joined:
            attend, place = joined.attend, joined.place
        scaling = model.kv_shape.head_dim**-0.5
        self._attention = StepAttention(
            memory, inputs, attend, place, scaling, self.readout if reads else None
        )
        functions = step_functions(model, compiled)
        if joined is not None and self.joined:
            functions = joined.functions(functions)
        if inputs.size == 1 and matvec is not None:
            functions = functions._replace(linear=matvec)
        self._functions = functions

    @property
    def device(self) -> torch.device:
        return self.inputs.ids.device

    @torch.inference_mode()
    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Write the tokens' keys and values to the tail; no other trace.

        Returns:
            Hidden states after the last norm, ``[n, hidden]``, and the logits ``[vocabulary]`` of
            the token that was asked for, in float32.
        """
        self.readout.clear()
        hidden = self._model.embed(self.inputs.ids)
        positions = self.inputs.positions
        hidden = self._model.decode(hidden, positions, self._attention, self._functions)
        return hidden, self._model.logits(hidden.index_select(0, self.inputs.last))[0]


def step_functions(model: StreamModel, compiled: bool) -> LayerFunctions:
    """What a step's layers compute between two attentions; ``compiled``: by ``torch.compile``."""
    functions = model.functions._replace(split_rows=SIZES[-1] + 1)  # whole products alone
    if not compiled:
        return functions
    fuse = functools.partial(torch.compile, fullgraph=True)
    return functions._replace(norm=fuse(functions.norm), finish=fuse(functions.finish))


class _Begun(NamedTuple):
    """What was appended ahead of being asked for.

    Attributes:
        ids: None until the host knows them.
        length: of the fork with it.
    """

    ids: list[int] | None
    logits: torch.Tensor
    length: int


def text_runner(
    wanted: str,
    model: StreamModel,
    memory: KVCacheManager | SharedMemory,
    device: torch.device,
    reads: Readout | None = None,
) -> TextRunner:
    """The runner of that name of `QUESTION_PATHS`; ``auto`` is the fastest that the device has.

    ``reads``: see `GraphRunner`.

    Raises InvalidParameterError for another name, and for ``graph`` without a GPU.
    """
    if wanted not in QUESTION_PATHS:
        raise InvalidParameterError(
            f"question_path '{wanted}' is unknown: use one of {', '.join(QUESTION_PATHS)}"
        )
    on_gpu = device.type == "cuda"
    if wanted == "graph" and not on_gpu:
        raise InvalidParameterError(
            f"question_path 'graph' needs a CUDA GPU, and the engine is on {device}: use auto"
        )
    if wanted == "eager" or (wanted == "auto" and not on_gpu):
        return TextRunner(model)
    if not on_gpu:
        return GraphRunner(model, memory, reads=reads)
    loading: Verified[StepKernels] = Verified("questions are answered more slowly")
    kernels = loading.attempt("", lambda: triton_kernels(model, device))
    if kernels is None:
        return TextRunner(model, loading.refused[""])
    graph = wanted != "static"
    return GraphRunner(model, memory, kernels, graph, compiled=graph, reads=reads)


def text_positions(start: Sequence[int], done: int, count: int) -> torch.Tensor:
    """``[3, count]``: the text tokens after ``done`` others that began at ``start``."""
    return torch.from_numpy(np.add.outer(start, np.arange(done, done + count)))


def _pieces(ids: list[int]) -> list[list[int]]:
    """``ids`` in pieces of the largest step; the last may be shorter."""
    return [ids[at : at + SIZES[-1]] for at in range(0, len(ids), SIZES[-1])]


def _size_for(tokens: int) -> int:
    return next(size for size in SIZES if size >= tokens)


def _fitting(texts: Sequence[list[int]], room: int) -> Sequence[list[int]]:
    """The first of ``texts``, as many as fit into so many tokens."""
    taken = takewhile(lambda tokens: tokens <= room, accumulate(map(len, texts)))
    return texts[: len(list(taken))]


def _log_probabilities(
    first: torch.Tensor, after: torch.Tensor, texts: Sequence[list[int]], end: int
) -> list[float]:
    """Log-probability of each text and then ``end``.

    Args:
        first: log-probabilities ``[vocabulary]`` of a text's first token.
        after: logits ``[tokens, vocabulary]`` behind each token of the texts, laid end to end.
    """
    device = after.device
    follows = torch.tensor([token for text in texts for token in (*text[1:], end)], device=device)
    lengths = torch.tensor([len(text) for text in texts], device=device)
    owner = torch.arange(len(texts), device=device).repeat_interleave(
        lengths, output_size=len(after)
    )
    chosen = after.gather(1, follows[:, None])[:, 0].double() - after.logsumexp(-1).double()
    begins = torch.tensor([text[0] for text in texts], device=device)
    return first[begins].double().index_add(0, owner, chosen).tolist()
