# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The subscription to images where a topic that it is to change to is refused."""

import time

import pytest
from patience import PATIENCE

pytest.importorskip("rclpy")
import rclpy
from rcl_interfaces.msg import SetParametersResult
from sensor_msgs.msg import CompressedImage, Image

from stream_vlm_ros.config import Settings
from stream_vlm_ros.node.image_input import ImageInput

pytestmark = pytest.mark.ros

BASE = "/refused/image"


@pytest.fixture
def node():
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("reader", context=context)
    yield node
    node.destroy_node()
    context.try_shutdown()


def wait(true, what):
    deadline = time.monotonic() + PATIENCE
    while not (found := true()):
        assert time.monotonic() < deadline, what
        time.sleep(0.02)
    return found


def test_a_refused_topic_leaves_the_images_of_the_one_before_and_is_told_once(node, capfd):
    """The QoS of a subscription are parameters, which any callback of the node may refuse."""

    def refuse(parameters):
        compressed = any(f"{BASE}/compressed" in one.name for one in parameters)
        return SetParametersResult(successful=not compressed, reason="not that one")

    node.add_on_set_parameters_callback(refuse)
    source = ImageInput(node, Settings(image_topic=BASE))
    node.create_publisher(CompressedImage, f"{BASE}/compressed", 5)
    wait(lambda: node.count_publishers(f"{BASE}/compressed"), "the compressed images")
    for _ in range(3):
        source.follow()
        assert source.topic == BASE
        assert [one.topic_name for one in node.subscriptions] == [BASE]
    told = [line for line in capfd.readouterr().err.splitlines() if "subscribed to" in line]
    assert len(told) == 1 and f"{BASE}/compressed cannot be subscribed to" in told[0]
    assert "not that one" in told[0] and f"images are read from {BASE} " in told[0]

    raw = node.create_publisher(Image, BASE, 5)

    def arrives():
        raw.publish(Image())
        return source.take(0.1)

    wait(arrives, "an image of the topic before")
    source.destroy()
    assert not [*node.subscriptions]


def test_a_topic_that_is_refused_no_longer_is_changed_to(node, capfd):
    allowed = []
    node.add_on_set_parameters_callback(
        lambda parameters: SetParametersResult(
            successful=bool(allowed) or "compressed" not in parameters[0].name
        )
    )
    source = ImageInput(node, Settings(image_topic=BASE))
    node.create_publisher(CompressedImage, f"{BASE}/compressed", 5)
    wait(lambda: node.count_publishers(f"{BASE}/compressed"), "the compressed images")
    source.follow()
    allowed.append(True)
    source.follow()
    assert source.topic == f"{BASE}/compressed"
    assert [one.topic_name for one in node.subscriptions] == [f"{BASE}/compressed"]
    assert f"(was: {BASE} [sensor_msgs/msg/Image], reliable)" in capfd.readouterr().err
    source.destroy()
