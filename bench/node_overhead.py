# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the node costs beside the model, against a subscriber that does nothing.

    tools/run.sh python bench/node_overhead.py --out bench/results/node_overhead.json

One process publishes 1920x1080 rgb8 images, 30 a second, over the package's Fast DDS profile. They
are read at the same time, so that whatever else the machine does slows all alike, by processes:

- nothing: an rclpy node, spun by rclpy, whose callback counts and does nothing else;
- serialized: the same, taking its images as bytes (``raw=True``): what rclpy asks for the rest;
- node: the node ``stream_vlm``, sampling 2 a second, with an engine that takes chunks and does
  nothing.

The first two are seen at their best: malloc is told to keep the memory of an image for the next
one, as the node tells it by itself. Without that they take four times as much at some starts and
not at others, as their buffers happen to lie.

A figure is processor time (user and system, all threads) for each image that arrived, over
stretches of some seconds after a warm-up; the ratios are of the same stretch, medians with their
quartiles. The node's own start and discovery are not in it.
"""

from __future__ import annotations

import argparse
import array
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

from stream_vlm_ros.machine import measured_on
from stream_vlm_ros.processes.graph import own_graph

WIDTH, HEIGHT, RATE = 1920, 1080, 30.0
TOPIC = "/camera/image"
KINDS = ("nothing", "serialized", "node")
# What the node's keep_freed_memory() says to glibc's malloc.
AT_THEIR_BEST = {
    "MALLOC_ARENA_MAX": "1",
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(128 << 20),
}


# The three processes ------------------------------------------------------------------------------


def publish() -> None:
    """Images at RATE until the process is told to end."""
    import rclpy
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image

    rclpy.init()
    node = rclpy.create_node("camera")
    publisher = node.create_publisher(Image, TOPIC, qos_profile_sensor_data)
    image = Image(height=HEIGHT, width=WIDTH, encoding="rgb8", step=3 * WIDTH)
    image.header.frame_id = "camera"
    image.data = array.array("B", os.urandom(3 * WIDTH) * HEIGHT)
    due = time.monotonic()
    while rclpy.ok():
        image.header.stamp = node.get_clock().now().to_msg()
        publisher.publish(image)
        due = max(due + 1 / RATE, time.monotonic() - 1.0)
        time.sleep(max(0.0, due - time.monotonic()))


def tell(images: int) -> None:
    """What this process has used and got until now, as a line for the one that measures."""
    print(time.process_time(), images, flush=True)


def subscribe_and_do_nothing(serialized: bool = False) -> None:
    """The subscriber that the node is held against."""
    import rclpy
    from rclpy.executors import ExternalShutdownException
    from rclpy.impl.implementation_singleton import rclpy_implementation
    from rclpy.qos import qos_profile_sensor_data
    from sensor_msgs.msg import Image

    rclpy.init()
    node = rclpy.create_node("nothing")
    arrived = [0]

    def take(message: Image | bytes) -> None:
        arrived[0] += 1

    node.create_subscription(Image, TOPIC, take, qos_profile_sensor_data, raw=serialized)
    node.create_timer(0.5, lambda: tell(arrived[0]))
    # Told to end, rclpy raises that, or fails on its next wait.
    with contextlib.suppress(ExternalShutdownException, rclpy_implementation.RCLError):
        rclpy.spin(node)


def run_node() -> None:
    """The node as it is run, but for the engine."""
    from stream_vlm_ros.node import spinning
    from stream_vlm_ros.processes import ros_process

    ros_process.end_quietly_on_signals()
    spinning.keep_freed_memory()
    from stream_vlm_ros.node.stream_vlm_node import StreamVlmNode

    sys.path.append(str(Path(__file__).parents[1] / "test" / "helpers"))
    from fake_engine import SilentEngine

    made = []

    def tell_on() -> None:
        while True:
            time.sleep(0.5)
            counts = made[0].cameras[0].figures.counters.snapshot() if made else {}
            tell(counts.get("frames_received", 0))

    threading.Thread(target=tell_on, daemon=True).start()

    def make_node() -> StreamVlmNode:
        made.append(StreamVlmNode(load=lambda parameters: SilentEngine()))
        return made[0]

    arguments = [sys.argv[0], "--ros-args", "-r", f"image:={TOPIC}", "-p", "sample_fps:=2.0"]
    arguments += ["--log-level", "warn"]
    ros_process.leave(spinning.run(make_node, arguments))


# Measuring ----------------------------------------------------------------------------------------


def start(role: str, environment: dict[str, str]) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, __file__, "--role", role],
        stdout=subprocess.PIPE,
        text=True,
        env=environment if role == "node" else environment | AT_THEIR_BEST,
    )


class Watched:
    """A subscriber in a process of its own, and what it told last."""

    def __init__(self, role: str, environment: dict[str, str]) -> None:
        self.process = start(role, environment)
        self.told = (0.0, 0)
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        for line in self.process.stdout:
            used, images = line.split()
            self.told = (float(used), int(images))


def measure(watched: dict[str, Watched], seconds: float) -> dict[str, dict[str, float]]:
    """One stretch: processor milliseconds an image, and images a second, of each."""
    before = {kind: one.told for kind, one in watched.items()}
    began = time.monotonic()
    time.sleep(seconds)
    wall = time.monotonic() - began
    row = {}
    for kind, one in watched.items():
        used, images = one.told[0] - before[kind][0], one.told[1] - before[kind][1]
        row[kind] = {"ms_an_image": 1e3 * used / images, "images_a_second": images / wall}
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--stretches", type=int, default=12)
    parser.add_argument("--seconds", type=float, default=6.0, help="of a stretch")
    parser.add_argument("--role", choices=["publish", *KINDS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.role:
        roles = {
            "publish": publish,
            "nothing": subscribe_and_do_nothing,
            "serialized": lambda: subscribe_and_do_nothing(serialized=True),
            "node": run_node,
        }
        roles[options.role]()
        return
    with tempfile.TemporaryDirectory() as logs, own_graph(Path(logs)) as environment:
        compare(options, {**os.environ, **environment, "OMP_NUM_THREADS": "1"})


def compare(options: argparse.Namespace, environment: dict[str, str]) -> None:
    """All stretches, the table and the file."""
    machine = measured_on()
    camera = start("publish", environment)
    watched = {kind: Watched(kind, environment) for kind in KINDS}
    try:
        while any(one.told[1] < 3 * RATE for one in watched.values()):  # warm
            time.sleep(0.5)
        stretches = [measure(watched, options.seconds) for _ in range(options.stretches)]
    finally:
        for process in (*(one.process for one in watched.values()), camera):
            process.terminate()
            process.wait()
    medians = {
        kind: {
            key: statistics.median(one[kind][key] for one in stretches)
            for key in stretches[0][kind]
        }
        for kind in KINDS
    }
    ratios = {
        kind: statistics.quantiles(
            [one[kind]["ms_an_image"] / one["nothing"]["ms_an_image"] for one in stretches], n=4
        )
        for kind in KINDS
    }
    print(f"{'':12}{'ms an image':>14}{'images/s':>12}{'ratio (quartiles)':>24}")
    for kind, row in medians.items():
        low, middle, high = ratios[kind]
        print(
            f"{kind:12}{row['ms_an_image']:>14.2f}{row['images_a_second']:>12.1f}"
            f"{f'{middle:.2f} ({low:.2f} to {high:.2f})':>24}"
        )
    if options.out:
        result = {
            **machine,
            "load_average_after": [round(load, 2) for load in os.getloadavg()],
            "ros": os.environ.get("ROS_DISTRO", ""),
            "rmw": os.environ.get("RMW_IMPLEMENTATION", "default"),
            "images": {"width": WIDTH, "height": HEIGHT, "encoding": "rgb8", "rate": RATE},
            "sample_fps": 2.0,
            "malloc_of_nothing_and_serialized": AT_THEIR_BEST,
            "seconds_a_stretch": options.seconds,
            "stretches": stretches,
            "medians": medians,
            "ratios_to_nothing_quartiles": ratios,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
