# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the log says of things that come again and again: once in full, and then how many."""

from __future__ import annotations

import logging
import threading
import time
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from stream_vlm_ros.errors import cut

MAX_WARNING = 2000  # characters


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


@dataclass
class ErrorLog:
    """Logs an error with its traceback, and what comes of it again by ``news``, without.

    An error comes again if it has the same type and was raised at the same line of the same
    callback. Safe to use from several threads.

    Args:
        write: takes a text for the log.
    """

    write: Callable[[str], object]
    news: News
    _known: set[str] = field(default_factory=set)

    def report(self, where: str, fault: BaseException) -> None:
        """``fault`` was raised in the callback named by ``where``; the node continues."""
        lines = [(frame.f_code, line) for frame, line in traceback.walk_tb(fault.__traceback__)]
        kind = f"{where} {type(fault)} {lines[-1:]}"
        if kind in self._known:
            self.news.tell(kind, f"{where} failed again: {cut(repr(fault))}", self.write)
        else:
            self._known.add(kind)
            words = f"{where} failed, the node continues:\n{traced(fault)}"
            self.news.tell(kind, words, self.write)


LOADED = ContextVar("LOADED", default="")  # the camera whose engine this thread loads now


class Forwarding(logging.Handler):
    """Hands on what this package's engine warns of by Python's logging, and whatever is warned of
    by Python's warnings, such as an importance score that fails: a robot's log, not stderr, is
    where it is looked for. In place from its making to `close`."""

    def __init__(self, write: Callable[[str], object]) -> None:
        super().__init__(logging.WARNING)
        self._write = write
        self._of = [logging.getLogger(name) for name in ("stream_vlm_ros", "py.warnings")]
        for logger in self._of:
            logger.addHandler(self)
        logging.captureWarnings(True)

    def emit(self, record: logging.LogRecord) -> None:
        words = record.getMessage()
        if record.name == "py.warnings":  # "file:line: kind: words", then the line itself
            words = words.splitlines()[0].split(": ", 1)[-1]
        if camera := LOADED.get():
            words = f"{camera}: {words}"
        self._write(cut(words, MAX_WARNING))

    def close(self) -> None:
        logging.captureWarnings(False)
        for logger in self._of:
            logger.removeHandler(self)
        super().close()


def traced(fault: BaseException) -> str:
    """A fault with its traceback for the log; it may quote what somebody sent."""
    lines = "".join(traceback.format_exception(fault)).splitlines()
    return "\n".join(cut(line) for line in lines)
