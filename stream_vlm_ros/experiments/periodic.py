# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The same question again and again while the video runs.

Every 25 chunks, and at the end, the memory is asked to read the text on the screen (200 tokens,
temperature 0.3); the answers are merged, dropping repeated lines and those that say that there is
no text. --remedies runs it again with each remedy for what eviction does to positions, asking at
the same moments: the other policy, fewer pixels, fewer frames, a larger cap, and a memory that is
reset after each question.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.world.questions import NOT_SEEN, History

from . import answers
from .context import Context
from .pictures import Halved, Pictures, WorldPictures

if TYPE_CHECKING:
    from stream_vlm_ros.engine import VideoStreamingInference

READ = "Read all the text that is visible on the screen. If none is readable, answer: No text."
LAST_SIGN = "What did the last sign read?"
# Chunks of the small model's world: its memory holds somewhat more.
SMALL_EVERY = 5


def run(context: Context) -> None:
    options, record = context.options, context.record
    chunks = -(-context.pictures().expected // options.chunk_frames)
    if chunks < options.every:
        raise InvalidParameterError(
            f"The video has {chunks} chunks: too few to be asked every {options.every}. Lower "
            "--every or --chunk-frames, or give a longer video."
        )
    other = "keep_gaps" if options.position_policy == "contiguous" else "contiguous"
    size = context.pictures().size or (640, 480)
    settings = context.model.processor.image_settings
    pixels = options.max_pixels or min(size[0] * size[1], settings.max_pixels)
    variants: dict[str, dict[str, Any]] = {"as asked": {}}
    if options.remedies:
        variants |= {
            f"positions {other}": {"position_policy": other},
            "a quarter of the pixels": {"max_pixels": max(settings.min_pixels, pixels // 4)},
            "twice the cap": {"cap": 2 * options.cap},
            "a memory for each segment": {"segments": True},
        }
        if options.cap == 0:
            del variants["twice the cap"]
            record.note("There is no cap twice as large as one that is as large as fits.")
        if options.chunk_frames > 1:
            variants["half the frames"] = {"halved": True}
    table = []
    for name, changes in variants.items():
        asks = one_run(context, name, **changes)
        ttft = statistics.mean(ask["ttft"] for ask in asks)
        restored = sum(ask["restored"] for ask in asks)
        texts = [ask["answer"] for ask in asks]
        merged = answers.merge(texts)
        known = [ask["right"] for ask in asks if ask["right"] is not None]
        prefix = "" if name == "as asked" else f"{name}: "
        record.check(
            f"{prefix}every question left no trace",
            restored == len(asks),
            f"{restored} of {len(asks)}",
            "all",
        )
        filled = sum(bool(answers.merge([text])) for text in texts)
        reason = context.not_judged
        record.check(
            f"{prefix}some answers carry text",
            None if reason else filled > 0,
            f"not judged: {reason}" if reason else f"{filled} of {len(asks)}",
            "> 0",
        )
        record.check(
            f"{prefix}mean TTFT",
            ttft < options.max_ttft,
            f"{ttft:.3f} s",
            f"< {options.max_ttft:g} s",
        )
        record.summary[name] = {
            "asks": len(asks),
            "after_chunks": [ask["chunk"] for ask in asks],
            "mean_ttft": ttft,
            "answers_with_text": None if reason else filled,
            "right": f"{sum(known)} of {len(known)}" if known else "–",
            "merged_lines": None if reason else merged,
            "evicted": asks[-1]["evicted"],
        }
        table.append(
            [name, len(asks), f"{ttft:.3f}", "–" if reason else filled,
             "–" if reason else len(merged), record.summary[name]["right"],
             f"{asks[-1]['evicted']:,}"]
        )  # fmt: skip
        if context.truth_is_known and not prefix:  # a remedy may cost answers: the table tells
            judge(context, asks)
    context.table(
        "Questions on the way",
        ["", "asked", "mean TTFT s", "with text", "lines merged", "right", "tokens evicted"],
        table,
    )
    record.check("memory is enough", True, "no run ran out", "no out of memory")
    if context.not_judged and not options.no_answers:
        small = answers.small_context(context, frames=120, every=SMALL_EVERY, temperature=0.0)
        judge(small, one_run(small, "small model"))


def judge(context: Context, asks: list[dict[str, Any]]) -> None:
    """Answers whose truth is known: of signs that the memory still holds."""
    known = [ask["right"] for ask in asks if ask["right"] is not None]
    what = f"{context.model.card.name} about the last sign"
    answers.judge(context, what, sum(known), len(known))


def one_run(
    context: Context,
    name: str,
    halved: bool = False,
    cap: int | None = None,
    segments: bool = False,
    **changes: Any,
) -> list[dict[str, Any]]:
    """Stream the whole source once and ask on the way, and at its end; the asks."""
    options = context.options
    pictures: Pictures = context.pictures()
    if halved:
        pictures = Halved(pictures)
    engine = context.engine(cap or options.cap, **changes)
    asks: list[dict[str, Any]] = []
    evicted, row = 0, None
    for row in context.append(engine, pictures, options.chunk_frames, name):
        evicted += row["evicted"]
        if row["chunk"] % options.every == 0:
            asks.append(ask(context, engine, name, pictures, row, evicted))
            if segments:
                engine.reset()
    if row is None:
        raise InvalidParameterError(f"{pictures.name} has no frames.")
    if row["chunk"] % options.every:
        asks.append(ask(context, engine, name, pictures, row, evicted))
    return asks


def ask(
    context: Context,
    engine: VideoStreamingInference,
    name: str,
    pictures: Pictures,
    row: dict[str, Any],
    evicted: int,
) -> dict[str, Any]:
    """Ask once, after the chunk of ``row``; its entry in the record."""
    options = context.options
    before = engine.get_cache_info()
    answer, metrics = engine.ask(
        options.question or (LAST_SIGN if context.truth_is_known else READ),
        options.max_new_tokens,
        do_sample=options.temperature > 0,
        temperature=options.temperature or 1.0,
        seed=options.seed,
    )
    after = engine.get_cache_info()
    right = None
    if context.truth_is_known and options.question is None:
        sign = last_sign(pictures, row["frames"], before.time_spans)
        right = None if sign is None else answer.strip() == sign
    entry = {
        "run": f"{name}: question",
        "chunk": row["chunk"],
        "end": row["end"],
        "answer": answer,
        "restored": before["cache_seq_length"] == after["cache_seq_length"],
        "right": right,
        "evicted": evicted,
        "ttft": metrics["ttft"],
        "latency": metrics["latency"],
        "answer_tokens": metrics["answer_tokens"],
    }
    context.record.add(**entry)
    return entry


def last_sign(
    pictures: Pictures, frames: int, in_memory: Sequence[tuple[float, float]]
) -> str | None:
    """What the last sign read that so many frames showed; None where memory no longer holds it."""
    world = pictures.whole if isinstance(pictures, Halved) else pictures
    assert isinstance(world, WorldPictures)
    stamps = [index / pictures.fps for index in range(frames)]
    history = History(world.world.sightings(stamps[-1]), stamps)
    signs = [sighting for sighting in history.seen if sighting.thing.is_sign]
    if not signs:
        return NOT_SEEN
    moment = history.last_frame_of(signs[-1])
    held = any(start <= moment <= end for start, end in in_memory)
    return signs[-1].thing.text if held else None
