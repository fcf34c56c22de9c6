# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""ROS images to arrays with ``cv_bridge`` where it is installed, ``rosbags-image`` elsewhere.

The rules of the messages (steps, byte order, encodings, refusals) are those of
``stream_vlm_ros.sources.ros_images``, for both.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from stream_vlm_ros.engine.inputs.picture_sizes import PictureLimit
from stream_vlm_ros.sources import ros_images
from stream_vlm_ros.sources.ros_images import Decoder, rosbags_decoder


def image_to_rgb(message: Any, limit: PictureLimit | None = None) -> np.ndarray:
    """The picture in an ``Image``; see :func:`ros_images.image_to_rgb`."""
    return ros_images.image_to_rgb(message, default_decoder(), limit)


def compressed_to_rgb(message: Any, limit: PictureLimit | None = None) -> np.ndarray:
    """The picture in a ``CompressedImage``; see :func:`ros_images.compressed_to_rgb`."""
    return ros_images.compressed_to_rgb(message, default_decoder(), limit)


@lru_cache(maxsize=1)
def default_decoder() -> Decoder:
    """The decoder of this installation: that of cv_bridge, else that of rosbags-image."""
    try:
        return cv_bridge_decoder()
    except ImportError:
        return rosbags_decoder()


def cv_bridge_decoder() -> Decoder:
    """Decode with cv_bridge, part of every full ROS installation.

    Raises :class:`ImportError` where it is missing or does not fit the numpy in use.
    """
    try:
        from cv_bridge import CvBridge
    except ImportError:
        raise
    except Exception as fault:  # built for another numpy: AttributeError, SystemError, ...
        raise ImportError(f"cv_bridge cannot be used here: {fault}") from fault
    bridge = CvBridge()

    def decode(message: Any) -> np.ndarray:
        if hasattr(message, "format"):
            return bridge.compressed_imgmsg_to_cv2(message, "rgb8")
        return bridge.imgmsg_to_cv2(message, "rgb8")

    return decode
