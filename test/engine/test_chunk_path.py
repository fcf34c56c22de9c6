# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Chunks in steps of fixed shape are those of plain calls, and what does not serve is said."""

import gc
import logging
import weakref

import pytest
import torch
from toy_qwen import SINK_AND_WINDOW, question_logits

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference, chunk_path
from stream_vlm_ros.engine.attention.base import Readout
from stream_vlm_ros.engine.cache.manager import KVCacheManager
from stream_vlm_ros.engine.captured import PLAIN_STEP, Recording
from stream_vlm_ros.engine.chunk_path import CapturedChunks
from stream_vlm_ros.engine.inputs.frames import PatchGrid

MEMORIES = {
    "unbounded": None,
    "sink and window": EvictionConfig(170, **SINK_AND_WINDOW),
    "all levels": EvictionConfig.novelty(170),
}


def make(model, processor, memory="unbounded", steps=True, kernels=PLAIN_STEP, **options):
    config = MEMORIES[memory]
    engine = VideoStreamingInference(model, processor, eviction_config=config, **options)
    if steps:
        engine.chunk_path = CapturedChunks(model, engine.functions, engine.cache_manager, kernels)
    return engine


def watch(engine, toys, chunks, sizes=((4, 56, 84),)):
    for number in range(chunks):
        count, height, width = sizes[number % len(sizes)]
        engine.append_video_chunk(toys.frames(count, height, width, seed=number), fps=2)


def assert_same(one, other):
    # Sums of some hundred float32 in another order, through two layers: 2^-24 * some hundred, for
    # each chunk that what follows has seen.
    assert (one - other).abs().max() <= 1e-4 * other.abs().max()


@pytest.mark.parametrize("layout", ["continuous", "segmented"])
@pytest.mark.parametrize("memory", MEMORIES)
def test_chunks_by_steps_are_those_by_plain_calls(toys, model, processor, memory, layout):
    sizes = ((4, 56, 84), (2, 84, 56), (6, 56, 84))
    engines = [
        make(model, processor, memory, steps, layout=layout, position_policy="contiguous")
        for steps in (True, False)
    ]
    for engine in engines:
        watch(engine, toys, 14, sizes)
        engine.ask("What is there?", 4, update_state=True)
        watch(engine, toys, 3, sizes)
    steps, plain = engines
    assert_same(steps.cache_manager.gather(), plain.cache_manager.gather())
    assert_same(question_logits(steps), question_logits(plain))
    assert steps.chunk_path.detours == {"it is the first": 1} and not steps.chunk_path.refused


def test_steps_read_what_plain_calls_read(toys, model, processor):
    read = []
    for steps in (True, False):
        engine = make(model, processor, steps=steps)
        watch(engine, toys, 2)
        manager = engine.cache_manager
        embeddings = model.embed_tokens(list(range(9)))
        positions = torch.arange(40, 49).expand(3, 9)
        for _ in range(2):  # held against plain calls, and then not
            readout = Readout(queries={0: [3, 1]}, keys={1: [1]})
            with manager.fork(9) as fork:
                hidden = engine.chunk_path.append(embeddings, positions, fork, readout).clone()
                read.append((hidden, readout.queries(0), readout.keys(1), fork.own().clone()))
    expected = read[-1]
    for found in read:
        for one, other in zip(found, expected, strict=True):
            assert one.shape == other.shape
            assert_same(one, other)


def test_a_memory_that_grows_is_followed(toys, model, processor, monkeypatch):
    monkeypatch.setattr(KVCacheManager, "first_capacity", 64)
    steps, plain = make(model, processor), make(model, processor, steps=False)
    capacities = set()
    for number in range(12):
        for engine in (steps, plain):
            engine.append_video_chunk(toys.frames(4, seed=number), fps=2)
        capacities.add(steps.cache_manager.memory.shape[3])
    assert len(capacities) > 1
    assert_same(steps.cache_manager.gather(), plain.cache_manager.gather())


def test_an_answer_that_is_being_written_is_not_disturbed(toys, model, processor):
    engine = make(model, processor, "sink and window", fork_slack_tokens=64)
    watch(engine, toys, 12)
    alone = engine.ask("What is it?", 8)[0]
    writer = engine.ask_stream("What is it?", 8)
    next(writer)
    watch(engine, toys, 2)
    for _ in writer:
        pass
    assert writer.text == alone


def wrong_attention(*given):
    return PLAIN_STEP.attend(*given).flip(0)


def failing_attention(*_):
    raise RuntimeError("no such kernel on this GPU")


@pytest.mark.parametrize(
    ("attend", "why"), [(wrong_attention, "differs"), (failing_attention, "no such kernel")]
)
def test_steps_that_are_wrong_or_fail_give_way_and_no_chunk_is_lost(
    toys, model, processor, caplog, attend, why
):
    with caplog.at_level(logging.WARNING):
        steps = make(model, processor, kernels=PLAIN_STEP._replace(attend=attend))
        watch(steps, toys, 5)
    plain = make(model, processor, steps=False)
    watch(plain, toys, 5)
    assert torch.equal(steps.cache_manager.gather(), plain.cache_manager.gather())
    (kind,) = steps.chunk_path.refused
    assert kind[0] == "decoder" and why in steps.chunk_path.refused[kind]
    assert len(caplog.records) == 1 and "chunks take longer" in caplog.text


class Replays:
    """Records as a CUDA graph is: what a replay gives lies where that of the first lay."""

    def __init__(self):
        self.made = []

    def __call__(self, step, pool):
        self.made.append(str(step))
        outputs = step()

        def replay():
            return outputs.copy_(step())

        return Recording(replay, pool)


def recorded(model, processor, recorder, **options):
    engine = make(model, processor, steps=False, **options)
    engine.chunk_path = CapturedChunks(
        model, engine.functions, engine.cache_manager, graph=True, recorder=recorder
    )
    return engine


@pytest.mark.parametrize("options", [{}, {"skip_similarity": 0.9}, {"memory": "all levels"}])
def test_what_the_stream_keeps_of_a_chunk_is_not_overwritten_by_the_next(
    toys, model, processor, options
):
    steps = recorded(model, processor, Replays(), **options)
    plain = make(model, processor, steps=False, **options)
    still = toys.frames(2, 56, 84, seed=1)
    for number in range(12):
        frames = toys.frames(2, 56, 84, seed=number) if number % 4 == 0 else still
        appended = [one.append_video_chunk(frames, fps=2)["tokens"] for one in (steps, plain)]
        assert appended[0] == appended[1]
    assert steps.chunk_path.captures > 1 and not steps.chunk_path.refused
    assert_same(steps.cache_manager.gather(), plain.cache_manager.gather())


def test_a_recorded_size_keeps_what_it_reads_however_many_others_are_seen(toys, model, processor):
    engine = recorded(model, processor, Replays())
    watch(engine, toys, 3)
    grid = (2, 4, 6)
    kept = weakref.ref(model.vision_layout(grid).cos)
    pixels = 3 * 2 * 14 * 14
    for rows in range(2, 20, 2):  # more than a model keeps
        model.encode_frames(PatchGrid(torch.zeros(rows * 4, pixels), (1, rows, 4)))
    gc.collect()
    assert kept() is not None
    del engine
    gc.collect()
    assert kept() is None


def test_what_was_refused_is_not_tried_again(toys, model, processor, monkeypatch):
    engine = make(model, processor, kernels=PLAIN_STEP._replace(attend=wrong_attention))
    watch(engine, toys, 3)
    passes, forward = [], model.stream_forward
    monkeypatch.setattr(
        model, "stream_forward", lambda *x, **y: passes.append(1) or forward(*x, **y)
    )
    watch(engine, toys, 4)
    assert len(passes) == 4


def test_only_the_first_sizes_of_pictures_are_recorded(toys, model, processor, monkeypatch):
    monkeypatch.setattr(chunk_path, "MAX_GRIDS", 2)
    recorder = Replays()
    engine, plain = recorded(model, processor, recorder), make(model, processor, steps=False)
    sizes = [(4, 56, 84), (2, 56, 56), (2, 84, 84), (2, 112, 56)]
    for one in (engine, plain):
        watch(one, toys, 8, sizes)
    assert len([made for made in recorder.made if "vision" in made]) == 2
    assert_same(engine.cache_manager.gather(), plain.cache_manager.gather())


def test_a_capture_that_fails_is_the_last_that_is_tried(toys, model, processor, caplog):
    tried = []

    def failing(step, pool):
        tried.append(step)
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    engine, plain = recorded(model, processor, failing), make(model, processor, steps=False)
    for one in (engine, plain):
        watch(one, toys, 6, [(4, 56, 84), (2, 56, 56), (2, 84, 84)])
    assert torch.equal(engine.cache_manager.gather(), plain.cache_manager.gather())
    assert len(tried) == 1
    assert len([line for line in caplog.records if line.levelno >= logging.WARNING]) == 1


@pytest.mark.parametrize(
    "fault",
    [
        torch.OutOfMemoryError("all is taken"),
        RuntimeError("CUDA error: out of memory"),  # of a graph, which torch's allocator never saw
        RuntimeError("CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    ],
    ids=["torch", "CUDA", "cuBLAS"],
)
def test_what_found_no_memory_is_tried_again_when_the_memory_is_another(
    toys, model, processor, tmp_path, fault
):
    replays, faults = Replays(), [fault]

    def recorder(step, pool):
        if "language model" in str(step) and faults:
            raise faults.pop()
        return replays(step, pool)

    engine = recorded(model, processor, recorder, memory="sink and window")
    watch(engine, toys, 4)
    assert "language model" not in "".join(replays.made)
    engine.save_memory(tmp_path / "saved.safetensors")
    engine.load_memory(tmp_path / "saved.safetensors")
    watch(engine, toys, 2)
    assert "language model" in replays.made[-1] and not engine.chunk_path.refused


def test_a_step_that_stores_what_is_wrong_gives_way_though_its_hidden_states_are_right(
    toys, model, processor
):
    tails = []

    def place(qkv, cos, sin, slots, tail):
        tails.append(tail)
        return PLAIN_STEP.place(qkv, cos, sin, slots, tail)

    def recorder(step, pool):
        def replay():
            tails.clear()
            found = step()
            for tail in tails:
                tail.neg_()
            return found

        return Recording(replay, pool)

    steps, plain = (make(model, processor, steps=False) for _ in range(2))
    steps.chunk_path = CapturedChunks(
        model,
        steps.functions,
        steps.cache_manager,
        PLAIN_STEP._replace(place=place),
        graph=True,
        recorder=recorder,
    )
    for engine in (steps, plain):
        watch(engine, toys, 4)
    assert [kind[0] for kind in steps.chunk_path.refused] == ["decoder"]
    assert_same(steps.cache_manager.gather(), plain.cache_manager.gather())


def test_a_large_chunk_goes_the_plain_way(toys, model, processor, monkeypatch):
    monkeypatch.setattr(chunk_path, "MAX_TOKENS", 12)
    engine, plain = make(model, processor), make(model, processor, steps=False)
    for one in (engine, plain):
        watch(one, toys, 7, [(4, 56, 84), (2, 56, 56), (8, 84, 84)])
    assert_same(engine.cache_manager.gather(), plain.cache_manager.gather())
    assert engine.chunk_path.detours["it has more than 12 tokens"] == 3  # the first among them
