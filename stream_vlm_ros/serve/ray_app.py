# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The service on Ray Serve: replicas, a GPU each, that share a folder of saved memories.

A session's requests always go to the same replica, by Ray's hash of the header ``x-session-id``.
When replicas come or go, those that stay hand over the sessions that now belong to others, once
these are saved; a camera is told to connect again, and its session goes on at the new owner.
"""

from __future__ import annotations

import asyncio
import math
import os
import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import ray
from fastapi import FastAPI
from fastapi.middleware import Middleware
from ray import serve
from ray.serve.config import RequestRouterConfig

from stream_vlm_ros.access import read_keys
from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.serve import ring
from stream_vlm_ros.serve.app import create_app
from stream_vlm_ros.serve.cluster import Cluster
from stream_vlm_ros.serve.keys import Keys
from stream_vlm_ros.serve.named import Named
from stream_vlm_ros.serve.options import Limits
from stream_vlm_ros.serve.running import spare_what_stays
from stream_vlm_ros.serve.session import Session
from stream_vlm_ros.serve.sessions import Sessions

NAME = "stream-vlm"  # of the application, and of its deployment
TICK = 0.1  # s
# Seconds for which a replica still serves a session that is not its own any more: some proxy may
# not have heard yet.
LINGER = 0.5
ENDING = LINGER + 10.0  # s that a replica may take to end, apart from draining


class Replica:
    """What `stream-vlm serve` is, as one of several.

    Args:
        settings, limits: as of `stream-vlm serve`.
        key_file: of the keys, on the machine of the replica. The keys themselves are not given to
            Ray, which shows what it is given.
    """

    def __init__(self, settings: Settings, limits: Limits, key_file: str) -> None:
        context = serve.get_replica_context()
        self._tag = context.replica_tag
        self._keys = Keys(read_keys(key_file))
        self._limits, keys = limits, len(self._keys.keys)
        self.sessions = Sessions(settings, limits, keys=keys, server=f"replica {self._tag}")
        self.sessions.load()
        spare_what_stays()
        self._ring: ring.SessionRing | None = None
        self._is_ended = threading.Event()
        ring.listeners.append(self._hear)
        # A call makes the router of this process; who answers it is of no interest.
        serve.get_deployment_handle(context.deployment, context.app_name).process.remote()
        self._watching = threading.Thread(target=self._watch, name="ring", daemon=True)
        self._watching.start()

    def process(self) -> tuple[str, int]:
        """The name of this replica, and its process."""
        return self._tag, os.getpid()

    def check_health(self) -> None:
        """Ray's: a replica of which this raises is replaced."""
        if not self.sessions.is_alive:
            raise RuntimeError("the thread of the engines has ended")
        if not self._watching.is_alive():
            raise RuntimeError("the thread that hands sessions over has ended")

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Ray's: the application, with `Named` behind what asks for a key."""
        app = create_app(self.sessions, self._keys)
        named = Middleware(Named, replica=self._tag, keys=self._keys)
        app.user_middleware.append(named)
        return app

    async def __del__(self) -> None:
        """Ray's, when nothing is under way: sessions without a camera would go with the process."""
        self._is_ended.set()
        await asyncio.to_thread(self._watching.join)

    def _hear(self, replicas: ring.SessionRing) -> None:
        self._ring = replicas

    def _watch(self) -> None:
        """Hand over what belongs to others, and at the end everything."""
        seconds = self._limits.drain_seconds
        was_in, away_since = False, dict[Session, float]()
        while True:
            if self._is_ended.wait(TICK):
                self.sessions.drain(seconds)
                return
            if self._ring is None:
                continue
            if not self._ring.has(self._tag):
                if was_in:
                    time.sleep(LINGER)
                    self.sessions.drain(seconds)
                    return
                continue
            was_in = True
            now = time.monotonic()
            homes = {one: self._ring.home_of(one.id) for one in self.sessions.all()}
            away = [one for one, home in homes.items() if home not in (self._tag, "")]
            away_since = {one: away_since.get(one, now) for one in away}
            due = [one for one, since in away_since.items() if now - since > LINGER]
            if due:
                away_since |= dict.fromkeys(due, float("inf"))
                going = threading.Thread(
                    target=self.sessions.hand_over, args=(due, seconds), daemon=True
                )
                going.start()


def application(args: Mapping[str, Any]) -> serve.Application:
    """The application, for `serve run` and a Serve config (config/ray_serve.yaml).

    Args:
        args: the options of `stream-vlm serve` by name, such as ``max_cache_tokens``, those of
            `Cluster`, and ``key_file``.

    Raises InvalidParameterError for one that there is not, or a value that is of no use.
    """
    values = dict(args)
    key_file = str(values.pop("key_file", ""))
    limits = {name: values.pop(name) for name in Limits.table() if name in values}
    cluster = {name: values.pop(name) for name in Cluster.table() if name in values}
    return deployed(Settings.of(values), Limits.of(limits), Cluster.of(cluster), key_file)


def check_shared(settings: Settings) -> None:
    """Raise InvalidParameterError where replicas have no folder in common."""
    if not settings.memory_folder:
        raise InvalidParameterError(
            "name a --memory-folder that all replicas reach: a session that goes from one to "
            "another is saved there"
        )


def with_gpus(cluster: Cluster) -> Cluster:
    """With a replica's GPUs said: one, if the cluster has any."""
    if cluster.replica_gpus >= 0:
        return cluster
    return replace(cluster, replica_gpus=1.0 if _resources().get("GPU") else 0.0)


def has_room(cluster: Cluster) -> bool:
    """Whether a replica more fits on some node, so that the next one may begin before one ends:
    else both would wait for each other."""
    if not ray.is_initialized():
        return not cluster.replica_gpus
    nodes = [one["Resources"] for one in ray.nodes() if one["Alive"]]
    return sum(_fit(cluster, one) for one in nodes) > cluster.replicas


def _fit(cluster: Cluster, node: Mapping[str, float]) -> float:
    """How many replicas a node takes."""
    cpus, gpus = cluster.replica_cpus, cluster.replica_gpus
    of_cpus = _times(cpus, node.get("CPU", 0.0)) if cpus else math.inf
    of_gpus = math.inf
    if gpus > 0:  # a part of a GPU is of one
        has = node.get("GPU", 0.0)
        of_gpus = has * _times(gpus, 1.0) if gpus < 1 else _times(gpus, has)
    return min(of_cpus, of_gpus)


def _times(part: float, whole: float) -> int:
    """How often a part is in a whole, as Ray counts: in units of 0.0001."""
    return round(whole * 10_000) // max(1, round(part * 10_000))


def _resources() -> dict[str, float]:
    return ray.cluster_resources() if ray.is_initialized() else {}


def deployed(
    settings: Settings, limits: Limits, cluster: Cluster, key_file: str = ""
) -> serve.Application:
    """The application of these options. Raises InvalidParameterError."""
    check_shared(settings)
    cluster = with_gpus(cluster)
    make = serve.deployment(
        name=NAME,
        num_replicas=cluster.replicas,
        # One after the other is replaced.
        rolling_update_percentage=0.01,
        max_surge_percent=1 if has_room(cluster) else 0,
        # A camera's WebSocket is one that goes on; others are refused by the replica, in words.
        max_ongoing_requests=limits.max_sessions * (2 + settings.max_questions) + 100,
        graceful_shutdown_timeout_s=limits.drain_seconds + ENDING,
        graceful_shutdown_wait_loop_s=TICK,
        max_constructor_retry_count=2,  # what is wrong is told soon
        health_check_period_s=2.0,
        health_check_timeout_s=10.0,
        ray_actor_options={"num_gpus": cluster.replica_gpus, "num_cpus": cluster.replica_cpus},
        request_router_config=RequestRouterConfig(
            request_router_class=ring.SessionRing,
            request_router_kwargs={"num_fallback_replicas": 0},  # a session has one home
        ),
    )
    return make(serve.ingress()(Replica)).bind(settings, limits, key_file)
