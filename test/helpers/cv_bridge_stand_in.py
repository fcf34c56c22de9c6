# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The part of cv_bridge that turns a raw message into RGB, for machines without it.

As its Python side (core.py) does it: rows of ``step`` bytes cut to the width, bytes swapped, then
OpenCV's conversion of colours and a scaled, rounded one of depths. The encodings are Humble's; what
is compiled there, is OpenCV's own Python here.
"""

from __future__ import annotations

import sys

import cv2
import numpy as np

KINDS = {  # encoding -> type of a channel, channels, conversion to RGB
    "mono8": ("u1", 1, cv2.COLOR_GRAY2RGB),
    "mono16": ("u2", 1, cv2.COLOR_GRAY2RGB),
    "rgb8": ("u1", 3, None),
    "bgr8": ("u1", 3, cv2.COLOR_BGR2RGB),
    "rgba8": ("u1", 4, cv2.COLOR_RGBA2RGB),
    "bgra8": ("u1", 4, cv2.COLOR_BGRA2RGB),
    "rgb16": ("u2", 3, None),
    "bgr16": ("u2", 3, cv2.COLOR_BGR2RGB),
    "rgba16": ("u2", 4, cv2.COLOR_RGBA2RGB),
    "bgra16": ("u2", 4, cv2.COLOR_BGRA2RGB),
    "yuv422": ("u1", 2, cv2.COLOR_YUV2RGB_UYVY),
    "yuv422_yuy2": ("u1", 2, cv2.COLOR_YUV2RGB_YUYV),
    # OpenCV names a pattern by its second row, from the second column on.
    **{f"bayer_rggb{bits}": (f"u{bits // 8}", 1, cv2.COLOR_BayerBG2RGB) for bits in (8, 16)},
    **{f"bayer_bggr{bits}": (f"u{bits // 8}", 1, cv2.COLOR_BayerRG2RGB) for bits in (8, 16)},
    **{f"bayer_gbrg{bits}": (f"u{bits // 8}", 1, cv2.COLOR_BayerGR2RGB) for bits in (8, 16)},
    **{f"bayer_grbg{bits}": (f"u{bits // 8}", 1, cv2.COLOR_BayerGB2RGB) for bits in (8, 16)},
}


class CvBridgeError(TypeError):
    """What cv_bridge raises."""


class CvBridge:
    """``CvBridge().imgmsg_to_cv2(message, "rgb8")``."""

    def imgmsg_to_cv2(self, message, desired_encoding):
        assert desired_encoding == "rgb8"
        if message.encoding not in KINDS:
            raise CvBridgeError(f"Unrecognized image encoding [{message.encoding}]")
        name, channels, conversion = KINDS[message.encoding]
        dtype = np.dtype(name)
        shape = [message.height, message.step // dtype.itemsize // channels]
        shape += [channels] if channels > 1 else []
        image = np.ndarray(shape, dtype, buffer=message.data)
        image = np.ascontiguousarray(image[: message.height, : message.width])
        if bool(message.is_bigendian) == (sys.byteorder == "little"):
            image = image.byteswap()
        if conversion is not None:
            image = cv2.cvtColor(image, conversion)
        if dtype.itemsize == 2:
            image = np.rint(image * (255 / 65535)).astype(np.uint8)
        return image
