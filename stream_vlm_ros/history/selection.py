# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Which of the kept frames a question is answered from: arithmetic on integers.

Frames are chosen in *pairs* of neighbours, (0, 1), (2, 3) ...: two frames become one temporal grid
of the model, and a grid of two moments far apart would show a mixture of both.

What is spread evenly comes in a nested order, coarse before fine. So when frames are added, most of
an earlier choice stands in the new one, and what was encoded of it can be kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

GRID_FRAMES = 2

T = TypeVar("T")


def evenly(some: Sequence[T], most: int) -> Sequence[T]:
    """At most so many of them, evenly spread, the first and the last among them; of one alone, that
    in the middle."""
    if len(some) <= most:
        return some
    if most == 1:
        return [some[len(some) // 2]]
    return [some[at] for at in np.linspace(0, len(some) - 1, most).round().astype(int)]


def nested(first: int, last: int) -> Iterator[int]:
    """All integers from ``first`` to ``last``, coarse before fine.

    First the multiples of a large power of two, rising; then those of half of it that are new;
    and so on. At any point what was given lies evenly, up to a factor of two, and does not depend
    on ``last`` but for what there is.
    """
    if last < first:
        return
    step = 1
    while step <= last:
        step *= 2
    if first <= 0:
        yield 0
    while step:
        number = -(-first // step) * step
        if number // step % 2 == 0:  # given already, at a coarser step
            number += step
        yield from range(number, last + 1, 2 * step)
        step //= 2


@dataclass(frozen=True)
class Shares:
    """How many pairs of frames come from where, at most; what is left is spread over the rest.

    Attributes:
        near: around the time that the question names.
        window: the latest.
        star: the star memory, the newest-looking first.
    """

    near: int
    window: int
    star: int

    @classmethod
    def of(cls, pairs: int, window: int, star: int, named: bool) -> Shares:
        """Of ``pairs`` in all: half for a named time; of the rest up to 5 in 12 each for ``window``
        latest and ``star`` star pairs, so that a sixth is always spread."""
        near = pairs // 2 if named else 0
        most = max(1, 5 * (pairs - near) // 12)
        return cls(near, min(window, most), min(star, most))


def seconds_per_grid(span: float, frames: int) -> float:
    """Mean time of a temporal grid: ``span`` seconds from the first to the last of ``frames``.

    ``span / frames`` is a frame's share, and a grid has two frames. 48 frames from 0 to 49 s give
    2.0417 s, from 0 to 59 s 2.4583 s. 0 for no frames.
    """
    return span * GRID_FRAMES / frames if frames else 0.0
