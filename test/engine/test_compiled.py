"""Chunks through torch.compile: the same numbers, one compilation for all layers and sizes.

On a CPU with the backend that runs the traced graphs as they are: what is tried is the way through
the layers and what the tracer makes of it. test_gpu.py runs the real compiler.
"""

import logging

import pytest
import torch
from toy_qwen import SINK_AND_WINDOW

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.errors import InvalidParameterError


@pytest.fixture
def deep(toys):
    """More layers than PyTorch compiles a function anew for, before it gives up."""
    torch.compiler.reset()
    model = toys.model(3, layers=10, vision={"depth": 10, "fullatt_block_indexes": [4, 9]})
    yield model
    model.compile_chunks(False)
    torch.compiler.reset()


def stream(model, processor, toys, sizes):
    """Keys and values, and a question's first logits, after chunks of these sizes.

    The memory closes up where it forgets: the sink is seen from another place than the window.
    """
    engine = VideoStreamingInference(
        model, processor, "cpu", EvictionConfig(300, **SINK_AND_WINDOW), layout="segmented"
    )
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
    after it adds to them. Then all is given back."""
    deep.to(dtype)
    graphs = []

    def note(graph, inputs):
        graphs.append(graph)
        return graph.forward

    plain = stream(deep, processor, toys, SIZES)
    deep.compile_chunks(backend=note)
    assert deep.compiled is not None
    after_trial = len(graphs)
    compiled = stream(deep, processor, toys, SIZES)
    assert 3 <= after_trial == len(graphs)
    for one, other in zip(compiled, plain, strict=True):
        assert (one - other).norm() / other.norm() < most
    deep.compile_chunks(False)
    assert deep.compiled is None
    assert all("forward" not in vars(block) for block in deep.model.visual.blocks)
    for one, other in zip(stream(deep, processor, toys, SIZES), plain, strict=True):
        assert torch.equal(one, other)


def test_a_compiler_that_fails_is_told_and_done_without(deep, processor, toys, caplog):
    def broken(graph, inputs):
        raise RuntimeError("no compiler here")

    plain = stream(deep, processor, toys, SIZES[:2])
    with caplog.at_level(logging.WARNING):
        deep.compile_chunks(backend=broken)
    assert "chunks are not compiled" in caplog.text and "no compiler here" in caplog.text
    assert deep.compiled is None
    for one, other in zip(stream(deep, processor, toys, SIZES[:2]), plain, strict=True):
        assert torch.equal(one, other)


def test_a_compiler_that_fails_later_costs_no_chunk(deep, processor, toys, caplog):
    """As it would where the stream meets a case that the trial did not."""
    plain = stream(deep, processor, toys, SIZES)
    for late in ("_before_vision", "_after"):
        deep.compile_chunks(backend="eager")
        calls, works = [], getattr(deep.compiled, late)

        def fails(*given, calls=calls, works=works):
            calls.append(1)
            if len(calls) == 15:  # amid the layers of a chunk
                raise RuntimeError("no such case")
            return works(*given)

        setattr(deep.compiled, late, fails)
        with caplog.at_level(logging.WARNING):
            found = stream(deep, processor, toys, SIZES)
        assert deep.compiled is None and len(calls) == 15
        assert "chunks are not compiled: RuntimeError: no such case" in caplog.text
        for one, other in zip(found, plain, strict=True):
            assert (one - other).norm() / other.norm() < 1e-4


def test_a_model_that_was_cast_is_not_run_as_compiled_before(deep, processor, toys):
    deep.compile_chunks(backend="eager")
    VideoStreamingInference(deep, processor, "cpu")
    assert deep.compiled is not None
    deep.to(torch.bfloat16)
    VideoStreamingInference(deep, processor, "cpu")
    assert deep.compiled is None


def test_on_a_cpu_compiling_is_refused(model, processor):
    with pytest.raises(InvalidParameterError, match="compile is for a GPU"):
        VideoStreamingInference(model, processor, "cpu", compile=True)
