# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Past questions with their answers, in SQLite: in a file or in memory."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stream_vlm_ros.errors import StreamVlmError, cut

OURS = 0x53564C4D  # application_id of our files: "SVLM"
LAYOUT = 1  # user_version
MAX_FOUND, MAX_FOUND_BYTES, USUAL = 1000, 4 << 20, 100  # of one search
_TABLE = """
CREATE TABLE IF NOT EXISTS answers (
    id INTEGER PRIMARY KEY, answered_ns INTEGER NOT NULL, question TEXT NOT NULL,
    answer TEXT NOT NULL, fields TEXT NOT NULL, bytes INTEGER NOT NULL
);
CREATE INDEX IF NOT EXISTS by_time ON answers (answered_ns);
"""
_BYTES = "max(0, CAST(bytes AS INTEGER))"  # whatever somebody else wrote there
_TOO_OLD = f"""
DELETE FROM answers WHERE id <= (
    SELECT max(id) FROM (
        SELECT id, total({_BYTES}) OVER (ORDER BY id DESC) AS newer FROM answers
    ) WHERE newer > ?
)
"""


class AnswerLogError(StreamVlmError):
    """The file of past answers cannot be opened, read or written; the message says why."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        total: how many there are.
        answers: of the newest of them the time in nanoseconds and the fields, oldest first.
        unreadable: how many of the newest were left out, as somebody else wrote into the file.
    """

    total: int = 0
    answers: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    unreadable: int = 0


class AnswerLog:
    """Reads and writes in a thread of its own; the oldest answers go when they are too many.

    Args:
        path: of the file; None: in memory.
        max_bytes: of questions and answers together.
        report: is given what an `add` raised.

    Attributes:
        where: they are kept.
        lost: how many could not be kept.
        why_lost: what the newest of them raised.

    Raises AnswerLogError for a file that cannot be used, or is none of ours: it is left alone.
    """

    def __init__(
        self, path: Path | None, max_bytes: int, report: Callable[[Exception], None]
    ) -> None:
        self.where = str(path) if path is not None else "memory"
        self._max_bytes, self._report = max_bytes, report
        self._bytes, self.lost, self.why_lost = 0, 0, ""
        try:
            self._database = _opened(path)
        except (sqlite3.Error, OSError, ValueError) as fault:  # ValueError: NUL in the path
            raise AnswerLogError(f"{cut(self.where)} cannot be used: {fault}") from fault
        self._database.create_function("has", 2, _has, deterministic=True)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")
        self._thread.submit(self._bound)

    def add(self, answered_ns: int, question: str, answer: str, fields: dict[str, Any]) -> None:
        """Keep an answer; returns at once."""
        self._thread.submit(self._add, answered_ns, question, answer, fields)

    def find(
        self, from_ns: int = 0, to_ns: int = 0, text: str = "", limit: int = 0
    ) -> Future[Found]:
        """Look for answers; 0 and "" are no limits, but for ``limit``: `USUAL`.

        The future raises AnswerLogError where the file cannot be read.
        """
        return self._thread.submit(self._find, from_ns, to_ns, text, limit or USUAL)

    def close(self) -> None:
        """Write what waits, and give the file back."""
        self._thread.shutdown()
        self._database.close()

    def _bound(self) -> None:
        """Take away what is too much of a file that was kept under another bound."""
        try:
            with self._database:
                gone = self._database.execute(_TOO_OLD, (self._max_bytes,)).rowcount
            if gone:
                self._database.execute("VACUUM")
                self._database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        except sqlite3.Error as fault:  # a disk that is full; what is there can be read
            self._report(fault)
        with contextlib.suppress(sqlite3.Error):  # told when an answer is added or looked for
            self._bytes = round(
                self._database.execute(f"SELECT total({_BYTES}) FROM answers").fetchone()[0]
            )

    def _add(self, answered_ns: int, question: str, answer: str, fields: dict[str, Any]) -> None:
        try:
            written = json.dumps(fields, ensure_ascii=False)
            size = len(written.encode(errors="surrogatepass"))
            with self._database:
                self._database.execute(
                    "INSERT INTO answers (answered_ns, question, answer, fields, bytes) "
                    "VALUES (?, ?, ?, ?, ?)",
                    (answered_ns, question, answer, written, size),
                )
                kept = self._bytes + size
                row = f"SELECT id, {_BYTES} FROM answers ORDER BY id LIMIT 1"
                while kept > self._max_bytes and (found := self._database.execute(row).fetchone()):
                    oldest, its_bytes = found
                    self._database.execute("DELETE FROM answers WHERE id = ?", (oldest,))
                    kept -= its_bytes
            self._bytes = kept
        except Exception as fault:  # nobody waits for it; the node goes on
            self.lost, self.why_lost = self.lost + 1, str(fault)
            self._report(fault)

    def _find(self, from_ns: int, to_ns: int, text: str, limit: int) -> Found:
        chosen = "FROM answers WHERE answered_ns >= ? AND (? = 0 OR answered_ns <= ?)"
        values: list[Any] = [from_ns, to_ns, to_ns]
        if text:
            # As bytes: what somebody else wrote may be no UTF-8.
            chosen += " AND (has(CAST(question AS BLOB), ?) OR has(CAST(answer AS BLOB), ?))"
            values += [text.casefold()] * 2
        try:
            total = self._database.execute(f"SELECT count(*) {chosen}", values).fetchone()[0]
            rows = self._database.execute(
                f"SELECT answered_ns, CAST(fields AS BLOB) {chosen} ORDER BY id DESC LIMIT ?",
                [*values, min(limit, MAX_FOUND)],
            )
            answers, unreadable, room = [], 0, MAX_FOUND_BYTES
            for answered_ns, written in rows:
                room -= len(written)
                if room < 0:
                    break
                fields = _read(written)
                if fields is None or not isinstance(answered_ns, int):
                    unreadable += 1
                else:
                    answers.append((answered_ns, fields))
        except (sqlite3.Error, ValueError) as fault:
            raise AnswerLogError(f"{cut(self.where)} cannot be read: {fault}") from fault
        return Found(total, answers[::-1], unreadable)


def _read(written: bytes) -> dict[str, Any] | None:
    """The fields of an answer; None for what is none."""
    try:
        fields = json.loads(written)
    except (ValueError, RecursionError):
        return None
    return fields if isinstance(fields, dict) else None


def _opened(path: Path | None) -> sqlite3.Connection:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    # No wait for another process that has it: it would keep it for as long as it runs.
    place = ":memory:" if path is None else path.absolute()  # a file may be called :memory:
    database = sqlite3.connect(place, timeout=0.0, check_same_thread=False)
    try:
        # One node alone has the file, as each counts its bytes.
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        owner = database.execute("PRAGMA application_id").fetchone()[0]
        layout = database.execute("PRAGMA user_version").fetchone()[0]
        holds = database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        if (owner, layout) != (OURS, LAYOUT) and (holds or owner):
            raise AnswerLogError(
                f"{cut(str(path))} is no file of past answers of this version, and is left alone"
            )
        # A commit waits for no disk; what a sudden end of the machine costs is the newest answers.
        database.execute("PRAGMA synchronous = NORMAL")
        if owner:  # nothing is written: what a full disk holds can be read
            return database
        database.execute("PRAGMA journal_mode = WAL")
        database.executescript(_TABLE)
        database.execute(f"PRAGMA application_id = {OURS}")
        database.execute(f"PRAGMA user_version = {LAYOUT}")
        database.commit()
    except BaseException:
        database.close()
        raise
    return database


def _has(whole: bytes, part: str) -> bool:
    return part in whole.decode(errors="replace").casefold()
