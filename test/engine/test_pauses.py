# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A pause costs no positions: what follows is as if it had not been, and stamps stay true.

What a stream with a pause must be is known from one without it.
"""

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from toy_qwen import SINK_AND_WINDOW

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.engine.inputs.timeline import Timeline
from stream_vlm_ros.errors import InvalidParameterError

DAY = 86_400.0
# 1970 + 1,000 s to a day in 2026: a clock that is set while frames come.
CLOCK_SET = 1.79e9
LEVELS = {
    "sink and window": SINK_AND_WINDOW,
    "all levels": {"sampled_share": 0.3, "important_share": 0.3},
}


def grids_of(engine):
    runs = engine.cache_manager.ledger.runs()
    return [grid for run in runs for grid in getattr(run, "grids", ())]


def stream(engine, toys, pause=0.0, behind=1, chunks=8, start=1000.0):
    """``chunks`` of four frames at 2 frames a second, with a pause behind so many of them."""
    results = []
    for number in range(chunks):
        first = start + 2.0 * number + (pause if number >= behind else 0.0)
        stamps = [first + index / 2 for index in range(4)]
        frames = toys.frames(4, 56, 84, seed=number)
        results.append(engine.append_video_chunk(frames, timestamps=stamps))
    return results


@given(
    parts=st.lists(st.lists(st.integers(0, 2000), max_size=5), min_size=1, max_size=8),
    max_step=st.one_of(st.none(), st.integers(0, 500)),
    room=st.integers(-20, 30_000),
    first=st.integers(-(10**10), 10**10),
)
@example(parts=[[0, 2, 1, 2, 1]], max_step=0, room=30_000, first=0)
@example(parts=[[0, 1, 1, 1, 1]], max_step=0, room=30_000, first=0)
def test_ticks_keep_their_order_and_every_step_its_bounds(parts, max_step, room, first):
    line, tick, laid, raw, left = Timeline(), first, [], [], room
    share, before = 3 / 4 if max_step is None else 1 / 8, 2
    for part in parts:
        ticks = []
        for step in part:
            tick += step
            ticks.append(tick)
        more, line = line.extended(ticks, max_step, left, second=2)
        for given_tick, at in zip(ticks, more, strict=True):
            if laid:
                wanted = given_tick - raw[-1]
                closed = max_step is not None and wanted > max_step
                usual = min(wanted, max(1, before)) if closed else wanted
                before = at - laid[-1]
                assert before == min(usual, max(1, math.floor(share * left)))
                left -= before
            raw.append(given_tick)
            laid.append(at)
    steps = [(b - a, d - c) for (a, b), (c, d) in zip(pairwise(raw), pairwise(laid), strict=True)]
    assert all(min(1, wanted) <= step <= wanted for wanted, step in steps)
    assert sum(step for _, step in steps) <= max(0, room) + len(steps)
    assert line.closed == (raw[-1] - laid[-1] if raw else 0)
    assert line.pauses == sum(wanted > step for wanted, step in steps)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("policy", ["contiguous", "keep_gaps"])
@pytest.mark.parametrize("layout", ["continuous", "segmented"])
def test_a_long_pause_leaves_the_stream_as_if_it_had_not_been(
    toys, model, processor, layout, policy, levels
):
    def engine():
        config = EvictionConfig(max_cache_tokens=150, **LEVELS[levels])
        return VideoStreamingInference(
            model, processor, eviction_config=config, layout=layout, position_policy=policy
        )

    whole = engine()
    stream(whole, toys, start=0.0, chunks=12)
    assert whole.get_cache_info().eviction_stats.total_evictions > 0
    answer = whole.ask("what is shown?")[0]
    for pause in (DAY, CLOCK_SET):
        paused = engine()
        stream(paused, toys, pause, start=0.0, chunks=12)
        assert torch.equal(paused.cache_manager.gather(), whole.cache_manager.gather())
        assert paused.cache_manager.ledger.next_position == whole.cache_manager.ledger.next_position
        assert paused.ask("what is shown?")[0] == answer


@pytest.mark.parametrize("behind", [1, 4, 7])
def test_a_pause_is_closed_wherever_it_comes_and_stamps_stay_true(toys, model, processor, behind):
    engine, whole = (VideoStreamingInference(model, processor) for _ in range(2))
    stream(engine, toys, DAY, behind)
    stream(whole, toys)
    assert [g.tick for g in grids_of(engine)] == [g.tick for g in grids_of(whole)]
    stamps = [grid.stamps for grid in grids_of(engine)]
    assert stamps[2 * behind - 1] == (1000.0 + 2 * behind - 1, 1000.0 + 2 * behind - 0.5)
    assert stamps[2 * behind] == (1000.0 + DAY + 2 * behind, 1000.0 + DAY + 2 * behind + 0.5)
    assert engine.get_cache_info().newest_timestamp == 1000.0 + DAY + 15.5


def test_a_pause_within_a_chunk_or_within_a_grid_is_closed_too(toys, model, processor):
    frames = toys.frames(6)
    engine = VideoStreamingInference(model, processor)
    done = engine.append_video_chunk(frames, timestamps=[0, 1, DAY, DAY + 1, DAY + 2, DAY + 3])
    assert [grid.tick for grid in grids_of(engine)] == [0, 2, 6]  # 1 s where no step is known
    assert done.closed_seconds == DAY - 1
    engine = VideoStreamingInference(model, processor)
    stamps = [0, 0.5, 1, 2 * DAY, 2 * DAY + 0.5, 2 * DAY + 1]
    done = engine.append_video_chunk(frames, timestamps=stamps)
    assert [grid.tick for grid in grids_of(engine)] == [0, 2, 4]
    assert done.closed_seconds == 2 * DAY - 0.5 - 1


def test_a_pause_up_to_max_pause_keeps_its_length(toys, model, processor):
    for pause, tick in ((59.0, 120), (59.6, 2)):  # from grid to grid it is a second more
        engine = VideoStreamingInference(model, processor, max_pause=60.0)
        engine.append_video_chunk(toys.frames(2), timestamps=[0, 0.5])
        done = engine.append_video_chunk(toys.frames(2), timestamps=[1 + pause, 1.5 + pause])
        assert [grid.tick for grid in grids_of(engine)] == [0, tick]
        assert (done.closed_seconds == 0) == (tick == 120)


def test_without_max_pause_a_pause_is_shortened_only_beyond_the_models_positions(
    toys, model, processor
):
    # Three quarters of 32,768 positions, less 2,048 for a question and some for text, are 11,500 s.
    for pause, some in ((3 * 3600.0, False), (4 * 3600.0, True)):
        engine = VideoStreamingInference(model, processor, max_pause=None)
        stream(engine, toys, pause)
        info = engine.get_cache_info()
        assert bool(info.closed_seconds) == some
        assert pause * 2 - info.closed_seconds * 2 + 64 >= min(pause * 2, 0.75 * 30_600)


@pytest.mark.parametrize("pause", [math.inf, math.nan, 0.0, -1.0, "60"])
def test_a_max_pause_that_is_no_time_is_refused(model, processor, pause):
    with pytest.raises(InvalidParameterError, match="max_pause"):
        VideoStreamingInference(model, processor, max_pause=pause)


@pytest.mark.parametrize("pause", [1e-300, 1e308])
def test_a_max_pause_may_be_any_time(toys, model, processor, pause):
    engine = VideoStreamingInference(model, processor, max_pause=pause)
    stream(engine, toys, 60.0)
    assert bool(engine.get_cache_info().closed_pauses) == (pause < 1)


@pytest.mark.parametrize("levels", LEVELS)
@pytest.mark.parametrize("step", [30.0, 240.0, 3000.0])
def test_a_stream_of_far_apart_frames_stays_within_the_models_positions(
    toys, processor, levels, step
):
    # Some 17 grids of six tokens are held; at four minutes a step they would take 8,160 positions.
    model = toys.model(text={"max_position_embeddings": 1000})
    config = EvictionConfig(max_cache_tokens=150, **LEVELS[levels])
    engine = VideoStreamingInference(model, processor, eviction_config=config, max_tail_tokens=200)
    last = -1
    for number in range(60):
        engine.append_frame(toys.frames(1, 56, 84, seed=number)[0], timestamp=step * number)
        assert engine.get_cache_info().positions <= 1000 - 200
        ticks = [grid.tick for grid in grids_of(engine)]
        assert ticks == sorted(set(ticks)) and ticks[-1] > last
        last = ticks[-1]


def test_far_apart_frames_share_the_models_positions_evenly(toys, processor):
    model = toys.model(text={"max_position_embeddings": 1000})
    config = EvictionConfig(max_cache_tokens=150, **SINK_AND_WINDOW)
    engine = VideoStreamingInference(model, processor, eviction_config=config, max_tail_tokens=200)
    for number in range(100):
        engine.append_frame(toys.frames(1, 56, 84, seed=number)[0], timestamp=60.0 * number)
    ticks = [grid.tick for grid in grids_of(engine)][1:]  # behind the sink
    steps = [b - a for a, b in pairwise(ticks)]
    fair = (1000 - 200) / (len(steps) + 8)  # see `timeline.SHARE`
    assert len(steps) > 10 and all(fair / 2 < step < 2 * fair for step in steps)


def test_keep_gaps_counts_every_position_of_the_video_and_of_no_pause(toys, model, processor):
    config = EvictionConfig(max_cache_tokens=75, **SINK_AND_WINDOW)
    engine = VideoStreamingInference(
        model, processor, eviction_config=config, position_policy="keep_gaps"
    )
    stream(engine, toys, DAY, chunks=40)
    head = grids_of(engine)[0].tick - 0
    assert grids_of(engine)[-1].tick - head == 2 * 79  # 80 grids of a second


def test_what_was_closed_is_said(toys, model, processor):
    engine = VideoStreamingInference(model, processor)
    said = [one.closed_seconds for one in stream(engine, toys, DAY, behind=3)]
    assert said == [0, 0, 0, DAY, 0, 0, 0, 0]
    before = engine.cache_manager.snapshot()
    engine.append_frame(toys.frames(1)[0], timestamp=10 * DAY)
    info = engine.get_cache_info()
    assert (info.closed_pauses, info.closed_seconds) == (2, 10 * DAY - 1000.0 - 15.0 - 1.0 + 0.0)
    engine.cache_manager.restore(before)
    info = engine.get_cache_info()
    assert (info.closed_pauses, info.closed_seconds) == (1, DAY)
    engine.reset()
    info = engine.get_cache_info()
    assert (info.closed_pauses, info.closed_seconds, info.positions) == (0, 0.0, 0)


def test_between_segments_time_takes_no_positions_and_so_no_pause_is_closed(toys, model, processor):
    engine = VideoStreamingInference(model, processor, layout="segmented")
    assert not any(one.closed_seconds for one in stream(engine, toys, DAY))
    info = engine.get_cache_info()
    assert (info.closed_pauses, info.closed_seconds) == (0, 0.0)


def test_a_kept_exchange_takes_no_note_of_the_pause_behind_it(toys, model, processor):
    paused, whole = (VideoStreamingInference(model, processor) for _ in range(2))
    for engine, pause in ((paused, DAY), (whole, 0.0)):
        stream(engine, toys, chunks=2)
        engine.ask("what?", max_new_tokens=3, update_state=True)
        for number in range(2):
            first = 1004.0 + pause + 2 * number
            stamps = [first + index / 2 for index in range(4)]
            engine.append_video_chunk(toys.frames(4, seed=number), timestamps=stamps)
    assert torch.equal(paused.cache_manager.gather(), whole.cache_manager.gather())
    assert paused.get_cache_info().closed_pauses == 0
