"""Answers kept as they come, so that a replay that was interrupted can go on."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any, TextIO


def fingerprint(*parts: Any) -> str:
    """The same for the same settings, source and questions only."""
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


class Journal:
    """One line of JSON for each answer and each finished run, written at once.

    Args:
        path: the file; lines of other fingerprints in it stay, and do not count.
        resume: take what is there; otherwise it is emptied.
    """

    def __init__(self, path: Path, resume: bool) -> None:
        self.path = path
        self._answers: dict[tuple[str, str], dict[str, Any]] = {}
        self._runs: dict[str, dict[str, Any]] = {}
        if resume:
            self._read()
        elif path.exists():
            path.unlink()
        self._file: TextIO | None = None

    def answer(self, key: str, ask_id: str) -> dict[str, Any] | None:
        """The answer that run ``key`` has given to a question before."""
        return self._answers.get((key, ask_id))

    def run(self, key: str) -> dict[str, Any] | None:
        """Run ``key`` if it was finished before."""
        return self._runs.get(key)

    def answered(self, key: str) -> int:
        """How many questions run ``key`` has answered before."""
        return sum(known == key for known, _ in self._answers)

    def keep_answer(self, key: str, record: dict[str, Any]) -> None:
        self._answers[key, record["id"]] = record
        self._write({"run": key, "answer": record})

    def keep_run(self, key: str, run: dict[str, Any]) -> None:
        self._runs[key] = run
        self._write({"run": key, "finished": run})

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, line: dict[str, Any]) -> None:
        if self._file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            # A line that was cut off by a crash must not swallow the next one.
            torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
            self._file = self.path.open("a", encoding="utf-8")
            if torn and self.path.stat().st_size:
                self._file.write("\n")
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()

    def _read(self) -> None:
        try:
            lines = self.path.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return
        for line in lines:
            try:
                entry = json.loads(line)
                if "answer" in entry:
                    self._answers[entry["run"], entry["answer"]["id"]] = entry["answer"]
                elif "finished" in entry:
                    self._runs[entry["run"]] = entry["finished"]
            except (ValueError, KeyError, TypeError):
                continue  # a line cut off by a crash
