# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the launch files can be told, and what is wrong with it. Needs neither launch nor the
libraries of the node."""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from stream_vlm_ros.access import Access, read_key
from stream_vlm_ros.config import NODE, Settings, check_device, check_engine_url, check_source_names
from stream_vlm_ros.demo.settings import (
    NODE_NAME,
    DemoSettings,
    as_far_as_known,
    check_checkpoint,
    fixed,
)
from stream_vlm_ros.errors import InvalidParameterError, StreamVlmError
from stream_vlm_ros.owned import place_to_write
from stream_vlm_ros.setting import Setting, SettingTable


@as_far_as_known
def _topic(text: str) -> None:
    from rclpy.exceptions import InvalidTopicNameException
    from rclpy.validate_topic_name import validate_topic_name

    text.encode()  # rclpy takes UTF-8 alone
    try:
        validate_topic_name(text)
    except InvalidTopicNameException as error:
        raise InvalidParameterError(_first_line(error)) from None


@as_far_as_known
def _namespace(text: str) -> None:
    from rclpy.exceptions import InvalidNamespaceException
    from rclpy.validate_namespace import validate_namespace

    text.encode()
    try:
        validate_namespace("/" + text.strip("/"))
    except InvalidNamespaceException as error:
        raise InvalidParameterError(_first_line(error)) from None


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(":")


def cameras_of(text: str) -> dict[str, str]:
    """The topic of each camera, from ``front=/front/image_raw,rear=/rear/image_raw``.

    Raises InvalidParameterError for what says no such thing.
    """
    pairs = [one.partition("=") for one in text.split(",") if one.strip()]
    names = tuple(name.strip() for name, _, _ in pairs)
    for name, _, topic in pairs:
        if not topic.strip():
            raise InvalidParameterError(f"NAME=TOPIC is missing its topic: {name.strip()!r}")
        _topic(topic.strip())
    check_source_names(names)
    topics = [topic.strip() for _, _, topic in pairs]
    if len(set(topics)) < len(topics):
        raise InvalidParameterError(f"a topic is there twice: {', '.join(topics)}")
    return dict(zip(names, topics, strict=True))


def _cameras(text: str) -> None:
    cameras_of(text)


def _device(text: str) -> None:
    if text:
        check_device(text)


@as_far_as_known
def _parameter_file(text: str) -> None:
    """One that rcl can read, with values that the node takes."""
    import yaml

    try:
        document = yaml.safe_load(Path(text).read_text(encoding="utf-8"))
    except OSError as error:
        raise InvalidParameterError(f"{text} cannot be read: {error.strerror}") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise InvalidParameterError(f"{text} is no YAML: {error}") from None
    try:
        _check_parameters(document)
    except InvalidParameterError as error:
        raise InvalidParameterError(f"{text}: {error}") from None


def _check_parameters(part: Any, node: str = "") -> None:
    """Check a node's part of a parameter file, or all of a namespace's."""
    if not isinstance(part, dict) or not part:
        raise InvalidParameterError("'ros__parameters:' is missing under a node's name")
    for name, below in part.items():
        if name != "ros__parameters":
            _check_parameters(below, str(name))
        elif not isinstance(below, dict):
            raise InvalidParameterError("nothing is under 'ros__parameters:'")
        elif node.rpartition("/")[2] in (NODE_NAME, "*", "**"):
            _check_values(below)


def _check_values(values: dict[str, Any]) -> None:
    """Check those that are the node's; of others it warns itself."""
    rows = {name: row for name, row in Settings.table().items() if NODE in row.takers}
    settings = Settings.of(_ours(values, rows))
    for name in settings.sources:
        if isinstance(own := values.get(name), dict):
            settings.of_source(name, _ours(own, rows))


def _ours(values: dict[str, Any], rows: dict[str, Setting]) -> dict[str, Any]:
    ours = {name: value for name, value in values.items() if name in rows}
    for name, value in ours.items():
        # rcl takes 1e3 for a number, where PyYAML sees a text.
        if rows[name].type is float and isinstance(value, str):
            with suppress(ValueError):
                ours[name] = float(value)
    return ours


@as_far_as_known
def _existing(text: str) -> None:
    if not text or not Path(text).exists():
        raise InvalidParameterError(f"there is no file or folder {text}")


@as_far_as_known
def _question_file(text: str) -> None:
    from stream_vlm_ros.replay.questions import load_questions

    load_questions(text)


@as_far_as_known
def _folder_to_be(text: str) -> None:
    place = place_to_write("the name", text).absolute()
    existing = next(part for part in (place, *place.parents) if part.exists())
    if not existing.is_dir():
        raise InvalidParameterError(f"{existing} is not a folder")


@dataclass(frozen=True)
class _Common(SettingTable):
    """Of every launch file. ``params_file`` lies in the package, unless one is given."""

    image: str = fixed("image", "Topic with the images.", rule=_topic)
    model: str = fixed(
        "",
        "Folder of a Qwen2.5-VL checkpoint. Empty: as in params_file, or the small one that is "
        "shipped.",
        rule=check_checkpoint,
    )
    device: str = fixed(
        "", "auto, cpu, cuda or cuda:N. Empty: as in params_file, or auto.", rule=_device
    )
    params_file: str = fixed(
        "config/stream_vlm.yaml", "YAML file with the node's parameters.", rule=_parameter_file
    )
    namespace: str = fixed("", "Namespace of the node.", rule=_namespace)
    use_sim_time: bool = fixed(False, "Take the time from /clock.")
    web: bool = fixed(False, "Show the node's memory in the browser, too (docs/console.md).")
    web_port: int = fixed(8080, "Where, with web. 0: any port that is free.", 0, 65_535)
    web_host: str = fixed(
        "127.0.0.1",
        "Where, with web. Any but this machine's own needs a key in STREAM_VLM_API_KEY.",
    )

    def check(self) -> None:
        """Raise InvalidParameterError for a console that others could reach without a key."""
        if self.web:
            Access(self.web_host, self.web_port, read_key())


@dataclass(frozen=True)
class NodeArguments(_Common):
    """Of stream_vlm.launch.py."""

    cameras: str = fixed(
        "",
        "Of several cameras the name and the topic of each, in place of image: "
        "front=/front/image_raw,rear=/rear/image_raw. Empty: one camera, or sources of "
        "params_file.",
        rule=_cameras,
    )
    engine_url: str = fixed(
        "",
        "Address of a stream-vlm serve that has model and memory, such as ws://gpu-box:8090. "
        "Empty: as in params_file, or in the node.",
        rule=check_engine_url,
    )
    log_level: str = fixed(
        "info",
        "How much the node logs.",
        choices=("debug", "info", "warn", "error", "fatal"),
    )


@dataclass(frozen=True)
class DemoArguments(DemoSettings, _Common):
    """Of demo.launch.py."""

    params_file: str = fixed(
        "config/demo.yaml", "YAML file with the node's parameters.", rule=_parameter_file
    )
    namespace: str = fixed("", "Namespace of all three nodes.", rule=_namespace)


@dataclass(frozen=True)
class ReplayArguments(_Common):
    """Of replay.launch.py."""

    bag: str = fixed(
        "",
        "The bag to play: a folder or a file that ros2 bag play takes.",
        required=True,
        rule=_existing,
    )
    questions: str = fixed(
        "", "File of timed questions (docs/replay.md).", required=True, rule=_question_file
    )
    image: str = fixed("image", "Image topic in the bag.", rule=_topic)
    out: str = fixed(
        "report",
        "Folder of the report; the bag of the answers is out/answers (_2, ...).",
        rule=_folder_to_be,
    )
    rate: float = fixed(
        1.0, "How many times faster than real time the bag is played.", 0.01, 1000.0
    )
    fail_under: float = fixed(
        0.0,
        "The launch fails (exit status 1) if fewer are right, such as 0.8. 0: however many are.",
        0.0,
        1.0,
    )
    use_sim_time: bool = fixed(True, "Take the time from /clock, which the bag's player publishes.")


def node_name(namespace: str) -> str:
    """The full name of the node in a namespace, which may be written with slashes around it."""
    return "/".join(["", *filter(None, namespace.split("/")), NODE_NAME])


def console_command(values: _Common) -> list[str]:
    """What shows the node in the browser: arguments of ``stream-vlm``."""
    where = ("--host", values.web_host, "--port", str(values.web_port))
    cameras = cameras_of(getattr(values, "cameras", ""))
    which = [word for name in cameras for word in ("--source", name)]
    return ["web", "--node", node_name(values.namespace), *which, *where]


def logger_name(namespace: str) -> str:
    """The name of that node's logger."""
    return node_name(namespace).strip("/").replace("/", ".")


def check_replay(bag: str, image: str) -> None:
    """Raise StreamVlmError where a replay would come to nothing once its node has been started:
    the bag cannot be read or has no such images, or nothing is there to play and record it."""
    if find_spec("ros2bag") is None:
        raise StreamVlmError(
            "The command ros2 bag is missing, which plays and records: install ros-"
            f"{os.environ.get('ROS_DISTRO', 'jazzy')}-rosbag2, or use stream-vlm replay"
        )
    with suppress(ModuleNotFoundError):  # launch's may be another Python than the node's
        _check_images(bag, image)


def _check_images(bag: str, image: str) -> None:
    from stream_vlm_ros.sources.bags import BagSource

    try:
        BagSource(bag, topics=[image])
    except InvalidParameterError:  # the node takes them packed, too
        with suppress(InvalidParameterError):
            BagSource(bag, topics=[f"{image}/compressed"])
            return
        raise


def refuse_second_node(namespace: str = "") -> None:
    """Raise StreamVlmError where a node of the demo's name runs already: the client would ask it.

    Takes some seconds where none does.
    """
    from stream_vlm_ros.processes.ros_process import is_on_the_graph

    name = node_name(namespace)
    if is_on_the_graph(name):
        raise StreamVlmError(
            f"A node named {name} runs already on this ROS graph: end it, or give this one another "
            "namespace."
        )
