# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A robot's session at a real server, whose model is a toy."""

import random
import shutil
import time

import numpy as np
import pytest
from patience import PATIENCE, wait_until
from proxy import Proxy
from serving import RunningServer

from stream_vlm_ros.config import Settings
from stream_vlm_ros.remote.pictures import Packing
from stream_vlm_ros.remote.protocol import RAW
from stream_vlm_ros.remote.worker import RemoteKeeper
from stream_vlm_ros.serve.keys import Keys
from stream_vlm_ros.serve.sessions import Sessions
from stream_vlm_ros.session.counters import Drop, FrameCounters
from stream_vlm_ros.session.question import Question
from stream_vlm_ros.session.timed_frame import TimedFrame
from stream_vlm_ros.session.worker import EngineWorker

KEY = "0123456789abcdef"


@pytest.fixture(scope="module")
def settings(tmp_path_factory):
    from toy_qwen import save_checkpoint

    return Settings(
        model_path=str(save_checkpoint(tmp_path_factory.mktemp("toy"))),
        device="cpu",
        max_cache_tokens=400,
        max_new_tokens=8,
        memory_folder=str(tmp_path_factory.mktemp("memories")),
    )


@pytest.fixture
def serve(settings):
    """Serves; what is served is ended with the test."""
    servers = []

    def start(*keys, **changes):
        sessions = Sessions(settings.changed(changes))
        sessions.load()
        servers.append(RunningServer(sessions, Keys(keys)))
        return servers[-1]

    yield start
    for server in servers:
        end(server)


def end(server):
    server.sessions.drain(5.0)
    server.close()


def url(server):
    return server.url.replace("http", "ws")


def pictures(count):
    lot = np.random.default_rng(count)
    return [lot.integers(0, 255, (56, 84, 3), np.uint8) for _ in range(count)]


def frames_of(images):
    return [TimedFrame(n * 500_000_000, image, None) for n, image in enumerate(images, 1)]


def test_raw_frames_give_the_answer_and_the_memory_of_an_engine_in_process(
    make_robot, serve, settings
):
    from stream_vlm_ros.factory import build_engine, load_model

    images = pictures(8)
    counters = FrameCounters()
    here = EngineWorker(
        lambda: build_engine(settings, load_model(settings)),
        counters,
        queue_size=8,
        max_questions=2,
    )
    here.start()
    robot = make_robot(url(serve()), packing=Packing(RAW))
    robot.worker.loaded.result(30)
    frames = frames_of(images)
    for first in range(0, len(frames), 2):
        for worker, its in ((here, counters), (robot.worker, robot.counters)):
            for _ in range(2):
                its.receive()
            worker.append(frames[first : first + 2])
            wait_until(lambda its=its: its.pending == 0)
    question = Question("What do you see?", max_new_tokens=8)
    choice = Question("Which one?", choices=("red", "green"))
    expected = [here.ask(one).future.result(30) for one in (question, choice)]
    got = [robot.worker.ask(one).future.result(30) for one in (question, choice)]
    for one, other in zip(got, expected, strict=True):
        assert (one.answer, one.error, one.choice_index) == (other.answer, None, other.choice_index)
        assert one.choice_scores == pytest.approx(other.choice_scores, abs=1e-5)
        assert (one.memory.length, one.memory.spans_ns) == (
            other.memory.length,
            other.memory.spans_ns,
        )
    assert [level.tokens for level in robot.worker.memory.levels] == [
        level.tokens for level in here.memory.levels
    ]
    assert here.stop(10)


def test_connections_that_break_off_all_the_time_lose_no_frame_and_repeat_none(make_robot, serve):
    server, lot = serve(), random.Random(7)
    with Proxy(server.port) as proxy:
        robot = make_robot(f"ws://127.0.0.1:{proxy.port}", session="cut")
        robot.worker.queue_size = 256  # all wait, whatever breaks off
        robot.worker.loaded.result(30)
        begin, times = time.monotonic(), 0
        while times < 40 or len(robot.told) < 5:
            assert time.monotonic() - begin < PATIENCE, robot.told
            if robot.counters.pending < 250:  # less than overflows
                times += 1
                robot.append(lot.randint(1, 3))
            time.sleep(lot.uniform(0.0, 0.03))
            if lot.random() < 0.4:
                proxy.cut()
        wait_until(lambda: robot.counters.pending == 0, "the end of every frame")
    (session,) = server.sessions.all()
    assert robot.counters.received == robot.counters.ingested == session.counters.ingested
    assert session.memory.frames == robot.counters.received
    wait_until(lambda: robot.worker.memory.frames == session.memory.frames)
    assert session.counters.dropped == dict.fromkeys(Drop, 0) and robot.faults == []


def test_a_server_that_begins_from_an_older_save_is_told_apart(make_robot, serve, tmp_path):
    """As one that was killed: another that has its files as they were begins again."""
    first = serve(memory_folder=str(tmp_path / "first"))
    with Proxy(first.port) as proxy:
        robot = make_robot(f"ws://127.0.0.1:{proxy.port}", session="saved")
        robot.append(2)
        robot.wait_for(2)
        saved = RemoteKeeper(robot.worker, time.time_ns).save().result(30)
        assert saved.bytes > 0
        shutil.copytree(
            tmp_path / "first",
            tmp_path / "second",
            ignore=lambda folder, names: [
                name for name in names if "." in name and not name.endswith(".safetensors")
            ],
        )
        robot.append(2)
        robot.wait_for(4)
        second = serve(memory_folder=str(tmp_path / "second"))
        proxy.target = second.port
        proxy.cut()
        robot.append(2)
        robot.wait_for(6)
    assert [one.id for one in second.sessions.all()] == ["saved"]
    wait_until(lambda: robot.worker.memory.frames == 4)  # 2 saved, 2 after
    gap = robot.worker.connection.gap
    assert "from 2.0 s to 4.0 s is lost" in gap
    assert any(gap in words for _, words in robot.told)


def test_a_session_that_another_server_takes_over_has_lost_nothing(make_robot, serve):
    first = serve()
    with Proxy(first.port) as proxy:
        robot = make_robot(f"ws://127.0.0.1:{proxy.port}", session="moved")
        robot.append(2)
        robot.wait_for(2)
        second = serve()  # of the same folder
        proxy.target = second.port
        proxy.cut()
        robot.append(2)
        robot.wait_for(4)
    wait_until(lambda: robot.worker.memory.frames == 4)
    assert robot.worker.connection.gap == ""
    wait_until(lambda: first.sessions.all() == [])


def test_a_session_is_its_keys_and_a_newer_connection_takes_it_over(make_robot, serve):
    server = serve(KEY, KEY[::-1])
    stranger = make_robot(url(server), key="another-key-of-nobody")
    assert "key" in str(stranger.worker.loaded.exception(30))
    older = make_robot(url(server), key=KEY)
    older.append(2)
    older.wait_for(2)
    other = make_robot(url(server), key=KEY[::-1])
    assert "begun" in other.worker.loaded.result(30) and other.worker.memory.frames == 0
    newer = make_robot(url(server), key=KEY)
    assert "taken up" in newer.worker.loaded.result(30) and newer.worker.memory.frames == 2
    assert "newer connection" in older.wait_until_lost()
    wait_until(lambda: older.told and "not tried again" in older.told[-1][1])


def test_a_server_that_is_drained_is_found_again_with_what_it_had(make_robot, serve):
    first = serve()
    robot = make_robot(url(first), session="drained")
    robot.append(2)
    robot.wait_for(2)
    end(first)
    assert robot.wait_until_lost()
    later = make_robot(url(serve()), session="drained")
    assert "saved memory" in later.worker.loaded.result(30)
    assert later.worker.memory.frames == 2 and later.worker.connection.gap == ""
