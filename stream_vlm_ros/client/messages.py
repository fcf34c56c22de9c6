# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Between ROS messages and plain values."""

from __future__ import annotations

from typing import Any

import numpy as np

from stream_vlm_ros.engine.inputs.timestamps import SECOND


def nanoseconds(stamp: Any) -> int:
    """A time or duration in nanoseconds."""
    value: int = stamp.sec * SECOND + stamp.nanosec
    return value


def seconds(stamp: Any) -> float:
    """A time or duration in seconds."""
    value: float = stamp.sec + stamp.nanosec / SECOND
    return value


def set_stamp(stamp: Any, value_ns: int) -> None:
    """Let a time be ``value_ns`` nanoseconds."""
    stamp.sec, stamp.nanosec = divmod(value_ns, SECOND)


def image_message(image: np.ndarray, stamp_ns: int, frame_id: str = "camera") -> Any:
    """``image`` (uint8, [height, width, 3]) as an rgb8 ``sensor_msgs/Image``."""
    from sensor_msgs.msg import Image  # what else is here needs no ROS

    from stream_vlm_ros.sources.ros_images import rgb8_fields

    message = Image(**rgb8_fields(image))
    set_stamp(message.header.stamp, stamp_ns)
    message.header.frame_id = frame_id
    return message
