# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What a larger memory buys: 50,000, 100,000, 130,000 and 150,000 tokens.

For each cap: memory, chunks and seconds that the window holds, times, and, with a trained model on
a drawn world, the share of right answers. Caps that the stream would not reach are compared with
nothing: without --caps they are made smaller, all by the same factor. Each cap is streamed
--repeats times, of a drawn world each time another (world:SEED, then SEED + 1, ...); shown is the
median, with the lowest and the highest.
"""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING, Any

from stream_vlm_ros.errors import InvalidParameterError

from .context import Context
from .expected_counts import Prediction
from .intervals import Spread, draw_spreads

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

REFERENCE_CAPS = (50_000, 100_000, 130_000, 150_000)
REACHED = 0.7  # of the stream's tokens: the reference's largest cap, of its 160 frames


def run(context: Context) -> None:
    options, record = context.options, context.record
    table, memory, reached = [], [], []
    caps = sorted({*(options.caps or caps_of(context))}, key=lambda cap: (cap == 0, cap))
    for cap in caps:
        runs = [one_run(context, cap, repeat) for repeat in range(options.repeats)]
        found = {
            name: runs[0][name]
            for name in ("cap", "window_chunks", "window_seconds", "kv_gib", "reserved_gib")
        }
        rights = [run["right"] for run in runs if run["right"] is not None]
        spreads = {
            "peak_gib": Spread.of(run["peak_gib"] for run in runs),
            "seconds_a_chunk": Spread.of(late for run in runs for late in run["late"]),
            "ttft": Spread.of(ttft for run in runs for ttft in run["ttfts"]),
            "right": Spread.of(rights) if rights else None,
        }
        memory.append(found["reserved_gib"])
        reached += [all(run["evicted"] > 0 for run in runs)]
        name = f"{found['cap']:,}"
        record.summary[f"cap_{found['cap']}"] = {
            **found,
            "reached": reached[-1],
            "as_large_as_fits": cap == 0,
            **{key: one._asdict() if one else None for key, one in spreads.items()},
        }
        right = spreads["right"]
        table.append(
            [f"{name} (fits)" if cap == 0 else name, "yes" if reached[-1] else "no",
             found["window_chunks"], f"{found['window_seconds']:g}", f"{found['kv_gib']:.3f}",
             f"{found['reserved_gib']:.3f}", f"{spreads['peak_gib']:.2f}",
             f"{spreads['seconds_a_chunk']:.3f}", f"{spreads['ttft']:.3f}",
             f"{right.times(100):.0f} %" if right else "–"]
        )  # fmt: skip
    record.check("a larger cap takes more memory", memory == sorted(set(memory)), memory, "rising")
    wanted = min(2, sum(cap > 0 for cap in caps))  # one as large as fits is not to be reached
    record.check(
        "caps are compared that the stream reaches",
        sum(reached) >= wanted if wanted else None,
        f"{sum(reached)} of {len(reached)} reached",
        f">= {wanted} (else more --frames, or smaller --caps)",
    )
    if not any(entry["right"] for entry in record.summary.values()):
        context.note_unjudged()
    context.table(
        "By the cap",
        ["cap", "reached", "chunks in the window", "seconds", "KV GiB", "taken GiB", "peak GiB",
         "s a chunk", "TTFT s", "right"],
        table,
    )  # fmt: skip

    def draw(figure: Figure, axes: Axes) -> None:
        entries = list(record.summary.values())
        caps = [entry["cap"] for entry in entries]
        axes.plot(caps, [entry["reserved_gib"] for entry in entries], "o-")
        axes.set(xlabel="cap, tokens", ylabel="GiB taken for the memory", ylim=(0, None))
        other = axes.twinx()
        ttfts = [Spread(**entry["ttft"]) for entry in entries]
        draw_spreads(other, caps, ttfts, fmt="s--", color="tab:orange")
        other.set_ylabel("TTFT, s", color="tab:orange")
        other.set_ylim(0, None)

    record.plot("costs", draw)


def caps_of(context: Context) -> tuple[int, ...]:
    """The reference's caps, or as many smaller ones that this stream reaches.

    Raises InvalidParameterError for a stream too short for that.
    """
    options, pictures = context.options, context.pictures()
    size = pictures.size or pictures.first_size()
    chunks = Prediction.of(
        context.model.processor, size, pictures.expected, options.chunk_frames, 0,
        options.layout, context.system_prompt, options.min_pixels, options.max_pixels,
    ).chunks  # fmt: skip
    tokens = sum(chunks)
    if tokens > REFERENCE_CAPS[-1]:
        return REFERENCE_CAPS
    largest = REACHED * tokens
    caps = tuple(round(largest * cap / REFERENCE_CAPS[-1]) for cap in REFERENCE_CAPS)
    if caps[0] < chunks[0] + chunks[-1]:
        raise InvalidParameterError(
            f"The stream has {tokens:,} tokens in {len(chunks)} chunks, too few to compare "
            f"{len(caps)} caps that it reaches: raise --frames, lower --chunk-frames, or name "
            "--caps."
        )
    context.record.note(
        f"The stream has {tokens:,} tokens and would not reach {REFERENCE_CAPS[-1]:,}: instead the "
        f"caps are {', '.join(f'{cap:,}' for cap in caps)}."
    )
    return caps


def one_run(context: Context, cap: int, repeat: int) -> dict[str, Any]:
    """Stream once under a cap; what it held, and what it took. Its peak is its own."""
    options, record = context.options, context.record
    pictures = context.settled_pictures(options.chunk_frames, repeat=repeat)
    gc.collect()  # the engine before this one
    context.peak_memory.reset()
    engine = context.engine(cap)
    info = engine.get_cache_info()
    bound = info["max_cache_tokens"]  # of 0, the cap that was chosen
    name = f"{bound:,}" + (f", stream {repeat + 1}" if repeat else "")
    before = len(record.rows)
    rows = list(context.append(engine, pictures, options.chunk_frames, f"cap {name}"))
    info = engine.get_cache_info()
    longest = max(row["length"] for row in rows)
    record.check(f"{name}: never longer than the cap", longest <= bound, longest, f"<= {bound}")
    chunk, seen = max(row["tokens"] for row in rows[1:] or rows), sum(row["tokens"] for row in rows)
    # Where whole grids are kept, some tokens of the cap stay free, fewer than a chunk has.
    full = min(bound, seen)
    record.check(
        f"{name}: the memory is full, or holds all",
        full - (chunk if seen > bound else 0) < longest <= full or longest == full,
        longest,
        f"{full}",
    )
    right = context.share_right(engine, pictures)
    answer, metrics = engine.ask(context.question, options.max_new_tokens)
    found = {
        "cap": bound,
        "evicted": sum(row["evicted"] for row in rows),
        "window_chunks": info["window_size"] // chunk,
        "window_seconds": info["window_size"] // chunk * options.chunk_frames / options.fps,
        "kv_gib": info["cache_memory_gb"],
        "reserved_gib": info["reserved_memory_bytes"] / 2**30,
        "peak_gib": max(row["peak_gib"] for row in rows),
        "late": [row["latency"] for row in rows[-5:]],
        "ttfts": [engine.ask(context.question, 1)[1]["ttft"] for _ in range(options.asks)],
        "right": right,
    }
    del record.rows[before:]  # its chunks: this row tells of them
    record.add(run=f"cap {name}", answer=answer, first_ttft=metrics["ttft"], **found)
    return found
