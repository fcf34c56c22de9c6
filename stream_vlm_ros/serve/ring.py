# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Which replica a session belongs to, told to the replicas themselves.

Ray Serve's proxies send a request to a replica by a hash of its session. When a replica is added,
is lost or is to end, the hash gives some sessions to another one: the replica that has them must
learn it, to save them and to let them go. Every replica has such a router of its own, which hears
what the proxies hear.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import RunningReplica

# Called with the router, in its thread, after each change of the replicas.
listeners: list[Callable[[SessionRing], None]] = []


class SessionRing(ConsistentHashRouter):
    """Ray's router by session, which can be asked, from any thread.

    Ray copies this class by value into every process: what it shares with the rest of a process
    is reached by an import.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._changing = threading.Lock()

    def update_replicas(self, replicas: list[RunningReplica]) -> None:
        """Ray's: these are all that get requests from now on."""
        from stream_vlm_ros.serve import ring

        with self._changing:
            super().update_replicas(replicas)
        for listener in ring.listeners:
            listener(self)

    def has(self, replica: str) -> bool:
        """Whether a replica of this tag gets requests."""
        return any(one.unique_id == replica for one in list(self.curr_replicas))

    def home_of(self, session: str) -> str:
        """Tag of the replica that gets a session's requests; "": there is no replica."""
        with self._changing:
            ranked = self._lookup_ranked_replicas(session)
        return ranked[0].unique_id if ranked else ""
