# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A worker of a session at a server that knows the protocol alone."""

from types import SimpleNamespace

import numpy as np
import pytest
from model_server import ModelServer
from patience import PATIENCE, wait_until

from stream_vlm_ros.remote import link as links
from stream_vlm_ros.remote.link import Address, LinkThread
from stream_vlm_ros.remote.pictures import Packing
from stream_vlm_ros.remote.worker import RemoteWorker
from stream_vlm_ros.session.counters import FrameCounters
from stream_vlm_ros.session.question import Question
from stream_vlm_ros.session.timed_frame import TimedFrame

SECOND = 10**9


class Robot:
    """A worker, what it counts, and what it tells."""

    def __init__(self, url, key="", packing=None, session="robot"):
        self.counters, self.faults, self.told, self.changes = FrameCounters(), [], [], 0
        self.thread = LinkThread()
        self.worker = RemoteWorker(
            Address(url, session, key),
            self.counters,
            2,
            8,
            packing or Packing(),
            changed=self._changed,
            report=self.faults.append,
            thread=self.thread,
            tell=lambda good, words: self.told.append((good, words)),
            lost=lambda words: self.told.append((False, words)),
            make_header=lambda stamp_ns, frame_id: SimpleNamespace(
                stamp=stamp_ns, frame_id=frame_id
            ),
        )
        self.stamp = 0

    def _changed(self):
        self.changes += 1

    def start(self):
        self.thread.start()
        return self

    def append(self, count=1, image=None):
        frames = []
        for _ in range(count):
            self.stamp += SECOND
            picture = np.full((56, 84, 3), 200, np.uint8) if image is None else image
            header = SimpleNamespace(stamp=self.stamp, frame_id="camera")
            frames.append(TimedFrame(self.stamp, picture, header))
            self.counters.receive()
        self.worker.append(frames)

    def ask(self, text="What is there?", progress=None):
        return self.worker.ask(Question(text), progress)

    def wait_for(self, ingested):
        wait_until(lambda: self.counters.ingested == ingested, f"{ingested} frames")

    def wait_until_lost(self):
        return wait_until(lambda: self.worker.connection.why, "the end of the connection")

    def wait_until_connected(self):
        wait_until(lambda: not self.worker.connection.why, "the connection")


@pytest.fixture(autouse=True)
def impatient(monkeypatch):
    """Of pauses little is left; a server that is there is waited for, however slow the machine."""
    waits = dict(OPEN=PATIENCE, SEND=PATIENCE, PONG=PATIENCE, CLOSE=0.3, PING=0.2)
    for name, seconds in dict(waits, FIRST_PAUSE=0.05, LONGEST_PAUSE=0.2).items():
        monkeypatch.setattr(links, name, seconds)


@pytest.fixture
def short_of_patience(monkeypatch):
    """For servers that do not answer."""
    for name, seconds in dict(OPEN=2.0, SEND=0.5, PONG=0.3).items():
        monkeypatch.setattr(links, name, seconds)


@pytest.fixture
def server():
    servers = ModelServer()
    yield servers
    servers.close()


@pytest.fixture
def make_robot():
    robots = []

    def make(*given, **options):
        robots.append(Robot(*given, **options))
        return robots[-1].start()

    yield make
    for robot in robots:
        assert robot.thread.stop(5)


@pytest.fixture
def robot(make_robot, server):
    robot = make_robot(server.url)
    robot.worker.loaded.result(10)
    return robot
