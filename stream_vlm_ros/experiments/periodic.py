# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The same question again and again while the video runs.

Every 25 chunks the memory is asked to read the text on the screen (200 tokens, temperature 0.3);
the answers are merged, dropping repeated lines. --remedies runs it again with each remedy for what
eviction does to positions: the other policy, fewer pixels, fewer frames, a larger cap, and a memory
that is reset after each question.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable
from typing import Any

from .context import Context
from .pictures import WorldPictures


def run(context: Context) -> None:
    options, record = context.options, context.record
    other = "keep_gaps" if options.position_policy == "contiguous" else "contiguous"
    size = context.pictures().size or (640, 480)
    settings = context.model.processor.image_settings
    pixels = options.max_pixels or min(size[0] * size[1], settings.max_pixels)
    variants: dict[str, dict[str, Any]] = {"as asked": {}}
    if options.remedies:
        variants |= {
            f"positions {other}": {"position_policy": other},
            "a quarter of the pixels": {"max_pixels": max(settings.min_pixels, pixels // 4)},
            "half the frames": {"fps": options.fps / 2},
            "twice the cap": {"cap": 2 * options.cap},
            "a memory for each segment": {"segments": True},
        }
    table = []
    for name, changes in variants.items():
        asks = one_run(context, name, **changes)
        ttft = statistics.mean(ask["ttft"] for ask in asks) if asks else float("nan")
        restored = sum(ask["restored"] for ask in asks)
        texts = [ask["answer"] for ask in asks]
        merged = merge(texts)
        known = [ask["right"] for ask in asks if ask["right"] is not None]
        prefix = "" if name == "as asked" else f"{name}: "
        record.check(f"{prefix}questions were asked", len(asks) > 0, len(asks), "> 0")
        record.check(
            f"{prefix}every question left no trace",
            restored == len(asks),
            f"{restored} of {len(asks)}",
            "all",
        )
        filled = sum(bool(re.search(r"\w", text)) for text in texts)
        record.check(
            f"{prefix}some answers carry text",
            None if context.model.random else filled > 0,
            f"{filled} of {len(asks)}",
            "> 0",
        )
        record.check(
            f"{prefix}mean TTFT",
            ttft < options.max_ttft,
            f"{ttft:.3f} s",
            f"< {options.max_ttft:g} s",
        )
        right = f"{sum(known)} of {len(known)}" if known and not context.model.random else "–"
        record.summary[name] = {
            "asks": len(asks), "mean_ttft": ttft, "answers_with_text": filled, "right": right,
            "merged_lines": merged, "evicted": asks[-1]["evicted"] if asks else 0,
        }  # fmt: skip
        table.append(
            [name, len(asks), f"{ttft:.3f}", filled, len(merged), right,
             f"{record.summary[name]['evicted']:,}"]
        )  # fmt: skip
    context.table(
        "Questions on the way",
        ["", "asked", "mean TTFT s", "with text", "lines merged", "right", "tokens evicted"],
        table,
    )
    record.check("memory is enough", True, "no run ran out", "no out of memory")


def one_run(
    context: Context,
    name: str,
    fps: float | None = None,
    cap: int | None = None,
    segments: bool = False,
    **changes: Any,
) -> list[dict[str, Any]]:
    """Stream the whole source once and ask on the way; the asks."""
    options = context.options
    frames = options.frames if fps is None else round(options.frames * fps / options.fps)
    every = options.every if fps is None else max(1, round(options.every * fps / options.fps))
    pictures = context.pictures(frames, fps)
    question = options.question or (
        "What did the last sign read?"
        if isinstance(pictures, WorldPictures)
        else "Read all the text that is visible on the screen."
    )
    engine = context.engine(cap or options.cap, **changes)
    asks: list[dict[str, Any]] = []
    evicted = 0
    for row in context.append(engine, pictures, options.chunk_frames, name):
        evicted += row["evicted"]
        if row["chunk"] % every:
            continue
        before = engine.get_cache_info()["cache_seq_length"]
        answer, metrics = engine.ask(
            question,
            options.max_new_tokens,
            do_sample=options.temperature > 0,
            temperature=options.temperature or 1.0,
            seed=options.seed,
        )
        after = engine.get_cache_info()["cache_seq_length"]
        ask = {
            "run": f"{name}: question",
            "chunk": row["chunk"],
            "end": row["end"],
            "question": question,
            "answer": answer,
            "restored": before == after,
            "right": None,
            "evicted": evicted,
            "ttft": metrics["ttft"],
            "latency": metrics["latency"],
            "answer_tokens": metrics["answer_tokens"],
        }
        if isinstance(pictures, WorldPictures) and options.question is None:
            ask["right"] = answer.strip() == last_sign(pictures, row["frames"])
        asks.append(ask)
        context.record.add(**ask)
        if segments:
            engine.reset()
    return asks


def last_sign(pictures: WorldPictures, frames: int) -> str:
    """What the last sign read that these frames showed."""
    from stream_vlm_ros.world.questions import NOT_SEEN, History

    stamps = [index / pictures.fps for index in range(frames)]
    seen = History(pictures.world.sightings(stamps[-1]), stamps).seen
    signs = [sighting.thing.text for sighting in seen if sighting.thing.is_sign]
    return signs[-1] if signs else NOT_SEEN


def merge(texts: Iterable[str]) -> list[str]:
    """The lines of all texts in order, each once; case, spaces and punctuation do not count."""
    found: dict[str, str] = {}
    for text in texts:
        for line in text.splitlines():
            key = re.sub(r"[\W_]+", " ", line.lower()).strip()
            if key:
                found.setdefault(key, line.strip())
    return list(found.values())
