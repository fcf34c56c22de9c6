# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A ROS graph to be alone in, for processes that are started here."""

from __future__ import annotations

import importlib.util
import os
import random
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from stream_vlm_ros.errors import StreamVlmError, runs_here
from stream_vlm_ros.machine import threads_to_take

DOMAIN_COORDINATOR_PORT = 32768


def check_ros() -> None:
    """Raise StreamVlmError where ROS, or this package's messages, cannot be imported."""
    for name in ("rclpy", "stream_vlm"):
        if importlib.util.find_spec(name) is None:
            raise StreamVlmError(
                f"The Python module {name} is missing. Source ROS 2 and the workspace first "
                "(source install/setup.bash), or let tools/run.sh of the checkout run the command."
            )


def node_command(image: str = "/camera/image_raw") -> str:
    """The command that starts a node here, on the images of that topic."""
    if shutil.which("ros2"):
        return f"ros2 launch stream_vlm stream_vlm.launch.py image:={image}"
    return runs_here(f"python -m stream_vlm_ros.node --ros-args -r image:={image}")


def claim_domain(first: int | None = None) -> tuple[socket.socket, int]:
    """A ROS domain that nothing else here has claimed, and the socket that holds the claim.
    ``first`` is taken where it is free.

    The claim is that of ROS's own domain_coordinator, a bound port, so that its tests and we do
    not meet. Domains 1 to 101 have their ports below Linux's ephemeral ones.
    """
    numbers = list(range(1, 102))
    random.SystemRandom().shuffle(numbers)
    if first is not None:
        numbers.insert(0, first)
    for number in numbers:
        claim = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            claim.bind(("", DOMAIN_COORDINATOR_PORT + number))
        except OSError:
            claim.close()
            continue
        return claim, number
    raise StreamVlmError("All ROS domains from 1 to 101 are taken on this machine.")


def on_this_machine() -> dict[str, str]:
    """The environment that keeps discovery on this machine."""
    # Jazzy warns about Humble's variable, so each gets its own.
    if os.environ.get("ROS_DISTRO") == "humble":
        return {"ROS_LOCALHOST_ONLY": "1"}
    return {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}


@contextmanager
def own_graph(logs: Path, domain: int | None = None) -> Iterator[dict[str, str]]:
    """The environment of processes in a domain of their own, with room for large images; in
    ``domain`` if it is free.

    The frames of a robot near by do not mix in. ROS logs to ``logs``.
    """
    claim, domain = claim_domain(domain)
    environment = {
        "ROS_DOMAIN_ID": str(domain),
        "ROS_LOG_DIR": str(logs / "ros"),
        "RCUTILS_COLORIZED_OUTPUT": "0",
        "PYTHONUNBUFFERED": "1",
        **on_this_machine(),
    }
    if (threads := threads_to_take()) is not None:
        environment["OMP_NUM_THREADS"] = str(threads)
    if profile := fastdds_profile():
        # The first name is Fast DDS 3's, the second that of the versions before.
        environment["FASTDDS_DEFAULT_PROFILES_FILE"] = str(profile)
        environment["FASTRTPS_DEFAULT_PROFILES_FILE"] = str(profile)
    with claim:
        yield environment


def fastdds_profile() -> Path | None:
    """The Fast DDS profile for large images that this package ships, if it can be found."""
    name = "config/fastdds.xml"
    candidates = [Path(__file__).parents[2] / name]  # a checkout
    with suppress(ImportError, LookupError):  # (the package not being found is a LookupError)
        from ament_index_python import get_package_share_path

        candidates.insert(0, get_package_share_path("stream_vlm") / name)
    return next((path for path in candidates if path.is_file()), None)


def ros_arguments(parameters: dict[str, Any]) -> list[str]:
    """``--ros-args -p name:=value ...``"""
    arguments = ["--ros-args"]
    for name, value in parameters.items():
        arguments += ["-p", f"{name}:={_yaml(value)}"]
    return arguments


def _yaml(value: Any) -> str:
    """A parameter's value as the command line takes it: strings quoted, so that 5 can be text."""
    if isinstance(value, list):
        return "[" + ", ".join(_yaml(item) for item in value) + "]"
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value).lower() if isinstance(value, bool) else str(value)
