"""The same promises on a GPU, in float32 and in bfloat16."""

import pytest
import torch
from toy_qwen import SINK_AND_WINDOW

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def logits_of(engine, toys, chunks):
    """Logits at the last token of a question behind ``chunks``."""
    kept = []
    forward = engine.model.stream_forward

    def keep(embeddings, positions, fork):
        hidden = forward(embeddings, positions, fork)
        kept.append(engine.model.logits(hidden[0, -1]).double().cpu())
        return hidden

    for number in range(chunks):
        engine.append_video_chunk(toys.frames(4, 140, 196, seed=number), fps=2)
    engine.model.stream_forward = keep
    try:
        engine.ask("What is there?", 1)
    finally:
        del engine.model.stream_forward
    return kept[0]


@pytest.fixture(scope="module")
def toy(toys):
    # A head size that every attention kernel takes.
    return toys.model(11, heads=4, kv_heads=2, head_dim=64, layers=3)


@pytest.mark.parametrize("cap", [None, 400])
@pytest.mark.parametrize("layout", ["continuous", "segmented"])
def test_the_gpu_in_float32_computes_what_the_cpu_computes(toys, toy, processor, layout, cap):
    config = EvictionConfig(cap, **SINK_AND_WINDOW) if cap else None
    logits = {}
    for device in ("cpu", "cuda"):
        engine = VideoStreamingInference(toy, processor, device, config, layout=layout)
        logits[device] = logits_of(engine, toys, 8)
    toy.to("cpu")
    error = (logits["cuda"] - logits["cpu"]).norm() / logits["cpu"].norm()
    assert error < 1e-4


@pytest.mark.parametrize("cap", [None, 400])
def test_bfloat16_is_off_by_no_more_than_the_librarys_own_kernels_differ(toys, toy, processor, cap):
    config = EvictionConfig(cap, **SINK_AND_WINDOW) if cap else None
    exact = logits_of(VideoStreamingInference(toy, processor, "cpu", config), toys, 8)
    half = toys.model(11, heads=4, kv_heads=2, head_dim=64, layers=3).to(torch.bfloat16)
    ours = logits_of(VideoStreamingInference(half, processor, "cuda", config), toys, 8)
    on_cpu = toys.model(11, heads=4, kv_heads=2, head_dim=64, layers=3).to(torch.bfloat16)
    theirs = logits_of(VideoStreamingInference(on_cpu, processor, "cpu", config), toys, 8)
    # What bfloat16 costs at all is measured on the CPU; other kernels may round another way.
    cost = (theirs - exact).norm()
    assert (ours - exact).norm() < 2 * cost
    assert cost / exact.norm() < 0.2


def test_questions_leave_no_trace_on_the_gpu(toys, toy, processor):
    half = toys.model(11, heads=4, kv_heads=2, head_dim=64, layers=3).to(torch.bfloat16)
    engine = VideoStreamingInference(
        half, processor, "cuda", EvictionConfig(500, **SINK_AND_WINDOW)
    )
    for number in range(9):
        engine.append_video_chunk(toys.frames(4, 140, 196, seed=number), fps=2)
    before, info = engine.cache_manager.gather(), engine.get_cache_info()
    first = engine.ask("What?", 20)
    choice = engine.ask_choice("Which?", ["red", "a blue one"])
    assert engine.ask("What?", 20)[0] == first[0]
    assert engine.ask_choice("Which?", ["red", "a blue one"])[0] == choice[0]
    assert torch.equal(engine.cache_manager.gather(), before)
    after = engine.get_cache_info()
    assert {**after, "reserved_memory_bytes": 0} == {**info, "reserved_memory_bytes": 0}
