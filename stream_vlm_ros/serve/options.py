# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the server is told: those options of ``stream-vlm serve`` that are no engine's settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
        "Of one key. -1: where the server has several keys at most half of them, and not what is "
        "kept for keys that have none: one each, until half as many keys as there are sessions "
        "have one; all where it has one key. 0: as many as there are altogether.",
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

    def why_not_one_more(self, owner: str, held: Mapping[str, int], keys: int) -> str:
        """Why a key is to have no further session, whether there is room or not; "": it may.

        Args:
            owner: whose key it is.
            held: how many sessions those have that have any.
            keys: how many there are; 0: none is needed.
        """
        own, share = held.get(owner, 0), self.max_sessions_per_key
        is_shared = share < 0 and keys > 1
        if is_shared:
            share = (self.max_sessions + 1) // 2
        if 0 < share <= own:
            return f"this key has {own} sessions already (--max-sessions-per-key)"
        # Some keys never open a session.
        kept = min(keys, self.max_sessions // 2) - len(held) if is_shared else 0
        if own and kept > 0 and sum(held.values()) + kept >= self.max_sessions:
            return (
                f"this key has {own} sessions already, and those that are left are for keys that "
                "have none (--max-sessions-per-key)"
            )
        return ""
