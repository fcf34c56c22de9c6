# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Hits among a stream's grids, joined to the episodes that a question may rest on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

MAX_APART = 2  # grids from one hit to the next of the same episode


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


def join_hits(hits: Iterable[int], max_apart: int = MAX_APART) -> list[Episode]:
    """Numbers of grids that are hits, rising, to episodes in the order of time.

    Hits at most ``max_apart`` grids apart belong to one episode.
    """
    found: list[Episode] = []
    for number in hits:
        if found and number - found[-1].last <= max_apart:
            found[-1] = Episode(found[-1].first, number)
        else:
            found.append(Episode(number, number))
    return found


@dataclass(frozen=True)
class Scored:
    """The grids of a history with their scores for one question, in the order of time.

    Episodes here are of *places* in these arrays.

    Attributes:
        serials: numbers of the grids, rising, ``[g]``; those that follow each other in the stream
            are 1 apart, but for what was thinned out.
        spans: how many grids of the stream each stands for, itself the first, ``[g]``.
        stamps: of the first and the last frame of each, in seconds, ``[g, 2]``.
        scores: ``[g]``.
        tail: the share of an episode's best score down to which its neighbours belong to it.
    """

    serials: np.ndarray
    spans: np.ndarray
    stamps: np.ndarray
    scores: np.ndarray
    tail: float = 1.0

    def hits(self, threshold: float, of_best: float = 0.0) -> np.ndarray:
        """Places of the grids that score so much, and that share of the best score."""
        if not len(self.scores):
            return np.empty(0, np.int64)
        return np.flatnonzero(self.scores >= max(threshold, of_best * float(self.scores.max())))

    def episodes(self, hits: Iterable[int]) -> list[Episode]:
        """Hits joined to episodes, each with the neighbours that belong to it, oldest first."""
        found: list[Episode] = []
        for place in map(int, hits):
            if found and self._apart(found[-1].last, place) <= MAX_APART:
                found[-1] = Episode(found[-1].first, place)
            else:
                found.append(Episode(place, place))
        grown = [self._grown(one) for one in found]
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
        return float(self.scores[episode.first : episode.last + 1].max())

    def stamps_of(self, episode: Episode, before: int = 0, after: int = 0) -> tuple[float, float]:
        """Stamps of its first and last frame, with so many grids of its neighbourhood."""
        first, last = episode
        for _ in range(before):
            if first and self._apart(first - 1, first) <= MAX_APART:
                first -= 1
        for _ in range(after):
            if last + 1 < len(self.serials) and self._apart(last, last + 1) <= MAX_APART:
                last += 1
        return float(self.stamps[first, 0]), float(self.stamps[last, 1])

    def _apart(self, one: int, other: int) -> int:
        """Grids from the last that ``one`` stands for to ``other``."""
        return int(self.serials[other] - self.serials[one] - self.spans[one] + 1)

    def _grown(self, episode: Episode) -> Episode:
        least = self.tail * self.best_of(episode)
        first, last = episode
        while first and self.scores[first - 1] >= least and self._apart(first - 1, first) <= 1:
            first -= 1
        end = len(self.scores) - 1
        while last < end and self.scores[last + 1] >= least and self._apart(last, last + 1) <= 1:
            last += 1
        return Episode(first, last)
