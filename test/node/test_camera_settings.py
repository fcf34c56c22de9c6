# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Cameras' own settings while `sources` changes: what is there, checked, taken back and told."""

import logging

import pytest

pytest.importorskip("rclpy")
import rclpy
from fake_engine import FakeEngine
from rcl_interfaces.srv import SetParameters
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter

from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.node.ask_server import Written
from stream_vlm_ros.node.stream_vlm_node import StreamVlmNode
from stream_vlm_ros.session.question import READING, WRITING

pytestmark = pytest.mark.ros

TWO = {"sources": "front,rear", "max_cache_tokens": 9000}


@pytest.fixture
def start():
    """Starts nodes that wait unconfigured, in a context of their own."""
    context = rclpy.Context()
    rclpy.init(context=context)
    nodes = []

    def make(**values):
        given = {"autostart": False, **TWO, **values}
        nodes.append(
            StreamVlmNode(
                load=lambda settings: FakeEngine(),
                context=context,
                parameter_overrides=[
                    Parameter(name.replace("__", "."), value=value) for name, value in given.items()
                ],
            )
        )
        return nodes[-1]

    yield make
    context.try_shutdown()
    for node in nodes:
        node.close()


def put(node, **values):
    """Set these at once, None: to nothing; the refusal, or "" ."""
    changes = [Parameter(name.replace("__", "."), value=value) for name, value in values.items()]
    return node.set_parameters_atomically(changes).reason


def configured(node):
    assert node.trigger_configure() == TransitionCallbackReturn.SUCCESS, node.failure
    return {camera.name: camera.settings for camera in node.cameras}


def test_settings_of_cameras_that_are_gone_go_with_them(start):
    node = start(front__sample_fps=3.0)
    assert put(node, rear__max_new_tokens=5) == ""
    assert put(node, sources=["left"]) == ""
    for name in ("front.sample_fps", "rear.max_new_tokens"):
        assert not node.has_parameter(name)
    assert "no parameter 'front.sample_fps'" in put(node, front__sample_fps=-4.0)
    assert put(node, sources=["front"]) == ""
    assert configured(node)["front"].sample_fps == 2.0


@pytest.mark.parametrize("order", [1, -1])
def test_cameras_and_their_settings_can_be_set_at_once_in_any_order(start, order):
    node = start(front__sample_fps=3.0)
    values = {"left__sample_fps": 4.0, "sources": "left,right", "right__weight": 2.0}
    assert put(node, **dict([*values.items()][::order])) == ""
    settings = configured(node)
    assert (settings["left"].sample_fps, settings["right"].weight) == (4.0, 2.0)


def test_a_file_of_parameters_can_be_loaded_whatever_its_order(here):
    """By the service that `ros2 param load` calls."""
    client = here.client
    assert here.node.trigger_deactivate() == here.node.trigger_cleanup()
    values = {"left.sample_fps": 4.0, "sample_fps": -1.0, "sources": "left,right"}
    given = [Parameter(name, value=value).to_parameter_msg() for name, value in values.items()]
    request = SetParameters.Request(parameters=given)
    told = client.graph.call(SetParameters, f"{client.name}/set_parameters", request)
    assert [one.successful for one in told.results] == [True, False, True]
    assert here.node.get_parameter("left.sample_fps").value == 4.0


def test_what_is_refused_at_once_leaves_all_as_it_was(start):
    node = start(front__sample_fps=3.0)
    for values, words in (
        ({"sources": "left", "front__sample_fps": 2.0}, "no parameter 'front.sample_fps'"),
        ({"sources": "left", "left__sample_fps": -1.0}, "left.sample_fps"),
        ({"sources": "left", "rear__weight": 2.0}, "no parameter 'rear.weight'"),
        ({"sources": "left,2nd", "left__weight": 2.0}, "names no camera"),
    ):
        assert words in put(node, **values)
        assert not node.has_parameter("left.sample_fps")
    assert configured(node)["front"].sample_fps == 3.0


def test_an_own_setting_can_be_taken_back(start):
    node = start(front__sample_fps=3.0)
    settings = configured(node)
    assert settings["front"].sample_fps == 3.0
    for _ in range(2):  # the second time there is nothing to take back
        assert put(node, front__sample_fps=None) == ""
        assert not node.has_parameter("front.sample_fps")
    assert node.cameras[0].settings.sample_fps == 2.0
    assert put(node, sample_fps=1.0) == ""
    assert [camera.settings.sample_fps for camera in node.cameras] == [1.0, 1.0]
    assert put(node, front__sample_fps=5.0) == ""
    assert put(node, front__sample_fps=None, sample_fps=4.0) == ""
    assert [camera.settings.sample_fps for camera in node.cameras] == [4.0, 4.0]
    assert put(node, sample_fps=None) and node.parameters.sample_fps == 4.0


def test_latched_topics_hold_one_of_each_camera_after_more_are_configured(start):
    node = start(sources="front")
    configured(node)
    depth = "qos_overrides./stream_vlm/{}.publisher.depth"
    for count in (1, 3):
        if count == 3:
            node.trigger_cleanup()
            assert put(node, sources="front,rear,left") == ""
            configured(node)
        for topic in ("answer", "cache_status"):
            assert node.get_parameter(depth.format(topic)).value == count


@pytest.mark.parametrize(
    "values",
    [
        {"front__image_topic": "/a", "rear__image_topic": "a"},
        {"front__image_topic": "/rear/image"},
        {"history": "auto", "frame_store": "/s", "rear__frame_store": "/s/./front/"},
    ],
)
def test_two_cameras_on_one_topic_or_folder_are_refused_however_it_is_written(start, values):
    with pytest.raises(InvalidParameterError, match="that of two cameras, front and rear"):
        start(**values)


def test_a_depth_of_a_wrong_type_is_refused_in_words(start):
    node = start(**{"qos_overrides./stream_vlm/cache_status.publisher.depth": "x"})
    assert node.trigger_configure() != TransitionCallbackReturn.SUCCESS
    assert "cache_status cannot be published with these qos_overrides" in node.failure


def test_the_log_tells_what_the_camera_had_before(start, capfd):
    node = start(front__sample_fps=3.0)
    assert put(node, front__sample_fps=5.0) == ""
    assert "front.sample_fps: 3.0 -> 5.0" in capfd.readouterr().err


def test_a_warning_of_an_engine_that_is_loaded_says_of_which_camera(start, capfd, monkeypatch):
    warn = logging.getLogger("stream_vlm_ros.engine").warning
    monkeypatch.setattr(FakeEngine, "__init__", warned(FakeEngine.__init__, warn))
    configured(start())
    said = capfd.readouterr().err
    assert "front: it is slow" in said and "rear: it is slow" in said


def warned(make, warn):
    def __init__(self):
        make(self)
        warn("it is slow")

    return __init__


def test_one_who_writes_does_not_read_again():
    told = []
    written = Written(["front", "rear"], lambda state, text: told.append(state))
    for name, state, text in (
        ("front", READING, ""),
        ("rear", WRITING, "a"),
        ("front", WRITING, "b"),
        ("rear", READING, ""),
    ):
        written.grow(name, state, text)
    assert told == [READING, READING, WRITING, WRITING]


@pytest.mark.parametrize("of", [{"depth": "x"}, {"depth": -3}, {"history": "sometimes"}])
@pytest.mark.parametrize("read", ["raw", "compressed"])
@pytest.mark.parametrize("topic", ["/front/image", "/front/image/compressed"])
def test_an_override_of_images_that_is_no_qos_is_refused_in_words(start, topic, read, of):
    """Whether the topic is the one read or the one that may come to be."""
    (policy, value), *_ = of.items()
    override = f"qos_overrides.{topic}.subscription.{policy}"
    node = start(image_transport=read, **{override: value})
    assert node.trigger_configure() != TransitionCallbackReturn.SUCCESS
    assert f"{topic} cannot be subscribed to with these qos_overrides" in node.failure


def test_an_override_of_a_topic_that_another_camera_reads_is_no_fault(start):
    """The other reads raw images there; two types on one topic are more than Fast DDS takes."""
    override = "qos_overrides./a/compressed.subscription.depth"
    node = start(front__image_topic="/a/compressed", rear__image_topic="/a", **{override: 3})
    configured(node)
    depths = [one.qos_profile.depth for one in node.subscriptions if "/a" in one.topic_name]
    assert node.get_parameter(override).value == 3
    assert len(depths) == 2 and 3 in depths


def test_an_override_of_nothing_is_warned_of_with_the_one_that_may_be_meant(start, capfd):
    used = {
        "/stream_vlm/front/cache_status.publisher.depth": 4,
        "/stream_vlm/rear/answer_delta.publisher.reliability": "best_effort",
        "/front/image.subscription.depth": 3,
        "/rear/image/compressed.subscription.history": "keep_last",  # where that is published
        "/diagnostics.publisher.depth": 9,
    }
    wrong = {
        "/stream_vlm/front/cache_status.publisher.reliabilty": "best_effort",
        "/front/image.subscription.reliability": "reliable",
        "/front/image.publisher.depth": 3,
        "/elsewhere.publisher.depth": 3,
    }
    configured(start(**{f"qos_overrides.{name}": value for name, value in (used | wrong).items()}))
    said = [line for line in capfd.readouterr().err.splitlines() if "overrides nothing" in line]
    assert [name for name in used | wrong if any(f"{name} " in line for line in said)] == [*wrong]
    assert "qos_overrides./stream_vlm/front/cache_status.publisher.reliability" in said[0]
