# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The ROS wheels' CMake files point to this environment, and it can be sourced."""

import subprocess
import sysconfig
from pathlib import Path

import numpy
import pytest

TOOLS = Path(__file__).resolve().parents[2] / "tools"


@pytest.fixture
def adopt_ros_wheels(load):
    return load(TOOLS / "adopt_ros_wheels.py")


@pytest.fixture
def prefix(tmp_path):
    folder = tmp_path / "share" / "std_msgs" / "cmake"
    folder.mkdir(parents=True)
    (folder / "exportExport.cmake").write_text(
        'INTERFACE_INCLUDE_DIRECTORIES "/opt/python/cp312-cp312/include/python3.12;'
        '/opt/python/cp312-cp312/lib/python3.12/site-packages/numpy/_core/include"\n'
    )
    (folder / "other.cmake").write_text("message(STATUS hello)\n")
    return tmp_path


def test_the_builders_folders_become_ours(adopt_ros_wheels, prefix):
    assert adopt_ros_wheels.patch_cmake_files(prefix) == 1
    text = (prefix / "share/std_msgs/cmake/exportExport.cmake").read_text()
    include = sysconfig.get_path("include")
    assert text == f'INTERFACE_INCLUDE_DIRECTORIES "{include};{numpy.get_include()}"\n'


def test_a_second_time_changes_nothing(adopt_ros_wheels, prefix):
    adopt_ros_wheels.patch_cmake_files(prefix)
    assert adopt_ros_wheels.patch_cmake_files(prefix) == 0


def test_the_environment_can_be_sourced(adopt_ros_wheels, prefix):
    adopt_ros_wheels.write_local_setup(prefix)
    command = f". {prefix}/local_setup.sh; echo $ROS_DISTRO $AMENT_PREFIX_PATH $LD_LIBRARY_PATH"
    environment = {"AMENT_PREFIX_PATH": "/elsewhere", "PATH": "/usr/bin:/bin"}
    output = subprocess.run(
        ["sh", "-c", command], env=environment, capture_output=True, text=True, check=True
    ).stdout
    distribution, prefixes, libraries = output.split()
    assert distribution == "jazzy"
    assert prefixes == f"{prefix}:/elsewhere"
    assert libraries.split(":")[0] == f"{prefix}/lib"
