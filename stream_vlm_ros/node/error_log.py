# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Internal errors: logged once with their traceback, then counted."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field


@dataclass
class ErrorLog:
    """Logs an error with its traceback, and from time to time the number of its repetitions.

    An error is a repetition if it has the same type and was raised at the same line of the same
    callback. Safe to use from several threads.

    Args:
        write: takes a text for the log.
        period: minimum seconds between two texts about the same error.
        clock: seconds that never run backwards.
    """

    write: Callable[[str], object]
    period: float = 10.0
    clock: Callable[[], float] = time.monotonic
    _logged: dict[tuple[object, ...], float] = field(default_factory=dict)
    _pending: dict[tuple[object, ...], int] = field(default_factory=dict)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def report(self, where: str, fault: BaseException) -> None:
        """``fault`` was raised in the callback named by ``where``; the node continues."""
        lines = [(frame.f_code, line) for frame, line in traceback.walk_tb(fault.__traceback__)]
        kind = (where, type(fault), *lines[-1:])
        now = self.clock()
        with self._lock:
            logged = self._logged.get(kind)
            if logged is not None and now - logged < self.period:
                self._pending[kind] += 1
                return
            repeated = self._pending.get(kind, 0)
            self._logged[kind], self._pending[kind] = now, 0
        if logged is None:
            trace = "".join(traceback.format_exception(type(fault), fault, fault.__traceback__))
            self.write(f"{where} failed, the node continues:\n{trace}")
        else:
            self.write(
                f"{where} failed again, {repeated + 1} times since the last message: {fault!r}"
            )
