# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A session's saved memory belongs to one server at a time, where several share a folder.

The system's lock on a file holds that: it ends with the process, however that ends. What the file
says tells the next server whether the one before has saved all it had seen. A server that wants it
says so by a second file, which the owner looks for.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import socket
import time
from collections.abc import Callable
from pathlib import Path

from stream_vlm_ros.errors import MemoryFileError, StreamBusyError, cut
from stream_vlm_ros.owned import open_regular, write_all

SUFFIX, WISH = ".server", ".wanted"
_LONGEST = 1024  # bytes of the file that are read
_POLL = 0.05  # seconds: flock has no timeout of its own


class SessionElsewhereError(StreamBusyError):
    """Another server has this session, and has not let it go in time."""

    retry_after = 2.0  # s


class Ownership:
    """The right to read and write the saved memory of a session, until `release`.

    Args:
        path: of the memory; its lock is the file `lock_of` it.
        server: what the next owner is told of this one.
        patience: seconds that another server has to let it go.
        is_given_up: whether it is not wanted any more, so that waiting ends.

    Attributes:
        before: the server that ended without saying that all was saved, such as one that was
            killed; "": none.

    Raises SessionElsewhereError after ``patience``, MemoryFileError where the folder cannot be
    written or has no locks.
    """

    def __init__(
        self,
        path: Path,
        server: str = "",
        patience: float = 10.0,
        is_given_up: Callable[[], bool] = lambda: False,
    ) -> None:
        self._is_given_up = is_given_up
        self._lock = lock_of(path)
        self._wish = self._lock.with_name(self._lock.name + WISH)
        try:
            path.parent.mkdir(0o700, parents=True, exist_ok=True)
            self._take(time.monotonic() + patience)
            self.before = ""
            try:
                self.before = self._said
                self._say(server or f"process {os.getpid()} of {socket.gethostname()}")
            except BaseException:
                self._give_back(path)
                raise
        except OSError as error:
            raise MemoryFileError(
                f"{cut(str(self._lock))}, by which servers share a memory_folder, cannot be "
                f"written or locked: {error.strerror or error}"
            ) from error

    def _give_back(self, path: Path) -> None:
        """It could not be said whose it is: no empty lock is to stay where there was none."""
        try:
            if not self.before and not os.path.lexists(path):
                self._lock.unlink(missing_ok=True)
        finally:
            os.close(self._file)

    def _take(self, until: float) -> None:
        while True:
            self._file = open_regular(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
            try:
                self._wait(until)
                # Who had it may have removed it meanwhile.
                if os.path.samestat(os.fstat(self._file), os.lstat(self._lock)):
                    return
            except FileNotFoundError:
                pass
            except BaseException:
                os.close(self._file)
                raise
            os.close(self._file)

    @property
    def is_wanted(self) -> bool:
        """Whether another server waits for it."""
        return os.path.lexists(self._wish)

    def _wait(self, until: float) -> None:
        try:
            while not self._locked():
                os.close(open_regular(self._wish, os.O_WRONLY | os.O_CREAT, 0o600))
                self._check_patience(until)
                time.sleep(_POLL)
        finally:
            self._wish.unlink(missing_ok=True)

    def _locked(self) -> bool:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    def _check_patience(self, until: float) -> None:
        if time.monotonic() > until or self._is_given_up():
            raise SessionElsewhereError(
                f"{self._said or 'another server'} has this session ({self._lock.name}) and has "
                "not let it go yet: try again in a moment"
            )

    @property
    def _said(self) -> str:
        return os.pread(self._file, _LONGEST, 0).decode("utf-8", "replace").strip()

    def _say(self, words: str) -> None:
        said = words.encode()[:_LONGEST]
        os.lseek(self._file, 0, os.SEEK_SET)
        write_all(self._file, said)  # a full disk leaves what was said before
        os.ftruncate(self._file, len(said))
        os.fsync(self._file)

    def release(self, *, saved: bool, forget: bool = False) -> None:
        """Let the next server have it.

        Args:
            saved: it finds all that was seen here.
            forget: there is nothing of the session any more.
        """
        try:
            if forget:
                self._lock.unlink(missing_ok=True)
            elif saved:
                self._say("")
        finally:
            os.close(self._file)


def lock_of(path: Path) -> Path:
    """The file that holds who has a memory; it is there while anything of a session is."""
    return path.with_name(path.name + SUFFIX)
