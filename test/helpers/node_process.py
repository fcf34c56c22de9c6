# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A node in a process of its own."""

import os
import signal
import subprocess
import sys
import threading
import time
import typing
import weakref
from pathlib import Path

from patience import PATIENCE

# As ``python -m stream_vlm_ros.node``, and a signal makes it print what each thread is doing.
RUN_NODE = """
import faulthandler, runpy, signal
faulthandler.register(signal.SIGUSR2)
runpy.run_module("stream_vlm_ros.node", run_name="__main__", alter_sys=True)
"""


class NodeProcess:
    """``python -m stream_vlm_ros.node`` with its output gathered."""

    living: typing.ClassVar = weakref.WeakSet()

    @classmethod
    def what_they_do(cls):
        """Output of each node that runs, and where its threads are: what a failed wait is told."""
        told = []
        for node in [node for node in cls.living if node.process.poll() is None]:
            node.process.send_signal(signal.SIGUSR2)
            time.sleep(2.0)
            told.append("\n".join(["", f"node {node.process.pid}:", *node.lines[-120:]]))
        return "".join(told)

    def __init__(self, *remaps, namespace="", environment=None, **parameters):
        arguments = [sys.executable, "-c", RUN_NODE, "--ros-args"]
        for name, value in parameters.items():
            arguments += ["-p", f"{name}:={value}"]
        for remap in (*remaps, *([f"__ns:=/{namespace}"] if namespace else [])):
            arguments += ["-r", remap]
        self.process = subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            start_new_session=True,
        )
        self.living.add(self)
        self.lines = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip())
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def output(self):
        return "\n".join(self.lines)

    def wait_for(self, words, timeout=PATIENCE):
        """Until the output holds ``words``."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while words not in self.output:
                left = deadline - time.monotonic()
                over = self.process.poll() is not None and not self._reader.is_alive()
                assert left > 0 and not over, f"{words!r} never came:\n{self.output}"
                self._changed.wait(min(left, 0.5))

    def stop(self, number=signal.SIGINT, timeout=PATIENCE):
        """Send a signal; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the node did not end:\n{self.output}") from None
        self._reader.join(5)
        return status

    def group_is_empty(self):
        """Whether no process of the node's session is left."""
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = status.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self.process.pid and fields[0] != "Z":  # its session
                return False
        return True
