# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The camera made of a file, as its own process."""

import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
from patience import PATIENCE
from PIL import Image as Picture

pytestmark = pytest.mark.ros
rclpy = pytest.importorskip("rclpy")


@pytest.fixture
def images(tmp_path):
    """Ten images, 0.1 s apart: image n is of the grey level 20 n."""
    folder = tmp_path / "images"
    folder.mkdir()
    for index in range(10):
        stamp = 1_700_000_000_000 + 100 * index
        Picture.new("RGB", (7, 5), (20 * index, 0, 255)).save(folder / f"{stamp}.png")
    return folder


@contextmanager
def source_process(*parameters):
    command = [sys.executable, "-m", "stream_vlm_ros.demo.source_node", "--ros-args"]
    for parameter in parameters:
        command += ["-p", parameter]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


@pytest.fixture
def receive():
    from rclpy.context import Context
    from rclpy.executors import SingleThreadedExecutor
    from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
    from sensor_msgs.msg import Image
    from std_msgs.msg import Header

    context = Context()
    rclpy.init(context=context)
    node = rclpy.create_node("listener", context=context)
    executor = SingleThreadedExecutor(context=context)
    executor.add_node(node)
    latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)

    def receive(count, reliability=ReliabilityPolicy.RELIABLE):
        """``count`` images, and the latched origin."""
        got, origins = [], []
        qos = QoSProfile(depth=50, reliability=reliability)
        topics = [
            node.create_subscription(Image, "image", got.append, qos),
            node.create_subscription(Header, "source/origin", origins.append, latched),
        ]
        end = time.monotonic() + PATIENCE
        while (len(got) < count or not origins) and time.monotonic() < end:
            executor.spin_once(timeout_sec=0.05)
        for topic in topics:
            node.destroy_subscription(topic)
        return got[:count], origins[0]

    yield receive
    node.destroy_node()
    context.try_shutdown()


def nanoseconds(stamp):
    return stamp.sec * 10**9 + stamp.nanosec


def test_images_carry_the_pixels_and_the_distances_of_the_source(images, receive):
    before = time.time_ns()
    with source_process(f"source:={images}", "wait_for_subscriber:=true"):
        messages, origin = receive(15)
    assert len(messages) == 15
    start = nanoseconds(origin.stamp)
    assert before <= start <= time.time_ns()  # the node's clock, not the names' year 2023
    first = messages[0]
    assert (first.width, first.height, first.step, first.encoding) == (7, 5, 21, "rgb8")
    stamps = [nanoseconds(message.header.stamp) - start for message in messages]
    assert stamps[0] == 0 and stamps == sorted(set(stamps))
    for stamp, message in zip(stamps, messages, strict=True):
        index, rest = divmod(stamp, 100_000_000)  # where the machine is late, some are skipped
        assert rest == 0
        pixels = np.frombuffer(bytes(message.data), np.uint8).reshape(5, 7, 3)
        assert (pixels == [20 * (index % 10), 0, 255]).all()  # after the tenth it starts again


def test_images_are_published_at_the_pace_of_the_source(images, receive):
    with source_process(f"source:={images}", "wait_for_subscriber:=true", "stamps:=publish"):
        messages, origin = receive(11)
    start = nanoseconds(origin.stamp)
    published = [(nanoseconds(message.header.stamp) - start) / 1e9 for message in messages]
    # None before it is due, 0.1 s after the one before; how late one is, the machine decides.
    assert len(published) == 11
    assert all(seconds > 0.1 * index - 0.01 for index, seconds in enumerate(published))


def test_best_effort_and_a_lower_rate_can_be_asked_for(images, receive):
    from rclpy.qos import ReliabilityPolicy

    parameters = ["reliability:=best_effort", "rate:=5", "wait_for_subscriber:=true"]
    with source_process(f"source:={images}", *parameters):
        messages, _ = receive(3, ReliabilityPolicy.BEST_EFFORT)
    steps = np.diff([nanoseconds(message.header.stamp) for message in messages])
    assert len(steps) == 2 and (steps > 0).all() and (steps % 200_000_000 == 0).all()


def test_a_source_that_is_not_looped_ends_by_itself(images):
    with source_process(f"source:={images}", "loop:=false") as process:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0
    assert "10 images published" in errors


def test_ctrl_c_ends_it_quietly(images):
    with source_process(f"source:={images}") as process:
        while "on /image" not in process.stderr.readline():
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("parameter", "words"),
    [("source:=nowhere.mp4", "no file nowhere.mp4"), ("rate:=fast", "rate must be of type float")],
)
def test_a_bad_parameter_is_one_line_and_exit_status_2(parameter, words):
    with source_process(parameter) as process:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 2
    assert words in errors and len(errors.strip().splitlines()) == 1
