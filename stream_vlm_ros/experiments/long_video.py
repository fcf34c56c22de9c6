# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A long video in bounded memory.

400 frames at 2 frames/s in chunks of 4, 1920x1080, cap 150,000. Every length and every eviction
must equal the prediction from sizes alone, to the token; memory must stay flat. --no-eviction is
the control: nothing is evicted, until memory runs out.

The reference's first chunk had 53 text tokens (a system prompt of its own): as the reference, ours
is lengthened to that, so that every figure can be compared with its run.
"""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any

from stream_vlm_ros.engine.attention.verified import is_out_of_memory

from . import answers
from .context import Context
from .expected_counts import Prediction, Step
from .pictures import Pictures, WorldPictures
from .reference import LONG_VIDEO, LONG_VIDEO_COSTS, LONG_VIDEO_COUNTS, OUT_OF_MEMORY_AT_CHUNK

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from stream_vlm_ros.engine import VideoStreamingInference

UNBOUNDED = 10**12  # tokens: a cap that is never reached


def run(context: Context) -> None:
    options, record = context.options, context.record
    context.peak_memory.limit(options.memory_gib)
    pictures = context.pictures(answers.settled(context))
    engine = context.engine(None if options.no_eviction else options.cap)
    # As the node does before its first image.
    record.summary["warm_up"] = engine.warm_up().as_dict()
    reserved = engine.get_cache_info()["reserved_memory_bytes"]
    context.peak_memory.reset()
    begin = time.perf_counter()
    rows: list[dict[str, Any]] = []
    ran_out = ""
    try:
        for row in context.append(engine, pictures, options.chunk_frames, "long video"):
            rows.append(row)
            record.summary.update(chunks=row["chunk"], frames=row["frames"], length=row["length"])
    except Exception as error:
        if not (options.no_eviction and rows and is_out_of_memory(error)):
            raise
        ran_out = str(error).splitlines()[0]
    elapsed = time.perf_counter() - begin
    check_counts(context, engine, pictures, rows, ran_out)
    if options.no_eviction:
        control(context, rows, ran_out)
        return
    info = engine.get_cache_info()
    found = figures(steps_of(rows), info["sink_size"], info["window_size"])
    answer = ask(context, engine)
    after = engine.get_cache_info()
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
    most_tail = max(row["tokens"] for row in rows) * context.model.network.kv_shape.bytes_per_token
    record.check(
        "the memory was taken up front (but for one chunk's tail)",
        grown <= most_tail,
        f"{grown / 1e6:.1f} MB more",
        f"<= {most_tail / 1e6:.1f} MB",
    )
    reason = context.not_judged
    record.check(
        "an answer",
        None if reason else answers.is_answer(answer["answer"]),
        f"not judged: {reason}"
        if reason
        else f"{answer['answer_tokens']} tokens: {answer['answer'][:60]!r}",
        "not empty",
    )
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
            "frames_per_second": rows[-1]["frames"] / elapsed,
            "ttft": answer["ttft"],
            "ttft_again": answer["ttft_again"],
            **{name: rows[-1][name] for name in rows[-1] if name.endswith("_gib")},
        }
    )
    show(context, rows, found, elapsed, answer)
    if context.truth_is_known and isinstance(pictures, WorldPictures):
        answers.judge_present(context, engine, pictures, rows[-1]["frames"])
    elif reason and not options.no_answers:
        judge_small(context)


def judge_small(context: Context) -> None:
    """Stream a drawn world to the small model, through a memory of the same kind."""
    small = answers.small_context(context)
    pictures = small.pictures(answers.settled(small))
    assert isinstance(pictures, WorldPictures)
    engine = small.engine(small.options.cap)
    rows = list(small.append(engine, pictures, small.options.chunk_frames, "small model"))
    answers.judge_present(small, engine, pictures, rows[-1]["frames"])


def check_counts(
    context: Context,
    engine: VideoStreamingInference,
    pictures: Pictures,
    rows: list[dict[str, Any]],
    ran_out: str,
) -> None:
    """Hold chunks, lengths and evictions against what is expected from sizes alone."""
    options, record = context.options, context.record
    cap = UNBOUNDED if options.no_eviction else options.cap
    steps = steps_of(rows)
    # A file's length tells its frames but for one.
    given, frames = rows[-1]["frames"], pictures.expected
    frames = given if abs(given - frames) <= 1 else frames
    if not ran_out:
        expected = -(-frames // options.chunk_frames)
        record.check("all chunks processed", len(rows) == expected, len(rows), f"{expected}")
    if not options.no_eviction:
        longest = max(step.length for step in steps)
        record.check("never longer than the cap", longest <= cap, longest, f"<= {cap}")
    if pictures.size:
        predicted = Prediction.of(
            context.model.processor, pictures.size, frames, options.chunk_frames, cap,
            options.layout, context.system_prompt, options.min_pixels, options.max_pixels,
        )  # fmt: skip
        wanted = predicted.steps()[: len(rows)]
        # Whole frames go as they matter, where frames are kept: sizes alone do not tell how many.
        alone = options.no_eviction or not engine.cache_manager.evictor.keeps_grids
        differing = [
            a for a, b in zip(steps, wanted, strict=False)
            if (a != b if alone else a.tokens != b.tokens)
        ]  # fmt: skip
        record.check(
            "tokens, evictions and lengths of every chunk as expected" if alone
            else "tokens of every chunk as expected",
            not differing and len(steps) == len(wanted),
            f"{len(steps) - len(differing)} of {len(steps)} chunks",
            f"all {len(wanted)}",
        )  # fmt: skip
        if alone and not options.no_eviction:
            record.summary["expected"] = figures(wanted, predicted.sink, predicted.window)
    evicts = sum(step.tokens for step in steps) > cap
    evictions = sum(step.evicted > 0 for step in steps)
    record.check(
        "evictions" if evicts else "no evictions: all fits",
        (evictions > 0) == evicts,
        evictions,
        "> 0" if evicts else "0",
    )


def control(context: Context, rows: list[dict[str, Any]], ran_out: str) -> None:
    """What came of a memory from which nothing is evicted."""
    options, record, last = context.options, context.record, rows[-1]
    limited = options.memory_gib is not None
    record.check(
        "without eviction memory runs out",
        bool(ran_out) if limited else None,
        f"at chunk {last['chunk'] + 1}" if ran_out else f"not in {last['chunk']} chunks",
        f"within {options.memory_gib:g} GiB" if limited else "a bound on memory: --memory-gib",
    )
    if ran_out:
        record.summary["out_of_memory_at_chunk"] = last["chunk"] + 1
        record.note(f"Out of memory at chunk {last['chunk'] + 1}: {ran_out[:160]}")
    record.summary.update({name: last[name] for name in last if name.endswith("_gib")})
    record.note(
        f"The reference ran out of its 24 GB at chunk {OUT_OF_MEMORY_AT_CHUNK}: it gives each "
        "forward a mask over all tokens, and copies its cache at each append. Ours has neither, so "
        "the same memory lasts longer; its buffer doubles when it is full, and the old one stands "
        "next to the new one while it is copied."
    )
    context.compare_with_reference({**LONG_VIDEO, "cap": options.cap, "memory_gib": 24.0})
    context.table(
        "Without eviction (reference: RTX 4090, 24 GB)",
        ["", "reference", "ours"],
        [
            ["out of memory at chunk", OUT_OF_MEMORY_AT_CHUNK,
             last["chunk"] + 1 if ran_out else f"not in {last['chunk']}"],
            ["tokens held before", "–", f"{last['length']:,}"],
            ["KV before, GiB", "–", f"{last['cache_gib']:.3f}"],
            ["peak before, GiB", "–", f"{last['peak_gib']:.2f}"],
            ["allowed, GiB", 24, options.memory_gib if limited else "all that there is"],
        ],
    )  # fmt: skip


def steps_of(rows: list[dict[str, Any]]) -> list[Step]:
    return [Step(row["tokens"], row["evicted"], row["length"]) for row in rows]


def figures(steps: list[Step], sink: int, window: int) -> dict[str, int]:
    """The figures that the reference reports."""
    evictions = [(number, step.evicted) for number, step in enumerate(steps, 1) if step.evicted]
    at, first = evictions[0] if evictions else (0, 0)
    return {
        "sink": sink,
        "window": window,
        "tokens a later chunk": steps[1].tokens if len(steps) > 1 else 0,  # the last may be short
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
        answer, metrics = engine.ask(context.question, options.max_new_tokens)
        again = engine.ask(context.question, 1)[1]["ttft"]
    entry = {"answer": answer, **metrics.as_dict(), "ttft_again": again}
    context.record.add(run="question", question=context.question, **entry)
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
            LONG_VIDEO_COSTS,
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
        [name, f"{LONG_VIDEO_COUNTS[name]:,}", f"{found[name]:,}", expected.get(name, "–")]
        for name in found
    ]
    table += [[name, LONG_VIDEO_COSTS[name], ours[name], "–"] for name in ours]
    same = found == LONG_VIDEO_COUNTS
    if context.compare_with_reference(LONG_VIDEO):
        record.note(
            "Every count is the reference's, to the token."
            if same
            else "The sink differs from the reference's by the system prompt "
            f"({found['sink'] - LONG_VIDEO_COUNTS['sink']:+d} text tokens), and with it what the "
            "first eviction takes (--as reference makes them equal)."
        )
    context.table(
        "Compared with the reference's run (RTX 4090)",
        ["", "reference", "ours", "expected"],
        table,
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
