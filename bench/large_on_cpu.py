# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A released model's shape on a CPU, with random weights: what a chunk and an answer cost.

    python bench/large_on_cpu.py --shape 3b --out bench/results/cpu_3b.json

Noise of 640x480 in chunks of 4 frames, at the node's default max_pixels, in float32, which a CPU
takes by default. Times as in small_model.py: wall time, and processor time, which with one thread
is what an idle core would take. Of each tower every fourth layer is left (--part 4), so that 5 GB
are enough; ``whole`` has the seconds for all of them: a chunk's times four, a token's by the
parameters that it reads, head included.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from small_model import Times

from stream_vlm_ros.config import Settings
from stream_vlm_ros.engine import EvictionConfig, StreamQwenModel, VideoStreamingInference
from stream_vlm_ros.experiments.shapes import (
    SHAPES,
    random_network,
    shape_config,
    words_processor,
)
from stream_vlm_ros.machine import measured_on

FRAMES, TOKENS = 4, 8


def _text_parameters(config: Any) -> int:
    with_head = StreamQwenModel(config, torch.float32, "meta").released()
    return sum(w.numel() for name, w in with_head if not name.startswith("visual."))


def _keep_a_part(config: Any, part: int) -> None:
    """Leave one layer of ``part`` in each tower, full attention in the same share of them."""
    text, vision = config.text_config, config.vision_config
    text.num_hidden_layers //= part
    text.layer_types = text.layer_types[: text.num_hidden_layers]
    vision.depth //= part
    vision.fullatt_block_indexes = [i for i in vision.fullatt_block_indexes if i < vision.depth]


def main() -> None:
    """Measure and write the figures."""
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--shape", choices=SHAPES, default="3b")
    parse.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    parse.add_argument("--threads", type=int, default=1)
    parse.add_argument("--part", type=int, choices=(1, 2, 4), default=4)
    parse.add_argument("--chunks", type=int, default=2)
    parse.add_argument("--out", type=Path)
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    processor, settings = words_processor(), Settings(max_cache_tokens=4096)
    dtype = getattr(torch, args.dtype)
    config = shape_config(args.shape, processor)
    head = config.text_config.vocab_size * config.text_config.hidden_size
    layers = _text_parameters(config) - head
    _keep_a_part(config, args.part)
    network = random_network(config, torch.device("cpu"), dtype)
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
    for _ in range(2):
        with first_tokens.once():
            engine.ask("What is there?", max_new_tokens=1)
        with answers.once():
            _, metrics = engine.ask("What is there?", max_new_tokens=1 + TOKENS)
    first, whole = (t.figures()["processor_median"] / 1e3 for t in (first_tokens, answers))
    token = (whole - first) / (metrics.answer_tokens - 1)
    report = {
        **measured_on(torch, transformers),
        "shape": args.shape,
        "dtype": args.dtype,
        "part": args.part,
        "threads": args.threads,
        "cache_tokens": engine.get_cache_info()["cache_seq_length"],
        "chunk_of_4_ms": chunks.figures(),
        "first_token_ms": first_tokens.figures(),
        "answer_ms": answers.figures(),
        "answer_tokens": metrics.answer_tokens,
        "whole": {
            "chunk_of_4_s": round(args.part * chunks.figures()["processor_median"] / 1e3, 1),
            "first_token_s": round(args.part * first, 1),
            "further_token_s": round(token * (layers + head) / (layers / args.part + head), 2),
        },
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
