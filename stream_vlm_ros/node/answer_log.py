# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Past questions with their answers, in SQLite: in a file or in memory."""

from __future__ import annotations

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


class AnswerLogError(StreamVlmError):
    """The file of past answers cannot be opened, read or written; the message says why."""


@dataclass(frozen=True)
class Found:
    """What a search found.

    Attributes:
        total: how many there are.
        answers: of the newest of them the time in nanoseconds and the fields, oldest first.
    """

    total: int = 0
    answers: list[tuple[int, dict[str, Any]]] = field(default_factory=list)


class AnswerLog:
    """Reads and writes in a thread of its own; the oldest answers go when they are too many.

    Args:
        path: of the file; None: in memory.
        max_bytes: of questions and answers together.
        report: is given what an `add` raised.

    Raises AnswerLogError for a file that cannot be used, or is none of ours: it is left alone.
    """

    def __init__(
        self, path: Path | None, max_bytes: int, report: Callable[[Exception], None]
    ) -> None:
        self.where = str(path) if path is not None else "memory"
        self._max_bytes, self._report = max_bytes, report
        try:
            self._database = _opened(path)
            self._database.create_function("has", 2, _has, deterministic=True)
            row = self._database.execute("SELECT total(bytes) FROM answers").fetchone()
            self._bytes = round(row[0])
        except (sqlite3.Error, OSError) as fault:
            raise AnswerLogError(f"{cut(self.where)} cannot be used: {fault}") from fault
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="answers")

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
                while kept > self._max_bytes:
                    row = "SELECT id, bytes FROM answers ORDER BY id LIMIT 1"
                    oldest, its_bytes = self._database.execute(row).fetchone()
                    self._database.execute("DELETE FROM answers WHERE id = ?", (oldest,))
                    kept -= its_bytes
            self._bytes = kept
        except Exception as fault:  # nobody waits for it; the node goes on
            self._report(fault)

    def _find(self, from_ns: int, to_ns: int, text: str, limit: int) -> Found:
        chosen = "FROM answers WHERE answered_ns >= ? AND (? = 0 OR answered_ns <= ?)"
        values: list[Any] = [from_ns, to_ns, to_ns]
        if text:
            chosen += " AND (has(question, ?) OR has(answer, ?))"
            values += [text.casefold()] * 2
        try:
            total = self._database.execute(f"SELECT count(*) {chosen}", values).fetchone()[0]
            rows = self._database.execute(
                f"SELECT answered_ns, fields, bytes {chosen} ORDER BY id DESC LIMIT ?",
                [*values, min(limit, MAX_FOUND)],
            )
            answers, room = [], MAX_FOUND_BYTES
            for answered_ns, written, size in rows:
                room -= size
                if room < 0:
                    break
                answers.append((answered_ns, json.loads(written)))
        except (sqlite3.Error, ValueError) as fault:
            raise AnswerLogError(f"{cut(self.where)} cannot be read: {fault}") from fault
        return Found(total, answers[::-1])


def _opened(path: Path | None) -> sqlite3.Connection:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
    # No wait for another process that has it: it would keep it for as long as it runs.
    database = sqlite3.connect(path or ":memory:", timeout=0.0, check_same_thread=False)
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
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = NORMAL")
        database.executescript(_TABLE)
        database.execute(f"PRAGMA application_id = {OURS}")
        database.execute(f"PRAGMA user_version = {LAYOUT}")
        database.commit()
    except BaseException:
        database.close()
        raise
    return database


def _has(whole: str, part: str) -> bool:
    return part in whole.casefold()
