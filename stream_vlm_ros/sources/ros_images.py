# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""ROS images to arrays: uint8 [height, width, 3] RGB.

Raw images are converted by ``rosbags-image``, or another decoder that the caller has
(``cv_bridge``). What one of them gets wrong or says in no words (padded rows, byte order, nv12,
generic types, short data) is put right or refused here, in front of both, so that they agree.
Compressed images are decoded as every other encoded picture is, by ``picture_sizes.rgb_of``.
"""

from __future__ import annotations

import copy
import re
from array import array
from collections.abc import Callable
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import numpy as np
from PIL import Image

from stream_vlm_ros.engine.inputs.picture_sizes import (
    PictureLimit,
    check_depth,
    open_picture,
    rgb_of,
)
from stream_vlm_ros.errors import InvalidImageError, cut, in_words

# Encodings that can be a picture -> bytes of one pixel in a row of `step` bytes.
_BYTES_PER_PIXEL = {
    "mono8": 1,
    "mono16": 2,
    "rgb8": 3,
    "bgr8": 3,
    "rgba8": 4,
    "bgra8": 4,
    "rgb16": 6,
    "bgr16": 6,
    "rgba16": 8,
    "bgra16": 8,
    "uyvy": 2,
    "yuyv": 2,
    "yuv422": 2,
    "yuv422_yuy2": 2,
    **{f"bayer_{pattern}8": 1 for pattern in ("rggb", "bggr", "gbrg", "grbg")},
    **{f"bayer_{pattern}16": 2 for pattern in ("rggb", "bggr", "gbrg", "grbg")},
    "nv12": 1,
    "nv21": 1,
    "nv24": 1,
}
# Generic OpenCV types, read as cv_bridge reads them: three channels are BGR.
_GENERIC = {
    "8uc1": "mono8",
    "8uc3": "bgr8",
    "8uc4": "bgra8",
    "16uc3": "bgr16",
    "16uc4": "bgra16",
}
# What a decoder is asked for; the others are planes, decoded here.
ENCODINGS = {name: size for name, size in _BYTES_PER_PIXEL.items() if not name.startswith("nv")}
# Bytes of colours in their order need no decoder, and so no OpenCV in memory: as Pillow names them.
_PLAIN = {"rgb8": "RGB", "bgr8": "BGR", "rgba8": "RGBX", "bgra8": "BGRX", "mono8": "L"}
# Rows of data for each row of the picture: the chroma planes lie below the luma.
_PLANES = {"nv12": 1.5, "nv21": 1.5, "nv24": 3.0}
_SMALLEST_MOSAIC = 3  # pixels; of fewer, OpenCV makes black
# 16UC1 is depth in millimetres (REP 118); pictures of 16 bits are mono16.
_MEASURED = re.compile(r"(32|64)[SF]C?\d*|16SC?\d*|8SC?\d*|16UC1?")

Decoder = Callable[[Any], np.ndarray]


def image_to_rgb(
    message: Any, decoder: Decoder | None = None, limit: PictureLimit | None = None
) -> np.ndarray:
    """The picture in a ``sensor_msgs/Image``.

    Args:
        message: the message, or anything with its fields.
        decoder: turns a checked message into RGB; rosbags-image by default.
        limit: how large it may be; None: the default.

    Returns:
        uint8 [height, width, 3] in RGB, C-contiguous; it may share the message's memory.

    Raises:
        InvalidImageError: empty, too large, of an unknown encoding, with data that do not fill it.
    """
    encoding = _encoding(message.encoding)
    if 0 in (message.height, message.width):
        raise InvalidImageError(f"the image has no size: {message.width}x{message.height}")
    (limit or PictureLimit()).check(message.width, message.height, "the image")
    if encoding.startswith("bayer_") and min(message.height, message.width) < _SMALLEST_MOSAIC:
        raise InvalidImageError(
            f"{encoding} needs {_SMALLEST_MOSAIC} pixels each way to tell colours from, got "
            f"{message.width}x{message.height}"
        )
    rows = _rows(message, encoding)  # [rows, bytes of a row without padding]
    if encoding in _PLANES:
        return _from_planes(rows, encoding, message.height, message.width)
    if encoding in _PLAIN:
        return _from_plain(rows, encoding, message.height, message.width)
    picture = copy.copy(message)  # what is set below is not set in the caller's message
    picture.encoding = encoding
    swap = encoding.endswith("16") and message.is_bigendian
    if swap:
        rows = rows.view(">u2").astype("<u2").view(np.uint8)
    if swap or message.step != rows.shape[1]:
        # As array.array: rclpy checks the elements of anything else one by one.
        picture.data = array("B", rows.tobytes())
    picture.step = rows.shape[1]
    picture.is_bigendian = 0
    image = _decode(decoder or rosbags_decoder(), picture, f"{encoding} image")
    if encoding.endswith("16"):
        check_depth(image)
    return image


def compressed_to_rgb(message: Any, limit: PictureLimit | None = None) -> np.ndarray:
    """The picture in a ``sensor_msgs/CompressedImage``, of one of `picture_sizes.FORMATS`.

    Its ``format`` begins with the encoding that was compressed, as image_transport writes it.

    Takes, returns and raises as :func:`image_to_rgb`.
    """
    limit = limit or PictureLimit()
    data = bytes(message.data)
    kind = cut(message.format) or "no format given"
    if not data:
        raise InvalidImageError(f"the compressed image ({kind}) holds no data")
    encoding = message.format.partition(";")[0].strip()
    if "compressedDepth" in message.format or _MEASURED.fullmatch(encoding):
        raise InvalidImageError(f"format {kind!r} is a depth image; a camera's pictures are needed")
    try:
        picture = open_picture(data, limit)
        if encoding.startswith("bayer_") and picture.getbands() in (("L",), ("I",)):
            return _from_mosaic(picture, encoding, limit)
        return rgb_of(picture)
    except InvalidImageError as fault:
        raise type(fault)(f"the compressed image ({kind}) cannot be decoded: {fault}") from fault


def rgb8_fields(image: np.ndarray) -> dict[str, Any]:
    """The fields of an rgb8 ``Image``, but for its header, that shows ``image`` (uint8,
    [height, width, 3] RGB); one copy, no loop over the bytes."""
    data = array("B")  # is taken over as it is
    data.frombytes(np.ascontiguousarray(image).data.cast("B"))
    height, width, _ = image.shape
    return {"height": height, "width": width, "encoding": "rgb8", "step": 3 * width, "data": data}


def _from_mosaic(picture: Image.Image, encoding: str, limit: PictureLimit) -> np.ndarray:
    """Colours from a mosaic that was compressed as if it were grey."""
    deep = picture.getbands() == ("I",)
    try:
        values = np.asarray(picture).astype("<u2" if deep else np.uint8)
    except Exception as fault:  # bytes from outside: Pillow's decoders raise what they do
        raise InvalidImageError(f"its pixels cannot be read: {in_words(fault)}") from fault
    raw = SimpleNamespace(
        height=picture.height,
        width=picture.width,
        encoding=encoding.rstrip("0123456789") + ("16" if deep else "8"),
        step=0,
        is_bigendian=0,
        data=values.tobytes(),
    )
    return image_to_rgb(raw, limit=limit)


def _encoding(name: str) -> str:
    """The canonical name of an encoding that can be a picture."""
    plain = name.strip()
    canonical = _GENERIC.get(plain.lower(), plain.lower())
    if canonical in _BYTES_PER_PIXEL:
        return canonical
    name = cut(name)
    if _MEASURED.fullmatch(plain):
        raise InvalidImageError(
            f"encoding {name!r} holds measurements (depth?), not a picture; take the camera's "
            "colour or grey topic (grey of 16 bits is mono16)"
        )
    raise InvalidImageError(
        f"unknown encoding {name!r}; known encodings: {', '.join(_BYTES_PER_PIXEL)}, 8UC1, 8UC3, "
        "8UC4, 16UC3 and 16UC4"
    )


def _rows(message: Any, encoding: str) -> np.ndarray:
    """The data as uint8 [rows, bytes of a row], without the padding at the ends of rows."""
    height, width, step = message.height, message.width, message.step
    row_bytes = width * _BYTES_PER_PIXEL[encoding]
    if step == 0:  # left out by some publishers: rows without padding
        step = row_bytes
    if step < row_bytes:
        raise InvalidImageError(
            f"step is {step} bytes, but a row of {width} pixels in {encoding} takes {row_bytes}"
        )
    if encoding in ("uyvy", "yuyv", "yuv422", "yuv422_yuy2", "nv12", "nv21") and width % 2:
        raise InvalidImageError(f"{encoding} needs an even width, got {width}x{height}")
    if encoding in ("nv12", "nv21") and height % 2:
        raise InvalidImageError(f"{encoding} needs an even height, got {width}x{height}")
    rows = round(height * _PLANES.get(encoding, 1))
    data = np.frombuffer(message.data, np.uint8)
    if data.size < rows * step:
        raise InvalidImageError(
            f"the image holds {data.size} bytes, but {rows} rows of {step} bytes need {rows * step}"
        )
    return np.ascontiguousarray(data[: rows * step].reshape(rows, step)[:, :row_bytes])


def _from_plain(rows: np.ndarray, encoding: str, height: int, width: int) -> np.ndarray:
    if encoding == "rgb8":
        return rows.reshape(height, width, 3)
    mode, size = "L" if encoding == "mono8" else "RGB", (width, height)
    picture = Image.frombuffer(mode, size, rows, "raw", _PLAIN[encoding], 0, 1)
    return np.array(picture.convert("RGB"))


def _from_planes(rows: np.ndarray, encoding: str, height: int, width: int) -> np.ndarray:
    """Luma over interleaved chroma -> RGB; neither decoder knows all of these."""
    import cv2

    if encoding == "nv24":  # chroma in full resolution, U before V
        chroma = rows[height:].reshape(height, width, 2)
        yuv = np.dstack([rows[:height], chroma[..., 1], chroma[..., 0]])  # OpenCV: Y, Cr, Cb
        return cv2.cvtColor(yuv, cv2.COLOR_YCrCb2RGB)
    code = cv2.COLOR_YUV2RGB_NV12 if encoding == "nv12" else cv2.COLOR_YUV2RGB_NV21
    return cv2.cvtColor(rows, code)


def _decode(decoder: Decoder, message: Any, what: str) -> np.ndarray:
    """Run a decoder on a message that came from outside: whatever it raises is the message's."""
    try:
        image = decoder(message)
    except Exception as fault:
        raise InvalidImageError(f"the {what} cannot be decoded: {_words(fault)}") from fault
    if image is None or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise InvalidImageError(f"the {what} does not decode to a picture")
    return np.ascontiguousarray(image, np.uint8)


def _words(fault: Exception) -> str:
    return " ".join(str(fault).split())[:300] or "it is corrupt or of an unknown kind"


@lru_cache(maxsize=1)
def rosbags_decoder() -> Decoder:
    """Decode with rosbags-image from PyPI, which takes rclpy messages as they are."""

    def decode(message: Any) -> np.ndarray:
        from rosbags.image import message_to_cvimage  # and OpenCV: loaded for who needs it

        return message_to_cvimage(message, "rgb8")

    return decode
