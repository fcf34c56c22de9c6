# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The star memory: a few frames that between them cover what was new."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stream_vlm_ros.history.importance import NoveltyMeasure


@dataclass(frozen=True)
class Verdict:
    """What became of a frame that was shown to the star memory.

    Attributes:
        novelty: how new it is compared with the star it resembles most; 1 if there is none.
        is_star: it was taken in.
        dropped: the star that made room for it, if one did.
    """

    novelty: float
    is_star: bool
    dropped: int | None = None


class StarMemory:
    """At most ``capacity`` frames, each new compared with all others when it came.

    A frame whose novelty reaches ``threshold`` becomes a star. When there are too many, the one
    whose loss costs least coverage goes. What a star stands for is covered, without it, by the
    star most like it; so a loss costs as much as these two differ. Of the two that are alike, the
    one that is also nearer to a third goes.
    """

    def __init__(self, measure: NoveltyMeasure, capacity: int = 20, threshold: float = 0.6):
        self._measure = measure
        self.capacity, self.threshold = capacity, threshold
        self.clear()

    def clear(self) -> None:
        """Forget all stars."""
        self._ids: list[int] = []
        self._descriptors: list[np.ndarray] = []
        self._apart = np.zeros((0, 0))  # novelty of each compared with each, [stars, stars]

    @property
    def ids(self) -> tuple[int, ...]:
        """Ids of the stars, oldest first."""
        return tuple(self._ids)

    def __len__(self) -> int:
        return len(self._ids)

    def __contains__(self, frame: int) -> bool:
        return frame in self._ids

    def consider(self, frame: int, descriptor: np.ndarray) -> Verdict:
        """Take frame ``frame`` in if it is new enough."""
        beside = self._beside(descriptor)
        novelty = float(beside.min(initial=1.0))
        if self.capacity == 0 or novelty < self.threshold:
            return Verdict(novelty, False)
        self._append(frame, descriptor, beside)
        if len(self) <= self.capacity:
            return Verdict(novelty, True)
        dropped = self._ids[self._least_missed()]
        self.discard(dropped)
        if dropped == frame:
            return Verdict(novelty, False)
        return Verdict(novelty, True, dropped)

    def restore(self, frame: int, descriptor: np.ndarray) -> None:
        """Take back a frame that was a star before."""
        self._append(frame, descriptor, self._beside(descriptor))

    def discard(self, frame: int) -> None:
        """Forget a star, if it is one."""
        if frame not in self._ids:
            return
        at = self._ids.index(frame)
        del self._ids[at], self._descriptors[at]
        self._apart = np.delete(np.delete(self._apart, at, axis=0), at, axis=1)

    def _beside(self, descriptor: np.ndarray) -> np.ndarray:
        if not self._ids:
            return np.zeros(0)
        return self._measure.novelty(descriptor, np.stack(self._descriptors))

    def _append(self, frame: int, descriptor: np.ndarray, beside: np.ndarray) -> None:
        self._ids.append(frame)
        self._descriptors.append(descriptor)
        apart = np.zeros((len(self), len(self)))
        apart[:-1, :-1] = self._apart
        apart[-1, :-1] = apart[:-1, -1] = beside
        self._apart = apart

    def _least_missed(self) -> int:
        """Index of the star whose loss costs least; of equals the newest."""
        others = self._apart + np.diag(np.full(len(self), np.inf))
        costs = [tuple(np.sort(row)[:2]) for row in others]
        return min(range(len(self)), key=lambda at: (costs[at], -at))
