# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Two children, each with the engine of its own tree, that are given the same commands."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent
START_SECONDS, COMMAND_SECONDS = 120.0, 60.0


class ChildFailed(Exception):
    """A child ended or did not answer; the message has what it wrote to its standard error."""


class Child:
    """A process that answers commands one by one, as long as it lives.

    Args:
        name: for messages.
        tree: the folder with the package that it imports.
        arguments: further ones for its script.
        script: what it runs.
    """

    def __init__(
        self,
        name: str,
        tree: Path,
        arguments: tuple[str, ...] = (),
        script: Path = FOLDER / "child.py",
    ):
        self.name = name
        ours, theirs = socket.socketpair()
        self._errors = tempfile.TemporaryFile("w+")  # noqa: SIM115 (closed with the child)
        # Nothing but the tree: an installed copy of the package must not come first.
        environment = {**os.environ, "PYTHONPATH": str(tree), "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONSAFEPATH", None)  # the script imports its neighbour
        with theirs:
            end = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, script, "--socket", str(end), "--tree", tree, *arguments],
                pass_fds=[end],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=self._errors,  # what an engine prints is no answer
                stderr=self._errors,
            )
        self._connection = Connection(ours.detach())
        self._started = False

    def send(self, command: str, arguments: Mapping[str, Any]) -> None:
        if not self._started:
            self._receive(START_SECONDS)
            self._started = True
        try:
            self._connection.send((command, arguments))
        except OSError as error:
            raise self._failed("has ended") from error

    def answer(self) -> dict[str, Any]:
        """To the command sent last. Raises ChildFailed if none comes."""
        return self._receive(COMMAND_SECONDS)

    def close(self) -> None:
        """End the process. (It ends by itself once nobody holds the other end.)"""
        self._connection.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def _receive(self, seconds: float) -> dict[str, Any]:
        try:
            if self._connection.poll(seconds):
                return self._connection.recv()
        except (EOFError, OSError) as error:
            raise self._failed("has ended") from error
        self._process.kill()
        raise self._failed(f"has not answered within {seconds:g} s")

    def _failed(self, what: str) -> ChildFailed:
        status = self._process.wait()
        self._errors.seek(0)
        told = "".join(self._errors.readlines()[-30:]) or "(nothing)\n"
        return ChildFailed(
            f"the {self.name} tree's process {what} (status {status}). "
            f"Its standard error ends with:\n{told}"
        )


class Pair:
    """The tree before and the tree after, kept from one machine to the next.

    Args:
        trees: the two folders.
        models: names of models and their folders.
        fault: to introduce into the second.
    """

    NAMES = ("before", "after")

    def __init__(self, trees: tuple[Path, Path], models: Mapping[str, Path], fault: str = ""):
        options = [part for name, at in models.items() for part in ("--model", f"{name}={at}")]
        faulty = [*options, "--fault", fault] if fault else options
        self._how = list(zip(self.NAMES, trees, (options, faulty), strict=True))
        self._children: list[Child] = []

    def both(self, command: str, **arguments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """What each answers: its ``result``, or the type's name and ``message`` of its error."""
        if not self._children:  # the first time, and after a failure
            self._children = [Child(name, tree, tuple(how)) for name, tree, how in self._how]
        try:
            for child in self._children:
                child.send(command, arguments)
            before, after = (child.answer() for child in self._children)
        except ChildFailed:
            self.close()
            raise
        return before, after

    def close(self) -> None:
        while self._children:
            self._children.pop().close()
