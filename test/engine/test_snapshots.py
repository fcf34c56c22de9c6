# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Snapshots cost nothing, bring the stream back exactly, and refuse when they cannot."""

import pickle
import threading

import pytest
import torch
from amounts import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from toy_qwen import SINK_AND_WINDOW
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import eager_attention_forward

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.engine.attention import sdpa
from stream_vlm_ros.engine.attention.base import merge_attn_states
from stream_vlm_ros.engine.attention.sdpa import attend_few, attend_own, attend_shared
from stream_vlm_ros.engine.cache.manager import KVCacheManager
from stream_vlm_ros.errors import InvalidParameterError, SnapshotEvictedError, StreamBusyError

QUICK = settings(
    max_examples=examples(12),
    suppress_health_check=list(HealthCheck),
    derandomize=True,
)


def state_of(engine):
    manager = engine.cache_manager
    return (
        manager.gather(),
        manager.ledger.positions(),
        manager.ledger.next_position,
        manager.ledger.parts(),
        manager.evictor.mark(),
        manager.state,
        manager.get_seq_length(),
        manager.last_cache_position,
        manager.rope_delta,
    )


def same(one, other, tolerance=0.0):
    return all(
        torch.allclose(a, b, rtol=0, atol=tolerance) if isinstance(a, torch.Tensor) else a == b
        for a, b in zip(one, other, strict=True)
    )


def do(engine, toys, operation, seed):
    if operation == "exchange" and engine.cache_manager.state.frames:
        engine.ask("And?", 2, update_state=True)
    else:
        frames = toys.frames(1 + seed % 4, 28 * (1 + seed % 3), 56, seed=seed)
        engine.append_video_chunk(frames, fps=2)


OPERATIONS = st.lists(st.sampled_from(["chunk", "chunk", "exchange"]), max_size=5)


@QUICK
@given(
    before=OPERATIONS,
    between=OPERATIONS,
    after=OPERATIONS,
    layout=st.sampled_from(["continuous", "segmented"]),
    sink=st.sampled_from([0, 3, 70, 100]),
    capped=st.booleans(),
)
def test_restore_brings_the_stream_back_as_if_nothing_had_come_since(
    toys, model, processor, before, between, after, layout, sink, capped
):
    config = EvictionConfig(2000, sink_size=sink, **SINK_AND_WINDOW) if capped else None
    engine, straight = (
        VideoStreamingInference(model, processor, eviction_config=config, layout=layout)
        for _ in range(2)
    )
    for number, operation in enumerate(before):
        do(engine, toys, operation, number)
        do(straight, toys, operation, number)
    saved, was = engine.cache_manager.snapshot(), state_of(engine)
    for number, operation in enumerate(between):
        do(engine, toys, operation, 50 + number)
    engine.cache_manager.restore(saved)
    assert same(state_of(engine), was)
    for number, operation in enumerate(after):
        do(engine, toys, operation, 100 + number)
        do(straight, toys, operation, 100 + number)
    assert same(state_of(engine), state_of(straight))
    engine.cache_manager.discard_snapshot(saved)


def test_a_snapshot_whose_content_was_evicted_is_refused_and_says_why(toys, model, processor):
    engine = VideoStreamingInference(
        model, processor, eviction_config=EvictionConfig(100, **SINK_AND_WINDOW)
    )
    for number in range(4):
        engine.append_video_chunk(toys.frames(4, seed=number), fps=2)
    saved = engine.cache_manager.snapshot()
    engine.append_video_chunk(toys.frames(4, seed=9), fps=2)
    before = state_of(engine)
    # 57 + 4 x 12 = 105 tokens: five over the cap.
    with pytest.raises(SnapshotEvictedError, match="5 tokens that it covers have been evicted"):
        engine.cache_manager.restore(saved)
    assert same(before, state_of(engine))


def test_a_snapshot_from_before_a_longer_way_back_is_refused(toys, model, processor):
    engine = VideoStreamingInference(model, processor)
    engine.append_video_chunk(toys.frames(4), fps=2)
    early = engine.cache_manager.snapshot()
    engine.append_video_chunk(toys.frames(4, seed=1), fps=2)
    late = engine.cache_manager.snapshot()
    engine.cache_manager.restore(early)
    engine.append_video_chunk(toys.frames(4, seed=2), fps=2)  # as long as before, other content
    with pytest.raises(SnapshotEvictedError, match="cleared or taken back further"):
        engine.cache_manager.restore(late)
    engine.cache_manager.restore(early)
    engine.reset()
    with pytest.raises(SnapshotEvictedError, match="cleared"):
        engine.cache_manager.restore(early)


@pytest.mark.parametrize("cap", [None, 130])
def test_a_clone_survives_eviction_and_reset(toys, model, processor, cap):
    config = EvictionConfig(cap, **SINK_AND_WINDOW) if cap else None
    engine, straight = (
        VideoStreamingInference(model, processor, eviction_config=config) for _ in range(2)
    )
    for number in range(9):
        for one in (engine, straight):
            one.append_video_chunk(toys.frames(4, seed=number), fps=2)
    copy, was = engine.cache_manager.clone(), state_of(engine)
    snapshot = engine.cache_manager.snapshot()
    for number in range(9):
        engine.append_video_chunk(toys.frames(4, seed=20 + number), fps=2)
    engine.reset()
    engine.cache_manager.restore(copy)
    assert same(state_of(engine), was)
    with pytest.raises(SnapshotEvictedError):
        engine.cache_manager.restore(snapshot)
    for number in range(9):
        for one in (engine, straight):
            one.append_video_chunk(toys.frames(4, seed=40 + number), fps=2)
    # The ring begins elsewhere in its buffer now, so sums over it round differently.
    assert same(state_of(engine), state_of(straight), tolerance=1e-4)
    assert engine.ask("What?", 5)[0] == straight.ask("What?", 5)[0]


def test_a_snapshot_of_another_engine_is_refused(toys, model, processor):
    one, other = (VideoStreamingInference(model, processor) for _ in range(2))
    for engine, seed in ((one, 0), (other, 1), (other, 2)):
        engine.append_video_chunk(toys.frames(4, seed=seed), fps=2)
    was = state_of(other)
    with pytest.raises(InvalidParameterError, match="another engine"):
        other.cache_manager.restore(one.cache_manager.snapshot())
    assert same(state_of(other), was)


@pytest.mark.parametrize(
    "options",
    [
        {"eviction_config": EvictionConfig(120, **SINK_AND_WINDOW)},
        {"eviction_config": None},
        {"position_policy": "keep_gaps"},
        {"fork_slack_tokens": 50},
    ],
    ids=["cap", "no cap", "policy", "slack"],
)
def test_a_clone_of_a_memory_with_other_settings_is_refused_by_name(
    toys, model, processor, options
):
    usual = {"eviction_config": EvictionConfig(160, **SINK_AND_WINDOW)}
    one, other, third = (
        VideoStreamingInference(model, processor, **{**usual, **more}) for more in (options, {}, {})
    )
    for number in range(9):
        for engine in (one, other, third):
            engine.append_video_chunk(toys.frames(4, seed=number), fps=2)
    was = state_of(other)
    with pytest.raises(InvalidParameterError, match="this clone is of a memory whose"):
        other.cache_manager.restore(one.cache_manager.clone())
    assert same(state_of(other), was)
    other.append_video_chunk(toys.frames(4, seed=9), fps=2)
    other.cache_manager.restore(third.cache_manager.clone())  # of the same settings
    assert same(state_of(other), was)


def test_a_clone_shares_a_score_of_ones_own(toys, model, processor):
    class Brightest:
        def __init__(self):
            self.lock = threading.Lock()  # cannot be copied

        def describe(self, features):
            return features.float().mean().reshape(1).numpy()

        def rank(self, descriptors):
            return descriptors[:, 0]

    score = Brightest()
    config = EvictionConfig(130, important_share=0.4)
    engine, straight = (
        VideoStreamingInference(model, processor, eviction_config=config, importance=score)
        for _ in range(2)
    )
    for number in range(9):
        for one in (engine, straight):
            one.append_video_chunk(toys.frames(4, seed=number), fps=2)
    copy, was = engine.cache_manager.clone(), state_of(engine)
    for number in range(9):
        engine.append_video_chunk(toys.frames(4, seed=20 + number), fps=2)
    engine.cache_manager.restore(copy)
    assert same(state_of(engine), was)
    for number in range(9):
        for one in (engine, straight):
            one.append_video_chunk(toys.frames(4, seed=40 + number), fps=2)
    assert engine.get_cache_info() == {
        **straight.get_cache_info(),
        "reserved_memory_bytes": engine.get_cache_info()["reserved_memory_bytes"],
    }


@pytest.mark.parametrize("kind", ["snapshot", "clone"])
def test_nothing_is_taken_back_under_an_answer_that_reads_it(toys, model, processor, kind):
    engine = VideoStreamingInference(model, processor)
    engine.append_video_chunk(toys.frames(4), fps=2)
    manager = engine.cache_manager
    saved = getattr(manager, kind)()
    engine.append_video_chunk(toys.frames(4, seed=1), fps=2)
    alone, before = engine.ask("What?", 8)[0], state_of(engine)
    writer = engine.ask_stream("What?", 8)
    next(writer)
    with pytest.raises(StreamBusyError, match="finish or cancel it first"):
        manager.restore(saved)
    assert same(before, state_of(engine))
    engine.append_video_chunk(toys.frames(4, seed=2), fps=2)
    for _ in writer:
        pass
    assert writer.text == alone
    manager.restore(saved)


@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.4, 0.0)])
def test_calls_may_come_in_and_out_of_the_callers_inference_mode(toys, model, processor, shares):
    config = EvictionConfig(130, 0, 0, 1, *shares)

    def run(modes):
        modes = iter(modes)
        with torch.inference_mode(next(modes)):
            engine = VideoStreamingInference(model, processor, eviction_config=config)
        for number, mode in enumerate(modes):
            with torch.inference_mode(mode):
                if number == 6:
                    engine.cache_manager.restore(engine.cache_manager.clone())
                engine.append_video_chunk(toys.frames(4, seed=number), fps=2)
                engine.ask("What?", 1, update_state=True)
        return engine.cache_manager.gather()

    plain = run([False] * 12)
    assert torch.equal(run([True] + [False] * 11), plain)
    assert torch.equal(run([False, True] * 6), plain)


def test_snapshot_and_restore_copy_no_key(toys, model, processor):
    engine = VideoStreamingInference(
        model, processor, eviction_config=EvictionConfig(500, **SINK_AND_WINDOW)
    )
    engine.append_video_chunk(toys.frames(4), fps=2)
    pointer = engine.cache_manager.memory.data_ptr()
    saved = engine.cache_manager.snapshot()
    engine.append_video_chunk(toys.frames(4), fps=2)
    engine.cache_manager.restore(saved)
    assert engine.cache_manager.memory.data_ptr() == pointer
    held = sum(len(part) for part in pickle.dumps(saved).splitlines())
    assert held < engine.cache_manager.live_bytes / 10


class GroupedHeads(torch.nn.Module):
    num_key_value_groups = 3
    training = False


@pytest.mark.parametrize(("past", "before", "new"), [(40, 0, 7), (40, 5, 7), (40, 5, 1), (0, 0, 3)])
def test_attention_in_parts_equals_one_attention_under_the_full_mask(
    toys, model, processor, past, before, new
):
    torch.manual_seed(0)
    query = torch.randn(2, 6, new, 16)
    shared = torch.randn(2, 2, past, 16)  # keys, values of two KV heads
    own = torch.randn(2, 2, 2, before + new, 16)  # keys, values of a batch of two
    parts = attend_own(query, own[0], own[1], 0.3)
    for start, stop in ((0, past // 3), (past // 3, past)):
        if stop > start:
            parts += attend_shared(query, shared[:, :, start:stop], 0.3)
    # The reference's way: everything in one tensor, and the manager's mask.
    manager = KVCacheManager()
    manager.track_tokens(past)
    mask = manager.build_full_attention_mask(before + new)[:, :, before:]
    keys, values = (torch.cat([shared[i].expand(2, -1, -1, -1), own[i]], dim=2) for i in range(2))
    expected, _ = eager_attention_forward(GroupedHeads(), query, keys, values, mask, 0.3)
    merged = merge_attn_states(parts).flatten(1, 2)
    assert (merged.transpose(1, 2) - expected).abs().max() < 1e-5
    for row in range(2):  # the way of a few tokens takes one sequence
        asked = query[row : row + 1]
        few = [(asked, shared[:, :, of]) for of in (slice(0, 9), slice(9, past)) if past]
        out = attend_few(asked, *own[:, row], 0.3, few)
        assert (out.transpose(1, 2) - expected[row : row + 1]).abs().max() < 1e-5


@pytest.mark.parametrize("position_policy", ["keep_gaps", "contiguous"])
def test_a_few_tokens_and_many_are_attended_to_alike(
    toys, model, processor, monkeypatch, position_policy
):
    said = []
    for few in (0, sdpa.FEW_SCORES):
        monkeypatch.setattr(sdpa, "FEW_SCORES", few)
        engine = VideoStreamingInference(
            model,
            processor,
            eviction_config=EvictionConfig(120, **SINK_AND_WINDOW),
            layout="segmented",
            position_policy=position_policy,
        )
        for _ in range(8):
            engine.append_video_chunk(toys.frames(4), fps=2)
        start = engine.cache_manager.ledger.next_position
        with engine.cache_manager.question_fork(40, 0) as fork:
            turned = [part.rope_offset is not None for part in fork.parts]
            assert any(turned) == (position_policy == "contiguous")
            engine.text_path.append(list(range(30)), start, fork)
            said.append(engine.text_path.append([5], start, fork))
    assert torch.allclose(*said, rtol=0, atol=1e-4)
    assert not torch.equal(*said)  # two ways they are
