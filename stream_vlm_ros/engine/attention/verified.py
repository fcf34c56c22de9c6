# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""One guard for what is fast where it was tried, and must first prove itself elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

import torch

from stream_vlm_ros.errors import DeviceUnavailableError, in_words

log = logging.getLogger(__name__)

T = TypeVar("T")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device, or came of one that does."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError | DeviceUnavailableError):
        return True
    if error.__cause__ is not None:
        return is_out_of_memory(error.__cause__)
    text = str(error).lower()
    words = ("out of memory", "not enough memory", "can't allocate memory", "alloc_failed")
    return isinstance(error, RuntimeError) and any(word in text for word in words)


class Verified(Generic[T]):
    """A faster way to compute something, taken as long as it proves itself.

    A kernel, a compiler or a recorded graph may fail on a machine that nobody tried, or compute
    something else, which must not become an answer. So the first result of each kind of call is
    held against the plain way's; where it differs, or the faster way raises, that kind goes the
    plain way for good, and the log says so, once.

    Args:
        consequence: what it means to do without, as the log says it.
        spare: faults that are not the faster way's own: raised, and nothing is refused.

    Attributes:
        refused: why the faster way is not taken, by kind of call.
    """

    def __init__(
        self,
        consequence: str,
        spare: tuple[type[Exception], ...] = (torch.OutOfMemoryError,),
    ):
        self._consequence, self._spare = consequence, spare
        self._proved: set[Hashable] = set()
        self._short: set[Hashable] = set()  # refused because memory ran out
        self._told: set[Hashable] = set()  # of that
        self.refused: dict[Hashable, str] = {}

    def run(
        self,
        kind: Hashable,
        fast: Callable[[], T],
        plain: Callable[[], T],
        differ: Callable[[T, T], str | None],
    ) -> T:
        """What ``fast`` computes, or ``plain`` where it does not serve.

        ``differ`` tells how two results differ by more than rounding, "" if they do not, None if
        the plain one is no measure: then the next call decides.
        """
        if kind in self._proved:
            found = self.attempt(kind, fast)
            return plain() if found is None else found
        if kind in self.refused or (found := self.attempt(kind, fast)) is None:
            return plain()
        expected = plain()
        if (why := differ(found, expected)) is None:
            return expected
        if why:
            self.refuse(kind, why)
            return expected
        self._proved.add(kind)
        return found

    def has_proved(self, kind: Hashable) -> bool:
        """Whether the faster way has proved itself for this kind of call."""
        return kind in self._proved

    def attempt(self, kind: Hashable, fast: Callable[[], T]) -> T | None:
        """What ``fast`` gives; None where it raises, or did before."""
        if kind in self.refused:
            return None
        try:
            return fast()
        except self._spare:
            raise
        except Exception as fault:  # compilers, drivers and broken installations have many kinds
            self._refuse(kind, in_words(fault), is_out_of_memory(fault))
            return None

    def refuse(self, kind: Hashable, why: str) -> None:
        """Take the faster way no more for this kind of call."""
        self._refuse(kind, why)

    def memory_given_back(self) -> None:
        """Try again what was refused because memory ran out. A second refusal is not logged."""
        for kind in self._short:
            del self.refused[kind]
        self._short.clear()

    def _refuse(self, kind: Hashable, why: str, short: bool = False) -> None:
        self._proved.discard(kind)
        self.refused[kind] = why
        if short:
            self._short.add(kind)
            if kind in self._told:
                return
            self._told.add(kind)
        else:
            self._short.discard(kind)
        of = ", ".join(map(str, kind)) if isinstance(kind, tuple) else str(kind)
        log.warning("%s%s: %s", self._consequence, f" ({of})" if of else "", why)


def relative_difference(found: torch.Tensor, expected: torch.Tensor, bound: float) -> str | None:
    """How a result differs by more than ``bound``, relative to the size of the whole; "" if not.

    None where what is expected is infinite or not a number itself (a chunk that will be refused).
    """
    scale = expected.float().norm().clamp(min=1e-30)
    if not scale.isfinite():
        return None
    off = float((found.float() - expected.float()).norm() / scale)
    if off <= bound:  # not where it is NaN
        return ""
    return f"its result differs by {off:.3g} of its size"
