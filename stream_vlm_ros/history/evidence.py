# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How an answer names what it rests on: a few episodes, each with a few stamps of its frames."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from stream_vlm_ros.engine.results import EvidenceEpisode
from stream_vlm_ros.history.selection import evenly

MAX_NAMED = 3  # episodes that an answer names
STAMPS = 6  # of an episode
IN_MEMORY, IN_HISTORY = "memory", "history"  # tiers: where an episode was held


def evidence_of(
    stretch: tuple[float, float], frames: Sequence[float], score: float, tier: str
) -> EvidenceEpisode:
    """A stretch of time as an episode, with some of the stamps of its frames, rising."""
    start, end = stretch
    stamps = tuple(evenly(frames, STAMPS))
    return EvidenceEpisode(start=start, end=end, score=round(score, 3), tier=tier, stamps=stamps)


def joined(stretches: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most so many stretches of time: those that are closest to one another are made one.

    Args:
        stretches: oldest first, one at least.
    """
    gaps = [later[0] - earlier[1] for earlier, later in pairwise(stretches)]
    widest = np.argsort(gaps)[::-1][: most - 1]
    cuts = [0, *sorted(int(at) + 1 for at in widest), len(stretches)]
    return [(stretches[at][0], stretches[end - 1][1]) for at, end in pairwise(cuts)]
