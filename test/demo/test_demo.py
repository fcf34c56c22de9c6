"""The demo as a newcomer runs it: three processes, real DDS, its own end."""

import os
import re
import signal
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest

pytestmark = pytest.mark.ros
slow = pytest.mark.slow


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """Two seconds at ten frames a second."""
    path = tmp_path_factory.mktemp("video") / "short.mp4"
    with av.open(str(path), "w") as output:
        stream = output.add_stream("libx264", rate=10)
        stream.width, stream.height, stream.pix_fmt = 160, 120, "yuv420p"
        for index in range(20):
            image = np.full((120, 160, 3), 12 * index, np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.pts, frame.time_base = index, Fraction(1, 10)
            output.mux(stream.encode(frame))
        output.mux(stream.encode())
    return path


def start(*arguments):
    command = [sys.executable, "-m", "stream_vlm_ros.demo", *map(str, arguments)]
    environment = {**os.environ, "DEMO_MARK": f"{os.getpid()}"}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


def survivors():
    """Processes of this test's demos that are still there: the environment's mark tells."""
    mark = f"DEMO_MARK={os.getpid()}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def test_as_it_comes_it_answers_rightly_about_its_drawn_world():
    demo = start("--seconds", 12, "--count", 6)  # a number: a busy machine takes longer
    output, _ = demo.communicate(timeout=240)
    assert demo.returncode == 0, output
    answered, right, judged = map(
        int, re.search(r"Answers +(\d+) of \d+ .*?; (\d+) of (\d+) right", output).groups()
    )
    assert 2 <= judged <= answered
    assert judged - right <= 1, output  # of a hundred answers, it gets one or two wrong
    assert "the bound held" in output
    assert survivors() == []


@slow
def test_it_asks_questions_while_the_video_runs_and_ends_well(video):
    demo = start("--video", video, "--seconds", 8, "--count", 2, "--max-cache-tokens", 256)
    output, _ = demo.communicate(timeout=240)
    assert demo.returncode == 0, output
    assert "What do you see now?" in output
    assert "2 of 2 questions answered" in output
    assert "the bound held" in output
    assert "Lost      none" in output
    for noise in ("Traceback", "[INFO]", "[WARN]", "DeprecationWarning"):
        assert noise not in output
    assert survivors() == []


@slow
def test_the_reason_is_told_at_once_when_the_node_cannot_load_its_model(video):
    demo = start("--video", video, "--model", "/nowhere/model")
    output, _ = demo.communicate(timeout=240)
    assert demo.returncode == 1
    # The node's words, not those of a wait that came to its end.
    assert "Failed: the node says: " in output and "/nowhere/model" in output
    assert survivors() == []


@slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_is_quiet_and_leaves_no_process(video, number):
    demo = start("--video", video, "--seconds", 60)
    lines = []
    while "What do you see now?" not in (lines or [""])[-1]:
        lines.append(demo.stdout.readline())
        assert demo.poll() is None, lines
    demo.send_signal(number)
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert "Traceback" not in output and "Failed" not in output
    assert survivors() == []


@slow
def test_a_video_that_is_not_there_is_one_line_and_exit_status_2():
    demo = start("--video", "nowhere.mp4")
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 2
    assert output.strip() == "demo: There is no file nowhere.mp4. Check the path."
