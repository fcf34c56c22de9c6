# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The sink is found without being told, whatever the size of the chunks.

Streams five chunks of 2 and five chunks of 4 frames. The sink must be the whole first chunk, the
window the cap less the sink, and the recorded mean of tokens per chunk the real one.
"""

from __future__ import annotations

import statistics

from stream_vlm_ros.errors import InvalidParameterError

from .context import Context
from .expected_counts import Prediction, grid_tokens

CLOSE = 10  # tokens that the recorded mean may be off
_ALL = 10**9  # pixels: no bound


def run(context: Context) -> None:
    options, record = context.options, context.record
    rows, sinks = [], []
    for frames in options.chunk_frames:
        pictures = context.pictures(frames * options.chunks)
        if pictures.expected <= frames:
            raise InvalidParameterError(
                f"{pictures.expected} frames are one chunk of {frames}, and two are needed: the "
                "sink is the first, and the others are held against it. Raise --chunks, lower "
                "--chunk-frames, or give a longer video."
            )
        engine = context.engine(options.cap)
        evictor = engine.cache_manager.evictor
        found = []
        for row in context.append(engine, pictures, frames, f"{frames} frames a chunk"):
            found.append(row)
            if row["chunk"] == 1:
                first = row["length"]
                sink, window = evictor.effective_sink_size, evictor.effective_window_size
                rest = options.cap - sink - evictor.room_for_grids
        real = statistics.mean(row["tokens"] for row in found[1:])
        sinks.append(sink)
        name = f"{frames} frames"
        record.check(f"{name}: the sink is the first chunk", sink == first, sink, f"{first}")
        record.check(
            f"{name}: the window is the rest",
            window == rest,
            window,
            f"{rest}",
        )
        mean = evictor.avg_chunk_tokens
        record.check(
            f"{name}: mean tokens a chunk", abs(mean - real) <= CLOSE, mean, f"{real} ± {CLOSE}"
        )
        if pictures.size:
            predicted = Prediction.of(
                context.model.processor, pictures.size, found[-1]["frames"], frames, options.cap,
                options.layout, context.system_prompt, options.min_pixels, options.max_pixels,
            )  # fmt: skip
            record.check(
                f"{name}: tokens as expected from the picture size",
                tuple(row["tokens"] for row in found) == predicted.chunks,
                found[-1]["tokens"],
                f"{predicted.sink} first, {predicted.chunks[-1]} later",
            )
        rows.append([frames, sink, window, f"{mean:g}", f"{real:g}", found[-1]["length"]])
        record.summary[f"sink_of_{frames}_frames"] = sink
        del engine, evictor  # or its memory would stand next to the next one's
    record.check(
        "chunk sizes give different sinks", len(set(sinks)) == len(sinks), sinks, "all different"
    )
    # A picture that the pixel bounds make smaller says nothing about the engine.
    bounds = options.min_pixels, options.max_pixels
    processor, size = context.model.processor, pictures.size
    reduced = size and grid_tokens(processor, size, *bounds) < grid_tokens(processor, size, 0, _ALL)
    record.check(
        "sinks are large",
        None if reduced else min(sinks) > options.min_sink,
        f"{min(sinks)}, of pictures reduced to the bound on pixels" if reduced else min(sinks),
        f"> {options.min_sink}",
    )
    context.table(
        "Sinks, in tokens",
        ["frames a chunk", "sink", "window", "mean a chunk", "real mean", "length at the end"],
        rows,
    )
