# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`Camera`: the newest image of a topic, for who looks now and then."""

from __future__ import annotations

import time
from functools import partial
from typing import Any

import numpy as np
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rclpy.serialization import deserialize_message
from sensor_msgs.msg import CompressedImage, Image

from stream_vlm_ros.client.messages import nanoseconds
from stream_vlm_ros.client.ros_thread import RosThread
from stream_vlm_ros.errors import InvalidImageError
from stream_vlm_ros.sources.ros_images import compressed_to_rgb, image_to_rgb

_DECODERS: dict[str, tuple[type, Any]] = {
    "sensor_msgs/msg/Image": (Image, image_to_rgb),
    "sensor_msgs/msg/CompressedImage": (CompressedImage, compressed_to_rgb),
}


class Camera:
    """Subscribes to images through a client's node; of those that come only the newest is kept,
    and decoded when it is taken.

    Args:
        ros: of the client; the subscription ends with it.
    """

    def __init__(self, ros: RosThread) -> None:
        self._ros = ros
        self._subscription: Any = None
        self._wish: tuple[str, str, bool] | None = None  # topic, type, reliable
        self._newest: tuple[int, bytes, str] | None = None  # when it came, message, type

    async def follow(self, topic: str, reliable: bool) -> None:
        """Subscribe to a topic, as it is published now; "": to none. To be called now and then.

        Args:
            reliable: ask for every image; of no use with a publisher that is best effort.
        """
        await self._ros.run(partial(self._follow, topic, reliable))

    @property
    def has_new(self) -> bool:
        """Whether an image has come that was not taken."""
        return self._newest is not None

    def take(self) -> tuple[int, np.ndarray] | None:
        """The newest image with its stamp in ns (that of its arrival where it has none), uint8
        ``[height, width, 3]``; None: no further one has come. In any thread.

        Raises InvalidImageError for one that is none.
        """
        newest, self._newest = self._newest, None
        if newest is None:
            return None
        came_ns, serialized, kind = newest
        message_type, decode = _DECODERS[kind]
        try:
            message: Any = deserialize_message(serialized, message_type)
        except Exception as fault:  # whatever a middleware raises, it is the sender's
            raise InvalidImageError(f"the image cannot be read: {fault}") from fault
        return nanoseconds(message.header.stamp) or came_ns, decode(message)

    def _follow(self, topic: str, reliable: bool) -> None:
        """In the client's thread."""
        wish = None
        if topic:
            published = self._ros.node.get_publishers_info_by_topic(topic)
            kinds = {publisher.topic_type for publisher in published}
            kind = next((kind for kind in _DECODERS if kind in kinds), None)
            if kind is None and self._wish is not None and self._wish[0] == topic:
                return  # nobody publishes at the moment
            wish = (topic, kind, reliable) if kind else None
        if wish == self._wish:
            return
        if self._subscription is not None:
            self._ros.node.destroy_subscription(self._subscription)
            self._subscription = None
        self._wish, self._newest = wish, None
        if wish is not None:
            self._subscription = self._ros.node.create_subscription(
                _DECODERS[wish[1]][0],
                topic,
                partial(self._keep, wish[1]),
                QoSProfile(
                    depth=1,
                    reliability=(
                        ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
                    ),
                ),
                raw=True,
            )

    def _keep(self, kind: str, serialized: bytes) -> None:
        self._newest = time.time_ns(), serialized, kind
