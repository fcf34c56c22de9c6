# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The four stages of the delayed batch engine's log.

50 frames of one second each are kept; the first question encodes 48 of them; the next are answered
from the cache; after ten more frames they are encoded again. At each stage the engine's statistics,
as the reference printed them. Its positions span the real time: the mean seconds of a grid are the
span times 2 over the frames encoded.
"""

from __future__ import annotations

import itertools
import statistics
from typing import Any

from stream_vlm_ros.engine.inputs.chunking import gather
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.history import DelayedBatchInferenceEngine, SmartFrameManager
from stream_vlm_ros.history.selection import GRID_FRAMES
from stream_vlm_ros.world.questions import Question

from . import answers
from .context import Context
from .dataset import make_items
from .reference import DELAYED_BATCH

# What the reference's log says of 50 s at 1 frame/s on an RTX 4090, then of ten more frames.
REFERENCE = {
    "frames added": ("50", "60"),
    "unique frames": ("22", "–"),
    "frames encoded": ("48", "48"),
    "seconds a grid": ("2.0417", "2.4583"),
    "span, s": ("49.00", "59.00"),
    "visual tokens": ("64,584", "–"),
    "encoding, s": ("20.96", "–"),
    "next answers, s": ("2.2–2.5", "–"),
}


def run(context: Context) -> None:
    options = context.options
    if options.frames < 2 or options.more < 1 or options.asks < 1:
        raise InvalidParameterError("--frames must be at least 2, --more and --asks at least 1.")
    pictures = context.whole(context.pictures(options.frames + options.more))
    context.tell_memory(
        {"as": f"the {options.as_}", "layout": options.layout,
         "keeps": "frames, which a question encodes"}
    )  # fmt: skip
    context.peak_memory.reset()
    engine = DelayedBatchInferenceEngine(
        context.model.network, context.model.processor, context.model.device,
        memory=SmartFrameManager(target_fps=options.fps), max_sampled_frames=options.max_sampled,
        max_pixels=options.max_pixels, min_pixels=options.min_pixels, layout=options.layout,
    )  # fmt: skip
    engine.warm_up()
    stages = Stages(context, engine, pictures)
    frames = iter(pictures)
    stages.keep("1: frames are kept", itertools.islice(frames, options.frames))
    first = stages.ask("2: the first question encodes", 1)
    again = stages.ask("3: the next are answered from the cache", options.asks)
    stages.keep(f"4: {options.more} more frames", frames)
    later = stages.ask("4: encoded again", 1)
    stages.judge(first, again, later)
    stages.show(first, again, later)


class Stages:
    """What was done, and the engine's own figures after each step."""

    def __init__(
        self, context: Context, engine: DelayedBatchInferenceEngine, pictures: Any
    ) -> None:
        self.context, self.engine, self.pictures = context, engine, pictures
        self.kept = 0

    def keep(self, stage: str, frames: Any) -> None:
        for chunk in gather(frames, 1, lambda _: None):
            ((image, seconds),) = chunk
            self.engine.add_frame(image, seconds)
            self.kept += 1
        self.engine.memory.admit_waiting()
        self._note(stage)

    def ask(self, stage: str, count: int) -> dict[str, Any]:
        """Ask so often; the figures after it, with the latencies of the answers."""
        options = self.context.options
        questions: list[Question] = []
        if world := self.context.judged(self.pictures):
            stamps = [index / options.fps for index in range(self.kept)]
            items = make_items(world.world, stamps, options.seed)
            questions = [item.question for item in itertools.islice(itertools.cycle(items), count)]
        rows = []
        for question in questions or itertools.repeat(None, count):
            text = question.text if question else options.question
            said, metrics = self.engine.ask(text, options.max_new_tokens)
            rows.append(metrics)
            right = question.is_right(said) if question else None
            self.context.record.add(
                stage=stage, question=text, answer=said, right=right, **metrics.as_dict()
            )
        found = self._note(stage)
        found["latency"] = [row["latency"] for row in rows]
        found["ttft"] = [row["ttft"] for row in rows]
        found["new_tokens"] = sum(row["encoded_tokens"] for row in rows)
        return found

    def _note(self, stage: str) -> dict[str, Any]:
        found = {
            **self.engine.get_statistics().as_dict(),
            **self.engine.sampling_metadata,
            **self.context.peak_memory.read(),
        }
        self.context.record.add(stage=stage, **found)
        self.context.say(
            f"{stage}: {found['frames_added']} frames added, {found['unique_frames']} in the two "
            f"small sets, {found['frames_encoded']} encoded in {found['encode_count']} encodings"
        )
        return found

    def judge(self, first: dict[str, Any], again: dict[str, Any], later: dict[str, Any]) -> None:
        options, check = self.context.options, self.context.record.check
        for name, found, frames in (
            ("first", first, options.frames),
            ("again", later, options.frames + options.more),
        ):
            grids = min(-(-frames // GRID_FRAMES), options.max_sampled // GRID_FRAMES)
            span = (frames - 1) / options.fps
            seconds = span / grids
            check(f"{name}: every frame was added", found["frames_added"] == frames,
                  found["frames_added"], f"{frames}")  # fmt: skip
            check(f"{name}: as many are encoded as may be", found["temporal_grids"] == grids,
                  found["frames_encoded"], f"{GRID_FRAMES * grids}")  # fmt: skip
            check(f"{name}: they span the real time", abs(found["real_span"] - span) < 1e-6,
                  f"{found['real_span']:.2f} s", f"{span:.2f} s")  # fmt: skip
            check(f"{name}: seconds a grid", abs(found["second_per_grid_t"] - seconds) < 1e-6,
                  f"{found['second_per_grid_t']:.4f} s", f"{seconds:.4f} s")  # fmt: skip
        counts = [found["encode_count"] for found in (first, again, later)]
        check("encoded for the first question and for the new frames alone", counts == [1, 1, 2],
              counts, "[1, 1, 2]")  # fmt: skip
        check("the next questions compute no frame", again["new_tokens"] == 0,
              f"{again['new_tokens']} tokens", "0 tokens")  # fmt: skip
        sooner = first["latency"][0] / statistics.median(again["latency"])
        check("they are answered sooner", sooner > 1, f"{sooner:.1f}x", "> 1x")
        judged = [row["right"] for row in self.context.record.rows if "right" in row]
        known = [right for right in judged if right is not None]
        if not known:
            self.context.note_unjudged()
        elif self.context.truth_is_known:
            what = f"{self.context.model.card.name} about {self.pictures.name}"
            answers.judge(self.context, what, sum(known), len(known))
        else:
            self.context.record.note(f"Right answers: {sum(known)} of {len(known)}.")
        self.context.record.summary["right"] = f"{sum(known)} of {len(known)}" if known else None

    def show(self, first: dict[str, Any], again: dict[str, Any], later: dict[str, Any]) -> None:
        def figures(found: dict[str, Any], next_: str) -> list[str]:
            return [
                f"{found['frames_added']}", f"{found['unique_frames']}",
                f"{found['frames_encoded']}", f"{found['second_per_grid_t']:.4f}",
                f"{found['real_span']:.2f}", f"{found['visual_tokens']:,}",
                f"{found['encoding_latency']:.2f}", next_,
            ]  # fmt: skip

        record, times = self.context.record, again["latency"]
        self.context.compare_with_reference(DELAYED_BATCH, visual_tokens=first["visual_tokens"])
        spread = f"{min(times):.3f}–{max(times):.3f}"
        ours = zip(figures(first, spread), figures(later, "–"), strict=True)
        self.context.table(
            "Compared with the reference's log",
            ["", "reference", "ours", "reference, ten more", f"ours, {self.context.options.more} "
             "more"],
            [
                [name, theirs[0], mine, theirs[1], more]
                for (name, theirs), (mine, more) in zip(REFERENCE.items(), ours, strict=True)
            ],
        )  # fmt: skip
        record.summary.update(first=first, again=again, later=later, peak_gib=later["peak_gib"])
