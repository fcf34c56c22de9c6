# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Whether a question finds, hours later, the grids that answer it: the trial of history.

    python bench/history_trial.py calibrate --out trial          # heads and threshold, on 3 worlds
    python bench/history_trial.py measure --out trial            # 16 others; a file a world
    python bench/history_trial.py report --out trial             # the table, and rows as JSON
    python bench/history_trial.py all --out trial --hours 0.17 --worlds 2 --once 6 --repeated 1

Worlds with rare things (`stream_vlm_ros.world.rare`), two frames a second, one grid a second.
Keys and queries are taken before they are rotated. A grid's score by a head is the maximum over
its tokens of the products with a query, less the mean over all grids so far. The query is that of
the prompt's *last* token, where the answer begins, the mean over the question's own *words*, or
over the *end* of the prompt behind them: calibration says which, for each head, by average
precision. Several heads are added, each in units of its standard deviation on the worlds for
calibration (``--scale own``: over this question's grids), weighted by its precision there. Grids
above a threshold, and above a share of the best score, are joined to episodes; the one that the
question wants is read with the last four frames, by the model, as one short stream of just these
grids. *Second look*: the few best episodes are read one by one, the newest first, until the model
says something else than that it has not seen it.

``--keys windows`` (the default) takes keys from windows of 32 grids, ``--keys streamed`` from the
engine as it streams with the memory it has by default, which also answers by that memory alone.
What is done is not done again: a call that was cut short goes on where it was. Worlds may be shared
out over processes: ``--first 3 --worlds 1`` measures the fourth alone.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import random
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import transformers

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.engine.attention.base import Readout
from stream_vlm_ros.experiments.intervals import wilson
from stream_vlm_ros.experiments.windows import Look, Windows, encode, every_head
from stream_vlm_ros.history.calibration import PLACES, CalibratedHead, queries_at
from stream_vlm_ros.history.episodes import Episode, best_score, hits_of, join_hits
from stream_vlm_ros.history.limits import (
    average_precision,
    best_episodes,
    wanted_episodes,
)
from stream_vlm_ros.history.limits import names_evidence as names_stretches
from stream_vlm_ros.machine import measured_on
from stream_vlm_ros.world.evaluate import MODEL, load
from stream_vlm_ros.world.questions import NOT_SEEN
from stream_vlm_ros.world.rare import (
    AGES,
    CALIBRATION,
    COUNTED,
    FRAMES,
    HOLISTIC,
    MEASURING,
    NEVER,
    RECALL,
    STEP,
    Asked,
    RareWorld,
    exam,
    grid_stamps,
)

# Which episode a question wants, and how many grids before and after its hits.
WANTED = {
    "was_there": "best",
    "earlier": "all",
    "later": "all",
    "how_many": "all",
    "first": "start",
}
REACH = {"before": (14, 2), "after": (2, 14)}
MARGIN = (2, 2)
PRESENT = 2  # grids: the last 4 frames
START = 12  # grids from the beginning, for what came first
MAX_GRIDS = 40  # of episodes, read for one answer
SPREAD = 20  # grids of the controls that are drawn or spread evenly, and of mean keys
SHARES = (0.0, 0.7, 0.75, 0.8, 0.85, 0.9)  # of the best score, below which nothing is a hit
STREAMED_GRIDS = 70  # that the default memory holds
HEADS = (1, 3, 6)
SPANS = (1, 2, 4, 8)  # one grid in so many kept
THRESHOLDS = np.round(np.arange(2.0, 8.0, 0.1), 2)
BY_STAMP = (
    "history",
    "second_look",
    "newest_hit",
    "mean_keys",
    "other_question",
)  # how they say "how long ago"
MEMORIES = (
    "history", "second_look", "newest_hit", "streaming", "random", "uniform", "mean_keys",
    "other_question", "oracle", "last_4",
)  # fmt: skip


# -- a world, its keys and queries ---------------------------------------------------------------


def make_world(seed: int, options: argparse.Namespace) -> RareWorld:
    return RareWorld(
        seed, hours=options.hours, once=options.once, repeated=options.repeated, never=8
    )


_drawn: dict[tuple, RareWorld] = {}


def draw(seed: int, options: argparse.Namespace, numbers: range) -> np.ndarray:
    """The pictures of some grids, ``[grids, frames, height, width, 3]``, in a process of a pool."""
    key = (seed, options.hours, options.once, options.repeated)
    if key not in _drawn:
        _drawn.clear()
        _drawn[key] = make_world(seed, options)
    return np.stack([_drawn[key].grid(number) for number in numbers])


def pictures(
    seed: int, options: argparse.Namespace, count: int, pool: ProcessPoolExecutor, step: int = 240
) -> Iterator[np.ndarray]:
    """All grids' pictures in order, a few ahead of the one that is used."""
    parts = [range(at, min(count, at + step)) for at in range(0, count, step)]
    ahead, waiting = 2 * options.jobs + 2, []
    for part in parts:
        waiting.append(pool.submit(draw, seed, options, part))
        if len(waiting) > ahead:
            yield waiting.pop(0).result()
    for one in waiting:
        yield one.result()


class Footage(NamedTuple):
    """A streamed world.

    Attributes:
        keys: not rotated, ``[kv_heads, grids, tokens, head_dim]`` by layer.
        queries: of each question's prompt, not rotated, ``[heads, prompt, head_dim]`` by layer.
        told: the answers of the streaming engine alone; none where it did not stream.
    """

    seed: int
    world: RareWorld
    asked: list[Asked]
    windows: Windows
    keys: dict[int, torch.Tensor]
    queries: list[dict[int, torch.Tensor]]
    told: list[str]


def footage(seed: int, options: argparse.Namespace, pool: ProcessPoolExecutor) -> Footage:
    """Draw a world, and take its keys and its questions' queries."""
    model, processor = load(options.model, options.device)
    world = make_world(seed, options)
    asked = exam(world)
    if options.questions:
        picked = random.Random(f"some {seed}").sample(range(len(asked)), len(asked))
        asked = [asked[k] for k in sorted(picked[: options.questions])]
    query_heads, kv_heads = every_head(model)
    shown = pictures(seed, options, world.grids, pool)
    if options.keys == "streamed":
        kept = list(shown)
        windows = Windows(model, processor, encode(model, processor, kept))
        keys, queries, told = stream(model, processor, kept, asked)
        return Footage(seed, world, asked, windows, keys, queries, told)
    windows = Windows(model, processor, encode(model, processor, shown))
    keys = windows.keys(kv_heads, batch=64 if model.device.type == "cuda" else 4)
    looks = [Look(_last(int(one.now), 16), one.question.text) for one in asked]
    return Footage(seed, world, asked, windows, keys, windows.queries(looks, query_heads), [])


def _last(now: int, count: int) -> range:
    """The numbers of the last grids."""
    return range(max(0, now - count + 1), now + 1)


@contextmanager
def read_out(model: Any, readouts: list[Readout]) -> Iterator[None]:
    """Within it every pass of the language model adds what it reads to ``readouts``."""
    query_heads, kv_heads = every_head(model)
    forward = model.stream_forward

    def reading(
        embeddings: Any, positions: Any, fork: Any, functions: Any = None, readout: Any = None
    ) -> Any:
        readouts.append(Readout(query_heads, kv_heads))
        return forward(embeddings, positions, fork, functions, readouts[-1])

    model.stream_forward = reading
    try:
        yield
    finally:
        del model.stream_forward


def stream(
    model: Any, processor: Any, shown: Iterable[np.ndarray], asked: Sequence[Asked]
) -> tuple[dict[int, torch.Tensor], list[dict[int, torch.Tensor]], list[str]]:
    """Keys, queries and answers of the engine with its default memory, in chunks of 4 frames."""
    config = EvictionConfig.novelty(20 * STREAMED_GRIDS + 32)
    engine = VideoStreamingInference(
        model, processor, model.device, config, compile=False, question_path="eager"
    )
    due: dict[int, list[int]] = defaultdict(list)
    for number, one in enumerate(asked):
        due[int(one.now)].append(number)
    keys: dict[int, list[torch.Tensor]] = defaultdict(list)
    queries: list[dict[int, torch.Tensor]] = [{} for _ in asked]
    told = [""] * len(asked)
    readouts: list[Readout] = []
    waiting: list[np.ndarray] = []
    at = 0

    def append(grids: list[np.ndarray], newest: int) -> None:
        stamps = [t for g in range(newest - len(grids) + 1, newest + 1) for t in grid_stamps(g)]
        readouts.clear()
        done = engine.append_video_chunk([p for grid in grids for p in grid], timestamps=stamps)
        cell = done.grid[1] * done.grid[2]
        for layer in range(model.kv_shape.layers):
            read = readouts[0].keys(layer)[:, -len(grids) * cell :]
            keys[layer].append(read.unflatten(1, (len(grids), cell)))

    with read_out(model, readouts):
        for part in shown:
            for grid in part:
                waiting.append(grid)
                if len(waiting) == 2 or at in due:
                    append(waiting, at)
                    waiting = []
                for number in due.get(at, ()):
                    text = asked[number].question.text
                    readouts.clear()
                    answer, _ = engine.ask(text, max_new_tokens=24)
                    told[number] = answer.strip()
                    for layer in range(model.kv_shape.layers):
                        queries[number][layer] = readouts[0].queries(layer)
                at += 1
        if waiting:
            append(waiting, at - 1)
    return {layer: torch.cat(parts, 1) for layer, parts in keys.items()}, queries, told


# -- scores --------------------------------------------------------------------------------------


def head_scores(one: Footage, layer: int, head: int) -> torch.Tensor:
    """``[places, questions, grids]``: scores less their mean up to the question; 0 from there on.

    Places: those of `PLACES`.
    """
    keys = one.keys[layer]
    groups = one.queries[0][layer].shape[0] // len(keys)
    mine = keys[head // groups].flatten(0, 1)  # [grids * tokens, head_dim]
    rows: list[torch.Tensor] = []
    some: list[torch.Tensor] = []
    tokens, room = 0, 1_000_000_000 if mine.is_cuda else 20_000_000
    for number, queries in enumerate(one.queries):
        some.append(queries[layer][head])
        tokens += len(some[-1])
        if tokens * len(mine) >= room or number == len(one.queries) - 1:
            found = (mine @ torch.cat(some).T).unflatten(0, (keys.shape[1], -1)).amax(1)
            for part in found.split(list(map(len, some)), dim=1):  # [grids, prompt]
                words = one.windows.words(one.asked[len(rows)].question.text)
                places = [part[:, queries_at(place, words)].mean(1) for place in PLACES]
                rows.append(torch.stack(places))
            some, tokens = [], 0
    return centred(torch.stack(rows, dim=1), one)


def centred(scores: torch.Tensor, one: Footage) -> torch.Tensor:
    """Scores ``[..., questions, grids]`` less their mean up to each question; 0 from there on."""
    there = reached(one, scores.device)
    mean = (scores * there).sum(-1, keepdim=True) / there.sum(-1, keepdim=True)
    return (scores - mean) * there


def reached(one: Footage, device: torch.device | str = "cpu") -> torch.Tensor:
    """``[questions, grids]``: which there are when the question is asked."""
    counts = torch.tensor([int(q.now) + 1 for q in one.asked], device=device)[:, None]
    return torch.arange(one.world.grids, device=device) < counts


def own_scale(scores: torch.Tensor, one: Footage) -> torch.Tensor:
    """Centred scores in their own standard deviations, each question's over its grids."""
    counts = reached(one, scores.device).sum(-1, keepdim=True)
    return scores / (scores.square().sum(-1, keepdim=True) / counts).sqrt()


def mean_key_scores(one: Footage) -> torch.Tensor:
    """``[questions, grids]``: cosine of mean keys and mean queries over all layers and heads."""
    keys, queries = [], []
    for layer, mine in one.keys.items():
        groups = one.queries[0][layer].shape[0] // len(mine)
        mean = mine.mean(2)
        mean = (mean - mean.mean(1, keepdim=True)).repeat_interleave(groups, 0)
        keys.append(mean)
        words = [one.windows.words(q.question.text) for q in one.asked]
        pairs = zip(one.queries, words, strict=True)
        queries.append(torch.stack([q[layer][:, where].mean(1) for q, where in pairs]))
    flat = torch.cat(keys).transpose(0, 1).flatten(1)  # [grids, layers * heads * head_dim]
    asked = torch.cat(queries, 1).flatten(1)
    normal = torch.nn.functional.normalize
    scores = centred(normal(asked, dim=1) @ normal(flat, dim=1).T, one)
    return scores.masked_fill(~reached(one, scores.device), -torch.inf)


def relevant(one: Footage) -> torch.Tensor:
    """``[questions, grids]``: which show what is asked about, up to the question."""
    found = torch.zeros(len(one.asked), one.world.grids, dtype=torch.bool)
    for row, question in zip(found, one.asked, strict=True):
        for name in question.things:
            for stretch in one.world.shown(name, question.now):
                row[int(stretch.first) : int(stretch.last) + 1] = True
    return found


def combined(one: Footage, heads: Sequence[CalibratedHead], scale: str = "fixed") -> torch.Tensor:
    """``[questions, grids]``: the heads' scores added; -inf from each question on."""
    total: Any = 0.0
    for head in heads:
        scores = head_scores(one, head.layer, head.head)[PLACES.index(head.place)]
        scores = scores / head.spread if scale == "fixed" else own_scale(scores, one)
        total = total + head.precision * scores
    total = total / sum(head.precision for head in heads)
    total = total if scale == "fixed" else own_scale(total, one)
    return total.masked_fill(~reached(one, total.device), -torch.inf)


def calibrate(options: argparse.Namespace) -> None:
    """Rank all heads on the worlds for calibration, and choose the threshold."""
    target = options.out / "calibration.json"
    if target.exists():
        print(f"{target} is there already")
        return
    began = time.time()
    with _pool(options) as pool:
        films = [footage(seed, options, pool) for seed in CALIBRATION[: options.calibrations]]
    found: dict[str, list[float]] = defaultdict(list)
    kinds: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))

    def note(name: str, film: Footage, scores: torch.Tensor, truth: torch.Tensor) -> None:
        rows = [k for k, q in enumerate(film.asked) if q.type in RECALL and q.band != NEVER]
        values = average_precision(scores[rows], truth[rows].to(scores.device)).tolist()
        found[name] += values
        for row, value in zip(rows, values, strict=True):
            kinds[name][film.asked[row].type].append(value)

    truths = [relevant(film) for film in films]
    heads, _ = every_head(films[0].windows.model)
    squares: dict[str, float] = defaultdict(float)
    grids = float(sum(reached(film).sum() for film in films))
    for film, truth in zip(films, truths, strict=True):
        note("mean keys", film, mean_key_scores(film), truth)
        for layer in heads:
            for head in heads[layer]:
                scores = head_scores(film, layer, head)
                there = reached(film, scores.device)
                for place, part in zip(PLACES, scores, strict=True):
                    squares[f"{layer} {head} {place}"] += float(part.square().sum())
                    part = part.masked_fill(~there, -torch.inf)
                    note(f"{layer} {head} {place}", film, part, truth)
    names = [name for name in found if name != "mean keys"]
    names.sort(key=lambda name: -float(np.mean(found[name])))
    ranked = []
    for name in names:
        layer, head, place = name.split()
        precision, spread = float(np.mean(found[name])), math.sqrt(squares[name] / grids)
        head = int(layer), int(head), place, round(precision, 4), round(spread, 4)
        ranked.append(CalibratedHead(*head))
    sets = {}
    for count, scale in (*((count, "fixed") for count in HEADS), (3, "own")):
        # For each share of the best score and each threshold: true, false and missed hits, right
        # episodes and those asked for; and whether the best few have the evidence among them.
        shares = SHARES if scale == "fixed" and count > 1 else SHARES[:1]
        counts, among = np.zeros((len(shares), len(THRESHOLDS), 5)), np.zeros(len(THRESHOLDS))
        for film, truth in zip(films, truths, strict=True):
            scores = combined(film, ranked[:count], scale)
            if scale == "fixed":
                note(f"{count} heads", film, scores, truth)
            scores = scores.cpu()
            counts += np.stack([threshold_counts(film, scores, truth, one) for one in shares])
            among += evidence_among_best(film, scores.numpy())
        hits, (right, asked) = counts[0], np.moveaxis(counts, -1, 0)[3:]
        f1 = 2 * hits[:, 0] / (2 * hits[:, 0] + hits[:, 1] + hits[:, 2])
        share = right / asked
        best = int(f1.argmax())
        surest = np.unravel_index(share.argmax(), share.shape)
        found_by = {
            "f1": (best, 0, share[0, best]),
            "newest": (int(share[0].argmax()), 0, share[0].max()),
            "episodes": (int(surest[1]), int(surest[0]), share.max()),
        }
        sets[f"{count} {scale}"] = {
            name: {
                "threshold": float(THRESHOLDS[at]), "of_best": shares[part],
                "f1": round(float(f1[at]), 4), "episodes_right": round(float(value), 4),
            }
            for name, (at, part, value) in found_by.items()
        }  # fmt: skip
        # The highest threshold at which no more is lost than at the lowest.
        enough = int(np.flatnonzero(among >= among.max())[-1])
        sets[f"{count} {scale}"]["looks"] = {
            "threshold": float(THRESHOLDS[enough]), "among": float(among[enough]),
        }  # fmt: skip
    kept = sets[f"{options.heads} fixed"]["episodes"]
    thinned = {}
    for span in SPANS:
        counts, precisions = np.zeros((len(THRESHOLDS), 5)), []
        for film, truth in zip(films, truths, strict=True):
            scores = thin(combined(film, ranked[: options.heads]).cpu(), span)
            rows = [k for k, q in enumerate(film.asked) if q.type in RECALL and q.band != NEVER]
            precisions += average_precision(scores[rows], truth[rows]).tolist()
            counts += threshold_counts(film, scores, truth, kept["of_best"])
        right = counts[:, 3] / counts[:, 4]
        thinned[str(span)] = {
            "average_precision": round(float(np.mean(precisions)), 4),
            "episodes_right": round(
                float(right[np.abs(THRESHOLDS - kept["threshold"]).argmin()]), 4
            ),
            "at_its_best_threshold": round(float(right.max()), 4),
        }
    summary = {
        "keys": options.keys,
        "seeds": list(CALIBRATION[: options.calibrations]),
        "hours": options.hours,
        "questions": len(found["mean keys"]),
        "average_precision": {name: round(float(np.mean(v)), 4) for name, v in found.items()},
        "by_type": {
            name: {kind: round(float(np.mean(v)), 4) for kind, v in kinds[name].items()}
            for name in ["mean keys", names[0], *(f"{count} heads" for count in HEADS)]
        },
        "heads": ranked,
        "sets": sets,
        "one_grid_in_so_many_kept": thinned,
        "seconds": round(time.time() - began, 1),
        **measured_on(torch, transformers),
    }
    target.write_text(json.dumps(summary, indent=1) + "\n")
    shown = [*names[:6], "mean keys", *(f"{count} heads" for count in HEADS)]
    for name in shown:
        print(f"{name:12} average precision {summary['average_precision'][name]:.3f}")
    for name, one in sets.items():
        print(f"heads and scale {name}: {one}")
    for span, one in thinned.items():
        print(f"one grid in {span} kept: {one}")


def thin(scores: torch.Tensor, span: int) -> torch.Tensor:
    """Scores where one grid in ``span`` is kept and stands for those that follow it.

    What an index gives that is ``span`` times as large as its bytes allow (`history.index`).
    """
    there = torch.isfinite(scores)
    stood_for = torch.arange(scores.shape[1]) // span * span
    return scores[:, stood_for].masked_fill(~there, -torch.inf)


def evidence_among_best(film: Footage, scores: np.ndarray) -> np.ndarray:
    """For each of `THRESHOLDS`: how many have all evidence among their best `LOOKS` episodes."""
    counts = np.zeros(len(THRESHOLDS))
    for question, row in zip(film.asked, scores, strict=True):
        if question.type in RECALL and question.evidence:
            for k, threshold in enumerate(THRESHOLDS):
                best = best_episodes(row, float(threshold))
                counts[k] += names_evidence(best, question)
    return counts


def threshold_counts(
    film: Footage, scores: torch.Tensor, truth: torch.Tensor, of_best: float
) -> np.ndarray:
    """For each of `THRESHOLDS`: grids rightly, wrongly and not hit, right episodes, questions."""
    counts = np.zeros((len(THRESHOLDS), 5))
    for question, row, real in zip(film.asked, scores.numpy(), truth.numpy(), strict=True):
        if question.type not in RECALL:
            continue
        above = np.flatnonzero(row >= THRESHOLDS[0])
        values, right = row[above], real[above]
        highest = values.max(initial=0.0) * of_best
        for k, threshold in enumerate(THRESHOLDS):
            over = values >= max(threshold, highest)
            both = int(right[over].sum())
            counts[k, :3] += both, int(over.sum()) - both, int(real.sum()) - both
            if question.type != "was_there" or question.band == NEVER:
                named = choose(above[over].tolist(), row, question.type)
                counts[k, 3:] += names_evidence(named, question), 1
    return counts


# -- which grids are read ------------------------------------------------------------------------


def choose(hits: Sequence[int], scores: np.ndarray, type_: str) -> list[Episode]:
    """The episodes that a question of a type is answered from, the oldest first."""
    wanted = WANTED.get(type_, "newest")
    if wanted == "start":
        return [Episode(0, START - 1)]
    if wanted != "all":
        return wanted_episodes(hits, scores, wanted)
    taken: list[Episode] = []
    for one in sorted(join_hits(hits), key=lambda one: -best_score(one, scores)):
        if sum(e.size + sum(MARGIN) for e in [*taken, one]) <= MAX_GRIDS:
            taken.append(one)
    return sorted(taken)


def names_evidence(named: Sequence[Episode], question: Asked) -> bool:
    """Whether each stretch of evidence meets a named episode; none is named where there is none."""
    count = 1 + max((one.last for one in named), default=0)
    stamps = STEP * np.arange(FRAMES * count).reshape(count, FRAMES)  # as grid_stamps
    return names_stretches(named, question.evidence, stamps)


def read_with_present(
    named: Sequence[Episode], type_: str, now: int, end: int | None = None
) -> list[int]:
    """The numbers of the grids that are read: the episodes, widened, and the last ones."""
    grids: list[int] = []
    for one in named:
        grids += one.widened(*REACH.get(type_, MARGIN), now + 1)
    return sorted({*grids[-MAX_GRIDS:], *_last(now, PRESENT)})


# -- measuring -----------------------------------------------------------------------------------


def measure(options: argparse.Namespace) -> None:
    """Answer the exam of the worlds for measuring by each memory; a file of rows a world."""
    calibration = json.loads((options.out / "calibration.json").read_text())
    with _pool(options) as pool:
        for seed in MEASURING[options.first : options.first + options.worlds]:
            target = options.out / f"world-{options.keys}-{seed}.json"
            if target.exists():
                continue
            began = time.time()
            film = footage(seed, options, pool)
            result = measure_world(film, calibration, options)
            result["seconds"] = round(time.time() - began, 1)
            part = target.with_suffix(".part")
            part.write_text(json.dumps(result) + "\n")
            part.rename(target)
            print(f"{target.name}: {len(film.asked)} questions, {result['seconds']} s", flush=True)


class Limits(NamedTuple):
    """What is a hit: so high a score, and such a share of the best; what is one for others.

    Attributes:
        looks: the threshold of what the second look reads.
        newest: that of the newest hit whatever the best one is.
    """

    threshold: float
    of_best: float
    looks: float
    newest: float


def measure_world(
    film: Footage, calibration: dict[str, Any], options: argparse.Namespace
) -> dict[str, Any]:
    """Average precisions, and a row for each question and memory."""
    heads = [CalibratedHead(*one) for one in calibration["heads"]]
    sets = calibration["sets"][f"{options.heads} {options.scale}"]
    chosen = sets[options.by]
    limits = Limits(
        options.threshold or chosen["threshold"],
        chosen["of_best"],
        *(sets[name]["threshold"] for name in ("looks", "newest")),
    )
    scores = combined(film, heads[: options.heads], options.scale).cpu()
    by_mean = mean_key_scores(film).cpu()
    truth = relevant(film)
    rows = [k for k, q in enumerate(film.asked) if q.type in RECALL and q.band != NEVER]
    precision = {
        "mean keys": average_precision(by_mean[rows], truth[rows]).tolist(),
        f"{options.heads} heads": average_precision(scores[rows], truth[rows]).tolist(),
    }
    for count in HEADS:
        if count != options.heads:
            other = combined(film, heads[:count], options.scale).cpu()
            name = f"{count} heads"
            precision[name] = average_precision(other[rows], truth[rows]).tolist()
    plans: list[tuple[int, str, list[Episode], list[int]]] = []
    for number in range(len(film.asked)):
        for memory, named, grids in memories(film, number, scores.numpy(), by_mean.numpy(), limits):
            plans.append((number, memory, named, grids))
    said = film.windows.answers([Look(g, film.asked[n].question.text) for n, _, _, g in plans])
    found = []
    looks: dict[int, list[tuple[list[Episode], str]]] = defaultdict(list)
    for (number, memory, named, _), answer in zip(plans, said, strict=True):
        if memory == "second_look":
            looks[number].append((named, answer))
        else:
            found.append(_row(film, number, memory, named, answer))
    for number, answers in looks.items():
        # The newest in which the thing is seen; if there is none, what the last of them says.
        no = "no" if film.asked[number].type == "was_there" else NOT_SEEN
        taken = next((pair for pair in answers if pair[1] != no), ([], answers[-1][1]))
        found.append(_row(film, number, "second_look", *taken))
    for number, answer in enumerate(film.told):
        found.append(_row(film, number, "streaming", [], answer))
    return {
        "seed": film.seed, "keys": options.keys, "hours": options.hours, "limits": limits._asdict(),
        "scale": options.scale, "by": options.by,
        "heads": calibration["heads"][: options.heads], "average_precision": precision,
        "grids_read": round(float(np.mean([len(g) for _, m, _, g in plans if m == "history"])), 2),
        "rows": found,
    }  # fmt: skip


def memories(
    film: Footage, number: int, scores: np.ndarray, by_mean: np.ndarray, limits: Limits
) -> Iterator[tuple[str, list[Episode], list[int]]]:
    """For each memory the episodes that it names, and the grids that it shows."""
    question = film.asked[number]
    now, type_ = int(question.now), question.type
    rng = random.Random(f"controls {film.seed} {number}")

    def read(named: Sequence[Episode]) -> list[int]:
        return read_with_present(named, type_, now)

    def hits(row: np.ndarray) -> list[int]:
        return hits_of(row, limits.threshold, limits.of_best)

    named = choose(hits(scores[number]), scores[number], type_)
    yield "history", named, read(named)
    newest = choose(hits_of(scores[number], limits.newest), scores[number], type_)
    yield "newest_hit", newest, read(newest)
    if WANTED.get(type_) in ("start", "all"):
        yield "second_look", named, read(named)
    else:
        newest_first = [[one] for one in best_episodes(scores[number], limits.looks)]
        for one in newest_first or [[]]:
            yield "second_look", one, read(one)
    present = list(_last(now, PRESENT))
    yield "last_4", [], present
    count = min(SPREAD, now + 1)
    yield "random", [], sorted({*rng.sample(range(now + 1), count), *present})
    even = np.linspace(0, now, count).round().astype(int).tolist()
    yield "uniform", [], sorted({*even, *present})
    best = np.argsort(-by_mean[number], kind="stable")[:count].tolist()
    yield "mean_keys", join_hits(sorted(best))[-1:], sorted({*best, *present})
    others = [
        k
        for k, q in enumerate(film.asked)
        if q.type == type_ and q.things and not set(q.things) & set(question.things)
    ]
    if others:
        # As if the other question were asked now: its own scores, up to now.
        other = rng.choice(others)
        theirs = scores[other, : now + 1]
        stray = choose(hits(theirs), theirs, type_)
        yield "other_question", stray, read(stray)
    if question.needed or question.band == NEVER:
        true = [Episode(int(one.first), int(one.last)) for one in question.needed]
        grids = [g for one in true for g in one.widened(*MARGIN, now + 1)]
        yield "oracle", true, sorted({*grids, *present})
    if type_ in ("where_left", "direction") and named and question.evidence:
        # Without what shows it; and without as much of something else.
        for memory, stretch in (
            ("taken_away", question.evidence[-1]),
            ("taken_else", (rng.uniform(0, now - 10), 0.0)),
        ):
            left = scores[number].copy()
            first = int(stretch[0])
            length = int(question.evidence[-1].last) - int(question.evidence[-1].first)
            left[max(0, first - 2) : first + length + 3] = -np.inf
            if memory == "taken_away":
                for shown in film.world.shown(question.things[0], question.now):
                    left[max(0, int(shown.first) - 2) : int(shown.last) + 3] = -np.inf
            rest = choose(hits(left), left, type_)
            yield memory, rest, read(rest)


def _row(
    film: Footage, number: int, memory: str, named: Sequence[Episode], answer: str
) -> dict[str, Any]:
    question = film.asked[number]
    told = question.question.is_right(answer)
    right = told
    if question.type == "left_ago" and question.band != NEVER and memory in BY_STAMP:
        last = grid_stamps(named[-1].last)[-1] if named else -math.inf
        right = abs(last - question.evidence[-1].last) <= 2.0
    return {
        "type": question.type, "band": question.band, "age": question.age, "now": question.now,
        "memory": memory, "right": bool(right), "told": told, "answer": answer,
        "truth": question.question.answer, "evidence": names_evidence(named, question),
        "number": number,
    }  # fmt: skip


# -- the report ----------------------------------------------------------------------------------


def report(options: argparse.Namespace) -> None:
    """The table, and rows with their intervals, of all worlds that were measured so far."""
    calibration = json.loads((options.out / "calibration.json").read_text())
    files = sorted(options.out.glob(f"world-{options.keys}-*.json"))
    worlds = [json.loads(file.read_text()) for file in files]
    if not worlds:
        print(f"no world was measured yet with keys '{options.keys}'")
        return
    rows, told, evidence = [], [], []
    for type_ in (*RECALL, *COUNTED, *HOLISTIC):
        for band in (*AGES, NEVER, ""):
            for memory in MEMORIES:
                mine = [
                    row
                    for world in worlds
                    for row in world["rows"]
                    if (row["type"], row["band"], row["memory"]) == (type_, band, memory)
                ]
                if mine:
                    where = {"type": type_, "age": band or "all", "memory": memory}
                    rows.append(where | share(mine, "right"))
                    if type_ == "left_ago":
                        told.append(where | share(mine, "told"))
                    if memory in BY_STAMP:
                        evidence.append(where | share(mine, "evidence"))
    taken = {}
    for memory in ("taken_away", "taken_else"):
        changed, right, count = 0, 0, 0
        for world in worlds:
            before = {r["number"]: r for r in world["rows"] if r["memory"] == "history"}
            for row in world["rows"]:
                if row["memory"] == memory and before[row["number"]]["told"]:
                    changed += row["answer"] != before[row["number"]]["answer"]
                    right += row["told"]
                    count += 1
        if count:
            taken[memory] = {
                "answers_changed": round(changed / count, 4),
                "still_right": round(right / count, 4),
                "asked": count,
            }
    names = worlds[0]["average_precision"]
    summary = {
        "keys": options.keys,
        "hours": worlds[0]["hours"],
        "seeds": [world["seed"] for world in worlds],
        "calibration_seeds": calibration["seeds"],
        "heads": worlds[0]["heads"],
        **{name: worlds[0][name] for name in ("limits", "scale", "by")},
        "average_precision": {
            name: round(
                float(np.mean([v for w in worlds for v in w["average_precision"][name]])), 4
            )
            for name in names
        },
        "grids_read": round(float(np.mean([world["grids_read"] for world in worlds])), 2),
        "evidence_taken": taken,
        "seconds_a_world": round(float(np.mean([world["seconds"] for world in worlds])), 1),
        "rows": rows,
        "left_ago_told_by_the_model": told,
        "true_episode_named": evidence,
        **measured_on(torch, transformers),
    }
    (options.out / f"report-{options.keys}.json").write_text(json.dumps(summary, indent=1) + "\n")
    print_table(summary)


def share(rows: Sequence[dict[str, Any]], what: str) -> dict[str, Any]:
    """How many are right, with the 95 % interval."""
    right = sum(row[what] for row in rows)
    low, high = wilson(right, len(rows))
    return {
        "right": round(right / len(rows), 4), "asked": len(rows), "low": round(low, 4),
        "high": round(high, 4),
    }  # fmt: skip


def print_table(summary: dict[str, Any]) -> None:
    """Per cent right by type, age and memory."""
    print(
        f"{len(summary['seeds'])} worlds of {summary['hours']:g} h, keys {summary['keys']}, heads "
        f"{[head[:3] for head in summary['heads']]}, limits {summary['limits']}, "
        f"{summary['grids_read']:g} grids read"
    )
    print("average precision:", summary["average_precision"])
    there = [m for m in MEMORIES if any(row["memory"] == m for row in summary["rows"])]
    print(f"{'':11}{'age':11}{'asked':>6}" + "".join(f"{m[:13]:>15}" for m in there))
    cells = {(r["type"], r["age"], r["memory"]): r for r in summary["rows"]}
    for type_, age in dict.fromkeys((r["type"], r["age"]) for r in summary["rows"]):
        line = f"{type_:11}{age:11}{cells[type_, age, 'history']['asked']:6}"
        for memory in there:
            one = cells.get((type_, age, memory))
            text = f"{100 * one['right']:.0f}" if one else "-"
            if one and memory in ("history", "oracle"):
                text += f" ({100 * one['low']:.0f}-{100 * one['high']:.0f})"
            line += f"{text:>15}"
        print(line)
    for title in ("left_ago_told_by_the_model", "true_episode_named"):
        print(title)
        for row in summary[title]:
            if row["memory"] in ("history", "second_look", "oracle"):
                print(
                    f"  {row['type']:11}{row['age']:11}{row['memory']:12}{100 * row['right']:5.0f}"
                    f" ({100 * row['low']:.0f}-{100 * row['high']:.0f}) of {row['asked']}"
                )
    print("evidence taken:", summary["evidence_taken"])


def _pool(options: argparse.Namespace) -> ProcessPoolExecutor:
    return ProcessPoolExecutor(options.jobs, multiprocessing.get_context("spawn"))


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parse.add_argument("section", choices=("calibrate", "measure", "report", "all"))
    parse.add_argument("--out", type=Path, required=True, help="folder of partial results")
    parse.add_argument("--model", type=Path, default=MODEL)
    parse.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parse.add_argument("--keys", choices=("windows", "streamed"), default="windows")
    parse.add_argument("--hours", type=float, default=6.0)
    parse.add_argument("--once", type=int, default=20, help="things of a world that come once")
    parse.add_argument("--repeated", type=int, default=4)
    parse.add_argument("--calibrations", type=int, default=len(CALIBRATION), help="worlds")
    parse.add_argument("--worlds", type=int, default=len(MEASURING))
    parse.add_argument("--first", type=int, default=0, help="skip so many worlds")
    parse.add_argument("--questions", type=int, default=0, help="of a world at most; 0: all")
    parse.add_argument("--heads", type=int, default=3, choices=HEADS)
    parse.add_argument("--scale", choices=("fixed", "own"), default="fixed")
    parse.add_argument(
        "--by", choices=("episodes", "newest", "f1"), default="episodes", help="threshold"
    )
    parse.add_argument("--threshold", type=float, default=0.0, help="0: as calibrated")
    parse.add_argument("--jobs", type=int, default=8, help="processes that draw")
    options = parse.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    for name, section in (("calibrate", calibrate), ("measure", measure), ("report", report)):
        if options.section in (name, "all"):
            section(options)


if __name__ == "__main__":
    main()
