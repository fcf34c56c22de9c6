# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Six robots, and three replicas of Ray Serve, or two servers behind HAProxy: ``make ray``.

HAProxy is the one that Ray brings.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from urllib.request import Request, urlopen

import front
import numpy as np
import openai
import pytest
import yaml
from openai import AsyncOpenAI
from patience import wait_until
from robots import Robot

from stream_vlm_ros.engine.saving.memory_copy import about_memory
from stream_vlm_ros.remote.link import Address, LinkThread
from stream_vlm_ros.remote.pictures import Packing
from stream_vlm_ros.remote.protocol import SESSION_HEADER
from stream_vlm_ros.remote.worker import RemoteWorker
from stream_vlm_ros.session.counters import FrameCounters
from stream_vlm_ros.session.question import DisconnectedError, Question
from stream_vlm_ros.session.timed_frame import TimedFrame
from stream_vlm_ros.world.world import World

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:Using extra keyword arguments:DeprecationWarning"),  # Ray's
]

ray = pytest.importorskip("ray", reason="Ray is not installed: requirements/ray.txt")
serve = pytest.importorskip("ray.serve")
ray_app = pytest.importorskip("stream_vlm_ros.serve.ray_app")

CONFIG = Path(__file__).parents[2] / "config" / "ray_serve.yaml"

REPLICAS, ROBOTS = 3, 6
KEY = "a key of the test's own"
QUESTION = "What is visible now?"
PATIENCE = 60.0  # s
BAR = 10.0  # s for an answer after a replica was killed


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as free:
        return free.getsockname()[1]


class Service:
    """What robots and clients reach at a port of this machine."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.port = free_port()
        self.key_file = folder / "keys"
        self.key_file.touch(0o600)
        self.key_file.write_text(KEY)

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}"

    async def ask(self, client: AsyncOpenAI, name: str) -> float:
        """Ask a session over HTTP; seconds until there was an answer."""
        begin = time.monotonic()
        answer = await client.chat.completions.create(
            model=name,
            messages=[{"role": "user", "content": QUESTION}],
            max_tokens=4,
            extra_headers={SESSION_HEADER: name},
        )
        assert answer.choices[0].message.content
        return time.monotonic() - begin

    def client(self) -> AsyncOpenAI:
        return AsyncOpenAI(base_url=f"http://127.0.0.1:{self.port}/v1", api_key=KEY)

    def saved(self, name: str) -> int:
        """Stamp of the newest frame in a session's saved memory."""
        (file,) = (self.folder / "memories").rglob(f"{name}.safetensors")
        saved = about_memory(file)
        return saved.origin_ns + round(1e9 * saved.newest_timestamp)


class Cluster(Service):
    """The service on a cluster of this machine's, of which the test sees the processes."""

    @property
    def options(self):
        """Those of the file that we ship, at the size of this test."""
        (application,) = yaml.safe_load(CONFIG.read_text())["applications"]
        assert application["import_path"] == f"{ray_app.__name__}:{ray_app.application.__name__}"
        return application["args"] | {
            "key_file": str(self.key_file),
            "memory_folder": str(self.folder / "memories"),
            "save_memory_minutes": 0.05,
            "device": "cpu",
            "max_cache_tokens": 1500,
            "max_sessions": 4 * ROBOTS,
            "drain_seconds": 20.0,
            "replicas": REPLICAS,
            "replica_cpus": 0.1,
        }

    def deploy(self) -> None:
        """Deploy it, or replace every replica; returns when all run."""
        serve.start(http_options={"host": "127.0.0.1", "port": self.port})
        serve.run(ray_app.application(self.options), name=ray_app.NAME)

    async def homes(self, names: list[str]) -> dict[str, tuple[str, int]]:
        """The replica, and its process, to which requests of each of these sessions go."""
        handle = serve.get_deployment_handle(ray_app.NAME, ray_app.NAME)
        return {name: await handle.options(session_id=name).process.remote() for name in names}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with tempfile.TemporaryDirectory(prefix="ray", dir="/tmp") as own:  # names of sockets are short
        ray.init(
            num_cpus=2,
            object_store_memory=80 << 20,
            include_dashboard=False,
            log_to_driver=False,
            _temp_dir=own,
        )
        try:
            cluster = Cluster(tmp_path_factory.mktemp("cluster"))
            cluster.deploy()
            yield cluster
        finally:
            serve.shutdown()
            ray.shutdown()


@pytest.fixture(scope="module")
def pictures():
    """What each robot sees."""
    return [
        [np.asarray(World(7 + robot).render(k / 2.0)) for k in range(16)] for robot in range(ROBOTS)
    ]


@contextlib.asynccontextmanager
async def fleet(cluster, pictures, prefix):
    """Robots, each of which remembers some frames and has them saved."""
    robots = [
        Robot(cluster.url, f"{prefix}-{number}", seen, key=KEY)
        for number, seen in enumerate(pictures)
    ]
    try:
        await until(lambda: all(len(robot.ingested) >= 8 for robot in robots), robots)
        await until(lambda: all(robot.status.saved.saved_ns for robot in robots), robots)
        yield robots
    finally:
        for robot in robots:
            await robot.stop()


async def until(holds, robots):
    end = time.monotonic() + PATIENCE
    while not holds():
        told = [
            (robot.name, len(robot.sent), len(robot.ingested), robot.errors) for robot in robots
        ]
        assert time.monotonic() < end, told
        await asyncio.sleep(0.05)


async def settle(robots):
    """No robot films any more; wait until each knows what became of every frame, and has been told
    of a memory that holds those, and no other ones."""
    for robot in robots:
        robot.filming = False
    await until(lambda: all(robot.untold == set() for robot in robots), robots)
    await until(lambda: all(robot.is_told_of_all for robot in robots), robots)


def check_account(robots, hit):
    """Each frame was remembered, dropped, or was lost with the server of those that were hit, which
    was said; how many were lost."""
    for robot in robots:
        assert robot.ingested | set(robot.dropped) == set(robot.sent)
        assert robot in hit or not robot.lost
        assert robot.gaps or not robot.lost, (robot.name, robot.lost)
    return sum(len(robot.lost) for robot in robots)


def test_a_session_is_served_by_the_same_replica_whatever_is_asked(
    cluster, pictures, record_property
):
    async def run():
        async with fleet(cluster, pictures, "sticky") as robots:
            names = [robot.name for robot in robots]
            homes = await cluster.homes(names)
            for _ in range(9):
                assert await cluster.homes(names) == homes
            assert len(set(homes.values())) > 1
            assert all(len(robot.connections) == 1 for robot in robots)
            await settle(robots)
            for robot in robots:
                assert robot.ingested == set(robot.sent)
            record_property("ray", ray.__version__)
            record_property("sessions_of_each_replica", sorted(Counter(homes.values()).values()))

    asyncio.run(run())


def test_sessions_of_a_killed_replica_go_on_from_their_last_save(
    cluster, pictures, record_property
):
    async def run():
        async with fleet(cluster, pictures, "killed") as robots:
            homes = await cluster.homes([robot.name for robot in robots])
            ((_, victim), _count), *_ = Counter(homes.values()).most_common()
            hit = [robot for robot in robots if homes[robot.name][1] == victim]
            os.kill(victim, signal.SIGKILL)
            begin = time.monotonic()
            saved = {robot.name: cluster.saved(robot.name) for robot in hit}
            asked = await asyncio.gather(*(robot.ask(QUESTION) for robot in robots))
            async with cluster.client() as client:
                await asyncio.gather(*(cluster.ask(client, robot.name) for robot in hit))
            assert time.monotonic() - begin < BAR
            seconds = [one.future.result() and one.seconds for one in asked]
            assert [one.future.result().status for one in asked] == ["completed"] * ROBOTS
            assert max(seconds) < BAR
            back = [robot.connections[1][0] - begin for robot in hit]
            for robot in hit:
                _, session, _ = robot.connections[1]
                assert session.restored and session.accepted_ns == saved[robot.name]
            await asyncio.sleep(3.0)
            await settle(robots)
            lost = check_account(robots, hit)
            record_property("sessions_of_the_killed_replica", len(hit))
            record_property("longest_answer_s", round(max(seconds), 2))
            record_property("longest_until_connected_again_s", round(max(back), 2))
            record_property("frames_sent", sum(len(robot.sent) for robot in robots))
            record_property("frames_dropped", sum(len(robot.dropped) for robot in robots))
            record_property("frames_lost_after_the_last_save_and_said_so", lost)

    asyncio.run(run())


def test_a_rolling_restart_leaves_no_question_without_an_answer(cluster, pictures, record_property):
    async def run():
        async with fleet(cluster, pictures, "rolled") as robots:
            before = await cluster.homes([robot.name for robot in robots])
            deploying = asyncio.create_task(asyncio.to_thread(cluster.deploy))
            asked, over_http = [], []
            async with cluster.client() as client:
                while not deploying.done():
                    # Of the others no request says to a replica that it is theirs now.
                    told = [cluster.ask(client, robot.name) for robot in robots[: ROBOTS // 2]]
                    asking = asyncio.gather(*(robot.ask(QUESTION, 4) for robot in robots))
                    over_http += await asyncio.gather(*told)
                    asked += await asking
                    await asyncio.sleep(0.2)
            await deploying
            after = await cluster.homes([robot.name for robot in robots])
            assert set(before.values()).isdisjoint(after.values())
            asked += await asyncio.gather(*(robot.ask(QUESTION, 4) for robot in robots))
            assert {one.future.result().status for one in asked} == {"completed"}
            await settle(robots)
            for robot in robots:
                assert robot.ingested | set(robot.dropped) == set(robot.sent)
                assert (robot.gaps, robot.lost) == ([], set())
            record_property("questions", len(asked))
            record_property("questions_over_http", len(over_http))
            record_property("longest_answer_over_http_s", round(max(over_http), 2))
            record_property("longest_answer_s", round(max(one.seconds for one in asked), 2))
            record_property("frames_sent", sum(len(robot.sent) for robot in robots))
            record_property("frames_dropped", sum(len(robot.dropped) for robot in robots))
            record_property("connections", sum(len(robot.connections) for robot in robots))

    asyncio.run(run())


def test_what_a_session_saw_whose_camera_is_away_is_saved_when_the_command_ends(tmp_path, pictures):
    service = Service(tmp_path)
    command = [sys.executable, "-m", "stream_vlm_ros.cli", "serve", "--ray", "--device", "cpu"]
    command += ["--port", str(service.port), "--key-file", str(service.key_file)]
    command += ["--memory-folder", str(tmp_path / "memories"), "--max-cache-tokens", "1500"]
    command += ["--replicas", "1", "--replica-cpus", "0.1"]

    async def see():
        robot = Robot(service.url, "away", pictures[0], key=KEY)
        await until(lambda: len(robot.ingested) >= 8, [robot])
        await settle([robot])
        await robot.stop()
        return robot.status.memory.newest_ns

    with subprocess.Popen(command) as server:
        try:
            front.wait_for(service.port)
            newest_ns = asyncio.run(see())
        finally:
            server.terminate()
        assert server.wait(PATIENCE) == 130
    assert service.saved("away") == newest_ns


class NodesSide:
    """What a node with ``engine: remote`` has of a server: its own worker, fed by a thread."""

    def __init__(self, url: str, name: str, pictures: list[np.ndarray]) -> None:
        self.counters = FrameCounters()
        self.told = []
        self._pictures, self._stamp = pictures, 0
        self._thread = LinkThread()
        self.worker = RemoteWorker(
            Address(url, name, KEY),
            self.counters,
            4,
            8,
            Packing(),
            thread=self._thread,
            tell=lambda good, words: self.told.append((good, words)),
            make_header=lambda stamp_ns, frame_id: None,
        )
        self._thread.start()
        self._over = threading.Event()
        self._filming = threading.Thread(target=self._film)
        self._filming.start()

    def _film(self) -> None:
        while not self._over.wait(0.5):
            frames = []
            for _ in range(2):
                self._stamp += 250_000_000
                picture = self._pictures[self._stamp // 250_000_000 % len(self._pictures)]
                frames.append(TimedFrame(self._stamp, picture, None))
                self.counters.receive()
            self.worker.append(frames)

    def answer(self) -> float:
        """Ask, and again while the answer is that there is no connection; seconds that it took."""
        begin = time.monotonic()
        while True:
            outcome = self.worker.ask(Question(QUESTION, max_new_tokens=4)).future.result(PATIENCE)
            if outcome.error is None:
                return time.monotonic() - begin
            assert isinstance(outcome.error, DisconnectedError), outcome.error
            time.sleep(0.1)

    def stop(self) -> None:
        self._over.set()
        self._filming.join()
        wait_until(lambda: self.counters.pending == 0)
        self.worker.stop()
        self._thread.stop(5.0)


def test_a_node_goes_on_over_a_killed_replica(cluster, pictures, record_property):
    node = NodesSide(cluster.url, "node", pictures[0])
    try:
        wait_until(lambda: node.counters.ingested >= 8 and node.worker.saved.saved_ns)
        ((_, replica),) = asyncio.run(cluster.homes(["node"])).values()
        os.kill(replica, signal.SIGKILL)
        wait_until(lambda: node.worker.connection.why)
        seconds = node.answer()
        assert seconds < BAR
        assert "lost" in node.worker.connection.gap
        before = node.counters.ingested
        wait_until(lambda: node.counters.ingested > before + 8)
    finally:
        node.stop()
    assert node.counters.received == node.counters.ingested + sum(node.counters.dropped.values())
    record_property("answer_s", round(seconds, 2))
    record_property("frames", node.counters.received)
    record_property("frames_dropped", sum(node.counters.dropped.values()))


class Fronted(Service):
    """Two servers, each a process of its own, behind HAProxy."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.ports = [free_port(), free_port()]
        self.servers = [self.start(port) for port in self.ports]

    def start(self, port: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "stream_vlm_ros.cli", "serve", "--device", "cpu"]
        command += ["--port", str(port), "--key-file", str(self.key_file)]
        command += ["--memory-folder", str(self.folder / "memories")]
        command += ["--save-memory-minutes", "0.05", "--max-cache-tokens", "1500"]
        return subprocess.Popen(command)

    def sessions(self, port: int) -> set[str]:
        """Those of one server."""
        asked = Request(f"http://127.0.0.1:{port}/v1/sessions")
        asked.add_header("Authorization", f"Bearer {KEY}")
        with urlopen(asked) as answer:
            return {one["id"] for one in json.load(answer)["data"]}


@pytest.fixture
def fronted(tmp_path):
    service = Fronted(tmp_path)
    try:
        for port in service.ports:
            front.wait_for(port)
        with front.fronted(service.ports, service.port):
            yield service
    finally:
        for server in service.servers:
            server.terminate()
        assert [server.wait(PATIENCE) for server in service.servers[:1]] == [130]


def test_behind_haproxy_sessions_are_spread_and_outlive_a_server(
    fronted, pictures, record_property
):
    async def run():
        async with fleet(fronted, pictures, "fronted") as robots:
            first, second = map(fronted.sessions, fronted.ports)
            assert {len(first), len(second)} == {ROBOTS // 2}
            assert all(len(robot.connections) == 1 for robot in robots)
            async with fronted.client() as client:
                for name in first | second:
                    await fronted.ask(client, name)
                with pytest.raises(openai.BadRequestError, match="name the session in the header"):
                    await client.chat.completions.create(
                        model=robots[0].name, messages=[{"role": "user", "content": QUESTION}]
                    )
                assert [*map(fronted.sessions, fronted.ports)] == [first, second]
                fronted.servers[1].kill()
                asked = await asyncio.gather(*(robot.ask(QUESTION) for robot in robots))
                assert {one.future.result().status for one in asked} == {"completed"}
                assert max(one.seconds for one in asked) < BAR
                for name in second:
                    await fronted.ask(client, name)
            await settle(robots)
            check_account(robots, [robot for robot in robots if robot.name in second])
            assert fronted.sessions(fronted.ports[0]) == first | second
            record_property("longest_answer_s", round(max(one.seconds for one in asked), 2))

    asyncio.run(run())
