# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How what a history fetches is best read: apart from the stream, or in the question's own fork.

    python bench/history_beside.py --out beside.json   # 2 worlds of six hours, 200 questions each

*Apart* is what the engine does: the episode and the newest frames as one short video. *Before* and
*behind* read the episode alone, and the question sees its keys and values next to the stream's:
rotated so that the episode ends where the stream begins, or where the question does.
"""

from __future__ import annotations

import argparse
import functools
import json
import multiprocessing
from collections import defaultdict
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers

from stream_vlm_ros.engine import Answer, VideoStreamingInference
from stream_vlm_ros.engine.cache.mrope import Vec
from stream_vlm_ros.experiments import history_world
from stream_vlm_ros.experiments.intervals import wilson
from stream_vlm_ros.experiments.model_under_test import ModelUnderTest
from stream_vlm_ros.history import recall
from stream_vlm_ros.history.reading import Reader
from stream_vlm_ros.machine import measured_on
from stream_vlm_ros.world.rare import MEASURING

WAYS = ("apart", "before", "behind")


class BesideReader(Reader):
    """Answers in a fork of the stream that sees what was read, too."""

    stream: VideoStreamingInference
    way: str

    def ask_stream(self, question: str, *options: Any, **named: Any) -> Answer:
        with self.cache_manager.fork(1) as fork:
            parts = fork.parts
        end = max(self.cache_manager.ledger.next_position)
        manager = self.stream.cache_manager
        start = 0 if self.way == "before" else max(manager.ledger.next_position)
        offset = manager.offset(Vec(*3 * [end - start]))
        assert all(part.rope_offset is None for part in parts)
        further = [part._replace(rope_offset=offset) for part in parts]
        own = manager.question_fork
        manager.question_fork = functools.partial(own, further=further)
        try:
            return VideoStreamingInference.ask_stream(self.stream, question, *options, **named)
        finally:
            del manager.question_fork


class BesideInference(recall.RecallingInference):
    way = ""

    def _reader(self) -> Reader:
        reader = super()._reader()
        if self.cache_manager.state.frames:
            reader.__class__ = BesideReader
            reader.stream, reader.way = self, self.way
        return reader


def work(seed: int, way: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    model = ModelUnderTest.load(None, None, None, options.device, options.dtype, 0)
    _, digest = history_world.calibration_of(model)
    if way != "apart":
        recall.PRESENT = 0  # the stream has them
        history_world.RecallingInference = type("Beside", (BesideInference,), {"way": way})
    plan = history_world.Plan(
        hours=options.hours, once=20, repeated=4, never=8, chunk_frames=16, history="auto",
        read=way, index_megabytes=256, questions=options.questions, moments=0, taken=0,
        controls=False, dtype=options.dtype, calibration=digest,
    )  # fmt: skip
    run = history_world.WorldRun(model, seed, plan)
    done = run.run()
    fetch = done["latencies"].get("fetched", [])
    return [
        {"way": way, "seconds": sum(fetch) / max(1, len(fetch)), **row}
        for row in done["rows"]
        if row["memory"] == "history"
    ]


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parse.add_argument("--out", type=Path, required=True)
    parse.add_argument("--worlds", type=int, default=2)
    parse.add_argument("--hours", type=float, default=6.0)
    parse.add_argument("--questions", type=int, default=200, help="of a world at most")
    parse.add_argument("--ways", nargs="+", choices=WAYS, default=list(WAYS))
    parse.add_argument("--jobs", type=int, default=6)
    parse.add_argument("--device", default="auto")
    parse.add_argument("--dtype", default="auto")
    options = parse.parse_args()
    seeds = list(MEASURING[: options.worlds])
    with ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn")) as pool:
        waiting = [pool.submit(work, seed, way, options) for way in options.ways for seed in seeds]
        rows = [row for one in waiting for row in one.result()]
    cells: dict[tuple[str, str], dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if row["fetched"]:
            cells[row["type"], row["band"]][row["way"]].append(row["told"])
            cells["all", ""][row["way"]].append(row["told"])
    found = []
    print(f"{'told right by the model':30}" + "".join(f"{way:>16}" for way in options.ways))
    for (type_, age), ways in sorted(cells.items()):
        line = f"{type_:14}{age:16}"
        for way in options.ways:
            right, asked = sum(ways[way]), len(ways[way])
            low, high = wilson(right, asked) if asked else (0.0, 1.0)
            found.append(
                {"type": type_, "age": age, "read": way, "right": right / max(1, asked),
                 "asked": asked, "low": round(low, 4), "high": round(high, 4)}
            )  # fmt: skip
            line += f"{100 * right / max(1, asked):10.0f} of {asked:3}"
        print(line)
    seconds = {row["way"]: row["seconds"] for row in rows}
    print("seconds a fetched answer:", seconds)
    summary = {
        "seeds": seeds, "hours": options.hours, "questions": options.questions, "rows": found,
        "seconds_a_fetched_answer": seconds, **measured_on(torch, transformers),
    }  # fmt: skip
    options.out.write_text(json.dumps(summary, indent=1) + "\n")


if __name__ == "__main__":
    main()
