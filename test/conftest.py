"""What all tests share: a ROS graph of their own, and skips that say why."""

import importlib.util
import os
import tempfile

import pytest

from stream_vlm_ros.demo.graph import claim_domain, on_this_machine

# make sets it: then ROS and our interfaces were built, and a test that needs them may not skip.
BUILT = os.environ.get("STREAM_VLM_INSTALLED") == "1"


def pytest_configure(config):
    """Set the environment before any test starts a node; processes started by tests inherit it."""
    config.ros_domain_claim, domain = claim_domain()
    os.environ["ROS_DOMAIN_ID"] = str(domain)
    os.environ.pop("ROS_LOCALHOST_ONLY", None)
    os.environ.update(on_this_machine())
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
