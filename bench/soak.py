# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The node over DDS at its highest rate, for as long as one likes, with what happens to a robot.

    make soak MINUTES=30        (or: tools/run.sh python bench/soak.py --minutes 30 --out FILE)

A camera publishes more images than the model can take, each of them sampled, so that the node
always has work and drops the oldest chunks. Every few seconds another camera takes its place: one
is told to end or killed, the next has another encoding, transport or reliability, and its clock may
have been set back or ahead. Some of its images cannot be used. Meanwhile somebody asks a question a
second, and twenty at once each minute.

Held at every message on ``~/cache_status``: every frame that was received is ingested, pending or
dropped for one named cause, and the memory is within its cap (and what it may take beyond while an
answer is written). Every question must be answered, or refused by name. Memory of the process and
latency of the questions are fitted by a straight line after a warm-up; over the whole run neither
may grow by more than `FLAT` of its mean, unless that is within the fit's own error.

What is resident creeps up a little though nothing is held for longer: malloc keeps what was freed
for later images (`keep_freed_memory`). After malloc_trim, in a run of 7 minutes with 48 cameras,
251.2, 252.1 and 250.9 MB of anonymous pages were left at 2, 4 and 6.6 minutes, and the number of
Python's objects was the same.
"""

from __future__ import annotations

import argparse
import array
import itertools
import json
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np

from stream_vlm_ros.machine import measured_on
from stream_vlm_ros.processes.graph import own_graph, ros_arguments

WIDTH, HEIGHT = 168, 112
CAMERA_SECONDS = (4.0, 12.0)  # of one camera's life
WARM_UP = 0.2  # of the run
FLAT = 0.05
BURST, BURST_SECONDS = 20, 60.0
PATIENCE = 60.0
QUESTION = "What do you see?"
KINDS = ("rgb8", "bgr8", "mono8", "bayer_rggb8", "jpeg", "png")
SHIFTS = (0.0, 0.0, 0.0, -3600.0, 3600.0, 86_400.0)  # seconds by which a clock is set
PARAMETERS = {
    "device": "cpu",
    "sample_fps": 0.0,
    "chunk_frames": 4,
    "max_cache_tokens": 2048,
    "fork_slack_tokens": 256,
    "status_period": 0.5,
    "no_image_timeout": 3.0,
}


# The camera: a process of its own, which may be killed --------------------------------------------


def camera(kind: str, reliable: bool, shift: float, rate: float, seed: int) -> None:
    """Publish until the process ends; one image in fifty cannot be used."""
    import cv2
    import rclpy
    from rclpy.qos import QoSProfile, ReliabilityPolicy
    from rclpy.signals import SignalHandlerOptions
    from sensor_msgs.msg import CompressedImage, Image

    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit())
    node = rclpy.create_node(f"camera_{seed}")
    policy = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
    packed = kind in ("jpeg", "png")
    publisher = node.create_publisher(
        CompressedImage if packed else Image,
        "image/compressed" if packed else "image",
        QoSProfile(depth=10, reliability=policy),
    )
    noise = np.random.default_rng(seed)
    messages: list[Any] = []
    for _ in range(8):
        depth = 1 if kind in ("mono8", "bayer_rggb8") else 3
        picture = noise.integers(0, 256, (HEIGHT, WIDTH, depth), dtype=np.uint8)
        if packed:
            data = cv2.imencode(f".{kind}", picture)[1].tobytes()
            messages.append(CompressedImage(format=kind, data=array.array("B", data)))
        else:
            message = Image(height=HEIGHT, width=WIDTH, encoding=kind, step=WIDTH * depth)
            message.data = array.array("B", picture.tobytes())
            messages.append(message)
    bad: Any = CompressedImage(format=kind) if packed else Image(encoding="rgb7\x1b[31m\n")
    due = time.monotonic()
    try:
        for number in itertools.count(1):
            message = bad if number % 50 == 0 else messages[number % len(messages)]
            nanoseconds = time.time_ns() + round(shift * 1e9)
            message.header.stamp.sec, message.header.stamp.nanosec = divmod(nanoseconds, 10**9)
            message.header.frame_id = "camera\x07"
            publisher.publish(message)
            due = max(due + 1 / rate, time.monotonic() - 0.1)
            time.sleep(max(0.0, due - time.monotonic()))
    finally:  # told to end; a camera that is killed leaves its entities to the others' patience
        node.destroy_node()
        rclpy.shutdown()


class Cameras:
    """One after the other, in a thread."""

    def __init__(self, environment: dict[str, str], rate: float, seed: int) -> None:
        self.begun: Counter[str] = Counter()
        self.ends: Counter[str] = Counter()
        self.clocks_set = 0
        self._environment, self._rate = environment, rate
        self._random = random.Random(seed)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def stop(self) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        shift = 0.0
        for number in itertools.count():
            kind, reliable = self._random.choice(KINDS), self._random.random() < 0.5
            moved = self._random.choice(SHIFTS)
            shift, self.clocks_set = shift + moved, self.clocks_set + bool(moved)
            given = [kind, str(int(reliable)), str(shift), str(self._rate), str(number)]
            process = subprocess.Popen(
                [sys.executable, __file__, "--camera", *given], env=self._environment
            )
            self.begun[f"{kind}, {'reliable' if reliable else 'best effort'}"] += 1
            over = self._over.wait(self._random.uniform(*CAMERA_SECONDS))
            end = self._random.choice((signal.SIGKILL, signal.SIGTERM))
            self.ends[end.name] += 1
            process.send_signal(end)
            process.wait()
            if over:
                return


# The one who asks and watches ---------------------------------------------------------------------


class Watcher:
    """A node of its own, which asks, and holds every status against what must be true."""

    def __init__(self) -> None:
        import rclpy
        from diagnostic_msgs.msg import DiagnosticArray
        from rclpy.qos import HistoryPolicy, QoSProfile
        from stream_vlm.srv import Query

        from stream_vlm_ros.client.node_client import NodeClient

        rclpy.init()
        self.node = rclpy.create_node("watcher")
        self.statuses, self.wrong = 0, []
        self.answers: list[tuple[float, float]] = []  # (when, seconds to the answer)
        self.codes: Counter[int] = Counter()
        self.asked = 0
        self.words: Counter[str] = Counter()
        self.client = NodeClient(self.node, "/stream_vlm", self._check)
        qos = QoSProfile(history=HistoryPolicy.KEEP_ALL)
        self._query = self.node.create_client(Query, "/stream_vlm/query", qos_profile=qos)
        self._request = Query.Request(question=QUESTION, max_new_tokens=8)
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._read, 10)
        self._thread = threading.Thread(target=rclpy.spin, args=(self.node,), daemon=True)
        self._thread.start()

    def _check(self, status: Any) -> None:
        self.statuses += 1
        names = status.get_fields_and_field_types()
        counts = {n: getattr(status, n) for n in names if n.startswith(("frames_", "dropped_"))}
        ended = sum(count for name, count in counts.items() if name.startswith("dropped_"))
        balance = counts["frames_ingested"] + counts["frames_pending"] + ended
        cap = status.cap + PARAMETERS["fork_slack_tokens"]
        if counts["frames_received"] != balance or status.length > cap:
            self.wrong.append(f"{counts} length {status.length} of {cap}")

    def _read(self, report: Any) -> None:
        for status in report.status:
            said = [status.message, status.name, *(value.value for value in status.values)]
            self.words["statuses"] += 1
            self.words["with control characters"] += not all(map(str.isprintable, said))
            self.words[f"level {status.level[0]}"] += 1

    def ask(self, count: int = 1) -> None:
        """So many at once, and wait for all."""
        begin = time.monotonic()
        pending = [self._query.call_async(self._request) for _ in range(count)]
        self.asked += count
        while not all(one.done() for one in pending):
            if time.monotonic() - begin > PATIENCE:
                break
            time.sleep(0.002)
        took = time.monotonic() - begin
        answers = [one.result().answer for one in pending if one.done()]
        self.codes.update(answer.error_code for answer in answers)
        if count == 1 and answers and answers[0].error_code == 0:
            self.answers.append((time.monotonic(), took))


def line(points: list[tuple[float, float]]) -> dict[str, float]:
    """A straight line through what was measured, by least squares; times in minutes."""
    times = np.array([when for when, _ in points]) / 60
    values = np.array([value for _, value in points])
    (slope, _), covariance = np.polyfit(times, values, 1, cov=True)
    error = 1.96 * float(np.sqrt(covariance[0, 0]))
    span, mean = float(times[-1] - times[0]), float(values.mean())
    return {
        "points": len(points),
        "minutes": round(span, 2),
        "mean": round(mean, 4),
        "slope_a_minute": round(float(slope), 6),
        "slope_error_95": round(error, 6),
        "growth_over_run": round(float(slope) * span / mean, 4),
        "flat": bool(float(slope) * span <= FLAT * mean or slope <= error),
    }


def memory_of(pid: int) -> float:
    """Resident and not of files, in MB: pages of libraries come as they are first used."""
    status = Path(f"/proc/{pid}/status").read_text()
    return sum(map(int, re.findall(r"Rss(?:Anon|Shmem):\s+(\d+) kB", status))) * 1024 / 1e6


def soak(options: argparse.Namespace, environment: dict[str, str], logs: Path) -> dict[str, Any]:
    """The whole run; what came of it."""
    os.environ.update(environment)  # for the watcher's node
    everything = {**os.environ, **environment, "OMP_NUM_THREADS": "1"}
    with (logs / "node.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "stream_vlm_ros.node", *ros_arguments(PARAMETERS)],
            env=everything,
            stdout=log,
            stderr=subprocess.STDOUT,
        )
    cameras: Cameras | None = None
    memory: list[tuple[float, float]] = []
    try:
        watcher = Watcher()
        while not watcher.client.ready:
            assert process.poll() is None, (logs / "node.log").read_text()
            time.sleep(0.1)
        cameras = Cameras(everything, options.rate, options.seed)
        while not watcher.client.frames:
            time.sleep(0.1)
        begin = burst = time.monotonic()
        while (now := time.monotonic()) < begin + 60 * options.minutes:
            assert process.poll() is None, (logs / "node.log").read_text()[-4000:]
            memory.append((now, memory_of(process.pid)))
            if now - burst >= BURST_SECONDS:
                burst = now
                watcher.ask(BURST)
            else:
                watcher.ask()
            time.sleep(max(0.0, now + 1.0 - time.monotonic()))
        minutes = (time.monotonic() - begin) / 60
    finally:
        if cameras is not None:
            cameras.stop()
        process.send_signal(signal.SIGINT)
        exit_status = process.wait(PATIENCE)
    warm = begin + WARM_UP * 60 * minutes
    counts = watcher.client.counts
    status = watcher.client.status
    said = (logs / "node.log").read_text(errors="replace")
    if options.log:
        options.log.write_text(said)
    result = {
        "minutes": round(minutes, 2),
        "published_rate": options.rate,
        "received_a_second": round(counts["frames_received"] / minutes / 60, 1),
        "ingested_a_second": round(counts["frames_ingested"] / minutes / 60, 1),
        "counts": counts,
        "time_jumps": status.time_jumps,
        "evictions": status.evictions,
        "cameras": dict(sorted(cameras.begun.items())),
        "cameras_ended_by": dict(cameras.ends),
        "clocks_set": cameras.clocks_set,
        "statuses_checked": watcher.statuses,
        "identity_violations": watcher.wrong[:5],
        "questions": watcher.asked,
        "questions_without_reply": watcher.asked - sum(watcher.codes.values()),
        "error_codes": {str(code): n for code, n in sorted(watcher.codes.items())},
        "latency_s": {
            "median": round(statistics.median(took for _, took in watcher.answers), 4),
            "p95": round(statistics.quantiles((t for _, t in watcher.answers), n=20)[-1], 4),
            **line([point for point in watcher.answers if point[0] >= warm]),
        },
        "memory_mb": line([point for point in memory if point[0] >= warm]),
        "diagnostics": dict(watcher.words),
        "log_lines": said.count("\n"),
        "control_characters_in_log": sum(not one.isprintable() for one in said.splitlines()),
        "tracebacks": said.count("Traceback"),
        "exit_status": exit_status,
    }
    result["passed"] = not (
        watcher.wrong
        or result["questions_without_reply"]
        or result["tracebacks"]
        or result["control_characters_in_log"]
        or watcher.words["with control characters"]
        or exit_status
    ) and all(result[name]["flat"] for name in ("latency_s", "memory_mb"))
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=120.0, help="images a second that are sent")
    parser.add_argument("--seed", type=int, default=0, help="of which camera follows which")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--log", type=Path, help="where the log of the node is left")
    parser.add_argument("--camera", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.camera:
        kind, reliable, shift, rate, seed = options.camera
        camera(kind, bool(int(reliable)), float(shift), float(rate), int(seed))
        return 0
    machine = measured_on()
    with tempfile.TemporaryDirectory() as logs, own_graph(Path(logs)) as environment:
        result = soak(options, environment, Path(logs))
    text = json.dumps({**machine, "parameters": PARAMETERS, **result}, indent=1)
    print(text)
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text + "\n")
    return not result["passed"]


if __name__ == "__main__":
    sys.stdout.flush()
    # Without taking the interpreter down under the thread that spins.
    status = main()
    sys.stdout.flush()
    os._exit(status)
