# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Hits among a stream's grids, joined to the episodes that a question may rest on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

MAX_APART = 2  # grids from one hit to the next of the same episode
PAUSE = 10  # grids that would have fitted in between, so that what follows is another stretch


class Episode(NamedTuple):
    """A stretch of grids from its first hit to its last, by their numbers."""

    first: int
    last: int

    @property
    def size(self) -> int:
        """Grids from the first to the last."""
        return self.last - self.first + 1

    def widened(self, before: int, after: int, end: int) -> range:
        """The grids' numbers with neighbours on both sides, within 0 to ``end`` (not included)."""
        return range(max(0, self.first - before), min(end, self.last + after + 1))


Apart = Callable[[int, int], int]  # grids from one to a later one


def _difference(one: int, other: int) -> int:
    """Of grids of which none is left out."""
    return other - one


def hits_of(scores: np.ndarray, threshold: float, of_best: float = 0.0) -> list[int]:
    """The numbers of the grids that score so much, and that share of the best score."""
    least = max(threshold, of_best * float(scores.max(initial=0.0)))
    return np.flatnonzero(scores >= least).tolist()


def join_hits(
    hits: Iterable[int], max_apart: int = MAX_APART, apart: Apart = _difference
) -> list[Episode]:
    """Numbers of grids that are hits, rising, to episodes in the order of time.

    Hits at most ``max_apart`` grids ``apart`` belong to one episode.
    """
    found: list[Episode] = []
    for number in hits:
        if found and apart(found[-1].last, number) <= max_apart:
            found[-1] = Episode(found[-1].first, number)
        else:
            found.append(Episode(number, number))
    return found


def best_score(episode: Episode, scores: np.ndarray) -> float:
    """The highest score of its grids."""
    return float(scores[episode.first : episode.last + 1].max())


def extended(
    episode: Episode, scores: np.ndarray, tail: float, apart: Apart = _difference
) -> Episode:
    """An episode with those of its neighbours, one after the other, that score that share of its
    best score: of the grids that show a thing as it comes and goes only some are hits."""
    first, last = episode
    limit = tail * best_score(episode, scores)
    while first > 0 and scores[first - 1] >= limit and apart(first - 1, first) <= 1:
        first -= 1
    end = len(scores) - 1
    while last < end and scores[last + 1] >= limit and apart(last, last + 1) <= 1:
        last += 1
    return Episode(first, last)


@dataclass(frozen=True)
class Scored:
    """The grids of a history with their scores for one question, in the order of time.

    Episodes here are of *places* in these arrays.

    Attributes:
        serials: numbers of the grids, rising, ``[g]``; those that follow each other in the stream
            are 1 apart, but for what was thinned out.
        spans: how many grids of the stream each stands for, itself the first, ``[g]``.
        stamps: of the first frame of each and the last of what it stands for, in seconds,
            ``[g, 2]``.
        left_out: of those that each stands for, how many were not looked at, ``[g]``: their keys
            had no room.
        scores: ``[g]``.
        tail: the share of an episode's best score down to which its neighbours belong to it.
    """

    serials: np.ndarray
    spans: np.ndarray
    stamps: np.ndarray
    left_out: np.ndarray
    scores: np.ndarray
    tail: float = 1.0

    def hits(self, threshold: float, of_best: float = 0.0) -> np.ndarray:
        """Places of the grids that score so much, and that share of the best score."""
        return np.array(hits_of(self.scores, threshold, of_best), np.int64)

    def episodes(self, hits: Iterable[int]) -> list[Episode]:
        """Hits joined to episodes, each with the neighbours that belong to it, oldest first."""
        found = join_hits(map(int, hits), apart=self._apart)
        grown = [extended(one, self.scores, self.tail, self._apart) for one in found]
        # Two that have grown into one another are one.
        joined: list[Episode] = []
        for one in grown:
            if joined and one.first <= joined[-1].last:
                joined[-1] = Episode(joined[-1].first, max(joined[-1].last, one.last))
            else:
                joined.append(one)
        return joined

    def best_episodes(self, threshold: float, count: int) -> list[Episode]:
        """Those above the threshold with the highest scores, oldest first."""
        found = self.episodes(self.hits(threshold))
        return sorted(sorted(found, key=self.best_of, reverse=True)[:count])

    def best_of(self, episode: Episode) -> float:
        """Its highest score."""
        return best_score(episode, self.scores)

    def stamps_of(self, episode: Episode, before: int = 0, after: int = 0) -> tuple[float, float]:
        """Stamps of its first and last frame, with so many grids of its neighbourhood.

        Grids that were not looked at on either side may show what the others do: it ends with the
        last that its last grid stands for, and begins with the grid that stands for those before.
        """
        first, last = episode
        if first and self.left_out[first - 1]:
            before = max(before, 1)
        for _ in range(before):
            if first and self._apart(first - 1, first) <= MAX_APART:
                first -= 1
        for _ in range(after):
            if last + 1 < len(self.serials) and self._apart(last, last + 1) <= MAX_APART:
                last += 1
        return float(self.stamps[first, 0]), float(self.stamps[last, 1])

    def _apart(self, one: int, other: int) -> int:
        """Grids from the last that ``one`` stands for to ``other``: those of the stream, and those
        that it would have had in a time of which there are none (the camera paused, or the disk
        was full)."""
        unseen = int(self._unseen[one + 1 : other + 1].sum())
        return int(self.serials[other] - self.serials[one] - self.spans[one] + 1) + unseen

    @functools.cached_property
    def _unseen(self) -> np.ndarray:
        """For each grid how many would have fitted between it and the one before, from `PAUSE` on;
        else 0."""
        unseen = np.zeros(len(self.serials), np.int64)
        if len(unseen) > 1:
            step = float(np.median(np.diff(self.stamps[:, 0]) / self.spans[:-1]))
            between = self.stamps[1:, 0] - self.stamps[:-1, 1]
            paused = between > PAUSE * step
            unseen[1:][paused] = np.ceil(between[paused] / step) if step > 0 else PAUSE
        return unseen
