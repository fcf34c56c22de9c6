# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``~/save_memory``, ``~/load_memory`` and ``~/list_memories``; and ``~/get_picture``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import TYPE_CHECKING, Any

from rclpy.callback_groups import ReentrantCallbackGroup
from stream_vlm.srv import GetPicture, ListMemories, LoadMemory, SaveMemory

from stream_vlm_ros.errors import StreamVlmError, cut
from stream_vlm_ros.node.ask_server import EACH_ONE
from stream_vlm_ros.node.awaiting import awaitable
from stream_vlm_ros.node.interfaces import (
    from_time,
    to_duration,
    to_header,
    to_seconds,
    to_time,
)
from stream_vlm_ros.session.memory_keeper import Done
from stream_vlm_ros.session.question import MAX_PICTURE_SIZE

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
                (ListMemories, "list_memories", self._on_list),
                (GetPicture, "get_picture", self._on_get_picture),
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
        if len(self._cameras) > 1 and (words := await self._lacking(request.name)):
            response.message = words
            self._node.warn(f"~/load_memory: {words}")
            return response
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

    async def _on_list(self, request: Any, response: Any) -> Any:
        found: list[list[str]] = []
        for camera in self._cameras:
            names, words = await self._done(camera, "list_memories", camera.keeper.names)
            if names is None:
                response.message = self._said(camera, words)
                return response
            # As `_carry_out` names the files of several.
            end = f"-{camera.name}" if len(self._cameras) > 1 else ""
            found.append([name.removesuffix(end) for name in names if name.endswith(end)])
        response.success = True
        response.names = [name for name in found[0] if all(name in names for names in found)]
        return response

    async def _on_get_picture(self, request: Any, response: Any) -> Any:
        stamp_ns, within_ns = from_time(request.stamp), from_time(request.within)
        if not 0 < request.max_size <= MAX_PICTURE_SIZE:
            response.message = (
                f"max_size must be from 1 to {MAX_PICTURE_SIZE}, got {request.max_size}"
            )
            return response
        pictures = []
        for camera in self._cameras:
            show = partial(
                camera.worker.picture_near, stamp_ns, within_ns or None, request.max_size
            )
            found, words = await self._done(camera, "get_picture", show)
            if words:
                response.message = self._said(camera, words)
                return response
            if found is not None:
                pictures.append((*found, camera.name))
        response.success = True
        if pictures:
            picture_ns, data, name = min(pictures, key=lambda one: abs(one[0] - stamp_ns))
            if len(self._cameras) > 1:
                response.message = f"of the camera {name}"
            response.picture.header = to_header(picture_ns, "")
            response.picture.format, response.picture.data = "jpeg", data
        else:
            response.message = "no picture of that time is kept"
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
        done, words = await self._done(
            camera, name, partial(start, self._file_of(camera, request.name))
        )
        words = self._said(camera, done.words if done is not None else words)
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

    def _file_of(self, camera: Camera, name: str) -> str:
        """A name for all of several cameras is that of as many files."""
        return f"{name}-{camera.name}" if len(self._cameras) > 1 and name else name

    def _said(self, camera: Camera, words: str) -> str:
        """Words for who asked all."""
        return cut(camera.said(words) if len(self._cameras) > 1 else words)

    async def _lacking(self, name: str) -> str:
        """Why not all of several cameras can load a memory of this name; "" if all have a file."""
        for camera in self._cameras:
            names, words = await self._done(camera, "load_memory", camera.keeper.names)
            wanted = self._file_of(camera, name) or camera.settings.memory_name
            if names is not None and wanted not in names:
                words = f"there is no memory {wanted!r}; no camera's is loaded"
            if words:
                return self._said(camera, words)
        return ""

    async def _done(
        self, camera: Camera, name: str, start: Callable[[], Future[Any]]
    ) -> tuple[Any, str]:
        """What comes of it; where it fails, None and the reason."""
        try:
            return await awaitable(self._node, start()), ""
        except StreamVlmError as refusal:
            return None, cut(str(refusal))
        except Exception as fault:
            self._node.report_fault(camera.topic(name), fault)
            return None, cut(f"internal error: {fault!r}; see the node's log")
