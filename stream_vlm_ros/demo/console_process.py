# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The console in the browser, as one of the demo's processes, without which the demo goes on."""

from __future__ import annotations

import socket

from stream_vlm_ros.demo.settings import NODE_NAME
from stream_vlm_ros.processes.children import Processes
from stream_vlm_ros.web.extra import why_no_console

NAME = "console"
USUAL_PORT = 8080


class ConsoleProcess:
    """Started with the others, and ended with them."""

    def __init__(self, processes: Processes) -> None:
        self._processes = processes
        self._runs = False

    def start(self) -> str:
        """Its address, or why there is none, in words."""
        if missing := why_no_console():
            return missing
        port = _free_port()
        self._processes.start(
            NAME, "stream_vlm_ros.web", "--node", f"/{NODE_NAME}", "--port", str(port)
        )
        self._runs = True
        return f"http://127.0.0.1:{port} (in a moment)"

    def news(self) -> str:
        """That it has ended, and what it said last, told once; "": nothing new."""
        if not self._runs or self._processes.status(NAME) is None:
            return ""
        self._runs = False
        return f"The console has ended; the demo goes on. {self._processes.tail_of(NAME, 1)}"


def _free_port() -> int:
    """The usual one, else any that is free."""
    for port in (USUAL_PORT, 0):
        try:
            with socket.create_server(("127.0.0.1", port)) as found:
                taken: int = found.getsockname()[1]
                return taken
        except OSError:
            continue
    return USUAL_PORT  # the console says what is wrong with it
