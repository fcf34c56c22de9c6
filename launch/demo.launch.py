# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The whole system from one command: a video or camera as publisher, the node, and a client.

ros2 launch stream_vlm demo.launch.py
ros2 launch stream_vlm demo.launch.py video:=/dev/video0 model:=/path/to/Qwen2.5-VL-3B-Instruct

Ends when the client has asked its questions, with status 1 where that failed, or the camera or the
node ended before.
"""

from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue

from stream_vlm_ros.demo.defaults import shown
from stream_vlm_ros.launching.arguments import DemoArguments, refuse_second_node
from stream_vlm_ros.launching.description import description, ends_the_launch, must_stay, node


def start(values):
    """The three nodes, and the end of all when the client is done."""
    refuse_second_node(values.namespace)
    video = shown(values.video, values.model)

    def common(name, executable, **parameters):
        return Node(
            package="stream_vlm",
            executable=executable,
            name=name,
            namespace=values.namespace,
            parameters=[
                {
                    "use_sim_time": values.use_sim_time,
                    "source": ParameterValue(video, value_type=str),
                    **parameters,
                }
            ],
            remappings=[("image", values.image)],
            output="screen",
        )

    source = common("source", "source_node", rate=values.rate, wait_for_subscriber=True)
    client = common("client", "client", seconds=values.seconds)
    ends = [must_stay(source, "camera"), ends_the_launch(client, "demo")]
    return [*ends, *node(values), source, client]


def generate_launch_description():
    """What ``ros2 launch`` calls."""
    return description(DemoArguments, start, large_images=True)
