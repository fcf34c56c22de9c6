# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``stream-vlm serve``: the memories of many cameras, over the network."""

from __future__ import annotations

import asyncio
import socket
from functools import partial
from typing import TYPE_CHECKING

from stream_vlm_ros.access import listen, read_keys
from stream_vlm_ros.config import Settings
from stream_vlm_ros.console import make_console, plural, say_lines
from stream_vlm_ros.errors import StreamVlmError, check_model_folder
from stream_vlm_ros.factory import model_folder
from stream_vlm_ros.processes.children import run_until_told
from stream_vlm_ros.serve.cluster import Cluster
from stream_vlm_ros.serve.extra import why_not_on_ray, why_not_served
from stream_vlm_ros.serve.options import Limits

if TYPE_CHECKING:
    from stream_vlm_ros.serve.keys import Keys


class ServeExtraMissingError(StreamVlmError):
    """What sessions are served with is not installed."""


def serve_until_told(settings: Settings, limits: Limits, host: str, port: int, keys: str) -> None:
    """Serve until the process is told to end, then drain.

    Args:
        keys: file of the keys; "": of the environment.

    Raises InvalidParameterError, ModelLoadError, DeviceUnavailableError, ServeExtraMissingError.
    """
    if missing := why_not_served():
        raise ServeExtraMissingError(missing)
    from stream_vlm_ros.serve.keys import Keys

    host = host.strip("[]")
    admitted = Keys(read_keys(keys), host)
    check_model_folder(model_folder(settings))
    from stream_vlm_ros.serve.app import create_app
    from stream_vlm_ros.serve.running import serve, spare_what_stays
    from stream_vlm_ros.serve.sessions import Sessions

    with listen(host, port) as listening:
        sessions = Sessions(settings, limits, keys=len(admitted.keys))
        plan = sessions.load()
        spare_what_stays()
        tell = partial(say_lines, make_console())
        tell(_said(listening, admitted, sessions.model, plan, settings.memory_folder))
        app = create_app(sessions, admitted)
        run_until_told(serve(app, sessions, listening, limits.drain_seconds, tell))


def serve_on_ray(
    settings: Settings, limits: Limits, cluster: Cluster, host: str, port: int, keys: str
) -> None:
    """Serve by replicas on a cluster: until the process is told to end, where the cluster begins
    here; on one that runs, they stay.

    Args:
        keys: file of the keys, on every machine; "": of the environment of the replicas.

    Raises InvalidParameterError, ModelLoadError, ServeExtraMissingError, ClusterError.
    """
    if missing := why_not_on_ray():
        raise ServeExtraMissingError(missing)
    from stream_vlm_ros.serve.keys import Keys

    host = host.strip("[]")
    admitted = Keys(read_keys(keys), host)
    check_model_folder(model_folder(settings))
    from stream_vlm_ros.serve.ray_app import check_shared
    from stream_vlm_ros.serve.ray_running import cluster_of, deploy, end

    check_shared(settings)
    if not cluster.ray_address:
        with listen(host, port) as listening:
            port = listening.getsockname()[1]
    with cluster_of(cluster.ray_address) as is_own:
        deploy(settings, limits, cluster, keys, host, port)
        count = plural(cluster.replicas, "replica")
        print(f"{count} at http://{_shown(host)}:{port} for {_who(admitted)}", flush=True)
        if not is_own:
            print("They stay when this command has ended: serve status, serve shutdown")
            return
        print("Ctrl-C ends them", flush=True)
        try:
            run_until_told(asyncio.Event().wait())
        finally:
            end(limits)


def _said(listening: socket.socket, keys: Keys, model: str, plan: str, folder: str) -> str:
    host, port = listening.getsockname()[:2]
    lines = [f"{model}: http://{_shown(host)}:{port} for {_who(keys)} (Ctrl-C ends it)"]
    if plan:
        lines.append(f"Each session: {plan}")
    if folder:
        lines.append(
            f"Memories in {folder}: a session that is saved there goes on when its camera comes, "
            "or somebody asks it"
        )
    return "\n".join(lines)


def _shown(host: str) -> str:
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _who(keys: Keys) -> str:
    count = len(keys.keys)
    return plural(count, "key") if count else "this machine alone, without a key"
