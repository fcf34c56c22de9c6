# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the size of a chunk costs.

Streams the same frames in chunks of 2, 4, 6 and 3. An odd chunk is padded by repeating its last
frame, so 3 frames must take as many tokens as 4.
"""

from __future__ import annotations

import statistics
from typing import TYPE_CHECKING

from .context import Context
from .expected_counts import Prediction

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def run(context: Context) -> None:
    options, record = context.options, context.record
    table, growth = [], {}
    for frames in options.chunk_frames:
        pictures = context.pictures(frames * options.chunks)
        engine = context.engine(options.cap)
        context.peak_memory.reset()
        rows = list(context.append(engine, pictures, frames, f"{frames} frames a chunk"))
        if pictures.size:
            predicted = Prediction.of(
                context.model.processor, pictures.size, rows[-1]["frames"], frames, options.cap,
                options.layout, context.system_prompt, options.min_pixels, options.max_pixels,
            )  # fmt: skip
            record.check(
                f"{frames} frames: tokens as expected",
                tuple(row["tokens"] for row in rows) == predicted.chunks,
                [row["tokens"] for row in rows][:2],
                f"{list(predicted.chunks[:2])}",
            )
        growth[frames] = rows[-1]["tokens"]
        # The first chunk also pays for starting up.
        later = statistics.median(row["latency"] for row in rows[1:] or rows)
        peak = max(row["peak_gib"] for row in rows)
        table.append(
            [frames, rows[0]["tokens"], rows[-1]["tokens"], f"{later:.3f}", f"{frames / later:.2f}",
             f"{later / frames:.3f}", f"{peak:.2f}"]
        )  # fmt: skip
        record.summary[f"chunks_of_{frames}"] = {
            "first_tokens": rows[0]["tokens"],
            "later_tokens": rows[-1]["tokens"],
            "seconds_a_chunk": later,
            "frames_a_second": frames / later,
            "peak_gib": peak,
        }
    depth = context.model.processor.image_settings.temporal_patch_size
    for frames in growth:
        padded = -(-frames // depth) * depth
        if padded != frames and padded in growth:
            record.check(
                f"{frames} frames are padded to {padded}",
                growth[frames] == growth[padded],
                f"{growth[frames]} tokens",
                f"{growth[padded]} tokens",
            )
    context.table(
        "By the size of a chunk",
        [
            "frames",
            "tokens first",
            "tokens later",
            "s a chunk",
            "frames/s",
            "s a frame",
            "peak GiB",
        ],
        table,
    )

    def draw(figure: Figure, axes: Axes) -> None:
        names = [str(row[0]) for row in table]
        axes.bar(names, [float(row[5]) for row in table])
        axes.set(xlabel="frames a chunk", ylabel="seconds a frame", title="What a frame costs")

    record.plot("costs", draw)
