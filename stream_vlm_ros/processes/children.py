"""Child processes that are started together and never outlive their parent."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_ERROR = re.compile(r"^\[(?:ERROR|FATAL)\] \[[^]]*\] \[[^]]*\]: (.*)$", re.MULTILINE)


class Processes:
    """Python modules run as processes of their own; leaving the ``with`` block ends them all.

    Each is its own process group, so that Ctrl-C reaches the parent alone, which ends the children
    in the reverse order of their start: first asked (SIGINT), then told (SIGTERM), then killed.
    """

    STEPS = ((signal.SIGINT, 10.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0))  # and seconds

    def __init__(self, logs: Path, environment: dict[str, str]) -> None:
        self.logs = logs
        self._environment = {**os.environ, **environment}
        self._libc = ctypes.CDLL(None)
        self._children: dict[str, subprocess.Popen] = {}

    def __enter__(self) -> Processes:
        return self

    def __exit__(self, *exception) -> None:
        self.stop()

    def start(self, name: str, module: str, *arguments: str, log: bool = True) -> None:
        """Run ``python -m module arguments``; with ``log`` its output goes to a file."""
        with contextlib.ExitStack() as files:
            output = files.enter_context(self.log_of(name).open("wb")) if log else None
            self._children[name] = subprocess.Popen(
                [sys.executable, "-m", module, *arguments],
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT if log else None,
                start_new_session=True,
                preexec_fn=self._settle_signals,
            )

    def _settle_signals(self) -> None:
        # A shell starts what it puts in the background with SIGINT ignored, and children inherit
        # that: they could not be asked to end.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        # Even if the parent is killed without a chance to clean up, its children get SIGTERM.
        self._libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)

    def log_of(self, name: str) -> Path:
        return self.logs / f"{name}.log"

    def tail_of(self, name: str, lines: int = 12) -> str:
        """The end of a child's log."""
        try:
            text = self.log_of(name).read_text(errors="replace")
        except OSError:
            return ""
        return "\n".join(text.rstrip().splitlines()[-lines:])

    def error_of(self, name: str) -> str | None:
        """The first error that a ROS node wrote into its log, without time and name."""
        try:
            found = _ERROR.search(self.log_of(name).read_text(errors="replace"))
        except OSError:
            return None
        return found[1] if found else None

    def status(self, name: str) -> int | None:
        """The exit status of a child, None while it runs."""
        return self._children[name].poll()

    def stop(self) -> list[str]:
        """End every child; the names of those that did not end when asked."""
        stubborn = []
        for name, child in reversed(list(self._children.items())):
            for number, patience in self.STEPS:
                if child.poll() is not None:
                    break
                if number is not signal.SIGINT:
                    stubborn.append(name)
                self._send(child, number)
                end = time.monotonic() + patience
                while child.poll() is None and time.monotonic() < end:
                    time.sleep(0.02)
            self._send(child, signal.SIGKILL)  # what the child itself may have left in its group
        return sorted(set(stubborn))

    @staticmethod
    def _send(child: subprocess.Popen, number: int) -> None:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(child.pid, number)
