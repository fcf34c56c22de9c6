# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""No process of this package leaves anything behind, whatever ends it and whenever.

Here with Fast DDS's shared memory, which other tests do without: its files in /dev/shm outlive a
process that does not destroy its node.
"""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import shared_memory
from patience import PATIENCE

pytestmark = pytest.mark.ros

SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]
slow = pytest.mark.slow
PROFILE = Path(__file__).parents[2] / "config" / "fastdds.xml"
BUILTIN = {"FASTDDS_BUILTIN_TRANSPORTS": "DEFAULT"}  # which is shared memory, and UDP
SHIPPED = {
    "FASTDDS_BUILTIN_TRANSPORTS": "DEFAULT",
    "FASTDDS_DEFAULT_PROFILES_FILE": str(PROFILE),
    "FASTRTPS_DEFAULT_PROFILES_FILE": str(PROFILE),
}

# Keeps the results of the sixty signals. Where other ROS programs are killed meanwhile, their
# leavings mix in: give it a /dev/shm of its own (unshare -m, and mount -t tmpfs tmpfs /dev/shm).
COMMAND = (
    "make test-slow TESTS=test/node/test_endings.py "
    'PYTEST_ARGS="-k sixty --results ../bench/results/signals.json"'
)

PLAIN = """
import rclpy
from rclpy.executors import ExternalShutdownException

rclpy.init()
node = rclpy.create_node("plain")
# Only once it spins: rclpy itself complains of a signal that comes while it makes its executor.
node.create_timer(0.05, lambda: print("up", flush=True))
try:
    rclpy.spin(node)
except (KeyboardInterrupt, ExternalShutdownException):
    pass
node.destroy_node()
rclpy.try_shutdown()
"""


class Program:
    """A process with its output, and what it holds and leaves in shared memory."""

    def __init__(self, arguments, environment=BUILTIN):
        self._there_before = shared_memory.files()
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **environment},
            start_new_session=True,
        )
        self.output = ""
        self.held = set()  # of shared memory, at any time
        threading.Thread(target=self._watch, daemon=True).start()

    def _watch(self):
        # Others on this machine leave files behind, too: its own are those that it made and held.
        while self.process.poll() is None:
            self._look()
            time.sleep(0.05)

    def _look(self):
        self.held |= shared_memory.held_by(self.process.pid) - self._there_before

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()

    def read_to(self, words):
        for line in self.process.stdout:
            self.output += line
            if words in line:
                return
        pytest.fail(f"{words!r} never came:\n{self.output}")

    def end(self, number=None):
        """Send a signal, if one is given, and wait; the exit status, and how long it took."""
        began = time.monotonic()
        if number is not None:
            self._look()  # a watcher that was held up has missed all of a short life
            self.process.send_signal(number)
        self.output += self.process.communicate(timeout=PATIENCE)[0]
        return self.process.returncode, time.monotonic() - began

    @property
    def left(self):
        return shared_memory.orphans(self.held)


def module(name, *arguments, **parameters):
    settings = [text for p in parameters.items() for text in ("-p", "{}:={}".format(*p))]
    return ["-m", f"stream_vlm_ros.{name}", *arguments, "--ros-args", *settings]


def ended_well(program, number, status):
    assert program.end(number)[0] == status, program.output
    assert "Traceback" not in program.output, program.output
    assert program.left == set()


@pytest.mark.parametrize("environment", [BUILTIN, SHIPPED], ids=["default", "shipped profile"])
def test_a_plain_node_and_ours_leave_nothing_in_shared_memory(environment):
    for arguments, up in (["-c", PLAIN], "up"), (module("node", device="cpu"), "node is active"):
        with Program(arguments, environment) as program:
            program.read_to(up)
            ended_well(program, signal.SIGINT, 0)
            assert program.held  # shared memory is what was tried


@pytest.mark.parametrize(
    ("number", "moment"),
    [
        (signal.SIGHUP, "loading the model"),
        (signal.SIGTERM, "the node is active"),
        pytest.param(signal.SIGTERM, "loading the model", marks=slow),
        pytest.param(signal.SIGHUP, "the node is active", marks=slow),
    ],
)
def test_the_node_ends_well_by_every_signal(number, moment):
    with Program(module("node", device="cpu")) as program:
        program.read_to(moment)
        ended_well(program, number, 0)


def one_of_each(first):
    """All signals; but for one they are for make test-slow."""
    return [first, *(pytest.param(other, marks=slow) for other in SIGNALS if other != first)]


@pytest.mark.parametrize("number", one_of_each(signal.SIGHUP))
def test_the_camera_ends_well_by_every_signal(number):
    with Program(module("demo.source_node", source="world:7")) as program:
        program.read_to("on /image")
        ended_well(program, number, 0)
        assert program.held


@pytest.mark.parametrize("number", one_of_each(signal.SIGTERM))
def test_the_client_ends_well_by_every_signal_and_says_that_it_did_not_finish(number):
    with Program(module("demo.client")) as program:
        time.sleep(2.0)  # it says nothing while it waits for a node
        ended_well(program, number, 130)


def test_the_replays_player_notes_that_it_was_interrupted(tmp_path):
    job = tmp_path / "job.json"
    job.write_text(json.dumps({"result": str(tmp_path / "result.jsonl"), "source": "world:7"}))
    with Program(module("replay.live.player", str(job))) as program:
        while not (tmp_path / "result.jsonl").exists():
            assert program.process.poll() is None, program.process.communicate()[0]
            time.sleep(0.05)
        ended_well(program, signal.SIGHUP, 130)
    last = json.loads((tmp_path / "result.jsonl").read_text().splitlines()[-1])
    assert (last["event"], last["interrupted"]) == ("end", True)


@pytest.mark.parametrize(
    ("arguments", "status"),
    [
        (module("node", sample_fps="-3.0"), 1),
        (module("demo.source_node", rate="fast"), 2),
        (module("demo.source_node", source="nowhere.mp4"), 2),
        (module("demo.client", patience="long"), 2),
    ],
)
def test_what_is_refused_leaves_nothing_either(arguments, status):
    with Program(arguments) as program:
        ended_well(program, None, status)


WAITS_IN_C = """
import ctypes
from rclpy.node import Node
from stream_vlm_ros.processes.ros_process import end_quietly_on_signals, leave, run

class Stuck(Node):
    def __init__(self):
        super().__init__("stuck")
    def close(self):
        self.destroy_node()
    def work(self):
        print("up", flush=True)
        while True:
            ctypes.CDLL(None).sleep(60)  # as a read from a camera that has died

end_quietly_on_signals()
leave(run("stuck", Stuck, Stuck.work))
"""


def test_work_that_does_not_look_up_is_ended_in_time():
    with Program(["-c", WAITS_IN_C]) as program:
        program.read_to("up")
        status, seconds = program.end(signal.SIGTERM)
        assert (status, program.left) == (0, set())
        assert seconds < 30.0  # the work takes a minute


def test_nohup_keeps_it_alive():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # which its children inherit
    try:
        ignoring = Program(module("demo.source_node", source="world:7"))
    finally:
        signal.signal(signal.SIGHUP, before)
    with ignoring as program:
        program.read_to("on /image")
        program.process.send_signal(signal.SIGHUP)
        time.sleep(1.0)
        assert program.process.poll() is None
        ended_well(program, signal.SIGINT, 0)


class Traffic:
    """Images at 10/s and questions with long answers, for whatever node is there."""

    def __init__(self, graph, namespace):
        from sensor_msgs.msg import Image
        from stream_vlm.srv import Query

        self._request = Query.Request(question="What do you see?", max_new_tokens=1500)
        self._graph = graph
        self._images = graph.node.create_publisher(Image, f"/{namespace}/image", 10)
        self._query = graph.node.create_client(Query, f"/{namespace}/stream_vlm/query")
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exception):
        self._over.set()
        self._thread.join()
        self._graph.node.destroy_publisher(self._images)
        self._graph.node.destroy_client(self._query)

    def _run(self):
        from sensor_msgs.msg import Image

        message = Image(height=56, width=84, encoding="rgb8", step=252, data=bytes(56 * 252))
        while not self._over.wait(0.1):
            message.header.stamp = self._graph.node.get_clock().now().to_msg()
            self._images.publish(message)
            if self._query.service_is_ready():
                self._query.call_async(self._request)


@slow
def test_sixty_signals_at_random_moments(graph, record_property):
    count, seed, limit = 60, 0, 5.0  # s; launch's patience between two signals
    chance = random.Random(seed)
    took, sent = [], dict.fromkeys((number.name for number in SIGNALS), 0)
    settings = dict(device="cpu", max_cache_tokens=512, sample_fps=0.0, chunk_frames=2)
    arguments = [*module("node", **settings), "-r", "__ns:=/endings"]
    with Traffic(graph, "endings"):
        for _ in range(count):
            number, delay = chance.choice(SIGNALS), chance.uniform(0.0, 3.0)
            with Program(arguments, SHIPPED) as program:
                program.read_to("configure: done")
                time.sleep(delay)
                status, seconds = program.end(number)
                assert status == 0, program.output
                assert "Traceback" not in program.output, program.output
                assert program.held and program.left == set()
                assert not in_session(program.process.pid)
            took.append(seconds)
            sent[number.name] += 1
    for name, value in dict(
        command=COMMAND,
        signals=count,
        seed=seed,
        **sent,
        worst_seconds=round(max(took), 3),
        median_seconds=round(sorted(took)[count // 2], 3),
        limit_seconds=limit,
    ).items():
        record_property(name, value)
    assert max(took) < limit


def in_session(leader):
    """Processes of a session that are there, ended ones that nobody waited for included."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[3]) == leader:
            found.append(int(status.parent.name))
    return found
