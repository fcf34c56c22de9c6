# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The two engines beside each other: right answers by type, time and arithmetic.

    python bench/delayed_batch.py --minutes 1,10,60 --out bench/results/delayed_batch.json

Both see the same drawn worlds, at --fps frames a second, through the small trained model, and are
asked the same questions near the end. The streaming engine encodes every frame and remembers --cap
tokens; the delayed one keeps a frame a second and encodes up to 48 when asked. Where a question
names a time ("34 minutes ago"), both are told it (`about`); a time that an engine no longer
remembers counts as a wrong answer.

Arithmetic is counted, not measured: two operations for each weight and token, four for each
channel, layer and pair of tokens that attend to each other.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import time
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

import torch
import transformers

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.errors import OutOfHorizonError
from stream_vlm_ros.history import DelayedBatchInferenceEngine
from stream_vlm_ros.machine import measured_on
from stream_vlm_ros.world.evaluate import FIRST_SEED, load
from stream_vlm_ros.world.questions import (
    CORE,
    TYPES,
    History,
    Question,
    ask,
    duration_phrase,
    join,
)
from stream_vlm_ros.world.world import SHAPES, World

CHUNK = 4
SIZE = (320, 240)
NAMED = ("ago", "at")
TOLERANCE = 4.0  # seconds before and after a named time that a question is said to be about

_UNITS = {"second": 1.0, "minute": 60.0}


class Arithmetic:
    """Operations of a model for given tokens."""

    def __init__(self, model):
        def weights(module) -> int:
            return sum(p.numel() for p in module.parameters() if p.ndim > 1)

        text, vision = model.config.text_config, model.config.vision_config
        self._text = 2 * weights(model.text.layers)
        self._text_pair = 4 * text.hidden_size * text.num_hidden_layers
        self._vision = 2 * weights(model.visual)
        self._vision_pair = 4 * vision.hidden_size * vision.depth
        self._patches = vision.spatial_merge_size**2

    def of(self, tokens: int, before: int, grids: int) -> float:
        """``tokens`` new ones behind ``before`` others, of ``grids`` temporal grids."""
        patches = tokens * self._patches
        grid = patches / max(grids, 1)
        pairs = tokens * (before + tokens / 2)
        seen = self._vision * patches / self._patches + self._vision_pair * patches * grid
        return self._text * tokens + self._text_pair * pairs + seen


class Contestant:
    """An engine, and what it has cost."""

    def __init__(self, engine, arithmetic: Arithmetic):
        self.engine, self._arithmetic = engine, arithmetic
        self.keeping = self.asking = 0.0  # seconds
        self.keeping_flop = self.asking_flop = 0.0
        self.asked = 0
        self.right = defaultdict(lambda: [0, 0])
        self.chosen = defaultdict(lambda: [0, 0])
        self.refused = 0

    def see(self, frames, stamps) -> None:
        begin = time.process_time()
        done = self.engine.append_video_chunk(frames, timestamps=stamps)
        self.keeping += time.process_time() - begin
        if done["tokens"]:
            before = done["cache_length"] + done["evicted_tokens"] - done["tokens"]
            self.keeping_flop += self._arithmetic.of(done["tokens"], before, done["grid"][0])

    def answer(self, question, about, choices: bool) -> None:
        begin = time.process_time()
        self.asked += 1
        type_ = question.type
        self.right[type_][1] += 1
        choose = choices and len(question.choices) > 1
        if choose:
            self.chosen[type_][1] += 1
        try:
            said, metrics = self.engine.ask(question.text, 24, about=about)
            self.right[type_][0] += question.is_right(said)
            if choose:
                picked, _ = self.engine.ask_choice(
                    question.text, list(question.choices), about=about
                )
                self.chosen[type_][0] += picked == question.answer
        except OutOfHorizonError:
            self.refused += 1
            return
        finally:
            self.asking += time.process_time() - begin
        if new := metrics.get("encoded_tokens", 0):
            grids = -(-metrics["frames_used"] // 2) * new / metrics["cache_length"]
            before = metrics["cache_length"] - new
            self.asking_flop += self._arithmetic.of(new, before, round(grids))

    def summary(self, minutes: float) -> dict:
        def percent(counts):
            return {t: round(100 * counts[t][0] / counts[t][1], 1) for t in TYPES if t in counts}

        def mean(counts):
            found = [counts[t][0] / counts[t][1] for t in CORE if t in counts]
            return round(100 * sum(found) / len(found), 1) if found else None

        return {
            "asked": {t: self.right[t][1] for t in TYPES if t in self.right},
            "right": percent(self.right),
            "core_mean": mean(self.right),
            "choice_right": percent(self.chosen),
            "choice_core_mean": mean(self.chosen),
            "refused": self.refused,
            "keeping_s_a_minute": round(self.keeping / minutes, 3),
            "keeping_gflop_a_minute": round(self.keeping_flop / minutes / 1e9, 2),
            "asking_s_a_question": round(self.asking / max(self.asked, 1), 3),
            "asking_gflop_a_question": round(self.asking_flop / max(self.asked, 1) / 1e9, 2),
        }


def recall(history: History) -> Iterator[Question]:
    """What was visible so many minutes ago? For each minute at which nothing comes or goes."""
    for minutes in range(2, int((history.now - history.start) / 60) + 1):
        seconds = 60.0 * minutes
        if history.steady(history.now - seconds):
            seen = sorted(
                (s.thing for s in history.visible(history.now - seconds)), key=lambda t: t.name
            )
            text = f"What was visible {duration_phrase(seconds)} ago?"
            yield Question(text, join(seen), "ago", accepted=(join(seen[::-1]),))


def named_time(question, history: History) -> tuple[float, float] | None:
    """The time that a question names, with some seconds around it."""
    if question.type not in NAMED:
        return None
    found = re.search(r"(\d+) (second|minute)s?", question.text)
    seconds = int(found[1]) * _UNITS[found[2]]
    moment = history.now - seconds if question.type == "ago" else history.start + seconds
    return moment - TOLERANCE, moment + TOLERANCE


def compare(model, processor, minutes: float, options) -> Iterator[dict]:
    """Both engines on worlds of that length: the sums after each world."""
    arithmetic = Arithmetic(model)
    totals = None
    for number in range(options.worlds):
        seed = options.seed + number
        world = World(seed, pace=options.pace)
        rng = random.Random(f"delayed batch {seed} {minutes}")
        pair = {"delayed_batch": DelayedBatchInferenceEngine(model, processor)}
        if options.cap:
            # Sink and window alone: a time that the window has passed is refused, not half known.
            bound = EvictionConfig(options.cap, sampled_share=0.0, important_share=0.0)
            pair["streaming"] = VideoStreamingInference(model, processor, None, bound)
        if totals is None:
            totals = {name: Contestant(pair[name], arithmetic) for name in pair}
        for name, contestant in totals.items():
            contestant.engine = pair[name]
        stamps = [k / options.fps for k in range(int(60 * minutes * options.fps))]
        last = next(
            (
                n
                for n in range(len(stamps) // CHUNK * CHUNK, 0, -CHUNK)
                if History(world.sightings(stamps[n - 1]), stamps[:n]).settled
            ),
            0,
        )
        for first in range(0, last, CHUNK):
            part = stamps[first : first + CHUNK]
            frames = [world.render(t, *SIZE) for t in part]
            for contestant in totals.values():
                contestant.see(frames, part)
        history = History(world.sightings(stamps[last - 1]), stamps[:last], options.margin)
        questions = []
        # After some time every shape was seen, again and again: what is asked of all the past has
        # no answer left, and what was visible "ago" is asked of every minute.
        busy = len(set(history.names)) >= len(SHAPES) * 3 / 4
        for type_ in TYPES:
            if busy and type_ == "ago":
                continue
            times = options.each * (options.named if type_ in NAMED else 1)
            questions += [q for q in (ask(rng, history, type_) for _ in range(times)) if q]
        if busy:
            questions += recall(history)
        # Those that name no time first: the delayed engine encodes once for all of them.
        questions.sort(key=lambda q: q.type in NAMED)
        for question in questions:
            about = named_time(question, history)
            for contestant in totals.values():
                contestant.answer(question, about, not options.no_choices)
        seen = minutes * (number + 1)
        summaries = {name: c.summary(seen) for name, c in totals.items()}
        yield {"minutes": minutes, "worlds": number + 1, **summaries}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", help="model folder; the shipped one if left out")
    parser.add_argument("--minutes", default="1,10,60")
    parser.add_argument("--worlds", type=int, default=3)
    parser.add_argument("--each", type=int, default=4, help="questions of a type and world")
    parser.add_argument("--named", type=int, default=4, help="times as many that name a time")
    parser.add_argument("--fps", type=float, default=2.0, help="of the camera")
    parser.add_argument(
        "--margin", type=float, help="seconds around a named time in which nothing comes or goes"
    )
    parser.add_argument("--no-choices", action="store_true", help="ask in plain words only")
    parser.add_argument("--pace", type=float, default=1.0, help="of the world: its slowness")
    parser.add_argument(
        "--cap", type=int, default=16384, help="tokens of the streaming engine; 0: without it"
    )
    parser.add_argument("--seed", type=int, default=FIRST_SEED + 500_000)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    model, processor = load(options.model) if options.model else load()
    result = {
        **measured_on(torch, transformers),
        "threads": 1,
        "fps": options.fps,
        "size": SIZE,
        "pace": options.pace,
        "seed": options.seed,
        "cap": options.cap,
        "margin_s": options.margin,
        "lengths": [],
    }
    for minutes in map(float, options.minutes.split(",")):
        result["lengths"].append({})
        for result["lengths"][-1] in compare(model, processor, minutes, options):
            text = json.dumps(result, indent=1)
            if options.out:
                options.out.parent.mkdir(parents=True, exist_ok=True)
                options.out.write_text(text + "\n")
        print(text, flush=True)


if __name__ == "__main__":
    main()
