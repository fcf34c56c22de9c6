# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A shape of one colour, then one of another: what came last?

For every ordered pair of the drawn world's eight colours, each a stream of its own. The reference
showed red, then blue, and wanted the blue one.
"""

from __future__ import annotations

from stream_vlm_ros.world.evaluate import colour_pairs
from stream_vlm_ros.world.world import COLOURS

from .context import Context
from .pictures import parse_size

CAP = 16_384  # tokens: nothing is forgotten


def run(context: Context) -> None:
    options, record, model = context.options, context.record, context.model
    record.about["source"] = {"name": "drawn shapes", "size": options.size or "640x480"}
    pairs = len(COLOURS) * (len(COLOURS) - 1)
    context.peak_memory.reset()
    with context.progress("pairs of colours", pairs) as step:
        found = colour_pairs(
            lambda: context.engine(CAP), parse_size(options.size) or (640, 480), step
        )
    judged = not model.random
    wrong = {(one, two): said for one, two, _, said in found["wrong"]}
    red_blue = wrong.get(("red", "blue"))
    record.check(
        "red, then blue: the blue one came last",
        red_blue is None if judged else None,
        "right" if red_blue is None else repr(red_blue),
        "right",
    )
    share = found["right"] / found["asked"]
    record.check(
        "of all pairs the second came last",
        share >= options.min_right / 100 if judged else None,
        f"{found['right']} of {found['asked']}",
        f">= {options.min_right:g} %",
    )
    if not judged:
        context.note_unjudged()
    record.summary.update(found, **context.peak_memory.read())
    context.table(
        "What came last?",
        ["first", "then", "shape", "said"],
        [[one, two, kind, said] for one, two, kind, said in found["wrong"]] if judged else [],
    )
