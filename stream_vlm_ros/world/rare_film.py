# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A world with rare things as footage for calibration (`history.calibrating`)."""

from __future__ import annotations

import multiprocessing
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from typing import Any

import numpy as np

from stream_vlm_ros.history.limits import Probe
from stream_vlm_ros.world.rare import RECALL, Asked, RareWorld, exam, grid_stamps

_PART = 120  # grids drawn by a process at a time
_AHEAD = 2  # parts for each process


class RareFilm:
    """A drawn world's pictures, and the questions of its exam that its past answers.

    Args:
        seed, hours, once, repeated, never: of the `RareWorld`.
        size: (width, height) of the pictures.
        drawers: processes that draw; None: it is drawn here.
        jobs: how many they are.
    """

    def __init__(
        self,
        seed: int,
        hours: float,
        *,
        once: int = 20,
        repeated: int = 4,
        never: int = 8,
        size: tuple[int, int] = (140, 112),
        drawers: Executor | None = None,
        jobs: int = 1,
    ) -> None:
        self._arguments = (seed, hours, once, repeated, never)
        self._size, self._drawers, self._ahead = size, drawers, _AHEAD * jobs
        self._world = _world(*self._arguments)
        self.name = f"the world {seed}"
        asked = exam(self._world)
        self.probes = [self._probe(one) for one in asked if one.type in RECALL]

    def _probe(self, asked: Asked) -> Probe:
        shown = [s for name in asked.things for s in self._world.shown(name, asked.now)]
        return Probe(
            asked.question.text,
            asked.now,
            tuple((first, last) for first, last in sorted(shown)),
            tuple((first, last) for first, last in asked.evidence),
            "best" if asked.type == "was_there" else "newest",
        )

    def frames(self) -> Iterator[tuple[Any, float]]:
        """Two pictures of every second, uint8 RGB, and their stamps."""
        number = 0
        for part in self._parts():
            for grid in part:
                yield from zip(grid, grid_stamps(number), strict=True)
                number += 1

    def _parts(self) -> Iterator[np.ndarray]:
        starts = range(0, self._world.grids, _PART)
        parts = [(start, min(self._world.grids, start + _PART)) for start in starts]
        if self._drawers is None:
            for part in parts:
                yield draw(self._arguments, self._size, *part)
            return
        waiting: deque[Future[np.ndarray]] = deque()
        try:
            for part in parts:
                waiting.append(self._drawers.submit(draw, self._arguments, self._size, *part))
                if len(waiting) > self._ahead:
                    yield waiting.popleft().result()
            while waiting:
                yield waiting.popleft().result()
        finally:  # where the stream ends early
            for one in waiting:
                one.cancel()


_drawn: dict[tuple[Any, ...], RareWorld] = {}


def draw(arguments: tuple[Any, ...], size: tuple[int, int], first: int, stop: int) -> np.ndarray:
    """Some grids' pictures, ``[grids, frames, height, width, 3]``; in a process of a pool."""
    world = _world(*arguments)
    return np.stack([world.grid(number, *size) for number in range(first, stop)])


def drawing_processes(jobs: int) -> ProcessPoolExecutor | None:
    """So many of them; None for one or fewer: it is drawn where it is watched."""
    if jobs <= 1:
        return None
    return ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"))


def _world(seed: int, hours: float, once: int, repeated: int, never: int) -> RareWorld:
    """The last world is kept: to draw up its story takes a while."""
    key = (seed, hours, once, repeated, never)
    if key not in _drawn:
        _drawn.clear()
        _drawn[key] = RareWorld(seed, hours=hours, once=once, repeated=repeated, never=never)
    return _drawn[key]
