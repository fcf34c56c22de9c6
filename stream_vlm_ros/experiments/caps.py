# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What a larger memory buys: 50,000, 100,000, 130,000 and 150,000 tokens.

For each cap: memory, chunks and seconds that the window holds, times, and, with a trained model on
a drawn world, the share of right answers.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from .context import Context
from .dataset import Dataset

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def run(context: Context) -> None:
    options, record = context.options, context.record
    world = context.world()
    judged = world if world is not None and not context.model.random else None
    frames = None if judged is None else Dataset.settled(judged, options.chunk_frames)
    table, memory = [], []
    for cap in sorted(options.caps):
        engine = context.engine(cap)
        context.peak_memory.reset()
        rows = list(
            context.append(engine, context.pictures(frames), options.chunk_frames, f"cap {cap:,}")
        )
        info = engine.get_cache_info()
        longest = max(row["length"] for row in rows)
        record.check(f"{cap:,}: never longer than the cap", longest <= cap, longest, f"<= {cap}")
        chunk = rows[-1]["tokens"]
        holds = info["window_size"] // chunk
        seen = sum(row["tokens"] for row in rows)
        right = None
        if judged is not None:
            dataset = Dataset(judged, rows[-1]["frames"], options.seed, options.questions)
            right = dataset.share_right(engine)
        answer, metrics = engine.ask(context.question, options.max_new_tokens)
        again = engine.ask(context.question, 1)[1]["ttft"]
        bound = min(cap, seen)
        # Where whole frames are kept, room for less than a chunk may be left.
        spare = chunk - 1 if engine.cache_manager.evictor.keeps_grids and seen > cap else 0
        record.check(
            f"{cap:,}: the memory is full, or holds all",
            bound - spare <= longest <= bound,
            longest,
            f"{bound - spare} to {bound}" if spare else f"{bound}",
        )
        memory.append(info["reserved_memory_bytes"])
        late = statistics.median(row["latency"] for row in rows[-5:])
        found = {
            "cap": cap,
            "window_chunks": holds,
            "window_seconds": holds * options.chunk_frames / options.fps,
            "kv_gib": info["cache_memory_gb"],
            "reserved_gib": info["reserved_memory_bytes"] / 2**30,
            "peak_gib": rows[-1]["peak_gib"],
            "seconds_a_chunk": late,
            "ttft": again,
            "right": right,
        }
        record.add(run="cap", answer=answer, first_ttft=metrics["ttft"], **found)
        record.summary[f"cap_{cap}"] = found
        table.append(
            [f"{cap:,}", holds, f"{found['window_seconds']:g}", f"{found['kv_gib']:.3f}",
             f"{found['reserved_gib']:.3f}", f"{found['peak_gib']:.2f}", f"{late:.3f}",
             f"{again:.3f}", "–" if right is None else f"{100 * right:.0f} %"]
        )  # fmt: skip
    record.check("a larger cap takes more memory", memory == sorted(set(memory)), memory, "rising")
    if judged is None:
        record.note(
            "Answers were not judged: that takes a trained model and a drawn world (--source "
            "world:SEED), whose truth is known."
        )
    context.table(
        "By the cap",
        ["cap", "chunks in the window", "seconds", "KV GiB", "taken GiB", "peak GiB", "s a chunk",
         "TTFT s", "right"],
        table,
    )  # fmt: skip

    def draw(figure: Figure, axes: Axes) -> None:
        caps = [entry["cap"] for entry in record.summary.values()]
        axes.plot(caps, [e["reserved_gib"] for e in record.summary.values()], "o-")
        axes.set(xlabel="cap, tokens", ylabel="GiB taken for the memory", ylim=(0, None))
        other = axes.twinx()
        other.plot(caps, [e["ttft"] for e in record.summary.values()], "s--", color="tab:orange")
        other.set_ylabel("TTFT, s", color="tab:orange")
        other.set_ylim(0, None)

    record.plot("costs", draw)
