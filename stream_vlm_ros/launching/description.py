# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the launch files share: arguments that are checked before anything starts, and how the end
of a process ends the launch. The only module that needs launch, and nothing imports it but they."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

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
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription
from stream_vlm_ros.launching.arguments import NodeArguments
from stream_vlm_ros.setting import Setting, SettingTable

SHARE = FindPackageShare("stream_vlm")
Arguments = TypeVar("Arguments", bound=SettingTable)


def description(
    table: type[Arguments],
    start: Callable[[Arguments], list[Any]],
    large_images: bool = False,
) -> LaunchDescription:
    """A launch file's: the arguments of ``table``, and what ``start`` makes of their values.

    An argument that is wrong ends the launch with status 1 and the reason before anything runs.

    Args:
        start: from the values, converted and checked, to the actions.
        large_images: let Fast DDS carry them in shared memory, in all processes of the launch.
    """

    def checked(context: Any) -> list[Any]:
        texts = {name: LaunchConfiguration(name).perform(context) for name in table.table()}
        return start(table.parsed(texts))

    return LaunchDescription(
        [
            *(
                DeclareLaunchArgument(row.name, default_value=_default(row), description=row.text)
                for row in table.table().values()
            ),
            *(_transport() if large_images else ()),
            OpaqueFunction(function=checked),
        ]
    )


def _default(row: Setting) -> Any:
    if row.name == "params_file":  # in the package, wherever that is installed
        return PathJoinSubstitution([SHARE, *row.default.split("/")])
    return None if row.required else row.written(row.default)


def _transport() -> list[SetEnvironmentVariable]:
    profile = PathJoinSubstitution([SHARE, "config", "fastdds.xml"])
    # The first name is read by Fast DDS 3, the second by the versions before.
    names = ("FASTDDS_DEFAULT_PROFILES_FILE", "FASTRTPS_DEFAULT_PROFILES_FILE")
    return [SetEnvironmentVariable(name, profile) for name in names]


def node(values: SettingTable) -> list[Any]:
    """The node by its own launch file, with those of ``values`` that it knows; it must not end."""
    table = NodeArguments.table()
    texts = {
        name: table[name].written(value) for name, value in values.values().items() if name in table
    }
    included = IncludeLaunchDescription(
        PythonLaunchDescriptionSource(
            PathJoinSubstitution([SHARE, "launch", "stream_vlm.launch.py"])
        ),
        launch_arguments=texts.items(),
    )

    def is_the_node(action: Any) -> bool:
        return getattr(action, "node_executable", None) == "stream_vlm_node"

    return [must_stay(is_the_node, "node"), included]


def must_stay(process: Any, name: str) -> RegisterEventHandler:
    """``process`` is needed to the end: should it end earlier, the launch fails."""

    def ended(event: Any, context: Any) -> None:
        if not context.is_shutdown:
            raise RuntimeError(f"the {name} ended with exit status {event.returncode}")

    return RegisterEventHandler(OnProcessExit(target_action=process, on_exit=ended))


def ends_the_launch(process: Any, name: str) -> RegisterEventHandler:
    """With the end of ``process`` all is over; the launch fails where that did."""

    def ended(event: Any, context: Any) -> list[Any] | None:
        if context.is_shutdown:  # by Ctrl-C, say
            return None
        if event.returncode:  # raised, so that the launch ends with a failure, too
            raise RuntimeError(f"the {name} failed with exit status {event.returncode}")
        return [EmitEvent(event=Shutdown(reason=f"the {name} is over"))]

    return RegisterEventHandler(OnProcessExit(target_action=process, on_exit=ended))
