# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How many pixels of large pictures are decoded at a time, by all connections."""

from __future__ import annotations

import asyncio
import bisect
import itertools
import threading
from concurrent.futures import Future

_Waiting = tuple[int, int, "Future[None]"]  # pixels, number, done when it has its turn


class PixelBudget:
    """Pixels under way are at most so many, or those of one picture. The smallest picture that
    waits is next: who sends large ones holds the others up least. For several event loops.

    Args:
        pixels: that may be under way.
    """

    def __init__(self, pixels: int) -> None:
        self._pixels, self._taken = pixels, 0
        self._lock = threading.Lock()
        self._waiting: list[_Waiting] = []  # in order
        self._numbers = itertools.count()

    async def take(self, pixels: int, patience: float) -> bool:
        """Wait until a picture has its turn, at most ``patience`` seconds; whether it has, and is
        to be given back."""
        turn: Future[None] = Future()
        waiting = (pixels, next(self._numbers), turn)
        with self._lock:
            bisect.insort(self._waiting, waiting)
            self._let_in()
        try:
            await asyncio.wait([asyncio.wrap_future(turn)], timeout=patience)
        except asyncio.CancelledError:
            if not self._withdrawn(waiting):
                self.give_back(pixels)
            raise
        return not self._withdrawn(waiting)

    def give_back(self, pixels: int) -> None:
        """The picture is decoded; in any thread."""
        with self._lock:
            self._taken -= pixels
            self._let_in()

    def _let_in(self) -> None:
        while self._waiting:
            pixels, _, turn = self._waiting[0]
            if self._taken and self._taken + pixels > self._pixels:
                return
            del self._waiting[0]
            self._taken += pixels
            turn.set_result(None)

    def _withdrawn(self, waiting: _Waiting) -> bool:
        """Take it out, unless it has its turn. None that is larger has it by that."""
        with self._lock:
            if is_there := waiting in self._waiting:
                self._waiting.remove(waiting)
        return is_there
