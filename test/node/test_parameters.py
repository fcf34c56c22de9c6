# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Settings as parameters of a real node."""

import dataclasses

import pytest

from stream_vlm_ros.config import Settings, node_only
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.setting import ALWAYS, START, SettingTable, setting

pytestmark = pytest.mark.ros


@dataclasses.dataclass(frozen=True)
class WithOneMore(Settings):
    blur: float = node_only(0.5, "How much to blur.", 0.0, 9.0, change=ALWAYS)


@dataclasses.dataclass(frozen=True)
class Various(SettingTable):
    camera: str = setting("", "A name.", change=START)
    times: int = setting(3, "A number.", 1, 5)
    words: tuple[str, ...] = setting(("",), "Texts.")
    kind: str = setting("round", "A word.", choices=("round", "square"))


@pytest.fixture
def make_node():
    """A node in a context of its own, started with the parameters given."""
    import rclpy

    context = rclpy.Context()
    nodes = []

    def make(arguments=("--ros-args",), **parameters):
        values = [f"{name}:={value}" for name, value in parameters.items()]
        given = [*arguments, *(word for one in values for word in ("-p", one))]
        nodes.append(rclpy.create_node("n", namespace="front", context=context, cli_args=given))
        return nodes[-1]

    context.init()
    yield make
    for node in nodes:
        node.destroy_node()
    context.shutdown()


def test_a_new_setting_is_declared_and_described(make_node):
    from stream_vlm_ros.node.parameters import declare

    node = make_node(blur=2)
    values = declare(node, WithOneMore.table().values())
    assert WithOneMore.of(values).blur == 2.0
    described = node.describe_parameter("blur")
    assert described.description == "How much to blur."
    (bounds,) = described.floating_point_range
    assert (bounds.from_value, bounds.to_value) == (0.0, 9.0)


def test_what_a_command_line_makes_of_a_value_is_taken(make_node):
    from stream_vlm_ros.node.parameters import declare, read

    node = make_node(camera=0, words="[a, b]")
    values = declare(node, Various.table().values())
    assert values == {"camera": "0", "times": 3, "words": ("a", "b"), "kind": "round"}
    assert read(node, Various.table().values()) == values
    assert node.describe_parameter("camera").read_only
    assert not node.describe_parameter("kind").read_only
    assert "round, square" in node.describe_parameter("kind").additional_constraints


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"times": 6}, r"times must lie in \[1, 5\], got 6"),
        ({"times": "soon"}, "times must be of type int, got 'soon'"),
        ({"kind": "roun"}, "kind must be one of round, square, got 'roun'; did you mean 'round'"),
        ({"camera": "true"}, "camera must be of type str, got True"),
        (
            {"times": 6, "kind": "roun", "camera": "true"},
            r"camera must be .*\(bool\); times must .* got 6; kind must be one of .* 'round'",
        ),
    ],
)
def test_a_bad_value_at_start_is_refused_in_our_words(make_node, given, words):
    from stream_vlm_ros.node.parameters import declare

    with pytest.raises(InvalidParameterError, match=words):
        declare(make_node(**given), Various.table().values())


def test_a_parameter_that_is_not_there_is_refused_with_the_one_that_is_meant(make_node):
    from stream_vlm_ros.errors import InvalidParameterError
    from stream_vlm_ros.node.parameters import refuse_unknown

    refuse_unknown(make_node(**{"use_sim_time": "true", "qos_overrides./clock.depth": 3}))
    told = r"there is no parameter 'sampel_fps'; did you mean 'sample_fps'\?; .* 'xyzzy'$"
    with pytest.raises(InvalidParameterError, match=told):
        refuse_unknown(make_node(sampel_fps=3, xyzzy=1, use_sim_time="true"))


def test_what_a_file_gives_to_several_nodes_is_warned_of_and_what_it_gives_to_this_one_refused(
    make_node, tmp_path
):
    from stream_vlm_ros.node.parameters import refuse_unknown

    file = tmp_path / "robot.yaml"
    given = ["--ros-args", "--params-file", str(file)]

    def start(text):
        file.write_text(text)
        node, warned = make_node(given), []
        node.get_logger().warning = warned.append
        refuse_unknown(node, ["program", *given])
        return warned

    of_others = "{ros__parameters: {sampel_fps: 3, costmap: {width: 2}, use_sim_time: true}}"
    for section in ("/**", "/front/*"):
        first, second = start(f"{section}: {of_others}")
        assert "there is no parameter 'sampel_fps'; did you mean 'sample_fps'?" in first
        assert "'costmap.width'" in second
    for nothing in ("", "/**: {ros__parameters: {}}"):
        assert start(nothing) == []
    file.write_text("/**: {ros__parameters: }")  # which rcl refuses in its own words
    refuse_unknown(make_node(), given)
    for section in ("/front/n", "/**/n"):
        with pytest.raises(InvalidParameterError, match=r"'sampel_fps'.*'costmap.width'"):
            start(f"{section}: {of_others}")
        with pytest.raises(InvalidParameterError, match=r"'sampel_fps'.*'costmap.width'"):
            start(f"{section}: {of_others}\n/**: {of_others}")


def test_a_parameter_file_that_names_no_such_node_is_warned_of(make_node, tmp_path):
    from stream_vlm_ros.node.parameters import refuse_unknown

    file = tmp_path / "robot.yaml"
    given = ["--ros-args", "--params-file", str(file)]
    for section in (
        "m: {ros__parameters: {a: 1}}",
        "n: {ros__parameters: {a: 1}}",
        "/*: {ros__parameters: {a: 1}}",
    ):
        file.write_text(section)
        node, warned = make_node(given), []
        node.get_logger().warning = warned.append
        refuse_unknown(node, ["program", *given])
        (told,) = warned
        name = "/" + section.partition(":")[0].strip("/")
        assert told == f"{file} gives this node, /front/n, no parameters: what it names is {name}"
