# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Mutated image messages through the node's own way of decoding them, without DDS.

    tools/run.sh python bench/fuzz_images.py --out bench/results/fuzz_images.json

Each message is made from the seed and its number alone (``--first N --messages 1`` makes that one
again), serialized as a middleware would give it, and taken in by the node's ingest. Checked: every
exception is caught and counted with a cause, none takes longer than ten seconds, received is
decoded + refused at every moment, and the peak of the process's memory. Exit status 1 if not.

A picture may have ``--megapixels``; headers that announce more are among the messages.
"""

from __future__ import annotations

import argparse
import array
import collections
import faulthandler
import functools
import io
import os
import re
import resource
import struct
import sys
import time
import traceback
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import PIL
from builtin_interfaces.msg import Time
from PIL import Image as Pillow
from PIL import features
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CompressedImage, Image
from std_msgs.msg import Header

from stream_vlm_ros.config import Settings
from stream_vlm_ros.engine.inputs.picture_sizes import PictureLimit
from stream_vlm_ros.engine.inputs.stamp_check import MAX_WAITING
from stream_vlm_ros.machine import measured_on
from stream_vlm_ros.node.images import compressed_to_rgb, image_to_rgb
from stream_vlm_ros.node.serialized_image import SerializedImage
from stream_vlm_ros.session.counters import Drop, FrameCounters
from stream_vlm_ros.session.ingest import FrameIngest

sys.path.append(str(Path(__file__).parent))  # tools/run.sh leaves it out
from fuzzing import tell

LONGEST = 10.0  # s, for one message
# Beyond what the process has when the first message comes: its buffers, the encoded data and
# a few copies of a picture of 16 bits and four channels.
ROOM = 100 * 2**20
BYTES_A_PIXEL = 64
START = 1_700_000_000  # s, of the first stamp

SIDES = (0, 1, 2, 3, 7, 8, 255, 256, 4095, 16_383, 32_000, 65_535, 65_536, 2**31 - 1, 2**32 - 1)
ENCODINGS = (
    "mono8 mono16 rgb8 bgr8 rgba8 bgra8 rgb16 bgr16 rgba16 bgra16 uyvy yuyv yuv422 yuv422_yuy2 "
    "nv12 nv21 nv24 8UC1 8UC3 8UC4 16UC1 16UC3 16UC4 32FC1 64FC1 8UC2 16SC1 bayer_rggb8 "
    "bayer_bggr8 bayer_gbrg8 bayer_grbg8 bayer_rggb16 bayer_bggr16 bayer_gbrg16 bayer_grbg16 "
    "RGB8 MONO8 jpeg h264"
).split()
# What differs between two refusals for the same cause.
_VARYING = re.compile(
    r"'[^']*'|\([^)]*\)|\b\w*(?:rgb|bgr|mono|yuv|yuy|uyvy|nv\d|bayer)\w*|[\d,.]+x?[\d,.]*"
)
BYTES_OF = {"8": 1, "16": 2, "32": 4, "64": 8}


# -- messages ----------------------------------------------------------------------------------


class Messages:
    """Message ``n`` of a seed: its type and its bytes."""

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._pictures = [*_pictures(np.random.default_rng(seed))]

    def __call__(self, number: int) -> tuple[type, bytes]:
        rng = np.random.default_rng([self._seed, number])
        header = Header(stamp=Time(sec=START + number, nanosec=0), frame_id="camera")
        kind = (Image, CompressedImage)[int(rng.integers(2))]
        make = self._raw if kind is Image else self._compressed
        serialized = serialize_message(make(rng, header))
        if rng.random() < 0.1:
            # Behind the kind of the CDR and the stamp, mostly: lengths of strings, sizes, data.
            serialized = _mutated(rng, serialized, near=96, keep=0 if rng.random() < 0.1 else 12)
        return kind, serialized

    def _raw(self, rng: np.random.Generator, header: Header) -> Image:
        encoding = str(rng.choice(ENCODINGS))
        width, height = (int(side) for side in rng.integers(1, 40, 2))
        bits = re.search(r"(8|16|32|64)", encoding)
        step = width * BYTES_OF[bits[1] if bits else "8"] * int(rng.integers(1, 5))
        rows = height * (2 if encoding.startswith("nv") else 1)
        data = rng.bytes(min(rows * step + int(rng.choice([0, 0, 0, 1, -1, 100])), 10**6))
        choice = rng.random()
        if choice < 0.2:
            width = int(rng.choice(SIDES))
        elif choice < 0.4:
            height = int(rng.choice(SIDES))
        elif choice < 0.5:
            width, height = (int(side) for side in rng.choice(SIDES, 2))
        if rng.random() < 0.3:
            step = int(rng.choice([*SIDES, step + 1, step - 1, step * 2]))
        if rng.random() < 0.05:
            encoding = str(rng.choice(["", "x" * 100_000, "rgb8\0", "ünknown", " mono8 ", "8UC99"]))
        return Image(
            header=header, height=height, width=width, encoding=encoding, step=step,
            is_bigendian=int(rng.choice([0, 0, 1, 255])), data=array.array("B", data),
        )  # fmt: skip

    def _compressed(self, rng: np.random.Generator, header: Header) -> CompressedImage:
        data = self._pictures[int(rng.integers(len(self._pictures)))]
        choice = rng.random()
        if choice > 0.92:
            data = _announcing(rng, data)
        elif choice < 0.85:
            data = _mutated(rng, data, near=int(rng.choice([40, 200, len(data)])), keep=0)
        if choice < 0.05:
            other = self._pictures[int(rng.integers(len(self._pictures)))]
            data = data[: int(rng.integers(len(data) + 1))] + other[int(rng.integers(len(other))) :]
        if data[:4] == b"\x89PNG" and rng.random() < 0.5:
            data = _with_right_sums(data)
        words = ["jpeg", "png", "rgb8; jpeg compressed bgr8", ""] * 5 + ["compressedDepth png"]
        return CompressedImage(
            header=header, format=str(rng.choice(words)), data=array.array("B", data)
        )


def _mutated(rng: np.random.Generator, data: bytes, near: int, keep: int) -> bytes:
    """``data`` with a few changes, among its first ``near`` bytes but not the first ``keep``."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        size = min(len(changed), max(near, keep + 1))
        if size <= keep:
            break
        at = int(rng.integers(keep, size))
        choice = rng.random()
        if choice < 0.4:
            changed[at] = int(rng.integers(256))
        elif choice < 0.7:  # a size
            form = str(rng.choice(["<H", ">H", "<I", ">I"]))
            value = int(rng.choice(SIDES)) % (1 << 8 * struct.calcsize(form))
            changed[at : at + struct.calcsize(form)] = struct.pack(form, value)
        elif choice < 0.8:
            del changed[at : at + int(rng.integers(1, 20))]
        elif choice < 0.9:
            changed[at:at] = changed[at : at + int(rng.integers(1, 60))] * int(rng.integers(1, 4))
        else:
            del changed[int(rng.integers(keep, len(changed) + 1)) :]
    return bytes(changed)


def _announcing(rng: np.random.Generator, data: bytes) -> bytes:
    """A JPEG, PNG or BMP whose header announces other sizes, and is whole otherwise."""
    width, height = (int(side) % 65_536 for side in rng.choice(SIDES, 2))
    changed = bytearray(data)
    frame = max(data.find(b"\xff\xc0"), data.find(b"\xff\xc2"))  # SOF0, SOF2
    if data[:2] == b"\xff\xd8" and frame > 0:
        struct.pack_into(">HH", changed, frame + 5, height, width)
    elif data[:4] == b"\x89PNG":
        struct.pack_into(">II", changed, 16, width, height)
        return _with_right_sums(bytes(changed))
    elif data[:2] == b"BM":
        struct.pack_into("<ii", changed, 18, width, height)
    return bytes(changed)


def _with_right_sums(data: bytes) -> bytes:
    """A PNG's chunks with their check sums set right, so that what they say is believed."""
    out, at = bytearray(data), 8
    while at + 12 <= len(out):
        end = at + 8 + struct.unpack_from(">I", out, at)[0]
        if end + 4 > len(out):
            break
        struct.pack_into(">I", out, end, zlib.crc32(out[at + 4 : end]))
        at = end + 4
    return bytes(out)


def _pictures(rng: np.random.Generator) -> Iterator[bytes]:
    """Good pictures of every kind, to be mutated, and some that are made to take much."""
    for _ in range(4):
        height, width = (int(side) for side in rng.integers(33, 40, 2))  # JPEG 2000 takes no less
        for pixels in (
            rng.integers(0, 256, (height, width, 3), np.uint8),
            np.full((height, width, 4), rng.integers(0, 256, 4), np.uint8),
            rng.integers(0, 256, (height, width), np.uint8),
        ):
            yield from _encoded(Pillow.fromarray(pixels))
        deep = rng.integers(0, 65536, (height, width, 3), np.uint16)
        for suffix in (".png", ".tiff", ".jp2", ".ppm"):
            yield cv2.imencode(suffix, deep)[1].tobytes()
        for suffix in (".hdr", ".pfm"):
            yield cv2.imencode(suffix, deep.astype(np.float32))[1].tobytes()
    png = next(data for data in _encoded(Pillow.new("RGB", (8, 6))) if data[:4] == b"\x89PNG")
    text = zlib.compress(bytes(7_900_000))
    for kind, head in ((b"zTXt", b"k\0\0"), (b"iTXt", b"k\0\1\0\0\0"), (b"iCCP", b"k\0\0")):
        content = kind + head + text
        chunk = struct.pack(">I", len(content) - 4) + content
        yield png[:33] + (chunk + struct.pack(">I", zlib.crc32(content))) * 40 + png[33:]
    yield b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


def _encoded(picture: Pillow.Image) -> Iterator[bytes]:
    exif = Pillow.Exif()
    exif[0x0112] = 6  # orientation
    several = {"save_all": True, "append_images": [picture, picture]}
    ways: list[tuple[str, dict[str, Any]]] = [
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "exif": exif}),
        ("PNG", {"exif": exif}),
        ("PNG", several),
        ("BMP", {}),
        ("GIF", several),
        ("PPM", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True, **several}),
        ("TIFF", several),
        ("TIFF", {"compression": "tiff_lzw", "tiffinfo": {322: 16, 323: 16}}),
        ("TIFF", {"compression": "tiff_adobe_deflate"}),
        ("JPEG2000", {}),
        *([("AVIF", {})] if features.check("avif") else []),
        ("ICO", {}),
        ("TGA", {}),
    ]
    for form, options in ways:
        out = io.BytesIO()
        picture = picture.convert("RGB") if form in ("JPEG", "PPM", "AVIF") else picture
        picture.save(out, form, **options)
        yield out.getvalue()


# -- taking them in ----------------------------------------------------------------------------


class Fuzz:
    """The node's ingest, and what became of each message."""

    def __init__(self, megapixels: float) -> None:
        self.counters = FrameCounters()
        self.causes: collections.Counter[str] = collections.Counter()
        self.raw: list[str] = []
        self.unbalanced = 0
        self.slowest = (0.0, -1)
        limit = PictureLimit(megapixels)
        self._decode: dict[type, Callable[[Any], np.ndarray]] = {
            Image: functools.partial(image_to_rgb, limit=limit),
            CompressedImage: functools.partial(compressed_to_rgb, limit=limit),
        }
        self._ingest = FrameIngest(
            Settings.of({"sample_fps": 0.0, "chunk_frames": 1}),
            self.counters,
            deliver=lambda chunk: self.counters.ingest(len(chunk)),
            restart=lambda: None,
            report=self._note,
        )
        self._ingest.active = True

    def take(self, number: int, kind: type, serialized: bytes) -> None:
        begin = time.monotonic()
        try:
            self._ingest.receive(
                SerializedImage(serialized, kind, self._decode[kind]), START * 10**9
            )
        except Exception:
            self.raw.append(f"message {number}: {traceback.format_exc()}")
        self.slowest = max(self.slowest, (time.monotonic() - begin, number))
        drops = self.counters.dropped
        refused = drops[Drop.INVALID_IMAGE] + drops[Drop.INVALID_STAMP]
        told = sum(self.causes.values())
        # So many at most wait for a pause or a jump of time to be believed.
        waiting = self.counters.pending
        self.unbalanced += waiting > MAX_WAITING or refused != told

    def end(self) -> None:
        self._ingest.clear(Drop.RESET)
        self.unbalanced += self.counters.pending != 0

    def _note(self, cause: Drop, words: str) -> None:
        if cause is not Drop.TIME_JUMP:  # that frame goes on
            told = _VARYING.sub("_", words)
            self.causes[f"{cause.value}: {told[:80]}"] += 1


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def run(options: argparse.Namespace) -> dict[str, Any]:
    """Take in all messages; the results."""
    machine = measured_on(np, cv2, PIL)
    messages, fuzz = Messages(options.seed), Fuzz(options.megapixels)
    told = os.fdopen(os.dup(2), "w")
    with open(os.devnull, "w") as nowhere:  # the decoders' own words about each message
        os.dup2(nowhere.fileno(), 2)
    before, begin = peak_bytes(), time.monotonic()
    for number in range(options.first, options.first + options.messages):
        kind, serialized = messages(number)
        faulthandler.dump_traceback_later(LONGEST, exit=True, file=told)
        fuzz.take(number, kind, serialized)
    fuzz.end()
    faulthandler.cancel_dump_traceback_later()
    os.dup2(told.fileno(), 2)
    counts = {name: count for name, count in fuzz.counters.snapshot().items() if count}
    room = ROOM + round(BYTES_A_PIXEL * options.megapixels * 1e6)
    grown = peak_bytes() - before
    return {
        **machine,
        "command": f"tools/run.sh python bench/fuzz_images.py --seed {options.seed} "
        f"--messages {options.messages} --megapixels {options.megapixels:g}",
        "seed": options.seed,
        "messages": options.messages,
        "max_decoded_megapixels": options.megapixels,
        "counts": counts,
        "causes": dict(fuzz.causes.most_common()),
        "kinds_of_causes": len(fuzz.causes),
        "raw_exceptions": fuzz.raw[:20],
        "unbalanced": fuzz.unbalanced,
        "slowest_seconds": round(fuzz.slowest[0], 3),
        "slowest_message": fuzz.slowest[1],
        "megabytes_before": round(before / 2**20, 1),
        "megabytes_more_at_the_peak": round(grown / 2**20, 1),
        "megabytes_allowed": round(room / 2**20, 1),
        "seconds": round(time.monotonic() - begin, 1),
        "passed": not fuzz.raw and not fuzz.unbalanced and grown <= room,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=200_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first message")
    parser.add_argument("--seed", type=int, default=20261128)
    parser.add_argument("--megapixels", type=float, default=1.0)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    results = run(options)
    tell(results, options.out)
    return 0 if results["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
