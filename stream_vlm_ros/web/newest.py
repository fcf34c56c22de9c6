# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The newest picture of a memory, waited for once for all who look."""

from __future__ import annotations

import asyncio

from .live_memory import LiveMemory, Picture

PERIOD = 0.02  # s between two looks


class Newest:
    """Looks for a new picture only while somebody waits for one."""

    def __init__(self, memory: LiveMemory) -> None:
        self._memory = memory
        self._looking: asyncio.Task[Picture] | None = None

    async def after(self, number: int) -> Picture:
        """The newest picture, once it is not the one of that number."""
        while True:
            if (picture := self._memory.picture) is not None and picture.number != number:
                return picture
            if self._looking is None or self._looking.done():
                self._looking = asyncio.create_task(self._next(picture))
            await asyncio.shield(self._looking)

    async def _next(self, last: Picture | None) -> Picture:
        while (picture := self._memory.picture) is None or picture is last:
            await asyncio.sleep(PERIOD)
        return picture
