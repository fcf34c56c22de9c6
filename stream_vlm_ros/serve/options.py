# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the server is told: those options of ``stream-vlm serve`` that are no engine's settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial

from stream_vlm_ros.setting import START, SettingTable, setting

option = partial(setting, change=START, verbs=("serve",))


@dataclass(frozen=True)
class Limits(SettingTable):
    """How much is served at a time."""

    max_sessions: int = option(
        16,
        "Sessions at a time, each with a memory of max_cache_tokens. On a GPU their room is taken "
        "at the start.",
        1,
        10_000,
    )
    max_sessions_per_key: int = option(
        -1,
        "Of one key. -1: half of them where the server has several keys, so that none takes all; "
        "all where it has one. 0: as many as there are altogether.",
        -1,
        10_000,
    )
    max_memories_per_key: int = option(
        256,
        "Saved memories of one key, those of its sessions included: from so many on memory.save "
        "takes no new name. 0: as many as fit on the disk.",
        0,
        1_000_000,
    )
    idle_minutes: float = option(
        60.0,
        "A session without a connection, to which nothing came for so long, is saved (with "
        "--memory-folder) and ended. 0: it stays.",
        0.0,
        1_000_000.0,
    )
    drain_seconds: float = option(
        30.0,
        "At the end (SIGTERM): for answers that are being written, chunks that wait, and saving.",
        0.0,
        3600.0,
    )

    def with_keys(self, count: int) -> Limits:
        """With how many sessions a key of so many has, where that was not said."""
        if self.max_sessions_per_key >= 0:
            return self
        share = (self.max_sessions + 1) // 2 if count > 1 else 0
        return replace(self, max_sessions_per_key=share)
