"""The camera made of a file, as its own process."""

import signal
import subprocess
import sys
import time
from contextlib import contextmanager

import numpy as np
import pytest
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

    def receive(count, reliability=ReliabilityPolicy.RELIABLE, seconds=30.0):
        """``count`` images as (time of receipt, message), and the latched origin."""
        got, origins = [], []
        qos = QoSProfile(depth=50, reliability=reliability)
        topics = [
            node.create_subscription(Image, "image", lambda m: got.append((time.time(), m)), qos),
            node.create_subscription(Header, "source/origin", origins.append, latched),
        ]
        end = time.monotonic() + seconds
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
    with source_process(f"source:={images}", "wait_for_subscriber:=true"):
        got, origin = receive(15)
    messages = [message for _, message in got]
    assert len(messages) == 15
    first = messages[0]
    assert (first.width, first.height, first.step, first.encoding) == (7, 5, 21, "rgb8")
    for index, message in enumerate(messages):  # after the tenth the source starts again
        pixels = np.frombuffer(bytes(message.data), np.uint8).reshape(5, 7, 3)
        assert (pixels == [20 * (index % 10), 0, 255]).all()
    stamps = [nanoseconds(message.header.stamp) for message in messages]
    assert np.diff(stamps).tolist() == [100_000_000] * 14
    assert stamps[0] == nanoseconds(origin.stamp)
    assert abs(stamps[0] / 1e9 - got[0][0]) < 5  # the node's clock, not the names' year 2023


def test_images_are_published_at_the_pace_of_the_source(images, receive):
    with source_process(f"source:={images}", "wait_for_subscriber:=true"):
        got, _ = receive(11)
    took = got[-1][0] - got[0][0]
    assert 0.5 < took < 10.0  # 1.0 s, and room for a busy machine; all at once takes none


def test_best_effort_and_a_lower_rate_can_be_asked_for(images, receive):
    from rclpy.qos import ReliabilityPolicy

    parameters = ["reliability:=best_effort", "rate:=5", "wait_for_subscriber:=true"]
    with source_process(f"source:={images}", *parameters):
        got, _ = receive(3, ReliabilityPolicy.BEST_EFFORT)
    stamps = [nanoseconds(message.header.stamp) for _, message in got]
    assert np.diff(stamps).tolist() == [200_000_000] * 2


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
