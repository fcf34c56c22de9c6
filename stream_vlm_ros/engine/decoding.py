# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""From logits to text: which token comes next, when to stop, and the text so far."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from stream_vlm_ros.engine.copies import to_host
from stream_vlm_ros.engine.finite import not_finite
from stream_vlm_ros.engine.results import AnswerMetrics
from stream_vlm_ros.errors import InvalidParameterError, real_number, whole_number

if TYPE_CHECKING:
    from stream_vlm_ros.engine.decode_path import Continuation

_LEAST_TEMPERATURE = 1e-5
_MOST_UNSETTLED = 16  # tokens: a character has four bytes, so what is none by then never will be


@dataclass(frozen=True)
class DecodingOptions:
    """How an answer is written.

    Attributes:
        max_new_tokens: longest answer, in tokens.
        do_sample: draw from the distribution; otherwise the likeliest token.
        temperature: flattens (> 1) or sharpens (< 1) the distribution; 0 (or below 1e-5, where
            float32 ends) is the likeliest token.
        top_p: draw from the smallest set of tokens that holds this much probability.
        repetition_penalty: > 1 makes tokens of question and answer less likely to come again.
        stop: texts at which the answer ends; they are not part of it.
        seed: of the draw; None: a new one each time.

    Raises:
        InvalidParameterError: a value out of its range.
    """

    max_new_tokens: int = 128
    do_sample: bool = False
    temperature: float = 1.0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    stop: Sequence[str] = ()
    seed: int | None = None

    def __post_init__(self) -> None:
        tokens = whole_number("max_new_tokens", self.max_new_tokens, least=1)
        object.__setattr__(self, "max_new_tokens", tokens)
        for name, good in (
            ("temperature", lambda x: x >= 0),
            ("top_p", lambda x: 0 < x <= 1),
            ("repetition_penalty", lambda x: x > 0),
        ):
            given = getattr(self, name)
            value = real_number(given)
            if value is None or not math.isfinite(value) or not good(value):
                raise InvalidParameterError(f"{name} is out of its range: {given!r}")
            object.__setattr__(self, name, value)
        if (
            isinstance(self.stop, str)
            or not isinstance(self.stop, Sequence)
            or not all(isinstance(text, str) and text for text in self.stop)
        ):
            raise InvalidParameterError(f"stop must be a list of texts: {self.stop!r}")
        if self.seed is not None:
            seed = whole_number("seed", self.seed, -(2**63), 2**64 - 1)
            object.__setattr__(self, "seed", seed)


class Sampler:
    """Chooses the next token, with transformers' own processors."""

    def __init__(self, options: DecodingOptions, prompt: Sequence[int], device: torch.device):
        self._draws = options.do_sample and options.temperature >= _LEAST_TEMPERATURE
        self._ids = list(prompt)
        # Of the tokens chosen. Of those that are drawn or penalised it stays on the device until
        # all are there: to read each would be to wait.
        self._logprobs: list[torch.Tensor | float] = []
        self._device = device
        self._processors = LogitsProcessorList()
        if options.repetition_penalty != 1:
            self._processors.append(RepetitionPenaltyLogitsProcessor(options.repetition_penalty))
        if self._draws:
            if options.temperature != 1:
                self._processors.append(TemperatureLogitsWarper(options.temperature))
            if options.top_p < 1:
                self._processors.append(TopPLogitsWarper(options.top_p))
        self._generator = self._seeded(options.seed) if self._draws else None
        self._foreseen: _Likeliest | None = None

    def _seeded(self, seed: int | None) -> torch.Generator:
        generator = torch.Generator(self._device)
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        return generator

    def foresee(self, logits: torch.Tensor) -> torch.Tensor | None:
        """The token ``[1]`` that `choose` will choose of these, not yet known to the host.

        None where it is not the likeliest one. The logits need not hold until it is chosen.
        """
        if self._processors or self._draws:
            return None
        self._foreseen = _Likeliest(logits)
        return self._foreseen.token

    @torch.inference_mode()
    def choose(self, logits: torch.Tensor) -> int:
        """The token that follows, from its logits ``[vocabulary]``, or as it was foreseen.

        Raises NotFiniteError where one of them is NaN, or the largest infinite.
        """
        likeliest, self._foreseen = self._foreseen or _Likeliest(logits), None
        token, largest, logprob = likeliest.read()
        if not math.isfinite(largest):
            raise not_finite("the logits of an answer's token")
        chosen = self._chosen(logits)
        if chosen is not None:
            token = chosen
        self._ids.append(token)
        self._logprobs.append(logprob if chosen is None else logits[chosen] - likeliest.total)
        return token

    def _chosen(self, logits: torch.Tensor) -> int | None:
        """The token that a penalty or a draw chooses; None: there is neither."""
        scores = logits[None]
        if self._processors:
            ids = torch.tensor([self._ids], device=self._device)
            scores = self._processors(ids, scores)
        if self._draws:
            # A penalty near zero makes scores infinite, of which softmax makes NaN.
            scores = scores.clamp(max=torch.finfo(scores.dtype).max)
            return int(torch.multinomial(scores.softmax(-1), 1, generator=self._generator))
        return int(scores.argmax()) if self._processors else None

    def logprobs(self, count: int) -> tuple[float, ...]:
        """The model's log-probabilities of the first ``count`` tokens chosen; waits for them."""
        first = self._logprobs[:count]
        there = [logprob for logprob in first if isinstance(logprob, torch.Tensor)]
        read = iter(torch.stack(there).tolist() if there else ())
        return tuple(next(read) if isinstance(one, torch.Tensor) else one for one in first)


class _Likeliest:
    """The likeliest token of some logits ``[vocabulary]``, computed at once and read later.

    Attributes:
        token: ``[1]``, on the device.
        total: log-sum-exp of the logits, there, too.
    """

    @torch.inference_mode()
    def __init__(self, logits: torch.Tensor):
        self._largest, self.token = logits.float().max(-1, keepdim=True)  # NaN where there is any
        self.total = logits.float().logsumexp(-1)
        self._read: torch.Tensor | None = None
        if logits.is_cuda:
            values = [self.token.double(), self._largest.double(), self._logprob.double()]
            self._read = to_host(torch.cat(values))
            self._there = torch.cuda.Event()
            self._there.record(torch.cuda.current_stream(logits.device))

    @property
    def _logprob(self) -> torch.Tensor:
        return self._largest - self.total

    def read(self) -> tuple[int, float, float]:
        """Token, its logit and its log-probability: one wait for all, and for nothing behind."""
        if self._read is None:
            return int(self.token), float(self._largest), float(self._logprob)
        self._there.synchronize()
        token, largest, logprob = self._read.tolist()
        return int(token), largest, logprob


class AnswerText:
    """The text of an answer while it grows.

    A token is decoded behind the few before it, so that one costs the same however long the answer
    is. What stands between two tokens (a space, the bytes of one character) is in their text
    together, less that of the first alone.

    Args:
        decode: token ids to text.
        stop: texts at which the answer ends.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], stop: Sequence[str]):
        self._decode, self._stop = decode, tuple(stop)
        self.ids: list[int] = []
        self.text = ""
        self.stopped = False
        self._whole = ""  # of the tokens before `_settled`
        self._before = self._settled = 0  # behind these places a new text begins, see `_grown`

    def add(self, token: int) -> str:
        """Take in a token; return the text that is new and certain."""
        self.ids.append(token)
        unseen = len(self._whole) - max(map(len, self._stop), default=0)
        whole = self._grown()
        for stop in self._stop:
            at = whole.find(stop, max(0, unseen))
            if at >= 0:
                whole, self.stopped = whole[:at], True
        # The last letters may still become something else: half a UTF-8 character, or the
        # beginning of a stop text.
        certain = whole if self.stopped else whole[: self._certain(whole)]
        return self._show(certain)

    def finish(self) -> str:
        """Return what was held back."""
        return "" if self.stopped else self._show(self._grown())

    def shown_ids(self, encode: Callable[[str], list[int]]) -> list[int]:
        """Ids of the text that was shown: without those of a stop text and behind it.

        Args:
            encode: text to token ids, for where a stop text begins within a token.
        """
        kept = len(self.ids)
        while not self.text.startswith(before := self._decode(self.ids[:kept])):
            kept -= 1
        rest = self.text[len(before) :]
        return [*self.ids[:kept], *(encode(rest) if rest else [])]

    def _grown(self) -> str:
        """The text of all tokens; what cannot change any more is settled on the way."""
        behind = self._decode(self.ids[self._before : self._settled])
        new = self._decode(self.ids[self._before :])[len(behind) :]
        whole = self._whole + new
        unsettled = len(self.ids) - self._settled
        if new and (unsettled >= _MOST_UNSETTLED or not new.endswith("\ufffd")):
            self._whole, self._before, self._settled = whole, self._settled, len(self.ids)
        return whole

    def _certain(self, whole: str) -> int:
        end = len(whole)
        while end and whole[end - 1] == "\ufffd":
            end -= 1
        held = 0
        for stop in self._stop:
            for size in range(min(len(stop) - 1, end), 0, -1):
                if whole.endswith(stop[:size], 0, end):
                    held = max(held, size)
                    break
        return end - held

    def _show(self, certain: str) -> str:
        new = certain[len(self.text) :]
        if new:
            self.text = certain
        return new


class Answer:
    """An answer being written: an iterator over pieces of text, and a context manager.

    Closed, left or dropped before its end, it is cancelled: it leaves no trace, and what it reads
    is released.

    Args:
        pieces: writes it, and returns its metrics. Between two pieces it may yield what has to be
            computed for the next one, which is begun then: alone or, by who calls `coming` of
            several, together.
        release: gives back what ``pieces`` reads, also if it never began.

    Attributes:
        text: the answer so far.
        metrics: None until the iterator has ended; see `VideoStreamingInference.ask`.
    """

    # ``pieces`` must not refer to this object: in a cycle it would hold what it reads until the
    # next garbage collection.
    def __init__(
        self,
        pieces: Generator[str | Continuation, None, AnswerMetrics],
        release: Callable[[], None],
    ):
        self.text = ""
        self.metrics: AnswerMetrics | None = None
        self._pieces, self._release = pieces, release
        self._reached: str | Continuation | BaseException | None = None  # ahead of being asked

    def __iter__(self) -> Answer:
        return self

    def __next__(self) -> str:
        while not isinstance(step := self._step(), str):
            try:
                step.begin()
            except BaseException:
                self.close()
                raise
        return step

    def coming(self) -> Continuation | None:
        """Go on to where it is known what has to be computed next; None: nothing before a piece.

        What is raised on the way is raised where the next piece is asked for.
        """
        if self._reached is None:
            try:
                self._reached = next(self._pieces)
            except BaseException as fault:  # its end, too
                self._reached = fault
        # No local variable: a fault's traceback would hold this frame, and so itself.
        return None if isinstance(self._reached, str | BaseException) else self._reached

    def steps(self) -> Generator[str | Continuation, None, None]:
        """For who makes another answer of it: its pieces, with what is computed between them."""
        try:
            while True:
                try:
                    step = self._step()
                except StopIteration:
                    return
                yield step
        finally:
            self.close()

    def _step(self) -> str | Continuation:
        reached, self._reached = self._reached, None
        try:
            if isinstance(reached, BaseException):
                raise reached
            step = next(self._pieces) if reached is None else reached
        except StopIteration as end:
            self.metrics = end.value or self.metrics
            raise
        finally:
            del reached  # a fault: its traceback holds this frame
        if isinstance(step, str):
            self.text += step
        return step

    def complete(self, on_token: Callable[[str], None] | None = None) -> tuple[str, AnswerMetrics]:
        """Write it to its end; the text and the metrics.

        Args:
            on_token: called with the text so far whenever it has grown; what it raises ends the
                answer.
        """
        try:
            for piece in self:
                if piece and on_token is not None:
                    on_token(self.text)
        finally:
            self.close()
        assert self.metrics is not None  # it has ended, and what was raised came through
        return self.text, self.metrics

    def close(self) -> None:
        """Stop writing; the question leaves no trace."""
        self._reached = None
        self._pieces.close()
        self._release()

    def __enter__(self) -> Answer:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_release"):  # unless it was interrupted while it was made
            self.close()
