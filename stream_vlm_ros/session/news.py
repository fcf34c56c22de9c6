# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`News`: what happens again and again, as few lines of a log."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class News:
    """Logs what happens at once, and what happens again within ``period`` seconds as a number.

    Nothing is left out without being counted. Safe to use from several threads.

    Args:
        clock: seconds that never run backwards.
    """

    period: float = 5.0
    clock: Callable[[], float] = time.monotonic
    _told: dict[str, float] = field(default_factory=dict)
    _more: dict[str, tuple[int, str, Callable[[str], object]]] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def tell(self, kind: str, words: str, write: Callable[[str], object]) -> None:
        """``words``, of something of this kind; ``write`` takes a text for the log."""
        with self._lock:
            count = self._more.get(kind, (0, "", write))[0]
            self._more[kind] = (count + 1, words, write)
        self.tell_rest()

    def tell_rest(self) -> None:
        """What is due of what was only counted yet; to be called now and then."""
        now, due = self.clock(), []
        with self._lock:
            for kind in list(self._more):
                told = self._told.get(kind)
                if told is None or now - told >= self.period:
                    self._told[kind] = now
                    due.append(self._more.pop(kind))
        for count, words, write in due:
            write(words if count == 1 else f"{words} ({count} times since the last message)")
