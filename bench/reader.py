# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The reader alone: an hour of 1280x720 H.264 at 30 frames a second, sampled to 2.

    python bench/reader.py --minutes 60 --out bench/results/reader.json

The pictures are those of the demo's real video, encoded twice here: as a camera does it (no frame
refers to a later one) and with x264's own defaults. Twenty seconds are encoded and their packets
repeated, so that an hour costs no more to write than to copy. On a shared machine compare the
processor time; the load average is noted.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from fractions import Fraction
from multiprocessing import get_context
from pathlib import Path

import av

from stream_vlm_ros.demo.defaults import default_video
from stream_vlm_ros.machine import measured_on
from stream_vlm_ros.sources import VideoSource

RATE, SIZE, PIECE_SECONDS = 30, (1280, 720), 20
ENCODINGS = {
    "camera": ({"preset": "veryfast", "tune": "zerolatency", "crf": "23"}, 0),
    "x264 defaults": ({"crf": "23"}, None),
}


def encode(path: Path, options: dict[str, str], b_frames: int | None) -> None:
    """Twenty seconds of real pictures, forwards and backwards in turn, so that nothing jumps."""
    images = [frame.image for frame in VideoSource(default_video(), size=SIZE)]
    images += images[-2:0:-1]
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=RATE, options=options)
        (stream.width, stream.height), stream.pix_fmt = SIZE, "yuv420p"
        stream.codec_context.gop_size = 2 * RATE
        if b_frames is not None:
            stream.codec_context.max_b_frames = b_frames
        for index in range(PIECE_SECONDS * RATE):
            frame = av.VideoFrame.from_ndarray(images[index % len(images)], format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, RATE)
            out.mux(stream.encode(frame))
        out.mux(stream.encode())


def repeat(piece: Path, path: Path, times: int) -> None:
    """The packets of ``piece`` again and again, their stamps running on."""
    with av.open(str(path), "w") as out:
        target = None
        for number in range(times):
            with av.open(str(piece)) as source:
                stream = source.streams.video[0]
                if target is None:
                    target = out.add_stream_from_template(stream)
                shift = round(number * PIECE_SECONDS / stream.time_base)
                for packet in source.demux(stream):
                    if packet.dts is None:
                        continue
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = target
                    out.mux(packet)


def read(path: Path, fps: float, minutes: float) -> dict:
    """One pass over the file: times, and the process's memory along the way."""
    source = VideoSource(path, fps=fps)
    begin, spent, frames, memory = time.perf_counter(), time.process_time(), 0, []
    for frame in source:
        frames += 1
        if frame.stamp_ns >= len(memory) * minutes * 60e9 / 10:
            memory.append(resident_mb())
    wall, spent = time.perf_counter() - begin, time.process_time() - spent
    counts = source.state.counts
    assert source.state.damage is None, source.state.damage
    assert (counts.decoded, frames) == (minutes * 60 * RATE, minutes * 60 * fps), counts
    return {
        "file_mb": round(path.stat().st_size / 1e6, 1),
        "megabits_a_second": round(path.stat().st_size * 8e-6 / (minutes * 60), 2),
        "decoded": counts.decoded,
        "given": frames,
        "cpu_s_a_second_of_video": round(spent / (60 * minutes), 4),
        "times_real_time_on_one_core": round(60 * minutes / spent, 1),
        "wall_s": round(wall, 1),
        "times_real_time_by_the_wall": round(60 * minutes / wall, 1),
        "load_average": round(os.getloadavg()[0], 1),
        "resident_mb_at_each_tenth": memory,
    }


def resident_mb() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * resource.getpagesize() / 1e6, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=int, default=60)
    parser.add_argument("--fps", type=int, default=2)
    parser.add_argument("--encodings", default=",".join(ENCODINGS))
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    result = {
        **measured_on(av),
        "minutes": options.minutes,
        "fps": options.fps,
        "encodings": {},
    }
    for name in options.encodings.split(","):
        with tempfile.TemporaryDirectory(prefix="stream_vlm_reader_") as folder:
            piece, whole = Path(folder) / "piece.mp4", Path(folder) / "whole.mp4"
            encode(piece, *ENCODINGS[name])
            repeat(piece, whole, options.minutes * 60 // PIECE_SECONDS)
            # In a process of its own, so that its memory is the reader's alone.
            with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as fresh:
                reading = fresh.submit(read, whole, options.fps, options.minutes)
                result["encodings"][name] = reading.result()
        text = json.dumps(result, indent=1)
        if options.out:
            options.out.parent.mkdir(parents=True, exist_ok=True)
            options.out.write_text(text + "\n")
    print(text, flush=True)


if __name__ == "__main__":
    main()
