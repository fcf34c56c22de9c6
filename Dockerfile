# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

# The package on ROS 2 Jazzy; docs/docker.md shows how it is built and run. No weights are in it but
# those of the small model.
FROM ros:jazzy-ros-base

# More options for pip, such as --build-arg PIP_EXTRA="--extra-index-url URL" for torch on a CPU.
ARG PIP_EXTRA=""
ENV DEBIAN_FRONTEND=noninteractive

# What package.xml asks for, but the keys that would install with pip into the system's Python.
COPY package.xml /ws/src/stream_vlm/package.xml
WORKDIR /ws
# hadolint ignore=DL3008
RUN apt-get update \
    && rosdep update --rosdistro "$ROS_DISTRO" \
    && rosdep install --from-paths src --ignore-src -y --skip-keys \
        "python3-pytorch-pip python3-rosbags-pip python3-transformers-pip" \
    && apt-get install -y --no-install-recommends g++ python3-dev python3-venv \
    && rm -rf /var/lib/apt/lists/*

# Apart from the code, so that an edit does not install torch again.
COPY requirements src/stream_vlm/requirements
COPY constraints.txt tools/make_constraints.py /ws/
# hadolint ignore=SC2086
RUN python3 -m venv --system-site-packages /venv \
    && /venv/bin/python make_constraints.py constraints.txt --system-ros > pins.txt \
    && /venv/bin/pip install --no-cache-dir $PIP_EXTRA -c pins.txt \
        -r src/stream_vlm/requirements/runtime.txt

COPY . src/stream_vlm
RUN . "/opt/ros/$ROS_DISTRO/setup.sh" && . /venv/bin/activate \
    && colcon build --packages-select stream_vlm

ENV PATH="/venv/bin:$PATH"
# Compiled kernels, where a volume keeps them.
ENV TRITON_CACHE_DIR=/root/.cache/triton TORCHINDUCTOR_CACHE_DIR=/root/.cache/inductor
ENTRYPOINT ["/bin/bash", "-c", "source /ws/install/setup.bash && exec \"$@\"", "--"]
CMD ["ros2", "launch", "stream_vlm", "demo.launch.py"]
