"""The whole system from one command: a video or camera as publisher, the node, and a client.

ros2 launch stream_vlm demo.launch.py
ros2 launch stream_vlm demo.launch.py video:=/dev/video0 model:=/path/to/Qwen2.5-VL-3B-Instruct

Ends when the client has asked its questions.
"""

from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription

SHARE = FindPackageShare("stream_vlm")
ARGUMENTS = {
    "image": ("image", "Topic with the images."),
    "video": (
        "",
        "What the camera shows: a video file, a folder of images, /dev/video0 or world:SEED. "
        "Empty: the drawn world that the demo's small model knows; a real video to a given model.",
    ),
    "model": ("", "Folder of a Qwen2.5-VL checkpoint. Empty: the demo's small one."),
    "device": ("auto", "auto, cpu, cuda or cuda:N."),
    "params_file": (
        PathJoinSubstitution([SHARE, "config", "demo.yaml"]),
        "YAML file with the node's parameters.",
    ),
    "namespace": ("", "Namespace of all three nodes."),
    "use_sim_time": ("false", "Take the time from /clock."),
    "rate": ("0.0", "Images per second that are published. 0: the video's own."),
    "seconds": ("40.0", "How long the client asks; then the demo ends."),
}


def start(context):
    """The three nodes, and the end of all when the client is done."""
    from stream_vlm_ros.demo.defaults import default_source
    from stream_vlm_ros.factory import default_model

    def given(name):
        return LaunchConfiguration(name).perform(context)

    def common(name, executable, **parameters):
        return Node(
            package="stream_vlm",
            executable=executable,
            name=name,
            namespace=given("namespace"),
            parameters=[
                {
                    "use_sim_time": ParameterValue(
                        LaunchConfiguration("use_sim_time"), value_type=bool
                    )
                },
                parameters,
            ],
            remappings=[("image", given("image"))],
            output="screen",
        )

    video = given("video") or default_source(given("model") or None)
    source = common(
        "source",
        "source_node",
        source=ParameterValue(video, value_type=str),
        rate=ParameterValue(LaunchConfiguration("rate"), value_type=float),
        wait_for_subscriber=True,
    )
    client = common(
        "client",
        "client",
        source=ParameterValue(video, value_type=str),
        seconds=ParameterValue(LaunchConfiguration("seconds"), value_type=float),
    )
    node = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(
            PathJoinSubstitution([SHARE, "launch", "stream_vlm.launch.py"])
        ),
        launch_arguments={
            "image": given("image"),
            "model": given("model") or str(default_model()),
            "device": given("device"),
            "params_file": given("params_file"),
            "namespace": given("namespace"),
            "use_sim_time": given("use_sim_time"),
        }.items(),
    )
    end = RegisterEventHandler(
        OnProcessExit(
            target_action=client, on_exit=[EmitEvent(event=Shutdown(reason="the demo is over"))]
        )
    )
    return [node, source, client, end]


def generate_launch_description():
    """What ``ros2 launch`` calls."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    profile = PathJoinSubstitution([SHARE, "config", "fastdds.xml"])
    # The first name is read by Fast DDS 3, the second by the versions before.
    transport = [
        SetEnvironmentVariable("FASTDDS_DEFAULT_PROFILES_FILE", profile),
        SetEnvironmentVariable("FASTRTPS_DEFAULT_PROFILES_FILE", profile),
    ]
    return LaunchDescription([*arguments, *transport, OpaqueFunction(function=start)])
