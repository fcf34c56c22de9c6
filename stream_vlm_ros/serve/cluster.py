# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What is told of a cluster: the options of ``stream-vlm serve --ray``."""

from __future__ import annotations

from dataclasses import dataclass

from stream_vlm_ros.serve.options import option
from stream_vlm_ros.setting import SettingTable


@dataclass(frozen=True)
class Cluster(SettingTable):
    """How the service is spread over GPUs and machines by Ray Serve."""

    replicas: int = option(1, "With --ray: servers, each with the model and its sessions.", 1, 1000)
    replica_gpus: float = option(
        -1.0, "With --ray: GPUs of a replica. -1: one, if the cluster has any.", -1.0, 16.0
    )
    replica_cpus: float = option(
        1.0, "With --ray: cores that are set aside for a replica.", 0.0, 1000.0
    )
    ray_address: str = option(
        "",
        "With --ray: a cluster that runs, as HOST:PORT, or auto for that of this machine. Empty: "
        "one begins on this machine, and ends with the command.",
    )
