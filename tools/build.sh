#!/bin/sh

# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

# Build the package into install/ with colcon; run inside the environment (tools/run.sh).
# Usage: build.sh COLCON. The full output goes to build/colcon.log and is shown when it fails.
set -e
cd "$(dirname "$0")/.."
rm -f build/.failed
# Installing never removes: without this, a deleted module would stay importable.
rm -rf build/stream_vlm/ament_cmake_python/stream_vlm_ros \
    install/lib/python3*/site-packages/stream_vlm_ros \
    install/local/lib/python3*/dist-packages/stream_vlm_ros \
    install/share/stream_vlm/launch install/share/stream_vlm/config
# Of what cmake says, how far it is, on a terminal.
show() {
    while read -r line; do
        case $line in
        '['*'%]'*) [ ! -t 1 ] || printf '\r   %s ' "${line%%]*}]" ;;
        esac
    done
    [ ! -t 1 ] || printf '\r          \r'
}
if ! {
    { "$1" --log-base log build \
        --merge-install --base-paths . --build-base build --install-base install \
        --event-handlers console_direct+ \
        --cmake-args "-DPython3_EXECUTABLE=$VIRTUAL_ENV/bin/python" \
        "-DSTREAM_VLM_PYTHON=$VIRTUAL_ENV/bin/python" -DCMAKE_BUILD_TYPE=Release 2>&1 ||
        touch build/.failed; } | tee build/colcon.log | show
    [ ! -e build/.failed ]
}; then
    cat build/colcon.log >&2
    exit 1
fi
