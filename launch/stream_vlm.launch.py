"""Start the node: ros2 launch stream_vlm stream_vlm.launch.py image:=/camera/image_raw"""

from launch.actions import DeclareLaunchArgument, OpaqueFunction
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.actions import Node
from launch_ros.parameter_descriptions import ParameterValue
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription

ARGUMENTS = {
    "image": ("image", "Topic with the images."),
    "model": ("", "Folder of a Qwen2.5-VL checkpoint. Empty: as in params_file."),
    "device": ("", "auto, cpu, cuda or cuda:N. Empty: as in params_file."),
    "params_file": (
        PathJoinSubstitution([FindPackageShare("stream_vlm"), "config", "stream_vlm.yaml"]),
        "YAML file with the node's parameters.",
    ),
    "namespace": ("", "Namespace of the node."),
    "use_sim_time": ("false", "Take the time from /clock."),
    "log_level": ("info", "debug, info, warn or error."),
}


def start(context):
    """The node, with the arguments that were given laid over the parameter file."""

    def given(name):
        return LaunchConfiguration(name).perform(context)

    # An empty argument leaves the file's own value alone.
    over = {
        parameter: ParameterValue(given(argument), value_type=str)
        for argument, parameter in (("model", "model_path"), ("device", "device"))
        if given(argument)
    }
    over["use_sim_time"] = ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool)
    return [
        Node(
            package="stream_vlm",
            executable="stream_vlm_node",
            name="stream_vlm",
            namespace=given("namespace"),
            parameters=[given("params_file"), over],
            remappings=[("image", given("image"))],
            arguments=["--ros-args", "--log-level", f"stream_vlm:={given('log_level')}"],
            output="screen",
        )
    ]


def generate_launch_description():
    """What ``ros2 launch`` calls."""
    arguments = [
        DeclareLaunchArgument(name, default_value=default, description=description)
        for name, (default, description) in ARGUMENTS.items()
    ]
    return LaunchDescription([*arguments, OpaqueFunction(function=start)])
