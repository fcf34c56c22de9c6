"""Chunks through torch.compile: the same numbers, one compilation for all layers and sizes.

On a CPU with the backend that runs the traced graphs as they are: what is tried is the way through
the layers and what the tracer makes of it. test_gpu.py runs the real compiler.
"""

import logging

import pytest
import torch
from toy_qwen import SINK_AND_WINDOW

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.engine.errors import InvalidParameterError


@pytest.fixture
def deep(toys):
    """More layers than PyTorch compiles a function anew for, before it gives up."""
    torch.compiler.reset()
    model = toys.model(3, layers=10, vision={"depth": 10, "fullatt_block_indexes": [4, 9]})
    yield model
    model.compile_chunks(False)
    torch.compiler.reset()


def stream(model, processor, toys, sizes):
    """Keys and values, and a question's first logits, after chunks of these sizes."""
    engine = VideoStreamingInference(
        model, processor, "cpu", EvictionConfig(900, **SINK_AND_WINDOW), layout="segmented"
    )
    for number, (count, height, width) in enumerate(sizes):
        engine.append_video_chunk(toys.frames(count, height, width, seed=number), fps=2)
    _, metrics = engine.ask_choice("Which?", ["red", "a blue one"])
    return engine.cache_manager.gather(), torch.tensor(metrics["scores"])


# Frames, height, width.
SIZES = [(4, 140, 196), (2, 224, 168), (4, 252, 252), (6, 140, 84)]


def test_compiled_chunks_are_the_plain_ones_and_need_no_more_compilations(deep, processor, toys):
    """The trial compiles the norm, a layer's rest, and the pieces of a vision block: no layer and
    no size after it adds to them. Then all is given back."""
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
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
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


def test_on_a_cpu_compiling_is_refused(model, processor):
    with pytest.raises(InvalidParameterError, match="compile is for a GPU"):
        VideoStreamingInference(model, processor, "cpu", compile=True)
