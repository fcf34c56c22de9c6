"""Play a rosbag to the node, ask timed questions, and write a report and a bag of the answers.

ros2 launch stream_vlm replay.launch.py bag:=drive questions:=q.yaml image:=/camera/image_raw

Ends when the bag is over and everything has been answered.
"""

from pathlib import Path

from launch.actions import (
    DeclareLaunchArgument,
    EmitEvent,
    ExecuteProcess,
    IncludeLaunchDescription,
    OpaqueFunction,
    RegisterEventHandler,
    SetEnvironmentVariable,
)
from launch.event_handlers import OnProcessExit
from launch.events import Shutdown
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import LaunchConfiguration, PathJoinSubstitution
from launch_ros.substitutions import FindPackagePrefix, FindPackageShare

from launch import LaunchDescription

SHARE = FindPackageShare("stream_vlm")
ARGUMENTS = {
    "bag": (None, "The bag to play: a folder or a file that ros2 bag play takes."),
    "questions": (None, "File of timed questions (docs/replay.md)."),
    "image": ("image", "Image topic in the bag."),
    "out": ("report", "Folder of the report; the bag of the answers is out/answers (_2, ...)."),
    "rate": ("1.0", "How many times faster than real time the bag is played."),
    "fail_under": ("0.0", "The launch fails (exit status 1) if fewer are right, such as 0.8."),
    "model": ("", "Folder of a Qwen2.5-VL checkpoint. Empty: the small one of the package."),
    "device": ("auto", "auto, cpu, cuda or cuda:N."),
    "params_file": (
        PathJoinSubstitution([SHARE, "config", "stream_vlm.yaml"]),
        "YAML file with the node's parameters.",
    ),
    "namespace": ("", "Namespace of the node."),
    "use_sim_time": ("true", "Take the time from /clock, which the bag's player publishes."),
}


def start(context):
    """The node, the recorder, and the replay, which plays the bag once the node is ready."""
    from stream_vlm_ros.factory import default_model

    def given(name):
        return LaunchConfiguration(name).perform(context)

    namespace = given("namespace").strip("/")
    node = f"/{namespace}/stream_vlm" if namespace else "/stream_vlm"
    included = IncludeLaunchDescription(
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
    recorder = ExecuteProcess(
        cmd=[
            *("ros2", "bag", "record", "--storage", "mcap", "--output"),
            _fresh(Path(given("out")) / "answers"),
            *("--use-sim-time", f"{node}/answer", f"{node}/cache_status", "/diagnostics"),
            given("image"),
        ],
        output="log",
    )
    play = f"ros2 bag play '{given('bag')}' --clock 100 --delay 2 --rate {given('rate')}"
    replay = ExecuteProcess(
        cmd=[
            PathJoinSubstitution([FindPackagePrefix("stream_vlm"), "bin", "stream-vlm"]),
            *("replay", given("bag"), "--questions", given("questions"), "--out", given("out")),
            *("--topic", given("image"), "--attach", node, "--play", play),
            *("--fail-under", given("fail_under")),
        ],
        output="screen",
    )

    def over(event, context):
        if event.returncode:  # raised, so that the launch ends with a failure, too
            raise RuntimeError(f"the replay failed with exit status {event.returncode}")
        return [EmitEvent(event=Shutdown(reason="the replay is over"))]

    end = RegisterEventHandler(OnProcessExit(target_action=replay, on_exit=over))
    return [included, recorder, replay, end]


def _fresh(path):
    """``path``, or with the first number that is free: what exists, the recorder refuses."""
    number, free = 1, path
    while free.exists():
        number += 1
        free = path.with_name(f"{path.name}_{number}")
    return str(free)


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
