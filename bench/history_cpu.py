# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How long a question over six hours takes the small model on two CPU cores.

    python bench/history_cpu.py --out bench/results/history_cpu.json

A drawn world is streamed into a folder, on whatever device there is. A process that may use two
cores takes the folder up, streams the minutes that followed, and answers; the first question is not
counted.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stream_vlm_ros.engine import EvictionConfig
from stream_vlm_ros.experiments.history_world import MEMORY_GRIDS, calibration_of
from stream_vlm_ros.experiments.model_under_test import ModelUnderTest
from stream_vlm_ros.history.recall import RecallingInference
from stream_vlm_ros.history.store import FrameStore
from stream_vlm_ros.machine import measured_on
from stream_vlm_ros.world.rare import RareWorld, exam, grid_stamps

CHUNK = 2  # grids
LIVE = 120  # grids that are streamed in the second process
GRID_TOKENS = 20
BAR = 2.0  # seconds


def engine_on(device: str, folder: Path) -> RecallingInference:
    model = ModelUnderTest.load(device=device, dtype="float32")
    calibration, _ = calibration_of(model)
    return RecallingInference(
        model.network, model.processor, model.device,
        EvictionConfig.novelty(MEMORY_GRIDS * GRID_TOKENS + 32), calibration=calibration,
        store=FrameStore(folder, max_seconds=10 * 3600.0), history="auto", compile=False,
    )  # fmt: skip


def stream(engine: RecallingInference, world: RareWorld, first: int, stop: int) -> None:
    for start in range(first, stop, CHUNK):
        grids = range(start, min(start + CHUNK, stop))
        frames = [frame for grid in grids for frame in world.grid(grid)]
        engine.append_video_chunk(
            frames, timestamps=[t for grid in grids for t in grid_stamps(grid)]
        )


def answer(seed: int, hours: float, folder: Path, count: int, cores: int) -> dict[str, Any]:
    """In a process of its own: what its questions took."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    torch.set_num_threads(cores)
    world = RareWorld(seed, hours=hours)
    engine = engine_on("cpu", folder)
    stream(engine, world, world.grids - LIVE, world.grids)
    asked = [one.question.text for one in exam(world) if one.evidence]
    texts = random.Random(seed).sample(asked, min(count + 1, len(asked)))
    told = [engine.ask(text, 24)[1] for text in texts][1:]
    held = [tier.as_dict() for tier in engine.get_cache_info().tiers]
    engine.close()
    latencies = [one.latency for one in told]
    return {
        "questions": len(told),
        "fetched": sum(one.fetched_tokens > 0 for one in told),
        "seconds": {
            "median": round(float(np.median(latencies)), 3),
            "p95": round(float(np.percentile(latencies, 95)), 3),
            "longest": round(max(latencies), 3),
        },
        "search": round(float(np.median([one.search_latency for one in told])), 3),
        "fetched_tokens": round(float(np.median([one.fetched_tokens for one in told]))),
        "tiers": held,
    }


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--hours", type=float, default=6.0)
    parse.add_argument("--seed", type=int, default=7)
    parse.add_argument("--questions", type=int, default=60)
    parse.add_argument("--cores", type=int, default=2)
    parse.add_argument("--device", default="auto", help="that the hours are streamed on")
    parse.add_argument("--out", type=Path)
    options = parse.parse_args()
    world = RareWorld(options.seed, hours=options.hours)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        engine = engine_on(options.device, Path(folder) / "kept")
        stream(engine, world, 0, world.grids - LIVE)
        engine.close()
        streamed = time.perf_counter() - begun
        with multiprocessing.get_context("spawn").Pool(1) as pool:
            told = pool.apply(
                answer,
                (options.seed, options.hours, Path(folder) / "kept", options.questions,
                 options.cores),
            )  # fmt: skip
    report = {
        "machine": measured_on(),
        "hours": options.hours,
        "seed": options.seed,
        "cores": options.cores,
        "streamed_in": round(streamed, 1),
        **told,
        "bar": {"longest": BAR, "holds": told["seconds"]["longest"] <= BAR},
    }
    print(json.dumps(report, indent=1))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
