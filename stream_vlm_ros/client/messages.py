# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Between ROS messages and plain values."""

from __future__ import annotations

import array
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
    """``image`` (uint8, [height, width, 3]) as an rgb8 ``sensor_msgs/Image``; one copy, no loop
    over the bytes."""
    from sensor_msgs.msg import Image  # what else is here needs no ROS

    data = array.array("B")
    data.frombytes(np.ascontiguousarray(image).data.cast("B"))
    message = Image()
    set_stamp(message.header.stamp, stamp_ns)
    message.header.frame_id = frame_id
    message.height, message.width = image.shape[:2]
    message.encoding, message.is_bigendian, message.step = "rgb8", 0, image.shape[1] * 3
    message.data = data  # an array of bytes is taken over as it is
    return message
