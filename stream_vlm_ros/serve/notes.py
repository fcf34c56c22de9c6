# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""One thread writes the notes of all sessions: on a disk that is stuck one waits, and not each."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable

log = logging.getLogger(__name__)


class NoteWriter:
    """Calls what is due to be written, in a thread that ends when nothing is."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._due: dict[Callable[[], None], None] = {}  # in the order in which they came
        self._thread: threading.Thread | None = None

    def add(self, write: Callable[[], None]) -> None:
        """Have it called, once, however often it is added before that.

        RuntimeError: no thread can be started; it is called when another one that is added has one.
        """
        with self._lock:
            self._due[write] = None
            if self._thread is None:
                thread = threading.Thread(target=self._write, name="notes", daemon=True)
                thread.start()
                self._thread = thread

    def _write(self) -> None:
        while True:
            with self._lock:
                if not self._due:
                    self._thread = None
                    return
                write = next(iter(self._due))
                del self._due[write]
            try:
                write()
            except Exception as fault:  # the next one may go well
                log.error("internal error", exc_info=fault)
