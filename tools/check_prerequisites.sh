#!/bin/sh

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

# Say what the build needs and this machine lacks, as the one line that installs it.
# Usage: check_prerequisites.sh PYTHON [ros]     ("ros": an installed ROS 2 is used)
python="$1"
missing=""

if ! command -v "$python" >/dev/null 2>&1; then
    missing="python3 python3-venv python3-dev"
else
    if ! "$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))'; then
        echo "$python is $("$python" --version 2>&1); Python 3.10 or newer is needed." >&2
        echo "Name another one with: make PYTHON=/path/to/python3" >&2
        exit 1
    fi
    # Debian splits both off its python3 package.
    "$python" -c 'import venv, ensurepip' >/dev/null 2>&1 || missing="$missing python3-venv"
    "$python" -c '
import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))
' || missing="$missing python3-dev"
fi
command -v "${CXX:-c++}" >/dev/null 2>&1 || missing="$missing g++"
command -v cmake >/dev/null 2>&1 || missing="$missing cmake"
command -v make >/dev/null 2>&1 || missing="$missing make"
if [ "$2" = ros ]; then
    command -v colcon >/dev/null 2>&1 || missing="$missing python3-colcon-common-extensions"
    [ -n "$ROS_DISTRO" ] && ! "$python" -c 'import rosidl_generator_py' >/dev/null 2>&1 &&
        missing="$missing ros-$ROS_DISTRO-rosidl-default-generators"
elif [ "$(uname -s)-$(uname -m)" != Linux-x86_64 ]; then
    echo "The ROS 2 wheels are for Linux on x86-64; this is $(uname -s) on $(uname -m)." >&2
    echo "Install ROS 2, source its setup.bash, and call make again." >&2
    exit 1
fi

if [ -n "$missing" ]; then
    echo "Some tools are missing. This line installs them (Debian, Ubuntu):" >&2
    echo >&2
    # shellcheck disable=SC2086
    echo "    sudo apt-get install -y" $missing >&2
    echo >&2
    exit 1
fi
