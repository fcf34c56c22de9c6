# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Ours on one GPU at the 3B shape, against the reference's style and against what is asked of it.

    python bench/gpu.py --out bench/results/gpu.json            # all sections, below 9 minutes
    python bench/gpu.py --out gpu.json --sections eviction curves
    python bench/gpu_plots.py bench/results/gpu.json            # plots beside it, on any machine
    make docs                                                   # into docs/performance.md

Random weights (speed does not depend on them), 1920x1080 frames in chunks of 4, bfloat16, memories
full. In one process, medians of repeated runs, the device idle before and after each. The floor is
the arithmetic or the memory traffic that the work needs at least, at the speed that this device
reaches in a large matrix product and a large read, measured in the same run. Each section has a
time that it keeps to: what it leaves out is said. The JSON is written after each, so that a run cut
short keeps what it has; with --sections those in the file that are not named stay.

Needs torch, transformers and this repository (PYTHONPATH=.), no ROS. Also runs on a CPU, to try it
out: --device cpu --shape toy --size 224x168 --caps 512 1024 --small
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import torch
import transformers

from stream_vlm_ros.experiments.shapes import (
    SHAPES,
    random_network,
    shape_config,
    words_processor,
)
from stream_vlm_ros.machine import measured_on

sys.path.append(str(Path(__file__).parent))  # tools/run.sh leaves it out
from gpu_rig import Rig, device_speed, say_words_alone
from gpu_sections import SECTIONS


def header(options: argparse.Namespace, device: torch.device, dtype: torch.dtype) -> dict[str, Any]:
    cuda = device.type == "cuda"
    host = measured_on(torch, transformers)
    return {
        **host,
        "benchmark": "one device, random weights: ours, the reference's style, bars, curves",
        "shape": options.shape,
        "size": options.size,
        "dtype": str(dtype),
        "machine": torch.cuda.get_device_name(device) if cuda else host["machine"],
        "host": host["machine"],
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version() if cuda else None,
    }


def bars_table(rows: list[dict[str, Any]]) -> str:
    lines = []
    for row in rows:
        goal = "" if row["go_for"] is None else f"(go for {row['go_for']:g})"
        verdict = "ok  " if row["holds"] else "MISS"
        lines.append(
            f"  {verdict} {row['what']:<44} {row['measured']:>9.3f} <= {row['at_most']:<7g}"
            f"{row['unit']} {goal}"
        )
    return "\n".join(lines)


def against_reference_table(section: dict[str, Any]) -> str:
    lines = []
    for cap, row in section["caps"].items():
        lines.append(
            f"  cap {int(cap):,}, {row['tokens_a_chunk']:,} tokens a chunk, question of "
            f"{row['question_tokens']}; ms"
        )
        lines.append(f"  {'':>18} {'reference':>10} {'ours':>10} {'times':>8} {'floor':>8}")
        for name, ours in row["ours"].items():
            theirs = row["reference_style"].get(name)
            value = lambda entry: entry["median"] if isinstance(entry, dict) else entry  # noqa: E731
            cells = [
                "" if theirs is None else f"{value(theirs):.2f}",
                f"{value(ours):.2f}",
                f"{row['times_faster'][name]:.1f}" if name in row["times_faster"] else "",
                f"{row['floor'][name]:.2f}" if name in row["floor"] else "",
            ]
            lines.append("  {:>18} {:>10} {:>10} {:>8} {:>8}".format(name, *cells))
    return "\n".join(lines)


def plain_table(section: dict[str, Any]) -> str:
    """What is neither bars nor lists of many figures, a line each."""
    left_out = ("bars", "seconds", "unit", "skipped", "date")
    shown = {name: value for name, value in section.items() if name not in left_out}
    lines = []
    for name, value in shown.items():
        rows = value.get("points", [value]) if isinstance(value, dict) else value
        for row in rows if isinstance(rows, list) else [rows]:
            if isinstance(row, dict):
                row = ", ".join(f"{k} {_short(v)}" for k, v in row.items() if k != "chunk_ms")
            lines.append(f"  {name}: {row}")
    return "\n".join(lines)


def _short(value: Any) -> str:
    if isinstance(value, dict):
        return f"{value['median']} (p99 {value['p99']})" if "median" in value else str(value)
    return f"{value:,}" if isinstance(value, int) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", default="3b", choices=SHAPES)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--size", default="1920x1080")
    parser.add_argument("--caps", type=int, nargs="+", default=[150_000, 16_384])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=list(SECTIONS))
    parser.add_argument("--minutes", type=float, default=8.5, help="for everything together")
    parser.add_argument("--small", action="store_true", help="few repeats, small curves: a trial")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    begin = time.monotonic()
    end = begin + 60 * options.minutes
    device = torch.device(options.device)
    if device.type == "cuda" and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here; to try it out, see --device cpu in --help")
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    processor = words_processor()
    speed = device_speed(device, dtype)
    model = random_network(shape_config(options.shape, processor), device, dtype)
    model.generation_config.eos_token_id = []  # an answer is as long as it may be
    say_words_alone(model, processor.tokenizer)
    width, height = map(int, options.size.split("x"))
    rig = Rig(
        model, processor, device, speed, (width, height), options.caps, options.repeats,
        options.small,
    )  # fmt: skip
    report = header(options, device, dtype) | {
        "teraflops": round(speed["flops"] / 1e12, 1),
        "terabytes_a_second": round(speed["bytes"] / 1e12, 2),
        "start_seconds": round(time.monotonic() - begin, 1),
        "sections": {},
    }
    if options.out.is_file():
        report["sections"] = json.loads(options.out.read_text()).get("sections", {})
    options.out.parent.mkdir(parents=True, exist_ok=True)
    failed = False
    for name in options.sections:
        run, most = SECTIONS[name]
        started = time.monotonic()
        rig.ends, rig.skipped = min(started + most, end), []
        if started >= end:
            print(f"== {name}: skipped, no time left", flush=True)
            continue
        try:
            section = run(rig)
        except Exception as fault:  # the other sections are worth having all the same
            traceback.print_exc()
            section, failed = {"failed": repr(fault)}, True
        seconds = round(time.monotonic() - started, 1)
        section |= {"seconds": seconds, "skipped": rig.skipped, "date": report["date"]}
        report["sections"][name] = section
        options.out.write_text(json.dumps(report, indent=1) + "\n")
        print(f"== {name}: {seconds} s", flush=True)
        table = against_reference_table if name == "against_reference" else plain_table
        if "failed" not in section:
            print(table(section))
            if section.get("bars"):
                print(bars_table(section["bars"]))
        for left in rig.skipped:
            print(f"  skipped for lack of time: {left}")
        sys.stdout.flush()
    rows = [row for s in report["sections"].values() for row in s.get("bars", ())]
    meant = "" if options.shape == "3b" else " (they are meant for the shape 3b on one H200)"
    print(f"{sum(row['holds'] for row in rows)} of {len(rows)} bars hold{meant}", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
