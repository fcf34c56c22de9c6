# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The frame memory on one core: what a frame costs, and a day of frames at 1 a second.

    python bench/frame_memory.py --out bench/results/frame_memory.json

Adding: 1280x720 frames of the drawn world (and of a video, with --video) go through importance,
JPEG and index into a folder; processor time of the thread, in milliseconds. The day: small
pictures, so that it takes minutes, stamped 1 s apart; what does not depend on their size is the
store's bound, the process's memory and the time to choose frames for a question.
"""

from __future__ import annotations

import argparse
import json
import os
import sqlite3
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import PIL
from PIL import Image

from stream_vlm_ros.history import FrameStore, SmartFrameManager
from stream_vlm_ros.history.pictures import encode
from stream_vlm_ros.machine import measured_on
from stream_vlm_ros.world.world import World

WIDTH, HEIGHT = 1280, 720
HOUR = 3600


def milliseconds(run, inputs) -> dict[str, float]:
    """Processor time of this thread, and wall time, for ``run`` on each of ``inputs``."""
    processor, wall = [], []
    for item in inputs:
        begin, began = time.thread_time(), time.perf_counter()
        run(item)
        processor.append(1e3 * (time.thread_time() - begin))
        wall.append(1e3 * (time.perf_counter() - began))
    ninety_five = statistics.quantiles(processor, n=20)[-1]
    return {
        "median": round(statistics.median(processor), 2),
        "p95": round(ninety_five, 2),
        "most": round(max(processor), 2),
        "wall_median": round(statistics.median(wall), 2),
        "runs": len(processor),
    }


def drawn_frames(count: int) -> list[np.ndarray]:
    world = World(7)
    return [world.render(0.7 * k, WIDTH, HEIGHT) for k in range(count)]


def video_frames(path: str, count: int) -> list[np.ndarray]:
    from stream_vlm_ros.sources import open_source

    frames = []
    for frame in open_source(path):
        frames.append(np.asarray(Image.fromarray(frame.image).resize((WIDTH, HEIGHT))))
        if len(frames) == count:
            break
    return frames


def measure_adding(frames: list[np.ndarray], folder: Path) -> dict:
    with FrameStore(folder) as store:
        manager = SmartFrameManager(store, target_fps=0)
        measure = manager._measure
        stamps = iter(range(10**6))
        added = milliseconds(lambda image: manager.add(image, float(next(stamps))), frames)
        stars = np.stack([measure.describe(frame) for frame in frames[:20]])
        return {
            "add": added,
            "of_that_importance": milliseconds(
                lambda image: measure.novelty(measure.describe(image), stars), frames
            ),
            "of_that_jpeg": milliseconds(lambda image: encode(image, "jpeg", 90), frames),
            "bytes_a_frame": store.bytes // len(store),
            "stars": len(manager.star_ids),
        }


def resident_mib() -> float:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 1)


def disk_bytes(folder: Path) -> int:
    return sum(
        os.stat(os.path.join(root, name)).st_blocks * 512
        for root, _, names in os.walk(folder)
        for name in names
    )


def day_pictures() -> list[np.ndarray]:
    world = World(11)
    return [world.render(1.0 * k, 64, 48) for k in range(600)]


def measure_day(folder: Path, hours: int, max_bytes: int) -> dict:
    """``hours`` of frames at 1 a second, with questions at the end of each hour."""
    pictures = day_pictures()
    rows, chosen_in, near_in = [], [], []
    begin = time.perf_counter()
    with FrameStore(folder, max_bytes=max_bytes) as store:
        manager = SmartFrameManager(store)
        for second in range(hours * HOUR):
            manager.add(pictures[second % len(pictures)], float(second))
            assert store.bytes <= max_bytes
            if (second + 1) % HOUR:
                continue
            oldest = store.oldest_frame.stamp
            for k in range(5):
                now = time.perf_counter()
                assert len(manager.select(48)) == 24
                chosen_in.append(1e3 * (time.perf_counter() - now))
                about = oldest + (second - oldest) * k / 5
                now = time.perf_counter()
                assert len(manager.select(48, (about, about + 60))) == 24
                near_in.append(1e3 * (time.perf_counter() - now))
            rows.append(
                {
                    "hour": (second + 1) // HOUR,
                    "frames": len(store),
                    "store_mib": round(store.bytes / 2**20, 1),
                    "resident_mib": resident_mib(),
                }
            )
        counted, on_disk = store.bytes, disk_bytes(folder)
        statistics_then = manager.statistics()
    wall = time.perf_counter() - begin
    begin = time.perf_counter()
    with FrameStore(folder, max_bytes=max_bytes) as store:
        opened = time.perf_counter() - begin
        assert len(store) == statistics_then["stored_frames"]
    return {
        "hours": hours,
        "max_bytes": max_bytes,
        "bytes_counted": counted,
        "bytes_on_disk": on_disk,
        "frames_forgotten": statistics_then["frames_forgotten"],
        "select_ms": {"median": statistics.median(chosen_in), "most": max(chosen_in)},
        "select_near_ms": {"median": statistics.median(near_in), "most": max(near_in)},
        "open_again_s": round(opened, 3),
        "wall_s": round(wall, 1),
        "each_hour": rows,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--frames", type=int, default=100, help="frames that are added and timed")
    parser.add_argument("--hours", type=int, default=26)
    parser.add_argument("--video", help="time frames of this video, too")
    options = parser.parse_args()
    result = {
        **measured_on(np, PIL),
        "sqlite": sqlite3.sqlite_version,
        "size": [WIDTH, HEIGHT],
    }
    with tempfile.TemporaryDirectory() as root:
        frames = drawn_frames(options.frames)
        result["adding_drawn"] = measure_adding(frames, Path(root, "drawn"))
        if options.video:
            frames = video_frames(options.video, options.frames)
            result["adding_video"] = measure_adding(frames, Path(root, "video"))
        del frames
        result["day"] = measure_day(Path(root, "day"), options.hours, 4 * 1024**3)
        hours = max(2, options.hours // 4)
        result["bound_in_bytes"] = measure_day(Path(root, "bound"), hours, 40 * 1024**2)
    text = json.dumps(result, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")


if __name__ == "__main__":
    main()
