# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Compressed data from outside, unpacked up to a bound: it may announce anything, or nothing."""

from __future__ import annotations

import bz2
from typing import Any

import lz4.frame
import zstandard

from stream_vlm_ros.engine.inputs.picture_sizes import PictureLimit

ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def unpack(data: bytes, compression: str, limit: PictureLimit, what: str = "the data") -> bytes:
    """``data``, compressed by "zstd", "lz4" or "bz2"; "" and "none" give it back as it is.

    Of data that are cut off it is the part that is there.

    Raises PictureTooLargeError for more than ``limit.unpacked_bytes``, ValueError for an unknown
    compression, and what the libraries raise for damaged data.
    """
    if compression in ("", "none"):
        return data
    if compression == "zstd":
        return _unzstd(data, limit, what)
    if compression == "lz4":
        decompressor: Any = lz4.frame.LZ4FrameDecompressor()
    elif compression == "bz2":
        decompressor = bz2.BZ2Decompressor()
    else:
        raise ValueError(f"unknown compression {compression!r}")
    unpacked = decompressor.decompress(data, limit.unpacked_bytes + 1)
    limit.check_bytes(len(unpacked), f"{what}, unpacked,")
    return unpacked


def _unzstd(data: bytes, limit: PictureLimit, what: str) -> bytes:
    announced = zstandard.frame_content_size(data)  # -1: it does not say
    limit.check_bytes(announced, f"{what}, unpacked,")
    with zstandard.ZstdDecompressor().stream_reader(data) as reader:
        unpacked = reader.read(limit.unpacked_bytes + 1 if announced < 0 else announced)
    limit.check_bytes(len(unpacked), f"{what}, unpacked,")
    return unpacked
