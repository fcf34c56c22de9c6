# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the node's log says of errors: each once with its traceback, and then how often."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field

from stream_vlm_ros.errors import cut
from stream_vlm_ros.session.news import News

MAX_WARNING = 2000  # characters


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
