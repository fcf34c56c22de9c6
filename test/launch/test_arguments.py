# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What a launch file can be told, and what is refused, with which words."""

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_vlm_ros.demo.settings import DemoOptions
from stream_vlm_ros.errors import InvalidParameterError, StreamVlmError
from stream_vlm_ros.launching import arguments
from stream_vlm_ros.launching.arguments import (
    DemoArguments,
    NodeArguments,
    ReplayArguments,
    refuse_second_node,
)

ROOT = Path(__file__).parents[2]
TABLES = [NodeArguments, DemoArguments, ReplayArguments]


def texts(table, **given):
    """What a launch file is given, its defaults included."""
    defaults = {row.name: row.written(row.default) for row in table.table().values()}
    if "params_file" in defaults:
        defaults["params_file"] = str(ROOT / defaults["params_file"])
    return defaults | given


@pytest.mark.ros
@pytest.mark.parametrize("table", [NodeArguments, DemoArguments])
def test_the_defaults_of_a_launch_file_pass_and_come_out_in_their_types(table):
    values = table.parsed(texts(table))
    assert values.use_sim_time is False
    assert values.image == "image"
    assert {name: type(value) for name, value in values.values().items()} == {
        row.name: row.type for row in table.table().values()
    }


@pytest.mark.ros
@pytest.mark.parametrize("table", [NodeArguments, DemoArguments])
def test_a_console_for_other_machines_needs_a_key(table, monkeypatch):
    monkeypatch.delenv("STREAM_VLM_API_KEY", raising=False)
    given = texts(table, web_host="0.0.0.0", web_port="0", namespace="/front/")
    table.parsed(given)  # nothing is served
    with pytest.raises(InvalidParameterError, match="needs a key"):
        table.parsed(given | {"web": "true"})
    monkeypatch.setenv("STREAM_VLM_API_KEY", "0123456789abcdef")
    values = table.parsed(given | {"web": "true"})
    where = ["--node", "/front/stream_vlm", "--host", "0.0.0.0", "--port", "0"]
    assert arguments.console_command(values) == ["web", *where]


def test_the_console_of_a_node_shows_each_of_its_cameras():
    given = texts(NodeArguments, cameras="front=/f,rear=/r")
    shown = arguments.console_command(NodeArguments.parsed(given))
    assert shown[3:7] == ["--source", "front", "--source", "rear"]


WITHOUT_LIBRARIES = """
import sys
for name in ("av", "torch", "transformers", "jsonschema", "rosbags", "mcap", "PIL"):
    sys.modules[name] = None  # an import raises ModuleNotFoundError
from stream_vlm_ros.demo.defaults import shown
from stream_vlm_ros.launching.arguments import DemoArguments

texts = dict(zip(DemoArguments.table(), sys.argv[1:], strict=True))
print(shown(DemoArguments.parsed(texts).video, None))
"""


@pytest.mark.ros
def test_launch_may_run_under_a_python_without_the_libraries_of_the_node():
    for video, expected in (("", "world:7"), ("drive.mp4", "drive.mp4")):
        given = texts(DemoArguments, video=video).values()
        command = [sys.executable, "-c", WITHOUT_LIBRARIES, *given]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.stdout.strip() == expected, done.stderr


@pytest.mark.ros
def test_a_replay_is_given_a_bag_and_its_questions(tmp_path):
    questions = tmp_path / "q.yaml"
    questions.write_text('questions:\n  - {at: 1, text: "Who is there?"}\n')
    given = texts(ReplayArguments, bag=str(tmp_path), questions=str(questions), fail_under="0.5")
    values = ReplayArguments.parsed(given)
    assert (values.fail_under, values.rate, values.use_sim_time) == (0.5, 1.0, True)


@pytest.mark.ros
@pytest.mark.parametrize("namespace", ["", "front", "/robot/front/"])
def test_the_log_level_is_that_of_the_nodes_own_logger_in_any_namespace(namespace):
    import rclpy

    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("stream_vlm", context=context, namespace=namespace.strip("/"))
    name = node.get_logger().name
    node.destroy_node()
    context.try_shutdown()
    assert arguments.logger_name(namespace) == name


@pytest.fixture
def bag(tmp_path, monkeypatch):
    """A bag of one picture on /camera/compressed, on a machine that has ros2 bag."""
    import cv2
    import numpy as np
    from rosbags.rosbag2 import StoragePlugin, Writer
    from rosbags.typesys import Stores, get_typestore

    monkeypatch.setattr(arguments, "find_spec", lambda name: name)
    store = get_typestore(Stores.ROS2_JAZZY)
    kinds = (
        "builtin_interfaces/msg/Time",
        "std_msgs/msg/Header",
        "sensor_msgs/msg/CompressedImage",
    )
    time_of, header_of, image_of = (store.types[name] for name in kinds)
    data = cv2.imencode(".png", np.zeros((28, 28, 3), np.uint8))[1].reshape(-1)
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/camera/compressed", kinds[2], typestore=store)
        image = image_of(header_of(stamp=time_of(7, 0), frame_id=""), "png", data)
        writer.write(connection, 7 * 10**9, store.serialize_cdr(image, kinds[2]))
    return tmp_path / "bag"


@pytest.mark.parametrize("image", ["/camera", "/camera/compressed"])
def test_a_replay_is_of_images_that_its_bag_has(bag, image):
    arguments.check_replay(str(bag), image)


def test_what_a_replay_lacks_is_said_before_anything_starts(bag, monkeypatch, tmp_path):
    with pytest.raises(
        StreamVlmError, match=r"There is no topic /front in .* Image topics: /camera"
    ):
        arguments.check_replay(str(bag), "/front")
    (tmp_path / "notes.txt").write_text("no bag")
    with pytest.raises(StreamVlmError):
        arguments.check_replay(str(tmp_path / "notes.txt"), "/camera")
    monkeypatch.setattr(arguments, "find_spec", lambda name: None)
    with pytest.raises(StreamVlmError, match="ros2 bag is missing"):
        arguments.check_replay(str(bag), "/camera")


def broken_files(folder):
    """Paths by name, each with what is wrong with it."""
    contents = {
        "no_yaml": "a: [1",
        "no_parameters": "stream_vlm:\n  sample_fps: 2.0\n",
        "empty": "",
        "a_list": "[1, 2]",
        "bad_value": "/**:\n  ros__parameters:\n    sample_fps: -3.0\n",
        "bad_type": "robot:\n  stream_vlm:\n    ros__parameters:\n      device: 5\n",
    }
    for name, text in contents.items():
        (folder / name).write_text(text)
    (folder / "latin").write_bytes(b"/**: \xff")
    return [*contents, "latin", "missing"]


def test_a_parameter_file_that_the_node_would_refuse_is_refused(tmp_path):
    for name in broken_files(tmp_path):
        with pytest.raises(InvalidParameterError, match=r"^params_file: .*" + name):
            NodeArguments.named("params_file").parsed(str(tmp_path / name))


@pytest.mark.parametrize(
    "text",
    [
        "/**:\n  ros__parameters:\n    sample_fps: 2\n",
        "other_node:\n  ros__parameters:\n    sample_fps: -3.0\n    mine: [1, 2]\n",
        "/robot/stream_vlm:\n  ros__parameters: {sampled_share: 1e-1, use_sim_time: true}\n",
    ],
)
def test_a_parameter_file_that_the_node_would_take_is_taken(tmp_path, text):
    file = tmp_path / "robot.yaml"
    file.write_text(text)
    NodeArguments.named("params_file").parsed(str(file))


@pytest.mark.ros
@pytest.mark.parametrize(
    ("table", "name", "text", "words"),
    [
        (DemoArguments, "seconds", "abc", "must be a number, got 'abc'"),
        (DemoArguments, "seconds", "0", "must lie in"),
        (DemoArguments, "seconds", "nan", "must lie in"),
        (DemoArguments, "seconds", "inf", "must lie in"),
        (DemoArguments, "seconds", "", "must be a number"),
        (DemoArguments, "rate", "fast", "must be a number"),
        (DemoArguments, "rate", "-1", "must lie in"),
        (DemoArguments, "video", "/nope.mp4", "no file /nope.mp4"),
        (DemoArguments, "video", "world:many", "whole number"),
        (NodeArguments, "image", "3x", "topic"),
        (NodeArguments, "image", "", "topic"),
        (NodeArguments, "image", "a b", "topic"),
        (NodeArguments, "namespace", "a//b", "namespace"),
        (NodeArguments, "model", "/nope", "no model folder /nope"),
        (NodeArguments, "device", "gpu", "must be auto"),
        (NodeArguments, "params_file", "/nope.yaml", "/nope.yaml cannot be read"),
        (NodeArguments, "use_sim_time", "maybe", "true or false"),
        (NodeArguments, "log_level", "loud", "one of debug, info"),
        (ReplayArguments, "bag", "/nope", "no file or folder /nope"),
        (ReplayArguments, "questions", "/nope.yaml", "/nope.yaml"),
        (ReplayArguments, "out", "/dev/null/report", "/dev/null is not a folder"),
        (ReplayArguments, "out", "", "the name is empty"),
        (ReplayArguments, "rate", "0", "must lie in"),
        (ReplayArguments, "fail_under", "80", "must lie in"),
        (DemoOptions, "count", "1.5", "whole number"),
        (DemoOptions, "size", "big", "640x480"),
    ],
)
def test_a_wrong_text_is_refused_with_the_name_and_the_reason(table, name, text, words):
    with pytest.raises(InvalidParameterError, match=f"^{name}.*{words}"):
        table.named(name).parsed(text)


@pytest.mark.ros
@pytest.mark.parametrize(
    ("name", "text"),
    [
        *((name, "\udc80") for name in ("image", "namespace", "params_file", "bag", "questions")),
        *((name, "x" * 5000) for name in ("namespace", "params_file", "bag", "questions", "out")),
    ],
)
def test_names_that_no_system_takes_are_refused(name, text):
    with pytest.raises(InvalidParameterError, match=f"^{name}: "):
        ReplayArguments.named(name).parsed(text)


@pytest.mark.ros
@given(text=st.text(st.characters(exclude_characters="\0", exclude_categories=()), max_size=20))
def test_no_text_at_all_is_an_error_of_another_kind(text):
    for table in TABLES:
        for name, row in table.table().items():
            if name == "questions":
                continue  # test/replay/test_questions.py
            try:
                value = row.parsed(text)
            except InvalidParameterError as refusal:
                assert str(refusal).startswith(name)
            else:
                assert type(value) is row.type


@pytest.mark.ros
def test_a_node_of_the_demos_name_is_found_in_its_namespace_alone():
    import rclpy

    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("stream_vlm", namespace="taken", context=context)
    try:
        with pytest.raises(StreamVlmError, match="/taken/stream_vlm runs already"):
            refuse_second_node("taken")
        refuse_second_node("free")
    finally:
        node.destroy_node()
        context.try_shutdown()
