# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Images of ROS to arrays and back: with ``cv_bridge`` where it has proved itself, else without it.

The rules of the messages (steps, byte order, encodings, refusals), and compressed images, are those
of ``stream_vlm_ros.sources.ros_images``, for both.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np

from stream_vlm_ros.engine.inputs.picture_sizes import PictureLimit
from stream_vlm_ros.errors import in_words
from stream_vlm_ros.sources import ros_images
from stream_vlm_ros.sources.ros_images import ENCODINGS, Decoder, compressed_to_rgb, rosbags_decoder

__all__ = [
    "chosen_decoder",
    "chosen_encoder",
    "compressed_to_rgb",
    "cv_bridge_decoder",
    "image_to_rgb",
]


def image_to_rgb(message: Any, limit: PictureLimit | None = None) -> np.ndarray:
    """The picture in an ``Image``; see :func:`ros_images.image_to_rgb`."""
    return ros_images.image_to_rgb(message, chosen_decoder()[0], limit)


@lru_cache(maxsize=1)
def chosen_decoder() -> tuple[Decoder, str]:
    """The decoder of this installation, and what is to be said of cv_bridge, if it is there.

    cv_bridge decodes the encodings of which it brings one small picture as rosbags-image does.
    """
    ours = rosbags_decoder()
    try:
        bridge = cv_bridge_decoder()
    except ModuleNotFoundError:
        return ours, ""
    except ImportError as fault:
        return ours, f"cv_bridge is not used: {fault}"
    failed = {name: words for name in ENCODINGS if (words := _disagreement(bridge, ours, name))}
    if not failed:
        return bridge, ""
    named = "; ".join(f"{name}: {words}" for name, words in list(failed.items())[:3])
    others = f"; and {len(failed) - 3} others" if len(failed) > 3 else ""
    return (
        lambda message: (ours if message.encoding in failed else bridge)(message),
        f"cv_bridge is not used for {len(failed)} of {len(ENCODINGS)} encodings ({named}{others})",
    )


def _disagreement(bridge: Decoder, ours: Decoder, encoding: str) -> str:
    """How cv_bridge decodes one small picture of ``encoding`` otherwise; empty if it does not."""
    height, width, bytes_per_pixel = 4, 6, ENCODINGS[encoding]
    data = np.random.default_rng(0).integers(0, 256, height * width * bytes_per_pixel, np.uint8)
    message = SimpleNamespace(
        height=height,
        width=width,
        encoding=encoding,
        step=width * bytes_per_pixel,
        is_bigendian=0,
        data=array("B", data.tobytes()),
    )
    expected = ours(message)
    try:
        image = bridge(message)
        if image.shape != expected.shape:
            return f"gives a picture of {image.shape}, not {expected.shape}"
        apart = np.abs(image.astype(int) - expected).max()
    except Exception as fault:  # whatever its compiled part raises
        return in_words(fault)
    return f"gives other colours, by up to {apart}" if apart > 1 else ""  # it rounds, we cut off


def cv_bridge_decoder() -> Decoder:
    """Decode raw images with cv_bridge, part of every full ROS installation.

    Raises :class:`ImportError` where it is missing or does not fit the numpy in use.
    """
    try:
        from cv_bridge import CvBridge

        bridge = CvBridge()
    except ImportError:
        raise
    except Exception as fault:  # built for another numpy: AttributeError, SystemError, ...
        raise ImportError(in_words(fault)) from fault
    return lambda message: bridge.imgmsg_to_cv2(message, "rgb8")


@lru_cache(maxsize=1)
def chosen_encoder() -> Callable[[np.ndarray, Any], Any]:
    """From a picture (uint8, [height, width, 3] RGB) and its header to an rgb8 ``Image``: with
    cv_bridge, if that is there and makes of a small one what we do."""
    from std_msgs.msg import Header

    try:
        from cv_bridge import CvBridge

        bridge = CvBridge()

        def by_bridge(image: np.ndarray, header: Any) -> Any:
            return bridge.cv2_to_imgmsg(image, encoding="rgb8", header=header)

        small = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
        if by_bridge(small, Header()) == _rgb8(small, Header()):
            return by_bridge
    except Exception:  # not there, built for another numpy, ...: the reader of images says so
        pass
    return _rgb8


def _rgb8(image: np.ndarray, header: Any) -> Any:
    from sensor_msgs.msg import Image

    return Image(header=header, **ros_images.rgb8_fields(image))
