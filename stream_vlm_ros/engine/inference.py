# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`VideoStreamingInference`: frames in, questions answered, memory bounded.

Read `append_steps`, `_append` and `ask_stream` from top to bottom: they are the whole engine.
(`ask`, in `abstract`, collects what `ask_stream` yields.)

A grid is two frames that the model sees as one temporal patch: rows x columns of vision tokens.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import nullcontext
from itertools import takewhile
from pathlib import Path
from typing import Any

import torch

from stream_vlm_ros.engine.abstract import InferenceEngine
from stream_vlm_ros.engine.attention.base import Readout
from stream_vlm_ros.engine.cache.budget import USUAL_PIXELS, MemoryBudget, free_bytes
from stream_vlm_ros.engine.cache.eviction import EvictionConfig, ImportanceScore
from stream_vlm_ros.engine.cache.manager import KVCacheManager, StreamState
from stream_vlm_ros.engine.cache.mrope import Span, TextSpan, VisionSpan, time_to_ticks
from stream_vlm_ros.engine.cache.requests import Fork
from stream_vlm_ros.engine.chunk_path import CHANGED, Appending, Encoded, Encoding, chunk_path
from stream_vlm_ros.engine.decode_path import Continuation
from stream_vlm_ros.engine.decoding import Answer, AnswerText, DecodingOptions, Sampler
from stream_vlm_ros.engine.finite import FiniteCheck, check_finite, not_finite
from stream_vlm_ros.engine.graph_runner import text_runner
from stream_vlm_ros.engine.inputs.chat import LAYOUTS, ChatLayout
from stream_vlm_ros.engine.inputs.frames import PatchGrid
from stream_vlm_ros.engine.inputs.processor import StreamProcessor
from stream_vlm_ros.engine.inputs.timeline import MAX_PAUSE, Timeline
from stream_vlm_ros.engine.inputs.timestamps import MAX_SPAN, check_about, check_span, frame_times
from stream_vlm_ros.engine.inputs.token_reduction import Known, StaticTokenFilter
from stream_vlm_ros.engine.loading import check_fit
from stream_vlm_ros.engine.model.base import StreamModel
from stream_vlm_ros.engine.model.compiled import compiled_layers
from stream_vlm_ros.engine.model.device import resolve_device
from stream_vlm_ros.engine.reference_names import EngineNames, tell_stream
from stream_vlm_ros.engine.results import (
    AnswerMetrics,
    CacheInfo,
    ChoiceMetrics,
    ChunkResult,
    EvictionStats,
    SavedMemory,
    WarmUp,
)
from stream_vlm_ros.engine.saving.binding import binding_of
from stream_vlm_ros.engine.saving.memory_copy import (
    MemoryCopy,
    MemoryReader,
    ReadMemory,
    load_memory,
)
from stream_vlm_ros.engine.together import EngineGroup, Finishing, Steps, Work, run
from stream_vlm_ros.errors import (
    EmptyMemoryError,
    InvalidParameterError,
    OutOfHorizonError,
    StreamBusyError,
    real_number,
    whole_number,
)

log = logging.getLogger(__name__)


class VideoStreamingInference(EngineNames, InferenceEngine):
    """Streams video into a Qwen2.5-VL and answers questions about it at any time.

    Not thread-safe: one thread owns an engine.

    Args:
        model: a loaded model; several engines may share one.
        processor: `StreamProcessor`, or transformers' own processor of the checkpoint.
        device: where the engine works; None: where the model is. The model is moved there.
        eviction_config: the memory's cap; None: it grows without bound. With max_cache_tokens 0 as
            many tokens as fit the device (of a CPU's memory half), at most the model's context
            less ``max_tail_tokens``.
        layout: ``continuous`` (one growing video in one user turn, as an offline pass sees it) or
            ``segmented`` (each chunk in a user turn of its own, whose positions begin after the
            last one, as the model's rule for several videos has it: exact time within a chunk
            alone).
        position_policy: ``contiguous`` (after eviction what is kept closes up) or ``keep_gaps``.
        min_pixels, max_pixels: bounds on height x width after resizing; None: the checkpoint's.
            ``max_pixels`` may change between chunks: see `limit_pixels`.
        system_prompt: None: the chat template's own.
        max_tail_tokens: room for one question with its answer.
        fork_slack_tokens: room beyond the cap, so that chunks can be appended while an answer is
            written from a full memory. What is appended then to a memory that keeps frames is made
            room for when the answer ends: until then the stream is that much longer.
        importance: which frames level 3 of the memory keeps; None: the most unlike all others.
        max_pause: seconds; a longer step from one grid to the next is closed: positions go on as if
            the pause had not been, and stamps stay true. None: none is closed. One that would take
            too many of the positions that the model has left is shortened in any case.
        skip_similarity: leave out vision tokens whose features are this close (cosine) to those
            last appended at their place; None: keep all. For scenes that hardly change.
        compile: fuse the elementwise work of chunks by torch.compile, and record small chunks as
            CUDA graphs; None: on a GPU. Takes some ten seconds at the start.
        question_path: how a question's text runs: ``eager`` (call by call), ``graph`` (CUDA graphs
            of fixed steps: no launch is waited for) or ``static`` (the same steps, not recorded);
            ``auto``: ``graph`` on a GPU, ``eager`` elsewhere. See `warm_up`.
        question_reads: which heads `ask_stream` and `ask_choice` may be asked to ``read``; others
            are read on the path ``eager`` alone.
        group: of engines that share the model and compute chunks together; None: it is by itself.

    Raises:
        InvalidParameterError: a setting is outside its range, or they contradict one another.
        DeviceUnavailableError: there is no such device, or the memory does not fit it.
        ModelLoadError: model and processor are not of one checkpoint.
    """

    def __init__(
        self,
        model: StreamModel,
        processor: Any,
        device: str | torch.device | None = None,
        eviction_config: EvictionConfig | None = None,
        *,
        layout: str = "continuous",
        position_policy: str = "contiguous",
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        system_prompt: str | None = None,
        max_tail_tokens: int = 2048,
        fork_slack_tokens: int = 0,
        importance: ImportanceScore | None = None,
        max_pause: float | None = MAX_PAUSE,
        skip_similarity: float | None = None,
        compile: bool | None = None,
        question_path: str = "auto",
        question_reads: Readout | None = None,
        group: EngineGroup | None = None,
    ):
        if layout not in LAYOUTS:
            raise InvalidParameterError(
                f"layout '{layout}' is unknown: use one of {', '.join(LAYOUTS)}"
            )
        if not isinstance(model, StreamModel):
            raise InvalidParameterError(
                f"the model is a {type(model).__name__}: load it by StreamQwenModel.from_pretrained"
            )
        max_tail_tokens = whole_number("max_tail_tokens", max_tail_tokens, least=1)
        fork_slack_tokens = whole_number("fork_slack_tokens", fork_slack_tokens, least=0)
        if max_pause is not None:
            seconds = real_number(max_pause)
            if seconds is None or not 0 < seconds < math.inf:
                raise InvalidParameterError(
                    f"max_pause must be seconds above 0, or None: {max_pause!r}"
                )
            max_pause = min(seconds, MAX_SPAN)  # no stream is longer
        if eviction_config is not None and not isinstance(eviction_config, EvictionConfig):
            raise InvalidParameterError(
                f"eviction_config must be an EvictionConfig: {eviction_config!r}"
            )
        self.device = resolve_device(model.device if device is None else device)
        self.layout = layout
        self.processor = processor
        processor = StreamProcessor.wrap(processor)
        check_fit(model.config, processor)
        on_gpu = self.device.type == "cuda"
        if compile and not on_gpu:
            raise InvalidParameterError(
                f"compile is for a GPU, but the engine is on {self.device}: leave it out "
                "(compile_chunks: auto)"
            )
        self.model = model.to(self.device)
        self.functions = model.functions  # of chunks' layers
        if on_gpu if compile is None else compile:
            compiled = compiled_layers(model.functions)
            compiled.try_out(model)
            self.functions = compiled.functions
        self._frames = processor.frame_processor(self.device)
        self.min_pixels, _ = self._frames.pixel_bounds(min_pixels, max_pixels)
        self.max_pixels = max_pixels
        self._chat = ChatLayout(processor, model.config, system_prompt)
        self._merge = processor.image_settings.merge_size
        self._frames_per_grid = processor.image_settings.temporal_patch_size
        self._tokens_per_second = model.config.vision_config.tokens_per_second
        self._max_step = None if max_pause is None else self._ticks(max_pause)
        # What a text around a chunk, a question and its answer leave of the model's positions.
        self._max_positions = (
            model.config.text_config.max_position_embeddings
            - max_tail_tokens
            - self._chat.max_chunk_text(layout)
        )
        self._end_ids = _end_ids(model, processor)
        self._filter = None if skip_similarity is None else StaticTokenFilter(skip_similarity)
        self.memory_plan = ""  # what the memory takes and what is free, in one line
        if eviction_config is not None:
            eviction_config = self._budgeted(
                eviction_config, position_policy, max_tail_tokens, fork_slack_tokens, group
            )
        self.cache_manager = KVCacheManager(
            model.kv_shape,
            model.rotary,
            eviction_config,
            self.device,
            position_policy,
            max_tail_tokens,
            fork_slack_tokens,
            importance,
            None if group is None else group.room,
            None if group is None else group.tails(max_tail_tokens),
        )
        tell_stream(model, self.cache_manager)
        log.info(_describe_eviction(eviction_config))
        self.group = group
        captured = self.functions is not model.functions
        if group is None:
            self.chunk_path = chunk_path(self.model, self.functions, self.cache_manager, captured)
        else:
            self.chunk_path = group.path(self.model, self.functions, captured)
        self.text_path = (
            text_runner(question_path, self.model, self.cache_manager, self.device, question_reads)
            if group is None
            else group.text_path(question_path, self.model, question_reads)
        )

    def warm_up(self) -> WarmUp:
        """Make ready what the first question would wait for; only a GPU needs it."""
        warm = self.text_path.warm_up(self.cache_manager)
        if self.group is not None:
            seconds, taken = self.group.decode_path.warm_up()
            warm |= {"seconds": warm["seconds"] + seconds, "bytes": warm["bytes"] + taken}
        return WarmUp(**warm)

    # -- seeing ------------------------------------------------------------------------------

    def limit_pixels(self, max_pixels: int | None) -> None:
        """Reduce larger pictures to this many pixels from the next chunk on.

        Or to the checkpoint's own bound where that is less; None: to that. What is in memory
        stays as it is. Raises InvalidParameterError below ``min_pixels``.
        """
        max_pixels = self._frames.settings.at_most(max_pixels)
        self._frames.pixel_bounds(self.min_pixels, max_pixels)
        self.max_pixels = max_pixels

    def append_video_chunk(
        self,
        frames: Sequence[Any],
        fps: float | None = None,
        timestamps: Sequence[float] | None = None,
    ) -> ChunkResult:
        """Encode frames and append them to the memory; forget what exceeds its bound.

        Args:
            frames: images of one size: PIL, numpy ``[height, width, 3]`` uint8 RGB, or torch. An
                odd number is padded by repeating the last.
            fps: frames a second; the chunk goes on where the newest frame ended.
            timestamps: instead, the source's time of each frame in seconds, any start, never
                falling. With neither, 2 frames a second.

        Raises:
            InvalidImageError, InvalidTimestampError, InvalidParameterError (pixel bounds),
                CapTooSmallError: nothing was appended; the stream goes on with the next call.
            NotFiniteError: the model's numbers overflow, or its weights are damaged; nothing was
                appended.
            StreamBusyError: an answer is being written and there is no room besides what it reads
                (``fork_slack_tokens``); nothing was appended or computed. Try again when it ends.
        """
        return run(self.append_steps(frames, fps, timestamps))

    def append_steps(
        self,
        frames: Sequence[Any],
        fps: float | None = None,
        timestamps: Sequence[float] | None = None,
        encoding: Encoding | Encoded | None = None,
    ) -> Steps[ChunkResult]:
        """`append_video_chunk` as a generator that leaves the device's work to who drives it.

        It yields what is to be computed and is sent what came of it, so that engines which share a
        model can compute together: see `together`. Until it has ended nothing else may change the
        memory; questions may be answered.

        ``encoding``: what `prepare` gave for these frames, encoded by now or not.
        """
        started = time.perf_counter()
        encoding = encoding or self.prepare(frames)
        stamps = frame_times(len(frames), fps, timestamps, self.cache_manager.state.last_stamp)
        grid = self._token_grid(encoding.patches)
        return (yield from self._append(grid, stamps, encoding, started))

    def prepare(self, frames: Sequence[Any]) -> Encoding:
        """The frames of a chunk resized and cut into patches: whatever the memory holds.

        Raises InvalidImageError, InvalidParameterError (pixel bounds).
        """
        patches = self._frames(frames, self.min_pixels, self.max_pixels)
        return Encoding(self.chunk_path, patches)

    def _append(
        self, grid: tuple[int, int, int], stamps: list[float], encoding: Work, started: float
    ) -> Steps[ChunkResult]:
        """Append a chunk of grids, rows, columns of vision tokens.

        ``encoding`` gives their features ``[tokens, hidden]``, once it is known that there is room.
        """
        self._check_number_format()
        manager = self.cache_manager
        planned = manager.state
        spans, before, after, timeline = self._plan_chunk(grid, stamps)
        # With tokens left out it may be fewer in the end; what could not fit is refused here.
        max_tokens = sum(span.count for span in spans)
        manager.evictor.check_room(max_tokens)
        manager.check_free(max_tokens)

        before_device = time.perf_counter() - started
        begun = self._mark()
        features = yield encoding
        self._check_memory_is(planned)
        grids = features.unflatten(0, grid)  # [grids, rows, columns, hidden]
        known = None
        if self._filter is not None:
            spans, features, known = self._leave_out(self._filter, spans, grids)
        described = manager.evictor.describe(manager.ledger.grids_seen, grids, stamps[-1])
        encoded = self._mark()
        embeddings = torch.cat(
            [self.model.embed_tokens(before), features, self.model.embed_tokens(after)]
        )
        closed = timeline.closed - manager.state.timeline.closed
        with manager.fork(len(embeddings)) as fork:
            positions = manager.ledger.preview(spans)
            read = manager.readout()
            hidden = yield Appending(self.chunk_path, embeddings, positions, fork, read)
            self._check_memory_is(planned, fork)
            # An infinite key may be seen by none of these tokens, and by the next ones.
            check = FiniteCheck("hidden states or keys of these frames", hidden, fork.own())
            state = self._next_state(stamps, timeline, known)
            seen = plan = None
            if manager.evictor.describes_early:
                seen = described()
                plan = manager.plan(fork, spans, state, seen)  # while the device is busy
            yield check
            self._check_memory_is(planned, fork)
            seen = seen or described()
            evicted = manager.commit(fork, spans, state, True, seen, read, plan)
        manager.prepare_reading()
        yield Finishing(self.device)
        latency = time.perf_counter() - started
        return ChunkResult(
            tokens=len(embeddings),
            evicted_tokens=evicted,
            cache_length=manager.get_seq_length(),
            latency=latency,
            encode_latency=before_device + _seconds_between(begun, encoded),
            grid=grid,
            closed_seconds=closed / self._tokens_per_second,
        )

    # -- answering ---------------------------------------------------------------------------

    def ask_stream(
        self,
        question: str,
        max_new_tokens: int = 128,
        do_sample: bool = False,
        temperature: float = 1.0,
        update_state: bool = False,
        *,
        top_p: float = 1.0,
        repetition_penalty: float = 1.0,
        stop: Sequence[str] = (),
        seed: int | None = None,
        about: tuple[float, float] | None = None,
        cancel: Callable[[], bool] | None = None,
        earlier: Sequence[tuple[str, str]] = (),
        read: Readout | None = None,
    ) -> Answer:
        """Like `ask`, as an iterator over pieces of text; `Answer.metrics` once it has ended.

        The answer reads the memory as it is at this call, whatever is appended meanwhile; with
        ``update_state`` the exchange is kept behind that. To append between two pieces is what it
        is for: see ``fork_slack_tokens``. ``read`` is given what its heads made of the prompt,
        before ``cancel`` is asked first.
        """
        started = time.perf_counter()
        options = DecodingOptions(
            max_new_tokens, do_sample, temperature, top_p, repetition_penalty, stop, seed
        )
        max_new_tokens = options.max_new_tokens
        if earlier and update_state:
            raise InvalidParameterError("an exchange behind earlier turns is not kept: keep these")
        prompt = self._question_ids(question, about, earlier)
        manager = self.cache_manager
        closing = len(self._chat.answer_end) if update_state else 0
        if update_state:
            needed = len(prompt) + max_new_tokens + closing
            self._check_exchange(needed)
        fork = manager.question_fork(len(prompt), max_new_tokens + closing)
        start, asked_at = fork.start, manager.ledger.mark()
        cache_length, time_spans = manager.get_seq_length(), manager.time_spans()

        together = None if self.group is None else self.group.decode_path

        def write() -> Generator[str | Continuation, None, AnswerMetrics]:
            reason, ttft = "cancelled", None
            text = Continuation(self.text_path, prompt, start, fork, read)
            with fork, nullcontext() if together is None else together.writing():
                said = AnswerText(self._chat.decode, options.stop)
                sampler = Sampler(options, prompt, self.device)
                while fork.alive:  # until the memory is cleared while this answer is written
                    logits = text.run()
                    more, likeliest = len(said.ids) + 1 < max_new_tokens, None
                    if more and (together is None or together.answers == 1):
                        likeliest = sampler.foresee(logits)
                    # The device need not wait until the host knows the token.
                    ahead = likeliest is not None and self.text_path.begin(likeliest, start, fork)
                    token = sampler.choose(logits)
                    others = None if ahead else together
                    text = Continuation(self.text_path, [token], start, fork, together=others)
                    if ahead:
                        text.begin()
                    ttft = ttft or time.perf_counter() - started
                    if cancel is not None and cancel():
                        break
                    if token in self._end_ids:
                        reason = "stop"
                        break
                    if more:
                        yield text
                    if piece := said.add(token):
                        yield piece
                    if said.stopped:
                        reason = "stop"
                        break
                    if len(said.ids) == max_new_tokens:
                        reason = "length"
                        break
                if reason != "cancelled":
                    if piece := said.finish():
                        yield piece
                    if update_state and not fork.alive:
                        # The memory was cleared meanwhile: there is nothing to keep it behind.
                        reason = "cancelled"
                    elif update_state:
                        # No longer than what there is room for, also where a token is cut in two.
                        kept = self._shown_ids(said, fork, len(prompt))[:max_new_tokens]
                        if manager.ledger.mark() == asked_at:
                            # Nothing was appended meanwhile: the fork's keys and values are right
                            # as they are, and become part of the stream.
                            self._keep_exchange(fork, prompt, kept, start)
                        else:
                            # Chunks were appended meanwhile: behind them the exchange has other
                            # positions and sees more, so it is computed again.
                            fork.release()  # it has been read
                            self._repeat_exchange(question, kept)
            logprobs = sampler.logprobs(len(said.ids))
            latency = self._synchronized_time() - started
            return AnswerMetrics(
                ttft=ttft or latency,
                latency=latency,
                prompt_tokens=len(prompt),
                cache_length=cache_length,
                time_spans=time_spans,
                answer_tokens=len(said.ids),
                finish_reason=reason,
                token_ids=tuple(said.ids),
                token_logprobs=logprobs,
            )

        return Answer(write(), fork.release)

    def ask_choice(
        self,
        question: str,
        choices: Sequence[str],
        *,
        about: tuple[float, float] | None = None,
        read: Readout | None = None,
    ) -> tuple[str, ChoiceMetrics]:
        """The likeliest of the given answers; leaves no trace.

        A choice's score is the log-probability that the model, asked the question, answers just
        that: its tokens and then the end of the turn. The question is computed once, all choices
        in one batch behind it. ``read`` is given what its heads made of the prompt.

        Raises:
            EmptyMemoryError, OutOfHorizonError, InvalidQuestionError, InvalidChoicesError,
                NotFiniteError: see the message.
        """
        started = time.perf_counter()
        manager = self.cache_manager
        texts = self._chat.choices(choices, manager.max_tail_tokens)
        prompt = self._question_ids(question, about)
        end = self._chat.answer_end[0]
        with manager.question_fork(len(prompt), 0) as fork:
            scores = self.text_path.score(prompt, texts, end, fork.start, fork, read)
        if any(map(math.isnan, scores)):
            raise not_finite("the scores of these choices")
        # Of the first token that is known, and of them all.
        latency = self._synchronized_time() - started
        best = max(range(len(scores)), key=scores.__getitem__)
        return choices[best], ChoiceMetrics(
            ttft=latency,
            latency=latency,
            prompt_tokens=len(prompt),
            cache_length=manager.get_seq_length(),
            time_spans=manager.time_spans(),
            choice_index=best,
            scores=tuple(scores),
            choice_tokens=tuple(len(text) + 1 for text in texts),  # with the end of the turn
        )

    # -- looking at the memory ---------------------------------------------------------------

    def get_cache_info(self) -> CacheInfo:
        """The memory as it stands."""
        manager = self.cache_manager
        evictor, state = manager.evictor, manager.state
        config = evictor.config
        return CacheInfo(
            cache_seq_length=manager.get_seq_length(),
            cache_memory_bytes=manager.live_bytes,
            reserved_memory_bytes=manager.reserved_bytes,
            max_cache_tokens=config.max_cache_tokens if config else None,
            fork_slack_tokens=manager.fork_slack_tokens,
            sink_size=evictor.effective_sink_size,
            window_size=evictor.effective_window_size,
            sampled_size=evictor.sampled_size,
            important_size=evictor.important_size,
            shares_reason=evictor.reason,
            avg_chunk_tokens=evictor.avg_chunk_tokens,
            chunks=state.chunks,
            frames=state.frames,
            exchanges=state.exchanges,
            closed_pauses=state.timeline.pauses,
            closed_seconds=state.timeline.closed / self._tokens_per_second,
            positions=manager.ledger.extent,
            grids_in_memory=manager.ledger.grids,
            levels=manager.levels(),
            time_spans=manager.time_spans(),
            eviction_stats=EvictionStats(
                total_evictions=evictor.total_evictions,
                total_tokens_evicted=evictor.total_tokens_evicted,
            ),
        )

    def reset(self) -> None:
        """Forget everything. An answer being written ends as cancelled."""
        self.cache_manager.clear()

    # -- saving ------------------------------------------------------------------------------

    def copy_memory(self) -> MemoryCopy:
        return MemoryCopy.take(self.cache_manager, self._binding())

    def memory_reader(self) -> MemoryReader:
        return MemoryReader(self.cache_manager, self._binding())

    def load_memory(
        self,
        path: str | Path | ReadMemory,
        *,
        origin_ns: int | None = None,
        check: Callable[[SavedMemory], None] | None = None,
    ) -> SavedMemory:
        return load_memory(path, self.cache_manager, self._binding(), origin_ns, check)

    def _binding(self) -> dict[str, Any]:
        return binding_of(self.model, self._chat, self.layout, self.cache_manager)

    # -- inside ------------------------------------------------------------------------------

    def _check_memory_is(self, planned: StreamState, fork: Fork | None = None) -> None:
        """A chunk that was laid out for another memory than the present one goes into neither.

        Emptying ends its fork, also where the memory was empty and so is as before.
        """
        if self.cache_manager.state is not planned or (fork is not None and not fork.alive):
            raise StreamBusyError(CHANGED)

    def _plan_chunk(
        self, grid: tuple[int, int, int], stamps: list[float]
    ) -> tuple[list[Span], list[int], list[int], Timeline]:
        """How a chunk is laid out.

        Returns:
            Its spans, the text ids before and after its frames, and the timeline behind it.
        """
        manager = self.cache_manager
        state = manager.state
        goes_on = self.layout == "continuous" and state.open_segment
        before = [] if goes_on else self._chat.head if state.chunks == 0 else self._chat.turn
        after = self._chat.behind_chunk(self.layout)
        origin = stamps[0] if state.first_stamp is None else state.first_stamp
        check_span(origin, stamps[-1])
        grids = self._stamps_of_grids(stamps)
        _, rows, columns = grid
        ticks, timeline = state.timeline.extended(
            [self._ticks(first - origin) for first, _ in grids],
            self._max_step,
            self._max_positions - manager.ledger.extent,
            max(1, self._ticks(1.0)),
            opens=not goes_on,
        )
        vision = VisionSpan(
            ticks,
            grids,
            rows,
            columns,
            opens=not goes_on,
        )
        spans: list[Span] = [TextSpan(len(before)), vision, TextSpan(len(after))]
        return [span for span in spans if span.count], before, after, timeline

    def _stamps_of_grids(self, stamps: list[float]) -> tuple[tuple[float, float], ...]:
        """Of each grid's first and last frame."""
        firsts = stamps[:: self._frames_per_grid]
        lasts = stamps[self._frames_per_grid - 1 :: self._frames_per_grid]
        lasts += stamps[-1:] * (len(firsts) - len(lasts))
        return tuple(zip(firsts, lasts, strict=True))

    def _ticks(self, seconds: float) -> int:
        return time_to_ticks(seconds, self._tokens_per_second)

    def _leave_out(
        self, static: StaticTokenFilter, spans: list[Span], grids: torch.Tensor
    ) -> tuple[list[Span], torch.Tensor, Known | None]:
        """Spans and features ``[tokens, hidden]`` without the tokens that say nothing new."""
        manager = self.cache_manager
        # In this order: what waits may be evicted meanwhile, by a reader's end in another thread.
        waiting, ledger = manager.waiting, manager.ledger
        tokens = sum(span.count for span in spans)
        # Appended whole, the chunk would push out the most: what then stays can be relied on.
        leaving = manager.evictor.max_due(ledger.length, tokens, ledger.kept_length, waiting)
        oldest = ledger.oldest_window_grid(leaving)
        places, known = static.choose(grids, ledger.grids_seen, oldest, manager.state.known)
        spans = [
            dataclasses.replace(span, places=places) if isinstance(span, VisionSpan) else span
            for span in spans
        ]
        kept = [grid[list(there)] for grid, there in zip(grids.flatten(1, 2), places, strict=True)]
        return spans, torch.cat(kept), known

    def _next_state(
        self, stamps: list[float], timeline: Timeline, known: Known | None
    ) -> StreamState:
        """The stream's state once a chunk with these stamps is in it."""
        state = self.cache_manager.state
        return dataclasses.replace(
            state,
            chunks=state.chunks + 1,
            frames=state.frames + len(stamps),
            first_stamp=stamps[0] if state.first_stamp is None else state.first_stamp,
            last_stamp=stamps[-1],
            open_segment=self.layout == "continuous",
            timeline=timeline,
            known=known,
        )

    def _token_grid(self, patches: PatchGrid) -> tuple[int, int, int]:
        grids, rows, columns = patches.grid_thw
        return grids, rows // self._merge, columns // self._merge

    def _check_number_format(self) -> None:
        if torch.is_autocast_enabled(self.device.type):
            raise InvalidParameterError(
                "the engine computes in the model's own number format: call it outside of "
                "torch.autocast, and choose the format by dtype when the model is loaded"
            )

    def _question_ids(
        self,
        question: str,
        about: tuple[float, float] | None,
        earlier: Sequence[tuple[str, str]] = (),
    ) -> list[int]:
        self._check_number_format()
        manager = self.cache_manager
        if manager.state.frames == 0:
            raise EmptyMemoryError("nothing has been seen yet: append frames before asking")
        if (asked := check_about(about)) is not None:
            self._check_horizon(*asked)
        in_segment, room = manager.state.open_segment, manager.max_tail_tokens
        return self._chat.question(question, in_segment, room, earlier)

    def _check_horizon(self, start: float, stop: float) -> None:
        spans = self.cache_manager.time_spans()
        if not any(first <= stop and start <= last for first, last in spans):
            raise OutOfHorizonError(
                f"nothing from {start:.3f} to {stop:.3f} s is remembered. The memory holds "
                + ", ".join(f"{first:.3f} to {last:.3f} s" for first, last in spans[:3])
                + (f" and {len(spans) - 3} more stretches" if len(spans) > 3 else "")
            )

    def _shown_ids(self, said: AnswerText, fork: Fork, asked: int) -> list[int]:
        """Ids of an answer's text as it was shown. The fork is taken back to where it has the
        question, of ``asked`` tokens, and of these ids the first."""
        kept, there = said.ids, len(said.ids)
        if said.stopped:
            kept = said.shown_ids(self._chat.plain)
            same = zip(kept, said.ids, strict=False)
            there = len(list(takewhile(lambda ids: ids[0] == ids[1], same)))
        # What was begun behind the answer's end is no part of it, either.
        fork.rewind(min(fork.length, asked + there))
        return kept

    def _keep_exchange(
        self, fork: Fork, prompt: list[int], said: list[int], start: Sequence[int]
    ) -> None:
        """Close the answer's turn and commit question and answer to the stream."""
        manager = self.cache_manager
        unread = [*prompt, *said][fork.length :]
        logits = self.text_path.append([*unread, *self._chat.answer_end], start, fork)
        check_finite("logits or keys of an exchange that was to be kept", logits, fork.own())
        state = dataclasses.replace(
            manager.state, open_segment=False, exchanges=manager.state.exchanges + 1
        )
        manager.commit(fork, [TextSpan(fork.length)], state, chunk=False)

    def _repeat_exchange(self, question: str, said: list[int]) -> None:
        """Keep an exchange behind what came while it was written: computed again in its place."""
        manager = self.cache_manager
        prompt = self._question_ids(question, None)
        needed = len(prompt) + len(said) + len(self._chat.answer_end)
        self._check_exchange(needed)
        with manager.fork(needed, question=True) as fork:
            self._keep_exchange(fork, prompt, said, fork.start)

    def _check_exchange(self, tokens: int) -> None:
        """Raise CapTooSmallError if an exchange of so many tokens can never be kept."""
        self.cache_manager.evictor.check_room(
            tokens,
            "a question with its answer",
            "lower max_new_tokens, shorten the question, or do not keep the exchange",
        )

    def _budgeted(
        self,
        config: EvictionConfig,
        position_policy: str,
        tail_tokens: int,
        slack: int,
        group: EngineGroup | None,
    ) -> EvictionConfig:
        """The config with its cap settled; DeviceUnavailableError where that does not fit."""
        free = free_bytes(self.device)
        if group is not None and config.max_cache_tokens == 0:
            raise InvalidParameterError(
                "max_cache_tokens 0 takes all the room there is: say how many for each of a group"
            )
        max_pixels = self._frames.settings.at_most(self.max_pixels or USUAL_PIXELS)
        weights = sum(weight.nbytes for weight in self.model.parameters())
        budget = MemoryBudget.of(
            self.model.config,
            self.model.kv_shape,
            weights,
            config,
            position_policy,
            max_pixels,
            tail_tokens,
            slack,
            self._chat.max_chunk_text(self.layout),
        )
        why = ""
        if config.max_cache_tokens == 0:
            min_tokens = config.sink_size + config.window_size
            cap, why = budget.automatic_cap(free, self.device, min_tokens)
            config = dataclasses.replace(config, max_cache_tokens=cap)
            why = f". max_cache_tokens 0: {why}"
        elif free is not None and (
            group is None or not group.room.has(config.max_cache_tokens + slack)
        ):
            budget.check(config.max_cache_tokens, free, self.device)
        self.memory_plan = budget.plan(config.max_cache_tokens, free, self.device) + why
        log.info(self.memory_plan)
        return config

    def _mark(self) -> torch.cuda.Event | float:
        """A point in time of the device, which nobody waits for; see `_seconds_between`."""
        if self.device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record(torch.cuda.current_stream(self.device))
        return event

    def _synchronized_time(self) -> float:
        """The time once the device has finished what it was given."""
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


def _seconds_between(one: Any, other: Any) -> float:
    """Between two points in time of a device that has reached both."""
    if isinstance(one, float):
        return float(other - one)
    return float(one.elapsed_time(other)) / 1e3


def _describe_eviction(config: EvictionConfig | None) -> str:
    """What is forgotten, in one line."""
    if config is None:
        return "eviction off: the memory grows without bound"
    sink, window = (size or "auto" for size in (config.sink_size, config.window_size))
    preset = ", preset novelty" if config.automatic else ""
    return (
        f"eviction on: at most {config.max_cache_tokens:,} tokens, sink {sink}, window {window}"
        + preset
    )


def _end_ids(model: StreamModel, processor: StreamProcessor) -> set[int]:
    """Tokens that end an answer: those of the generation config, and the tokenizer's own."""
    ids: set[int] = set()
    for source in (model.generation_config.eos_token_id, processor.tokenizer.eos_token_id):
        if isinstance(source, int):
            ids.add(source)
        elif source is not None:
            ids.update(source)
    return ids
