# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Answers kept as they come, so that an interrupted replay can resume."""

from __future__ import annotations

import hashlib
import json
import math
import os
import zlib
from pathlib import Path
from typing import Any

from stream_vlm_ros import __version__
from stream_vlm_ros.errors import StreamVlmError
from stream_vlm_ros.owned import open_regular, write_all

from .records import AnswerRecord


class JournalError(StreamVlmError):
    """An answer that cannot be kept: a full disk, say. Those before it are kept."""

    code = "JOURNAL"


def fingerprint(*parts: Any) -> str:
    """The same for the same settings, source and questions, told by the same version, only."""
    text = json.dumps([__version__, *parts], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def as_json(value: Any, indent: int | None = None) -> str:
    """``value`` as JSON of ASCII alone; what JSON has no word for is written as text, or null."""
    return json.dumps(_plain(value), indent=indent, allow_nan=False)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(entry) for entry in value]
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    return value if value is None or isinstance(value, (str, int)) else str(value)


def _sum(line: dict[str, Any]) -> int:
    return zlib.crc32(as_json(line).encode())


def _summed(line: dict[str, Any]) -> str:
    return as_json(line | {"sum": _sum(line)}) + "\n"


class Journal:
    """One line of JSON for each answer and each finished run, on the disk when the call returns.

    Nothing is ever removed from it: of two lines about one thing the later counts. Each ends with
    the sum of what it says; a line that was cut or changed does not count.

    Args:
        path: the file; lines of other fingerprints in it stay, and do not count.
        resume: take what is there; otherwise what a run has said before does not count.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        self._answers: dict[tuple[str, str], AnswerRecord] = {}
        self._runs: dict[str, dict[str, Any]] = {}
        self._file: int | None = None
        self._afresh: set[str] | None = None if resume else set()
        if resume:
            self._read()

    def answer(self, key: str, ask_id: str) -> AnswerRecord | None:
        """The answer that run ``key`` has given to a question before."""
        return self._answers.get((key, ask_id))

    def run(self, key: str) -> dict[str, Any] | None:
        """Run ``key`` if it was finished before."""
        return self._runs.get(key)

    def answered(self, key: str) -> int:
        """How many questions run ``key`` has answered before."""
        return sum(known == key for known, _ in self._answers)

    def keep_answer(self, key: str, record: AnswerRecord) -> None:
        """Raises JournalError where it cannot be written."""
        self._answers[key, record["id"]] = record
        self._write({"run": key, "answer": record})

    def keep_run(self, key: str, run: dict[str, Any]) -> None:
        """Raises JournalError where it cannot be written."""
        self._runs[key] = run
        self._write({"run": key, "finished": run})

    def close(self) -> None:
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def _write(self, line: dict[str, Any]) -> None:
        text = _summed(line)
        if self._afresh is not None and line["run"] not in self._afresh:
            text = _summed({"run": line["run"], "afresh": True}) + text
        try:
            if self._file is None:
                self._file = self._open()
            end = os.lseek(self._file, 0, os.SEEK_END)
            try:
                write_all(self._file, text.encode())
                os.fsync(self._file)
            except OSError:
                os.ftruncate(self._file, end)  # half a line would swallow the next one
                raise
        except OSError as error:
            raise JournalError(
                f"{self.path} cannot be written ({error.strerror or error}); it holds the "
                "answers before this one"
            ) from error
        if self._afresh is not None:
            self._afresh.add(line["run"])

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        file = open_regular(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o666)
        # A line that was cut off by a crash must not swallow the next one.
        size = os.fstat(file).st_size
        if size and os.pread(file, 1, size - 1) != b"\n":
            write_all(file, b"\n")
        return file

    def _read(self) -> None:
        try:
            with open(open_regular(self.path), "rb") as file:
                lines = file.read().split(b"\n")
        except OSError:
            return
        for line in lines:
            try:
                entry = json.loads(line)
                if entry.pop("sum") != _sum(entry):
                    continue
                key = entry["run"]
                if "answer" in entry:
                    self._answers[key, entry["answer"]["id"]] = entry["answer"]
                elif "finished" in entry:
                    self._runs[key] = entry["finished"]
                elif "afresh" in entry:
                    self._runs.pop(key, None)
                    self._answers = {k: a for k, a in self._answers.items() if k[0] != key}
            except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
                continue  # a line cut off by a crash
