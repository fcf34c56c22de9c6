"""The engine on one GPU at the 3B shape: a chunk, the first token, a further token, choices.

    python bench/gpu.py --out bench/results/gpu.json

Random weights (speed does not depend on them), 1920x1080 frames in chunks of 4, bfloat16. Times
are medians of repeated runs in one process, in milliseconds.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import time
from pathlib import Path

import torch
import transformers

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.replay.experiments.shapes import random_network, shape_config, words_processor

QUESTION = "what was visible before the red circle and where was it " * 3  # 48 tokens or so


def milliseconds(run, times: int) -> list[float]:
    """Wall time of ``run`` with the device idle before and after."""
    taken = []
    for _ in range(times):
        torch.cuda.synchronize() if torch.cuda.is_available() else None
        begin = time.perf_counter()
        run()
        torch.cuda.synchronize() if torch.cuda.is_available() else None
        taken.append(1e3 * (time.perf_counter() - begin))
    return taken


def summary(taken: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(taken), 3),
        "least": round(min(taken), 3),
        "most": round(max(taken), 3),
        "runs": len(taken),
    }


def measure(engine: VideoStreamingInference, frames, fill: int, repeats: int) -> dict:
    """Fill the memory, then time what a robot does with it."""
    chunk = engine.append_video_chunk(frames, fps=2)["tokens"]
    while engine.get_cache_info()["cache_seq_length"] + chunk < fill:
        engine.append_video_chunk(frames, fps=2)
    engine.append_video_chunk(frames, fps=2)
    rows = {"chunk": milliseconds(lambda: engine.append_video_chunk(frames, fps=2), repeats)}
    patches = engine._frames(frames)
    rows["patches"] = milliseconds(lambda: engine._frames(frames), repeats)
    rows["vision"] = milliseconds(lambda: engine.model.encode_frames(patches), repeats)
    engine.ask(QUESTION, 4)
    asked = [engine.ask(QUESTION, 33)[1] for _ in range(repeats)]
    rows["ttft"] = [1e3 * metrics["ttft"] for metrics in asked]
    rows["token"] = [
        1e3 * (m["latency"] - m["ttft"]) / (m["answer_tokens"] - 1)
        for m in asked
        if m["answer_tokens"] > 1
    ] or [float("nan")]
    choices = ["a red circle", "a blue square", "nothing", "a sign", "two shapes"]
    rows["five_choices"] = milliseconds(lambda: engine.ask_choice(QUESTION, choices), repeats)
    manager = engine.cache_manager
    rows["snapshot_restore"] = milliseconds(lambda: manager.restore(manager.snapshot()), repeats)
    result = {name: summary(taken) for name, taken in rows.items()}
    result["tokens_a_chunk"] = chunk
    result["question_tokens"] = asked[0]["prompt_tokens"]
    result["cache_length"] = manager.get_seq_length()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--shape", default="3b")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="1920x1080")
    parser.add_argument("--caps", type=int, nargs="+", default=[16_384, 150_000])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    device = torch.device(options.device)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    processor = words_processor()
    model = random_network(shape_config(options.shape, processor), device, dtype)
    model.generation_config.eos_token_id = []  # an answer is as long as it may be
    width, height = map(int, options.size.split("x"))
    frames = list(torch.randint(0, 256, (4, height, width, 3), dtype=torch.uint8, device=device))
    report = {
        "benchmark": "engine on one device, random weights",
        "shape": options.shape,
        "size": options.size,
        "dtype": str(dtype),
        "machine": torch.cuda.get_device_name() if device.type == "cuda" else platform.processor(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": datetime.date.today().isoformat(),
        "units": "ms",
        "caps": {},
    }
    for cap in options.caps:
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        engine = VideoStreamingInference(model, processor, device, EvictionConfig(cap))
        engine._end_ids = set()
        row = measure(engine, frames, cap, options.repeats)
        if device.type == "cuda":
            row["peak_allocated_gib"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            row["peak_reserved_gib"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
        report["caps"][cap] = row
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=2) + "\n")
        print(f"cap {cap}:", json.dumps(row), flush=True)
        del engine


if __name__ == "__main__":
    main()
