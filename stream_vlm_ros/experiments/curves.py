# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What frame rate, chunk size and length cost, in speed and in right answers.

One of the three is changed at a time; the others are --fps, --chunk and --seconds. chunk-size
changes only the size: 2, 4, 6 and 3 frames. An odd chunk is padded by repeating its last frame, so
3 frames must take as many tokens as 4. Each point is streamed --repeats times, of a drawn world
each time another (world:SEED, then SEED + 1, ...); shown is the median, with the lowest and the
highest. Answers are judged with a trained model on a drawn world.
"""

from __future__ import annotations

import gc
import statistics
from typing import TYPE_CHECKING, Any

from .context import Context
from .expected_counts import Prediction
from .intervals import Spread, draw_spreads

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

OVER = {"rate": "frames/s", "chunk": "frames a chunk", "length": "s"}


def run(context: Context) -> None:
    options = context.options
    base = {"rate": options.fps, "chunk": options.chunk, "length": options.seconds}
    values = {"rate": options.rates, "chunk": options.chunk_frames, "length": options.lengths}
    for over in options.over:
        points = {}
        for value in values[over]:
            at = {**base, over: value}
            samples = [
                one_sample(context, f"{value:g} {OVER[over]}", repeat, **at)
                for repeat in range(options.repeats)
            ]
            points[value] = samples
        show(context, over, points)
        if over == "chunk":
            check_padding(context, points)
    if not any(row.get("right") is not None for row in context.record.rows):
        context.note_unjudged()


def one_sample(
    context: Context, name: str, repeat: int, rate: float, chunk: float, length: float
) -> dict[str, Any]:
    """Stream once; tokens of the first and of the last whole chunk, times, and right answers."""
    options, record, chunk = context.options, context.record, int(chunk)
    pictures = context.settled_pictures(chunk, max(1, round(rate * length)), rate, repeat)
    gc.collect()  # the engine before this one
    context.peak_memory.reset()
    engine = context.engine(options.cap)
    before = len(record.rows)
    rows = list(context.append(engine, pictures, chunk, name))
    if pictures.size:
        predicted = Prediction.of(
            context.model.processor, pictures.size, rows[-1]["frames"], chunk, options.cap,
            engine.layout, context.system_prompt, engine.min_pixels, engine.max_pixels,
        )  # fmt: skip
        took = tuple(row["tokens"] for row in rows)
        if repeat == 0 or took != predicted.chunks:
            record.check(
                f"{name}: tokens as expected",
                took == predicted.chunks,
                list(took[:2]),
                f"{list(predicted.chunks[:2])}",
            )
    right = context.share_right(engine, pictures)
    engine.ask(options.question, 1)  # the first call of a kind pays for starting up
    ttft = engine.ask(options.question, 1)[1]["ttft"]
    whole = [row for row in rows[1:] if row["frames"] % chunk == 0] or rows[:1]
    # The first chunk also pays for starting up.
    late = statistics.median(row["latency"] for row in whole)
    found = {
        "first_tokens": rows[0]["tokens"],
        "later_tokens": whole[-1]["tokens"],
        "seconds_a_chunk": late,
        "seconds_a_frame": late / chunk,
        "busy": late / chunk * rate,  # seconds of work for a second of video
        "ttft": ttft,
        "peak_gib": max(row["peak_gib"] for row in rows),
        "right": right,
    }
    del record.rows[before:]  # its chunks: this row tells of them
    record.add(run=f"{name}: sample {repeat + 1}", frames=rows[-1]["frames"], **found)
    return found


def show(context: Context, over: str, points: dict[float, list[dict[str, Any]]]) -> None:
    """A curve's table, summary and plot."""
    record = context.record

    def spread(name: str, samples: list[dict[str, Any]]) -> Spread | None:
        values = [one[name] for one in samples if one[name] is not None]
        return Spread.of(values) if values else None

    measured = ("seconds_a_chunk", "seconds_a_frame", "busy", "ttft", "peak_gib", "right")
    curves = {
        value: {name: spread(name, samples) for name in measured}
        for value, samples in points.items()
    }
    table = []
    for value, found in curves.items():
        first, right = points[value][0], found["right"]
        record.summary[f"{over}_{value:g}"] = {
            "first_tokens": first["first_tokens"],
            "later_tokens": first["later_tokens"],
            **{name: one._asdict() if one else None for name, one in found.items()},
        }
        times = [f"{found[name]:.3f}" for name in measured[:4]]
        table.append(
            [f"{value:g}", first["first_tokens"], first["later_tokens"], *times,
             f"{found['peak_gib']:.2f}", f"{right.times(100):.0f} %" if right else "–"]
        )  # fmt: skip
    context.table(
        f"By {OVER[over]}: median of {context.options.repeats} (lowest–highest)",
        [OVER[over], "tokens first", "tokens later", "s a chunk", "s a frame", "s a s of video",
         "TTFT s", "peak GiB", "right"],
        table,
    )  # fmt: skip
    at = sorted(curves)

    def draw(figure: Figure, axes: Axes) -> None:
        name = "busy" if over == "rate" else "seconds_a_frame"
        costs = [one for value in at if (one := curves[value][name])]
        draw_spreads(axes, at, costs)
        label = "seconds of work a second of video" if over == "rate" else "seconds a frame"
        of = "seconds of video" if over == "length" else OVER[over]
        axes.set(xlabel=of, ylabel=label, ylim=(0, None))
        rights = {value: one for value in at if (one := curves[value]["right"])}
        if rights:
            other = axes.twinx()
            shares = [one.times(100) for one in rights.values()]
            draw_spreads(other, list(rights), shares, fmt="s--", color="tab:orange")
            other.set_ylabel("right answers, %", color="tab:orange")
            other.set_ylim(0, 105)

    record.plot(over, draw)


def check_padding(context: Context, points: dict[float, list[dict[str, Any]]]) -> None:
    """An odd chunk takes what the next even one takes."""
    depth = context.model.processor.image_settings.temporal_patch_size
    growth = {int(frames): samples[0]["later_tokens"] for frames, samples in points.items()}
    for frames, tokens in growth.items():
        padded = -(-frames // depth) * depth
        if padded != frames and padded in growth:
            context.record.check(
                f"{frames} frames are padded to {padded}",
                tokens == growth[padded],
                f"{tokens} tokens",
                f"{growth[padded]} tokens",
            )
