# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A robot's side of the protocol, which keeps account of every frame and every question."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from websockets.asyncio.client import connect
from websockets.exceptions import InvalidStatus, WebSocketException

from stream_vlm_ros.remote import protocol as p

START_NS = 10**18


@dataclass
class Asked:
    """A question: how long it waited for its answer, and over how many connections."""

    text: str
    begin: float
    future: asyncio.Future[p.Response]
    seconds: float = 0.0
    connections: int = 0


@dataclass
class Robot:
    """A camera that sends a frame each ``period`` seconds, and connects again when it is cut off.

    Frames that the server has not told of are sent again, if it says that it lacks them.

    Attributes:
        sent: frames by sequence, with their stamps.
        ingested, dropped: sequences, the second with their causes.
        connections: what each one began with, and when.
        lost: frames that were in a memory, and are not in the one that a later server had.
        gaps: what was told of frames that a server had and the next one lacks.
    """

    url: str
    name: str
    pictures: list[np.ndarray]
    period: float = 0.5
    key: str = ""
    sent: dict[int, int] = field(default_factory=dict)
    ingested: set[int] = field(default_factory=set)
    dropped: dict[int, str] = field(default_factory=dict)
    connections: list[tuple[float, p.Session, p.Status]] = field(default_factory=list)
    lost: set[int] = field(default_factory=set)
    gaps: list[str] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)
    status: p.Status = field(default_factory=p.Status)
    filming: bool = True

    def __post_init__(self) -> None:
        self._asked: dict[str, Asked] = {}
        self._over = False
        self._socket: Any = None
        self._task = asyncio.create_task(self._run())

    @property
    def untold(self) -> set[int]:
        """Frames of which the server has not said what became of them."""
        return set(self.sent) - self.ingested - set(self.dropped)

    @property
    def is_told_of_all(self) -> bool:
        """Whether the memory that it was told of last has taken in just the frames that it should
        have."""
        return self.status.memory.frames == len(self.ingested - self.lost)

    def picture(self, sequence: int) -> np.ndarray:
        """What the camera sees in a frame."""
        return self.pictures[sequence % len(self.pictures)]

    async def ask(self, text: str, tokens: int = 8) -> Asked:
        """Ask until there is an answer: that the connection, or the session, ended is none."""
        asked = Asked(text, time.monotonic(), asyncio.get_running_loop().create_future())
        name = f"{self.name}-{len(self._asked) + 1}-{time.monotonic_ns()}"
        self._asked[name] = asked
        await self._order(name, asked, tokens)
        await asked.future
        asked.seconds = time.monotonic() - asked.begin
        return asked

    async def stop(self) -> None:
        """End the connection; the session goes on."""
        self._over = True
        if self._socket is not None:
            await self._socket.close()
        await self._task

    # -- inside --------------------------------------------------------------------------------

    async def _order(self, name: str, asked: Asked, tokens: int = 8) -> None:
        if (socket := self._socket) is None:
            return  # it is asked when there is a connection
        asked.connections += 1
        ask = p.Ask(text=asked.text, max_new_tokens=tokens)
        with contextlib.suppress(WebSocketException):
            await socket.send(p.encoded(p.ResponseCreate(event_id=name, response=ask)))

    async def _run(self) -> None:
        heads = {p.SESSION_HEADER: self.name}
        if self.key:
            heads["Authorization"] = f"Bearer {self.key}"
        while not self._over:
            try:
                async with connect(
                    self.url + p.PATH,
                    additional_headers=heads,
                    subprotocols=[p.SUBPROTOCOL],  # type: ignore[list-item]
                    open_timeout=30,
                    max_size=None,
                ) as socket:
                    await self._live(socket)
            except (OSError, WebSocketException, TimeoutError) as fault:
                status = fault.response.status_code if isinstance(fault, InvalidStatus) else ""
                self.errors[f"{type(fault).__name__} {status}".strip()] += 1
            finally:
                self._socket = None
            if not self._over:
                await asyncio.sleep(0.2)

    async def _live(self, socket: Any) -> None:
        first = p.server_event(await asyncio.wait_for(socket.recv(), 60))
        if not isinstance(first, p.SessionCreated):
            self.errors[getattr(first, "code", type(first).__name__)] += 1
            return
        self.connections.append((time.monotonic(), first.session, first.status))
        self._take(first.status)
        has = first.session.accepted_ns
        for name, asked in self._asked.items():
            if not asked.future.done():
                self._socket = socket
                await self._order(name, asked)
        if first.session.restored and has is not None:
            self.lost |= {one for one in self.ingested if self.sent[one] > has}
        for sequence, stamp in sorted(self.sent.items()):
            told = sequence in self.ingested or sequence in self.dropped
            if not told and (has is None or stamp > has):
                await self._send(socket, sequence)
            elif not told:  # it got there, and only its telling was lost
                self.ingested.add(sequence)
        self._socket = socket
        filming = asyncio.create_task(self._film(socket))
        try:
            async for message in socket:
                self._hear(p.server_event(message))
        finally:
            filming.cancel()

    async def _film(self, socket: Any) -> None:
        with contextlib.suppress(WebSocketException):
            while True:
                await asyncio.sleep(self.period)
                if self.filming:
                    sequence = len(self.sent) + 1
                    self.sent[sequence] = START_NS + round(1e9 * self.period * sequence)
                    await self._send(socket, sequence)

    async def _send(self, socket: Any, sequence: int) -> None:
        picture = self.picture(sequence)
        height, width, _ = picture.shape
        frame = p.FrameMessage(
            sequence, self.sent[sequence], p.RAW, height, width, picture.tobytes()
        )
        await socket.send(frame.packed())

    def _take(self, status: p.Status) -> None:
        self.status = status
        if status.gap and status.gap not in self.gaps:
            self.gaps.append(status.gap)

    def _hear(self, event: Any) -> None:
        if isinstance(event, p.Ingested):
            self.ingested.update(range(event.first, event.last + 1))
        elif isinstance(event, p.Dropped):
            self.dropped |= dict.fromkeys(range(event.first, event.last + 1), event.cause)
        elif isinstance(event, p.MemoryStatus):
            self._take(event.status)
        elif isinstance(event, p.ResponseDone):
            asked = self._asked[event.response.id]
            if event.response.error is not None and event.response.error.code == "ENDING":
                self.errors["ENDING"] += 1  # it is asked again when there is a connection
            elif not asked.future.done():
                asked.future.set_result(event.response)
        elif isinstance(event, (p.ErrorEvent, p.SessionEnding)):
            fault = event.error if isinstance(event, p.ErrorEvent) else event
            self.errors[fault.code] += 1
