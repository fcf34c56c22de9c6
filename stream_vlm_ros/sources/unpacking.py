# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Compressed data from outside, unpacked up to a bound: it may announce anything, or nothing."""

from __future__ import annotations

import bz2
from typing import Any

import lz4.frame
import zstandard

from stream_vlm_ros.engine.inputs.picture_sizes import PictureLimit

_PIECE = 2**20  # bytes
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
    size = zstandard.frame_content_size(data)  # -1: it does not say
    limit.check_bytes(size, f"{what}, unpacked,")
    if size < 0:
        size = _counted(data, limit, what)
    with zstandard.ZstdDecompressor().stream_reader(data) as reader:
        return reader.read(size)


def _counted(data: bytes, limit: PictureLimit, what: str) -> int:
    """To how many bytes ``data`` unpack, seen piece by piece: too many are never held at once."""
    size = 0
    with zstandard.ZstdDecompressor().stream_reader(data) as reader:
        while piece := reader.read(_PIECE):
            size += len(piece)
            limit.check_bytes(size, f"{what}, unpacked,")
    return size
