# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Which replica a session belongs to, told to the replicas themselves.

Ray Serve's proxies send a request to a replica by a hash of its session. When a replica is added,
is lost or is to end, the hash gives some sessions to another one: the replica that has them must
learn it, to save them and to let them go. Every replica has such a router of its own, which hears
what the proxies hear.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ray.serve.experimental.consistent_hash_router import ConsistentHashRouter
from ray.serve.request_router import ReplicaID, RunningReplica

# Called in the router's thread with the router, after each change of the replicas.
listeners: list[Callable[[SessionRing], None]] = []


class SessionRing(ConsistentHashRouter):
    """Ray's router by session, which says when the replicas have changed.

    Ray copies this class by value into every process: what it shares with the rest of a process
    is reached by an import.
    """

    @property
    def members(self) -> frozenset[str]:
        """Tags of the replicas that get requests."""
        return frozenset(one.unique_id for one in self.curr_replicas)

    def member_of(self, session: str) -> str | None:
        """Tag of the replica that gets a session's requests; None: there is no replica."""
        ranked = self._lookup_ranked_replicas(session)
        return ranked[0].unique_id if ranked else None

    def update_replicas(self, replicas: Sequence[RunningReplica]) -> None:
        """Ray's: these are all that get requests from now on."""
        super().update_replicas(list(replicas))
        _tell(self)

    def on_replica_actor_died(self, replica_id: ReplicaID) -> None:
        """Ray's: a request has found it dead."""
        super().on_replica_actor_died(replica_id)
        _tell(self)


def _tell(ring: Any) -> None:
    from stream_vlm_ros.serve import ring as shared

    for listener in shared.listeners:
        listener(ring)
