# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What waits to be sent to one who is connected: bounded, whatever it takes."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable

from stream_vlm_ros.remote.protocol import (
    MemoryStatus,
    ServerEvent,
    SessionEnding,
    TextDelta,
    encoded,
)

MAX_EVENTS, MAX_BYTES = 1000, 8 << 20  # events, and of them as they travel


class Outbox:
    """A queue of events, for one event loop.

    Of the status the newest alone waits, and is made when it is sent; pieces of an answer that wait
    are one.

    Args:
        status: makes the status.
        max_events: that may wait; with one more, or more than `MAX_BYTES` (but for the text of
            answers, which is bounded), it is `full`, and takes nothing.
    """

    def __init__(self, status: Callable[[], MemoryStatus], max_events: int = MAX_EVENTS) -> None:
        self.full, self.max_events = False, max_events
        self._status = status
        self._events: deque[ServerEvent | None] = deque()  # None: the status
        self._deltas: dict[str, TextDelta] = {}  # that wait, by answer
        self._bytes = 0
        self._filled = asyncio.Event()

    def put(self, event: ServerEvent | None) -> None:
        """Let an event wait; None: the status, whatever it is by then."""
        if self.full or (event is None and None in self._events):
            return
        if isinstance(event, TextDelta):
            if (waiting := self._deltas.get(event.response_id)) is not None:
                waiting.delta += event.delta
                return
            self._deltas[event.response_id] = event
        self._events.append(event)
        self._bytes += _size(event)
        self.full = len(self._events) > self.max_events or self._bytes > MAX_BYTES
        self._filled.set()

    def end(self, event: SessionEnding) -> None:
        """The last event."""
        self._events.append(event)
        self.full = True
        self._filled.set()

    async def get(self) -> ServerEvent:
        """The next event."""
        while not self._events:
            self._filled.clear()
            await self._filled.wait()
        event = self._events.popleft()
        self._bytes -= _size(event)
        if isinstance(event, TextDelta):
            del self._deltas[event.response_id]
        return self._status() if event is None else event


def _size(event: ServerEvent | None) -> int:
    return 0 if event is None or isinstance(event, TextDelta) else len(encoded(event))
