# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the memory offers to what accompanies it: notices, companions, parts of other memory."""

import gc
import threading

import pytest
import torch
from toy_qwen import stock_twin

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.engine.attention.base import KVPart, Readout
from stream_vlm_ros.engine.cache.mrope import Vec
from stream_vlm_ros.errors import StreamBusyError

CHUNK = 12  # tokens of a later chunk: two grids of six


def make(model, processor, shares=(0.3, 0.3), cap=150, slack=4 * CHUNK, **options):
    config = EvictionConfig(cap, 0, 0, 1, *shares)
    return VideoStreamingInference(
        model, processor, eviction_config=config, fork_slack_tokens=slack, **options
    )


def watch(toys, engine, numbers):
    for number in numbers:
        engine.append_video_chunk(toys.frames(4, seed=number), fps=2)


def grids_held(engine):
    return {
        grid.number
        for run in engine.cache_manager.ledger.runs()
        for grid in getattr(run, "grids", ())
    }


@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.5, 0.0), (0.3, 0.3)])
@pytest.mark.parametrize("sink", [0, 50])  # the second ends inside a grid
def test_listeners_hear_of_each_grid_once_nothing_of_it_is_left(
    toys, model, processor, shares, sink
):
    config = EvictionConfig(150, sink, 0, 1, *shares)
    engine = VideoStreamingInference(model, processor, eviction_config=config)
    heard = {}

    def listen(forgotten):
        for grid in forgotten:
            assert grid.number not in heard
            assert grid.number not in grids_held(engine)  # after it became so
            heard[grid.number] = grid

    engine.cache_manager.listen(listen)
    for number in range(20):
        watch(toys, engine, [number])
        assert heard.keys() | grids_held(engine) == set(range(2 * (number + 1)))
        assert not heard.keys() & grids_held(engine)
    # A grid a second, two frames half a second apart, of six tokens.
    assert all(grid.stamps == (float(n), n + 0.5) for n, grid in heard.items())
    assert {grid.tokens for grid in heard.values()} == {6}
    assert {grid.why for grid in heard.values()} == (
        {"window", "level"} if any(shares) else {"window"}
    )
    held = grids_held(engine)
    heard.clear()
    engine.reset()
    assert heard.keys() == held and {grid.why for grid in heard.values()} == {"cleared"}


def test_listeners_hear_of_what_is_taken_back_and_their_faults_end_nothing(toys, model, processor):
    engine, heard = make(model, processor, cap=500), []
    watch(toys, engine, range(3))
    saved = engine.cache_manager.snapshot()
    watch(toys, engine, range(3, 5))

    def fail(forgotten):
        raise RuntimeError("the disk is full")

    engine.cache_manager.listen(fail)
    engine.cache_manager.listen(heard.extend)
    with pytest.warns(RuntimeWarning, match="listener to what is forgotten failed.*disk is full"):
        engine.cache_manager.restore(saved)
    assert [(grid.number, grid.why) for grid in heard] == [
        (number, "taken back") for number in range(6, 10)
    ]
    watch(toys, engine, [5])


@pytest.mark.parametrize("call", ["gather", "clone", "clear", "restore", "prepare_reading"])
def test_a_listener_that_works_on_the_memory_is_refused_and_ends_nothing(
    toys, model, processor, call
):
    engine, straight = (make(model, processor, cap=150) for _ in range(2))
    engine.cache_manager.snapshot()
    refused, levels = [], []

    def listen(forgotten):
        levels.append(engine.cache_manager.levels())  # it may look
        with pytest.raises(StreamBusyError, match="a listener"):
            getattr(engine.cache_manager, call)()
        refused.append(call)

    engine.cache_manager.listen(listen)
    for one in (engine, straight):
        watch(toys, one, range(12))
    assert len(refused) > 2
    assert levels[-1] == straight.cache_manager.levels()
    assert torch.equal(engine.cache_manager.gather(), straight.cache_manager.gather())


class Index:
    """A companion: which grids there are, and the mean of their keys as read."""

    def __init__(self):
        self.fault = None

    def empty(self):
        return ()

    def draft(self, held, change):
        if self.fault is not None:
            raise self.fault
        gone = {grid.number for grid in change.forgotten}
        new, number, done = [], change.first_grid, 0
        for span in change.appended:
            for _ in getattr(span, "ticks", ()):
                size = span.height * span.width
                keys = change.read.keys(1)[:, done : done + size]
                new.append((number, keys.mean().item()))
                number, done = number + 1, done + size
            done += 0 if hasattr(span, "ticks") else span.count
        return tuple(one for one in (*held, *new) if one[0] not in gone)


def test_a_companion_becomes_current_together_with_the_memory(toys, model, processor):
    engine, index = make(model, processor), Index()
    manager = engine.cache_manager
    manager.accompany("index", index, Readout(keys={1: [0, 1]}))
    for number in range(14):
        watch(toys, engine, [number])
        assert {number for number, _ in manager.companion("index")} == grids_held(engine)
    copy, was = manager.clone(), manager.companion("index")
    index.fault = OSError("no space left")
    before = manager.gather()
    with pytest.raises(OSError, match="no space left"):
        watch(toys, engine, [14])
    assert manager.companion("index") is was and torch.equal(manager.gather(), before)
    index.fault = None
    watch(toys, engine, range(14, 18))
    assert {number for number, _ in manager.companion("index")} == grids_held(engine)
    manager.restore(copy)
    assert manager.companion("index") == was
    engine.reset()
    assert manager.companion("index") == ()


def test_keys_that_are_read_as_a_chunk_is_appended_are_the_librarys_projections(
    toys, model, processor
):
    read = []

    class Keeps(Index):
        def draft(self, held, change):
            read.append(change.read.keys(0))
            return held

    engine = make(model, processor)
    engine.cache_manager.accompany("keeps", Keeps(), Readout(keys={0: [1, 0]}))
    embedded = []
    forward = model.stream_forward
    model.stream_forward = lambda x, *rest, **named: (
        embedded.append(x),
        forward(x, *rest, **named),
    )[1]
    try:
        watch(toys, engine, [0])
    finally:
        del model.stream_forward
    layer = stock_twin(model).model.language_model.layers[0]
    with torch.no_grad():
        keys = layer.self_attn.k_proj(layer.input_layernorm(embedded[0][0]))
    expected = keys.unflatten(-1, (2, 16)).transpose(0, 1)[[1, 0]]
    torch.testing.assert_close(read[0], expected)


def test_a_fork_sees_parts_of_other_memory_where_it_is_told_to(toys, model, processor):
    """A copy of some tokens elsewhere, turned on by as much as the query."""
    engine = make(model, processor, shares=(0.0, 0.0), cap=500, question_path="static")
    watch(toys, engine, range(4))
    manager = engine.cache_manager
    prompt = list(range(5, 25))
    at = Vec(3, 2, 1)
    cos, sin = manager.offset(at)
    other = manager.memory[:, :, :, :60].clone()
    keys = other[:, 0]
    other[:, 0] = keys * cos + torch.cat([-keys[..., 8:], keys[..., :8]], -1) * sin
    twice = KVPart(manager.memory, slice(0, 60), None), KVPart(other, slice(0, 60), (cos, sin))
    logits = []
    for part in twice:
        with manager.question_fork(len(prompt), 0, [part]) as fork:
            logits.append(engine.text_path.append(prompt, fork.start, fork).clone())
    torch.testing.assert_close(*logits, rtol=0, atol=1e-4)
    with manager.question_fork(len(prompt), 0) as fork:
        alone = engine.text_path.append(prompt, fork.start, fork)
    assert (logits[0] - alone).abs().max() > 1e-3  # it is seen
    assert list(engine.text_path.detours) == ["the memory lies elsewhere"]
    assert manager.offset(Vec(0, 0, 0)) is None


# -- readers that go ---------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["here", "in another thread", "as garbage", "while busy"])
def test_what_waits_is_evicted_as_soon_as_the_last_reader_is_gone(toys, model, processor, where):
    engine, straight = (make(model, processor) for _ in range(2))
    for one in (engine, straight):
        watch(toys, one, range(12))
    manager = engine.cache_manager
    fork = manager.fork(5)
    watch(toys, engine, [12, 13])
    watch(toys, straight, [12, 13])
    assert manager.get_seq_length() > 150
    held = [fork]
    if where == "here":
        del fork
        held.clear()
    elif where == "in another thread":
        del fork
        thread = threading.Thread(target=held.clear)
        thread.start()
        thread.join()
    elif where == "as garbage":
        held.append(held)  # a cycle
        del fork, held
        thread = threading.Thread(target=gc.collect)
        thread.start()
        thread.join()
    else:
        # It goes in the middle of an operation, which looks again at its end.
        class Drops(Index):
            def draft(self, held_, change):
                held.clear()
                return held_

        del fork
        manager.accompany("drops", Drops())
        watch(toys, engine, [14])
        watch(toys, straight, [14])
    assert manager.get_seq_length() == straight.cache_manager.get_seq_length() <= 150
    assert engine.get_cache_info()["levels"] == straight.get_cache_info()["levels"]
    assert not manager.waiting and not manager.living_forks


def test_looking_at_the_memory_changes_nothing(toys, model, processor):
    engine = make(model, processor)
    watch(toys, engine, range(12))
    fork = engine.cache_manager.fork(5)
    watch(toys, engine, [12, 13])
    before = engine.cache_manager.ledger, engine.cache_manager.waiting
    engine.get_cache_info()
    engine.cache_manager.snapshot()
    engine.ask("What?", 2)
    assert engine.cache_manager.ledger is before[0] and engine.cache_manager.waiting is before[1]
    fork.release()
    assert engine.get_cache_info()["cache_seq_length"] <= 150


def test_readers_that_go_in_other_threads_disturb_no_operation(toys, model, processor):
    """Forks are dropped by a thread of their own while chunks go on."""
    engine, straight = (make(model, processor, slack=12 * CHUNK) for _ in range(2))
    dropped, stop = [], threading.Event()

    def drop():
        while not stop.is_set():
            if dropped:
                dropped.pop()

    thread = threading.Thread(target=drop)
    thread.start()
    try:
        for number in range(60):
            dropped.append(engine.cache_manager.fork(3))
            watch(toys, engine, [number])
    finally:
        stop.set()
        thread.join()
    dropped.clear()
    watch(toys, straight, range(60))
    assert engine.cache_manager.get_seq_length() == straight.cache_manager.get_seq_length()
    manager = engine.cache_manager
    assert manager.get_seq_length() == manager.ledger.length == manager.gather().shape[3]
    # What is held is what the positions say: the pictures' first-layer values at each token.
    values = [one.cache_manager.gather()[0, 1] for one in (engine, straight)]
    assert grids_held(engine) == grids_held(straight)
    torch.testing.assert_close(*values, rtol=0, atol=1e-5)
