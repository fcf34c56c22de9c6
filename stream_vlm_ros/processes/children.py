# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Child processes that are started together and never outlive their parent."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Coroutine, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

T = TypeVar("T")
ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_IMPORTING = "<frozen importlib._bootstrap>"  # whose code runs for as long as an import does
_WHILE_IMPORTING = 0.05  # seconds until a signal comes again

_PR_SET_PDEATHSIG = 1
_ERROR = re.compile(r"^\[(?:ERROR|FATAL)\] \[[^]]*\] \[[^]]*\]: (.*)$", re.MULTILINE)


@contextlib.contextmanager
def undisturbed() -> Iterator[None]:
    """What is done here is done to its end: signals that ask for one come into effect after it."""
    came: list[int] = []
    with _handled_by(lambda number, frame: came.append(number)):
        yield
    for number in came[:1]:
        signal.raise_signal(number)


@contextlib.contextmanager
def signals_as_ctrl_c() -> Iterator[None]:
    """SIGTERM and SIGHUP raise KeyboardInterrupt here, as SIGINT does.

    SIGINT does so too where a shell started us in its background, with SIGINT ignored. An import
    that is under way comes to its end first: what is half imported cannot be imported again for the
    report of what was done, and torch crashes then.
    """
    with _handled_by(_raise_after_import):
        yield


def run_until_told(work: Coroutine[Any, Any, T]) -> T:
    """What comes of it in a loop of its own; a signal that ends processes cancels it, each further
    one what it does then, and KeyboardInterrupt is raised here once it has ended."""

    async def run() -> T:
        loop, task = asyncio.get_running_loop(), asyncio.ensure_future(work)
        if threading.current_thread() is threading.main_thread():
            for number in ENDING_SIGNALS:
                if signal.getsignal(number) != signal.SIG_IGN:  # nohup means it
                    loop.add_signal_handler(number, task.cancel)
        return await task

    try:
        return asyncio.run(run())
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None


def _raise_after_import(number: int, frame: FrameType | None) -> None:
    caller = frame
    while caller is not None:
        if caller.f_code.co_filename == _IMPORTING:
            again = threading.Timer(_WHILE_IMPORTING, os.kill, (os.getpid(), number))
            again.daemon = True
            again.start()
            return
        caller = caller.f_back
    signal.default_int_handler(number, frame)


@contextlib.contextmanager
def _handled_by(handler: Any) -> Iterator[None]:
    """Signals handled so, and then as before; outside the main thread they are left alone."""
    before = {}
    if threading.current_thread() is threading.main_thread():
        for number in ENDING_SIGNALS:
            # nohup ignores SIGHUP, and means it.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                before[number] = signal.signal(number, handler)
    try:
        yield
    finally:
        for number, earlier in before.items():
            signal.signal(number, earlier)


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

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def start(
        self,
        name: str,
        module: str,
        *arguments: str,
        log: bool = True,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        """Run ``python -m module arguments``; with ``log`` its output goes to a file."""
        self.run(name, [sys.executable, "-m", module, *arguments], log, stdin)

    def run(
        self,
        name: str,
        command: Sequence[str],
        log: bool = True,
        stdin: int = subprocess.DEVNULL,
    ) -> None:
        """Run a command; with ``log`` its output goes to a file. Raises OSError if it cannot be."""
        with contextlib.ExitStack() as stack:
            output = stack.enter_context(self.log_of(name).open("wb")) if log else None
            # A signal between its start and our knowing it would leave it behind.
            before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING_SIGNALS)
            stack.callback(signal.pthread_sigmask, signal.SIG_SETMASK, before)
            self._children[name] = subprocess.Popen(
                command,
                env=self._environment,
                stdin=stdin,
                stdout=output,
                stderr=subprocess.STDOUT if log else None,
                start_new_session=True,
                preexec_fn=lambda: self._settle_signals(before),
            )

    def _settle_signals(self, mask: set[int | signal.Signals]) -> None:
        # A shell starts what it puts in the background with SIGINT ignored, and children inherit
        # that: they could not be asked to end.
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
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
        """End every child; the names of those that did not end when asked.

        It takes its time, and no impatient signal meanwhile can make it leave one behind.
        """
        with undisturbed():
            return self._stop()

    def _stop(self) -> list[str]:
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
