# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The small trained model on a CPU: what a chunk, a first token, an answer and loading cost.

    python bench/small_model.py --threads 2 --out bench/results/small_model.json

Frames of the drawn world at 640x480, in chunks of 4 at 2 frames a second, up to 60 s of history;
then questions. Times are in milliseconds, median and least: wall time, and the process's processor
time, which with one thread is what an idle core would take (on a busy machine, whose load average
is recorded, wall time says little).
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import statistics
import time
from pathlib import Path

import torch
import transformers

from stream_vlm_ros.machine import measured_on
from stream_vlm_ros.world.evaluate import CHUNK, MODEL, engine_for, load
from stream_vlm_ros.world.world import World

QUESTIONS = ("What appeared last?", "Was there a red star?", "What was visible 12 seconds ago?")


class Times:
    """Wall and processor times of repeated work."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []

    @contextlib.contextmanager
    def once(self):
        """Time what is done inside."""
        wall, processor = time.perf_counter(), time.process_time()
        yield
        self.wall.append(time.perf_counter() - wall)
        self.processor.append(time.process_time() - processor)

    def figures(self) -> dict[str, float]:
        """Median and least, in milliseconds."""
        return {
            "wall_median": round(1e3 * statistics.median(self.wall), 1),
            "wall_least": round(1e3 * min(self.wall), 1),
            "processor_median": round(1e3 * statistics.median(self.processor), 1),
            "runs": len(self.wall),
        }


def drawing(seconds: float = 10.0) -> dict[str, float]:
    """Frames a second that a world is drawn at, 640x480, of the thread's processor time."""
    world = World(11)
    world.render(0.0)
    count = int(30 * seconds)
    began, begin = time.perf_counter(), time.thread_time()
    for index in range(count):
        world.render(index / 30)
    return {
        "frames": count,
        "per_second_wall": round(count / (time.perf_counter() - began), 1),
        "per_second_processor": round(count / (time.thread_time() - begin), 1),
    }


def main() -> None:
    """Measure and write the figures."""
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--threads", type=int, default=2)
    parse.add_argument("--seconds", type=int, default=60, help="history before the questions")
    parse.add_argument("--repeats", type=int, default=10)
    parse.add_argument("--out", type=Path)
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    importlib.import_module("stream_vlm_ros.engine")  # loading is counted without it
    loads, chunks, first_tokens, answers = Times(), Times(), Times(), Times()
    for _ in range(3):
        with loads.once():
            model, processor = load(MODEL)
    world = World(12)
    engine = engine_for(model, processor)
    for first in range(0, 2 * args.seconds, CHUNK):
        stamps = [(first + k) / 2 for k in range(CHUNK)]
        frames = [world.render(t) for t in stamps]
        with chunks.once():
            engine.append_video_chunk(frames, timestamps=stamps)
    for _ in range(args.repeats):
        for question in QUESTIONS:
            with answers.once():
                engine.ask(question, max_new_tokens=16)
            with first_tokens.once():
                engine.ask(question, max_new_tokens=1)
    report = {
        **measured_on(torch, transformers),
        "threads": args.threads,
        "history_seconds": args.seconds,
        "cache_tokens": engine.get_cache_info()["cache_seq_length"],
        "load_ms": loads.figures(),
        "chunk_of_4_ms": chunks.figures(),
        "first_token_ms": first_tokens.figures(),
        "whole_answer_ms": answers.figures(),
        "drawing": drawing(),
    }
    text = json.dumps(report, indent=2)
    print(text)
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
