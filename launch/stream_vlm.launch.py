# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Start the node: ros2 launch stream_vlm stream_vlm.launch.py image:=/camera/image_raw

With several cameras: cameras:=front=/front/image_raw,rear=/rear/image_raw
With the memory at a server: engine_url:=ws://gpu-box:8090 (and config/fastdds_thin.xml)
"""

from launch.actions import ExecuteProcess
from launch.substitutions import PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackagePrefix

from stream_vlm_ros.launching.arguments import (
    NodeArguments,
    cameras_of,
    console_command,
    logger_name,
)
from stream_vlm_ros.launching.description import description


def start(values):
    """The node, with the arguments that were given laid over the parameter file; and the console,
    which may end without it."""
    # An empty argument leaves the file's own value alone.
    over = {
        parameter: ParameterValue(value, value_type=str)
        for parameter, value in (
            ("model_path", values.model),
            ("device", values.device),
            ("engine_url", values.engine_url),
            ("engine", "remote" if values.engine_url else ""),
        )
        if value
    }
    cameras = cameras_of(values.cameras)
    if cameras:
        over["sources"] = ParameterValue(",".join(cameras), value_type=str)
    for name, topic in cameras.items():  # as parameters: a file may have one, too
        over[f"{name}.image_topic"] = ParameterValue(topic, value_type=str)
    over["use_sim_time"] = values.use_sim_time
    program = PathJoinSubstitution([FindPackagePrefix("stream_vlm"), "bin", "stream-vlm"])
    console = ExecuteProcess(cmd=[program, *console_command(values)], output="screen")
    return [
        *([console] if values.web else []),
        Node(
            package="stream_vlm",
            executable="stream_vlm_node",
            name="stream_vlm",
            namespace=values.namespace,
            parameters=[values.params_file, over],
            remappings=[("image", values.image)],
            arguments=[
                "--ros-args",
                "--log-level",
                f"{logger_name(values.namespace)}:={values.log_level}",
            ],
            output="screen",
        ),
    ]


def generate_launch_description():
    """What ``ros2 launch`` calls."""
    return description(NodeArguments, start)
