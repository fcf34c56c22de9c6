"""What all tests share: a ROS graph of their own, and skips that say why."""

import importlib.util
import os
import random
import socket
import tempfile

import pytest

# make sets it: then ROS and our interfaces were built, and a test that needs them may not skip.
BUILT = os.environ.get("STREAM_VLM_INSTALLED") == "1"
DOMAIN_COORDINATOR_PORT = 32768


def claim_ros_domain() -> tuple[socket.socket, int]:
    """A ROS domain that no other test run on this machine uses, and the socket that claims it.

    The claim is that of ROS's own domain_coordinator, a bound port, so that its tests and ours do
    not meet. Domains 1 to 101 have their ports below Linux's ephemeral ones.
    """
    numbers = list(range(1, 102))
    random.SystemRandom().shuffle(numbers)
    for number in numbers:
        claim = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
        try:
            claim.bind(("", DOMAIN_COORDINATOR_PORT + number))
        except OSError:
            claim.close()
            continue
        return claim, number
    raise RuntimeError("all ROS domains from 1 to 101 are taken by other test runs")


def pytest_configure(config):
    """Set the environment before any test starts a node; processes started by tests inherit it."""
    config.ros_domain_claim, domain = claim_ros_domain()
    os.environ["ROS_DOMAIN_ID"] = str(domain)
    # Discovery stays on this machine. Jazzy warns about Humble's variable, so each gets its own.
    if os.environ.get("ROS_DISTRO") == "humble":
        os.environ["ROS_LOCALHOST_ONLY"] = "1"
    else:
        os.environ.pop("ROS_LOCALHOST_ONLY", None)
        os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
    config.ros_log_folder = tempfile.TemporaryDirectory(prefix="stream_vlm_ros_log_")
    os.environ["ROS_LOG_DIR"] = config.ros_log_folder.name


def pytest_unconfigure(config):
    """Give the domain and the folder of the log files back."""
    config.ros_domain_claim.close()
    config.ros_log_folder.cleanup()


def pytest_collection_modifyitems(items):
    """Skip what cannot run here, with the reason."""
    missing = [name for name in ("rclpy", "stream_vlm") if importlib.util.find_spec(name) is None]
    for item in items:
        if missing and not BUILT and item.get_closest_marker("ros"):
            item.add_marker(pytest.mark.skip(reason=f"{' and '.join(missing)} not installed"))
        if item.get_closest_marker("gpu") and not cuda_is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


def cuda_is_available() -> bool:
    """Whether torch sees a GPU; imported here so that other tests do not pay for it."""
    import torch

    return torch.cuda.is_available()
