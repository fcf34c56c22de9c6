# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``~/save_memory`` and ``~/load_memory``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

from rclpy.callback_groups import ReentrantCallbackGroup
from stream_vlm.srv import LoadMemory, SaveMemory

from stream_vlm_ros.errors import StreamVlmError, cut
from stream_vlm_ros.node.ask_server import EACH_ONE
from stream_vlm_ros.node.awaiting import awaitable
from stream_vlm_ros.node.interfaces import from_time, to_duration, to_seconds, to_time
from stream_vlm_ros.session.memory_keeper import Done

if TYPE_CHECKING:
    from stream_vlm_ros.node.camera import Camera
    from stream_vlm_ros.node.stream_vlm_node import StreamVlmNode


class MemoryServices:
    """Of ``cameras``, from the configuring of ``node`` to its cleaning up, next to its `AskServer`.

    Args:
        within: where they stand: ``~``, or ``~/front``.
    """

    def __init__(self, node: StreamVlmNode, cameras: Sequence[Camera], within: str = "~") -> None:
        self._node, self._cameras = node, cameras
        group = ReentrantCallbackGroup()
        self._services = [
            node.create_service(
                service, f"{within}/{name}", callback, qos_profile=EACH_ONE, callback_group=group
            )
            for service, name, callback in (
                (SaveMemory, "save_memory", self._on_save),
                (LoadMemory, "load_memory", self._on_load),
            )
        ]

    def destroy(self) -> None:
        """Take them off the graph."""
        for service in self._services:
            self._node.destroy_service(service)

    async def _on_save(self, request: Any, response: Any) -> Any:
        for camera in self._cameras:
            save = camera.keeper.save
            await self._carry_out(camera, "save_memory", save, request, response)
        return response

    async def _on_load(self, request: Any, response: Any) -> Any:
        for camera in self._cameras:
            # Frames that came before the call are of the memory that goes; later ones wait for the
            # stamps of the one that comes.
            with camera.loading():
                camera.ingest.deliver_open()
                load = camera.keeper.load
                done = await self._carry_out(camera, "load_memory", load, request, response)
                if done is not None:
                    camera.ingest.go_on_behind(done.newest_ns)
                    newest_ns = max(from_time(response.newest_stamp), done.newest_ns or 0)
                    response.newest_stamp = to_time(newest_ns)
        return response

    async def _carry_out(
        self,
        camera: Camera,
        name: str,
        start: Callable[[str], Future[Done]],
        request: Any,
        response: Any,
    ) -> Done | None:
        """Start it, wait for it, and add to the response what came of it."""
        # A name for all of several cameras is that of as many files.
        several = len(self._cameras) > 1 and request.name
        done: Done | None = None
        try:
            done = await awaitable(
                self._node, start(f"{request.name}-{camera.name}" if several else request.name)
            )
            words = done.words
        except StreamVlmError as refusal:
            words = str(refusal)
        except Exception as fault:
            self._node.report_fault(camera.topic(name), fault)
            words = f"internal error: {fault!r}; see the node's log"
        words = cut(camera.said(words) if len(self._cameras) > 1 else words)
        if done is None:
            self._node.warn(f"{camera.topic(name)}: {words}")
        else:
            self._node.info(words)
            response.bytes += done.bytes
            response.duration = to_duration(to_seconds(response.duration) + done.seconds)
        first = camera is self._cameras[0]
        response.success = done is not None and (first or response.success)
        response.message = words if first else cut(f"{response.message}; {words}")
        return done
