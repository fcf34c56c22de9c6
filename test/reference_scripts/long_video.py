# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Experiment B: a long video that never outgrows its cap. A stranger's script."""

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
WIDTH, HEIGHT = 112, 112
FPS = 2.0
TOTAL_FRAMES = 100
FRAMES_PER_CHUNK = 4
MAX_CACHE_TOKENS = int(os.environ.get("MAX_CACHE_TOKENS", "300"))


def video(total):
    """A disc that wanders over a grey wall."""
    ys, xs = np.mgrid[:HEIGHT, :WIDTH]
    for i in range(total):
        frame = np.full((HEIGHT, WIDTH, 3), 128, dtype=np.uint8)
        x, y = 20 + 3 * i % (WIDTH - 40), 20 + 5 * i % (HEIGHT - 40)
        frame[(xs - x) ** 2 + (ys - y) ** 2 < 200] = (200, 30, 30)
        yield Image.fromarray(frame)


def main():
    model = StreamQwenModel.from_pretrained(MODEL_PATH, torch_dtype=torch.float32)
    model = model.to(DEVICE).eval()
    processor = AutoProcessor.from_pretrained(MODEL_PATH)
    config = EvictionConfig(
        max_cache_tokens=MAX_CACHE_TOKENS, sink_size=0, window_size=0, eviction_interval=1
    )
    engine = VideoStreamingInference(model, processor, DEVICE, eviction_config=config)

    history, frames, chunks = [], [], 0
    started = time.time()
    for frame in video(TOTAL_FRAMES):
        frames.append(frame)
        if len(frames) < FRAMES_PER_CHUNK:
            continue
        engine.append_video_chunk(frames, fps=FPS)
        frames, chunks = [], chunks + 1
        info = engine.get_cache_info()
        stats = info["eviction_stats"]
        history.append(info["cache_seq_length"])
        print(
            f"chunk {chunks:3d} | cache {info['cache_seq_length']:5d} tokens"
            f" {info['cache_memory_gb']:.4f} GB | evictions {stats['total_evictions']}"
            f" ({stats['total_tokens_evicted']} tokens)"
        )
    elapsed = time.time() - started

    before = engine.cache_manager.get_seq_length()
    answer, metrics = engine.ask(
        "Describe what you see.", max_new_tokens=64, do_sample=False, temperature=1.0,
        update_state=False,
    )  # fmt: skip
    after = engine.cache_manager.get_seq_length()
    stats = engine.get_cache_info()["eviction_stats"]
    evictor = engine.cache_manager.evictor

    checks = {
        "all chunks processed": chunks == TOTAL_FRAMES // FRAMES_PER_CHUNK,
        "never over the cap": max(history) <= MAX_CACHE_TOKENS,
        "evictions": stats["total_evictions"] > 0,
        "at the cap in the end": history[-1] == MAX_CACHE_TOKENS,
        "sink and window fill the cap": evictor.effective_sink_size + evictor.effective_window_size
        == MAX_CACHE_TOKENS,
        "memory is reported": engine.get_cache_info()["cache_memory_gb"] > 0,
        "an answer": len(answer.strip()) > 0,
        "the cache was restored": before == after,
        "timed": 0 < metrics["ttft"] <= metrics["total_latency"],
    }
    with open(os.path.join(REPORT_PATH, "long_video.json"), "w") as f:
        json.dump({"checks": checks, "evictions": stats, "seconds": elapsed}, f, indent=2)
    print(f"TTFT {metrics['ttft']:.3f}s, total {metrics['total_latency']:.3f}s: {answer!r}")
    for name, passed in checks.items():
        print(f"[{'PASS' if passed else 'FAIL'}] {name}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
