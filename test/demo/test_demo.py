# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The demo as a newcomer runs it: three processes, real DDS, its own end."""

import contextlib
import fcntl
import os
import pty
import re
import signal
import socket
import subprocess
import sys
import termios
import time
import urllib.request
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from typer.testing import CliRunner

from stream_vlm_ros.cli import app
from stream_vlm_ros.demo import console_process, system

rclpy = pytest.importorskip("rclpy")
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


def start(*arguments, **more):
    """A demo without the console, unless its environment says otherwise."""
    command = [sys.executable, "-m", "stream_vlm_ros.demo", *map(str, arguments)]
    environment = {**os.environ, "DEMO_MARK": f"{os.getpid()}", "DEMO_WEB": "0", **more}
    return subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment,
        start_new_session=True,
    )


class Terminal:
    """A demo on a terminal of its own."""

    def __init__(self, *arguments):
        self._master, slave = pty.openpty()
        command = [sys.executable, "-m", "stream_vlm_ros.demo", *map(str, arguments)]
        self.process = subprocess.Popen(
            command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env={
                **os.environ,
                "DEMO_MARK": f"{os.getpid()}",
                "DEMO_WEB": "0",
                "TERM": "xterm",
                "COLUMNS": "200",
            },
            # Its own session, led from this terminal: so Ctrl-C comes as a signal.
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY),
        )
        os.close(slave)
        self.text = ""

    def shows(self, words):
        """What is shown until ``words`` are, from where the last call came to."""
        before = self.text
        while words not in self.text:
            try:
                self.text += os.read(self._master, 65536).decode(errors="replace")
            except OSError:  # the terminal has no other end any more
                raise AssertionError(f"never showed {words!r}:\n{before}\n{self.text}") from None
        shown, self.text = self.text.split(words, 1)
        return shown

    def type(self, text):
        os.write(self._master, text.encode())

    def hang_up(self):
        os.close(self._master)

    def ends(self):
        """The exit status, and what was shown until then."""
        with contextlib.suppress(OSError):
            while read := os.read(self._master, 65536):
                self.text += read.decode(errors="replace")
        status = self.process.wait(timeout=60)
        os.close(self._master)
        return status, self.text


def run_verb(*options):
    """``stream-vlm demo``, in this process: for what is refused before anything starts."""
    return CliRunner().invoke(app, ["demo", *map(str, options)], env={"COLUMNS": "200"})


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


def test_as_it_comes_it_answers_rightly_about_its_drawn_world_and_shows_it_in_the_browser():
    pytest.importorskip("nicegui", reason="the console is not installed")
    # A number of questions: a busy machine takes longer.
    demo = start("--seconds", 12, "--count", 6, DEMO_WEB="1")
    while "Browser" not in (line := demo.stdout.readline()):
        assert demo.poll() is None
    address = re.search(r"http://127\.0\.0\.1:\d+", line)[0]
    while demo.poll() is None and not is_served(f"{address}/cameras/0/picture"):
        time.sleep(0.2)
    assert demo.poll() is None
    output, _ = demo.communicate(timeout=240)
    assert demo.returncode == 0, output
    answered, right, judged = map(
        int, re.search(r"Answers +(\d+) of \d+ .*?; (\d+) of (\d+) right", output).groups()
    )
    assert 2 <= judged <= answered
    assert judged - right <= 1, output  # of a hundred answers, it gets one or two wrong
    assert "the bound held" in output
    assert survivors() == []


def is_served(address):
    """Whether a picture can be seen there."""
    with contextlib.suppress(OSError), urllib.request.urlopen(address, timeout=5) as reply:
        return reply.read(2) == b"\xff\xd8"
    return False


class StartedProcesses:
    """Of which one is started, and has ended."""

    def __init__(self):
        self.started = []

    def start(self, name, module, *arguments):
        self.started.append((name, module, *arguments))

    def status(self, name):
        return 2

    def tail_of(self, name, lines):
        return "stream-vlm: port 8080 is taken"


def test_a_console_that_cannot_be_or_ends_is_said_once_and_nothing_more(monkeypatch):
    processes = StartedProcesses()
    monkeypatch.setattr(console_process, "why_no_console", lambda: "it needs nicegui: pip ...")
    console = console_process.ConsoleProcess(processes)
    assert console.start() == "it needs nicegui: pip ..."
    assert (console.news(), processes.started) == ("", [])
    monkeypatch.setattr(console_process, "why_no_console", lambda: "")
    with socket.socket() as taken:
        with contextlib.suppress(OSError):  # or somebody else has it
            taken.bind(("127.0.0.1", 8080))
        assert re.match(r"http://127\.0\.0\.1:(?!8080)\d+ ", console.start())
    assert processes.started[0][1:4] == ("stream_vlm_ros.web", "--node", "/stream_vlm")
    assert "port 8080 is taken" in console.news() and console.news() == ""


def test_on_a_terminal_typed_questions_are_answered_until_ctrl_c():
    demo = Terminal("--seconds", 1, "--count", 1)
    introduced = demo.shows("node list")
    assert "the small model of the package, which knows only its drawn world" in introduced
    assert all(len(line.rstrip()) <= 80 for line in introduced.splitlines())
    domain = int(re.search(r"export ROS_DOMAIN_ID=(\d+) ", introduced)[1])
    demo.shows("Your turn")
    demo.shows("? ")
    with node_of(rclpy.Context(), domain) as looking:
        end = time.monotonic() + 20
        while ("stream_vlm", "/") not in looking.get_node_names_and_namespaces():
            assert time.monotonic() < end, "the domain that is printed is another one"
            time.sleep(0.1)
    demo.type("help\n\nWhat do you see now?\n")  # help, and nothing, are no questions
    for _ in range(2):
        demo.shows("Ask, for example:")
        assert "?" in demo.shows("What appeared first?")
    assert "not answered" not in demo.shows("first token")
    demo.shows("? ")
    demo.type("\x03")
    status, shown = demo.ends()
    assert "2 of 2 questions answered" in shown
    assert status == 0 and "Traceback" not in shown
    assert survivors() == []


@contextlib.contextmanager
def node_of(context, domain):
    rclpy.init(context=context, domain_id=domain)
    node = rclpy.create_node("looking", context=context)
    try:
        yield node
    finally:
        node.destroy_node()
        context.try_shutdown()


@slow
def test_ctrl_d_ends_the_prompt_as_well():
    demo = Terminal("--seconds", 1, "--count", 1)
    demo.shows("Your turn")
    demo.shows("? ")
    demo.type("\x04")
    status, shown = demo.ends()
    assert "1 of 1 question answered" in shown
    assert status == 0 and survivors() == []


@slow
def test_ctrl_c_while_an_answer_is_written_comes_to_the_summary_as_well():
    demo = Terminal("--seconds", 1, "--count", 1)
    demo.shows("Your turn")
    demo.shows("? ")
    demo.type("What do you see now?\n")
    demo.shows("Asking")
    demo.type("\x03")
    status, shown = demo.ends()
    assert "2 of 2 questions answered" in shown
    assert status == 0 and survivors() == []


class InterruptedLooks:
    """Processes that hold; at the first look at them Ctrl-C comes."""

    def __init__(self, *_):
        self.looks, self.stopped = 0, False

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def start(self, *_, **__):
        pass

    def error_of(self, name):
        return None

    def status(self, name):
        self.looks += 1
        if self.looks == 1:
            raise KeyboardInterrupt
        return 0 if self.stopped or name == "client" else None

    def stop(self):
        self.stopped = True
        return []


@pytest.mark.parametrize("typed", [True, False])
def test_ctrl_c_while_the_processes_are_looked_at_comes_to_the_summary_too(
    typed, video, monkeypatch
):
    class Shown(system.Prompt):
        def __init__(self, *examples):
            super().__init__(*examples)
            self.open = typed  # else nothing has been asked for yet

    for name, stand_in in (("Prompt", Shown), ("Processes", InterruptedLooks)):
        monkeypatch.setattr(system, name, stand_in)
    monkeypatch.setattr(system, "on_a_terminal", lambda: True)
    ended = run_verb("--video", video, "--seconds", 1)
    assert ended.exit_code == (0 if typed else 130)


@slow
def test_a_node_that_dies_while_somebody_types_is_said_at_once():
    demo = Terminal("--seconds", 1, "--count", 1)
    demo.shows("Your turn")
    demo.shows("? ")
    demo.type("What do you")
    os.kill(process_of("stream_vlm_ros.node"), signal.SIGKILL)
    status, shown = demo.ends()
    assert "Failed: the node ended with status -9" in shown
    assert status == 1 and survivors() == []


@slow
def test_a_terminal_that_is_closed_leaves_no_process():
    demo = Terminal("--seconds", 1, "--count", 1)
    demo.shows("Your turn")
    demo.shows("? ")
    demo.hang_up()
    demo.process.wait(timeout=60)
    assert survivors() == []


@slow
def test_it_asks_questions_while_the_video_runs_and_ends_well(video):
    demo = start("--video", video, "--seconds", 8, "--count", 2, "--max-cache-tokens", 256)
    output, _ = demo.communicate(timeout=240)
    assert demo.returncode == 0, output
    assert "What do you see now?" in output
    assert "2 of 2 questions answered" in output
    assert "of anything else it does not know what it sees" in output.partition("2 of 2")[0]
    assert "the bound held" in output
    assert "Lost      none" in output
    for noise in ("Traceback", "[INFO]", "[WARN]", "DeprecationWarning"):
        assert noise not in output
    assert survivors() == []


@slow
def test_the_reason_is_told_at_once_when_the_node_cannot_load_its_model(video, tmp_path):
    (tmp_path / "config.json").write_text("{}")
    demo = start("--video", video, "--model", tmp_path)
    output, _ = demo.communicate(timeout=240)
    assert demo.returncode == 1
    # The node's words, not those of a wait that came to its end.
    assert "Failed: the node says: " in output and str(tmp_path) in output
    assert survivors() == []


@slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
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
def test_a_camera_that_dies_ends_it_with_status_1(video):
    demo = start("--video", video, "--seconds", 60)
    while "What do you see now?" not in demo.stdout.readline():
        assert demo.poll() is None
    os.kill(process_of("stream_vlm_ros.demo.source_node"), signal.SIGKILL)
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 1
    assert "the source ended with status -9" in output
    assert survivors() == []


def process_of(module):
    """The process of a demo of this test that runs a module."""
    for pid in survivors():
        command = (Path("/proc") / str(pid) / "cmdline").read_bytes().decode().split("\0")
        if module in command:
            return pid
    raise AssertionError(f"no {module} runs")


ON_A_GRAPH_WITH_THE_NODE = """
import contextlib, os
from stream_vlm_ros.cli import app
from stream_vlm_ros.demo import system
from stream_vlm_ros.demo import system

own = {"ROS_DOMAIN_ID": os.environ["ROS_DOMAIN_ID"]}
system.own_graph = lambda logs, domain: contextlib.nullcontext(own)
app(["demo", "--seconds", "30"])
"""


def test_a_node_of_its_name_that_is_there_already_is_said():
    context = rclpy.Context()
    rclpy.init(context=context)
    node = rclpy.create_node("stream_vlm", context=context)
    try:
        done = subprocess.run(
            [sys.executable, "-c", ON_A_GRAPH_WITH_THE_NODE],
            capture_output=True,
            text=True,
            timeout=120,
        )
    finally:
        node.destroy_node()
        context.try_shutdown()
    assert done.returncode == 1
    assert "two nodes named /stream_vlm run on this ROS graph" in " ".join(done.stdout.split())
    assert survivors() == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--video", "nowhere.mp4"], "video: There is no file nowhere.mp4. Check the path."),
        (["--seconds", 0], "seconds must lie in [1.0, 1000000.0], got 0.0"),
        (["--size", "big"], "size: "),
        (["--device", "gpu"], "device: must be auto, cpu, cuda or cuda:N, got 'gpu'"),
        (["--model", Path(__file__).parent], f"{Path(__file__).parent} has no config.json"),
        (["--max-cache-tokens", 5], "max_cache_tokens must be 0 (as many as fit) or at least 64"),
        (["--logs", "/dev/null/logs"], "--logs /dev/null/logs cannot be used: "),
        (["--logs", __file__], f"{__file__} is a file, not a folder"),
        (["--logs", ""], "--logs is empty: name a folder"),
    ],
)
def test_a_value_that_is_wrong_is_one_line_and_exit_status_2(options, words):
    told = run_verb(*options)
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr.startswith(f"stream-vlm: {words}") and len(told.stderr.splitlines()) == 1


@pytest.mark.parametrize("name", ["node.log", "ros"])
def test_logs_of_somebody_elses_are_left_alone_and_said(tmp_path, name):
    (tmp_path / name).write_text("not ours")
    told = run_verb("--logs", tmp_path)
    assert (told.exit_code, told.stdout) == (2, "")
    assert f"{tmp_path} holds {name}, which this program did not put there" in told.stderr
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert (tmp_path / name).read_text() == "not ours"


@pytest.mark.parametrize("option", ["seconds", "rate", "count", "fps"])
def test_a_text_in_place_of_a_number_is_refused_as_by_every_verb(option):
    told = run_verb(f"--{option}", "fast")
    assert (told.exit_code, told.stdout) == (2, "")
    assert told.stderr.startswith("Usage: ") and f"'--{option}'" in told.stderr


def test_the_seconds_of_make_are_taken_and_checked_as_well(monkeypatch):
    monkeypatch.setenv("DEMO_SECONDS", "soon")
    told = run_verb()
    assert (told.exit_code, told.stdout) == (2, "")
    assert "Invalid value for '--seconds' (env var: 'DEMO_SECONDS')" in told.stderr
    monkeypatch.setenv("DEMO_SECONDS", "0.5")
    assert "seconds must lie in" in run_verb().stderr
    assert "seconds must lie in [1.0, 1000000.0], got 0.25" in run_verb("--seconds", 0.25).stderr


@slow
@pytest.mark.parametrize("after", [0.0, 0.5, 1.5, 3.0])
def test_ctrl_c_while_it_starts_its_processes_is_quiet(after):
    demo = start("--seconds", 60)
    assert "stream_vlm demo" in demo.stdout.readline()
    time.sleep(after)
    demo.send_signal(signal.SIGINT)
    output, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130, output
    assert "Traceback" not in output
    assert survivors() == []
