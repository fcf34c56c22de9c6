# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``~/pause`` and ``~/resume``: the node stops watching, and goes on answering."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from std_srvs.srv import Trigger

from stream_vlm_ros.node.ask_server import EACH_ONE

if TYPE_CHECKING:
    from stream_vlm_ros.node.camera import Camera
    from stream_vlm_ros.node.stream_vlm_node import StreamVlmNode


class PauseServices:
    """Of ``cameras``, from the configuring of ``node`` to its cleaning up, next to its `AskServer`.

    Args:
        within: where they stand: ``~``, or ``~/front``.
    """

    def __init__(self, node: StreamVlmNode, cameras: Sequence[Camera], within: str = "~") -> None:
        self._node, self._cameras = node, cameras
        self._resume = f"{within}/resume"
        self._services = [
            node.create_service(
                Trigger,
                f"{within}/{name}",
                functools.partial(self._carry_out, name == "pause"),
                qos_profile=EACH_ONE,
            )
            for name in ("pause", "resume")
        ]

    def destroy(self) -> None:
        """Take them off the graph."""
        for service in self._services:
            self._node.destroy_service(service)

    def _carry_out(self, pause: bool, request: Any, response: Any) -> Any:
        words = (
            f"paused: images are dropped until {self._resume}" if pause else "images are watched"
        )
        # One that was paused and deactivated can be resumed: it watches once it is active.
        paused = any(camera.ingest.paused for camera in self._cameras)
        if not pause and self._node.state == "inactive" and paused:
            words += " once the node is active"
        elif self._node.state != "active":
            response.message = f"the node is {self._node.state}, not active"
            return response
        for camera in self._cameras:
            try:
                if pause:
                    camera.ingest.pause()
                else:
                    camera.ingest.paused = False
            except Exception as fault:  # of a frame that waited; the node goes on
                self._node.report_fault(camera.topic("pause"), fault)
            self._node.info(camera.said(words))
            camera.publish_status()
        response.success, response.message = True, words
        return response
