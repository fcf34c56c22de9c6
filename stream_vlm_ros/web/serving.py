# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""From memories to a console that is served until the process is told to end."""

from __future__ import annotations

import errno
import socket
from collections.abc import Sequence
from dataclasses import replace

from stream_vlm_ros.access import Access
from stream_vlm_ros.errors import InvalidParameterError
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
    listening = _listen(access)
    with listening:
        host, port = listening.getsockname()[:2]
        shown = {"0.0.0.0": socket.gethostname(), "::": socket.gethostname()}.get(host, host)
        shown = f"[{shown}]" if ":" in shown else shown
        asked = " Type the key there." if access.key else ""
        print(f"The console is at http://{shown}:{port}{asked} (Ctrl-C ends it)", flush=True)
        from stream_vlm_ros.web.app import serve as serve_app

        run_until_told(serve_app(memories, replace(access, port=port), listening=listening))


def _listen(access: Access) -> socket.socket:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            access.host, access.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        return socket.create_server(address[:2], family=family)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            hint = f"port {access.port} is taken; choose another with --port"
        else:
            hint = f"{access.host} port {access.port} cannot be listened at: {error.strerror}"
        raise InvalidParameterError(hint) from error
