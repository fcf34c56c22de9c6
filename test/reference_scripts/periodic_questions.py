# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Experiment C: read the text on the screen again and again, merge. A stranger's script."""

import json
import os
import sys

import numpy as np
import torch
from PIL import Image, ImageDraw

from stream_vlm_ros.engine import (
    AutoProcessor,
    EvictionConfig,
    StreamQwenModel,
    VideoStreamingInference,
)

MODEL_PATH = os.environ["QWEN_MODEL_PATH"]
REPORT_PATH = os.environ.get("REPORT_PATH", ".")
DEVICE = "cpu"
WIDTH, HEIGHT = 160, 112
FPS = 2.0
TOTAL_CHUNKS = 24
FRAMES_PER_CHUNK = 4
QUERY_EVERY = 6
MAX_CACHE_TOKENS = int(os.environ.get("MAX_CACHE_TOKENS", "300"))
PROMPT = "Read all the text that is visible on the screen, line by line."


def make_chunk(index):
    frames = []
    for n in range(FRAMES_PER_CHUNK):
        image = Image.fromarray(np.full((HEIGHT, WIDTH, 3), 230, dtype=np.uint8))
        ImageDraw.Draw(image).text((20, 40 + n), f"LINE {index // QUERY_EVERY}", fill=(0, 0, 0))
        frames.append(image)
    return frames


def merge_answers(answers):
    merged, seen = [], set()
    for answer in answers:
        for line in answer.splitlines():
            key = line.strip().lower()
            if key and key not in seen:
                seen.add(key)
                merged.append(line.strip())
    return merged


def main():
    model = StreamQwenModel.from_pretrained(MODEL_PATH, torch_dtype=torch.float32)
    model = model.to(DEVICE).eval()
    processor = AutoProcessor.from_pretrained(MODEL_PATH)
    engine = VideoStreamingInference(
        model, processor, DEVICE, eviction_config=EvictionConfig(max_cache_tokens=MAX_CACHE_TOKENS)
    )

    answers, ttfts, restored, error = [], [], [], None
    try:
        for chunk in range(1, TOTAL_CHUNKS + 1):
            engine.append_video_chunk(make_chunk(chunk), fps=FPS)
            if chunk % QUERY_EVERY:
                continue
            before = engine.get_cache_info()["cache_seq_length"]
            state = engine.model.stream_state
            answer, metrics = engine.ask(
                PROMPT, max_new_tokens=200, do_sample=True, temperature=0.3
            )
            after = engine.get_cache_info()["cache_seq_length"]
            same_state = (
                engine.model.stream_state.last_cache_position == state.last_cache_position
                and engine.model.stream_state.rope_deltas == state.rope_deltas
            )
            restored.append(before == after and same_state)
            ttfts.append(metrics["ttft"])
            answers.append(answer)
            print(f"chunk {chunk}: TTFT {metrics['ttft']:.3f}s {answer[:60]!r}")
    except (torch.OutOfMemoryError, MemoryError) as oom:
        error = str(oom)

    engine.cache_manager.snapshot()
    engine.append_frame(make_chunk(0)[0])
    engine.cache_manager.discard_snapshot()
    checks = {
        "no OOM": error is None,
        "all questions asked": len(answers) == TOTAL_CHUNKS // QUERY_EVERY,
        "every ask restored the cache": all(restored),
        "some answers carry text": any(answer.strip() for answer in answers),
        "mean TTFT < 10s": sum(ttfts) / len(ttfts) < 10.0,
        "the window moved on": engine.get_cache_info()["eviction_stats"]["total_evictions"] > 0,
    }
    with open(os.path.join(REPORT_PATH, "periodic_questions.json"), "w") as f:
        json.dump({"checks": checks, "merged": merge_answers(answers)}, f, indent=2)
    for name, passed in checks.items():
        print(f"[{'PASS' if passed else 'FAIL'}] {name}")
    return 0 if all(checks.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
