# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``~/save_memory``, ``~/load_memory`` and ``~/list_memories``; and ``~/get_picture``."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from rclpy.callback_groups import ReentrantCallbackGroup
from stream_vlm.srv import GetPicture, ListMemories, LoadMemory, SaveMemory

from stream_vlm_ros.errors import InvalidParameterError, StreamVlmError, cut
from stream_vlm_ros.node.ask_server import EACH_ONE
from stream_vlm_ros.node.awaiting import awaitable
from stream_vlm_ros.node.interfaces import from_time, to_duration, to_header, to_time
from stream_vlm_ros.session.ingest import FrameIngest
from stream_vlm_ros.session.memory_keeper import Done, MemoryKeeper
from stream_vlm_ros.session.worker import MAX_PICTURE_SIZE, EngineWorker

if TYPE_CHECKING:
    from stream_vlm_ros.node.stream_vlm_node import StreamVlmNode


class MemoryServices:
    """From the configuring of ``node`` to its cleaning up, next to its `AskServer`."""

    def __init__(
        self, node: StreamVlmNode, keeper: MemoryKeeper, ingest: FrameIngest, worker: EngineWorker
    ) -> None:
        self._node, self._keeper, self._ingest, self._worker = node, keeper, ingest, worker
        self._loads = 0  # calls that have not ended; those beyond the first are refused
        group = ReentrantCallbackGroup()
        self._services = [
            node.create_service(service, name, callback, qos_profile=EACH_ONE, callback_group=group)
            for service, name, callback in (
                (SaveMemory, "~/save_memory", self._on_save),
                (LoadMemory, "~/load_memory", self._on_load),
                (ListMemories, "~/list_memories", self._on_list),
                (GetPicture, "~/get_picture", self._on_get_picture),
            )
        ]

    def destroy(self) -> None:
        """Take them off the graph."""
        for service in self._services:
            self._node.destroy_service(service)

    async def _on_save(self, request: Any, response: Any) -> Any:
        await self._carry_out("~/save_memory", self._keeper.save, request, response)
        return response

    async def _on_load(self, request: Any, response: Any) -> Any:
        # Frames that came before the call are of the memory that goes; later ones wait for the
        # stamps of the one that comes.
        self._loads += 1
        self._ingest.active = False
        try:
            self._ingest.deliver_open()
            done = await self._carry_out("~/load_memory", self._keeper.load, request, response)
            if done is not None:
                self._ingest.go_on_behind(done.newest_ns)
                response.newest_stamp = to_time(done.newest_ns)
        finally:
            self._loads -= 1
            self._ingest.active = not self._loads and self._node.state == "active"
        return response

    async def _on_list(self, request: Any, response: Any) -> Any:
        if (names := await self._done("~/list_memories", self._keeper.names, response)) is not None:
            response.names = names
        return response

    async def _on_get_picture(self, request: Any, response: Any) -> Any:
        stamp_ns, within_ns = from_time(request.stamp), from_time(request.within)

        def start() -> Future[Any]:
            if not 0 < request.max_size <= MAX_PICTURE_SIZE:
                raise InvalidParameterError(
                    f"max_size must be from 1 to {MAX_PICTURE_SIZE}, got {request.max_size}"
                )
            return self._worker.picture_near(stamp_ns, within_ns or None, request.max_size)

        found = await self._done("~/get_picture", start, response)
        if found is not None:
            response.picture.header = to_header(found[0], "")
            response.picture.format, response.picture.data = "jpeg", found[1]
        elif response.success:
            response.message = "no picture of that time is kept"
        return response

    async def _carry_out(
        self, name: str, start: Callable[[str], Future[Done]], request: Any, response: Any
    ) -> Done | None:
        """Start it, wait for it, and say in the response what came of it."""
        done: Done | None = await self._done(name, lambda: start(request.name), response)
        if done is None:
            self._node.get_logger().warning(f"{name}: {response.message}")
            return None
        response.message = cut(done.words)
        response.bytes = done.bytes
        response.duration = to_duration(done.seconds)
        self._node.get_logger().info(response.message)
        return done

    async def _done(self, name: str, start: Callable[[], Future[Any]], response: Any) -> Any:
        """What comes of it; None where it fails, with the reason in the response."""
        try:
            done = await awaitable(self._node, start())
        except StreamVlmError as refusal:
            response.message = cut(str(refusal))
            return None
        except Exception as fault:
            self._node.report_fault(name, fault)
            response.message = cut(f"internal error: {fault!r}; see the node's log")
            return None
        response.success = True
        return done
