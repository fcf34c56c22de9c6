# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What two trees answered to one command: equal, or where not."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

TOLERANCE = 1e-5  # of logits and values in float32


@dataclass
class Worst:
    """The largest difference met so far, as it is and as a share of the largest value there."""

    absolute: float = 0.0
    relative: float = 0.0
    arrays: int = 0

    def meet(self, difference: float, scale: float) -> None:
        self.absolute = max(self.absolute, difference)
        self.relative = max(self.relative, difference / max(scale, 1e-30))
        self.arrays += 1


def limit(array: np.ndarray) -> float:
    """How far another array may be: 1e-5, and in proportion where values are larger than one.

    (float32 has 24 bits, so that a logit of 30 is itself only known to 2e-6.)
    """
    return TOLERANCE * max(1.0, float(np.abs(array).max(initial=0.0)))


def differences(
    before: Any, after: Any, worst: dict[str, Worst] | None = None, at: str = ""
) -> list[str]:
    """Where ``after`` is not as ``before``, in words; what it says more is no difference.

    Args:
        worst: takes in by how much arrays differ, by the name under which they stand.
    """
    if isinstance(before, np.ndarray):
        return _array_differences(before, after, worst, at)
    if isinstance(before, Mapping):
        if not isinstance(after, Mapping):
            return [f"{at}: {_short(before)} became {_short(after)}"]
        found = [f"{at}.{key}: is missing" for key in before if key not in after]
        for key in before:
            if key in after:
                found += differences(before[key], after[key], worst, f"{at}.{key}")
        return found
    if isinstance(before, Sequence) and not isinstance(before, str):
        if not isinstance(after, Sequence) or isinstance(after, str) or len(before) != len(after):
            return [f"{at}: {_short(before)} became {_short(after)}"]
        return [
            one
            for number, (old, new) in enumerate(zip(before, after, strict=True))
            for one in differences(old, new, worst, f"{at}[{number}]")
        ]
    if type(before) is type(after) is float:
        # Sums may be taken in another order; nothing else about a time or a mean may change.
        if math.isclose(before, after, rel_tol=1e-12) or (math.isnan(before) and math.isnan(after)):
            return []
    elif type(before) is type(after) and before == after:
        return []
    return [f"{at}: {_short(before)} became {_short(after)}"]


def _array_differences(
    before: np.ndarray, after: Any, worst: dict[str, Worst] | None, at: str
) -> list[str]:
    if not isinstance(after, np.ndarray) or before.shape != after.shape:
        shape = getattr(after, "shape", type(after).__name__)
        return [f"{at}: shape {before.shape} became {shape}"]
    if not before.size:
        return []
    if (np.isfinite(before) != np.isfinite(after)).any():
        return [f"{at}: other values are finite"]
    finite = np.isfinite(before)
    distance = np.abs(before[finite].astype(float) - after[finite].astype(float))
    difference = float(distance.max(initial=0.0))
    if worst is not None:
        name = at.split(".")[-1].split("[")[0]
        worst.setdefault(name, Worst()).meet(difference, float(np.abs(before[finite]).max()))
    if difference > limit(before[finite]):
        return [f"{at}: differs by {difference:.3g}, allowed are {limit(before[finite]):.3g}"]
    return []


def broke_a_tie(before: Sequence[np.ndarray], after: Sequence[np.ndarray]) -> bool:
    """Whether two greedy answers part where rounding alone decides between two tokens.

    Args:
        before, after: logits of each token, until the end of each answer.
    """
    for old, new in zip(before, after, strict=False):
        if float(np.abs(old - new).max()) > limit(old):
            return False  # they had parted, and no tie was met on the way
        second, first = np.sort(old)[-2:]
        if old.argmax() != new.argmax():
            return bool(first - second <= 2 * limit(old))
    return False


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 120 else f"{text[:100]}... ({len(text)} characters)"
