"""The same promises on a GPU, in float32 and in bfloat16."""

import pytest
import torch
from toy_qwen import SINK_AND_WINDOW, question_logits

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.engine.attention import _flash, attend_long
from stream_vlm_ros.engine.frames import FrameProcessor
from stream_vlm_ros.engine.long_past import LongPast, runs_fast_on

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]


def logits_of(engine, toys, chunks):
    """Logits at the last token of a question behind ``chunks``."""
    for number in range(chunks):
        engine.append_video_chunk(toys.frames(4, 140, 196, seed=number), fps=2)
    return question_logits(engine)


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


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("rows", [4096, 5000])
def test_a_long_past_by_cudnn_is_the_attention_of_flash(rows, dtype):
    """Keys lie as in the memory: one layer's part of a larger buffer."""
    if not runs_fast_on(torch.device("cuda")):
        pytest.skip("cuDNN's attention is used on Hopper and the data centre's Blackwell alone")
    noise = torch.Generator("cuda").manual_seed(rows)
    options = {"generator": noise, "device": "cuda", "dtype": dtype}
    query = torch.randn(1, 2, rows, 128, **options)
    buffer = torch.randn(3, 2, 2, 20_000, 128, **options)
    key, value = (buffer[1, which, :, 500:19_000].unsqueeze(0) for which in (0, 1))
    long_past = LongPast()
    assert long_past.tokens(query, key) == 16_384
    out, lse = attend_long(query, key, value, 128**-0.5, long_past, _flash)
    assert long_past.refused == []
    exact = [x.double() for x in (query, key, value)]
    scores = exact[0] @ exact[1].transpose(-1, -2) * 128**-0.5
    expected = scores.softmax(-1) @ exact[2]
    assert (out - expected).norm() / expected.norm() < 2 * torch.finfo(dtype).eps
    assert (lse - scores.logsumexp(-1)).abs().max() < 1e-2


def test_chunks_of_other_contents_on_the_way_at_once_do_not_mix(toys):
    """Frames are staged in pinned memory and copied while the host goes on to the next."""
    settings = toys.processor().image_settings
    on_gpu = FrameProcessor(settings, "cuda")
    chunks = [toys.frames(4, 1080, 1920, seed=seed) for seed in range(3)]
    apart = []
    for chunk in chunks:
        apart.append(on_gpu(chunk).pixel_values)
        torch.cuda.synchronize()
    torch.cuda._sleep(200_000_000)  # cycles: the copies below wait behind it, the host does not
    together = [on_gpu(chunk).pixel_values for chunk in chunks]
    for one, other in zip(together, apart, strict=True):
        assert torch.equal(one, other)


def test_compiled_chunks_compute_what_plain_ones_do(toys, toy, processor):
    """A compiler that fails would be done without: here it must work."""
    config = EvictionConfig(400, **SINK_AND_WINDOW)
    plain = logits_of(VideoStreamingInference(toy, processor, "cuda", config), toys, 8)
    try:
        engine = VideoStreamingInference(toy, processor, "cuda", config, compile=True)
        assert toy.compiled is not None
        compiled = logits_of(engine, toys, 8)
    finally:
        toy.compile_chunks(False)
        toy.to("cpu")
    assert (compiled - plain).norm() / plain.norm() < 1e-4


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
