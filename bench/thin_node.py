# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the node takes of a robot when its memory is at a server (engine remote).

    tools/run.sh python bench/thin_node.py --out bench/results/thin_node.json

One process publishes 640x480 rgb8 images, 30 a second, over config/fastdds.xml; another serves the
small model (`stream-vlm serve`). The node, over config/fastdds_thin.xml, samples 2 a second, makes
JPEGs of the model's size and sends them.

A figure of a stretch of some seconds, after a warm-up, is the node's own: its processor time (user
and system, all threads) as a share of a core, and its memory at the end of the stretch: resident
(RSS), its share of what it has in common with others (PSS), and what is its alone (USS). The bars
are for the share of a core, and for RSS, the largest of the three.
"""

from __future__ import annotations

import argparse
import array
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

from stream_vlm_ros.machine import measured_on
from stream_vlm_ros.processes.graph import own_graph

WIDTH, HEIGHT, RATE, SAMPLE_FPS = 640, 480, 30.0, 2.0
TOPIC = "/camera/image"
MAX_CORE, MAX_MB = 0.15, 150.0
THIN = Path(__file__).parents[1] / "config" / "fastdds_thin.xml"
PROFILES = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
TICKS = os.sysconf("SC_CLK_TCK")


def publish() -> None:
    """Images at RATE until the process is told to end; how many reached the node, line by line."""
    import numpy as np
    import rclpy
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image
    from stream_vlm.msg import CacheStatus

    rclpy.init()
    node = rclpy.create_node("camera")
    publisher = node.create_publisher(Image, TOPIC, qos_profile_sensor_data)
    lot = np.random.default_rng(7)
    coarse = lot.integers(0, 255, (HEIGHT // 40, WIDTH // 40, 3))  # things, and a sensor's noise
    picture = np.kron(coarse, np.ones((40, 40, 1))) + lot.normal(0, 4, (HEIGHT, WIDTH, 3))
    image = Image(height=HEIGHT, width=WIDTH, encoding="rgb8", step=3 * WIDTH)
    image.header.frame_id = "camera"
    image.data = array.array("B", picture.clip(0, 255).astype(np.uint8).tobytes())
    node.create_subscription(
        CacheStatus,
        "/stream_vlm/cache_status",
        lambda status: print(status.frames_received, flush=True),
        1,
    )
    due = time.monotonic()
    while rclpy.ok():
        image.header.stamp = node.get_clock().now().to_msg()
        publisher.publish(image)
        due = max(due + 1 / RATE, time.monotonic() - 1.0)
        while (left := due - time.monotonic()) > 0:
            rclpy.spin_once(node, timeout_sec=left)


def start(*command: str, environment: dict[str, str], **options: Any) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, *command], env=environment, **options)


class Arrived:
    """How many images have reached the node, as the publisher is told."""

    def __init__(self, publisher: subprocess.Popen) -> None:
        self.images, self._lines = 0, publisher.stdout
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self._lines:
            self.images = int(line)


def processor_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory_mb(pid: int) -> dict[str, float]:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    kib = {line.split(":")[0]: int(line.split()[1]) for line in lines}
    alone = kib["Private_Clean"] + kib["Private_Dirty"]
    found = {"rss": kib["Rss"], "pss": kib["Pss"], "uss": alone}
    return {name: round(size * 1024 / 1e6, 1) for name, size in found.items()}


def counters(port: int) -> dict[str, int]:
    """Of the server's session; none while there is no session."""
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/sessions", timeout=5) as told:
            sessions = json.load(told)["data"]
    except OSError:  # not yet
        return {}
    return sessions[0]["counters"] if sessions else {}


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as found:
        port: int = found.getsockname()[1]
    return port


def measure(pid: int, port: int, arrived: Arrived, seconds: float) -> dict[str, float]:
    used, seen, began = processor_seconds(pid), counters(port), time.monotonic()
    images = arrived.images
    time.sleep(seconds)
    wall = time.monotonic() - began
    ingested = counters(port)["frames_ingested"] - seen["frames_ingested"]
    core = (processor_seconds(pid) - used) / wall
    rates = {
        "images_a_second": (arrived.images - images) / wall,
        "frames_a_second": ingested / wall,
    }
    return {"core": core, **rates, **memory_mb(pid)}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--stretches", type=int, default=8)
    parser.add_argument("--seconds", type=float, default=8.0, help="of a stretch")
    parser.add_argument("--role", choices=["publish"], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        publish()
        return 0
    with tempfile.TemporaryDirectory() as logs, own_graph(Path(logs)) as environment:
        return run(options, {**os.environ, **environment, "OMP_NUM_THREADS": "1"})


def run(options: argparse.Namespace, environment: dict[str, str]) -> int:
    machine, port = measured_on(), free_port()
    serve = ("-m", "stream_vlm_ros.cli", "serve", "--port", str(port), "--max-pixels", "401408")
    own = {"engine": "remote", "engine_url": f"ws://127.0.0.1:{port}", "sample_fps": SAMPLE_FPS}
    parameters = [word for name, value in own.items() for word in ("-p", f"{name}:={value}")]
    running = [
        start(*serve, environment=environment),
        start(
            __file__, "--role", "publish", environment=environment,
            stdout=subprocess.PIPE, text=True,
        ),
        start(
            "-m", "stream_vlm_ros.node", "--ros-args", "-r", f"image:={TOPIC}", *parameters,
            environment=environment | {name: str(THIN) for name in PROFILES},
        ),
    ]  # fmt: skip
    node, arrived = running[-1].pid, Arrived(running[1])
    try:
        while counters(port).get("frames_ingested", 0) < 20:  # warm
            if any(process.poll() is not None for process in running):
                return 1
            time.sleep(0.5)
        stretches = [
            measure(node, port, arrived, options.seconds) for _ in range(options.stretches)
        ]
        mapped, final = Path(f"/proc/{node}/maps").read_text(), counters(port)
    finally:
        for process in reversed(running):
            process.terminate()
            process.wait()
    medians = {
        name: round(statistics.median(one[name] for one in stretches), 4) for name in stretches[0]
    }
    largest = max(one["rss"] for one in stretches)
    result = {
        **machine,
        "load_average_after": [round(load, 2) for load in os.getloadavg()],
        "images": {"width": WIDTH, "height": HEIGHT, "encoding": "rgb8", "rate": RATE},
        "fast_dds": {"node": f"config/{THIN.name}", "publisher": "config/fastdds.xml"},
        "sample_fps": SAMPLE_FPS,
        "seconds_a_stretch": options.seconds,
        "medians": medians,
        "largest_rss_mb": largest,
        "torch_loaded": "libtorch" in mapped,
        "counters": final,
        "bars": {"core": MAX_CORE, "rss_mb": MAX_MB},
        "met": medians["core"] < MAX_CORE and largest < MAX_MB and "libtorch" not in mapped,
        "stretches": stretches,
    }
    print(json.dumps({name: result[name] for name in ("medians", "largest_rss_mb", "met")}))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
