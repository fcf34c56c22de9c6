# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the look for numbers that are not finite costs a chunk, on a GPU.

    python bench/finite_check.py --out bench/results/finite_check.json

The 3B shape with random weights and a full memory of 16,384 tokens; chunks of four frames with and
without the look, by turns. Medians in milliseconds, and that of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import torch

from stream_vlm_ros.config import NOVELTY
from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.experiments.model_under_test import ModelUnderTest
from stream_vlm_ros.machine import measured_on

LOOK = "stream_vlm_ros.engine.inference.FiniteCheck"
SIZES = ((640, 480), (1920, 1080))
ROUNDS, WARM = 40, 30


def measure(model: ModelUnderTest, width: int, height: int) -> dict[str, Any]:
    engine = VideoStreamingInference(
        model.network, model.processor, model.device, EvictionConfig(16_384, **NOVELTY)
    )
    noise = np.random.default_rng(0)
    cells = (height // 30, width // 40, 3)
    pictures = [
        noise.integers(0, 256, cells, dtype=np.uint8).repeat(30, 0).repeat(40, 1) for _ in range(4)
    ]

    def append() -> float:
        return 1e3 * engine.append_video_chunk(pictures, fps=2).latency

    for _ in range(WARM):
        append()
    taken: dict[bool, list[float]] = {True: [], False: []}
    for number in range(ROUNDS):
        for looks in (bool(number % 2), not number % 2):
            if looks:
                taken[True].append(append())
            else:
                with mock.patch(LOOK):
                    taken[False].append(append())
    looked, plain = (np.array(taken[looks]) for looks in (True, False))
    return {
        "with": round(float(np.median(looked)), 3),
        "without": round(float(np.median(plain)), 3),
        "share": round(float(np.median(looked) / np.median(plain) - 1), 4),
        "median_of_ratios": round(float(np.median(looked / plain)), 4),
    }


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--shape", default="3b")
    parse.add_argument("--out", type=Path)
    options = parse.parse_args()
    model = ModelUnderTest.load(shape=options.shape, device="cuda")
    report = {
        "machine": {**measured_on(torch), "gpu": torch.cuda.get_device_name()},
        "shape": options.shape,
        "rounds": ROUNDS,
        "sizes": {f"{w}x{h}": measure(model, w, h) for w, h in SIZES},
    }
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
