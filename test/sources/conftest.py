# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Small videos, written here with PyAV, so that every frame's time and content is known."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

WIDTH, HEIGHT = 64, 48


def grey_of(index: int) -> int:
    """The grey level of frame ``index``: far enough apart to survive lossy codecs."""
    return 20 + 40 * (index % 6)


def write_video(
    path: Path,
    codec: str,
    stamps_ms: list[int] | None = None,
    *,
    count: int = 20,
    rate: int = 10,
    size: tuple[int, int] = (WIDTH, HEIGHT),
    images: list[np.ndarray] | None = None,
    container: str | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """Write a video of flat grey frames, at the stamps given or at a constant rate."""
    pixels = "yuvj420p" if codec == "mjpeg" else "yuv420p"
    tick = Fraction(1, 1000) if stamps_ms is not None else Fraction(1, rate)
    width, height = size
    with av.open(str(path), "w", format=container, options=options or {}) as output:
        stream = output.add_stream(codec, rate=rate)
        stream.width, stream.height, stream.pix_fmt = width, height, pixels
        if stamps_ms is not None:
            stream.codec_context.time_base = tick
        for index in range(count if stamps_ms is None else len(stamps_ms)):
            if images is not None:
                image = images[index]
            else:
                image = np.full((height, width, 3), grey_of(index), np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.time_base = tick
            frame.pts = index if stamps_ms is None else stamps_ms[index]
            for packet in stream.encode(frame):
                output.mux(packet)
        for packet in stream.encode():
            output.mux(packet)
    return path


@pytest.fixture
def video(tmp_path):
    """Ten frames a second for two seconds, H.264 in MP4 with the index in front."""
    return write_video(tmp_path / "plain.mp4", "libx264", options={"movflags": "faststart"})
