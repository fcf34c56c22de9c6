# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Chunks appended between two tokens of an answer: neither disturbs the other."""

import pytest
import torch
from toy_qwen import SINK_AND_WINDOW

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.engine.cache.eviction import AUTO
from stream_vlm_ros.engine.cache.mrope import run_positions
from stream_vlm_ros.errors import InvalidImageError, SnapshotEvictedError, StreamBusyError

pytestmark = pytest.mark.no_cover

CAP = 150
CHUNK = 12  # tokens of a later chunk of four frames, two grids of six
LEVELS = [(0.0, 0.0), (0.5, 0.0), (0.0, 0.5), (0.3, 0.3), (AUTO, AUTO)]


def make(model, processor, shares=(0.5, 0.0), slack=4 * CHUNK, interval=1, **options):
    config = EvictionConfig(CAP, 0, 0, interval, *shares)
    return VideoStreamingInference(
        model, processor, eviction_config=config, fork_slack_tokens=slack, **options
    )


def fill(toys, engine, chunks=range(12)):
    for number in chunks:
        engine.append_video_chunk(toys.frames(4, seed=number), fps=2)


def bookkeeping(engine):
    """What is in memory and where a question sees it, in figures alone."""
    manager = engine.cache_manager
    # However a key was rotated once, less the run's shift it lies where the trained rule puts it.
    places = [
        run_positions(run) - torch.tensor(run.shift)[:, None] for run in manager.ledger.runs()
    ]
    return (
        torch.cat(places, dim=1).tolist(),
        manager.ledger.kept_offsets(),
        max(manager.ledger.next_position.minus(manager.ledger.frame)),
        manager.evictor.mark(),
        manager.state,
        {**engine.get_cache_info(), "reserved_memory_bytes": None},  # tails may be taken
    )


@pytest.mark.parametrize("shares", [(0.0, 0.0), (0.3, 0.3), (AUTO, AUTO)])
@pytest.mark.parametrize("layout", ["continuous", "segmented"])
@pytest.mark.parametrize("policy", ["contiguous", "keep_gaps"])
@pytest.mark.parametrize(("interval", "skip"), [(1, None), (3, 0.3)])
def test_the_answer_and_what_is_kept_are_as_if_the_chunks_had_come_after_it(
    toys, model, processor, shares, layout, policy, interval, skip
):
    options = dict(
        layout=layout, position_policy=policy, skip_similarity=skip, interval=interval, slack=80
    )
    during, after = (make(model, processor, shares, **options) for _ in range(2))
    for engine in (during, after):
        fill(toys, engine)
    writer = during.ask_stream("What is it?", 16)
    for number in range(12, 15):
        next(writer)
        fill(toys, during, [number])
        if shares == (0.0, 0.0):
            assert during.cache_manager.get_seq_length() <= CAP
        assert during.cache_manager.get_seq_length() <= CAP + 80
    for _ in writer:
        pass
    assert during.cache_manager.get_seq_length() <= CAP
    assert writer.text == after.ask("What is it?", 16)[0]
    fill(toys, after, range(12, 15))
    assert bookkeeping(during) == bookkeeping(after)
    if shares == (0.0, 0.0):
        assert torch.equal(during.cache_manager.gather(), after.cache_manager.gather())
    for engine in (during, after):
        fill(toys, engine, range(15, 20))
    assert bookkeeping(during) == bookkeeping(after)


@pytest.mark.parametrize("policy", ["contiguous", "keep_gaps"])
@pytest.mark.parametrize("shares", LEVELS)
def test_an_answer_in_steps_of_fixed_shape_is_not_disturbed_either(
    toys, model, processor, shares, policy
):
    engine = make(model, processor, shares, position_policy=policy, question_path="static")
    fill(toys, engine)
    alone = engine.ask("What is it?", 16)[0]
    writer = engine.ask_stream("What is it?", 16)
    for number in (12, 13, 14):
        next(writer)
        fill(toys, engine, [number])
        engine.ask_choice("Which?", ["a", "b"])
    assert alone == "".join([writer.text, *writer])
    assert engine.text_path.steps > 16


@pytest.mark.parametrize("policy", ["contiguous", "keep_gaps"])
@pytest.mark.parametrize("shares", LEVELS)
def test_one_chunk_while_an_answer_is_written_leaves_the_very_memory_it_leaves_after_it(
    toys, model, processor, shares, policy
):
    during, after = (make(model, processor, shares, position_policy=policy) for _ in range(2))
    for engine in (during, after):
        fill(toys, engine)
    writer = during.ask_stream("What is it?", 4)
    next(writer)
    fill(toys, during, [12])
    for _ in writer:
        pass
    fill(toys, after, [12])
    assert torch.equal(during.cache_manager.gather(), after.cache_manager.gather())
    assert during.ask("And now?", 8)[0] == after.ask("And now?", 8)[0]


@pytest.mark.parametrize("shares", LEVELS)
def test_beyond_the_slack_chunks_are_refused_before_anything_is_computed(
    toys, model, processor, shares
):
    engine = make(model, processor, shares, slack=2 * CHUNK)
    fill(toys, engine)
    alone = engine.ask("What is it?", 8)[0]
    writer = engine.ask_stream("What is it?", 8)
    next(writer)
    fill(toys, engine, [12, 13])
    before, memory = bookkeeping(engine), engine.cache_manager.gather()

    def fail(*arguments):
        raise AssertionError("computed in vain")

    model.encode_frames = fail
    try:
        for _ in range(3):
            with pytest.raises(StreamBusyError, match="finish or cancel it first, or raise fork_"):
                engine.append_video_chunk(toys.frames(4, seed=14), fps=2)
    finally:
        del model.encode_frames
    assert before == bookkeeping(engine)
    assert torch.equal(memory, engine.cache_manager.gather())
    assert alone == "".join([writer.text, *writer])
    fill(toys, engine, [14])
    assert engine.get_cache_info()["frames"] == 4 * 15


@pytest.mark.parametrize("shares", LEVELS)
def test_an_answer_that_read_the_sink_alone_holds_up_what_keeps_frames_and_nothing_else(
    toys, model, processor, shares
):
    engine = make(model, processor, shares, slack=CHUNK)
    fill(toys, engine, [0])
    alone = engine.ask("What is it?", 4)[0]
    writer = engine.ask_stream("What is it?", 4)
    info = engine.get_cache_info()
    try:
        for number in range(1, 30):
            fill(toys, engine, [number])
            info = engine.get_cache_info()
            assert info["cache_seq_length"] <= CAP + CHUNK
    except StreamBusyError:  # the window is longer by the slack; what would be kept waits in it
        window = info["levels"]["window"]["tokens"] - info["window_size"]
        assert 0 < window <= CHUNK and shares != (0.0, 0.0)
    else:
        assert info["cache_seq_length"] == CAP and shares == (0.0, 0.0)
    assert "".join(writer) == alone
    fill(toys, engine, [30])
    assert engine.get_cache_info()["cache_seq_length"] <= CAP


@pytest.mark.parametrize("end", ["closed", "dropped", "cleared", "last of two"])
def test_the_memory_is_back_under_its_cap_however_the_answer_ended(toys, model, processor, end):
    engine = make(model, processor)
    fill(toys, engine)
    writers = [engine.ask_stream("What is it?", 8), engine.ask_stream("Where?", 3)]
    for writer in writers:
        next(writer)
    fill(toys, engine, [12, 13])
    assert CAP < engine.get_cache_info()["cache_seq_length"] <= CAP + 2 * CHUNK
    if end == "closed":
        for writer in writers:
            writer.close()
    elif end == "dropped":
        del writer
        writers.clear()
    elif end == "cleared":
        engine.reset()
        fill(toys, engine)
    else:
        for _ in writers[0]:
            pass
        assert engine.get_cache_info()["cache_seq_length"] > CAP
        for _ in writers[1]:
            pass
    assert engine.get_cache_info()["cache_seq_length"] <= CAP
    fill(toys, engine, range(14, 20))
    assert engine.get_cache_info()["cache_seq_length"] <= CAP


def test_a_bad_chunk_ends_neither_the_answer_nor_the_stream(toys, model, processor):
    engine = make(model, processor)
    fill(toys, engine)
    alone, before = engine.ask("What is it?", 6)[0], bookkeeping(engine)
    writer = engine.ask_stream("What is it?", 6)
    next(writer)
    with pytest.raises(InvalidImageError):
        engine.append_video_chunk(["no picture"], fps=2)
    assert before == bookkeeping(engine)
    assert alone == "".join([writer.text, *writer])


@pytest.mark.parametrize("layout", ["continuous", "segmented"])
@pytest.mark.parametrize("policy", ["contiguous", "keep_gaps"])
@pytest.mark.parametrize("slack", [CHUNK + 10, 200])  # with it used up, the exchange still fits
def test_an_exchange_goes_behind_the_chunks_that_came_while_it_was_written(
    toys, processor, layout, policy, slack
):
    model = toys.model(5)
    with torch.no_grad():
        model.state_dict()["lm_head.weight"].zero_()  # says the same whatever it saw
    options = dict(layout=layout, position_policy=policy, slack=slack, shares=(0.3, 0.0))
    options["question_path"] = "static"
    during, after = (make(model, processor, **options) for _ in range(2))
    for engine in (during, after):
        fill(toys, engine)
    writer = during.ask_stream("So?", 3, update_state=True)
    next(writer)
    fill(toys, during, [12])
    for _ in writer:
        pass
    assert not during.text_path.detours  # it is computed again in steps, too
    fill(toys, after, [12])
    assert after.ask("So?", 3, update_state=True)[0] == writer.text
    assert bookkeeping(during) == bookkeeping(after)
    for engine in (during, after):
        fill(toys, engine, range(13, 18))
    assert bookkeeping(during) == bookkeeping(after)


def test_an_exchange_may_be_kept_while_another_answer_is_being_written(toys, model, processor):
    engine = make(model, processor, slack=200)
    fill(toys, engine)
    alone = engine.ask("What is it?", 8)[0]
    writer = engine.ask_stream("What is it?", 8)
    next(writer)
    fill(toys, engine, [12])
    engine.ask("And?", 3, update_state=True)
    fill(toys, engine, [13])
    info = engine.get_cache_info()
    assert info["exchanges"] == 1 and info["cache_seq_length"] > CAP
    assert alone == "".join([writer.text, *writer])
    assert engine.get_cache_info()["cache_seq_length"] <= CAP


def test_snapshots_and_clones_know_of_evictions_that_wait(toys, model, processor):
    engine, straight = (make(model, processor) for _ in range(2))
    for one in (engine, straight):
        fill(toys, one)
    manager = engine.cache_manager
    writer = engine.ask_stream("What is it?", 4)
    next(writer)
    fill(toys, engine, [12, 13])
    saved, copy = manager.snapshot(), manager.clone()
    for _ in writer:
        pass
    with pytest.raises(SnapshotEvictedError, match="have been evicted since"):
        manager.restore(saved)
    fill(toys, engine, [14])
    manager.restore(copy)
    fill(toys, straight, [12, 13])
    assert bookkeeping(engine) == bookkeeping(straight)
    # Taken once the answer has ended, a snapshot is good until the next eviction.
    writer = engine.ask_stream("What is it?", 4)
    next(writer)
    fill(toys, engine, [14])
    writer.close()
    saved, was = manager.snapshot(), bookkeeping(engine)
    manager.restore(saved)
    assert bookkeeping(engine) == was


def test_without_levels_slack_does_not_lengthen_the_stream(toys, model, processor):
    engine = VideoStreamingInference(
        model,
        processor,
        eviction_config=EvictionConfig(CAP, **SINK_AND_WINDOW),
        fork_slack_tokens=4 * CHUNK,
    )
    fill(toys, engine)
    with_answer = engine.ask_stream("What is it?", 8)
    next(with_answer)
    fill(toys, engine, [12, 13, 14, 15])
    assert engine.get_cache_info()["cache_seq_length"] == CAP
