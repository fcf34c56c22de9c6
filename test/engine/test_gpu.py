# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The same promises on a GPU, in float32 and in bfloat16."""

import pytest
import torch
from toy_qwen import SINK_AND_WINDOW, question_logits

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.engine.attention import flash3
from stream_vlm_ros.engine.attention.base import MERGER, KVPart, merge_attn_states
from stream_vlm_ros.engine.attention.cudnn import CUDNN_PREFILL, CudnnPrefill, runs_fast_on
from stream_vlm_ros.engine.attention.flash3 import Flash3Prefill
from stream_vlm_ros.engine.attention.sdpa import Sequences, attend_many, attend_within, flash
from stream_vlm_ros.engine.attention.step import StepInputs, StepMemory, attend_step
from stream_vlm_ros.engine.cache.manager import KVCacheManager
from stream_vlm_ros.engine.chunk_path import ChunkPath
from stream_vlm_ros.engine.decoding import Sampler
from stream_vlm_ros.engine.graph_runner import SIZES, TextRunner, text_runner
from stream_vlm_ros.engine.inputs.frames import FrameProcessor
from stream_vlm_ros.engine.model.compiled import compiled_layers
from stream_vlm_ros.engine.together import (
    EngineGroup,
    Together,
    append_together,
    finished,
    write_together,
)

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
    assert not MERGER.verified.refused


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
def test_a_prefill_by_cudnn_is_the_attention_of_flash(rows, dtype):
    """Keys lie as in the memory: one layer's part of a larger buffer."""
    if not runs_fast_on(torch.device("cuda")):
        pytest.skip("cuDNN's attention is used on Hopper and the data centre's Blackwell alone")
    noise = torch.Generator("cuda").manual_seed(rows)
    options = {"generator": noise, "device": "cuda", "dtype": dtype}
    query = torch.randn(1, 2, rows, 128, **options)
    buffer = torch.randn(3, 2, 2, 20_000, 128, **options)
    key, value = (buffer[1, which, :, 500:19_000].unsqueeze(0) for which in (0, 1))
    prefill = CudnnPrefill()
    assert prefill.pieces(query, key) == [16_384, 2048]
    seen = attend_many(query, key, value, 128**-0.5, prefill, flash)
    out, lse = merge_attn_states(seen), torch.stack([lse for _, lse in seen]).logsumexp(0)
    assert prefill.verified.refused == {}
    exact = [x.double() for x in (query, key, value)]
    scores = exact[0] @ exact[1].transpose(-1, -2) * 128**-0.5
    expected = scores.softmax(-1) @ exact[2]
    assert (out - expected).norm() / expected.norm() < 2 * torch.finfo(dtype).eps
    assert (lse - scores.logsumexp(-1)).abs().max() < 1e-2


def test_whole_pictures_by_cudnn_are_what_flash_attention_sees_in_them():
    """The vision tower's layers without windows, at the head size of the released models."""
    if not runs_fast_on(torch.device("cuda")):
        pytest.skip("cuDNN's attention is used on Hopper and the data centre's Blackwell alone")
    noise = torch.Generator("cuda").manual_seed(1)
    options = {"generator": noise, "device": "cuda", "dtype": torch.bfloat16}
    qkv = torch.randn(2 * 5000, 3, 4, 80, **options)
    whole = Sequences.of(torch.tensor([5000, 5000]), torch.device("cuda"))
    out = attend_within(*qkv.unbind(1), 80**-0.5, whole)  # [n, h, d]
    assert CUDNN_PREFILL.verified.refused == {}
    for of in (slice(0, 5000), slice(5000, 10_000)):
        q, k, v = qkv[of].permute(1, 2, 0, 3).double()  # [h, n, d] each
        expected = (q @ k.transpose(-1, -2) * 80**-0.5).softmax(-1) @ v
        error = out[of].transpose(0, 1) - expected
        assert error.norm() / expected.norm() < 2 * torch.finfo(torch.bfloat16).eps


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-5), (torch.bfloat16, 5e-2)])
def test_a_tower_with_a_padded_inner_size_gives_the_features_of_the_cpu(
    toys, processor, dtype, most
):
    model = toys.model(5, vision={"intermediate_size": 100})
    assert model.visual.blocks[0].down.shape[1] == 128
    frames = toys.frames(4, 140, 196)
    expected = model.encode_frames(FrameProcessor(processor.image_settings, "cpu")(frames))
    chunk = FrameProcessor(processor.image_settings, "cuda")(frames)
    found = model.to("cuda", dtype).encode_frames(chunk).cpu()
    assert (found - expected).norm() / expected.norm() < most


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


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_compiled_chunks_compute_what_plain_ones_do(toys, processor, dtype, most):
    """A compiler that fails would be done without: here it must work."""
    config = EvictionConfig(400, **SINK_AND_WINDOW)
    model = toys.model(11, heads=4, kv_heads=2, head_dim=64, layers=3).to(dtype)
    plain = VideoStreamingInference(model, processor, "cuda", config, compile=False)
    plain = logits_of(plain, toys, 8)
    engine = VideoStreamingInference(model, processor, "cuda", config)
    assert engine.functions is compiled_layers(model.functions).functions
    compiled = logits_of(engine, toys, 8)
    assert not compiled_layers(model.functions).verified.refused
    assert (compiled - plain).norm() / plain.norm() < most


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_small_chunks_are_replayed_and_are_those_of_plain_calls(toys, processor, dtype, most):
    """Whatever the memory's length, and with text between; captures that fail would be left out."""
    config = EvictionConfig(400, **SINK_AND_WINDOW)
    model = toys.model(11, heads=4, kv_heads=2, head_dim=64, layers=3).to(dtype)
    plain, engine = (VideoStreamingInference(model, processor, "cuda", config) for _ in range(2))
    plain.chunk_path = ChunkPath(model, plain.functions)
    found = []
    for one in (plain, engine):
        for number in range(12):
            one.append_video_chunk(toys.frames(4, 140, 196, seed=number), fps=2)
            if number == 5:
                one.ask("What is it?", 4, update_state=True)
        found.append(question_logits(one))
    assert (found[1] - found[0]).norm() / found[0].norm() < most
    path = engine.chunk_path
    assert (path.captures, path.detours, path.refused) == (2, {"it is the first": 1}, {})


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-4), (torch.bfloat16, 5e-2)])
def test_cameras_append_together_what_each_would_alone(toys, processor, dtype, most):
    config = EvictionConfig(400, **SINK_AND_WINDOW)
    model = toys.model(11, heads=4, kv_heads=2, head_dim=64, layers=3).to(dtype)
    group, together = EngineGroup([400] * 3), Together()
    make = lambda **more: VideoStreamingInference(model, processor, "cuda", config, **more)  # noqa: E731
    engines, alone = [make(group=group) for _ in range(3)], [make() for _ in range(3)]
    rounds = [
        [(toys.frames(4, 140, 196, seed=10 * n + c), [2.0 * n + 0.5 * f for f in range(4)])
         for c in range(3)] for n in range(9)
    ]  # fmt: skip
    for number, given in enumerate(rounds):
        coming = rounds[number + 1] if number < 8 else []
        chunks = [(engine, *one) for engine, one in zip(engines, given, strict=True)]
        ahead = [(engine, frames) for engine, (frames, _) in zip(engines, coming, strict=False)]
        done = finished(together.append(chunks, ahead))
        assert not [one for one in done if isinstance(one, Exception)]
        for engine, (frames, times) in zip(alone, given, strict=True):
            engine.append_video_chunk(frames, timestamps=times)
    path = engines[0].chunk_path
    assert path.detours == {"it is the first": 3} and not path.refused and path.captures >= 4
    for one, other in zip(engines, alone, strict=True):
        assert one.cache_manager.time_spans() == other.cache_manager.time_spans()
        found, expected = question_logits(one), question_logits(other)
        assert (found - expected).norm() / expected.norm() < most


def test_steps_for_several_chunks_are_made_ready_in_pieces_and_serve(toys, processor):
    config = EvictionConfig(400, **SINK_AND_WINDOW)
    model = toys.model(11, heads=4, kv_heads=2, head_dim=64, layers=3)
    group = EngineGroup([400] * 2)
    make = lambda **more: VideoStreamingInference(model, processor, "cuda", config, **more)  # noqa: E731
    engines, alone = [make(group=group) for _ in range(2)], [make() for _ in range(2)]

    def watch(number, count):
        given = [toys.frames(4, 140, 196, seed=10 * number + camera) for camera in range(count)]
        times = [2.0 * number + 0.5 * frame for frame in range(4)]
        done = append_together(
            [(engine, frames, times) for engine, frames in zip(engines, given, strict=False)]
        )
        assert not [one for one in done if isinstance(one, Exception)]
        for engine, frames in zip(alone, given, strict=False):
            engine.append_video_chunk(frames, timestamps=times)

    for number in range(3):
        watch(number, 1)
    path, usual, pieces = engines[0].chunk_path, torch.cuda.current_stream(), 0
    assert path.captures == 2 and not group.is_prepared()
    while not group.is_prepared() and pieces < 100:
        group.prepare_next()
        pieces += 1
        assert torch.cuda.current_stream() == usual
    # Two calls and the recording of each, and the vision tower's trial.
    assert (pieces, path.captures, path.refused) == (7, 4, {})
    for number in range(3, 9):
        watch(number, 2)
    assert path.captures == 4 and not path.refused
    for one, other in zip(engines, alone, strict=True):
        found, expected = question_logits(one), question_logits(other)
        assert (found - expected).norm() / expected.norm() < 1e-4


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 1e-3), (torch.bfloat16, 0.2)])
def test_answers_are_written_together_as_each_would_be_alone(toys, processor, dtype, most):
    config = EvictionConfig(400, **SINK_AND_WINDOW)
    model = toys.model(11, heads=4, kv_heads=2, head_dim=64, layers=3).to(dtype)
    group = EngineGroup([400] * 3)
    make = lambda **more: VideoStreamingInference(model, processor, "cuda", config, **more)  # noqa: E731
    engines, alone = [make(group=group) for _ in range(3)], [make() for _ in range(3)]
    for camera, pair in enumerate(zip(engines, alone, strict=True)):
        for engine in pair:
            for number in range(5 + 3 * camera):
                frames = toys.frames(4, 140, 196, seed=10 * number + camera)
                engine.append_video_chunk(frames, fps=2)
    assert engines[0].warm_up().path == "graph"
    path = group.decode_path
    answers = [engine.ask_stream("What is it?", 24) for engine in engines]
    while any(answer.metrics is None for answer in answers):
        write_together(answers)
        for answer in answers:
            next(answer, None)
    assert not path.refused and not path.detours and path.steps > 0
    for answer, engine in zip(answers, alone, strict=True):
        found, expected = answer.metrics, engine.ask("What is it?", 24)[1]
        same = sum(a == b for a, b in zip(found.token_ids, expected.token_ids, strict=False))
        assert same >= (len(expected.token_ids) if dtype == torch.float32 else 1)
        for count in range(same):
            assert abs(found.token_logprobs[count] - expected.token_logprobs[count]) < most
            if found.token_ids[: count + 1] != expected.token_ids[: count + 1]:
                break


@pytest.mark.skipif(not flash3.installed(), reason="needs fa3-fwd")
@pytest.mark.parametrize("causal", [False, True])
def test_flash_attention_3_attends_as_flash_attention_does(causal):
    prefill = Flash3Prefill()
    query, key, value = (
        torch.randn(1, 4, 900, 128, device="cuda", dtype=torch.bfloat16) for _ in range(3)
    )
    assert prefill.takes(query, causal)
    out, lse = prefill.attend(query, key, value, 0.1, flash, causal)
    assert not prefill.verified.refused
    expected, expected_lse = flash(query, key, value, 0.1, causal)
    assert (out.float() - expected.float()).norm() / expected.float().norm() < 0.01
    assert (lse - expected_lse).abs().max() < 0.01


@pytest.mark.skipif(not flash3.installed(), reason="needs fa3-fwd")
def test_flash_attention_3_serves_captured_steps():
    device, heads = torch.device("cuda", 0), (16, 2, 128)
    found = flash3.fastest_step_attention(attend_step, device, torch.bfloat16, heads)
    assert found is not attend_step and not flash3.STEPS.refused
    noise = torch.Generator(device).manual_seed(5)

    def random(*shape):
        return torch.randn(shape, generator=noise, device=device).to(torch.bfloat16)

    stream, tail, angles = random(1, 2, 2, 40_000, 128), random(1, 2, 2, 301, 128), random(64)
    turned = tuple(wave.float().repeat(2) for wave in (angles.cos(), angles.sin()))
    memory = StepMemory(stream, tail)
    memory.load([KVPart(stream, slice(0, 900), turned), KVPart(stream, slice(950, 39_000), None)])
    inputs = StepInputs(64, memory)
    for count in (33, 48, 64):  # the others are padding
        inputs.load([0] * count, torch.zeros(3, count), past=5, shared=count)
        given = (random(64, 16, 128).transpose(0, 1), stream[0], tail[0], memory, inputs, 0.1)
        out, expected = found(*given), attend_step(*given)
        assert (out.float() - expected.float()).norm() / expected.float().norm() < 0.01
        assert not out[count:].any()


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


# -- questions under CUDA graphs ------------------------------------------------------------------


@pytest.fixture
def engine_of(toys, toy, processor):
    """Engines of the toy on the GPU, in a dtype, with a memory of some kind, warmed up."""

    def build(dtype, memory, **options):
        model = toys.model(11, heads=4, kv_heads=2, head_dim=64, layers=3).to(dtype)
        config = {
            "unbounded": None,
            "sink and window": EvictionConfig(400, **SINK_AND_WINDOW),
            "all levels": EvictionConfig.novelty(400),
        }[memory]
        engine = VideoStreamingInference(model, processor, "cuda", config, **options)
        report = engine.warm_up()
        # A compiler or a kernel that fails would be done without: here it must work.
        assert report["path"] == engine.text_path.name == "graph" and not report["reason"]
        assert not engine.text_path.fused.refused and not engine.text_path.joined.refused
        return engine

    return build


def watch(engine, toys, chunks):
    for number in range(chunks):
        engine.append_video_chunk(toys.frames(4, 140, 196, seed=number), fps=2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("policy", ["contiguous", "keep_gaps"])
@pytest.mark.parametrize("layout", ["continuous", "segmented"])
@pytest.mark.parametrize("memory", ["unbounded", "sink and window", "all levels"])
def test_graphs_compute_what_plain_calls_compute(toys, engine_of, memory, layout, policy, dtype):
    engine = engine_of(dtype, memory, layout=layout, position_policy=policy)
    plain = TextRunner(engine.model)
    # Two kernels may each be off by half of what the format rounds, in each of three layers.
    most = {torch.float32: 1e-5, torch.bfloat16: 3e-2}[dtype]
    for exchange in (False, True):
        watch(engine, toys, 6)
        if exchange:
            engine.ask("So?", 3, update_state=True)
        for question in ("What is there?", "And " * 70, "x" * 600):
            expected = question_logits(engine, question, plain)
            error = question_logits(engine, question) - expected
            assert error.norm() / expected.norm() < most
        choices = ["red", "a blue one", "none of them"]
        ours = engine.ask_choice("Which?", choices)[1]["scores"]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(engine, "text_path", plain)
            theirs = engine.ask_choice("Which?", choices)[1]["scores"]
        assert ours == pytest.approx(theirs, rel=most)
    assert not engine.text_path.detours


def test_no_length_is_captured_anew_and_the_memory_taken_stays_flat(toys, engine_of):
    engine = engine_of(torch.bfloat16, "sink and window")
    path, captured = engine.text_path, engine.text_path.captures
    assert captured == len(SIZES)
    reserved = []
    for number in range(20):
        watch(engine, toys, 1)
        engine.ask("What is there?" * (1 + number), 8)
        engine.ask("What is there?", 8, do_sample=True, repetition_penalty=1.1)
        engine.ask_choice("Which?", ["red", "a blue one"][: 1 + number % 2])
        reserved.append(torch.cuda.memory_reserved())
    assert path.captures == captured and path.steps > 200 and not path.detours
    assert len(set(reserved[5:])) == 1


def test_an_answer_by_graphs_is_that_by_plain_calls(toys, engine_of):
    """In float32, where no two tokens are as likely to within what the kernels differ by."""
    engine = engine_of(torch.float32, "all levels")
    watch(engine, toys, 9)
    fast = engine.ask("What is there?", 30)[0]
    engine.text_path = TextRunner(engine.model)
    assert engine.ask("What is there?", 30)[0] == fast


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_further_tokens_by_joined_kernels_are_those_by_plain_calls(toys, engine_of, dtype):
    engine = engine_of(dtype, "all levels")
    watch(engine, toys, 9)
    found = []
    for path in (engine.text_path, TextRunner(engine.model)):
        with engine.cache_manager.question_fork(3, 4) as fork:
            path.append([1, 2, 3], fork.start, fork)
            said = [path.append([token], fork.start, fork).clone() for token in (4, 5, 6)]
        found.append(torch.stack(said))
    assert (found[0] - found[1]).norm() / found[1].norm() < 3e-2  # as above
    assert not engine.text_path.detours


def test_an_answer_goes_the_same_way_whether_or_not_steps_are_begun_ahead(
    toys, engine_of, monkeypatch
):
    engine = engine_of(torch.bfloat16, "all levels")
    watch(engine, toys, 9)
    ahead = engine.ask("What is there?", 30)[1]
    monkeypatch.setattr(Sampler, "foresee", lambda sampler, logits: None)
    after = engine.ask("What is there?", 30)[1]
    assert ahead["token_ids"] == after["token_ids"]
    assert ahead["token_logprobs"] == pytest.approx(after["token_logprobs"])


def test_steps_that_are_not_recorded_equal_those_that_are(toys, engine_of):
    graphs = engine_of(torch.float32, "all levels")
    watch(graphs, toys, 9)
    steps = text_runner("static", graphs.model, graphs.cache_manager, graphs.device)
    expected = question_logits(graphs, path=steps)
    assert (question_logits(graphs) - expected).norm() / expected.norm() < 1e-5
    assert steps.name == "static" and not steps.captures


def test_a_memory_that_grows_is_captured_anew_and_stays_right(toys, engine_of, monkeypatch):
    monkeypatch.setattr(KVCacheManager, "first_capacity", 256)
    engine = engine_of(torch.float32, "unbounded")
    plain = TextRunner(engine.model)
    for _ in range(8):
        watch(engine, toys, 2)
        expected = question_logits(engine, path=plain)
        assert (question_logits(engine) - expected).norm() / expected.norm() < 1e-5
    assert not engine.text_path.detours


@pytest.mark.parametrize("chunks", [0, 5])
def test_captured_steps_read_a_memory_that_was_loaded(toys, toy, processor, tmp_path, chunks):
    """In the room of an empty memory, or in another buffer than the one that was captured."""
    config = EvictionConfig(400, sampled_share=0.2, important_share=0.3)
    saved, loaded = (
        VideoStreamingInference(toy, processor, "cuda", config, question_path="graph")
        for _ in range(2)
    )
    logits_of(saved, toys, 8)
    for engine in (saved, loaded):
        engine.warm_up()
    for number in range(chunks):
        loaded.append_video_chunk(toys.frames(4, 140, 196, seed=50 + number), fps=2)
        loaded.ask("What is it?", 4)
    saved.save_memory(tmp_path / "m")
    loaded.load_memory(tmp_path / "m")
    for _ in range(3):
        one, other = question_logits(saved), question_logits(loaded)
        assert (one - other).norm() / one.norm() < 1e-4
        assert saved.ask("What is it?", 8)[0] == loaded.ask("What is it?", 8)[0]
        for engine in (saved, loaded):
            engine.append_video_chunk(toys.frames(4, 140, 196, seed=90), fps=2)
    toy.to("cpu")
