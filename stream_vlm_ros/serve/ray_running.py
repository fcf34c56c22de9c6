# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The application on a cluster: on one that runs, or one that begins and ends with the process."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import socket
import time
from collections.abc import Iterator

import ray
from ray import serve

from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import StreamVlmError, cut
from stream_vlm_ros.serve.cluster import Cluster
from stream_vlm_ros.serve.options import Limits
from stream_vlm_ros.serve.ray_app import ENDING, NAME, deployed, with_gpus

POLL = 0.2  # s
CONNECT_TIMEOUT = 5.0  # s


class ClusterError(StreamVlmError):
    """Ray does not do what is wanted of it."""

    code = "CLUSTER_ERROR"


@contextlib.contextmanager
def cluster_of(address: str, folder: str | None = None) -> Iterator[bool]:
    """Connected to a cluster; whether it was begun here, as with the address "". Such a one ends
    with the block.

    Args:
        folder: of its files; None: Ray's own.

    Raises ClusterError.
    """
    # Ray tells its makers how it is used, unless it is told not to.
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    quiet = {"log_to_driver": False, "logging_level": logging.WARNING}
    try:
        if address:
            if re.fullmatch(r"[^/]+:\d+", address):  # Ray itself tries for minutes
                host, _, port = address.rpartition(":")
                socket.create_connection((host.strip("[]"), int(port)), CONNECT_TIMEOUT).close()
            ray.init(address, **quiet)
        else:
            # Frames do not pass through its store.
            ray.init(
                "local", include_dashboard=False, object_store_memory=80 << 20, _temp_dir=folder,
                **quiet,
            )  # fmt: skip
    except (ConnectionError, RuntimeError, ValueError) as fault:
        raise ClusterError(
            f"there is no cluster at {address or 'hand'}: {cut(str(fault))}"
        ) from None
    try:
        yield not address
    finally:
        ray.shutdown()


def deploy(
    settings: Settings, limits: Limits, cluster: Cluster, key_file: str, host: str, port: int
) -> None:
    """Deploy the application, or replace its replicas one by one; returns when all of them serve.

    Raises ClusterError.
    """
    cluster = with_gpus(cluster)
    application = deployed(settings, limits, cluster, key_file)
    has = ray.cluster_resources()
    cpus, gpus = has.get("CPU", 0.0), has.get("GPU", 0.0)
    wanted = (cluster.replicas * cluster.replica_cpus, cluster.replicas * cluster.replica_gpus)
    if not cluster.ray_address and (wanted[0] > cpus or wanted[1] > gpus):  # others may grow
        raise ClusterError(
            f"{cluster.replicas} replicas of --replica-cpus {cluster.replica_cpus:g} and "
            f"--replica-gpus {cluster.replica_gpus:g} do not fit: here are {cpus:g} cores and "
            f"{gpus:g} GPUs"
        )
    try:
        serve.start(http_options={"host": host, "port": port})
        serve.run(application, name=NAME)
    except (RuntimeError, ValueError) as fault:
        why = str(fault).strip().splitlines() or [repr(fault)]
        raise ClusterError(f"it is not served; Ray's log has more: {cut(why[-1])}") from None


def end(limits: Limits) -> None:
    """End the application, before its cluster: sessions are saved, and cameras told."""
    serve.delete(NAME, _blocking=False)
    until = time.monotonic() + ENDING + limits.drain_seconds
    while NAME in serve.status().applications and time.monotonic() < until:
        time.sleep(POLL)
