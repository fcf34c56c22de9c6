# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""After evictions the engine computes what an oracle computes from unrotated keys.

The oracle keeps every key as it was before rotation, drops what is forgotten from a plain list,
lays the kept tokens out again one by one (`lay_out`), rotates them from scratch with the library's
own rotation, and runs the stock model on top.
"""

from dataclasses import dataclass

import pytest
import torch
from amounts import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_qwen import SINK_AND_WINDOW, stock_twin
from transformers import DynamicCache
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import apply_rotary_pos_emb

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.engine.attention.base import Readout
from stream_vlm_ros.engine.cache.eviction import AUTO
from stream_vlm_ros.engine.cache.mrope import TextSpan
from stream_vlm_ros.errors import CapTooSmallError, StreamBusyError

pytestmark = pytest.mark.no_cover


@dataclass(frozen=True)
class Token:
    """A text token (segment None) or a vision token of the segment's grid number ``grid``."""

    segment: int | None = None
    grid: int = 0
    row: int = 0
    column: int = 0
    number: int = -1  # of the grid in the whole stream


def lay_out(tokens: list[Token], ticks: dict[int, list[int]]) -> list[tuple[int, int, int]]:
    """Positions by the trained rule. A grid follows the last kept one of its segment by the step
    that originally followed that one; text and new segments start after the maximum of all."""
    positions, end, segment, grid, base, t = [], 0, None, 0, 0, 0
    for token in tokens:
        if token.segment is None:
            positions.append((end, end, end))
            end, segment = end + 1, None
            continue
        if token.segment != segment:
            segment, grid, base, t = token.segment, token.grid, end, end
        elif token.grid != grid:
            times = ticks[segment]
            t, grid = t + times[grid + 1] - times[grid], token.grid
        positions.append((t, base + token.row, base + token.column))
        end = max(end, *(axis + 1 for axis in positions[-1]))
    return positions


class Oracle:
    """Watches an engine and can recompute what any of its forward passes must have given."""

    def __init__(self, engine: VideoStreamingInference, policy: str):
        self.engine, self.policy = engine, policy
        model, manager = engine.model, engine.cache_manager
        self.stock = stock_twin(model)
        self.layers = range(model.config.text_config.num_hidden_layers)
        self.tokens: list[Token] = []  # kept ones
        self.ever: list[Token] = []  # all
        self.kept: list[int] = []  # numbers of the kept ones among all
        self.ticks: dict[int, list[int]] = {}
        self.raw: list[list[torch.Tensor]] = [[] for _ in self.layers]  # [kv_heads, 2, d] a token
        self.pending: dict[int, list[list[torch.Tensor]]] = {}
        self.last: tuple[torch.Tensor, torch.Tensor] | None = None  # embeddings, hidden
        self.segment, self.grids = -1, 0
        self.forward, self.commit = model.stream_forward, manager.commit
        model.stream_forward, manager.commit = self.on_forward, self.on_commit

    def detach(self):
        del self.engine.model.stream_forward
        del self.engine.cache_manager.commit

    def on_forward(self, embeddings, positions, fork, *options, readout=None):
        assert readout is None  # the engine reads nothing by itself
        mine = self.pending.setdefault(id(fork), [[] for _ in self.layers])
        if fork.length == 0:
            mine[:] = [[] for _ in self.layers]
        self.fresh = fork.length == 0
        before, heads = fork.length, range(self.engine.model.kv_shape.kv_heads)
        readout = Readout(keys=dict.fromkeys(self.layers, heads))
        hidden = self.forward(embeddings, positions, fork, *options, readout=readout)
        for layer in self.layers:  # keys as they were before their rotation, and values
            values = fork.own()[layer, 1, :, before:]
            mine[layer].append(torch.stack([readout.keys(layer), values]).clone())
        if self.fresh:
            self.last = (embeddings.clone(), hidden.clone())
        return hidden

    def on_commit(self, fork, spans, *details, **named):
        raw = [torch.cat(pieces, dim=2).clone() for pieces in self.pending.pop(id(fork))]
        count, first = fork.length, len(self.ever) == 0
        evicted = self.commit(fork, spans, *details, **named)
        new = []
        for span in spans:
            if isinstance(span, TextSpan):
                new += [Token()] * span.count
                continue
            if span.opens:
                self.segment += 1
                self.ticks[self.segment] = []
            for tick in span.ticks:
                grid = len(self.ticks[self.segment])
                self.ticks[self.segment].append(tick)
                new += [
                    Token(self.segment, grid, row, column, self.grids)
                    for row in range(span.height)
                    for column in range(span.width)
                ]
                self.grids += 1
        assert len(new) == count
        if first:
            self.sink = self.engine.cache_manager.evictor.config.sink_size or count
        self.kept += range(len(self.ever), len(self.ever) + count)
        self.ever += new
        for layer, states in enumerate(raw):
            self.raw[layer] += list(states.unbind(2))
        if not self.engine.cache_manager.evictor.keeps_grids:
            del self.kept[self.sink : self.sink + evicted]
        self.look()
        return evicted

    def look(self):
        """See what is kept now: evictions may have waited for the end of an answer."""
        if self.engine.cache_manager.evictor.keeps_grids:
            # Which grids were kept is the evictor's choice, tested elsewhere; here only where.
            ledger = self.engine.cache_manager.ledger
            chosen = {number for number, _ in ledger.kept_offsets()}
            window = len(self.ever) - ledger.window_length
            sink = range(min(self.sink, len(self.ever)))
            self.kept = [
                *sink,
                *(n for n in range(len(sink), window) if self.ever[n].number in chosen),
                *range(max(window, len(sink)), len(self.ever)),
            ]

    def positions(self) -> tuple[torch.Tensor, int]:
        if self.policy == "keep_gaps":
            everything = lay_out(self.ever, self.ticks)
            chosen = [everything[number] for number in self.kept]
            end = 1 + max(max(position) for position in everything)
        else:
            chosen = lay_out([self.ever[number] for number in self.kept], self.ticks)
            end = 1 + max(max(position) for position in chosen)
        return torch.tensor(chosen).T, end

    @torch.no_grad()
    def recompute(self, embeddings: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Hidden states of new tokens at ``positions [3, n]`` over the kept ones."""
        text = self.stock.model.language_model
        kept, _ = self.positions()
        cos, sin = text.rotary_emb(embeddings, kept[:, None])
        cache = DynamicCache()
        for layer, raw in enumerate(self.raw):
            states = torch.stack([raw[number] for number in self.kept], dim=2)
            keys, _ = apply_rotary_pos_emb(states[:1], states[:1], cos, sin)
            cache.update(keys, states[1:], layer)
        return text(
            inputs_embeds=embeddings, position_ids=positions[:, None], past_key_values=cache
        ).last_hidden_state


def check_question(engine: VideoStreamingInference, oracle: Oracle) -> None:
    engine.ask("Is it so?", max_new_tokens=1)
    oracle.look()
    embeddings, hidden = oracle.last
    _, end = oracle.positions()
    line = torch.arange(end, end + embeddings.shape[1]).expand(3, -1)
    expected = oracle.recompute(embeddings, line)
    assert (hidden - expected).abs().max() / expected.abs().max() < 2e-4


OPERATIONS = st.one_of(
    st.tuples(
        st.just("chunk"),
        st.integers(1, 5),  # frames
        st.sampled_from([(1, 1), (2, 3), (3, 2), (1, 5)]),  # tokens down and across
        st.sampled_from([0.5, 1.0, 2.0, 7.0]),  # fps
    ),
    st.tuples(st.just("exchange"), st.integers(1, 4)),
    st.tuples(st.sampled_from(["answer begins", "answer ends"])),
)


@settings(
    max_examples=examples(40),
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)
@given(
    operations=st.lists(OPERATIONS, min_size=3, max_size=16),
    room=st.integers(16, 90),
    sink=st.sampled_from([0, 0, 1, 4, 50, 59]),
    interval=st.sampled_from([1, 1, 3]),
    layout=st.sampled_from(["continuous", "segmented"]),
    policy=st.sampled_from(["contiguous", "keep_gaps"]),
    shares=st.sampled_from([(0, 0), (0, 0), (0.4, 0), (0, 0.4), (0.3, 0.3), (AUTO, AUTO)]),
)
def test_after_any_evictions_a_question_sees_what_the_oracle_sees(
    toys, model, processor, operations, room, sink, interval, layout, policy, shares
):
    # The first chunk has 45 text tokens (55 segmented) and some vision: about 60.
    sampled, important = shares
    config = EvictionConfig(
        60 + room, sink, 0, interval, sampled_share=sampled, important_share=important
    )
    engine = VideoStreamingInference(
        model,
        processor,
        eviction_config=config,
        layout=layout,
        position_policy=policy,
        fork_slack_tokens=50,
    )
    oracle, writer = Oracle(engine, policy), None
    try:
        for number, (kind, *details) in enumerate(operations):
            try:
                if kind == "chunk":
                    count, (rows, columns), fps = details
                    frames = toys.frames(count, rows * 28, columns * 28, seed=number)
                    engine.append_video_chunk(frames, fps=fps)
                elif kind == "answer ends":
                    writer = None
                elif kind == "answer begins" and engine.cache_manager.state.frames:
                    writer = engine.ask_stream("Where?", 4)
                    next(writer, None)
                elif kind == "exchange" and engine.cache_manager.state.frames:
                    engine.ask(f"No. {number}?", max_new_tokens=details[0], update_state=True)
            except (CapTooSmallError, StreamBusyError):
                continue
            if engine.cache_manager.state.frames:
                check_question(engine, oracle)
                assert engine.cache_manager.get_seq_length() == len(oracle.kept)
                slack = 0 if writer is None else 50
                assert engine.cache_manager.get_seq_length() <= config.max_cache_tokens + slack
    finally:
        oracle.detach()


@pytest.mark.parametrize("layout", ["continuous", "segmented"])
@pytest.mark.parametrize("sink", [46, 50, 52, 57])
def test_a_sink_may_end_inside_a_grid(toys, model, processor, layout, sink):
    # Text up to the first frame takes 45 tokens, then grids of 6; a grid every 2 s, 4 positions.
    engine = VideoStreamingInference(
        model,
        processor,
        eviction_config=EvictionConfig(120, sink_size=sink, **SINK_AND_WINDOW),
        layout=layout,
    )
    oracle = Oracle(engine, "contiguous")
    try:
        for number in range(10):
            engine.append_video_chunk(toys.frames(4, 56, 84, seed=number), fps=1)
            check_question(engine, oracle)
        assert engine.cache_manager.evictor.total_evictions > 2
    finally:
        oracle.detach()


@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.4, 0.0)])
def test_a_sink_may_end_inside_a_grid_that_shares_its_tick_with_the_next(
    toys, model, processor, shares
):
    # 45 tokens of text and grids of 6 at ticks 0, 0, 8, 8, 16, ...: 3 tokens of the third stay.
    config = EvictionConfig(120, 60, 0, 1, *shares)
    engine = VideoStreamingInference(model, processor, eviction_config=config)
    oracle = Oracle(engine, "contiguous")
    try:
        for number in range(16):
            stamps = [4.0 * (number // 2)] * 2
            engine.append_video_chunk(toys.frames(2, 56, 84, seed=number), timestamps=stamps)
            check_question(engine, oracle)
        assert engine.cache_manager.evictor.total_evictions > 2
    finally:
        oracle.detach()


@pytest.mark.parametrize("policy", ["contiguous", "keep_gaps"])
@pytest.mark.parametrize("layout", ["continuous", "segmented"])
@pytest.mark.parametrize(
    ("rows", "columns", "cap"),
    [(1, 1, 62), (2, 3, 100), (7, 9, 400)],  # the last: rows and columns outgrow t by far
)
def test_a_chunk_after_many_evictions_sees_what_the_oracle_sees(
    toys, model, processor, rows, columns, cap, layout, policy
):
    engine = VideoStreamingInference(
        model,
        processor,
        eviction_config=EvictionConfig(cap, **SINK_AND_WINDOW),
        layout=layout,
        position_policy=policy,
    )
    oracle = Oracle(engine, policy)
    try:
        for number in range(12):
            engine.append_video_chunk(toys.frames(4, rows * 28, columns * 28, seed=number), fps=2)
        assert engine.cache_manager.evictor.total_evictions > 3
        frames = toys.frames(2, rows * 28, columns * 28, seed=99)
        before = (list(oracle.kept), [list(raw) for raw in oracle.raw])
        engine.append_video_chunk(frames, fps=2)
        embeddings, hidden = oracle.last
        after = list(oracle.ever)
        oracle.kept, oracle.raw = before
        count = embeddings.shape[1]
        # Where the new tokens lie: behind the kept ones, by the same rule.
        numbers = [*oracle.kept, *range(len(after) - count, len(after))]
        if policy == "contiguous":
            positions = lay_out([after[n] for n in numbers], oracle.ticks)[-count:]
        else:
            positions = lay_out(after, oracle.ticks)[-count:]
        expected = oracle.recompute(embeddings, torch.tensor(positions).T)
        assert (hidden - expected).abs().max() / expected.abs().max() < 2e-4
    finally:
        oracle.detach()


@pytest.mark.parametrize("policy", ["contiguous", "keep_gaps"])
@pytest.mark.parametrize("layout", ["continuous", "segmented"])
@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.3, 0.3)])
def test_a_chunk_sees_what_is_to_be_evicted_once_the_answer_being_written_ends(
    toys, model, processor, layout, policy, shares
):
    """Sink and window alone evict at once, so it never sees more than the cap."""
    config = EvictionConfig(150, 0, 0, 1, *shares)
    engine = VideoStreamingInference(
        model,
        processor,
        eviction_config=config,
        layout=layout,
        position_policy=policy,
        fork_slack_tokens=80,
    )
    oracle = Oracle(engine, policy)
    try:
        for number in range(12):
            engine.append_video_chunk(toys.frames(4, seed=number), fps=2)
        writer = engine.ask_stream("What is it?", 4)
        next(writer)
        for number in range(12, 15):
            length = len(oracle.kept)
            before = (list(oracle.kept), [list(raw) for raw in oracle.raw])
            engine.append_video_chunk(toys.frames(4, seed=number), fps=2)
            embeddings, hidden = oracle.last
            count = embeddings.shape[1]
            behind = [*before[0], *range(len(oracle.ever) - count, len(oracle.ever))]
            after, oracle.kept = (oracle.kept, oracle.raw), behind
            positions = oracle.positions()[0][:, -count:]
            oracle.kept, oracle.raw = before
            expected = oracle.recompute(embeddings, positions)
            assert (hidden - expected).abs().max() / expected.abs().max() < 2e-4
            oracle.kept, oracle.raw = after
        assert (length > 150) == (shares != (0.0, 0.0))
    finally:
        oracle.detach()


@pytest.mark.parametrize("policy", ["contiguous", "keep_gaps"])
@pytest.mark.parametrize("layout", ["continuous", "segmented"])
@pytest.mark.parametrize("shares", [(0.5, 0.0), (0.0, 0.5), (0.35, 0.25)])
def test_frames_kept_for_long_are_seen_where_the_oracle_puts_them(
    toys, model, processor, layout, policy, shares
):
    config = EvictionConfig(190, sampled_share=shares[0], important_share=shares[1])
    engine = VideoStreamingInference(
        model, processor, eviction_config=config, layout=layout, position_policy=policy
    )
    oracle = Oracle(engine, policy)
    try:
        for number in range(24):
            rows, columns = ((2, 3), (3, 2), (1, 5))[number // 8]
            frames = toys.frames(3 + number % 2, rows * 28, columns * 28, seed=number)
            engine.append_video_chunk(frames, fps=1.7)
            if number % 9 == 8:
                engine.ask("Well?", 2, update_state=True)
            check_question(engine, oracle)
        levels = engine.get_cache_info()["levels"]
        assert ("sampled" in levels, "important" in levels) == (shares[0] > 0, shares[1] > 0)
    finally:
        oracle.detach()


@pytest.mark.parametrize("evictions", [200, pytest.param(2000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("policy", ["contiguous", "keep_gaps"])
def test_sink_keys_do_not_drift_through_many_evictions_in_bfloat16(toys, policy, evictions):
    model = toys.model(1, layers=1).to(torch.bfloat16)
    engine = VideoStreamingInference(
        model,
        toys.processor(),
        eviction_config=EvictionConfig(120, **SINK_AND_WINDOW),
        position_policy=policy,
    )
    engine.append_video_chunk(toys.frames(2, 28, 28), fps=2)
    manager = engine.cache_manager
    sink = manager.evictor.effective_sink_size
    first = manager.gather()[:, :, :, :sink].clone()
    frame = toys.frames(2, 28, 28, seed=1)
    while manager.evictor.total_evictions < evictions:
        engine.append_video_chunk(frame, fps=2)
    assert torch.equal(manager.gather()[:, :, :, :sink], first)
    # What stands in the way of the sink is one rotation of the query, exact to float32.
    offset = manager.ledger.parts()[0][2]
    if policy == "contiguous":
        cos, sin = model.rotary.offset(offset, torch.device("cpu"))
        frequencies = (10_000.0 ** (-torch.arange(0, 8) / 8)).double()  # the model's, float32
        sections = model.config.text_config.rope_parameters["mrope_section"]
        axis = [i % 3 for i, n in enumerate(sections) for _ in range(n)]
        angles = torch.tensor([offset[a] for a in axis], dtype=torch.float64) * frequencies
        assert offset.t <= -evictions
        assert (cos[:8].double() - angles.cos()).abs().max() < 1e-6
        assert (sin[:8].double() - angles.sin()).abs().max() < 1e-6
    else:
        assert offset == (0, 0, 0)
