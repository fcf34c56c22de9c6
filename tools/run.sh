#!/bin/sh

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

# Run a command inside the built environment: tools/run.sh python -m stream_vlm_ros.demo
# It sees the virtual environment, ROS 2 (installed, or from the wheels in it) and install/.
root=$(cd "$(dirname "$0")/.." && pwd)
if [ ! -x "$root/.venv/bin/python" ]; then
    echo "stream_vlm: not set up yet: run 'make setup' in $root first" >&2
    exit 127
fi
export VIRTUAL_ENV="$root/.venv"
export PATH="$VIRTUAL_ENV/bin:$PATH"
# The interpreter of the executables in install/lib/stream_vlm, whatever else is active.
export STREAM_VLM_PYTHON="$VIRTUAL_ENV/bin/python"
# How to come here again, for what tells it.
export STREAM_VLM_RUN="$root/tools/run.sh"
# Never import from the current folder: the copy in install/ is what runs and what is tested.
export PYTHONSAFEPATH=1
unset PYTHONHOME

if [ -f "$VIRTUAL_ENV/local_setup.sh" ]; then # ROS from the wheels
    unset PYTHONPATH AMENT_PREFIX_PATH CMAKE_PREFIX_PATH COLCON_PREFIX_PATH
    . "$VIRTUAL_ENV/local_setup.sh"
fi
if [ -f "$root/install/local_setup.sh" ]; then
    COLCON_CURRENT_PREFIX="$root/install"
    . "$root/install/local_setup.sh"
    unset COLCON_CURRENT_PREFIX
fi
exec "$@"
