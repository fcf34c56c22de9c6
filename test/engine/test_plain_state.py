# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A memory's state is plain data: another engine goes on where it stood."""

import json

import pytest
import torch

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.engine.cache.eviction import AUTO
from stream_vlm_ros.engine.cache.plain import from_plain, to_plain
from stream_vlm_ros.errors import InvalidParameterError, SnapshotEvictedError, StreamBusyError

LEVELS = [None, (0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.3, 0.3), (AUTO, AUTO)]


def make(model, processor, shares=(0.3, 0.3), cap=150, **options):
    config = EvictionConfig(cap, 0, 0, 1, *shares) if shares else None
    return VideoStreamingInference(model, processor, eviction_config=config, **options)


def watch(toys, engine, numbers):
    for number in numbers:
        engine.append_video_chunk(toys.frames(4, seed=number), fps=2)


def through_json(engine):
    state, kv = engine.cache_manager.export()
    plain, tensors = to_plain(state)
    return from_plain(json.loads(json.dumps(plain)), tensors), kv


def without_reserved(engine):
    return {**engine.get_cache_info(), "reserved_memory_bytes": None}


@pytest.mark.parametrize("shares", LEVELS)
@pytest.mark.parametrize("layout", ["continuous", "segmented"])
@pytest.mark.parametrize("policy", ["contiguous", "keep_gaps"])
@pytest.mark.parametrize("chunks", [0, 1, 14])
def test_another_engine_goes_on_where_the_first_one_stood(
    toys, model, processor, shares, layout, policy, chunks
):
    options = dict(layout=layout, position_policy=policy, skip_similarity=0.9)
    one, other = (make(model, processor, shares, **options) for _ in range(2))
    watch(toys, one, range(chunks))
    if chunks:
        one.ask("And?", 2, update_state=True)
    watch(toys, other, range(50, 53))  # what is there is replaced
    other.cache_manager.adopt(*through_json(one))
    for engine in (one, other):
        watch(toys, engine, range(20, 24))
    assert without_reserved(one) == without_reserved(other)
    assert torch.equal(one.cache_manager.ledger.positions(), other.cache_manager.ledger.positions())
    memories = [engine.cache_manager.gather() for engine in (one, other)]
    # The ring begins elsewhere in its buffer, so sums over it round differently.
    torch.testing.assert_close(*memories, rtol=0, atol=1e-4)
    assert one.ask("What is it?", 8)[0] == other.ask("What is it?", 8)[0]


def test_a_memory_that_does_not_fit_is_refused_and_nothing_changes(toys, model, processor):
    engine, small = make(model, processor), make(model, processor, cap=100)
    watch(toys, engine, range(14))
    state, kv = through_json(engine)
    gaps = make(model, processor, position_policy="keep_gaps")
    plain, tensors = to_plain(state)
    for one in (small, gaps, engine):
        watch(toys, one, [30])
        before, memory = without_reserved(one), one.cache_manager.gather()
        snapshot = one.cache_manager.snapshot()
        with pytest.raises(InvalidParameterError, match="does not fit"):
            one.cache_manager.adopt(state, kv if one is not engine else kv[:, :, :, 1:])
        assert without_reserved(one) == before
        assert torch.equal(one.cache_manager.gather(), memory)
        one.cache_manager.restore(snapshot)
    lies = {"slots": 5}, {"waiting": {"map": 1}}, {"kind": "Path"}, {"more": 1}, {"stream": None}
    for lie in lies:
        with pytest.raises(InvalidParameterError, match="no memory's state"):
            from_plain({**plain, **lie}, tensors)
    with pytest.raises(InvalidParameterError, match="no memory's state"):
        from_plain(plain, {})
    writer = engine.ask_stream("What is it?", 4)
    next(writer)
    with pytest.raises(StreamBusyError):
        engine.cache_manager.adopt(state, kv)
    writer.close()
    engine.cache_manager.adopt(state, kv)
    with pytest.raises(SnapshotEvictedError):
        engine.cache_manager.restore(snapshot)
