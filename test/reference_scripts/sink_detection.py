# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Experiment A: is the sink found by itself, whatever the chunk? A stranger's script."""

import json
import os
import sys
import time

import numpy as np
import torch
from PIL import Image

from stream_vlm_ros.engine import (
    AutoProcessor,
    EvictionConfig,
    StreamQwenModel,
    VideoStreamingInference,
)

MODEL_PATH = os.environ["QWEN_MODEL_PATH"]
REPORT_PATH = os.environ.get("REPORT_PATH", ".")
DEVICE = "cpu"
WIDTH, HEIGHT = 448, 336
MAX_CACHE_TOKENS = int(os.environ.get("MAX_CACHE_TOKENS", "10000"))
NUM_CHUNKS = 5


def make_frames(count, seed=0):
    rng = np.random.RandomState(seed)
    return [
        Image.fromarray(rng.randint(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8))
        for _ in range(count)
    ]


def run_chunk_size(model, processor, frames_per_chunk):
    engine = VideoStreamingInference(
        model,
        processor,
        DEVICE,
        eviction_config=EvictionConfig(max_cache_tokens=MAX_CACHE_TOKENS, sink_size=0),
    )
    evictor = engine.cache_manager.evictor
    assert not evictor._first_chunk_recorded

    lengths = []
    for i in range(NUM_CHUNKS):
        start = time.time()
        engine.append_video_chunk(make_frames(frames_per_chunk, seed=i), fps=2.0)
        lengths.append(engine.cache_manager.get_seq_length())
        print(f"  chunk {i + 1}: {lengths[-1]} tokens, {time.time() - start:.2f}s")

    growth = [lengths[i] - lengths[i - 1] for i in range(1, NUM_CHUNKS)]
    return {
        "frames_per_chunk": frames_per_chunk,
        "first_chunk": lengths[0],
        "sink": evictor.effective_sink_size,
        "window": evictor.effective_window_size,
        "recorded": evictor._first_chunk_recorded,
        "avg_chunk_tokens": evictor._avg_chunk_tokens,
        "real_avg": sum(growth) / len(growth),
    }


def main():
    model = StreamQwenModel.from_pretrained(MODEL_PATH, torch_dtype=torch.float32)
    model = model.to(DEVICE).eval()
    processor = AutoProcessor.from_pretrained(MODEL_PATH, max_pixels=1280 * 28 * 28)

    results = [run_chunk_size(model, processor, n) for n in (2, 4)]
    checks = {}
    for r in results:
        name = f"{r['frames_per_chunk']} frames"
        checks[f"{name}: first chunk recorded"] = r["recorded"]
        checks[f"{name}: sink is the first chunk"] = r["sink"] == r["first_chunk"]
        checks[f"{name}: window"] = r["window"] == MAX_CACHE_TOKENS - r["sink"]
        checks[f"{name}: average"] = abs(r["avg_chunk_tokens"] - r["real_avg"]) < 10
        checks[f"{name}: well above 128"] = r["sink"] > 128
    checks["sinks differ"] = results[0]["sink"] != results[1]["sink"]

    with open(os.path.join(REPORT_PATH, "sink_detection.json"), "w") as f:
        json.dump({"results": results, "checks": checks}, f, indent=2)
    for name, passed in checks.items():
        print(f"[{'PASS' if passed else 'FAIL'}] {name}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
