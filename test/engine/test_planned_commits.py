# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What a chunk pushes out is worked out while the device is busy with it, and is the same."""

import sys

import pytest
import torch
from toy_qwen import SINK_AND_WINDOW

from stream_vlm_ros.engine import EvictionConfig, FeatureNovelty, VideoStreamingInference
from stream_vlm_ros.engine.cache.manager import KVCacheManager
from stream_vlm_ros.engine.finite import FiniteCheck
from stream_vlm_ros.errors import StreamBusyError

SHARES = {
    "window": SINK_AND_WINDOW,
    "sampled": {"sampled_share": 0.3, "important_share": 0.0},
    "all levels": {"sampled_share": 0.2, "important_share": 0.3},
}
CAP, SLACK = 140, 60  # a chunk has 12 tokens, the first one 57


@pytest.fixture
def make(model, processor):
    """An engine; ``planning`` False: all is worked out in the commit."""

    def make(shares="all levels", planning=True, score=None, interval=1, slack=SLACK):
        engine = VideoStreamingInference(
            model,
            processor,
            None,
            EvictionConfig(CAP, eviction_interval=interval, **SHARES[shares]),
            fork_slack_tokens=slack,
            importance=score,
        )
        if not planning:
            engine.cache_manager.plan = lambda *given: None
        return engine

    return make


@pytest.fixture
def watch(toys):
    """Append a chunk; to be told its number."""
    return lambda engine, number: engine.append_video_chunk(
        toys.frames(4, 56, 84, seed=number), timestamps=times(number)
    )


def times(number):
    return [2 * number + frame / 2 for frame in range(4)]


def memory_of(engine):
    """All that questions see of it."""
    manager = engine.cache_manager
    keys = [part.memory[:, :, :, part.slots].clone() for part in manager.fork(1).parts]
    return manager.levels(), manager.time_spans(), manager.ledger.kept_offsets(), keys


def assert_same_memory(one, other):
    *told, keys = memory_of(one)
    *expected, other_keys = memory_of(other)
    assert told == expected
    assert len(keys) == len(other_keys) and all(map(torch.equal, keys, other_keys))


def to_the_wait(engine, toys, number):
    """A chunk that is on its way, up to where the device is waited for."""
    steps = engine.append_steps(toys.frames(4, 56, 84, seed=number), timestamps=times(number))
    work = next(steps)
    while not isinstance(work, FiniteCheck):
        work = steps.send(work.run())
    return steps, work


def to_its_end(steps, work):
    try:
        while True:
            work = steps.send(work.run())
    except StopIteration as done:
        return done.value


@pytest.mark.parametrize("interval", [1, 3])
@pytest.mark.parametrize("shares", SHARES)
def test_a_commit_that_was_planned_is_the_one_that_is_worked_out_at_the_end(
    make, watch, shares, interval
):
    one, other = make(shares, interval=interval), make(shares, planning=False, interval=interval)
    for number in range(20):
        told, expected = watch(one, number), watch(other, number)
        assert told["evicted_tokens"] == expected["evicted_tokens"]
        assert_same_memory(one, other)
    assert one.cache_manager.evictor.state.evictions > 3


@pytest.mark.parametrize("shares", SHARES)
def test_a_plan_that_is_not_carried_out_leaves_no_trace(make, watch, toys, shares):
    one, other = make(shares), make(shares)
    for number in range(12):
        steps, _ = to_the_wait(one, toys, 100 + number)
        before = one.cache_manager.evictor.state
        steps.close()
        assert one.cache_manager.evictor.state is before
        for engine in (one, other):
            watch(engine, number)
        assert_same_memory(one, other)


@pytest.mark.parametrize("shares", SHARES)
def test_an_answer_that_begins_behind_the_plan_keeps_what_it_reads(make, watch, toys, shares):
    one, other = make(shares), make(shares, planning=False)
    answers, found = [], []
    for engine in (one, other):
        for number in range(12):
            watch(engine, number)
        steps, work = to_the_wait(engine, toys, 12)
        answers.append(engine.ask_stream("What is there?", 6))
        found.append(to_its_end(steps, work).evicted_tokens)
    # Where grids are kept, eviction waits for the answer.
    assert found == [12, 12] if shares == "window" else found == [0, 0]
    assert list(answers[0]) == list(answers[1])
    assert_same_memory(one, other)
    assert one.cache_manager.get_seq_length() <= CAP


@pytest.mark.parametrize("shares", SHARES)
def test_what_waited_for_an_answer_that_ended_behind_the_plan_goes(make, watch, toys, shares):
    one, other = make(shares), make(shares, planning=False)
    for engine in (one, other):
        for number in range(12):
            watch(engine, number)
        answer = engine.ask_stream("What is there?", 6)
        next(answer)
        watch(engine, 12)
        steps, work = to_the_wait(engine, toys, 13)
        answer.close()
        to_its_end(steps, work)
    assert_same_memory(one, other)
    assert one.cache_manager.get_seq_length() <= CAP


def at_opcode_of_the_commit(number, act, call):
    """What comes of the call; whether it had so many opcodes in the commit and what that calls."""
    commit, passed, inside = KVCacheManager.commit.__wrapped__.__code__, 0, None

    def trace(frame, event, _):
        nonlocal passed, inside
        code = frame.f_code
        if code is commit:
            inside = frame
        if inside is None or code.co_filename != commit.co_filename:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            passed += 1
            if passed == number:
                act()
        if event == "return" and frame is inside:
            inside = None
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        result = call()
    except StreamBusyError as refused:
        result = refused
    finally:
        sys.settrace(before)
    return result, passed >= number


@pytest.mark.no_cover
@pytest.mark.parametrize("slack", [0, SLACK])
@pytest.mark.parametrize("shares", SHARES)
def test_an_answer_may_end_at_any_place_of_the_commit(make, watch, toys, shares, slack):
    """As a garbage collection ends it, in any thread."""
    started = make(shares, slack=slack)
    for number in range(12):
        watch(started, number)
    start, after = started.cache_manager.clone(), make(shares, slack=slack)
    for number in range(13):
        watch(after, number)

    def append(engine, place):
        """What came of it, and whether there is such a place."""
        engine.cache_manager.restore(start)
        steps, work = to_the_wait(engine, toys, 12)
        reader = engine.cache_manager.fork(1)
        found = at_opcode_of_the_commit(place, reader.release, lambda: to_its_end(steps, work))
        reader.release()
        return found

    outcomes = set()
    for place in range(1, 2000, 5):
        result, is_place = append(started, place)
        outcomes.add(type(result).__name__)
        if isinstance(result, StreamBusyError):
            watch(started, 12)
        assert_same_memory(started, after)
        if not is_place:
            break
    assert place > 20
    assert outcomes == ({"ChunkResult"} if slack else {"ChunkResult", "StreamBusyError"})


def test_the_host_plans_before_it_waits_for_the_device_but_asks_a_users_score_after_it(
    make, watch, monkeypatch
):
    order = []

    class Own(FeatureNovelty):
        def describe(self, features):
            order.append("described")
            return super().describe(features)

    class Ranks(FeatureNovelty):
        def rank(self, descriptors):
            return super().rank(descriptors)

    wait = FiniteCheck.run
    monkeypatch.setattr(FiniteCheck, "run", lambda check: (order.append("waited"), wait(check)))
    for score, expected in (
        (None, ["planned", "waited"]),
        (Own(), ["waited", "described"]),
        (Ranks(), ["waited"]),
    ):
        engine = make(score=score)
        plan = engine.cache_manager.plan
        engine.cache_manager.plan = lambda *given, plan=plan: (
            order.append("planned"),
            plan(*given),
        )[1]
        watch(engine, 0)
        order.clear()
        watch(engine, 1)
        assert list(dict.fromkeys(order)) == expected


class Count:
    """A companion that counts the chunks."""

    def empty(self):
        return 0

    def draft(self, held, change):
        return held + 1


def test_what_a_companion_comes_to_hold_behind_the_plan_is_kept(make, watch, toys):
    engine = make()
    engine.cache_manager.accompany("count", Count())
    watch(engine, 0)
    steps, work = to_the_wait(engine, toys, 1)
    engine.cache_manager.amend("count", lambda held: 1000 + held)
    to_its_end(steps, work)
    watch(engine, 2)
    assert engine.cache_manager.companion("count") == 1000 + 3


def test_a_memory_without_a_cap_grows_as_it_needs(model, processor, watch, monkeypatch):
    monkeypatch.setattr(KVCacheManager, "first_capacity", 64)
    one = VideoStreamingInference(model, processor)
    monkeypatch.setattr(KVCacheManager, "first_capacity", 4096)
    other = VideoStreamingInference(model, processor)
    for number in range(20):
        for engine in (one, other):
            watch(engine, number)
    assert_same_memory(one, other)
