# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``~/answer_delta``: the text of an answer, piece by piece, as it is written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rclpy.qos import QoSProfile
from std_msgs.msg import String

from stream_vlm_ros.node.publishing import publish_on, unpublish
from stream_vlm_ros.session.question import Progress

if TYPE_CHECKING:
    from stream_vlm_ros.node.camera import Camera
    from stream_vlm_ros.node.stream_vlm_node import StreamVlmNode

DEPTH = 100  # pieces that a subscriber may be behind


class AnswerDelta:
    """Of a camera, from the configuring of ``node`` to its cleaning up.

    A camera writes one answer at a time, whoever asked: its pieces come in order, and ``~/answer``
    after the last of them.
    """

    def __init__(self, node: StreamVlmNode, camera: Camera) -> None:
        self._node = node
        topic = camera.topic("answer_delta")
        self._publisher = publish_on(node, String, topic, QoSProfile(depth=DEPTH))

    def telling(self, progress: Progress | None) -> Progress:
        """What is to be told of a new question's text as it grows; it tells ``progress``, too."""
        told = ""

        def tell(state: str, text: str) -> None:
            nonlocal told
            new, told = text[len(told) :], text
            if new:
                self._publish(new)
            if progress is not None:
                progress(state, text)

        return tell

    @property
    def is_heard(self) -> bool:
        """Whether anybody subscribes."""
        return bool(self._publisher.get_subscription_count())

    def _publish(self, piece: str) -> None:
        try:
            if self.is_heard:
                self._node.publish(self._publisher, String(data=piece))
        except Exception as fault:  # of no concern to the answer
            self._node.report_fault("~/answer_delta", fault)

    def destroy(self) -> None:
        """Take it off the graph."""
        unpublish(self._node, self._publisher)
