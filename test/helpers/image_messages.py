# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Image messages without ROS."""

import array
from types import SimpleNamespace

import numpy as np


def header(stamp_ns=1, frame_id="camera"):
    seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
    stamp = SimpleNamespace(sec=seconds, nanosec=nanoseconds)
    return SimpleNamespace(stamp=stamp, frame_id=frame_id)


def image_message(pixels, encoding, padding=0, big_endian=False, stamp_ns=1):
    """The fields of a sensor_msgs/Image that carries the array ``pixels`` [height, width, ...]."""
    order = ">" if big_endian else "<"
    rows = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder(order)))
    rows = rows.view(np.uint8).reshape(pixels.shape[0], -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=171)
    return SimpleNamespace(
        header=header(stamp_ns),
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=int(big_endian),
        step=rows.shape[1],
        data=array.array("B", rows.tobytes()),
    )
