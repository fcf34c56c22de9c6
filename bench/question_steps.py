# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Where a question's time goes on a GPU, and which tiling its attention wants there.

    python bench/question_steps.py            # some minutes on one H200
    python bench/question_steps.py --kernel   # kernels and tilings alone: a minute
    python bench/question_steps.py --shape toy --caps 500   # a trial, anywhere

A step is taken with 1 token (writing) and with the 48 of a question, over a memory of random keys:
whole, without its attention, without torch.compile, not recorded, with the products of one row by
our own kernel, and as an engine takes it (one token by joined kernels); the products then each
alone, beside torch's. Then one layer's attention alone: by Triton and by FlashAttention 3, where
that is installed, for each size of a step; and for each tiling, against the time that reading its
keys takes. The figures that stand behind `_tiling` and `_strip` of
`engine/attention/triton_decode.py` come from here; those behind `MIN_SCORES` of `flash3.py` with
`--caps 8192 16384 24000 50000 150000`. Writes nothing.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from stream_vlm_ros.engine import graph_runner
from stream_vlm_ros.engine.attention import flash3
from stream_vlm_ros.engine.attention.base import KVPart
from stream_vlm_ros.engine.attention.step import StepInputs, StepMemory, attend_step, place_step
from stream_vlm_ros.engine.cache.eviction import EvictionConfig
from stream_vlm_ros.engine.cache.manager import KVCacheManager
from stream_vlm_ros.engine.captured import StepKernels, triton_kernels
from stream_vlm_ros.engine.graph_runner import GraphRunner
from stream_vlm_ros.experiments.shapes import (
    SHAPES,
    random_network,
    shape_config,
    words_processor,
)

sys.path.append(str(Path(__file__).parent))  # tools/run.sh leaves it out
from gpu_rig import synchronize, timed

TOKENS = (1, 48)


def median_ms(run: Callable[[], Any], times: int) -> float:
    run()
    return statistics.median(timed(run)[0] for _ in range(times))


def recorded_ms(run: Callable[[], Any], times: int) -> float:
    """Of all that it launches, recorded as one CUDA graph."""
    run()
    synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run()
    return median_ms(graph.replay, times)


def no_attention(queries: torch.Tensor, *_: Any) -> torch.Tensor:
    return queries.transpose(0, 1).contiguous()


def whole_steps(model: Any, cap: int, attention: Any, times: int) -> None:
    """A prompt and a further token through the path as `ask` takes it, from the host's call on."""
    device = model.device
    on_gpu = device.type == "cuda"
    print(f"\nmemory of {cap:,} tokens; ms a step of", *TOKENS, "tokens")
    placing = place_step
    ways: dict[str, Any] = {
        "graph": (attention, on_gpu, on_gpu, None),
        "without its attention": (no_attention, on_gpu, on_gpu, None),
        "without torch.compile": (attention, on_gpu, False, None),
        "not recorded": (attention, False, False, None),
    }
    if on_gpu:
        from stream_vlm_ros.engine.attention.triton_decode import matvec, place

        placing = place
        ways["graph, one row by our own"] = (attention, True, True, matvec)
        ways["graph, one token joined"] = triton_kernels(model, device)
    manager = KVCacheManager(model.kv_shape, model.rotary, EvictionConfig.novelty(cap), device)
    manager.memory.normal_()
    for name, way in ways.items():
        kernels, graph, compiled = way, True, True
        if not isinstance(way, StepKernels):
            kind, graph, compiled, linear = way
            kernels = StepKernels(kind, placing, linear)
        path = GraphRunner(model, manager, kernels, graph, compiled)
        row = []
        for tokens in TOKENS:
            with manager.question_fork(tokens, 0) as fork:
                fork.parts = [KVPart(manager.memory, slice(0, cap), None)]

                def step(path=path, tokens=tokens, fork=fork) -> None:
                    fork.advance(-fork.length)
                    int(path.append([1] * tokens, (cap, cap, cap), fork).argmax())

                row.append(median_ms(step, times))
        print(f"  {name:25}", *(f"{ms:8.3f}" for ms in row), path.reason)


# Rows, keys, warps, stages: each is compiled once, some two seconds, for all memories; and of
# each, so many programs a processor.
TILINGS = {
    1: [(16, 64, 4, 3), (16, 64, 4, 4), (16, 64, 2, 3), (16, 128, 4, 2), (16, 128, 4, 3)],
    48: [(128, 64, 8, 3), (128, 64, 8, 2), (128, 128, 8, 2), (64, 64, 4, 3), (64, 64, 4, 2)],
}
PROGRAMS = (1, 2, 3, 4)


def sweep(shape: Any, heads: int, caps: list[int], device: torch.device, options: Any) -> None:
    """One layer's attention alone, layer after layer, so that no key is still in a cache."""
    from stream_vlm_ros.engine.attention import triton_decode as kernels

    processors = torch.cuda.get_device_properties(device).multi_processor_count
    attend, choose = kernels.split_attention(processors), kernels._tiling
    begin = time.perf_counter()
    for cap, tokens in itertools.product(caps, TOKENS):
        memory, padded = noise_memory(shape, cap, device), graph_runner._size_for(tokens)
        read = memory.stream[0].nbytes
        layer_us = attention_of(memory, heads, padded, tokens, options.times)
        chosen = choose(padded * heads // shape.kv_heads, shape.dtype)
        tilings = [kernels._Tiling(*kind, n) for kind in TILINGS[tokens] for n in PROGRAMS]
        found = {}
        for tiling in dict.fromkeys([chosen, *tilings]):
            if time.perf_counter() - begin > options.seconds:
                print(f"  after {options.seconds} s: the others are left out")
                break
            kernels._tiling = lambda *_, tiling=tiling: tiling
            try:
                found[tiling] = layer_us(attend) / 1e3
            except Exception as error:  # more registers or shared memory than there are
                print(f"  {tiling}: {type(error).__name__}")
        kernels._tiling = choose
        done = 4 * heads * tokens * cap * shape.head_dim
        print(f"\n{tokens} tokens over {cap:,}: us a layer; chosen {tuple(chosen)}")
        ranked = sorted(found.items(), key=lambda item: item[1])
        for tiling, ms in ranked:
            if tiling == chosen or tiling in dict(ranked[:8]):
                print(f"  {1e3 * ms:8.1f}  {read / ms / 1e9:6.2f} TB/s "
                      f"{done / ms / 1e9:7.1f} TFLOP/s "
                      f"{tuple(tiling)}{'  <- chosen' if tiling == chosen else ''}")  # fmt: skip
        del memory, layer_us


def noise_memory(shape: Any, cap: int, device: torch.device) -> StepMemory:
    """So many layers of it that no key is still in a cache when it is read again."""
    read = 2 * shape.kv_heads * cap * shape.head_dim * shape.dtype.itemsize
    layers = max(2, min(shape.layers, 3 * 10**9 // read))
    size = (layers, 2, shape.kv_heads, cap, shape.head_dim)
    stream = torch.randn(size, dtype=shape.dtype, device=device)
    tail = torch.randn(*size[:3], 2049, shape.head_dim, dtype=shape.dtype, device=device)
    memory = StepMemory(stream, tail)
    memory.load([KVPart(stream, slice(0, cap), None)])
    return memory


def attention_of(
    memory: StepMemory, heads: int, size: int, tokens: int, times: int
) -> Callable[[Any], float]:
    """A function that times one layer, in us, by the kernel it is given; ``tokens`` of ``size``
    are real."""
    inputs = StepInputs(size, memory)
    inputs.load([0] * tokens, torch.zeros(3, tokens), 0, tokens)
    layers, head_dim = len(memory.stream), memory.stream.shape[-1]
    queries = memory.stream.new_empty(heads, size, head_dim).normal_()

    def layer_us(attend: Any) -> float:
        def all_layers() -> None:
            for stream, tail in zip(memory.stream, memory.tail, strict=True):
                attend(queries, stream, tail, memory, inputs, 0.1)

        measured = recorded_ms if memory.stream.is_cuda else median_ms
        return 1e3 * measured(all_layers, times) / layers

    return layer_us


def by_kernel(shape: Any, heads: int, caps: list[int], device: torch.device, times: int) -> None:
    """One layer's attention of questions by each kernel; a quarter of a step is padding."""
    attends = {"plain torch": attend_step}
    if device.type == "cuda":
        from stream_vlm_ros.engine.attention.triton_decode import split_attention

        found = torch.cuda.get_device_properties(device)
        shared = getattr(found, "shared_memory_per_block_optin", 0)
        attends = {"Triton": split_attention(found.multi_processor_count, shared)}
        if flash3.runs_on(device):
            always = flash3.step_attention(attend_step, takes=lambda *_: True)
            attends["FlashAttention 3"] = always
    print("\nattention of a question, us a layer:", ", ".join(attends))
    for cap in caps:
        memory = noise_memory(shape, cap, device)
        for size in graph_runner.SIZES[1:]:
            layer_us = attention_of(memory, heads, size, 3 * size // 4, times)
            row = "".join(f"{layer_us(attend):10.1f}" for attend in attends.values())
            print(f"  {3 * size // 4:4} of {size:4} tokens over {cap:8,}: {row}")
        del memory, layer_us


# Rows, columns, warps, stages.
STRIPS = [(4, 2048, 4, 1), (2, 2048, 4, 1), (8, 1024, 4, 1), (4, 2048, 4, 3), (8, 512, 4, 4)]


def products(model: Any, times: int) -> None:
    """A token's products, each over all layers so that no weight is still in a cache."""
    from stream_vlm_ros.engine.attention import triton_decode as kernels

    choose = kernels._strip
    layers, weights = list(model.text.layers), model.state_dict()
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    groups = {
        "q, k, v": [(layer.qkv, layer.qkv_bias) for layer in layers],
        "out": [(layer.out, None) for layer in layers],
        "gate, up": [(layer.gate_up, None) for layer in layers],
        "down": [(layer.down, None) for layer in layers],
        "logits": [(head, None)] * 4,
    }
    print("\none token's products: us each; torch's, then the kernel's by its strips")
    for name, weights in groups.items():
        rows, columns = weights[0][0].shape
        given = torch.randn(1, columns, dtype=model.dtype, device=model.device)
        ways: dict[Any, Any] = {"torch": None, **dict.fromkeys(STRIPS)}
        for way in ways:
            linear = torch.nn.functional.linear
            if way != "torch":
                linear = kernels.matvec
                kernels._strip = lambda *_, way=way: kernels._Strip(*way)

            def all_layers(linear=linear, weights=weights, given=given) -> None:
                for weight, bias in weights:
                    linear(given, weight, bias)

            with torch.inference_mode():
                ways[way] = 1e3 * recorded_ms(all_layers, times) / len(weights)
        kernels._strip = choose
        size = weights[0][0].nbytes
        print(f"  {name:9} {columns:>6} -> {rows:<6}", "  ".join(
            f"{'torch' if way == 'torch' else way}: {us:.1f} ({size / us / 1e6:.2f} TB/s)"
            for way, us in ways.items()
        ))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="3b", choices=SHAPES)
    parser.add_argument("--caps", type=int, nargs="+", default=[16_384, 150_000])
    parser.add_argument("--times", type=int, default=20)
    parser.add_argument("--kernel", action="store_true", help="kernels and tilings alone")
    parser.add_argument("--seconds", type=float, default=60, help="that the sweep may take")
    options = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    config = shape_config(options.shape, words_processor())
    model = random_network(config, device, dtype)
    attention = attend_step
    if device.type == "cuda":
        from stream_vlm_ros.engine.attention.triton_decode import split_attention

        attention = split_attention(torch.cuda.get_device_properties(device).multi_processor_count)
    for cap in options.caps:
        if not options.kernel:
            whole_steps(model, cap, attention, options.times)
    heads = model.config.text_config.num_attention_heads
    by_kernel(model.kv_shape, heads, options.caps, device, options.times)
    if device.type == "cuda":
        products(model, options.times)
        sweep(model.kv_shape, heads, options.caps, device, options)


if __name__ == "__main__":
    main()
