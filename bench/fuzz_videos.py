# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Videos and pictures damaged by lot: what is read of them, and what is said of the rest.

    make fuzz-videos

Each case is a file of known frames with one to three mutations drawn from its seed; a process of
its own reads it. It must end within ten seconds, by nothing but the package's own errors. Of a
video, what was decoded is what was given, unwanted, unusable or unordered; stamps grow; and where
fewer frames are given than were put in, a note or the damage says so (but for files that lost
their end where nothing announces a length: MPEG streams). Read from a place in the middle, it
gives what it gave from there on, unless one of the two says something. Of a folder, every picture
is given or counted, and the damaged one comes out as it does from a message. `silent` counts the
cases that lost frames without a word, `raw` the exceptions that are nobody's.
"""

from __future__ import annotations

import argparse
import collections
import io
import random
import sys
import tempfile
import time
from fractions import Fraction
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import PIL
from PIL import Image

from stream_vlm_ros.errors import InvalidImageError
from stream_vlm_ros.machine import measured_on
from stream_vlm_ros.sources import ImageFolderSource, VideoSource
from stream_vlm_ros.sources.ros_images import compressed_to_rgb

sys.path.append(str(Path(__file__).parent))  # tools/run.sh leaves it out
from fuzzing import LIMIT, in_its_own_process, tell

FRAMES = 120
PART = 4.0  # seconds, from which on each is read once more
WIDTH, HEIGHT, RATE = 64, 48, 10
VIDEOS = [
    ("a.mp4", "libx264", {"movflags": "faststart"}),
    ("b.mp4", "libx264", {}),
    ("c.mkv", "libx264", {}),
    ("d.mkv", "ffv1", {}),
    ("e.webm", "libvpx", {}),
    ("f.webm", "libvpx-vp9", {}),
    ("g.avi", "mpeg4", {}),
    ("h.avi", "mjpeg", {}),
    ("i.ts", "libx264", {}),
    ("j.mpg", "mpeg2video", {}),
    ("k.mov", "mjpeg", {}),
    ("l.flv", "libx264", {}),
    ("m.mjpeg", "mjpeg", {}),
]


def make_videos(root: Path) -> list[Path]:
    """One of each kind, of moving pictures."""
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    for name, codec, options in VIDEOS:
        with av.open(str(root / name), "w", options=options) as output:
            stream = output.add_stream(codec, rate=25 if codec == "mpeg2video" else RATE)
            stream.width, stream.height = WIDTH, HEIGHT
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.codec_context.gop_size = 20
            for n in range(FRAMES):
                image = np.stack([rows * 4 + n, columns * 3 + 2 * n, rows + columns], axis=2)
                frame = av.VideoFrame.from_ndarray(image.astype(np.uint8), format="rgb24")
                frame.pts, frame.time_base = n, Fraction(1, stream.average_rate or RATE)
                output.mux(stream.encode(frame))
            output.mux(stream.encode())
    return [root / name for name, _, _ in VIDEOS]


def make_pictures() -> list[tuple[str, bytes]]:
    """One of each kind: the ending of its name, and its bytes."""
    pixels = np.random.default_rng(0).integers(0, 256, (40, 50, 3), np.uint8)
    exif = Image.Exif()
    exif[0x0112] = 6
    ways: list[tuple[str, Any, dict[str, Any]]] = [
        ("jpg", pixels, {"exif": exif}),
        ("jpg", pixels, {"progressive": True}),
        ("jpg", pixels[..., 0], {}),
        ("png", pixels, {"exif": exif}),
        ("png", pixels[..., 0].astype(np.uint16) * 257, {}),
        ("tif", pixels, {"compression": "tiff_lzw"}),
        ("tif", pixels[..., 0].astype(np.float32), {}),
        ("webp", pixels, {"lossless": True}),
        ("webp", pixels, {}),
        ("bmp", pixels, {}),
        ("ppm", pixels, {}),
    ]
    made = []
    for suffix, image, options in ways:
        out = io.BytesIO()
        Image.fromarray(image).save(
            out, {"jpg": "JPEG", "tif": "TIFF"}.get(suffix, suffix), **options
        )
        made.append((suffix, out.getvalue()))
    return made


# -- mutations -----------------------------------------------------------------------------------


def mutated(data: bytes, lot: random.Random) -> tuple[bytes, list[str]]:
    """``data`` with one to three changes, and their names."""
    out, names = bytearray(data), []
    for _ in range(lot.choice([1, 1, 2, 3])):
        name = lot.choice(["bytes", "head", "block", "zeros", "cut out", "cut off", "inserted"])
        at = lot.randrange(len(out))
        size = lot.choice([1, 10, 200, 2000, len(out) // 3])
        if name == "bytes":
            for _ in range(lot.choice([1, 5, 50, len(out) // 50 + 1])):
                out[lot.randrange(len(out))] = lot.randrange(256)
        elif name == "head":
            out[lot.randrange(min(len(out), 600))] = lot.choice([0, 1, 127, 128, 255])
        elif name == "block":
            out[at : at + size] = lot.randbytes(len(out[at : at + size]))
        elif name == "zeros":
            out[at : at + size] = bytes(len(out[at : at + size]))
        elif name == "cut out":
            del out[at : at + size]
        elif name == "cut off":
            del out[at:]
        else:
            out[at:at] = lot.choice([lot.randbytes(size), bytes(out[:size])])
        names.append(name)
        if not out:
            break
    return bytes(out), names


# -- one case ------------------------------------------------------------------------------------


def read_video(path: Path) -> str:
    """Read it all, check what was counted, and tell what came of it."""
    source = VideoSource(path)
    stamps = [frame.stamp_ns for frame in source]
    counts, state = source.state.counts, source.state
    assert stamps == sorted(set(stamps)), "stamps do not grow"
    told = counts.given + counts.unwanted + counts.unusable + counts.unordered
    assert counts.decoded == told and counts.given == len(stamps), counts
    part = VideoSource(path, start=PART)
    late = [frame.stamp_ns for frame in part]
    said = [state.damage, *state.notes, part.state.damage, *part.state.notes]
    if late != [stamp for stamp in stamps if stamp >= PART * 10**9] and not any(said):
        return f"silent: {len(late)} from {PART} s on"
    if len(stamps) >= FRAMES:
        return "whole"
    if state.damage is not None or state.notes:
        return "less, and said"
    step = stamps[-1] / max(1, len(stamps) - 1)
    evenly = all(abs(stamp - n * step) < 2e6 for n, stamp in enumerate(stamps))
    if evenly and (source.duration is None or path.suffix in (".ts", ".mpg", ".mjpeg")):
        return "cut off, in a format that announces no length"
    return f"silent: {len(stamps)} of {FRAMES}, {counts}"


def read_picture(folder: Path) -> str:
    """Read it among two good ones, and as a message."""
    damaged = next(path for path in folder.iterdir() if path.stem == "2")
    source = ImageFolderSource(folder, frame_rate=1)
    frames = {frame.stamp_ns: frame.image for frame in source}
    counts = source.state.counts
    assert counts.given + counts.unusable == counts.decoded == 3, counts
    assert {0, 2 * 10**9} <= set(frames), "a good picture is missing"
    assert (counts.unusable == 0) == (source.state.damage is None)
    message = SimpleNamespace(format="", data=damaged.read_bytes())
    try:
        image = compressed_to_rgb(message)
    except InvalidImageError:
        assert 10**9 not in frames, "refused as a message, taken in a folder"
        return "refused"
    np.testing.assert_array_equal(image, frames[10**9])
    return "decoded"


def case(seed: int, videos: list[Path], pictures: list[tuple[str, bytes]]) -> dict[str, Any]:
    """One damaged file: its mutations, and what came of it."""
    lot = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        if seed % 2:
            of = lot.choice(videos)
            kind, path = of.name, folder / of.name
            data, mutations = mutated(of.read_bytes(), lot)
            path.write_bytes(data)
            outcome, seconds, memory = in_its_own_process(lambda: read_video(path))
        else:
            kind, good = lot.choice(pictures)
            data, mutations = mutated(good, lot)
            for number, content in enumerate([pictures[0][1], data, pictures[0][1]], 1):
                (folder / f"{number}.{kind if number == 2 else 'jpg'}").write_bytes(content)
            outcome, seconds, memory = in_its_own_process(lambda: read_picture(folder))
    return {
        "seed": seed,
        "file": kind,
        "mutations": mutations,
        "outcome": outcome,
        "seconds": round(seconds, 3),
        "memory": memory,
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="seed of the first case")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    options = parser.parse_args()
    head, begin = measured_on(av, np, PIL), time.monotonic()
    cases = []
    with tempfile.TemporaryDirectory() as name:
        videos, pictures = make_videos(Path(name)), make_pictures()
        for video in videos:
            assert read_video(video) == "whole", video
        for seed in range(options.first, options.first + options.cases):
            cases.append(case(seed, videos, pictures))
    failed = [c for c in cases if c["outcome"].startswith(("raw", "hangs", "silent"))]
    outcomes = collections.Counter(
        c["outcome"].partition(": ")[0] for c in cases if c not in failed
    )
    results = {
        **head,
        "command": f"bench/fuzz_videos.py --cases {options.cases} --first {options.first}",
        "cases": len(cases),
        "videos": sum(c["seed"] % 2 for c in cases),
        "outcomes": dict(outcomes.most_common()),
        "raw": sum(c["outcome"].startswith("raw") for c in cases),
        "hangs": sum(c["outcome"] == "hangs" for c in cases),
        "silent": sum(c["outcome"].startswith("silent") for c in cases),
        "limit_seconds": LIMIT,
        "slowest_seconds": max(c["seconds"] for c in cases),
        "most_memory_megabytes": round(max(c["memory"] for c in cases) / 2**20, 1),
        "failed": failed[:40],
        "seconds": round(time.monotonic() - begin, 1),
        "passed": not failed,
    }
    tell(results, options.out)
    return 0 if results["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
