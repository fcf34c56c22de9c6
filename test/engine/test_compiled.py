# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Chunks through torch.compile: the same numbers, one compilation for all layers and sizes.

On a CPU with the backend that runs the traced graphs as they are: what is tried is the way through
the layers and what the tracer makes of it. test_gpu.py runs the real compiler.
"""

import logging

import pytest
import torch
from toy_qwen import SINK_AND_WINDOW

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.engine.chunk_path import ChunkPath
from stream_vlm_ros.engine.model.compiled import CompiledLayers
from stream_vlm_ros.errors import InvalidParameterError


@pytest.fixture
def deep(toys):
    """More layers than PyTorch compiles a function for, before it gives up."""
    torch.compiler.reset()
    yield toys.model(3, layers=10, vision={"depth": 10, "fullatt_block_indexes": [4, 9]})
    torch.compiler.reset()


def stream(model, processor, toys, sizes, functions=None):
    """Keys and values, and a question's first logits, after chunks of these sizes.

    The memory closes up where it forgets: the sink is seen from another place than the window.
    """
    engine = VideoStreamingInference(
        model, processor, "cpu", EvictionConfig(300, **SINK_AND_WINDOW), layout="segmented"
    )
    if functions is not None:
        engine.chunk_path = ChunkPath(model, functions)
    for number, (count, height, width) in enumerate(sizes):
        engine.append_video_chunk(toys.frames(count, height, width, seed=number), fps=2)
    assert engine.get_cache_info()["eviction_stats"]["total_evictions"] or len(sizes) < 4
    _, metrics = engine.ask_choice("Which?", ["red", "a blue one"])
    return engine.cache_manager.gather(), torch.tensor(metrics["scores"])


# Frames, height, width.
SIZES = [(4, 140, 196), (2, 224, 168), (4, 252, 252), (6, 140, 84), (4, 168, 196), (4, 140, 196)]


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-4), (torch.bfloat16, 0.1)])
def test_compiled_chunks_are_the_plain_ones_and_need_no_more_compilations(
    deep, processor, toys, dtype, most
):
    """The trial compiles the norm and the halves of a layer of either tower: no layer and no size
    after it adds to them."""
    deep.to(dtype)
    graphs = []

    def note(graph, inputs):
        graphs.append(graph)
        return graph.forward

    plain = stream(deep, processor, toys, SIZES)
    compiled = CompiledLayers(deep.functions, backend=note)
    compiled.try_out(deep)
    after_trial = len(graphs)
    found = stream(deep, processor, toys, SIZES, compiled.functions)
    assert not compiled.verified.refused
    assert 5 <= after_trial == len(graphs)
    for one, other in zip(found, plain, strict=True):
        assert (one - other).norm() / other.norm() < most


def refusing(backend, deep, caplog):
    compiled = CompiledLayers(deep.functions, backend)
    with caplog.at_level(logging.WARNING):
        compiled.try_out(deep)
    return compiled


def test_a_compiler_that_fails_is_told_and_done_without(deep, processor, toys, caplog):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    plain = stream(deep, processor, toys, SIZES[:2])
    compiled = refusing(broken, deep, caplog)
    assert "chunks are not compiled" in caplog.text and "no compiler here" in caplog.text
    said = len(caplog.records)
    found = stream(deep, processor, toys, SIZES[:2], compiled.functions)
    assert len(caplog.records) == said == len(compiled.verified.refused)
    for one, other in zip(found, plain, strict=True):
        assert (one - other).norm() / other.norm() < 1e-5


def test_a_compiler_that_computes_something_else_is_found_out_at_the_trial(
    deep, processor, toys, caplog
):
    def wrong(graph, inputs):
        return lambda *given: tuple(1.01 * x for x in graph.forward(*given))

    plain = stream(deep, processor, toys, SIZES[:2])
    compiled = refusing(wrong, deep, caplog)
    assert len(compiled.verified.refused) == 5 and "its result differs by" in caplog.text
    found = stream(deep, processor, toys, SIZES[:2], compiled.functions)
    for one, other in zip(found, plain, strict=True):
        assert (one - other).norm() / other.norm() < 1e-5


@pytest.mark.parametrize("late", ["vision_qkv", "finish"])
def test_a_compiler_that_fails_later_costs_no_chunk(deep, processor, toys, caplog, late):
    """As it would where the stream meets a case that the trial did not."""
    plain = stream(deep, processor, toys, SIZES)
    calls = []

    def works_for_a_while(graph, inputs):
        def run(*given):
            calls.append(1)
            if len(calls) == 15:  # amid the layers of a chunk
                raise RuntimeError("no such case")
            return graph.forward(*given)

        return run

    compiled = CompiledLayers(deep.functions, "eager")
    compiled.try_out(deep)
    broken = CompiledLayers(deep.functions, works_for_a_while)
    functions = compiled.functions._replace(**{late: getattr(broken.functions, late)})
    with caplog.at_level(logging.WARNING):
        found = stream(deep, processor, toys, SIZES, functions)
    assert len(calls) == 15 and len(broken.verified.refused) == 1
    assert "no such case" in caplog.text
    for one, other in zip(found, plain, strict=True):
        assert (one - other).norm() / other.norm() < 1e-4


def test_running_out_of_memory_is_no_fault_of_the_compiler(deep, caplog):
    def full(graph, inputs):
        def run(*given):
            raise torch.OutOfMemoryError("none left")

        return run

    compiled = CompiledLayers(deep.functions, full)
    with pytest.raises(torch.OutOfMemoryError):
        compiled.try_out(deep)
    assert not compiled.verified.refused


def test_on_a_cpu_compiling_is_refused(model, processor):
    with pytest.raises(InvalidParameterError, match="compile is for a GPU"):
        VideoStreamingInference(model, processor, "cpu", compile=True)
