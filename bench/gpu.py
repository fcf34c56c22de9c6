"""Ours against the reference's style on one GPU, at the 3B shape: one command, minutes.

    python bench/gpu.py --out bench/results/gpu.json

Random weights (speed does not depend on them), 1920x1080 frames in chunks of 4, bfloat16, both
memories full. In one process, medians of repeated runs, the device idle before and after each. The
floor is the arithmetic or the memory traffic that the work needs at least, at the speed that this
device reaches in a large matrix product and a large read, measured in the same run.

Also runs on a CPU with a small shape, to try it out: --device cpu --shape toy --size 224x168
--caps 512.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import gc
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from stream_vlm_ros.engine import EvictionConfig, StreamQwenModel, VideoStreamingInference
from stream_vlm_ros.replay.experiments.shapes import (
    SHAPES,
    random_network,
    shape_config,
    words_processor,
)

sys.path.append(str(Path(__file__).parent))  # tools/run.sh leaves it out
from reference_style import ReferenceStyle

QUESTION = "what was visible before the red circle and where was it " * 3  # 48 tokens or so
CHOICES = ["a red circle", "a blue square", "nothing", "a sign", "two shapes"]
ANSWER = 32  # tokens after the first


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds of wall time, the device idle before and after; and what came of it."""
    synchronize()
    begin = time.perf_counter()
    result = run()
    synchronize()
    return 1e3 * (time.perf_counter() - begin), result


def milliseconds(run: Callable[[], object], times: int) -> list[float]:
    return [timed(run)[0] for _ in range(times)]


def peak_gib(device: torch.device) -> dict[str, float]:
    if device.type != "cuda":
        return {}
    return {
        "peak_allocated_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
        "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
    }


def start_counting_memory() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def device_speed(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """What the device reaches: FLOP/s of a matrix product, bytes/s of reading a large tensor."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    large = torch.randn(2**30 if device.type == "cuda" else 2**24, device=device, dtype=dtype)
    product, read = (lambda: a @ b), (lambda: large.sum())
    product(), read()
    return {
        "flops": 2 * side**3 / min(milliseconds(product, 10)) * 1e3,
        "bytes": large.nbytes / min(milliseconds(read, 10)) * 1e3,
    }


def floors(model: StreamQwenModel, speed: dict, length: int, chunk: int, patches: int) -> dict:
    """Milliseconds that the work takes at least.

    A chunk: 2 FLOP a weight and token, and 4 x heads x head size a pair of tokens and layer in
    attention. A token: every weight of the language model and the whole cache are read once.
    """
    text = model.config.text_config
    size = lambda module: sum(weight.numel() for weight in module.parameters())  # noqa: E731
    layers = size(model.model.language_model.layers)
    pairs = chunk * length + chunk**2 / 2
    attention = 4 * text.hidden_size * text.num_hidden_layers * pairs
    cache = length * model.kv_shape.bytes_per_token
    weights = model.dtype.itemsize * (layers + text.hidden_size * text.vocab_size)
    return {
        "chunk": 1e3 * (2 * layers * chunk + attention) / speed["flops"]
        + 1e3 * 2 * size(model.model.visual.blocks) * patches / speed["flops"],
        "token": 1e3 * (weights + cache) / speed["bytes"],
        "first_token": 1e3 * (weights + cache) / speed["bytes"],
    }


def write(stream: ReferenceStyle, token: torch.Tensor) -> None:
    for _ in range(ANSWER):
        token = stream.next_token(token)


def measure_reference(model, patches, ids, length, sink, repeats) -> dict[str, list[float]]:
    stream = ReferenceStyle(model, length, sink)
    stream.append(patches)
    rows = {
        "chunk": milliseconds(lambda: stream.append(patches), max(2, repeats // 2)),
        "vision": milliseconds(lambda: stream.vision(patches), max(2, repeats // 2)),
        "snapshot": [],
        "first_token": [],
        "token": [],
    }
    for _ in range(repeats):
        taken, saved = timed(stream.snapshot)
        rows["snapshot"].append(taken)
        taken, token = timed(lambda: stream.first_token(ids))
        rows["first_token"].append(taken)
        rows["token"].append(timed(functools.partial(write, stream, token))[0] / ANSWER)
        stream.restore(saved)
    rows["first_token"] = [
        one + other for one, other in zip(rows["first_token"], rows["snapshot"], strict=True)
    ]
    return rows


def measure_ours(engine, frames, length, repeats) -> dict[str, list[float]]:
    while engine.append_video_chunk(frames, fps=2)["evicted_tokens"] == 0:
        pass
    assert engine.get_cache_info()["cache_seq_length"] == length
    rows = {"chunk": milliseconds(lambda: engine.append_video_chunk(frames, fps=2), repeats)}
    patches = engine._frames(frames)
    rows["patches"] = milliseconds(lambda: engine._frames(frames), repeats)
    rows["vision"] = milliseconds(lambda: engine.model.encode_frames(patches), repeats)
    engine.ask(QUESTION, 4)
    asked = [engine.ask(QUESTION, ANSWER + 1)[1] for _ in range(repeats)]
    rows["first_token"] = [1e3 * metrics["ttft"] for metrics in asked]
    rows["token"] = [1e3 * (m["latency"] - m["ttft"]) / ANSWER for m in asked]
    rows["five_choices"] = milliseconds(lambda: engine.ask_choice(QUESTION, CHOICES), repeats)
    manager = engine.cache_manager
    rows["snapshot"] = milliseconds(lambda: manager.restore(manager.snapshot()), repeats)
    return rows


def summary(rows: dict[str, list[float]]) -> dict[str, dict[str, float]]:
    return {
        name: {
            "median": round(statistics.median(taken), 3),
            "least": round(min(taken), 3),
            "most": round(max(taken), 3),
            "runs": len(taken),
        }
        for name, taken in rows.items()
    }


def compare(model, processor, device, frames, cap: int, repeats: int, speed: dict) -> dict:
    """Both styles at one cap."""
    start_counting_memory()
    config = EvictionConfig(cap, sampled_share=0.0, important_share=0.0)  # as the reference's
    engine = VideoStreamingInference(model, processor, device, config)
    engine._end_ids = set()
    ours = summary(measure_ours(engine, frames, cap, repeats)) | peak_gib(device)
    patches = engine._frames(frames)
    ids = engine._question_ids(QUESTION, None)
    chunk = patches.grid_thw[0] * patches.grid_thw[1] * patches.grid_thw[2] // 4
    sink = engine.get_cache_info()["sink_size"]
    del engine
    start_counting_memory()
    theirs = summary(measure_reference(model, patches, ids, cap, sink, repeats)) | peak_gib(device)
    start_counting_memory()
    floor = floors(model, speed, cap, chunk, patches.pixel_values.shape[0])
    shared = ("chunk", "vision", "first_token", "token", "snapshot")
    return {
        "tokens_a_chunk": chunk,
        "question_tokens": len(ids),
        "ours_ms": ours,
        "reference_style_ms": theirs,
        "times_faster": {
            name: round(theirs[name]["median"] / ours[name]["median"], 2) for name in shared
        },
        "floor_ms": {name: round(value, 3) for name, value in floor.items()},
    }


def table(cap: int, row: dict) -> str:
    lines = [f"cap {cap:,}: {row['tokens_a_chunk']:,} tokens a chunk, times in ms"]
    lines.append(f"{'':>14} {'reference':>10} {'ours':>10} {'times':>7} {'floor':>8}")
    for name, times in row["times_faster"].items():
        theirs, ours = (row[side][name]["median"] for side in ("reference_style_ms", "ours_ms"))
        floor = row["floor_ms"].get(name)
        shown = "" if floor is None else f"{floor:.2f}"
        lines.append(f"{name:>14} {theirs:>10.2f} {ours:>10.2f} {times:>7.1f} {shown:>8}")
    for name in ("patches", "five_choices"):
        lines.append(f"{name:>14} {'':>10} {row['ours_ms'][name]['median']:>10.2f}")
    for name in ("peak_allocated_gib", "peak_reserved_gib"):
        if name in row["ours_ms"]:
            theirs, ours = (row[side][name] for side in ("reference_style_ms", "ours_ms"))
            lines.append(f"{name[5:]:>14} {theirs:>10.2f} {ours:>10.2f}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="3b", choices=SHAPES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="1920x1080")
    parser.add_argument("--caps", type=int, nargs="+", default=[16_384, 150_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    processor = words_processor()
    speed = device_speed(device, dtype)
    model = random_network(shape_config(options.shape, processor), device, dtype)
    model.generation_config.eos_token_id = []  # an answer is as long as it may be
    width, height = map(int, options.size.split("x"))
    frames = list(torch.randint(0, 256, (4, height, width, 3), dtype=torch.uint8, device=device))
    report = {
        "benchmark": "ours and the reference's style on one device, random weights",
        "shape": options.shape,
        "size": options.size,
        "dtype": str(dtype),
        "machine": torch.cuda.get_device_name() if device.type == "cuda" else platform.machine(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.date.today().isoformat(),
        "teraflops": round(speed["flops"] / 1e12, 1),
        "terabytes_a_second": round(speed["bytes"] / 1e12, 2),
        "caps": {},
    }
    for cap in options.caps:
        row = compare(model, processor, device, frames, cap, options.repeats, speed)
        report["caps"][cap] = row
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")
        print(table(cap, row), flush=True)


if __name__ == "__main__":
    main()
