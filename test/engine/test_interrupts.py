# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Whatever is raised wherever: the memory is as before the call, or as after it, and goes on."""

import gc
import os
import signal
import sys
import threading
import time

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from interrupted_memory import LEVELS, Case, number_of_places, places, sweep
from interrupts import KINDS, Places
from toy_qwen import SINK_AND_WINDOW

from stream_vlm_ros.engine import EvictionConfig, FeatureNovelty, VideoStreamingInference

pytestmark = pytest.mark.no_cover


@pytest.mark.parametrize("layout", ["continuous", "segmented"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("call", ["append", "exchange", "choice"])
def test_an_exception_anywhere_leaves_the_memory_before_or_after(
    toys, model, processor, call, level, layout
):
    """A sample of the places; all of them, with each kind: make interrupts."""
    case = Case(toys, model, processor, level, layout, call)
    count = number_of_places(case)
    spread = np.random.default_rng(count).permutation(count)[:4]
    sweep(case, KINDS, spread.tolist())


@pytest.mark.parametrize("level", ["sink and window", "all"])
def test_an_exception_in_the_very_first_chunk_leaves_nothing_or_all_of_it(
    toys, model, processor, level
):
    case = Case(toys, model, processor, level, "continuous", "append", chunks=0)
    count = number_of_places(case)
    sweep(case, [KeyboardInterrupt], range(0, count, count // 20))


@pytest.mark.parametrize("level", ["sink and window", "all"])
@pytest.mark.parametrize("call", ["exchange", "choice"])
def test_an_exception_in_steps_of_fixed_shape_leaves_nothing_behind_that_they_read(
    toys, model, processor, call, level
):
    case = Case(toys, model, processor, level, "segmented", call, path="static")
    count = number_of_places(case)
    sweep(case, [KeyboardInterrupt], range(0, count, count // 10))


def test_parts_that_were_loaded_halfway_are_loaded_again(toys, model, processor):
    """At every seventh place of it, under a reader that goes on and one that comes after it."""
    engine = VideoStreamingInference(
        model,
        processor,
        eviction_config=EvictionConfig(120, **SINK_AND_WINDOW),
        layout="segmented",
        question_path="static",
    )
    for number in range(9):
        engine.append_video_chunk(toys.frames(4, seed=number), fps=2)
    manager, path, ids = engine.cache_manager, engine.text_path, [1, 2, 3]
    whole = manager.question_fork(3, 9)
    assert any(part.rope_offset is not None for part in whole.parts)
    plain = whole.parts
    whole.release()
    unrotated = [part._replace(rope_offset=None) for part in plain]

    def said(fork, parts):
        fork.parts = parts
        fork.rewind(0)
        return path.append(ids, fork.start, fork).clone()

    with manager.question_fork(3, 9) as fork:
        expected = said(fork, unrotated)
    for at in range(0, 2000, 7):
        with manager.question_fork(3, 9) as fork:
            said(fork, unrotated)
        with manager.question_fork(3, 9) as fork:
            ended = Places(at).run(lambda fork=fork: said(fork, plain))
        with manager.question_fork(3, 9) as fork:
            assert torch.equal(said(fork, unrotated), expected)
        if ended:
            break
    assert at > 20


@pytest.mark.parametrize("level", ["sink and window", "all"])
def test_an_exception_around_the_flip_is_made_good_by_the_next_operation(
    toys, model, processor, level
):
    """Where keys and values are written, rotated and given back: some twenty places."""
    case = Case(toys, model, processor, level, "continuous", "append")
    functions = places(case).functions
    of_interest = {"_make_current", "_finish", "write", "rotate_base", "_rotate", "release"}
    wanted = [at for at, name in enumerate(functions) if name in of_interest]
    assert of_interest - {"rotate_base", "_rotate"} <= set(functions)
    tally = sweep(case, KINDS, wanted[:: max(1, len(wanted) // 20)])
    assert tally["before"] and tally["after"]


class Raises:
    """A score that raises when it is told to."""

    def __init__(self):
        self.fault = None

    def describe(self, features):
        return features.float().mean((0, 1))[:4].numpy()

    def rank(self, descriptors):
        if self.fault is not None:
            raise self.fault
        return descriptors[:, 0]


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), SystemExit(3), GeneratorExit()])
def test_a_score_that_raises_what_is_no_exception_leaves_the_memory_as_it_was(
    toys, model, processor, fault
):
    score = Raises()
    engine, straight = (
        VideoStreamingInference(
            model,
            processor,
            eviction_config=EvictionConfig(130, important_share=0.4),
            importance=score,
        )
        for _ in range(2)
    )
    for number in range(9):
        for one in (engine, straight):
            one.append_video_chunk(toys.frames(4, seed=number), fps=2)
    score.fault = fault
    with pytest.raises(type(fault)):
        engine.append_video_chunk(toys.frames(4, seed=9), fps=2)
    score.fault = None
    for number in range(9, 14):
        for one in (engine, straight):
            one.append_video_chunk(toys.frames(4, seed=number), fps=2)
    assert torch.equal(engine.cache_manager.gather(), straight.cache_manager.gather())
    assert engine.get_cache_info()["levels"] == straight.get_cache_info()["levels"]


@settings(max_examples=40)
@given(seed=st.integers(0, 2**32 - 1), at=st.integers(0, 400))
def test_novelty_is_right_again_after_it_was_interrupted_anywhere(seed, at):
    """As the plain formula over all pairs."""
    draws, score, rows = np.random.default_rng(seed), FeatureNovelty(), []
    interrupted = Places(at)
    for turn in range(12):
        vector = draws.normal(size=3)
        rows.append((vector / np.linalg.norm(vector)).astype(np.float32))
        if len(rows) > 5:
            rows.pop(draws.integers(5))
        table = np.stack(rows)
        if turn >= 6:
            interrupted.run(lambda rows=tuple(rows): score.rank_rows(rows))
        pairs = table @ table.T
        np.fill_diagonal(pairs, -1.0)
        assert score.rank_rows(rows) == pytest.approx(1.0 - pairs.max(axis=1), abs=1e-6)


# -- all of them: make interrupts, some hours (EVERY=40: each fortieth) ------------------------


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize("layout", ["continuous", "segmented"])
@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("call", ["append", "exchange", "choice"])
def test_an_exception_at_every_opcode_leaves_the_memory_before_or_after(
    toys, model, processor, record_property, call, level, layout, kind
):
    case = Case(toys, model, processor, level, layout, call)
    found = places(case)
    wanted = found.each[:: int(os.environ.get("EVERY", "1"))]
    tally = sweep(case, [kind], wanted)
    counts = {"passed": found.count, "each": len(found.each), "raised_at": len(wanted), **tally}
    for name, value in counts.items():
        record_property(name, value)


@pytest.fixture
def ctrl_c():
    """SIGINT raises KeyboardInterrupt, also where the shell that began us has it ignored.

    Gives what was raised in finalizers, which let nothing out.
    """
    before, hook, swallowed = signal.getsignal(signal.SIGINT), sys.unraisablehook, []
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.unraisablehook = swallowed.append
    yield swallowed
    signal.signal(signal.SIGINT, before)
    sys.unraisablehook = hook


@pytest.mark.slow
def test_no_signal_at_a_random_moment_leaves_the_memory_in_between(
    toys, model, processor, record_property, ctrl_c
):
    """120 real SIGINTs, forty for each call."""
    draws, tally = np.random.default_rng(0), {"before": 0, "after": 0}
    for call in ("append", "exchange", "choice"):
        case = Case(toys, model, processor, "all", "continuous", call)
        engine = case.filled()
        case.do(engine)
        begin = time.perf_counter()
        case.do(case.restored(engine))
        usual = time.perf_counter() - begin
        for _ in range(40):
            case.restored(engine)
            timer = threading.Timer(draws.uniform(0, usual), os.kill, (os.getpid(), signal.SIGINT))
            ended = False
            ctrl_c.clear()
            try:
                timer.start()
                case.do(engine)
                ended = True
                time.sleep(10 * (not ctrl_c))  # until the signal comes
                assert ctrl_c, "no signal came"
            except KeyboardInterrupt:
                pass
            timer.join()
            gc.collect(0)
            tally[case.check(engine, ended)] += 1
    assert sum(tally.values()) == 120
    for name, value in tally.items():
        record_property(name, value)
