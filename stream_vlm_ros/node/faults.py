"""What to do with a fault of this package: say it once, with its traceback, and go on."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class FaultLog:
    """Logs a fault with its traceback, and its repetitions as a number now and then.

    A fault is the same again when it has the same type and was raised at the same line of the
    same callback. Safe to use from several threads.

    Args:
        write: takes a text for the log.
        period: least seconds between two texts about the same fault.
        clock: seconds that never run backwards.
    """

    write: Callable[[str], object]
    period: float = 10.0
    clock: Callable[[], float] = time.monotonic
    _told: dict[tuple[object, ...], float] = field(default_factory=dict)
    _untold: dict[tuple[object, ...], int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def report(self, where: str, fault: BaseException) -> None:
        """``fault`` was raised in the callback named by ``where``; the node goes on."""
        lines = [(frame.f_code, line) for frame, line in traceback.walk_tb(fault.__traceback__)]
        kind = (where, type(fault), *lines[-1:])
        now = self.clock()
        with self._lock:
            told = self._told.get(kind)
            if told is not None and now - told < self.period:
                self._untold[kind] += 1
                return
            repeated = self._untold.get(kind, 0)
            self._told[kind], self._untold[kind] = now, 0
        if told is None:
            trace = "".join(traceback.format_exception(type(fault), fault, fault.__traceback__))
            self.write(f"{where} failed, the node goes on:\n{trace}")
        else:
            self.write(
                f"{where} failed again, {repeated + 1} times since this was last told: {fault!r}"
            )
