# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Where a session is saved: the file of its memory, whose it is, and how far frames were accepted.

Next to the memory lies a note of the newest frame that was accepted: what a server that was killed
had seen behind its last save is known by it.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from stream_vlm_ros.config import Settings
from stream_vlm_ros.console import duration_text
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.owned import open_regular, remove_parts, write_whole
from stream_vlm_ros.serve.events import Sent
from stream_vlm_ros.serve.notes import NoteWriter
from stream_vlm_ros.serve.ownership import Ownership, lock_of
from stream_vlm_ros.session.memory_keeper import memory_path

log = logging.getLogger(__name__)

NOTE = ".accepted.json"  # behind the name of the memory's file
NOTE_PERIOD = 2.0  # s between two notes of how far frames were accepted
_LONGEST_NOTE = 1024  # bytes


class Position(msgspec.Struct):
    """How far frames were accepted."""

    accepted_ns: int
    accepted_sequence: int


class SessionFile:
    """The file that a session goes on from, and is saved to. Without a folder it has none: nothing
    is read, written or owned then.

    Args:
        settings: of the session.
        server: what another server is told that wants it.
        patience: seconds that another server has to let it go.
        notes: writes what is noted of this and other sessions; None: one of its own does.

    Attributes:
        path: of the saved memory; None: there is no folder.
    """

    def __init__(
        self,
        settings: Settings,
        server: str = "",
        patience: float = 30.0,
        notes: NoteWriter | None = None,
    ) -> None:
        self.path = memory_path(settings)
        self._server, self._patience = server, patience
        self._ownership: Ownership | None = None
        # A disk may be stuck: no file is touched while the first is held, and none that is noted
        # but with the second.
        self._owning, self._writing = threading.Lock(), threading.Lock()
        self._notes = notes or NoteWriter()
        self._to_note: Sent | None = None
        self._noted: Sent | None = None
        self._is_noting = False
        self._noted_at = 0.0

    # -- whose it is -------------------------------------------------------------------------

    def own(self, is_given_up: Callable[[], bool] = lambda: False) -> None:
        """Let no other server have it, from now until `release`.

        Raises SessionElsewhereError where another server has it and does not let it go,
        MemoryFileError where the folder cannot be written.
        """
        if self.path is not None:
            self._ownership = Ownership(self.path, self._server, self._patience, is_given_up)

    @property
    def killed(self) -> str:
        """The server that had it before and ended without saving all; "": none."""
        return "" if self._ownership is None else self._ownership.before

    @property
    def is_wanted(self) -> bool:
        """Whether another server waits for it."""
        ownership = self._ownership
        return ownership is not None and ownership.is_wanted

    def disown(self) -> Ownership | None:
        """Take nothing more to write: who called it first is given what is to be released; None:
        nothing is owned."""
        with self._owning:
            ownership, self._ownership = self._ownership, None
        return ownership

    def release(
        self,
        ownership: Ownership,
        *,
        saved: bool = True,
        forget: bool = False,
        empty: bool = False,
    ) -> None:
        """Let another server have it, once nothing is being noted.

        Args:
            saved: it finds all that was seen here.
            forget: or nothing: the memory is deleted.
            empty: nothing of what was accepted here is in memory, nor is missed: where no file is
                there, either, nothing stays noted.
        """
        assert self.path is not None
        self._write_noted()
        with self._writing:
            try:
                if forget:
                    self.path.unlink(missing_ok=True)
                if forget or (empty and saved and not os.path.lexists(self.path)):
                    _note_of(self.path).unlink(missing_ok=True)
            finally:
                ownership.release(saved=saved, forget=not os.path.lexists(self.path))

    def delete(self) -> None:
        """Delete what is saved, also where another server has it at first. Raises as `own`."""
        self.own()
        if (ownership := self.disown()) is not None:
            self.release(ownership, forget=True)

    @property
    def is_there(self) -> bool:
        """Whether something is saved, or another server has it."""
        path = self.path
        return path is not None and (os.path.lexists(path) or os.path.lexists(lock_of(path)))

    # -- how far frames were accepted --------------------------------------------------------

    @property
    def is_note_due(self) -> bool:
        """Whether the last note is old."""
        return time.monotonic() - self._noted_at >= NOTE_PERIOD

    def note(self, accepted: Sent | None) -> None:
        """Have it written, in another thread, how far frames were accepted."""
        with self._owning:
            if self._ownership is None or accepted is None:
                return
            assert self.path is not None
            if accepted == self._noted and not self._is_noting:
                return
            self._noted_at = time.monotonic()
            self._to_note, self._is_noting = accepted, True
            try:
                self._notes.add(self._write_noted)
            except RuntimeError as fault:  # there are too many threads
                log.warning("%s cannot be written: %s", _note_of(self.path), fault)

    def _write_noted(self) -> None:
        """Write what is to be noted, if that was not done yet."""
        if not self._is_noting:  # who lets it go may wait for the disk, and is not waited for
            return
        with self._writing:
            with self._owning:
                accepted, self._to_note = self._to_note, None
            if accepted is not None and self._write_note(accepted):
                with self._owning:
                    self._noted = accepted
            with self._owning:
                self._is_noting = self._to_note is not None

    def _write_note(self, accepted: Sent) -> bool:
        assert self.path is not None
        text = msgspec.json.encode(Position(accepted.stamp_ns, accepted.sequence))
        try:
            # Not one that outlives a failure of power: that costs a write to the disk each.
            write_whole(_note_of(self.path), text, mode=0o600, durable=False)
        except OSError as fault:
            log.warning("%s cannot be written: %s", _note_of(self.path), fault)
            return False
        return True

    def noted(self) -> Position | None:
        """How far the server before had accepted frames; None: it has not said."""
        assert self.path is not None
        path = _note_of(self.path)
        try:
            remove_parts(path)
            with os.fdopen(open_regular(path), "rb") as file:
                return msgspec.json.decode(file.read(_LONGEST_NOTE), type=Position)
        except FileNotFoundError:
            return None
        except (OSError, msgspec.DecodeError) as fault:
            log.warning("%s cannot be read: %s", path, fault)
            return None

    def forget_note(self, accepted: Sent | None) -> None:
        """The memory is empty: of what was accepted up to there nothing is missed."""
        with self._writing:
            with self._owning:
                if self._ownership is None:
                    return
                self._to_note, self._noted = None, accepted  # a later one is noted by and by
                self._is_noting = False
            assert self.path is not None
            _note_of(self.path).unlink(missing_ok=True)

    # -- for a client ------------------------------------------------------------------------

    def without_folder(self, words: str) -> str:
        """Words for a client, who does not learn where the server has its files."""
        if self.path is None:
            return words
        folder = os.path.abspath(self.path.parent)
        return words.replace(f"{folder}{os.sep}", "").replace(folder, "there")


def _note_of(path: Path) -> Path:
    return path.with_name(path.name + NOTE)


def gap_between(noted: Position | None, newest_ns: int | None, killed: str) -> str:
    """What was accepted after what is in memory, in words.

    Args:
        killed: the server that ended without saving; "": it has saved all.
    """
    if noted is None or (newest_ns is not None and noted.accepted_ns <= newest_ns):
        # The note is a few seconds old.
        return killed and (
            f"what {killed} saw in its last seconds may be lost: it ended before it was saved"
        )
    if newest_ns is None:
        return "what was seen before is lost: the server ended before it was saved"
    lost = (noted.accepted_ns - newest_ns) / SECOND
    return (
        f"the last {duration_text(lost)} or so that were seen are lost: the server ended before "
        "they were saved"
    )
