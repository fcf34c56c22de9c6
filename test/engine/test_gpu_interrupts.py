# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Whatever is raised wherever on a GPU with captured steps: the memory is as before or as after."""

import functools
import gc

import numpy as np
import pytest
import torch
from interrupted_memory import Case, number_of_places
from interrupts import KINDS, Places
from toy_qwen import question_logits

from stream_vlm_ros.engine import VideoStreamingInference
from stream_vlm_ros.engine.captured import StepKernels, record_graph
from stream_vlm_ros.engine.graph_runner import GraphRunner, TextRunner

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU"),
]

# Kernels that round differently are so far apart, as in test_gpu.
MOST = {torch.float32: 1e-4, torch.bfloat16: 5e-2}


def close(found, expected, most):
    if found.shape != expected.shape or not expected.is_floating_point():
        return torch.equal(found, expected)
    found, expected = found.double(), expected.double()
    return bool((found - expected).norm() <= most * expected.norm())


def fell_back(engine):
    """What ran out of memory while it was compiled or captured is done without from then on."""
    path = engine.text_path
    return bool(path.reason or path.fused.refused or engine.chunk_path.refused)


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.__name__)
@pytest.mark.parametrize(
    ("call", "dtype"),
    [
        ("append", torch.bfloat16),
        ("choice", torch.bfloat16),
        # Its tokens are chosen: in float32 no two are as likely to within what kernels differ by.
        ("exchange", torch.float32),
    ],
)
def test_an_exception_anywhere_leaves_the_memory_before_or_after(
    toys, processor, call, dtype, kind
):
    """Eight places each. An engine is captured again at each of them: its memory was replaced.

    Where memory ran out while a step was compiled or captured, it is taken without, and so by other
    kernels than what it is compared with: their results are close, and not equal. From then on the
    engine would capture nothing, so the next place gets another one.
    """
    model = toys.model(11, heads=4, kv_heads=2, head_dim=64, layers=3).to("cuda", dtype)
    case = Case(toys, model, processor, "all", "continuous", call, path="graph", device="cuda")
    count = number_of_places(case)
    engine = None
    for at in np.random.default_rng(count).permutation(count)[:8].tolist():
        if engine is None or fell_back(engine):
            engine = case.filled()
        case.restored(engine)
        usual, injected = torch.cuda.current_stream(), Places(at, kind)
        ended = injected.run(functools.partial(case.do, engine))
        gc.collect(0)
        where = f"place {at} of {count}, {injected.raised_in}"
        assert torch.cuda.current_stream() == usual, where
        assert not torch.cuda.is_current_stream_capturing(), where
        equal = functools.partial(close, most=MOST[dtype] if fell_back(engine) else 0.0)
        try:
            case.check(engine, ended, equal)
        except AssertionError as fault:
            raise AssertionError(where) from fault


class RunsOut:
    """Records steps, but runs out of memory in the middle of the capture, ``times`` times."""

    def __init__(self, model, times):
        self.model, self.times = model, times

    def __call__(self, step, pool):
        if not self.times:
            return record_graph(step, pool)
        self.times -= 1
        inside = self.model.logits

        def failing(hidden):
            if torch.cuda.is_current_stream_capturing():
                raise torch.OutOfMemoryError("raised on purpose")
            return inside(hidden)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(self.model, "logits", failing)
            return record_graph(step, pool)


@pytest.mark.parametrize(("times", "path"), [(1, "graph"), (2, "eager")])
def test_a_capture_that_runs_out_of_memory_leaves_the_stream_and_right_answers(
    toys, processor, times, path
):
    """Once: captured without torch.compile. Twice: no step is captured any more."""
    from stream_vlm_ros.engine.attention import triton_decode

    model = toys.model(11, heads=4, kv_heads=2, head_dim=64, layers=3)
    engine = VideoStreamingInference(model, processor, "cuda", question_path="graph")
    for number in range(4):
        engine.append_video_chunk(toys.frames(4, 140, 196, seed=number), fps=2)
    processors = torch.cuda.get_device_properties("cuda").multi_processor_count
    engine.text_path = GraphRunner(
        model,
        engine.cache_manager,
        StepKernels(triton_decode.split_attention(processors), triton_decode.place),
        graph=True,
        compiled=True,
        recorder=RunsOut(model, times),
    )
    usual = torch.cuda.current_stream()
    expected = question_logits(engine, path=TextRunner(model))
    for _ in range(2):
        assert close(question_logits(engine), expected, 1e-4)
        assert torch.cuda.current_stream() == usual
        assert not torch.cuda.is_current_stream_capturing()
    assert engine.text_path.name == path
