# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A long video in bounded memory.

400 frames at 2 frames/s in chunks of 4, 1920x1080, cap 150,000. Every length and every eviction
must equal the prediction from sizes alone, to the token; memory must stay flat.

The reference's first chunk had 53 text tokens (a system prompt of its own): --first-text 53
lengthens ours to that, so that every figure can be compared with its run.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

from .context import Context
from .expected_counts import Prediction, Step, lengthened_system_prompt

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stream_vlm_ros.engine import VideoStreamingInference

# What the reference system reports of this run on an RTX 4090 (24 GB), 3B in bfloat16.
REFERENCE = {
    "sink": 5435,
    "window": 144_565,
    "tokens a later chunk": 5389,
    "first eviction at chunk": 28,
    "tokens evicted there": 938,
    "evictions": 73,
    "tokens evicted": 388_946,
    "length at the end": 150_000,
}
REFERENCE_COSTS = {
    "KV at the end, GiB": "5.150",
    "allocated, GiB": "12.26",
    "peak allocated, GiB": "17.74",
    "reserved, GiB": "20.91",
    "whole run, s": "549",
    "frames a second": "0.73",
    "TTFT, s": "0.440",
}


def run(context: Context) -> None:
    options, record = context.options, context.record
    pictures = context.pictures()
    system = None
    if options.first_text:
        system = lengthened_system_prompt(context.model.processor, options.first_text)
    engine = context.engine(options.cap, system_prompt=system)
    record.summary["warm_up"] = (
        engine.warm_up().as_dict()
    )  # as the node does before its first image
    reserved = engine.get_cache_info()["reserved_memory_bytes"]
    context.peak_memory.reset()
    begin = time.perf_counter()
    rows = []
    for row in context.append(engine, pictures, options.chunk_frames, "long video"):
        rows.append(row)
        record.summary.update(chunks=row["chunk"], frames=row["frames"], length=row["length"])
    elapsed = time.perf_counter() - begin
    info = engine.get_cache_info()
    steps = [Step(row["tokens"], row["evicted"], row["length"]) for row in rows]
    found = figures(steps, info["sink_size"], info["window_size"])
    answer = ask(context, engine)
    after = engine.get_cache_info()

    expected = -(-pictures.frames // options.chunk_frames)
    record.check("all chunks processed", len(rows) == expected, len(rows), f"{expected}")
    longest = max(row["length"] for row in rows)
    record.check("never longer than the cap", longest <= options.cap, longest, f"<= {options.cap}")
    if pictures.size:
        predicted = Prediction.of(
            context.model.processor, pictures.size, pictures.frames, options.chunk_frames,
            options.cap, options.layout, system, options.min_pixels, options.max_pixels,
        )  # fmt: skip
        wanted = figures(predicted.steps(), predicted.sink, predicted.window)
        differing = [
            n for n, (a, b) in enumerate(zip(steps, predicted.steps(), strict=False), 1) if a != b
        ]
        record.check(
            "tokens, evictions and lengths of every chunk as expected",
            not differing and len(steps) == len(predicted.chunks),
            f"{len(steps) - len(differing)} of {len(steps)} chunks",
            f"all {len(predicted.chunks)}",
        )
        record.summary["expected"] = wanted
        evicts = wanted["evictions"] > 0
    else:
        evicts = sum(row["tokens"] for row in rows) > options.cap
    record.check(
        "evictions" if evicts else "no evictions: the video fits",
        (found["evictions"] > 0) == evicts,
        found["evictions"],
        "> 0" if evicts else "0",
    )
    stats = info["eviction_stats"]
    record.check(
        "the engine counted the same evictions",
        (stats["total_evictions"], stats["total_tokens_evicted"])
        == (found["evictions"], found["tokens evicted"]),
        f"{stats['total_evictions']} of {stats['total_tokens_evicted']} tokens",
        f"{found['evictions']} of {found['tokens evicted']}",
    )
    peak = rows[-1]["peak_gib"] * 1.073741824
    record.check("peak memory", peak < options.max_gb, f"{peak:.2f} GB", f"< {options.max_gb} GB")
    grown = info["reserved_memory_bytes"] - reserved
    most_tail = max(step.tokens for step in steps) * context.model.network.kv_shape.bytes_per_token
    record.check(
        "the memory was taken up front (but for one chunk's tail)",
        grown <= most_tail,
        f"{grown / 1e6:.1f} MB more",
        f"<= {most_tail / 1e6:.1f} MB",
    )
    record.check(
        "an answer", None if context.model.random else bool(answer["answer"].strip()),
        f"{answer['answer_tokens']} tokens: {answer['answer'][:60]!r}", "not empty",
    )  # fmt: skip
    record.check(
        "the question left no trace",
        after["cache_seq_length"] == info["cache_seq_length"],
        after["cache_seq_length"],
        f"{info['cache_seq_length']}",
    )
    record.summary.update(
        {
            **found,
            "seconds": elapsed,
            "frames_per_second": pictures.frames / elapsed,
            "ttft": answer["ttft"],
            "ttft_again": answer["ttft_again"],
            **{name: rows[-1][name] for name in rows[-1] if name.endswith("_gib")},
        }
    )
    show(context, rows, found, elapsed, answer)


def figures(steps: list[Step], sink: int, window: int) -> dict[str, int]:
    """The figures that the reference reports."""
    evictions = [(number, step.evicted) for number, step in enumerate(steps, 1) if step.evicted]
    at, first = evictions[0] if evictions else (0, 0)
    return {
        "sink": sink,
        "window": window,
        "tokens a later chunk": steps[-1].tokens if len(steps) > 1 else 0,
        "first eviction at chunk": at,
        "tokens evicted there": first,
        "evictions": len(evictions),
        "tokens evicted": sum(tokens for _, tokens in evictions),
        "length at the end": steps[-1].length,
    }


def ask(context: Context, engine: VideoStreamingInference) -> dict[str, Any]:
    """Ask twice: the first answer and its metrics, and the second's time to the first token."""
    options = context.options
    with context.screen.status("Asking"):
        answer, metrics = engine.ask(options.question, options.max_new_tokens)
        again = engine.ask(options.question, 1)[1]["ttft"]
    entry = {"answer": answer, **metrics.as_dict(), "ttft_again": again}
    context.record.add(run="question", question=options.question, **entry)
    return entry


def show(
    context: Context,
    rows: list[dict[str, Any]],
    found: dict[str, int],
    elapsed: float,
    answer: dict[str, Any],
) -> None:
    """Tables against the reference, and plots."""
    options, record, last = context.options, context.record, rows[-1]
    ours = dict(
        zip(
            REFERENCE_COSTS,
            [
                f"{last['cache_gib']:.3f}",
                f"{last['allocated_gib']:.2f}",
                f"{last['peak_gib']:.2f}",
                f"{last['reserved_gib']:.2f}" if "reserved_gib" in last else "–",
                f"{elapsed:.1f}",
                f"{last['frames'] / elapsed:.2f}",
                f"{answer['ttft']:.3f} (again: {answer['ttft_again']:.3f})",
            ],
            strict=True,
        )
    )
    expected = record.summary.get("expected", {})
    table = [
        [name, f"{REFERENCE[name]:,}", f"{found[name]:,}", expected.get(name, "–")]
        for name in found
    ]
    table += [[name, REFERENCE_COSTS[name], ours[name], "–"] for name in ours]
    context.table("Compared with the reference's run", ["", "reference", "ours", "expected"], table)
    same = all(found[name] == REFERENCE[name] for name in REFERENCE)
    if rows[0]["tokens"] and found["tokens a later chunk"] == REFERENCE["tokens a later chunk"]:
        record.note(
            "Every count is the reference's, to the token."
            if same
            else "A later chunk has as many tokens as the reference's; the sink differs by the "
            f"system prompt ({found['sink'] - REFERENCE['sink']:+d} text tokens), and with it "
            "what the first eviction takes (--first-text 53 makes them equal)."
        )
    chunks = [row["chunk"] for row in rows]
    third = max(1, len(rows) // 3)
    early = statistics.median(row["latency"] for row in rows[-2 * third : -third] or rows)
    late = statistics.median(row["latency"] for row in rows[-third:])
    record.summary["latency_last_third_over_middle_third"] = late / early

    def lengths(figure: Figure, axes: Axes) -> None:
        axes.plot(chunks, [row["length"] for row in rows], label="tokens in memory")
        axes.plot(chunks, [sum(r["tokens"] for r in rows[: n + 1]) for n in range(len(rows))],
                  "--", label="tokens seen")  # fmt: skip
        axes.axhline(options.cap, color="grey", lw=0.8, label="cap")
        axes.set(xlabel="chunk", ylabel="tokens", title="The memory's length")
        axes.legend()

    def costs(figure: Figure, axes: Axes) -> None:
        axes.plot(chunks, [row["latency"] for row in rows], ".-", label="a chunk, s")
        axes.set(xlabel="chunk", ylabel="seconds", ylim=(0, None), title="Time and memory a chunk")
        other = axes.twinx()
        for name, label in (("peak_gib", "peak"), ("allocated_gib", "allocated")):
            other.plot(chunks, [row[name] for row in rows], "--", label=f"{label}, GiB")
        other.set(ylabel="GiB", ylim=(0, None))
        figure.legend(loc="outside lower center", ncols=3)

    record.plot("length", lengths)
    record.plot("costs", costs)
