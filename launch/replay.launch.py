# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Play a rosbag to the node, ask timed questions, and write a report and a bag of the answers.

ros2 launch stream_vlm replay.launch.py bag:=drive questions:=q.yaml image:=/camera/image_raw

Ends when the bag is over and everything has been answered, with status 1 where that failed.
"""

import shlex
from pathlib import Path

from launch.actions import ExecuteProcess
from launch.substitutions import PathJoinSubstitution
from launch_ros.substitutions import FindPackagePrefix

from stream_vlm_ros.launching.arguments import (
    ReplayArguments,
    check_replay,
    node_name,
    refuse_second_node,
)
from stream_vlm_ros.launching.description import description, ends_the_launch, must_stay, node


def start(values):
    """The node, the recorder, and the replay, which plays the bag once the node is ready."""
    check_replay(values.bag, values.image)
    refuse_second_node(values.namespace)
    name = node_name(values.namespace)
    recorder = ExecuteProcess(
        cmd=[
            *("ros2", "bag", "record", "--storage", "mcap", "--output"),
            _fresh(Path(values.out) / "answers"),
            *("--use-sim-time", f"{name}/answer", f"{name}/cache_status", "/diagnostics"),
            values.image,
        ],
        output="log",
    )
    play = ["ros2", "bag", "play", values.bag, "--clock", "100", "--delay", "2"]
    replay = ExecuteProcess(
        cmd=[
            PathJoinSubstitution([FindPackagePrefix("stream_vlm"), "bin", "stream-vlm"]),
            *("replay", values.bag, "--questions", values.questions),
            *("--out", values.out, "--topic", values.image, "--attach", name),
            *("--play", shlex.join([*play, "--rate", str(values.rate)])),
            *(("--fail-under", str(values.fail_under)) if values.fail_under else ()),
        ],
        output="screen",
    )
    ends = [must_stay(recorder, "recorder"), ends_the_launch(replay, "replay")]
    return [*ends, *node(values), recorder, replay]


def _fresh(path):
    """``path``, or with the first number that is free: what exists, the recorder refuses."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}_{number}")
    return str(free)


def generate_launch_description():
    """What ``ros2 launch`` calls."""
    return description(ReplayArguments, start, large_images=True)
