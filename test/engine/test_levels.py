# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Which frames are kept for long: evenly over time, and those unlike any other."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from amounts import examples
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from interrupts import Places

from stream_vlm_ros.engine import EvictionConfig, FeatureNovelty, VideoStreamingInference
from stream_vlm_ros.engine.cache.eviction import AUTO, Candidate, EvenSample, StarMemory
from stream_vlm_ros.errors import CapTooSmallError, StreamBusyError


def candidate(number, seconds=None, tokens=1, descriptor=()):
    seconds = float(number) if seconds is None else seconds
    return Candidate(number, tokens, seconds, np.array(descriptor, dtype=float))


@given(
    budget=st.integers(3, 40),
    steps=st.lists(st.floats(0.5, 1.5), min_size=60, max_size=400),
)
@settings(max_examples=40)
def test_the_sample_covers_the_whole_past_evenly_however_long_it_grows(budget, steps):
    sample, seconds = EvenSample(budget), 0.0
    kept: dict[int, float] = {}
    for number, step in enumerate(steps):
        seconds += step
        kept[number] = seconds
        for gone in sample.offer(candidate(number, seconds), 0.0, seconds):
            del kept[gone.number]
        assert len(kept) == min(budget, number + 1)
        assert all(number in sample for number in kept)
    times = [0.0, *kept.values(), seconds]
    # Perfectly even would be total / (budget + 1). Thinning one by one at the smallest pair of
    # gaps never merges two while a smaller pair exists, so no gap exceeds twice the even pair.
    widest = max(later - earlier for earlier, later in pairwise(times))
    assert widest <= 2 * 2 * seconds / (budget + 1) + 1.5


def test_after_an_hour_the_sample_still_covers_the_hour_evenly():
    sample, kept = EvenSample(60), {}
    for second in range(3600):
        kept[second] = float(second)
        for gone in sample.offer(candidate(second), 0.0, float(second)):
            del kept[gone.number]
    minutes = np.bincount([int(time // 600) for time in kept.values()], minlength=6)
    assert minutes.sum() == 60 and minutes.min() >= 6 and minutes.max() <= 14  # even: 10 each


def test_grids_of_any_size_stay_within_the_budget_in_tokens():
    sample = EvenSample(100)
    tokens = {}
    for number in range(200):
        tokens[number] = 5 + number * 7 % 40
        for gone in sample.offer(candidate(number, tokens=tokens[number]), 0.0, float(number)):
            del tokens[gone.number]
        assert sum(tokens.values()) == sample.tokens <= 100


@pytest.mark.parametrize("level", ["sampled", "important"])
def test_a_grid_larger_than_its_level_pushes_nothing_out(level):
    sample, star = EvenSample(20), StarMemory(20, FeatureNovelty())

    def offer(number, tokens, seconds, angle):
        grid = candidate(number, seconds, tokens, unit(angle))
        if level == "sampled":
            return sample.offer(grid, 0.0, seconds)
        return star.offer(grid)

    for number in range(10):
        assert not offer(number, 2, float(number), 0.01 * number)
    # Long after all the others, and unlike them.
    assert [gone.number for gone in offer(10, 21, 100.0, 3.0)] == [10]
    assert (sample if level == "sampled" else star).tokens == 20


def unit(angle):
    return (np.cos(angle), np.sin(angle))


def test_the_star_memory_keeps_one_of_each_kind_and_the_first_of_those_alike():
    star = StarMemory(3, FeatureNovelty())
    # Three scenes, each seen for a while with a little noise, one of them again later.
    angles = [0.0] * 5 + [2.0] * 5 + [4.0] * 5 + [2.0] * 5
    kept = set()
    for number, angle in enumerate(angles):
        kept.add(number)
        kept -= {gone.number for gone in star.offer(candidate(number, descriptor=unit(angle)))}
    assert kept == {0, 5, 10}


def test_a_score_of_ones_own_decides_what_is_important(toys, model, processor):
    class Brightest:
        def describe(self, features):
            return features.float().mean().reshape(1).numpy()

        def rank(self, descriptors):
            return descriptors[:, 0]

    engine = VideoStreamingInference(
        model,
        processor,
        eviction_config=EvictionConfig(130, important_share=0.4),
        importance=Brightest(),
    )
    scores = []
    encode = model.encode_frames
    try:

        def note(*given):
            features = encode(*given)
            scores.extend(features.unflatten(0, (2, -1)).float().mean((1, 2)).tolist())
            return features

        model.encode_frames = note
        for number in range(20):
            engine.append_video_chunk(toys.frames(4, seed=number), fps=2)
    finally:
        del model.encode_frames
    # Cap 130, sink 57: 40 % of 73 is 29 tokens, four grids of 6. Those with the highest score of
    # all that have left the window so far: 73 - 29 = 44 tokens, the last seven grids whole.
    left = range(2, 40 - 8)
    best = sorted(sorted(left, key=lambda number: -scores[number])[:4])
    assert [number for number, _ in engine.cache_manager.ledger.kept_offsets()] == best
    levels = engine.get_cache_info()["levels"]
    assert levels["important"]["grids"] == 4 and levels["important"]["tokens"] == 24
    assert levels["important"]["time_spans"] == tuple((n * 1.0, n * 1.0 + 0.5) for n in best)
    assert levels["important"]["frames"] == 8


def test_a_frame_that_is_repeated_to_fill_its_grid_counts_once(toys, model, processor):
    engine = VideoStreamingInference(model, processor)
    for count in (3, 2, 1):
        engine.append_video_chunk(toys.frames(count), fps=2)
    window = engine.get_cache_info()["levels"]["window"]
    assert (window["grids"], window["frames"]) == (2 + 1 + 1, 3 + 2 + 1)


def test_the_levels_add_up_to_the_stream(toys, model, processor):
    config = EvictionConfig(300, sampled_share=0.3, important_share=0.3)
    engine = VideoStreamingInference(model, processor, eviction_config=config)
    for number in range(60):
        engine.append_video_chunk(toys.frames(4, seed=number), fps=2)
        info = engine.get_cache_info()
        text = 45  # before the first frame
        assert (
            sum(level["tokens"] for level in info["levels"].values()) + text
            == (info["cache_seq_length"])
        )
    assert set(info["levels"]) == {"sink", "sampled", "important", "window"}
    room = int(0.3 * (300 - 57))
    for level in ("sampled", "important"):
        assert room - 6 < info["levels"][level]["tokens"] <= room
    spans = info["time_spans"]
    assert list(spans) == sorted(spans) and spans[0][0] == 0.0 and spans[-1][1] == 119.5


OPERATIONS = st.lists(
    st.one_of(
        st.tuples(st.just("chunk"), st.integers(1, 7)),
        st.tuples(st.just("ask"), st.integers(1, 3)),
        st.tuples(st.just("choice"), st.integers(1, 3)),
        st.tuples(st.just("keep"), st.integers(1, 3)),
        st.tuples(st.just("pixels"), st.sampled_from([28 * 28, 56 * 56, 84 * 84, None])),
        st.tuples(st.just("reset"), st.just(0)),
        st.tuples(st.sampled_from(["begin", "write", "write", "finish", "close"]), st.just(6)),
    ),
    min_size=5,
    max_size=25,
)


@settings(max_examples=examples(25), suppress_health_check=list(HealthCheck))
@given(
    operations=OPERATIONS,
    cap=st.integers(60, 400),
    sink=st.sampled_from([0, 0, 4, 60]),
    window=st.sampled_from([0, 0, 50]),
    interval=st.sampled_from([1, 2, 4]),
    shares=st.sampled_from([(0, 0), (0.5, 0), (0, 0.5), (0.3, 0.3), (AUTO, AUTO)]),
    layout=st.sampled_from(["continuous", "segmented"]),
    policy=st.sampled_from(["contiguous", "keep_gaps"]),
    slack=st.sampled_from([0, 20, 60]),
)
def test_no_sequence_of_operations_exceeds_the_cap_or_lets_a_question_leave_a_trace(
    toys, model, processor, operations, cap, sink, window, interval, shares, layout, policy, slack
):
    """Chunks come while an answer is being written, too ("begin" to "finish" or "close"): then up
    to the slack beyond the cap, and where nobody asked the same is in memory at the end."""
    if sink + window > cap or sink == cap:
        return
    config = EvictionConfig(cap, sink, window, interval, *shares)
    engine, silent = (
        VideoStreamingInference(
            model,
            processor,
            eviction_config=config,
            layout=layout,
            position_policy=policy,
            fork_slack_tokens=slack,
        )
        for _ in range(2)
    )
    manager = engine.cache_manager
    reserved = set()
    writer, alone, kept_exchange = None, "", False
    for number, (kind, amount) in enumerate(operations):
        seen = manager.state.frames > 0
        before = manager.gather()
        mark = manager.ledger.mark(), manager.evictor.mark(), manager.state
        try:
            if kind == "chunk":
                engine.append_video_chunk(toys.frames(amount, seed=number), fps=2)
                silent.append_video_chunk(toys.frames(amount, seed=number), fps=2)
            elif kind == "pixels":
                engine.max_pixels = silent.max_pixels = amount
            elif kind == "reset":
                engine.reset(), silent.reset()
                writer = None
            elif seen and kind == "keep":
                engine.ask("So?", amount, update_state=True)
                kept_exchange = True
            elif seen and kind == "ask":
                engine.ask("So?", amount)
            elif seen and kind == "choice":
                engine.ask_choice("So?", ["a", "bb"][: max(1, amount - 1)])
            elif seen and kind == "begin" and writer is None:
                alone = engine.ask("Well?", amount)[0]
                writer = engine.ask_stream("Well?", amount)
            elif kind == "write" and writer is not None:
                next(writer, None)
            elif kind in ("finish", "close") and writer is not None:
                if kind == "finish":
                    assert alone == "".join([writer.text, *writer])
                writer.close()
                writer = None
        except (CapTooSmallError, StreamBusyError):
            kind = "refused"
        length = engine.get_cache_info()["cache_seq_length"]
        assert length <= cap + (slack if writer is not None else 0)
        assert length == manager.get_seq_length() == manager.ledger.length
        assert length == manager.gather().shape[3] == manager.ledger.positions().shape[1]
        if kind in ("ask", "choice", "pixels", "refused", "begin", "write"):
            assert torch.equal(manager.gather(), before)
            assert (manager.ledger.mark(), manager.evictor.mark(), manager.state) == mark
        reserved.add(manager.memory.nbytes)
    del writer
    if not kept_exchange:
        one, other = (
            {**each.get_cache_info(), "reserved_memory_bytes": None} for each in (engine, silent)
        )
        assert one == other
        assert manager.ledger.kept_offsets() == silent.cache_manager.ledger.kept_offsets()
    assert len(reserved) == 1


def test_a_commit_takes_hardly_more_steps_in_a_larger_memory(toys, model, processor):
    """Opcodes of engine/cache, with 22 grids kept and with 180, as the most grids are exchanged;
    of the plan, too."""

    def steps(cap):
        config = EvictionConfig(cap, important_share=0.7)
        engine = VideoStreamingInference(model, processor, eviction_config=config)
        manager, counts, kept = engine.cache_manager, [], []

        def counted(method):
            def run(*given, **named):
                counting, found = Places(), []
                assert counting.run(lambda: found.append(method(*given, **named)))
                counts[-1] += counting.count
                return found[0]

            return run

        for number in range(cap // 10 + 20):
            if number == cap // 10:
                manager.plan, manager.commit = counted(manager.plan), counted(manager.commit)
            before = kept
            counts.append(0)
            engine.append_video_chunk(toys.frames(4, seed=number), fps=2)
            kept = engine.cache_manager.ledger.kept_offsets()
        assert len(before) == len(kept) > 0.08 * cap  # full
        return max(counts)

    assert steps(1600) < 1.2 * steps(250)


def raising(descriptors):
    raise RuntimeError("no such file: weights of the score")


@pytest.mark.parametrize(
    "rank",
    [raising, lambda d: d[:-1, 0], lambda d: [float("nan")] * len(d), lambda d: "high"],
    ids=["raises", "too few", "nan", "text"],
)
def test_a_score_that_fails_is_told_and_the_stream_goes_on_within_its_cap(
    toys, model, processor, rank
):
    class Broken:
        def describe(self, features):
            return np.ones(2, np.float32)

    Broken.rank = staticmethod(rank)
    engine = VideoStreamingInference(
        model,
        processor,
        eviction_config=EvictionConfig(130, important_share=0.4),
        importance=Broken(),
    )
    with pytest.warns(RuntimeWarning, match="importance score failed"):
        for number in range(12):
            engine.append_video_chunk(toys.frames(4, seed=number), fps=2)
    manager = engine.cache_manager
    assert manager.ledger.length == manager.get_seq_length() <= 130
    # As if all scored the same: those seen first stay (four grids of 6 fit 40 % of 130 - 57).
    assert [number for number, _ in manager.ledger.kept_offsets()] == [2, 3, 4, 5]
    assert engine.ask("What is there?", 4)[1]["cache_length"] == manager.get_seq_length()


@pytest.mark.parametrize("fault", ["raises", "gives nothing"])
def test_a_frame_that_a_score_cannot_describe_is_told_and_leaves_with_the_window(
    toys, model, processor, fault
):
    class Oldest(FeatureNovelty):
        told = -1

        def describe(self, features):
            self.told += 1
            if self.told in (3, 4) and fault == "raises":
                raise KeyError("no such region")
            return None if self.told in (3, 4) else super().describe(features)

        def rank(self, descriptors):
            return -np.arange(len(descriptors))  # the first matters most

    engine = VideoStreamingInference(
        model,
        processor,
        eviction_config=EvictionConfig(130, important_share=0.4),
        importance=Oldest(),
    )
    said = "cannot describe a frame.*" + ("no such region" if fault == "raises" else "None")
    with pytest.warns(RuntimeWarning, match=said):
        for number in range(12):
            engine.append_video_chunk(toys.frames(4, seed=number), fps=2)
    # All chunks are in. Grids 0 and 1 are the sink; 3 and 4 are among those never kept.
    assert engine.get_cache_info()["frames"] == 48
    kept = [number for number, _ in engine.cache_manager.ledger.kept_offsets()]
    assert kept == [2, 5, 6, 7]  # (four grids of 6 fit 40 % of 130 - 57)


def test_a_score_made_from_novelty_ranks_in_its_own_way(toys, model, processor):
    class Oldest(FeatureNovelty):
        def rank(self, descriptors):
            return -np.arange(len(descriptors))  # the first matters most

    engine = VideoStreamingInference(
        model,
        processor,
        eviction_config=EvictionConfig(130, important_share=0.4),
        importance=Oldest(),
    )
    for number in range(12):
        engine.append_video_chunk(toys.frames(4, seed=number), fps=2)
    kept = [number for number, _ in engine.cache_manager.ledger.kept_offsets()]
    assert kept == [2, 3, 4, 5]  # (four grids of 6 fit 40 % of 130 - 57)


def brute_force_novelty(table):
    pairs = table @ table.T
    np.fill_diagonal(pairs, -1.0)
    return 1.0 - pairs.max(axis=1)


@settings(max_examples=30)
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.integers(1, 8),
    odd=st.sampled_from([0.0, 0.1]),
    rank=st.sampled_from(
        [lambda score, rows: score.rank(np.stack(rows)), lambda score, rows: score.rank_rows(rows)]
    ),
)
def test_novelty_is_the_distance_to_the_nearest_whatever_came_and_went_before(
    seed, size, odd, rank
):
    """Against the plain formula over all pairs: a row comes last, another goes, again and again."""
    draws = np.random.default_rng(seed)
    score, rows = FeatureNovelty(), []
    for _ in range(60):
        vector = draws.normal(size=3)
        rows.append((vector / np.linalg.norm(vector)).astype(np.float32))
        expected = brute_force_novelty(np.stack(rows))
        assert rank(score, rows) == pytest.approx(expected, abs=1e-6)
        while len(rows) > size:
            rows.pop(draws.integers(len(rows)))
        if draws.random() < odd:  # now and then another memory asks the same score
            rank(score, rows[::-1])
