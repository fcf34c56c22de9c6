# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the tests by launch_testing share."""

import launch_testing.actions
from launch.actions import IncludeLaunchDescription
from launch.launch_description_sources import PythonLaunchDescriptionSource
from launch.substitutions import PathJoinSubstitution
from launch_ros.substitutions import FindPackageShare

from launch import LaunchDescription


def description_of(name, **arguments):
    """A launch file of the package with these arguments; the tests begin at once."""
    file = PathJoinSubstitution([FindPackageShare("stream_vlm"), "launch", name])
    source = PythonLaunchDescriptionSource(file)
    included = IncludeLaunchDescription(source, launch_arguments=arguments.items())
    return LaunchDescription([included, launch_testing.actions.ReadyToTest()])
