# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`Camera`: the newest image of a topic, as it is published."""

import asyncio
import io
import itertools
import time

import numpy as np
import pytest
from patience import PATIENCE
from PIL import Image as Picture
from ros_client import Graph

from stream_vlm_ros.errors import InvalidImageError

pytest.importorskip("rclpy")
pytestmark = pytest.mark.ros

STAMP = 7_000_000_123
NUMBERS = itertools.count()
RED = np.full((6, 8, 3), (200, 10, 20), np.uint8)


@pytest.fixture(scope="module")
def graph():
    graph = Graph()
    yield graph
    graph.close()


def raw():
    from stream_vlm_ros.client.messages import image_message

    return image_message(RED, STAMP)


def packed():
    from sensor_msgs.msg import CompressedImage

    data = io.BytesIO()
    Picture.fromarray(RED).save(data, "PNG")
    message = CompressedImage(header=raw().header, format="png", data=data.getvalue())
    return message


def seen(graph, message, reliable, while_seen):
    """What ``while_seen`` makes of a camera that has a new image, over and over."""
    from rclpy.qos import QoSProfile, ReliabilityPolicy

    from stream_vlm_ros.client.camera import Camera
    from stream_vlm_ros.client.ros_thread import RosThread

    policy = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
    qos = QoSProfile(depth=1, reliability=policy)
    # The graph may still know a publisher of before, which was of another type.
    topic = f"/looked_at/image_{next(NUMBERS)}"
    publisher = graph.node.create_publisher(type(message), topic, qos)

    async def use():
        ros = await RosThread.started(graph.context)
        camera, end = Camera(ros), time.monotonic() + PATIENCE
        try:
            while not camera.has_new:
                assert time.monotonic() < end
                await camera.follow(topic, reliable)
                publisher.publish(message)
                await asyncio.sleep(0.05)
            found = while_seen(camera)
            await camera.follow("", reliable)
            while publisher.get_subscription_count():
                assert time.monotonic() < end
                await asyncio.sleep(0.02)
            return found
        finally:
            await asyncio.to_thread(ros.close)

    try:
        return asyncio.run(use())
    finally:
        graph.node.destroy_publisher(publisher)


@pytest.mark.parametrize(("make", "reliable"), [(raw, True), (raw, False), (packed, False)])
def test_the_newest_image_is_taken_once_whatever_its_kind_and_quality_of_service(
    graph, make, reliable
):
    first, second = seen(graph, make(), reliable, lambda camera: (camera.take(), camera.take()))
    assert first[0] == STAMP and np.array_equal(first[1], RED) and second is None


def test_one_without_a_stamp_has_the_time_of_its_arrival(graph):
    message = raw()
    message.header.stamp.sec = message.header.stamp.nanosec = 0
    before = time.time_ns()
    stamp_ns, _ = seen(graph, message, True, lambda camera: camera.take())
    assert before < stamp_ns <= time.time_ns()


def test_one_that_is_none_is_refused(graph):
    message = raw()
    message.encoding = "32FC1"
    with pytest.raises(InvalidImageError):
        seen(graph, message, True, lambda camera: camera.take())
