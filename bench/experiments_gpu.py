# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The reference's experiments, and ours, at the 3B shape on one GPU, one after the other.

    python bench/experiments_gpu.py --out bench/results/experiments_3b          # about 9 minutes
    python bench/experiments_gpu.py --out bench/results/experiments_3b --only caps native-720p
    python bench/experiments_gpu.py --table bench/results/experiments_3b        # what is there
    make docs                                                  # docs/experiments.md says it, too

Each is ``python -m stream_vlm_ros.experiments`` with the options below, in one process, so that the
weights are made once; its JSON, Markdown and plots go to a folder of its name. What an earlier run
has finished there is not done again, unless it is named with --only. No run is started after
--minutes. Random weights: lengths, memory and times are those of a trained model, answers are
noise; time-order takes the small model that the package ships.

Needs torch, transformers, numpy, rich and this repository (PYTHONPATH=.), no ROS and no video
libraries. To try it out on a CPU: --device cpu --shape toy --small
"""

from __future__ import annotations

import argparse
import functools
import gc
import json
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any, NamedTuple

import torch

from stream_vlm_ros.experiments.command import UNUSABLE
from stream_vlm_ros.experiments.command import main as experiment
from stream_vlm_ros.experiments.model_under_test import ModelUnderTest


class Run(NamedTuple):
    """An experiment, its options, and those that make it small for trying it out."""

    experiment: str
    options: str = ""
    small: str = ""
    trained: bool = False  # by the small model instead of the shape


HD, TINY = "--source synthetic:1280x720", "--source synthetic:112x84"
FEW = f"{TINY} --frames 24 --max-new-tokens 3"
GPU_OF_24_GIB, AS_REFERENCE = "--memory-gib 24", "--as reference"
UNJUDGED = "--no-answers"  # where a run of the same kind has had the small model's answers judged
CONTROL = f"{AS_REFERENCE} {GPU_OF_24_GIB} {UNJUDGED}"
# The short ones and those of the reference's main tables first: a time limit leaves out the last.
RUNS = {
    "sink": Run("sink", "", f"{TINY} --min-sink 20"),
    "long-video": Run("long-video", GPU_OF_24_GIB, f"{FEW} --cap 200"),
    "no-eviction": Run("long-video", f"--no-eviction {GPU_OF_24_GIB} {UNJUDGED}", FEW),
    "native-720p": Run("native", f"{HD} {AS_REFERENCE} {GPU_OF_24_GIB}", FEW),
    "native-720p-48": Run("native", f"{HD} --frames 48 {CONTROL}", FEW),
    "native-1080p-48": Run("native", f"--frames 48 {CONTROL}", FEW),
    # So many that the offline pass runs out of memory, and takes every 2nd.
    "native-1080p-96": Run("native", f"--frames 96 {CONTROL}", FEW),
    "chunk-size": Run("chunk-size", "", f"{TINY} --seconds 6"),
    # Of the reference's small pictures, 64 tokens a grid, and its 55 text tokens.
    "chunk-size-small": Run(
        "chunk-size", f"{AS_REFERENCE} --first-text 55 --source synthetic:224x224", "--seconds 6"
    ),
    "time-order": Run("time-order", trained=True),
    # Full pictures, as in the reference's log: 64,584 tokens.
    "delayed-batch": Run("delayed-batch", "--max-pixels 2200000", f"{TINY} --max-new-tokens 3"),
    "caps": Run("caps", AS_REFERENCE, f"{FEW} --caps 100 150"),
    "periodic": Run("periodic", "", f"{FEW} --every 2 --cap 200"),
    # Six streams: half the length under half the cap.
    "remedies": Run(
        "periodic", f"--remedies --frames 200 --cap 75000 {UNJUDGED}", f"{FEW} --every 2 --cap 200"
    ),
    "curves": Run(
        "curves",
        f"{HD} --over rate length --lengths 10 20 40 --seconds 10 --repeats 2",
        f"{TINY} --seconds 4 --lengths 4 8 --rates 1 4",
    ),
}


def command_of(name: str, options: argparse.Namespace) -> list[str]:
    run = RUNS[name]
    given = f"{run.options} {run.small if options.small else ''}"
    if options.small:
        given = given.replace(GPU_OF_24_GIB, "")
    shape = [] if run.trained else ["--shape", options.shape]
    place = ["--device", options.device, "--out", str(options.out / name)]
    return [run.experiment, *shape, *place, *given.split()]


def result_of(folder: Path, name: str) -> dict[str, Any]:
    """What a run has left, {} if there is nothing."""
    path = folder / name / f"{RUNS[name].experiment}.json"
    found: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.exists() else {}
    return found


def do(name: str, options: argparse.Namespace) -> bool:
    """Run it; False where it was refused, and what an earlier run has left is still there."""
    command = command_of(name, options)
    print(f"\n== {name}: {' '.join(command)}", flush=True)
    try:
        status = experiment(command)
    except SystemExit:  # argparse has said why
        status = UNUSABLE
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.set_per_process_memory_fraction(1.0)
    return status != UNUSABLE


def table(folder: Path, names: Collection[str] = RUNS.keys()) -> bool:
    """Print a line a run; whether all of these are there and have passed."""
    passed = True
    print(f"\n{'run':<16} {'status':<11} {'s':>6} {'peak GiB':>9}  what failed")
    for name in names:
        found = result_of(folder, name)
        status = found.get("status", "not there")
        passed &= status == "passed"
        told = [*found.get("rows", []), found.get("summary", {})]
        peaks = [one["peak_gib"] for one in told if isinstance(one.get("peak_gib"), float)]
        failed = [one["name"] for one in found.get("criteria", []) if one["passed"] is False]
        peak = f"{max(peaks):.2f}" if peaks else "–"
        said = "; ".join(failed or ([] if status == "passed" else found.get("notes", [])))
        print(f"{name:<16} {status:<11} {found.get('seconds', 0):>6.1f} {peak:>9}  {said}")
    return passed


def main() -> int:
    parse = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parse.add_argument("--out", type=Path, default=Path("experiments_3b"))
    parse.add_argument("--only", nargs="+", choices=RUNS, metavar="NAME", help=", ".join(RUNS))
    parse.add_argument("--minutes", type=float, default=8.5, help="Start no run after this time.")
    parse.add_argument("--shape", default="3b")
    parse.add_argument("--device", default="cuda")
    parse.add_argument("--small", action="store_true", help="Toy sizes, to try it out.")
    parse.add_argument("--table", type=Path, metavar="FOLDER", help="Only show what is there.")
    options = parse.parse_args()
    if options.table:
        return 0 if table(options.table) else 1
    # Every run asks for the same model: it is made once.
    load = functools.cache(ModelUnderTest.load)
    ModelUnderTest.load = load  # type: ignore[method-assign, assignment]
    begin, refused = time.monotonic(), []
    for name in options.only or RUNS:
        if not options.only and result_of(options.out, name).get("status") in ("passed", "failed"):
            print(f"== {name}: there already", flush=True)
        elif time.monotonic() - begin > 60 * options.minutes:
            print(f"== {name}: no time left; run again to go on", flush=True)
        elif not do(name, options):
            refused.append(name)
    print(f"\n{time.monotonic() - begin:.0f} s in all")
    passed = table(options.out, options.only or RUNS)
    for name in refused:
        print(f"{name} was refused: its line above is of an earlier run, if there is one")
    return 0 if passed and not refused else 1


if __name__ == "__main__":
    sys.exit(main())
