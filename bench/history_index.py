# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The index of keys: a search over hours, and the share of a chunk that indexing takes.

    python bench/history_index.py --threads 2 --out bench/results/history_index_cpu.json
    python bench/history_index.py --device cuda --out bench/results/history_index.json

On a CPU with the small model's shape (20 tokens a grid, 3 heads), on a GPU with the 3B's at
640x480 (391 tokens a grid, 2 and 3 heads, 4 GB). Keys are random: speed does not depend on them.
A grid a second goes in as chunks do. A search is timed from queries on the device to scores on it,
the device idle before and after; wall time, and on a CPU the process's processor time, which is
what counts while others work on the machine (with --threads 1 it is what an idle core takes, and
the bars are held to it). Indexing is timed within the engine, chunk by chunk,
in memory and into a folder; on a GPU the model is of the 3B's shape with random weights, and chunks
with and without an index go by turns.

Needs torch, transformers and this repository (PYTHONPATH=.), no ROS. A trial: --hours 0.1 --chunks
6 --shape toy
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from stream_vlm_ros.engine import EvictionConfig, StreamQwenModel, VideoStreamingInference
from stream_vlm_ros.engine.attention.base import Readout
from stream_vlm_ros.engine.cache.mrope import VisionSpan
from stream_vlm_ros.engine.cache.state import Change
from stream_vlm_ros.history.index import IndexState, KeyIndex
from stream_vlm_ros.machine import measured_on

GRIDS_IN_A_CHUNK = 60  # while it is filled
BARS_ON_GPU = {1.0: 1.0, 24.0: 10.0}  # hours: ms
BAR_ON_CPU = {6.0: 100.0}
BAR_SHARE = 0.01


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(run: Callable[[], Any], times: int) -> dict[str, float]:
    """Milliseconds, the device idle before and after."""
    wall, processor = [], []
    for number in range(times + 2):
        synchronize()
        begin, began = time.process_time(), time.perf_counter()
        run()
        synchronize()
        if number >= 2:  # the first warm up
            processor.append(1e3 * (time.process_time() - begin))
            wall.append(1e3 * (time.perf_counter() - began))
    return {
        "wall_median": round(statistics.median(wall), 3),
        "wall_least": round(min(wall), 3),
        "processor_median": round(statistics.median(processor), 3),
        "runs": times,
    }


# -- searching ---------------------------------------------------------------------------------


class Keys(Readout):
    """Random keys, as if a pass had read them."""

    def __init__(self, heads: tuple[int, ...], keys: torch.Tensor):
        super().__init__(keys={0: heads})
        self._random = keys

    def keys(self, layer: int) -> torch.Tensor:
        return self._random


def grown(index: KeyIndex, held: IndexState, tokens: int, until: int) -> IndexState:
    """Grids a second apart up to so many of the stream."""
    heads = tuple(head for _, head in index.heads)
    size = (len(heads), GRIDS_IN_A_CHUNK * tokens, index.head_dim)
    keys = torch.randn(size, device=index.device, dtype=index.dtype)
    for first in range(held.next_serial, until, GRIDS_IN_A_CHUNK):
        numbers = range(first, first + GRIDS_IN_A_CHUNK)
        stamps = tuple((float(n), n + 0.5) for n in numbers)
        span = VisionSpan(tuple(numbers), stamps, 1, tokens, False)
        held = index.draft(held, Change([span], first, (), Keys(heads, keys)))
    return held


def searches(
    tokens: int,
    heads: int,
    head_dim: int,
    max_bytes: int,
    device: torch.device,
    hours: list[float],
    repeats: int,
) -> Iterator[dict[str, Any]]:
    index = KeyIndex([(0, head) for head in range(heads)], head_dim, max_bytes, device=device)
    held = index.empty()
    for length in sorted(hours):
        held = grown(index, held, tokens, round(3600 * length))
        for queries in (1, 12):
            asked = torch.randn(heads, queries, head_dim, device=device)
            found = index.search(held, asked, range(heads))
            row = {
                "hours": length,
                "tokens_a_grid": tokens,
                "heads": heads,
                "head_dim": head_dim,
                "dtype": str(index.dtype).removeprefix("torch."),
                "queries_a_head": queries,
                "grids_seen": held.next_serial,
                "grids_held": held.grids,
                "max_span": int(found.spans.max()),
                "bytes": index.nbytes,
                "max_bytes": max_bytes,
                "ms": timed(partial(index.search, held, asked, range(heads)), repeats),
            }
            print(
                f"  {length:>5g} h, {heads} heads, {queries:>2} queries: "
                f"{row['ms']['wall_median']:>8.3f} ms (processor {row['ms']['processor_median']:g})"
                f", {held.grids:,} of {held.next_serial:,} grids in {index.nbytes / 1e6:,.0f} MB",
                flush=True,
            )
            yield row


# -- indexing ----------------------------------------------------------------------------------


class Timed(KeyIndex):
    """Notes what `draft` takes of the thread that appends, which never waits for the device."""

    def __init__(self, *arguments: Any, **options: Any):
        super().__init__(*arguments, **options)
        self.taken: list[tuple[float, float]] = []

    def draft(self, held: IndexState, change: Change) -> IndexState:
        begin, began = time.thread_time(), time.perf_counter()
        try:
            return super().draft(held, change)
        finally:
            spent = time.perf_counter() - began, time.thread_time() - begin
            self.taken.append((1e3 * spent[0], 1e3 * spent[1]))


def small_model() -> tuple[StreamQwenModel, Any]:
    from stream_vlm_ros.world.evaluate import load

    return load()


def random_model(shape: str, device: torch.device) -> tuple[StreamQwenModel, Any]:
    from stream_vlm_ros.experiments.shapes import random_network, shape_config, words_processor

    processor = words_processor()
    config = shape_config(shape, processor)
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    return random_network(config, device, dtype), processor


def indexing(
    model: StreamQwenModel,
    processor: Any,
    device: torch.device,
    max_bytes: int,
    chunks: int,
    folder: Path | None,
) -> dict[str, Any]:
    """Chunks of 4 frames at 640x480 with an index and without, by turns, from full memories."""
    layers, shape = model.config.text_config.num_hidden_layers, model.kv_shape
    heads = [(layers // 2 + layer, layer % shape.kv_heads) for layer in range(min(3, layers // 2))]
    engines, latency, processor_ms = {}, {}, []
    for name in ("without", "with"):
        config = EvictionConfig(1500 if device.type == "cpu" else 16_384)
        engines[name] = VideoStreamingInference(model, processor, device, config)
        latency[name] = []
    index = Timed(heads, shape.head_dim, max_bytes, device=device, folder=folder)
    engines["with"].cache_manager.accompany("keys", index, Readout(keys=index.reads))
    noise = np.random.default_rng(0)
    frames = list(noise.integers(0, 256, (4, 480, 640, 3), dtype=np.uint8))
    warm = chunks // 2
    for number in range(warm + chunks):
        for name, engine in engines.items():
            stamps = [2.0 * number + 0.5 * k for k in range(4)]
            synchronize()
            begin, began = time.process_time(), time.perf_counter()
            chunk = engine.append_video_chunk(frames, timestamps=stamps)
            synchronize()
            latency[name].append(1e3 * (time.perf_counter() - began))
            if name == "with":
                processor_ms.append(1e3 * (time.process_time() - begin))
    index.close()
    draft_ms, draft_processor_ms = map(statistics.median, zip(*index.taken[warm:], strict=True))
    chunk_ms = {name: statistics.median(times[warm:]) for name, times in latency.items()}
    chunk_processor_ms = statistics.median(processor_ms[warm:])
    if device.type == "cpu":
        share = draft_processor_ms / chunk_processor_ms
    else:
        share = draft_ms / chunk_ms["with"]
    row = {
        "where": str(device) if folder is None else f"{device}, and a folder",
        "tokens_a_chunk": chunk.tokens,
        "heads": len(heads),
        "chunks": chunks,
        "draft_ms": round(draft_ms, 4),
        "draft_processor_ms": round(draft_processor_ms, 4),
        "chunk_ms_without": round(chunk_ms["without"], 3),
        "chunk_ms_with": round(chunk_ms["with"], 3),
        "chunk_processor_ms": round(chunk_processor_ms, 3),
        "share": round(share, 5),
    }
    print(
        f"  {row['where']}: {row['draft_ms']:g} ms of {row['chunk_ms_with']:g} ms a chunk "
        f"(processor {row['draft_processor_ms']:g} of {row['chunk_processor_ms']:g}), "
        f"{100 * row['share']:.2f} %; a chunk without an index {row['chunk_ms_without']:g} ms",
        flush=True,
    )
    return row


def bars(report: dict[str, Any], on_gpu: bool) -> list[dict[str, Any]]:
    found = []
    for row in report["search"]:
        bar = (BARS_ON_GPU if on_gpu else BAR_ON_CPU).get(row["hours"])
        if bar is not None:
            what = f"search over {row['hours']:g} h, {row['heads']} heads, {row['queries_a_head']}"
            kind = "wall_median" if on_gpu else "processor_median"
            found.append({"what": what, "measured": row["ms"][kind], "at_most": bar})
    for row in report["indexing"]:
        what = f"share of a chunk, {row['where']}"
        found.append({"what": what, "measured": row["share"], "at_most": BAR_SHARE})
    for row in found:
        row["holds"] = row["measured"] <= row["at_most"]
        verdict = "ok  " if row["holds"] else "MISS"
        print(f"  {verdict} {row['what']}: {row['measured']:g} <= {row['at_most']:g}")
    return found


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int)
    parser.add_argument("--hours", type=float, nargs="+", default=[1.0, 6.0, 24.0])
    parser.add_argument("--shape", help="3b on a GPU; the small model on a CPU")
    parser.add_argument("--megabytes", type=int, help="4,000 on a GPU; 1,000 on a CPU")
    parser.add_argument("--chunks", type=int, default=40)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    if on_gpu and not torch.cuda.is_available():
        parser.error("there is no CUDA GPU here")
    if options.threads:
        torch.set_num_threads(options.threads)
    max_bytes = 1_000_000 * (options.megabytes or (4_000 if on_gpu else 1_000))
    report: dict[str, Any] = {
        **measured_on(torch, transformers),
        "benchmark": "the index of keys: search and indexing",
        "device": torch.cuda.get_device_name(device) if on_gpu else str(device),
        "threads": torch.get_num_threads(),
        "search": [],
        "indexing": [],
    }
    print("search")
    for tokens, heads, width in [(391, 2, 128), (391, 3, 128)] if on_gpu else [(20, 3, 64)]:
        given = (tokens, heads, width, max_bytes, device, options.hours, options.repeats)
        report["search"] += searches(*given)
    print("indexing")
    shape = options.shape or ("3b" if on_gpu else None)
    model, processor = random_model(shape, device) if shape else small_model()
    with tempfile.TemporaryDirectory() as scratch:
        for folder in (None, Path(scratch) / "keys"):
            args = (model, processor, device, max_bytes // 4, options.chunks, folder)
            report["indexing"].append(indexing(*args))
    print("bars")
    report["bars"] = bars(report, on_gpu)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
