# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Print the constraints for this environment: constraints.txt, fitted to what is already there.

The line of torch becomes the installed version, so that a build chosen with TORCH_SPEC stays. And
with an installed ROS, what ROS brings decides: its cv_bridge is compiled against one major version
of numpy and fails to load with another, and its launch_testing is a plugin of pytest that pytest 9
refuses.
"""

import argparse
import re
from importlib import metadata
from pathlib import Path

# Brought by an installed ROS, or tied to what it brings.
FROM_ROS = re.compile(
    r"(ros-jazzy-|colcon-)|"
    r"(numpy|opencv-python-headless|matplotlib|contourpy|setuptools|empy|pytest|catkin-pkg)(==|$)"
)


def installed(name: str) -> str | None:
    """Version of a distribution that this interpreter sees, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def fit(lines: list[str], *, system_ros: bool) -> list[str]:
    """The lines of constraints.txt as they are to be used here."""
    fitted = []
    for line in lines:
        if line.startswith("torch=="):
            version = installed("torch")
            fitted.append(f"torch=={version}" if version else line)
        elif not (system_ros and FROM_ROS.match(line)):
            fitted.append(line)
    if system_ros:
        fitted.append("pytest<9")
        if (installed("numpy") or "").startswith("1."):
            fitted.append("numpy<2")
    return fitted


def main() -> None:
    """Command line: the file, and --system-ros with an installed ROS."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("constraints", type=Path)
    parser.add_argument("--system-ros", action="store_true")
    arguments = parser.parse_args()
    lines = arguments.constraints.read_text().splitlines()
    print("\n".join(fit(lines, system_ros=arguments.system_ros)))


if __name__ == "__main__":
    main()
