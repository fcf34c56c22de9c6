# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A path between two programs that can be stalled and cut."""

import contextlib
import socket
import threading
import time


class Proxy:
    """Forwards bytes both ways, until it is stalled, or cut."""

    def __init__(self, port):
        self.target, self.stalled, self._over = port, False, False
        self._sockets = []
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def __enter__(self):
        return self

    def __exit__(self, *fault):
        self._over = True
        self._listening.close()

    def cut(self):
        """All connections break off, wherever they are."""
        sockets, self._sockets = self._sockets, []
        for one in sockets:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)

    def _accept(self):
        while not self._over:
            try:
                near, _ = self._listening.accept()
            except OSError:
                return
            try:
                far = socket.create_connection(("127.0.0.1", self.target))
            except OSError:  # nobody listens
                near.close()
                continue
            self._sockets += [near, far]
            for one, other in ((near, far), (far, near)):
                threading.Thread(target=self._forward, args=(one, other), daemon=True).start()

    def _forward(self, one, other):
        try:
            while data := one.recv(65536):
                while self.stalled and not self._over:
                    time.sleep(0.01)
                other.sendall(data)
            other.shutdown(socket.SHUT_WR)
        except OSError:
            pass
