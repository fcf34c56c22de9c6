# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The thread of the images, which leaves the executor asleep."""

import queue
import threading
from types import SimpleNamespace

import pytest
from patience import PATIENCE

pytestmark = pytest.mark.ros


class Source:
    """Gives what a test puts into ``images``; an exception among them is raised."""

    def __init__(self):
        self.images = queue.SimpleQueue()
        self.followed = threading.Event()
        self.destroyed_in = None

    def take(self, seconds):
        try:
            image = self.images.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(image, BaseException):
            raise image
        return image

    def follow(self):
        self.followed.set()

    def destroy(self):
        self.destroyed_in = threading.current_thread()


@pytest.fixture
def box():
    """A thread of images with its source, and what came of it."""
    from stream_vlm_ros.node.image_thread import ImageThread

    box = SimpleNamespace(source=Source(), up=True, said=[], got=queue.SimpleQueue())
    box.kept = threading.Event()

    def receive(image):
        box.got.put(image)
        if image == "bad":
            raise ValueError("boom")

    box.thread = ImageThread(
        box.source,
        SimpleNamespace(ok=lambda: box.up),
        receive,
        upkeep=box.kept.set,
        report=lambda where, fault: box.said.append((where, fault)),
    )
    box.thread.start()
    yield box
    box.thread.stop()


def test_images_are_received_in_order_and_between_them_there_is_upkeep(box):
    for number in range(3):
        box.source.images.put(number)
    assert [box.got.get(timeout=PATIENCE) for _ in range(3)] == [0, 1, 2]
    box.kept.clear()
    assert box.kept.wait(PATIENCE), "no upkeep without images"
    assert box.source.followed.wait(PATIENCE), "nobody looked at who publishes"


def test_a_fault_at_an_image_or_while_waiting_is_told_and_the_next_image_is_received(box):
    for image in (RuntimeError("lost"), SystemExit("exit"), "bad", "good"):
        box.source.images.put(image)
    assert [box.got.get(timeout=PATIENCE) for _ in range(2)] == ["bad", "good"]
    assert [str(fault) for _, fault in box.said] == ["lost", "exit", "boom"]


def test_when_it_is_stopped_nothing_uses_the_subscription_any_more(box):
    box.source.images.put(1)
    box.got.get(timeout=PATIENCE)
    box.thread.stop()
    assert box.source.destroyed_in is threading.current_thread()
    box.source.images.put(2)
    assert "images" not in {thread.name for thread in threading.enumerate()}
    assert box.got.empty()


def test_it_ends_with_the_context(box):
    thread = next(t for t in threading.enumerate() if t.name == "images")
    box.up = False
    thread.join(PATIENCE)
    assert not thread.is_alive()


@pytest.mark.parametrize("here", [dict(status_period=60.0)], indirect=True)
def test_images_do_not_wake_the_executor(here, monkeypatch):
    """Nor do the subscription's events, which with Fast DDS are up as long as an image is."""
    from rclpy.callback_groups import ReentrantCallbackGroup
    from sensor_msgs.msg import Image

    graph, engine, looks = here.client.graph, here.engine, []
    publisher = graph.node.create_publisher(Image, here.client.image_topic, 10)

    def arrives():
        before = engine.frames
        publisher.publish(here.client.image())
        graph.wait(lambda: engine.frames > before, what="an image")

    def first_arrives():
        publisher.publish(here.client.image())
        return engine.frames > 0

    graph.wait(first_arrives, what="the first image")
    asked, can_execute = here.node.services, ReentrantCallbackGroup.can_execute
    one = next(service for service in asked if service.srv_name.endswith("query"))

    def count(group, entity):
        looks.append(entity is one)  # asked once each time that an executor is about to wait
        return can_execute(group, entity)

    with monkeypatch.context() as counted:
        counted.setattr(ReentrantCallbackGroup, "can_execute", count)
        for _ in range(30):
            arrives()
    graph.node.destroy_publisher(publisher)
    assert sum(looks) < 10
