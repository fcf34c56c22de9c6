# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How sure a figure is: the Wilson score interval of a share, the spread of repeated samples."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from statistics import NormalDist
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def wilson(right: int, asked: int, level: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of ``right`` of ``asked``."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle, share = z * z / (2 * asked), right / asked
    spread = z * math.sqrt(share * (1 - share) / asked + z * z / (4 * asked * asked))
    low, high = ((share + middle + sign * spread) / (1 + 2 * middle) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)


class Spread(NamedTuple):
    """Samples of one figure: their median, the lowest, the highest, and how many they are."""

    median: float
    low: float
    high: float
    samples: int

    @classmethod
    def of(cls, samples: Iterable[float]) -> Spread:
        """Of at least one sample."""
        found = sorted(samples)
        return cls(statistics.median(found), found[0], found[-1], len(found))

    def __format__(self, figures: str) -> str:
        """``f"{spread:.3f}"``: the median, in brackets from the lowest to the highest."""
        low, high = format(self.low, figures), format(self.high, figures)
        return format(self.median, figures) + (f" ({low}–{high})" if low != high else "")

    def times(self, factor: float) -> Spread:
        return Spread(factor * self.median, factor * self.low, factor * self.high, self.samples)


def draw_spreads(axes: Axes, at: Sequence[float], spreads: Sequence[Spread], **style: Any) -> None:
    """A curve through the medians, with a bar from the lowest to the highest sample of each."""
    medians = [one.median for one in spreads]
    below = [one.median - one.low for one in spreads]
    above = [one.high - one.median for one in spreads]
    axes.errorbar(at, medians, [below, above], **{"fmt": "o-", "capsize": 3, **style})
