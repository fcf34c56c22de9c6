# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

r"""A released model's shape on a CPU, with random weights: what a chunk and tokens cost.

    python bench/large_on_cpu.py --shape 3b --dtype bfloat16 --threads 1 \
        --out bench/results/cpu_3b.json

Noise of 640x480 in chunks of 4 frames, at the node's default max_pixels. Seconds, as in
small_model.py: wall time, and processor time, which with one thread is what an idle core would
take. The weights are 7.5 GB in bfloat16, 15 GB in float32, which a CPU takes by default.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
import torch
import transformers
from small_model import Times

from stream_vlm_ros.config import Settings
from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.experiments.shapes import (
    SHAPES,
    random_network,
    shape_config,
    words_processor,
)
from stream_vlm_ros.machine import measured_on

FRAMES, TOKENS = 4, 8


def main() -> None:
    """Measure and write the figures."""
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--shape", choices=SHAPES, default="3b")
    parse.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parse.add_argument("--threads", type=int, default=1)
    parse.add_argument("--chunks", type=int, default=4)
    parse.add_argument("--out", type=Path)
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    processor, settings = words_processor(), Settings(max_cache_tokens=4096)
    dtype = getattr(torch, args.dtype)
    network = random_network(shape_config(args.shape, processor), torch.device("cpu"), dtype)
    engine = VideoStreamingInference(
        network,
        processor,
        "cpu",
        EvictionConfig.novelty(max_cache_tokens=settings.max_cache_tokens),
        max_pixels=settings.max_pixels,
    )
    noise = np.random.default_rng(0)
    chunks, first_tokens, answers = Times(), Times(), Times()
    for number in range(args.chunks):
        frames = [noise.integers(0, 256, (480, 640, 3), np.uint8) for _ in range(FRAMES)]
        stamps = [(FRAMES * number + k) / settings.sample_fps for k in range(FRAMES)]
        with chunks.once():
            engine.append_video_chunk(frames, timestamps=stamps)
    for _ in range(3):
        with first_tokens.once():
            engine.ask("What is there?", max_new_tokens=1)
        with answers.once():
            _, metrics = engine.ask("What is there?", max_new_tokens=1 + TOKENS)
    report = {
        **measured_on(torch, transformers),
        "shape": args.shape,
        "dtype": args.dtype,
        "threads": args.threads,
        "cache_tokens": engine.get_cache_info()["cache_seq_length"],
        "chunk_of_4_ms": chunks.figures(),
        "first_token_ms": first_tokens.figures(),
        "answer_ms": answers.figures(),
        "answer_tokens": metrics.answer_tokens,
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
