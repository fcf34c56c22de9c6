# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``~/annotated_image``: what the node saw last, with its state, the last question and answer."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, Any

from rclpy.qos import QoSProfile
from sensor_msgs.msg import Image

from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.node import interfaces
from stream_vlm_ros.node.captions import captioned
from stream_vlm_ros.node.images import chosen_encoder
from stream_vlm_ros.node.publishing import publish_on, unpublish
from stream_vlm_ros.session.timed_frame import TimedFrame

if TYPE_CHECKING:
    from stream_vlm_ros.node.camera import Camera
    from stream_vlm_ros.node.stream_vlm_node import StreamVlmNode


ANNOTATED = "annotated_image"  # its topic, in the node's namespace


class AnnotatedImage:
    """Of a camera, from the configuring of ``node`` to its cleaning up.

    Draws in a thread of its own, and only while somebody subscribes; a frame that comes while one
    is drawn replaces the one that waits.
    """

    def __init__(self, node: StreamVlmNode, camera: Camera) -> None:
        self._node, self._camera = node, camera
        topic = camera.topic(ANNOTATED)
        self._publisher = publish_on(node, Image, topic, QoSProfile(depth=1))
        self._frame: TimedFrame | None = None  # the newest, as long as somebody subscribes
        self._answer: Any = None
        self._changed = threading.Event()
        self._over = False
        self._thread = threading.Thread(target=self._run, name="annotating", daemon=True)
        self._thread.start()

    def take(self, frame: TimedFrame) -> None:
        """Show a frame that was sampled; returns at once."""
        wanted = self._publisher.get_subscription_count() > 0
        self._frame = frame if wanted else None
        if wanted:
            self._changed.set()

    def tell(self, answer: Any) -> None:
        """Show an ``Answer`` from now on."""
        self._answer = answer
        self._changed.set()

    def destroy(self, seconds: float) -> None:
        """End the thread, waiting at most so long, and take the topic off the graph."""
        self._over = True
        self._changed.set()
        self._thread.join(seconds)
        unpublish(self._node, self._publisher)

    def _run(self) -> None:
        while True:
            self._changed.wait()
            self._changed.clear()
            if self._over:
                return
            try:
                if (frame := self._frame) is not None:
                    self._node.publish(self._publisher, self._message(frame))
            except Exception as fault:  # whatever is wrong with a picture, the next one is shown
                self._node.report_fault(self._camera.topic(ANNOTATED), fault)

    def _message(self, frame: TimedFrame) -> Any:
        status, answer = self._camera.cache_status(), self._answer
        above = [f"{status.state}, {status.length:,} of {status.cap:,} tokens in memory"]
        below = [] if answer is None else [answer.question, answer_text(answer, frame.stamp_ns)]
        return chosen_encoder()(captioned(frame.image, above, below), frame.header)


def answer_text(answer: Any, now_ns: int) -> str:
    """An ``Answer`` in words, and how long before ``now_ns`` the newest frame was that it saw."""
    text = answer.text
    if answer.error_code != answer.NONE:
        text = f"not answered: {answer.error_message}"
    stamp_ns = interfaces.from_time(answer.header.stamp)
    ago = f"{(now_ns - stamp_ns) / SECOND:.1f} s ago: " if 0 < stamp_ns <= now_ns else ""
    return f"{ago}{text}"
