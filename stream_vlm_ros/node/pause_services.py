# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``~/pause`` and ``~/resume``: the node stops watching, and goes on answering."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from std_srvs.srv import Trigger

from stream_vlm_ros.node.ask_server import EACH_ONE
from stream_vlm_ros.session.ingest import FrameIngest

if TYPE_CHECKING:
    from stream_vlm_ros.node.stream_vlm_node import StreamVlmNode


class PauseServices:
    """From the configuring of ``node`` to its cleaning up, next to its `AskServer`."""

    def __init__(self, node: StreamVlmNode, ingest: FrameIngest) -> None:
        self._node, self._ingest = node, ingest
        self._services = [
            node.create_service(Trigger, name, callback, qos_profile=EACH_ONE)
            for name, callback in (("~/pause", self._on_pause), ("~/resume", self._on_resume))
        ]

    def destroy(self) -> None:
        """Take them off the graph."""
        for service in self._services:
            self._node.destroy_service(service)

    def _on_pause(self, request: Any, response: Any) -> Any:
        return self._carry_out("~/pause", response, "paused: images are dropped until ~/resume")

    def _on_resume(self, request: Any, response: Any) -> Any:
        return self._carry_out("~/resume", response, "images are watched")

    def _carry_out(self, name: str, response: Any, words: str) -> Any:
        # One that was paused and deactivated can be resumed: it watches once it is active.
        waits = name == "~/resume" and self._node.state == "inactive" and self._ingest.paused
        if waits:
            words += " once the node is active"
        elif self._node.state != "active":
            response.message = f"the node is {self._node.state}, not active"
            return response
        try:
            if name == "~/pause":
                self._ingest.pause()
            else:
                self._ingest.paused = False
        except Exception as fault:  # of a frame that waited; the node goes on
            self._node.report_fault(name, fault)
        self._node.get_logger().info(words)
        response.success, response.message = True, words
        self._node.publish_status()
        return response
