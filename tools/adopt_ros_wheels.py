# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Make the ROS 2 wheels in this virtual environment usable as an installation of ROS.

Run it with the interpreter of the environment; running it again changes nothing. It mends what the
wheels bring unfinished:

- Their CMake files name the include folders of Python and numpy on the machine that built them
  (/opt/python/cp311-cp311/...), which CMake refuses where they do not exist: ours are put there.
- They have no setup file. local_setup.sh (.bash, .zsh) is written, which colcon then sources
  from install/setup.sh as it would source the one of /opt/ros/jazzy.
"""

import re
import sys
import sysconfig
from pathlib import Path

import numpy

BUILDERS_FOLDERS = {
    re.compile(r"/opt/python/cp\d+-cp\d+/include/python3\.\d+"): sysconfig.get_path("include"),
    re.compile(
        r"/opt/python/cp\d+-cp\d+/lib/python3\.\d+/site-packages/numpy/_?core/include"
    ): numpy.get_include(),
}

LOCAL_SETUP = """\
# ROS 2 Jazzy from the wheels in this virtual environment; written by tools/adopt_ros_wheels.py.
export AMENT_PREFIX_PATH="{prefix}${{AMENT_PREFIX_PATH:+:$AMENT_PREFIX_PATH}}"
export ROS_DISTRO=jazzy ROS_VERSION=2 ROS_PYTHON_VERSION=3
export LD_LIBRARY_PATH="{libraries}${{LD_LIBRARY_PATH:+:$LD_LIBRARY_PATH}}"
# With the line above done, the wheels' start-up hook need not execute Python a second time.
export _ROS_WHEELS_BOOTSTRAP_COMPLETE=1
"""


def patch_cmake_files(prefix: Path) -> int:
    """Patch every CMake file under prefix/share; return how many were changed."""
    changed = 0
    for path in sorted(prefix.glob("share/*/cmake/*.cmake")):
        text = patched = path.read_text()
        for builders, ours in BUILDERS_FOLDERS.items():
            patched = builders.sub(lambda _, ours=ours: ours, patched)
        if patched != text:
            path.write_text(patched)
            changed += 1
    return changed


def write_local_setup(prefix: Path) -> None:
    """Write prefix/local_setup.* and keep colcon from looking for packages in there."""
    site_packages = Path(sysconfig.get_path("purelib"))
    libraries = [prefix / "lib", *sorted(site_packages.glob("ros_*.libs"))]
    text = LOCAL_SETUP.format(prefix=prefix, libraries=":".join(map(str, libraries)))
    for suffix in ("sh", "bash", "zsh"):
        (prefix / f"local_setup.{suffix}").write_text(text)
    (prefix / "COLCON_IGNORE").touch()


if __name__ == "__main__":
    here = Path(sys.prefix)
    print(f"{patch_cmake_files(here)} CMake files of the ROS wheels patched")
    write_local_setup(here)
