# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Whether what the tiers of a history may take is there: in memory, on the device, on the disk."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterable
from contextlib import suppress

import torch

from stream_vlm_ros.console import bytes_text
from stream_vlm_ros.engine.cache.budget import free_bytes
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.history.results import TierInfo

log = logging.getLogger(__name__)

_SETTINGS = {
    "pictures": "frame_store_megabytes",
    "features": "history_feature_megabytes",
    "keys": "history_index_megabytes",
}
_HOST = torch.device("cpu")


def check_features(max_bytes: int) -> None:
    """Raise InvalidParameterError for more than the host has: they fill it, whatever is shown."""
    free = free_bytes(_HOST)
    if free is not None and max_bytes > free:
        raise InvalidParameterError(
            f"history_feature_megabytes is {max_bytes // 2**20}, but of this machine's memory "
            f"{bytes_text(free)} are free: lower it below {free // 2**20}"
        )


def room_plan(tiers: Iterable[TierInfo], device: torch.device) -> str:
    """What the tiers may take, and what is free where they lie, in one line.

    What is not there is said in the log: a tier that is full in time stands still, or the system
    ends the process.
    """
    places: dict[str, list[TierInfo]] = {}
    for tier in tiers:
        kind = tier.where if tier.where in ("memory", "device") else "disk"
        places.setdefault(kind, []).append(tier)
    told = []
    for kind, here in places.items():
        free = _free(kind, here[0].where, device)
        most = ", ".join(f"{one.name} up to {bytes_text(one.max_bytes)}" for one in here)
        left = "" if free is None else f", of {bytes_text(free)} free"
        told.append(f"{most} {'in' if kind == 'memory' else 'on the'} {kind}{left}")
        wanted = sum(max(0, one.max_bytes - one.bytes) for one in here)
        if free is not None and wanted > free:
            log.warning(
                "the history may take %s more %s %s, of which %s are free: lower %s",
                bytes_text(wanted), "in" if kind == "memory" else "on the", kind, bytes_text(free),
                " or ".join(_SETTINGS[one.name] for one in here),
            )  # fmt: skip
    return f"history: {'; '.join(told)}"


def _free(kind: str, where: str, device: torch.device) -> int | None:
    if kind == "disk":
        with suppress(OSError):
            return shutil.disk_usage(where).free
        return None
    return free_bytes(_HOST if kind == "memory" else device)
