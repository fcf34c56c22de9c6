# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How large a picture may be, and what it is unpacked from: asked of headers, before any decoding.

Every way in asks here: messages, bags, videos, folders of images, the frame store, PIL images. And
whatever is encoded as one picture is decoded here, so that it looks the same wherever it lies.
And to which size a picture is brought for the model.
"""

from __future__ import annotations

import io
import math
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageOps, TiffImagePlugin

from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import (
    InvalidImageError,
    PictureTooLargeError,
    in_words,
)

_SETTING = Settings.table()["max_decoded_megapixels"]
MAX_DECODED_MEGAPIXELS: float = _SETTING.default
HIGHEST_MEGAPIXELS = _SETTING.high or 0.0

# What cameras and OpenCV write. Pillow knows many more formats; some run other programs (EPS).
FORMATS = ("JPEG", "PNG", "WEBP", "TIFF", "GIF", "BMP", "JPEG2000", "PPM", "AVIF")

MAX_ASPECT_RATIO = 200  # of a picture that the model can use

_WIDEST_PIXEL = 8  # bytes, of rgba16
_OTHERS = 64 * 2**20  # bytes: a header's strings, or the small messages that share a chunk
# A progressive JPEG goes over all of its pixels once a scan; those of cameras have about ten.
_MAX_SCANS = 32
_START_OF_SCAN = b"\xff\xda"
_PNG_CHUNK = struct.Struct(">I4s")  # length and kind; after them the data, and a check sum
_TILE_WIDTH, _TILE_LENGTH = 322, 323  # tags of TIFF
_PHOTOMETRIC, _WHITE_IS_ZERO = 262, 0
_BITS, _SAMPLE_FORMAT, _SIGNED = 258, 339, 2
# Pillow knows 16 bits whose white is zero of one order of bytes alone.
TiffImagePlugin.OPEN_INFO.setdefault(
    (b"MM", _WHITE_IS_ZERO, (1,), 1, (16,), ()), ("I;16B", "I;16B")
)


@dataclass(frozen=True)
class PictureLimit:
    """The setting ``max_decoded_megapixels``.

    Args:
        megapixels: 10^6 pixels, width x height; from 0.01 to 1000.

    Raises InvalidParameterError for a value outside its range.
    """

    megapixels: float = MAX_DECODED_MEGAPIXELS

    def __post_init__(self) -> None:
        _SETTING.checked(self.megapixels)

    @property
    def pixels(self) -> int:
        return math.floor(self.megapixels * 1e6)

    @property
    def unpacked_bytes(self) -> int:
        """What one compressed message, chunk of messages, or file of a picture may unpack to."""
        return _WIDEST_PIXEL * self.pixels + _OTHERS

    def check(self, width: int, height: int, what: str = "the picture") -> None:
        """Raise PictureTooLargeError for more pixels than the limit."""
        if width * height > self.pixels:
            raise PictureTooLargeError(
                f"{what} announces {width}x{height}, {width * height / 1e6:,.1f} megapixels; "
                f"max_decoded_megapixels is {self.megapixels:g}"
            )

    def check_bytes(self, size: int, what: str) -> None:
        """Raise PictureTooLargeError for more than ``unpacked_bytes``."""
        if size > self.unpacked_bytes:
            raise PictureTooLargeError(
                f"{what} holds {size:,} bytes or more, where at most {self.unpacked_bytes:,} "
                f"are taken (max_decoded_megapixels is {self.megapixels:g})"
            )


def open_picture(data: bytes, limit: PictureLimit) -> Image.Image:
    """The picture encoded in ``data``, of one of `FORMATS`: header read, nothing decoded yet.

    Pillow's own ``Image.open`` is not used: its limit is one number for the whole process.

    Raises PictureTooLargeError if it would take too much to decode, InvalidImageError if it is of
    another kind or its header is damaged.
    """
    plain = png_without_texts(data)
    try:
        picture = _from_header(plain)
        tile = _tile_of(picture)
    except Image.DecompressionBombError as fault:  # its reader of WebP asks before it makes room
        raise PictureTooLargeError(
            f"the picture announces more than Pillow takes: {in_words(fault)}"
        ) from fault
    except Exception as fault:  # bytes from outside: Pillow's readers raise what they do
        if "unknown pixel mode" in str(fault):
            raise InvalidImageError(
                f"its pixels are of a kind that is not read ({in_words(fault)}); save it as PNG"
            ) from fault
        raise InvalidImageError(f"its header cannot be read: {in_words(fault)}") from fault
    if picture is None:
        raise InvalidImageError(f"it is of an unknown kind; known are {', '.join(FORMATS)}")
    limit.check(*picture.size)
    limit.check(*tile, "a tile of the picture")
    if picture.format in ("JPEG", "MPO") and (scans := data.count(_START_OF_SCAN)) > _MAX_SCANS:
        raise InvalidImageError(
            f"the JPEG has {scans} scans; those of cameras have about ten, and at most "
            f"{_MAX_SCANS} are taken"
        )
    return picture


def rgb_of(picture: Image.Image, size: tuple[int, int] | None = None) -> np.ndarray:
    """Decode what ``open_picture`` gave: uint8 RGB [height, width, 3], upright by its EXIF data.

    16 bits keep their upper byte. ``size``: (width, height) to scale to.

    Raises InvalidImageError if it is damaged, holds measurements, or is nearly black for having its
    values in the lower of 16 bits.
    """
    tags = getattr(picture, "tag_v2", {})
    if _SIGNED in tags.get(_SAMPLE_FORMAT, ()):
        bits = tags.get(_BITS, (1,))[0]
        raise InvalidImageError(
            f"its values are signed, of {bits} bits a pixel, as measurements are"
        )
    if picture.mode == "F" or (picture.mode == "I" and picture.format == "TIFF"):
        raise InvalidImageError(
            "it has 32 bits a pixel, as measurements have; pictures have 8 or 16"
        )
    deep = picture.mode.startswith("I") or any(";16" in str(tile[3]) for tile in _tiles(picture))
    try:
        upright = ImageOps.exif_transpose(picture)
        if upright.mode.startswith("I"):
            grey = (np.asarray(upright) >> 8).astype(np.uint8)
            # Pillow turns these round where they have 8 bits, and no others.
            grey = ~grey if tags.get(_PHOTOMETRIC) == _WHITE_IS_ZERO else grey
            upright = Image.fromarray(grey)
        upright = upright.convert("RGB")
        image = np.array(upright if size is None else upright.resize(size))
    except Exception as fault:  # bytes from outside: Pillow's decoders raise what they do
        raise InvalidImageError(f"its pixels cannot be read: {in_words(fault)}") from fault
    if deep:
        check_depth(image)
    return image


def holds_several(picture: Image.Image) -> bool:
    """Whether there are more pictures in the file of one that has been decoded: pages, or those of
    an animation. (What a phone's JPEG has besides is of the same one.)"""
    try:
        return picture.format != "MPO" and getattr(picture, "n_frames", 1) > 1
    except Exception:  # bytes from outside: the next is damaged, or there is none
        return False


def check_depth(image: np.ndarray) -> None:
    """Raise InvalidImageError if the picture, of 16 bits made 8, shows only 12 of them: black."""
    if image.max(initial=0) <= 16:  # to which cv_bridge rounds the largest of 12 bits
        raise InvalidImageError(
            "of its 16 bits a pixel, at most the lower 12 are used, so it is nearly black; is it a "
            "depth image, or of a camera of 12 bits, whose driver should scale them?"
        )


def _tiles(picture: Image.Image) -> list[tuple[Any, ...]]:
    """What is to be decoded, and how: the last of each says so, in Pillow's names."""
    return list(getattr(picture, "tile", []))


def _from_header(data: bytes) -> Image.Image | None:
    Image.init()
    for name in FORMATS:
        if name not in Image.OPEN:  # not in this build of Pillow
            continue
        read_header, accepts = Image.OPEN[name]
        if accepts is None or accepts(data[:16]) is True:
            return read_header(io.BytesIO(data), "")
    return None


def _tile_of(picture: Image.Image | None) -> tuple[int, int]:
    """Width and height of a TIFF's tiles, each of which is decoded as a whole; else no pixels."""
    tags = getattr(picture, "tag_v2", {})
    if _TILE_WIDTH not in tags or _TILE_LENGTH not in tags:
        return 0, 0
    return int(tags[_TILE_WIDTH]), int(tags[_TILE_LENGTH])


def png_without_texts(data: bytes) -> bytes:
    """A PNG without its texts, which unpack to megabytes each and hold nothing of the picture, and
    without what follows its end. Other data are given back as they are.

    Raises InvalidImageError for a PNG with a chunk that announces more than there is: OpenCV makes
    room for it, up to 4 GB.
    """
    if data[:8] != b"\x89PNG\r\n\x1a\n":
        return data
    kept, at, kind = [data[:8]], 8, b""
    while kind != b"IEND":
        length, kind = _PNG_CHUNK.unpack(data[at : at + 8].ljust(8, b"\0"))
        end = at + 12 + length
        if end > len(data):
            raise InvalidImageError(
                f"a chunk of the PNG announces {length:,} bytes, where the data end after "
                f"{max(0, len(data) - at - 8):,}; was it cut in transport?"
            )
        if kind not in (b"tEXt", b"zTXt", b"iTXt"):
            kept.append(data[at:end])
        at = end
    return b"".join(kept)


def check_shape(height: int, width: int) -> None:
    """Raise InvalidImageError for a picture that the model cannot use, whatever its size."""
    if height < 1 or width < 1:
        raise InvalidImageError(f"the image is empty: {width}x{height} pixels")
    if max(height, width) / min(height, width) > MAX_ASPECT_RATIO:
        raise InvalidImageError(
            f"the image is {width}x{height} pixels: one side is more than {MAX_ASPECT_RATIO} times "
            "the other, which the model cannot use; crop it"
        )


def smart_resize(
    height: int, width: int, factor: int, min_pixels: int, max_pixels: int
) -> tuple[int, int]:
    """Height and width in pixels to which a picture is resized: the library's rule.

    Both are multiples of ``factor``; as far as that allows, the aspect ratio is kept and their
    product lies within the bounds. (A side never gets shorter than one ``factor``, so a very long
    and narrow picture can stay above ``max_pixels``.) Raises InvalidImageError for an empty picture
    or one over 200 times longer than wide.
    """
    check_shape(height, width)
    rows, columns = round(height / factor) * factor, round(width / factor) * factor
    if rows * columns > max_pixels:
        shrink = math.sqrt((height * width) / max_pixels)
        rows = max(factor, math.floor(height / shrink / factor) * factor)
        columns = max(factor, math.floor(width / shrink / factor) * factor)
    elif rows * columns < min_pixels:
        grow = math.sqrt(min_pixels / (height * width))
        rows = math.ceil(height * grow / factor) * factor
        columns = math.ceil(width * grow / factor) * factor
    return rows, columns
