# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The Wilson score interval of a share."""

from __future__ import annotations

import math
from statistics import NormalDist


def wilson(right: int, asked: int, level: float = 0.95) -> tuple[float, float]:
    """The Wilson score interval of ``right`` of ``asked``."""
    z = NormalDist().inv_cdf((1 + level) / 2)
    middle, share = z * z / (2 * asked), right / asked
    spread = z * math.sqrt(share * (1 - share) / asked + z * z / (4 * asked * asked))
    low, high = ((share + middle + sign * spread) / (1 + 2 * middle) for sign in (-1, 1))
    return max(0.0, low), min(1.0, high)
