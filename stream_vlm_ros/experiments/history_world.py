# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""One world of the history experiment: streamed, asked its exam, and answered by each memory.

``history`` and ``streaming`` are the product, asked as anybody asks it. The controls, which only
differ in the grids that they show, are read in batches (`experiments.windows`).
"""

from __future__ import annotations

import hashlib
import random
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch

from stream_vlm_ros.engine import EvictionConfig, EvidenceEpisode
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.history.calibration import FILE_NAME, Calibration
from stream_vlm_ros.history.recall import PRESENT, RecallingInference
from stream_vlm_ros.history.wants import MARGIN, NEIGHBOUR
from stream_vlm_ros.world import questions as about
from stream_vlm_ros.world.questions import Question
from stream_vlm_ros.world.rare import (
    NEVER,
    STEP,
    Asked,
    RareWorld,
    Stretch,
    exam,
    grid_stamps,
)

from .model_under_test import ModelUnderTest
from .windows import Look, Windows, encode, every_head

MEMORY_GRIDS = 70  # that the memory holds, a minute or so
MAX_NEW_TOKENS = 24
SPREAD = 20  # grids of the controls that are drawn or spread evenly, and of mean keys
TAKEN = ("where_left", "direction")  # types whose evidence is taken away
WITHIN = 2.0  # seconds that the stamp of what left may be off
PERCEPTION = ("now", "last")
_PERCEIVED = 90.0  # seconds that questions about the present look back
_PART = 120  # grids encoded together
_MEAN_KEYS_PART = 1984  # grids whose keys of all heads are there at a time
_CONTEXT = 16  # grids before one, that its mean key is computed behind


class Plan(NamedTuple):
    """What makes the results of two runs comparable; a world's file says it."""

    hours: float
    once: int
    repeated: int
    never: int
    chunk_frames: int
    history: str
    read: str
    index_megabytes: int
    questions: int
    moments: int
    taken: int
    controls: bool
    dtype: str
    calibration: str


class Named(NamedTuple):
    """Grids, by their numbers, that a control reads, and the stamp of the last that it names."""

    memory: str
    grids: list[int]
    newest: float | None


def calibration_of(model: ModelUnderTest) -> tuple[Calibration, str]:
    """The checkpoint's own calibration, and the SHA-256 of its file.

    Raises InvalidParameterError if there is none: the fallback's figures would say nothing of it.
    """
    file = None if model.folder is None else model.folder / FILE_NAME
    if file is None or not file.exists():
        raise InvalidParameterError(
            f"{model.name} has no {FILE_NAME}: make one by stream-vlm calibrate"
        )
    assert model.folder is not None
    calibration = Calibration.of(model.folder, model.network)
    return calibration, hashlib.sha256(file.read_bytes()).hexdigest()


class WorldRun:
    """A world on its way through the engine.

    Args:
        seed: of `MEASURING`, or any other.
    """

    def __init__(self, model: ModelUnderTest, seed: int, plan: Plan) -> None:
        self.model, self.seed, self.plan = model, seed, plan
        self.world = RareWorld(
            seed, hours=plan.hours, once=plan.once, repeated=plan.repeated, never=plan.never
        )
        asked = exam(self.world)
        if plan.questions:
            picked = random.Random(f"some {seed}").sample(range(len(asked)), len(asked))
            asked = [asked[k] for k in sorted(picked[: plan.questions])]
        self.asked = asked
        self.calibration, _ = calibration_of(model)
        self.rows: list[dict[str, Any]] = []
        self.taken: list[dict[str, Any]] = []
        self.seen: list[dict[str, Any]] = []  # questions about the present
        self.latencies: dict[str, list[float]] = defaultdict(list)
        self.features: list[torch.Tensor] = []
        self.strays: dict[int, list[EvidenceEpisode]] = {}
        self._taken_of = self._drawn(
            [n for n, one in enumerate(asked) if one.type in TAKEN and one.evidence], plan.taken
        )
        moments = range(int(_PERCEIVED), self.world.grids)
        self._moments = self._drawn(list(moments), plan.moments)

    def _drawn(self, some: list[int], count: int) -> set[int]:
        rng = random.Random(f"drawn {self.seed} {len(some)} {count}")
        return set(rng.sample(some, min(count, len(some))))

    def run(self) -> dict[str, Any]:
        """Everything that its file holds, besides what it is of."""
        began = time.perf_counter()
        self._stream()
        streamed = time.perf_counter() - began
        if self.plan.controls:
            self._ask_controls()
        return {
            "seed": self.seed,
            "rows": self.rows,
            "taken": self.taken,
            "perception": self.seen,
            "latencies": {name: _rounded(some) for name, some in self.latencies.items()},
            "tiers": self.tiers,
            "seconds": {
                "streamed_and_asked": round(streamed, 1),
                "all": round(time.perf_counter() - began, 1),
            },
        }

    # -- the product -------------------------------------------------------------------------

    def _stream(self) -> None:
        due: dict[int, list[int]] = defaultdict(list)
        for number, one in enumerate(self.asked):
            due[int(one.now)].append(number)
        pictures = self.world.grid(0)
        tokens = _grid_tokens(self.model, pictures)
        engine = RecallingInference(
            self.model.network,
            self.model.processor,
            self.model.device,
            EvictionConfig.novelty(MEMORY_GRIDS * tokens + 32),
            calibration=self.calibration,
            history=self.plan.history,
            index_bytes=self.plan.index_megabytes * 2**20,
            compile=False,  # chunks of so small a model are no faster by it, and many begin at once
        )
        engine.warm_up()
        chunk = self.plan.chunk_frames // 2
        waiting: list[np.ndarray] = []
        unread: list[np.ndarray] = []
        for grid in range(self.world.grids):
            pictures = self.world.grid(grid)
            waiting.append(pictures)
            unread.append(pictures)
            asked = grid in due or grid in self._moments
            if len(waiting) == chunk or asked or grid == self.world.grids - 1:
                stamps = [t for n in range(grid - len(waiting) + 1, grid + 1)
                          for t in grid_stamps(n)]  # fmt: skip
                frames = [frame for pair in waiting for frame in pair]
                done = engine.append_video_chunk(frames, timestamps=stamps)
                if len(waiting) == chunk:
                    self.latencies["chunk"].append(done.latency)
                waiting = []
            if self.plan.controls and (len(unread) == _PART or grid == self.world.grids - 1):
                self.features.append(self._encoded(unread))
                unread = []
            for number in due.get(grid, ()):
                self._ask(engine, number)
            if grid in self._moments:
                self._ask_of_the_present(engine, grid)
        self.tiers = [tier.as_dict() for tier in engine.get_cache_info().tiers]
        engine.close()

    def _encoded(self, pictures: list[np.ndarray]) -> torch.Tensor:
        return encode(self.model.network, self.model.processor, [np.stack(pictures)])

    def _ask(self, engine: RecallingInference, number: int) -> None:
        one = self.asked[number]
        text = one.question.text
        answer, metrics = engine.ask(text, MAX_NEW_TOKENS)
        self.latencies["fetched" if metrics.fetched_tokens else "not fetched"].append(
            metrics.latency
        )
        self.latencies["search"].append(metrics.search_latency)
        fetched = metrics.fetched_tokens
        if fetched:
            self.latencies["fetch"].append(metrics.fetch_latency)
        newest = metrics.episodes[-1].end if metrics.episodes else None
        self._note(number, "history", answer, newest, fetched=fetched,
                   evidence=names_evidence(metrics.episodes, one))  # fmt: skip
        alone, _ = engine.ask(text, MAX_NEW_TOKENS, history="never")
        self._note(number, "streaming", alone, None)
        if number in self._taken_of and fetched and one.question.is_right(answer):
            shown = self.world.shown(one.things[0], one.now)
            # Of what the memory itself has kept, nothing can be taken away.
            if not any(s.first <= last and first <= s.last
                       for s in shown for first, last in metrics.time_spans):  # fmt: skip
                self._ask_without(engine, number, answer, shown)
        if self.plan.controls and (other := self._other(number)) is not None:
            self.strays[number] = self._newest(engine.search(other.question.text), other)

    def _ask_without(
        self, engine: RecallingInference, number: int, answer: str, shown: Sequence[Stretch]
    ) -> None:
        """Take its evidence away, and, by itself, as much of something else."""
        one = self.asked[number]
        rng = random.Random(f"something else {self.seed} {number}")
        elsewhere = [
            Stretch(start, start + (stretch.last - stretch.first))
            for stretch in shown
            if (start := _start_elsewhere(rng, shown, stretch, one.now)) is not None
        ]
        for name, stretches in (("evidence", shown), ("as much else", elsewhere)):
            with without(engine, stretches):
                told, _ = engine.ask(one.question.text, MAX_NEW_TOKENS)
            self.taken.append(
                {"number": number, "type": one.type, "band": one.band, "taken": name,
                 "changed": told != answer, "right": one.question.is_right(told)}
            )  # fmt: skip

    def _ask_of_the_present(self, engine: RecallingInference, grid: int) -> None:
        """Plainly and by choices, with a history and without."""
        now = grid_stamps(grid)[-1]
        first = max(0.0, now - _PERCEIVED)
        stamps = [first + STEP * n for n in range(int((now - first) / STEP) + 1)]
        story = [s for s in self.world.sightings(now) if s.end > first]
        past = about.History(story, stamps)
        rng = random.Random(f"present {self.seed} {grid}")
        for type_ in PERCEPTION:
            question = about.ask(rng, past, type_)
            if question is None:
                continue
            plain, choices = self._both_ways(engine, question)
            for how, row in (("plain", plain), ("choices", choices)):
                self.seen.append({"type": type_, "asked": how, "now": now, **row})

    def _both_ways(
        self, engine: RecallingInference, question: Question
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Right with the history and without, whether they are the same, tokens fetched."""
        told, metrics = engine.ask(question.text, MAX_NEW_TOKENS)
        alone, _ = engine.ask(question.text, MAX_NEW_TOKENS, history="never")
        if not metrics.fetched_tokens:
            self.latencies["present"].append(metrics.latency)
        plain = {
            "history": question.is_right(told), "streaming": question.is_right(alone),
            "same": told == alone, "fetched": metrics.fetched_tokens,
        }  # fmt: skip
        choice, chosen = engine.ask_choice(question.text, question.choices)
        other, scored = engine.ask_choice(question.text, question.choices, history="never")
        choices = {
            "history": choice == question.answer, "streaming": other == question.answer,
            "same": chosen.scores == scored.scores, "fetched": chosen.fetched_tokens,
        }  # fmt: skip
        return plain, choices

    def _note(
        self, number: int, memory: str, answer: str, newest: float | None, **more: Any
    ) -> None:
        """A row; "how long ago" is right by the stamp of what is named, where a memory names it."""
        one = self.asked[number]
        told = right = one.question.is_right(answer)
        by_stamp = memory in ("history", "mean_keys", "other_question")
        if one.type == "left_ago" and one.band != NEVER and by_stamp:
            right = newest is not None and abs(newest - one.evidence[-1].last) <= WITHIN
        self.rows.append(
            {"number": number, "type": one.type, "band": one.band, "age": one.age, "now": one.now,
             "memory": memory, "right": right, "told": told, "answer": answer,
             "truth": one.question.answer, **more}
        )  # fmt: skip

    # -- controls ----------------------------------------------------------------------------

    def _other(self, number: int) -> Asked | None:
        """Another question of its type, about something else."""
        question = self.asked[number]
        others = [
            one
            for one in self.asked
            if one.type == question.type and one.things
            and not set(one.things) & set(question.things)
        ]  # fmt: skip
        return random.Random(f"other {self.seed} {number}").choice(others) if others else None

    def _newest(self, found: Sequence[EvidenceEpisode], one: Asked) -> list[EvidenceEpisode]:
        """The newest of those above the threshold: what would be shown for that question."""
        if not found:
            return []
        least = max(self.calibration.threshold, self.calibration.of_best * found[0].score)
        hits = [episode for episode in found if episode.score >= least]
        return sorted(hits, key=lambda episode: episode.start)[-1:]

    def _ask_controls(self) -> None:
        windows = Windows(self.model.network, self.model.processor, torch.cat(self.features))
        by_mean = _mean_key_scores(windows, self.asked)
        plans = [
            (number, one)
            for number in range(len(self.asked))
            for one in self._controls(number, by_mean[number])
        ]
        looks = [Look(one.grids, self.asked[number].question.text) for number, one in plans]
        for (number, one), answer in zip(plans, windows.answers(looks), strict=True):
            self._note(number, one.memory, answer, one.newest)

    def _controls(self, number: int, by_mean: np.ndarray) -> Iterator[Named]:
        """What each control reads for a question."""
        one = self.asked[number]
        now = int(one.now)
        present = set(range(max(0, now - PRESENT + 1), now + 1))
        rng = random.Random(f"controls {self.seed} {number}")

        def read(memory: str, grids: Sequence[int], newest: float | None = None) -> Named:
            return Named(memory, sorted({*grids, *present}), newest)

        yield read("last_4", [])
        count = min(SPREAD, now + 1)
        yield read("random", rng.sample(range(now + 1), count))
        yield read("uniform", np.linspace(0, now, count).round().astype(int).tolist())
        best = np.argsort(-by_mean[: now + 1], kind="stable")[:count].tolist()
        yield read("mean_keys", best, grid_stamps(max(best))[-1])
        if number in self.strays:
            episodes = self.strays[number]
            stray = [n for e in episodes for n in self._around(Stretch(e.start, e.end), one)]
            yield read("other_question", stray, episodes[-1].end if episodes else None)
        if one.needed or one.band == NEVER:
            yield read("oracle", [n for s in one.needed for n in _grids(s, MARGIN, MARGIN, now)])

    def _around(self, stretch: Stretch, one: Asked) -> list[int]:
        before = NEIGHBOUR if one.type == "before" else MARGIN
        after = NEIGHBOUR if one.type == "after" else MARGIN
        return _grids(stretch, before, after, int(one.now))


def names_evidence(named: Sequence[EvidenceEpisode], one: Asked) -> bool:
    """Whether each stretch of evidence meets a named episode; none is named where there is none."""
    if not one.evidence:
        return not named
    return all(
        any(e.start <= stretch.last and stretch.first <= e.end for e in named)
        for stretch in one.evidence
    )


@contextmanager
def without(engine: RecallingInference, stretches: Sequence[Stretch]) -> Iterator[None]:
    """Within it the engine finds nothing of these times, two grids around them included.

    What its index finds is left out where it comes back from the search: the index and the engine
    are as they were before and after.
    """
    index = engine.index
    wide = MARGIN * 2 * STEP

    class Masked:
        def __getattr__(self, name: str) -> Any:
            return getattr(index, name)

        def search(self, *arguments: Any, **options: Any) -> Any:
            found = index.search(*arguments, **options)
            left = np.ones(len(found.serials), bool)
            for first, last in stretches:
                stamps = found.stamps
                left &= (stamps[:, 1] < first - wide) | (stamps[:, 0] > last + wide)
            places = torch.from_numpy(np.flatnonzero(left)).to(found.scores.device)
            return type(found)(
                found.serials[left], found.spans[left], found.stamps[left],
                found.left_out[left], found.scores[:, places],
            )  # fmt: skip

    masked: Any = Masked()
    engine.index = masked
    try:
        yield
    finally:
        engine.index = index


def _start_elsewhere(
    rng: random.Random, shown: Sequence[Stretch], stretch: Stretch, now: float
) -> float | None:
    """Where as long a stretch may begin that shows nothing of it."""
    length, wide = stretch.last - stretch.first, 2 * MARGIN * 2 * STEP
    for _ in range(50):
        start = rng.uniform(0.0, max(0.0, now - length))
        if all(start + length < one.first - wide or start > one.last + wide for one in shown):
            return start
    return None


def _grids(stretch: Stretch, before: int, after: int, now: int) -> list[int]:
    """Numbers of the grids that show some of a stretch, widened, up to the newest."""
    return list(range(max(0, int(stretch.first) - before), min(now, int(stretch.last) + after) + 1))


def _grid_tokens(model: ModelUnderTest, pictures: np.ndarray) -> int:
    """Vision tokens of a grid."""
    frames = model.processor.frame_processor(model.device, model.network.dtype)
    _, rows, columns = frames(list(pictures)).grid_thw
    return rows * columns // model.processor.image_settings.merge_size**2


def _mean_key_scores(windows: Windows, asked: Sequence[Asked]) -> np.ndarray:
    """``[questions, grids]``: cosine of mean keys and mean queries over all layers and heads.

    Less the mean of the keys of all grids. What was seen after a question is there, too.
    """
    query_heads, kv_heads = every_head(windows.model)
    groups = len(next(iter(query_heads.values()))) // len(next(iter(kv_heads.values())))
    total, cuda = len(windows.features), windows.features.is_cuda
    means = []
    for start in range(0, total, _MEAN_KEYS_PART):
        first = max(0, start - _CONTEXT)
        some = Windows(
            windows.model, windows.processor, windows.features[first : start + _MEAN_KEYS_PART]
        )
        keys = some.keys(kv_heads, _CONTEXT, batch=64 if cuda else 4)
        each = [mine[:, start - first :].mean(2).repeat_interleave(groups, 0)
                for mine in keys.values()]  # fmt: skip
        means.append(torch.cat(each).float())  # [layers * heads, grids, head_dim]
    keys_of = torch.cat(means, 1)
    keys_of = keys_of - keys_of.mean(1, keepdim=True)
    looks = [Look(range(max(0, int(one.now) - 15), int(one.now) + 1), one.question.text)
             for one in asked]  # fmt: skip
    queries = []
    for one, read in zip(asked, windows.queries(looks, query_heads), strict=True):
        words = windows.words(one.question.text)
        queries.append(torch.cat([mine[:, words].mean(1) for mine in read.values()]).float())
    normal = torch.nn.functional.normalize
    flat = normal(keys_of.transpose(0, 1).flatten(1), dim=1)
    scores = normal(torch.stack(queries).flatten(1), dim=1) @ flat.T
    return scores.cpu().numpy()


def _rounded(seconds: Sequence[float]) -> list[float]:
    return [round(one, 5) for one in seconds]
