# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The process of the node: started, stopped, interrupted at any moment, from a shell too."""

import os
import platform
import random
import resource
import signal
import subprocess
import sys
import time

import pytest
from patience import PATIENCE

pytestmark = pytest.mark.ros

SETTINGS = dict(namespace="process", device="cpu", max_cache_tokens=200)


def ended_well(node, number=signal.SIGINT):
    assert node.stop(number) == 0, node.output
    for words in ("Traceback", "KeyboardInterrupt", "terminate called", "[ERROR]", "[FATAL]"):
        assert words not in node.output, node.output
    assert node.group_is_empty()


def start_and_stop(start_node, times):
    for _ in range(times):
        node = start_node(**SETTINGS)
        node.wait_for("the node is active")
        ended_well(node)


def test_started_and_stopped_and_started_again(start_node):
    start_and_stop(start_node, 2)


@pytest.mark.parametrize("flags", [["--help"], ["-h", "--ros-args", "-p", "device:=cpu"]])
def test_asked_for_help_it_says_how_to_start_it_and_ends(flags):
    command = [sys.executable, "-m", "stream_vlm_ros.node", *flags]
    done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    assert done.returncode == 0
    assert done.stdout.startswith("usage: stream_vlm_node")
    assert "  max_cache_tokens: " in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("words", [["--model", "/x"], ["model_path:=/x"], ["/x", "--ros-args"]])
def test_what_it_would_leave_out_is_refused(words):
    done = subprocess.run(
        [sys.executable, "-m", "stream_vlm_ros.node", *words],
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    assert done.returncode == 1
    assert f"bad argument {words[0]}: parameters are given by --ros-args -p " in done.stderr


@pytest.mark.slow
def test_started_and_stopped_twenty_times_in_a_row(start_node):
    start_and_stop(start_node, 20)


def interrupted(start_node, delays):
    for delay in delays:  # s after it says that it starts
        node = start_node(**SETTINGS)
        node.wait_for("starting")
        time.sleep(delay)
        ended_well(node)


def test_ctrl_c_at_any_moment_of_its_start(start_node):
    interrupted(start_node, [0.0, 1.0, 2.0])


@pytest.mark.slow
def test_ctrl_c_at_twenty_moments_of_its_start(start_node):
    moments = random.Random(0)
    interrupted(start_node, [moments.uniform(0, 8) for _ in range(20)])


def test_ctrl_c_while_an_answer_is_written(start_node, connect):
    node = start_node(**SETTINGS, sample_fps=0.0, chunk_frames=2)
    node.wait_for("the node is active")
    client = connect("process")
    for _ in range(2):
        client.send(client.image())
    client.wait_status(lambda s: s.frames_ingested == 2)
    client.send_goal(max_new_tokens=1500).wait_for_text()
    ended_well(node)


SHELL = """
"{python}" -m stream_vlm_ros.node --ros-args -p device:=cpu -r __ns:=/shell > "{log}" 2>&1 &
pid=$!
for _ in $(seq 1200); do grep -q "starting" "{log}" && break; sleep 0.1; done
kill -INT $pid
wait $pid
echo "status $?"
"""


@pytest.mark.parametrize("shell", ["sh", "bash"])
def test_from_the_background_of_a_shell(tmp_path, shell):
    # A shell without job control starts its background processes with SIGINT ignored. What it
    # does from its start on: that it ends when it is active is shown above.
    log = tmp_path / "node.log"
    done = subprocess.run(
        [shell, "-c", SHELL.format(python=sys.executable, log=log)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert done.stdout.strip() == "status 0", log.read_text()
    assert "Traceback" not in log.read_text()


FAULTS = """
import resource
import threading

from stream_vlm_ros.node.spinning import keep_freed_memory

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def buffer():
    return b"x" * (6 << 20)

def chunk():
    frames = []
    for _ in range(10):
        [buffer(), buffer(), buffer()]  # there at once while an image is taken, then freed
        frames.append(buffer())

def images():
    chunk()
    before = faults()
    for _ in range(3):
        chunk()
    print((faults() - before) / 30)  # an image

keep_freed_memory()
thread = threading.Thread(target=images)
thread.start()
thread.join()
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="malloc is not glibc's")
def test_the_memory_of_an_image_is_that_of_the_one_before():
    done = subprocess.run(
        [sys.executable, "-c", FAULTS], capture_output=True, text=True, timeout=PATIENCE, check=True
    )
    pages = 4 * (6 << 20) / resource.getpagesize()
    assert float(done.stdout) < pages / 100, done.stdout
