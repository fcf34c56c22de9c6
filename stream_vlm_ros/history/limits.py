# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What counts as a hit: limits chosen by how often the right episode is named.

Scores here are arrays ``[grids]``, one a question, of the grids up to that question; stamps are
``[grids, 2]``, of each grid's first frame and of its last.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch

from stream_vlm_ros.history.episodes import (
    Episode,
    best_score,
    extended,
    hits_of,
    join_hits,
)

Stretch = tuple[float, float]  # stamps of the first and of the last frame that show something

LOOKS = 4  # episodes that further looks read
THRESHOLDS = np.round(np.arange(2.0, 12.0, 0.1), 2)
SHARES = (0.0, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)  # of the best score
TAILS = np.round(np.arange(0.1, 1.0, 0.05), 2)
END_WITHIN = 2.0  # seconds from the true end


@dataclass(frozen=True)
class Probe:
    """A question whose answer is known, and what shows it.

    Attributes:
        text: the question.
        at: stamp of the newest frame when it is asked.
        shown: every stretch of time up to then that shows what it is about, oldest first.
        evidence: those that the answer rests on; none: it was never shown.
        wanted: which episodes the question wants: ``newest``, ``best`` or ``all``.
    """

    text: str
    at: float
    shown: tuple[Stretch, ...]
    evidence: tuple[Stretch, ...]
    wanted: str = "newest"


class Scored(NamedTuple):
    """A question, the stamps of the grids when it was asked, and their combined scores."""

    probe: Probe
    stamps: np.ndarray
    scores: np.ndarray

    @property
    def relevant(self) -> np.ndarray:
        """``[grids]``, bool: which show what is asked about."""
        return relevant(self.probe.shown, self.stamps)


class Limits(NamedTuple):
    """As in `Calibration`, and what they were chosen by.

    Attributes:
        right: share of questions whose wanted episodes are the true ones, or that name none where
            there is none.
        among: share of the questions with evidence that have it among their best `LOOKS` episodes.
        ends: share of the newest episodes rightly named whose end is within `END_WITHIN` of the
            truth.
    """

    threshold: float
    of_best: float
    looks: float
    tail: float
    right: float
    among: float
    ends: float


def average_precision(scores: torch.Tensor, relevant: torch.Tensor) -> torch.Tensor:
    """Of each row: the mean, over what is relevant, of the precision at its rank.

    Args:
        scores: ``[rows, grids]``; -inf: not there.
        relevant: ``[rows, grids]`` or ``[grids]``, bool, at least one in each row.
    """
    order = scores.argsort(dim=1, descending=True)
    hits = relevant.expand_as(scores).gather(1, order).float()
    ranks = torch.arange(1, hits.shape[1] + 1, device=hits.device)
    return (hits.cumsum(1) / ranks * hits).sum(1) / hits.sum(1)


def relevant(stretches: Iterable[Stretch], stamps: np.ndarray) -> np.ndarray:
    """``[grids]``, bool: which have a frame within one of the stretches of time."""
    found = np.zeros(len(stamps), bool)
    for first, last in stretches:
        found |= (stamps[:, 0] <= last) & (first <= stamps[:, 1])
    return found


# -- which episodes ------------------------------------------------------------------------------


def best_episodes(scores: np.ndarray, threshold: float, count: int = LOOKS) -> list[Episode]:
    """The episodes above the threshold with the highest scores, the newest first."""
    episodes = join_hits(hits_of(scores, threshold))
    episodes.sort(key=lambda one: -best_score(one, scores))
    return sorted(episodes[:count], reverse=True)


def wanted_episodes(hits: Sequence[int], scores: np.ndarray, wanted: str) -> list[Episode]:
    """The episodes of these hits that a question wants, the oldest first."""
    episodes = join_hits(hits)
    if not episodes or wanted == "all":
        return episodes
    if wanted == "newest":
        return episodes[-1:]
    return [max(episodes, key=lambda one: best_score(one, scores))]


def names_evidence(
    named: Sequence[Episode], evidence: Sequence[Stretch], stamps: np.ndarray
) -> bool:
    """Whether each stretch of evidence meets a named episode; none is named where there is none."""
    if not evidence:
        return not named
    return all(
        any(stamps[e.first, 0] <= last and first <= stamps[e.last, 1] for e in named)
        for first, last in evidence
    )


# -- choosing ------------------------------------------------------------------------------------


def choose_limits(rows: Sequence[Scored]) -> Limits:
    """The limits by which most questions name the episodes that they want.

    Of equally good ones those with the best F1 of hits; of thresholds for further looks the highest
    at which no more is lost than at the lowest.
    """
    counts = np.zeros((len(SHARES), len(THRESHOLDS), 5))
    among = np.zeros(len(THRESHOLDS))
    with_evidence = 0
    for row in rows:
        counts += _counts(row)
        if row.probe.evidence:
            with_evidence += 1
            among += _among_best(row)
    true, false, missed, right, asked = np.moveaxis(counts, -1, 0)
    share = right / asked
    f1 = 2 * true / np.maximum(1.0, 2 * true + false + missed)
    part, at = np.unravel_index(np.where(share == share.max(), f1, -1.0).argmax(), share.shape)
    looks = int(np.flatnonzero(among >= among.max())[-1])
    threshold, of_best = float(THRESHOLDS[at]), SHARES[part]
    tail, ends = choose_tail(rows, threshold, of_best)
    return Limits(
        threshold,
        of_best,
        min(float(THRESHOLDS[looks]), threshold),
        tail,
        float(share[part, at]),
        float(among[looks] / max(1, with_evidence)),
        ends,
    )


def choose_tail(rows: Sequence[Scored], threshold: float, of_best: float) -> tuple[float, float]:
    """The share of an episode's best score down to which its neighbours belong to it, and how many
    of the newest episodes rightly named then end within `END_WITHIN` of the truth.

    Of equally good ones those of which begin and end are the most often within half of that; of
    these the one in the middle, which is the farthest from being wrong.
    """
    exact, count = np.zeros((len(TAILS), 2), int), 0
    for row in rows:
        named = _newest(row, threshold, of_best)
        if named is None:
            continue
        count += 1
        begin, end = row.probe.evidence[-1]
        for number, tail in enumerate(TAILS):
            first, last = extended(named, row.scores, float(tail))
            off = abs(row.stamps[last, 1] - end), abs(row.stamps[first, 0] - begin)
            exact[number] += off[0] <= END_WITHIN, max(off) <= END_WITHIN / 2
    order = [tuple(pair) for pair in exact.tolist()]
    best = [number for number, pair in enumerate(order) if pair == max(order)]
    middle = best[len(best) // 2]
    return float(TAILS[middle]), float(exact[middle, 0] / max(1, count))


def share_right(rows: Sequence[Scored], threshold: float, of_best: float) -> float:
    """Share of questions that name the episodes that they want by these limits."""
    counted = [row for row in rows if _counts_as_named(row.probe)]
    right = 0
    for row in counted:
        hits = hits_of(row.scores, threshold, of_best)
        named = wanted_episodes(hits, row.scores, row.probe.wanted)
        right += names_evidence(named, row.probe.evidence, row.stamps)
    return right / max(1, len(counted))


def _newest(row: Scored, threshold: float, of_best: float) -> Episode | None:
    """The newest episode where it is wanted and rightly named."""
    if row.probe.wanted != "newest" or not row.probe.evidence:
        return None
    named = wanted_episodes(hits_of(row.scores, threshold, of_best), row.scores, "newest")
    right = named and names_evidence(named, row.probe.evidence, row.stamps)
    return named[0] if right else None


def _counts_as_named(probe: Probe) -> bool:
    """Any sighting answers whether there was one: the question tells right from wrong only where
    there was none."""
    return probe.wanted != "best" or not probe.evidence


def _counts(row: Scored) -> np.ndarray:
    """``[shares, thresholds, 5]``: grids rightly, wrongly and not hit; right episodes, asked."""
    probe, scores = row.probe, row.scores
    counts = np.zeros((len(SHARES), len(THRESHOLDS), 5))
    above = np.flatnonzero(scores >= THRESHOLDS[0])
    values, real = scores[above], row.relevant
    there, ranked = real[above], np.sort(values)
    found: dict[int, tuple[int, bool]] = {}  # by the number of hits: that says which they are
    counted = _counts_as_named(probe)
    for part, share in enumerate(SHARES):
        limits = np.maximum(THRESHOLDS, share * values.max(initial=0.0))
        numbers = len(values) - np.searchsorted(ranked, limits)
        for at, number in enumerate(numbers.tolist()):
            if number not in found:
                over = values >= limits[at]
                named = wanted_episodes(above[over].tolist(), scores, probe.wanted)
                right = names_evidence(named, probe.evidence, row.stamps)
                found[number] = int(there[over].sum()), right
            both, right = found[number]
            counts[part, at, :3] = both, number - both, int(real.sum()) - both
            if counted:
                counts[part, at, 3:] = right, 1
    return counts


def _among_best(row: Scored) -> np.ndarray:
    """``[thresholds]``: whether all evidence is among the best `LOOKS` episodes."""
    found = []
    for threshold in THRESHOLDS.tolist():
        best = best_episodes(row.scores, threshold)
        found.append(names_evidence(best, row.probe.evidence, row.stamps))
    return np.array(found)
