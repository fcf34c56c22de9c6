# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How well the small model answers, through the engine, about worlds it was never trained on.

Each world is drawn, streamed in chunks of 4 frames and questioned through
`VideoStreamingInference.ask` and `ask_choice`, at the end and while it streams. Training draws
its worlds from other seeds (text beginning with "train"), so no world here was seen in training.
"""

from __future__ import annotations

import itertools
import random
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stream_vlm_ros.world.questions import CORE, FURTHER, TYPES, History, Question, ask
from stream_vlm_ros.world.world import COLOURS, KINDS, Backdrop, Sighting, Thing, World

if TYPE_CHECKING:
    from stream_vlm_ros.engine import StreamProcessor, StreamQwenModel, VideoStreamingInference

MODEL = Path(__file__).parent / "model"
CHUNK = 4  # frames
FIRST_SEED = 1_000_000


def load(path: str | Path = MODEL, device: str = "cpu") -> tuple[StreamQwenModel, StreamProcessor]:
    """Model (float32) and processor of a model folder."""
    import torch

    from stream_vlm_ros.engine import StreamProcessor, StreamQwenModel

    model = StreamQwenModel.from_pretrained(str(path), torch_dtype=torch.float32).to(device).eval()
    return model, StreamProcessor.from_pretrained(str(path))


def engine_for(
    model: StreamQwenModel,
    processor: StreamProcessor,
    layout: str = "continuous",
    cap: int = 16384,
) -> VideoStreamingInference:
    """A fresh engine that forgets nothing at the lengths evaluated here."""
    from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference

    return VideoStreamingInference(
        model, processor, model.device, EvictionConfig(max_cache_tokens=cap), layout=layout
    )


class Score:
    """Right answers by type: asked plainly, and as multiple choice."""

    def __init__(self) -> None:
        self.plain: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])  # right, asked
        self.choice: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        self.wrong: list[dict[str, Any]] = []

    def put(
        self,
        engine: VideoStreamingInference,
        question: Question,
        choose: bool = True,
        **where: float,
    ) -> bool:
        """Ask a question both ways and note what came back; returns whether plainly right."""
        answer, _ = engine.ask(question.text, max_new_tokens=24)
        right = question.is_right(answer)
        self.plain[question.type][0] += right
        self.plain[question.type][1] += 1
        if not right and len(self.wrong) < 200:
            asked = {"type": question.type, "question": question.text, "truth": question.answer}
            self.wrong.append({**where, **asked, "answer": answer})
        if choose and len(question.choices) > 1:
            chosen, _ = engine.ask_choice(question.text, list(question.choices))
            self.choice[question.type][0] += chosen == question.answer
            self.choice[question.type][1] += 1
        return right

    def summary(self) -> dict[str, Any]:
        """Percentages by type, and means over the types that were asked."""

        def percent(counts: Mapping[str, list[int]]) -> dict[str, float]:
            return {t: round(100 * counts[t][0] / counts[t][1], 2) for t in TYPES if t in counts}

        def mean(values: Mapping[str, float], types: Collection[str]) -> float | None:
            found = [values[t] for t in types if t in values]
            return round(sum(found) / len(found), 2) if found else None

        plain, choice = percent(self.plain), percent(self.choice)
        return {
            "questions": sum(n for _, n in self.plain.values()),
            "asked": {t: self.plain[t][1] for t in TYPES if t in self.plain},
            "right": plain,
            "core_mean": mean(plain, CORE),
            "core_least": min((plain[t] for t in CORE if t in plain), default=None),
            "further_mean": mean(plain, FURTHER),
            "choice_right": choice,
            "choice_mean": mean(choice, CORE),
        }


def watch(
    engine: VideoStreamingInference,
    world: World,
    stamps: list[float],
    size: tuple[int, int],
    offset: float = 0.0,
) -> Iterator[int]:
    """Stream a world's frames in chunks; yields the number of frames seen after each chunk."""
    for first in range(0, len(stamps), CHUNK):
        part = stamps[first : first + CHUNK]
        frames = [world.render(t, *size) for t in part]
        engine.append_video_chunk(frames, timestamps=[offset + t for t in part])
        yield first + len(part)


def settled(world: World, stamps: list[float], count: int) -> History | None:
    """The history after `count` frames, or None while something has just come or gone."""
    history = History(world.sightings(stamps[count - 1]), stamps[:count])
    return history if history.settled else None


def run(
    model: StreamQwenModel,
    processor: StreamProcessor,
    *,
    span: float = 30.0,
    worlds: int = 20,
    each: int = 2,
    fps: float = 2.0,
    pace: float = 1.0,
    layout: str = "continuous",
    size: tuple[int, int] = (640, 480),
    seed: int = FIRST_SEED,
    streaming: bool = True,
    choose: bool = True,
    types: tuple[str, ...] = TYPES,
    step: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Evaluate on histories of up to `span` seconds; returns scores at the end and while streaming.

    Each world is streamed once. Near its end every type is asked `each` times; with `streaming`,
    some of the types are also asked after some of the chunks before. `at_moments` puts those
    questions to a second engine that has seen just as much in one go and been asked nothing
    before: the two differ only if asking leaves a trace. `step` is called after each world.
    """
    end, during, once = Score(), Score(), Score()
    for number in range(worlds):
        rng = random.Random(f"evaluate {seed} {number}")
        world = World(seed + number, pace=pace, aspect=size[0] / size[1])
        stamps = [index / fps for index in range(int(span * fps))]
        offset = rng.choice((0.0, 1.7e9, 12.34))
        engine = engine_for(model, processor, layout)
        other = engine_for(model, processor, layout) if streaming else None
        last = max(
            (n for n in range(CHUNK, len(stamps) + 1, CHUNK) if settled(world, stamps, n)),
            default=0,
        )
        picked = set(rng.sample(range(CHUNK, last, CHUNK), min(2, len(range(CHUNK, last, CHUNK)))))
        fed = 0
        for count in watch(engine, world, stamps[:last], size, offset):
            history = settled(world, stamps, count) if count in picked | {last} else None
            if history is None:
                continue
            where = {"seed": seed + number, "at": history.now}
            if count == last:
                for type_ in types:
                    for _ in range(each):
                        question = ask(rng, history, type_)
                        if question is not None:
                            end.put(engine, question, choose, **where)
            elif other is not None:
                for _ in watch(other, world, stamps[fed:count], size, offset):
                    pass
                fed = count
                for type_ in types:
                    question = ask(rng, history, type_)
                    if question is not None:
                        during.put(engine, question, False, **where)
                        once.put(other, question, False, **where)
        step()
    result = {"span": span, "fps": fps, "layout": layout, "worlds": worlds, "end": end.summary()}
    if streaming:
        result["streaming"], result["at_moments"] = during.summary(), once.summary()
    result["wrong"] = end.wrong
    return result


def colour_pairs(
    new_engine: Callable[[], VideoStreamingInference],
    size: tuple[int, int] = (640, 480),
    step: Callable[[], None] = lambda: None,
) -> dict[str, Any]:
    """Red then blue, what came last? For every ordered pair of colours, with all kinds in turn.

    Each in a stream of its own, by an engine that has seen nothing yet.
    """
    right, asked, wrong = 0, 0, []
    kinds = itertools.cycle(KINDS)
    for number, (one, two) in enumerate(itertools.permutations(COLOURS, 2)):
        rng = random.Random(number)
        kind = next(kinds)
        world = World(FIRST_SEED - 1 - number)
        world.backdrop = Backdrop.draw(rng)
        world._sightings = [
            _still(kind, one, 0.5, 4.5),
            _still(kind, two, 5.0, 9.0),
            _still(kind, two, 99.0, 100.0),
        ]
        engine = new_engine()
        for _ in watch(engine, world, [index / 2 for index in range(16)], size):
            pass
        answer, _ = engine.ask("What came last?", max_new_tokens=24)
        truth = world._sightings[1].thing.phrase
        right += answer.strip() == truth
        asked += 1
        if answer.strip() != truth:
            wrong.append([one, two, kind, answer])
        step()
    return {"right": right, "asked": asked, "wrong": wrong}


def _still(kind: str, colour: str, start: float, end: float) -> Sighting:
    """A thing that stays in the middle of the picture."""
    return Sighting(
        Thing(kind, colour),
        start,
        end,
        origin=(0.5, 0.5),
        target=(0.5, 0.5),
        radius=0.17,
        angle=0.1,
        region="in the middle",
        last_region="in the middle",
        direction="",
    )


def evaluate(
    path: str | Path = MODEL,
    *,
    worlds: int = 30,
    each: int = 2,
    spans: Sequence[float] = (15.0, 30.0, 64.0),
    layouts: Sequence[str] = ("continuous",),
    device: str = "cpu",
    seed: int = FIRST_SEED,
    pairs: bool = True,
    say: Callable[[str], None] = print,
    step: Callable[[], None] = lambda: None,
) -> dict:
    """Evaluate a model folder over all `spans` and `layouts`; `say` is given each table.

    `step` is called `steps` times.
    """
    began = time.time()
    model, processor = load(path, device)
    runs: list[dict[str, Any]] = []
    report: dict[str, Any] = {"model": Path(path).name, "first_seed": seed, "runs": runs}
    for layout in layouts:
        for span in spans:
            found = run(
                model, processor, span=span, worlds=worlds, each=each, layout=layout,
                seed=seed, streaming=span >= 30, step=step,
            )  # fmt: skip
            runs.append(found)
            say(_table(found))
    if pairs:
        report["colour_pairs"] = counts = colour_pairs(
            lambda: engine_for(model, processor), step=step
        )
        say(f"what came last, pairs of colours: {counts['right']} of {counts['asked']}")
    report["seconds"] = round(time.time() - began, 1)
    return report


def steps(worlds: int, spans: Sequence[float], layouts: Sequence[str], pairs: bool) -> int:
    """How many steps `evaluate` takes: a world each, or a pair of colours."""
    return worlds * len(spans) * len(layouts) + pairs * len(COLOURS) * (len(COLOURS) - 1)


def _table(found: dict[str, Any]) -> str:
    end = found["end"]
    lines = [f"{found['layout']}, {found['span']:.0f} s at {found['fps']:g} frames a second:"]
    for type_ in TYPES:
        if type_ in end["right"]:
            choice = end["choice_right"].get(type_)
            lines.append(
                f"  {type_:10} {end['right'][type_]:6.1f} %  choice {choice:6.1f} %  "
                f"of {end['asked'][type_]}"
            )
    lines.append(f"  core mean {end['core_mean']} %, lowest {end['core_least']} %")
    lines.append(f"  further mean {end['further_mean']} %, choice mean {end['choice_mean']} %")
    if "streaming" in found:
        lines.append(
            f"  while streaming {found['streaming']['core_mean']} %, "
            f"the same asked once {found['at_moments']['core_mean']} %"
        )
    return "\n".join(lines)
