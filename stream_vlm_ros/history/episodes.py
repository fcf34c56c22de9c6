# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Hits among a stream's grids, joined to the episodes that a question may rest on."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

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
