# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What all tests share: a ROS graph of their own, and skips that say why."""

import importlib.metadata
import importlib.util
import json
import os
import signal
import tempfile
import threading
import time

import pytest
from hypothesis import HealthCheck, settings

from stream_vlm_ros.machine import measured_on
from stream_vlm_ros.processes.graph import claim_domain, on_this_machine

# make sets it: then ROS and our interfaces were built, and a test that needs them may not skip.
BUILT = os.environ.get("STREAM_VLM_INSTALLED") == "1"

# Beside a busy neighbour any input can take its second: that says nothing of the code. Where CI is
# set, Hypothesis tries the same inputs each time; elsewhere others, and so finds more.
settings.register_profile("stream_vlm", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("stream_vlm")


def pytest_addoption(parser):
    parser.addoption("--results", metavar="FILE", help="write what came of each test as JSON")


def pytest_terminal_summary(terminalreporter, config):
    """Write the results asked for: make test-slow keeps those of the slow proofs."""
    if not (file := config.getoption("--results")):
        return
    reports = [
        report
        for outcome in ("passed", "failed", "skipped", "error")
        for report in terminalreporter.stats.get(outcome, [])
    ]
    results = {
        **measured_on(),
        "torch": importlib.metadata.version("torch"),
        "transformers": importlib.metadata.version("transformers"),
        "tests": {
            report.nodeid: {
                "outcome": report.outcome,
                "seconds": round(report.duration, 1),
                **dict(report.user_properties),  # what it measured
            }
            for report in sorted(reports, key=lambda report: report.nodeid)
        },
    }
    path = config.invocation_params.dir / file
    path.write_text(json.dumps(results, indent=2) + "\n")


def pytest_configure(config):
    """Set the environment before any test starts a node; processes started by tests inherit it."""
    # Small models: a second thread brings little, and costs much where the cores are busy. Set
    # before anything imports torch; nodes that tests start inherit it.
    os.environ["OMP_NUM_THREADS"] = "1"
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        # Under nohup what tests start would ignore it, too. A handler is not inherited.
        signal.signal(signal.SIGHUP, lambda number, frame: None)
    config.ros_domain_claim, domain = claim_domain()
    os.environ["ROS_DOMAIN_ID"] = str(domain)
    os.environ.pop("ROS_LOCALHOST_ONLY", None)
    os.environ.update(on_this_machine())
    # Not Fast DDS's shared memory: what killed processes leave behind in it, and a process that is
    # held up while it is looked at, can cost two processes their connection for good.
    os.environ["FASTDDS_BUILTIN_TRANSPORTS"] = "UDPv4"
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


@pytest.fixture(scope="module", autouse=True)
def threads_of_files_before():
    """Those that tests of other files in this process have left running, such as a client's."""
    return set(threading.enumerate()) - {threading.current_thread()}


@pytest.fixture
def caplog(caplog, threads_of_files_before):
    """Without what those threads say."""

    def ours(record):
        return threading.current_thread() not in threads_of_files_before

    caplog.handler.addFilter(ours)  # pytest has one handler for all tests
    yield caplog
    caplog.handler.removeFilter(ours)


@pytest.fixture
def alone(monkeypatch):
    """The test's node is the only one: no client waits until any other would have been heard."""
    from stream_vlm_ros.client import stream_vlm_client

    monkeypatch.setattr(stream_vlm_client, "ANNOUNCED", 0.0)


@pytest.fixture
def utc(monkeypatch):
    """Times of the day are those of this zone."""
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()
