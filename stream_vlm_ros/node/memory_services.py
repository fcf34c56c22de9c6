# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``~/save_memory`` and ``~/load_memory``."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from rclpy.callback_groups import ReentrantCallbackGroup
from stream_vlm.srv import LoadMemory, SaveMemory

from stream_vlm_ros.errors import StreamVlmError, cut
from stream_vlm_ros.node.ask_server import EACH_ONE
from stream_vlm_ros.node.awaiting import awaitable
from stream_vlm_ros.node.interfaces import to_duration, to_time
from stream_vlm_ros.session.ingest import FrameIngest
from stream_vlm_ros.session.memory_keeper import Done, MemoryKeeper

if TYPE_CHECKING:
    from stream_vlm_ros.node.stream_vlm_node import StreamVlmNode


class MemoryServices:
    """From the configuring of ``node`` to its cleaning up, next to its `AskServer`."""

    def __init__(self, node: StreamVlmNode, keeper: MemoryKeeper, ingest: FrameIngest) -> None:
        self._node, self._keeper, self._ingest = node, keeper, ingest
        self._loads = 0  # calls that have not ended; those beyond the first are refused
        group = ReentrantCallbackGroup()
        self._services = [
            node.create_service(service, name, callback, qos_profile=EACH_ONE, callback_group=group)
            for service, name, callback in (
                (SaveMemory, "~/save_memory", self._on_save),
                (LoadMemory, "~/load_memory", self._on_load),
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

    async def _carry_out(
        self, name: str, start: Callable[[str], Future[Done]], request: Any, response: Any
    ) -> Done | None:
        """Start it, wait for it, and say in the response what came of it."""
        try:
            done: Done = await awaitable(self._node, start(request.name))
        except StreamVlmError as refusal:
            response.message = cut(str(refusal))
            self._node.get_logger().warning(f"{name}: {response.message}")
            return None
        except Exception as fault:
            self._node.report_fault(name, fault)
            response.message = cut(f"internal error: {fault!r}; see the node's log")
            return None
        response.success = True
        response.message = cut(done.words)
        response.bytes = done.bytes
        response.duration = to_duration(done.seconds)
        self._node.get_logger().info(response.message)
        return done
