# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What a pause in the stream costs the small model's answers.

    python bench/pauses.py --out bench/results/pauses.json

Each world is streamed with a pause between two chunks: once halfway, into a memory that holds
everything, and once right behind the first chunk, which is the sink of a memory that then forgets
40 s of a still picture. So all that happens is held, and one question of each core type is asked
about it, the same whatever the pause; its truth is that of a stream without pause or still.
Printed is how many of the worlds were answered rightly, and the next position in text.

In the committed results ``before`` is of the release that closed no pause (``--name before``).
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import transformers

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.machine import measured_on
from stream_vlm_ros.world.evaluate import CHUNK, load
from stream_vlm_ros.world.questions import CORE, History, Question, ask
from stream_vlm_ros.world.world import World

FIRST_SEED = 2_000_000
FPS = 2.0
HOUR = 3600.0
STEPS = {"1 s": 1.0, "5 s": 5.0, "20 s": 20.0, "1 min": 60.0, "2 min": 120.0, "5 min": 300.0,
         "10 min": 600.0, "20 min": 1200.0}  # fmt: skip
PAUSES = {"none": 0.0, "1 h": HOUR, "24 h": 24 * HOUR, "week": 168 * HOUR}
CLOCK_SET = "clock from 1970 to now"
NOW = 1_795_900_000.0
# Chunks, the cap, behind how many chunks the pause is, and how many chunks of a still come then.
PLACES = {
    "halfway, all held": (30, 16384, 15, 0),
    # 55 tokens of sink and eleven chunks of 40.
    "behind the sink": (12, 495, 1, 20),
}


class Watched:
    """A world's frames, drawn once, and a question of each core type about them."""

    def __init__(self, number: int, chunks: int):
        for seed in range(FIRST_SEED + 1000 * number, FIRST_SEED + 1000 * number + 1000):
            world = World(seed)
            stamps = [index / FPS for index in range(CHUNK * chunks)]
            self.questions = _questions(seed, History(world.sightings(stamps[-1]), stamps))
            if len(self.questions) == len(CORE):
                break
        frames = [world.render(t, 640, 480) for t in stamps]
        self.chunks = [frames[at : at + CHUNK] for at in range(0, len(frames), CHUNK)]

    def stream(
        self, engine: VideoStreamingInference, behind: int, still: int, pause: float, start: float
    ) -> None:
        """Append all chunks; behind some of them time jumps, and for a while nothing moves."""
        idle = [[self.chunks[behind - 1][-1]] * CHUNK] * still
        for number, chunk in enumerate([*self.chunks[:behind], *idle, *self.chunks[behind:]]):
            first = start + CHUNK * number / FPS + (pause if number >= behind else 0.0)
            engine.append_video_chunk(chunk, timestamps=[first + k / FPS for k in range(CHUNK)])


def _questions(seed: int, history: History) -> dict[str, Question]:
    if not history.settled:
        return {}
    asked = {type_: ask(random.Random(f"{seed} {type_}"), history, type_) for type_ in CORE}
    return {type_: question for type_, question in asked.items() if question}


def pauses(steps: bool) -> Iterator[tuple[str, float, float]]:
    """Name, seconds added between two chunks, and the first stamp."""
    for name, pause in {**(STEPS if steps else {}), **PAUSES}.items():
        yield name, pause, 1000.0
    yield CLOCK_SET, NOW, 0.0


def measure(worlds: int, steps: bool) -> dict[str, Any]:
    """Right answers by place, pause and type."""
    model, processor = load()
    found: dict[str, Any] = {}
    for place, (chunks, cap, behind, still) in PLACES.items():
        watched = [Watched(number, chunks) for number in range(worlds)]
        for name, pause, start in pauses(steps):
            right = dict.fromkeys(CORE, 0)
            position = 0
            for one in watched:
                engine = VideoStreamingInference(
                    model, processor, "cpu", EvictionConfig(max_cache_tokens=cap)
                )
                one.stream(engine, behind, still, pause, start)
                ledger = engine.cache_manager.ledger
                position = max(position, max(ledger.next_position.minus(ledger.frame)))
                for type_, question in one.questions.items():
                    answer, _ = engine.ask(question.text, max_new_tokens=24)
                    right[type_] += question.is_right(answer)
            found.setdefault(place, {})[name] = {"right": right, "next_position": position}
            print(f"{place}; {name}: {right}, next position {position:,}", flush=True)
    return found


def main() -> None:
    """Measure and write the figures."""
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--worlds", type=int, default=8)
    parse.add_argument("--steps", action="store_true", help="shorter pauses, too")
    parse.add_argument("--name", default="after", help="under which the figures are kept")
    parse.add_argument("--threads", type=int, default=1)
    parse.add_argument("--out", type=Path)
    args = parse.parse_args()
    torch.set_num_threads(args.threads)
    found = measure(args.worlds, args.steps)
    if args.out:
        report = json.loads(args.out.read_text()) if args.out.exists() else {}
        report |= {"worlds": args.worlds, **measured_on(torch, transformers), args.name: found}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        args.out.write_text(json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    main()
