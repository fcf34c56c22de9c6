# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What became of a session's frames, told to who is connected."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from stream_vlm_ros.errors import cut
from stream_vlm_ros.remote import protocol
from stream_vlm_ros.session.counters import Drop
from stream_vlm_ros.session.engine_session import ChunkEnd

KEPT_ENDS = 256  # of chunks and frames, told again to who connects again

FrameEnd = protocol.Ingested | protocol.Dropped
Listener = Callable[[protocol.ServerEvent | None], None]  # None: the status has changed


class Sent(NamedTuple):
    """Which frame of a client's it was."""

    sequence: int
    stamp_ns: int


class Events:
    """Tells listeners, in any thread, and keeps the newest: a connection may have ended before it
    was told."""

    def __init__(self) -> None:
        self._telling = threading.Lock()
        self._ends: deque[FrameEnd] = deque(maxlen=KEPT_ENDS)
        self._listeners: tuple[Listener, ...] = ()

    def add(self, listener: Listener) -> list[FrameEnd]:
        """Tell a listener what comes; what came before it."""
        with self._telling:
            self._listeners = (*self._listeners, listener)
            return list(self._ends)

    def remove(self, listener: Listener) -> None:
        """Tell it nothing more."""
        with self._telling:
            self._listeners = tuple(one for one in self._listeners if one is not listener)

    def status_changed(self) -> None:
        """The status is to be told."""
        self._tell(None)

    def chunk_ended(self, end: ChunkEnd) -> None:
        """A chunk was ingested or dropped; each frame's header is its `Sent`."""
        frames: list[Sent] = [frame.header for frame in end.frames]
        first, last = frames[0].sequence, frames[-1].sequence
        if end.cause is not None:
            self._dropped(first, last, len(frames), end.cause, end.words)
            return
        self._tell(
            protocol.Ingested(
                first=first,
                last=last,
                frames=len(frames),
                newest_ns=frames[-1].stamp_ns,
                closed_seconds=end.closed_seconds,
            )
        )

    def frame_dropped(self, sent: Sent, cause: Drop, words: str) -> None:
        """A frame was dropped before it was of a chunk."""
        self._dropped(sent.sequence, sent.sequence, 1, cause, words)

    def _dropped(self, first: int, last: int, frames: int, cause: Drop, words: str) -> None:
        self._tell(
            protocol.Dropped(
                first=first, last=last, frames=frames, cause=cause.cause, message=cut(words)
            )
        )

    def _tell(self, event: FrameEnd | None) -> None:
        with self._telling:
            if event is not None:
                self._ends.append(event)
            listeners = self._listeners
        for listener in listeners:
            listener(event)
