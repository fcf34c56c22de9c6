# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How a calibration is made: footage with known answers goes through the engine, twice.

First all heads are ranked, on a stretch that fits: their keys of an hour do not. Then the keys of
the best are kept over long footage, where a few of them are picked and the limits chosen. A
question's scores are taken when it is asked, so that nothing of a stream outlasts it but scores.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import pairwise
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from stream_vlm_ros.engine import StreamProcessor, VideoStreamingInference
from stream_vlm_ros.engine.attention.base import Readout, by_layer
from stream_vlm_ros.engine.cache.budget import free_bytes
from stream_vlm_ros.engine.cache.mrope import VisionSpan
from stream_vlm_ros.engine.cache.state import Change
from stream_vlm_ros.engine.inputs.chat import ChatLayout
from stream_vlm_ros.engine.model.base import StreamModel
from stream_vlm_ros.errors import CalibrationError
from stream_vlm_ros.history.calibration import (
    NOT_SEEN,
    PLACES,
    CalibratedHead,
    Calibration,
    kv_head,
    model_hash,
    queries_at,
)
from stream_vlm_ros.history.limits import (
    Limits,
    Probe,
    Scored,
    average_precision,
    choose_limits,
    relevant,
    share_right,
)
from stream_vlm_ros.history.selection import GRID_FRAMES

log = logging.getLogger(__name__)

KEPT_HEADS = 12  # of the best, whose keys are kept over long footage
HEADS = 3  # of them, that find together
MIN_GRIDS, MIN_QUESTIONS = 60, 8
CHUNK_FRAMES = 16
_BLOCK_BYTES = 256 << 20  # in which keys are kept: few, so that a question needs few kernels
_MIN_PRECISION = 0.5  # of heads that are of use


class Film(Protocol):
    """Footage with questions about it."""

    @property
    def name(self) -> str:
        """What it is called."""

    @property
    def probes(self) -> Sequence[Probe]:
        """Its questions, in any order."""

    def frames(self) -> Iterator[tuple[Any, float]]:
        """Pictures and their stamps in seconds, from the start at each call."""


class Head(NamedTuple):
    """A query head, and whose queries look for its keys."""

    layer: int
    head: int
    place: str


class Measured(NamedTuple):
    """A question's scores by several heads.

    Attributes:
        stamps: ``[grids, 2]``.
        scores: ``[heads, grids]``, each head's less their mean.
    """

    probe: Probe
    stamps: np.ndarray
    scores: torch.Tensor


@dataclass
class Report:
    """What came of it.

    Attributes:
        ranked: the best heads with average precision and spread on the long footage.
        limits: those chosen, and what they reach.
        precision: average precision of the picked heads together.
        fallback: share of right episodes without a calibration.
        notes: what the user should know.
    """

    calibration: Calibration
    ranked: list[CalibratedHead]
    limits: Limits
    precision: float
    fallback: float
    notes: list[str] = field(default_factory=list)

    def as_dict(self) -> dict[str, Any]:
        """As JSON has it."""
        return {"calibration": self.calibration.as_dict(), "notes": self.notes}


# A question, the stamps of the grids so far, and what gives each head's scores of them.
Asked = tuple[Probe, np.ndarray, Callable[[], Iterator[tuple[Head, torch.Tensor]]]]


class KeptKeys:
    """Un-rotated keys of some KV heads for all grids of a stream, while there is room.

    A `Companion`: it only grows, since nothing goes back in the streams that it is for.

    Args:
        heads: (layer, KV head) of each.
        max_bytes: that they may take.

    Attributes:
        stamps: of each grid's first and last frame.
        full: there was no room for one more grid; it and what follows were not kept.
    """

    def __init__(self, heads: Sequence[tuple[int, int]], max_bytes: int) -> None:
        self.heads, self.max_bytes = list(heads), max_bytes
        self.empty()

    def empty(self) -> int:
        self.stamps: list[tuple[float, float]] = []
        self.blocks: list[torch.Tensor] = []  # [heads, grids, tokens, head_dim]
        self.full = False
        return 0

    @property
    def grid_tokens(self) -> int:
        return self.blocks[0].shape[2] if self.blocks else 0

    @property
    def reads(self) -> Readout:
        """What of a chunk is to be read."""
        return Readout(keys=by_layer(self.heads))

    def draft(self, held: int, change: Change) -> int:
        at = 0
        for span in change.appended:
            if isinstance(span, VisionSpan) and change.read is not None and not self.full:
                layers = dict.fromkeys(layer for layer, _ in self.heads)
                read = torch.cat([change.read.keys(layer) for layer in layers])
                self._take(span, read[:, at : at + span.count])
            at += span.count
        return len(self.stamps)

    def _take(self, span: VisionSpan, keys: torch.Tensor) -> None:
        tokens = span.height * span.width
        if self.blocks and tokens != self.grid_tokens:
            raise CalibrationError(
                f"the pictures change their size, from {self.grid_tokens} tokens a grid to "
                f"{tokens}: calibrate on footage of one size, or give one by --size"
            )
        keys = keys.unflatten(1, (-1, tokens))  # [heads, grids, tokens, head_dim]
        grid_bytes = keys[:, 0].nbytes
        for number, stamps in enumerate(span.stamps):
            if (len(self.stamps) + 1) * grid_bytes > self.max_bytes:
                self.full = True
                return
            slots = max(1, min(_BLOCK_BYTES, self.max_bytes) // grid_bytes)
            block, slot = divmod(len(self.stamps), slots)
            if block == len(self.blocks):
                self.blocks.append(keys.new_empty(len(keys), slots, *keys.shape[2:]))
            self.blocks[block][:, slot] = keys[:, number]
            self.stamps.append(stamps)

    def best(self, key: int, queries: torch.Tensor) -> torch.Tensor:
        """The highest product of each grid's tokens with each query: ``[grids, queries]``.

        Args:
            key: which of the heads.
            queries: ``[queries, head_dim]``.
        """
        found = []
        for block in self.blocks:
            products = block[key].flatten(0, 1) @ queries.T
            found.append(products.unflatten(0, (block.shape[1], -1)).amax(1))
        return torch.cat(found)[: len(self.stamps)].float()


class Watch:
    """An engine that watches films and is asked their questions, one after the other.

    Args:
        engine: with the memory that the product has; it is reset before each film.
        processor: of its checkpoint.
        chunk_frames: frames encoded together.
        max_bytes: of keys; None: half of what is free.
    """

    def __init__(
        self,
        engine: VideoStreamingInference,
        processor: StreamProcessor,
        chunk_frames: int = CHUNK_FRAMES,
        max_bytes: int | None = None,
    ) -> None:
        self.engine, self.model = engine, engine.model
        self._chat = ChatLayout(processor, engine.model.config)
        self._chunk_frames = chunk_frames
        self._max_bytes = max_bytes
        self.notes: list[str] = []
        self.grids = self.grid_tokens = 0
        self.seconds_per_grid = 1.0

    def scores(
        self, film: Film, heads: Sequence[tuple[int, int]], on_grids: Callable[[int], None]
    ) -> Iterator[Asked]:
        """Each of the film's questions, the stamps of the grids so far, and a function that gives
        the scores ``[grids]``, less their mean, of each head and place.

        Args:
            heads: (layer, query head) of each.
            on_grids: called with the number of grids so far.
        """
        config = self.model.config
        keys = sorted({(layer, kv_head(config, head)) for layer, head in heads})
        kept = KeptKeys(keys, self._room())
        queries = by_layer(heads)
        self.engine.cache_manager.accompany("calibration", kept, kept.reads)
        self.engine.reset()
        due = sorted(film.probes, key=lambda probe: probe.at)
        for newest, ended in self._chunks(film, [probe.at for probe in due]):
            on_grids(len(kept.stamps))
            if kept.full:
                hours = kept.stamps[-1][1] / 3600
                self._note(
                    f"{film.name}: there is room for keys of {len(kept.stamps):,} grids, so the "
                    f"questions after {hours:.1f} h were left out (--key-gigabytes)"
                )
                break
            while due and kept.stamps and (due[0].at <= newest or ended):
                probe = due.pop(0)
                stamps = np.array(kept.stamps)
                yield probe, stamps, partial(self._scored, kept, probe.text, queries)
        self.grids += len(kept.stamps)
        self.grid_tokens = kept.grid_tokens or self.grid_tokens
        if len(kept.stamps) > 1:
            self.seconds_per_grid = float(
                np.median([b[0] - a[0] for a, b in pairwise(kept.stamps)])
            )

    def _chunks(self, film: Film, times: list[float]) -> Iterator[tuple[float, bool]]:
        """Append a film's frames; after each chunk the stamp up to which all has been seen.

        A chunk ends early where a question is due; of an odd number of frames one waits.
        """
        waiting: list[tuple[Any, float]] = []
        times = sorted(times)
        newest = -float("inf")

        def append(count: int) -> None:
            some, waiting[:] = waiting[:count], waiting[count:]
            self.engine.append_video_chunk([f for f, _ in some], timestamps=[t for _, t in some])

        for frame, stamp in film.frames():
            while times and stamp > times[0]:
                if whole := len(waiting) - len(waiting) % GRID_FRAMES:
                    append(whole)
                newest = times.pop(0)
                yield newest, False
            waiting.append((frame, stamp))
            if len(waiting) >= self._chunk_frames:
                append(len(waiting))
                yield (newest, False)
        if waiting:
            append(len(waiting))
        yield newest, True

    def _scored(
        self, kept: KeptKeys, text: str, heads: Mapping[int, Sequence[int]]
    ) -> Iterator[tuple[Head, torch.Tensor]]:
        """Ask, without an answer, and score all grids by each head and place."""
        engine, manager = self.engine, self.engine.cache_manager
        prompt = self._chat.question(text, manager.state.open_segment, manager.max_tail_tokens)
        words = self._chat.words(text)
        readout = Readout(queries=heads)
        with torch.inference_mode(), manager.question_fork(len(prompt), 0) as fork:
            engine.text_path.append(prompt, fork.start, fork, readout)
        config = self.model.config
        for key, (layer, kv) in enumerate(kept.heads):
            rows = [row for row, head in enumerate(heads[layer]) if kv_head(config, head) == kv]
            asked = readout.queries(layer)[rows, words.start :]  # [heads, n, head_dim]
            best = kept.best(key, asked.flatten(0, 1)).unflatten(1, (len(rows), -1))
            behind = slice(0, words.stop - words.start)  # the words, in what is left of the prompt
            for place in PLACES:
                scores = best[:, :, queries_at(place, behind)].mean(2).T  # [heads, grids]
                scores = scores - scores.mean(1, keepdim=True)
                for row, one in zip(rows, scores, strict=True):
                    yield Head(layer, heads[layer][row], place), one

    def _room(self) -> int:
        if self._max_bytes is not None:
            return self._max_bytes
        free = free_bytes(self.engine.device)
        return 4 << 30 if free is None else free // 2

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def calibrate(
    watch: Watch,
    ranking: Sequence[Film],
    measuring: Sequence[Film],
    *,
    heads: int = HEADS,
    not_seen: Sequence[str] = NOT_SEEN,
    made_with: Mapping[str, Any] | None = None,
    on_step: Callable[[str, int], None] = lambda step, grids: None,
) -> Report:
    """Make a calibration of the checkpoint that ``watch`` has.

    Args:
        ranking: short films, on which all heads are ranked.
        measuring: long ones, on which the limits are chosen.
        heads: how many heads find together.
        made_with: what else the file says of how it was made.
        on_step: called with what is being done, and the grids of it so far.

    Raises:
        CalibrationError: the films are too short, or have too few questions with evidence.
    """
    best = rank(watch, ranking, on_step)
    model = watch.model
    without = Calibration.fallback(model)
    wanted = [*best, *(Head(*head[:3]) for head in without.heads)]
    watch.grids = 0
    rows = measure(watch, measuring, list(dict.fromkeys(wanted)), on_step)
    order = {head: row for row, head in enumerate(dict.fromkeys(wanted))}
    ranked = describe(rows, {head: order[head] for head in best})
    draft = Calibration(
        heads=tuple(ranked[:heads]),
        threshold=0.0,
        of_best=0.0,
        looks=0.0,
        tail=0.0,
        scale="fixed",
        not_seen=tuple(not_seen),
        grid_tokens=watch.grid_tokens,
        seconds_per_grid=watch.seconds_per_grid,
        model=model_hash(model),
    )
    scored = combined(rows, draft, order)
    limits = choose_limits(scored)
    seen = [row for row in scored if row.probe.shown]
    precision = float(np.mean([_precision(torch.tensor(r.scores)[None], r)[0] for r in seen]))
    by_fallback = combined(rows, without, order)
    fallback = share_right(by_fallback, without.threshold, without.of_best)
    notes = list(watch.notes)
    if len(seen) == len(scored):
        notes.append(
            "no question is about something that was never shown: how often nothing is named where "
            "there is nothing was not measured"
        )
    if precision < _MIN_PRECISION:
        notes.append(
            f"the best heads' average precision is {precision:.2f} only: a history will find "
            "little by them"
        )
    figures = {
        "grids": watch.grids,
        "questions": len(rows),
        "average_precision": round(precision, 4),
        "right_episodes": round(limits.right, 4),
        "evidence_among_best": round(limits.among, 4),
        "ends_within_2_s": round(limits.ends, 4),
        "right_episodes_by_fallback": round(fallback, 4),
        "ranked": [[*head] for head in ranked],
    }
    calibration = replace(
        draft,
        threshold=limits.threshold,
        of_best=limits.of_best,
        looks=limits.looks,
        tail=limits.tail,
        made_with={**(made_with or {}), **figures},
    )
    return Report(calibration, ranked, limits, precision, fallback, notes)


def rank(
    watch: Watch,
    films: Sequence[Film],
    on_step: Callable[[str, int], None] = lambda step, grids: None,
) -> list[Head]:
    """The heads with the highest average precision, each with the place that is best for it."""
    every = every_query_head(watch.model)
    found: dict[Head, list[float]] = {}
    before, step = watch.grids, partial(on_step, "ranking the heads")
    for probe, stamps, scored in _asked(watch, films, every, step):
        truth = torch.from_numpy(relevant(probe.shown, stamps))
        if not truth.any():
            continue
        names, scores = zip(*scored(), strict=True)
        values = average_precision(torch.stack(scores), truth.to(scores[0].device)[None])
        for name, value in zip(names, values.tolist(), strict=True):
            found.setdefault(name, []).append(value)
    questions = len(next(iter(found.values()), []))
    _check_enough(watch.grids - before, questions)
    means = {head: float(np.mean(values)) for head, values in found.items()}
    best: dict[tuple[int, int], Head] = {}
    for head in sorted(means, key=lambda head: -means[head]):
        best.setdefault(head[:2], head)
    return list(best.values())[:KEPT_HEADS]


def measure(
    watch: Watch,
    films: Sequence[Film],
    heads: Sequence[Head],
    on_step: Callable[[str, int], None] = lambda step, grids: None,
) -> list[Measured]:
    """Every question's scores by these heads, ``[heads, grids]``."""
    rows: list[Measured] = []
    pairs = sorted({(head.layer, head.head) for head in heads})
    before, step = watch.grids, partial(on_step, "choosing the limits")
    for probe, stamps, scored in _asked(watch, films, pairs, step):
        by_head = dict(scored())
        scores = torch.stack([by_head[head] for head in heads]).cpu()
        rows.append(Measured(probe, stamps, scores))
    _check_enough(watch.grids - before, sum(bool(row.probe.evidence) for row in rows))
    return rows


def _asked(
    watch: Watch,
    films: Sequence[Film],
    heads: Sequence[tuple[int, int]],
    on_grids: Callable[[int], None],
) -> Iterator[Asked]:
    """The questions of all films, one after the other; ``on_grids`` is told of all grids so far."""
    first = watch.grids
    for film in films:
        done = watch.grids - first
        yield from watch.scores(film, heads, partial(_counted, on_grids, done))


def _counted(on_grids: Callable[[int], None], before: int, count: int) -> None:
    on_grids(before + count)


def describe(rows: Sequence[Measured], heads: Mapping[Head, int]) -> list[CalibratedHead]:
    """Heads, given with their row of the scores, with average precision and spread; best first."""
    squares = np.zeros(len(heads))
    grids, precisions = 0, []
    places = list(heads.values())
    for row in rows:
        scores = row.scores[places]
        squares += scores.square().sum(1).numpy()
        grids += scores.shape[1]
        if row.probe.shown:
            precisions.append(_precision(scores, row))
    mean = np.mean(precisions, axis=0)
    spreads = np.sqrt(squares / grids)
    found = [
        CalibratedHead(*head, round(float(precision), 4), round(float(spread), 4))
        for head, precision, spread in zip(heads, mean, spreads, strict=True)
    ]
    return sorted(found, key=lambda head: -head.precision)


def combined(
    rows: Sequence[Measured], calibration: Calibration, order: Mapping[Head, int]
) -> list[Scored]:
    """Every question's scores by a calibration's heads together."""
    places = [order[Head(*head[:3])] for head in calibration.heads]
    return [
        Scored(row.probe, row.stamps, calibration.combine(row.scores[places]).numpy())
        for row in rows
    ]


def every_query_head(model: StreamModel) -> list[tuple[int, int]]:
    """(layer, query head) of all."""
    text: Any = model.config.text_config
    heads = range(text.num_attention_heads)
    return [(layer, head) for layer in range(text.num_hidden_layers) for head in heads]


def _precision(scores: torch.Tensor, row: Measured | Scored) -> np.ndarray:
    truth = torch.from_numpy(relevant(row.probe.shown, row.stamps))
    return average_precision(scores, truth[None]).numpy()


def _check_enough(grids: int, questions: int) -> None:
    if grids < MIN_GRIDS or questions < MIN_QUESTIONS:
        raise CalibrationError(
            f"the footage has {grids:,} grids (of two frames) and {questions:,} questions whose "
            f"evidence it shows before they are asked: at least {MIN_GRIDS} and {MIN_QUESTIONS} "
            "are needed, and a hundred questions are better"
        )
