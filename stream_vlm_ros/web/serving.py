# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""From memories to a console that is served until the process is told to end."""

from __future__ import annotations

import socket
from collections.abc import Sequence
from dataclasses import replace

from stream_vlm_ros.access import Access, listen
from stream_vlm_ros.processes.children import run_until_told
from stream_vlm_ros.web.live_memory import LiveMemory


def of_node(name: str, sources: Sequence[str] = ()) -> list[LiveMemory]:
    """Of a node that runs: these of its cameras, or the only one, or the first."""
    from stream_vlm_ros.processes.graph import check_ros

    check_ros()
    from stream_vlm_ros.web.over_node import OverNode

    return [OverNode(name, source) for source in sources or ("",)]


def serve(memories: Sequence[LiveMemory], access: Access) -> None:
    """Serve the console until the process is told to end. Raises InvalidParameterError."""
    listening = listen(access.host, access.port)
    with listening:
        host, port = listening.getsockname()[:2]
        shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
        shown = f"[{shown}]" if ":" in shown else shown
        asked = " Type the key there." if access.key else ""
        print(f"The console is at http://{shown}:{port}{asked} (Ctrl-C ends it)", flush=True)
        from stream_vlm_ros.web.app import serve as serve_app

        run_until_told(serve_app(memories, replace(access, port=port), listening=listening))
