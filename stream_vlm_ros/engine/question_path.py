"""How a question's text runs through the model: call by call, or as steps of fixed shape.

`TextPath` is the plain way, on any device. `StaticTextPath` takes steps of a few sizes, which a
CUDA graph replays, and comes back to the plain way where a step cannot serve.
"""

from __future__ import annotations

import logging
import time
import weakref
from collections import Counter
from collections.abc import Sequence
from itertools import accumulate, takewhile
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn import functional

from .cache import KVCacheManager
from .compiled import recompiling
from .errors import InvalidParameterError, in_words
from .forks import Fork, Part
from .model import StreamQwenModel
from .packed import Linear
from .positions import Vec
from .static_step import (
    MOST_PARTS,
    Place,
    Reading,
    StaticAttention,
    StaticStep,
    StepInputs,
    attend_step,
    place_step,
)

QUESTION_PATHS = ("auto", "eager", "static", "graph")

# Tokens of a step: one to write an answer, the others for prompts, padded to the next.
SIZES = (1, 16, 32, 64, 128, 256)

# Kernels that round differently are some 1 % apart at the end of a large model in bfloat16; a wrong
# one is as far from the other as answers to different questions, more than 100 %.
_LEAST_WRONG = 0.2

_log = logging.getLogger(__name__)


class TextPath:
    """Text through the model, appended to a fork.

    Attributes:
        name: "eager", "static" or "graph".
        reason: why it is not the one that was asked for, "" if it is.
    """

    name = "eager"

    def __init__(self, model: StreamQwenModel, reason: str = ""):
        self._model, self.reason = model, reason

    def warm_up(self) -> dict[str, Any]:
        """Make ready, before the first question, what it would have to wait for.

        Returns:
            ``path`` that questions take, ``reason`` if that is not the one asked for, ``seconds``
            taken, ``bytes`` of the device's memory taken for good.
        """
        return {"path": self.name, "reason": self.reason, "seconds": 0.0, "bytes": 0}

    def append(self, ids: list[int], start: Sequence[int], fork: Fork) -> torch.Tensor:
        """Append text that begins at ``start`` to a fork, behind what of it is there.

        Returns the logits ``[vocabulary]`` after its last token; they hold until the next call.
        """
        embeddings = self._model.embed_tokens(ids)[None]
        positions = text_positions(start, fork.length, len(ids))
        hidden = self._model.stream_forward(embeddings, positions, fork)
        return self._model.logits(hidden[0, -1])

    def begin(self, ids: list[int], start: Sequence[int], fork: Fork) -> None:
        """Go ahead with what `append` will be called for next, if that costs the host no time."""

    def score(
        self,
        prompt: list[int],
        texts: Sequence[list[int]],
        end: int,
        start: Sequence[int],
        fork: Fork,
    ) -> list[float]:
        """Append a prompt; log-probability of each text and then ``end`` behind it."""
        first = self.append(prompt, start, fork)
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


class StaticTextPath(TextPath):
    """Text in steps of fixed shape, each recorded once as a CUDA graph.

    One question at a time takes it: the one that has the question's tail. Another that is asked
    meanwhile, or whose memory has more parts than a step has room for, goes the plain way.

    Args:
        manager: whose memory the questions read.
        attention: the steps' attention.
        graph: record and replay the steps; otherwise they are run anew each time.
        compiled: fuse what lies between the matrix products by ``torch.compile``.
        matvec: takes the matrix products of steps of one token.
        place: rotates a step's queries and keys, and writes to the tail.

    Attributes:
        captures: graphs recorded so far: one a size, however the memory grows.
        steps: steps taken so far.
        detours: how often text went the plain way, by reason.
    """

    def __init__(
        self,
        model: StreamQwenModel,
        manager: KVCacheManager,
        attention: StaticAttention,
        graph: bool = False,
        compiled: bool = False,
        matvec: Linear = functional.linear,
        place: Place = place_step,
    ):
        super().__init__(model)
        self.name = "graph" if graph else "static"
        self._manager, self._attention = manager, attention
        self._graph, self._compiled = graph, compiled
        self._matvec, self._place = matvec, place
        self.captures = self.steps = 0
        self.detours: Counter[str] = Counter()
        self._reading: Reading | None = None
        self._reader: weakref.ref[Fork] | None = None  # whose parts the steps read now
        layers = model.model.language_model.layers
        # What has been recorded reads the weights where they were: some stand for all.
        self._some_weights = layers[0].self_attn.q_proj, layers[-1].mlp.down_proj, model.lm_head
        self._weights_at: list[int] = []
        self._ready: dict[int, _Ready] = {}
        self._pool: Any = None  # of the graphs' memory
        self._begun: weakref.WeakKeyDictionary[Fork, _Begun] = weakref.WeakKeyDictionary()
        manager.follow(self)

    @torch.inference_mode()
    def warm_up(self) -> dict[str, Any]:
        begin, before = time.perf_counter(), _reserved_bytes(self._model.device)
        with self._manager.question_fork(0, 0) as fork:
            for size in reversed(SIZES):  # the smaller ones share the largest one's memory
                if not self._takes(fork, size):
                    break
            else:
                self._compare(fork)
        seconds = time.perf_counter() - begin
        taken = _reserved_bytes(self._model.device) - before
        _log.info("questions take the path '%s', warmed up in %.1f s", self.name, seconds)
        return {**super().warm_up(), "seconds": seconds, "bytes": taken}

    def begin(self, ids: list[int], start: Sequence[int], fork: Fork) -> None:
        if self._graph and not self.reason and fork.has_question_tail:  # the device goes on alone
            self._begun[fork] = _Begun(ids, self.append(ids, start, fork))

    @torch.inference_mode()
    def append(self, ids: list[int], start: Sequence[int], fork: Fork) -> torch.Tensor:
        begun = self._begun.pop(fork, None)
        if begun is not None and begun.ids == ids:
            return begun.logits
        logits = None
        for piece in _pieces(ids):
            if not self._takes(fork, len(piece)):
                logits = super().append(piece, start, fork)
                continue
            positions = text_positions(start, fork.length, len(piece))
            _, logits = self._step(piece, positions, fork, len(piece))
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
    ) -> list[float]:
        # The prompt's last tokens and all texts behind it side by side, as one step: each token
        # sees the prompt and, of the texts, its own up to itself.
        *before, shared = _pieces(prompt)
        for piece in before:
            self.append(piece, start, fork)
        room = self._manager.max_tail_tokens - fork.length - len(shared)
        longest = max(map(len, texts))
        ready = all(self._takes(fork, size) for size in SIZES)
        if not ready or longest > min(SIZES[-1], room):
            return super().score(shared, texts, end, start, fork)
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
            if together:
                after = self._model.logits(hidden[len(shared) : len(ids)])
                scores += _log_probabilities(first, after, together, end)
            shared = []
        return scores

    # -- inside ------------------------------------------------------------------------------

    def _takes(self, fork: Fork, tokens: int) -> bool:
        """Whether steps can serve this fork; then all is ready for one of so many tokens."""
        obstacle = self.reason
        if not obstacle and not fork.has_question_tail:
            obstacle = "another answer is being written"
        elif not obstacle and len(fork.parts) > MOST_PARTS:
            obstacle = f"the memory is read in more than {MOST_PARTS} parts"
        if not obstacle:
            self._read(fork)
            obstacle = self._prepare(_size_for(tokens))
        if obstacle:
            if not self.detours[obstacle]:
                _log.warning("questions are answered more slowly: %s", obstacle)
            self.detours[obstacle] += 1
        return not obstacle

    def _read(self, fork: Fork) -> None:
        """Let the steps read the fork's parts. (A fork's parts stay as they were made.)"""
        memory = fork.parts[0].memory if fork.parts else self._manager.memory
        weights_at = [module.weight.data_ptr() for module in self._some_weights]
        if self._weights_at != weights_at:  # the model was moved
            self._reading, self._weights_at = None, weights_at
        if self._reading is None or self._reading.memory is not memory:  # the first, or it grew
            self._reading = Reading(memory, self._manager.question_tail)
            self._reader = None
            self._forget_steps()
        if self._reader is None or self._reader() is not fork:
            self._reading.load(fork.parts)
            self._reader = weakref.ref(fork)

    def memory_replaced(self) -> None:
        """Let go of the old memory, unless an answer is still read from it."""
        reader = None if self._reader is None else self._reader()
        if reader is None or not reader.alive:
            self._reading = self._reader = None
            self._forget_steps()

    def _compare(self, fork: Fork) -> None:
        """Hold steps against plain calls, over noise in place of a memory that is still empty.

        What a graph, a kernel or a compiler gets wrong on a machine that nobody tried must not
        become an answer.
        """
        memory, room = self._manager.memory, self._manager.max_tail_tokens
        if not self._graph or self._manager.get_seq_length() or room < 2:
            return
        size = min(400, memory.shape[3])
        memory[:, :, :, :size].normal_()
        turn = self._model.rotary.turn(Vec(5, 3, 1), memory.device)
        fork.parts = [
            Part(memory, slice(0, size // 3), turn),
            Part(memory, slice(size // 3, size), None),
        ]
        self._reader = None  # of other parts
        ids = list(range(min(20, room - 1)))  # any tokens
        with self._manager.fork(len(ids) + 1) as other:
            other.parts = fork.parts
            for said in (ids, [1]):
                plain = super().append(said, (size,) * 3, other)
                steps = self.append(said, (size,) * 3, fork)
                error = float((steps - plain).norm() / plain.norm())
                if not error < _LEAST_WRONG:
                    self._give_up(f"it computes something else (relative error {error:.2g})")
                    return

    def _give_up(self, why: str) -> None:
        self.name, self.reason = "eager", f"no CUDA graph serves: {why}"
        self._forget_steps()

    def _forget_steps(self) -> None:
        self._ready.clear()
        self._pool = None  # it ends with the last of its graphs

    def _prepare(self, size: int) -> str:
        """Make a step of that size ready; "" or why there is none, which is found out once."""
        while not self.reason and size not in self._ready:
            assert self._reading is not None
            linear = self._matvec if size == 1 else functional.linear
            step = StaticStep(
                self._model, self._reading, self._attention, self._compiled, linear, self._place
            )
            try:
                ready = _Ready(step, StepInputs(size, self._reading))
                if self._graph:
                    self._pool = ready.record(self._pool)
                    self.captures += 1
                self._ready[size] = ready
            except Exception as error:  # the compilers have many kinds
                if not self._graph:
                    raise
                what = in_words(error)
                if self._compiled:
                    self._compiled = False
                    self._forget_steps()
                    _log.warning("questions are answered without torch.compile: %s", what)
                else:
                    self._give_up(what)
        return self.reason

    def _step(
        self,
        ids: Sequence[int],
        positions: torch.Tensor,
        fork: Fork,
        kept: int,
        begins: Sequence[int] = (),
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Take a step; the first ``kept`` of its tokens stay in the fork. See `StepInputs.load`."""
        ready = self._ready[_size_for(len(ids))]
        ready.inputs.load(ids, positions, fork.length, kept, begins)
        self.steps += 1
        fork.advance(kept)
        return ready()


class _Begun(NamedTuple):
    """What was appended ahead of being asked for."""

    ids: list[int]
    logits: torch.Tensor


class _Ready:
    """A step with its inputs, run anew each time or, once recorded, replayed."""

    def __init__(self, step: StaticStep, inputs: StepInputs):
        self.inputs, self._step = inputs, step
        self._graph: torch.cuda.CUDAGraph | None = None

    @property
    def fused(self) -> bool:
        return self._step.compiled

    def record(self, pool: Any) -> Any:
        """Record a CUDA graph whose memory is shared with those of the same ``pool``; its pool.

        The inputs are all padding, which leaves no trace but in the slot for that.
        """
        device = self.inputs.ids.device
        with torch.cuda.device(device), recompiling():
            aside = torch.cuda.Stream()
            aside.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(aside):
                for _ in range(2):  # what is compiled, loaded or allocated at a first call
                    self._step(self.inputs)
            torch.cuda.current_stream().wait_stream(aside)
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on using the device meanwhile.
            with torch.cuda.graph(graph, pool, capture_error_mode="thread_local"):
                self._outputs = self._step(self.inputs)
            self._graph = graph
            return graph.pool()

    def __call__(self) -> tuple[torch.Tensor, torch.Tensor]:
        if self._graph is None:
            return self._step(self.inputs)
        self._graph.replay()
        return self._outputs


def text_path(
    wanted: str, model: StreamQwenModel, manager: KVCacheManager, device: torch.device
) -> TextPath:
    """The path of that name of `QUESTION_PATHS`; ``auto`` is the fastest that the device has.

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
        return TextPath(model)
    if not on_gpu:
        return StaticTextPath(model, manager, attend_step)
    size = model.kv_shape.head_dim
    try:
        if size < 16 or size & (size - 1):
            raise InvalidParameterError(f"Triton takes heads of 16, 32, 64, ..., not of {size}")
        from .kernels import matvec, place, split_attention

        processors = torch.cuda.get_device_properties(device).multi_processor_count
        attention = split_attention(processors)
    except Exception as error:  # also what a broken installation of Triton raises
        reason = in_words(error)
        _log.warning("questions are answered more slowly: %s", reason)
        return TextPath(model, reason)
    graph = wanted != "static"
    return StaticTextPath(
        model, manager, attention, graph, compiled=graph, matvec=matvec, place=place
    )


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


def _reserved_bytes(device: torch.device) -> int:
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0
