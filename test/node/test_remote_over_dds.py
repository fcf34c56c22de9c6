# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The node with its memory at a server, on a robot that has no torch."""

import os
import re
import time
from pathlib import Path

import pytest
from model_server import ModelServer
from patience import PATIENCE, wait_until

from stream_vlm_ros.client.messages import nanoseconds
from stream_vlm_ros.session.counters import Drop

pytestmark = pytest.mark.ros

ROOT = Path(__file__).resolve().parents[2]
FAST = dict(sample_fps=0.0, chunk_frames=2, max_chunk_delay=0.5, status_period=0.2)
MODULES = {"google-re2": "re2", "pyyaml": "yaml"}


def required(name):
    lines = (ROOT / "requirements" / f"{name}.txt").read_text().splitlines()
    names = [re.split(r"[<>=\[]", line)[0] for line in lines if line and line[0] != "#"]
    return {MODULES.get(one, one.replace("-", "_")) for one in names}


@pytest.fixture(scope="module")
def thin(tmp_path_factory):
    """An environment in which what requirements/remote.txt does not name is not installed."""
    folder = tmp_path_factory.mktemp("absent")
    missing = required("runtime") - required("remote")
    assert {"torch", "transformers", "av", "safetensors"} <= missing
    for name in missing:
        (folder / f"{name}.py").write_text(f"raise ModuleNotFoundError('{name}', name='{name}')")
    return {"PYTHONPATH": os.pathsep.join([str(folder), os.environ.get("PYTHONPATH", "")])}


@pytest.fixture
def start_thin(start_node, thin):
    """Starts a node with its memory at an address."""

    def start(url, **options):
        own = dict(engine="remote", engine_url=url, model_path="''", environment=thin)
        return start_node(**own, **FAST, **options)

    return start


def sent(client, count):
    stamps = []
    for _ in range(count):
        message = client.image()
        client.send(message)
        stamps.append(nanoseconds(message.header.stamp))
    return stamps


def balanced(status):
    drops = sum(getattr(status, cause.value) for cause in Drop)
    return status.frames_received == status.frames_ingested + status.frames_pending + drops


def test_a_robot_without_torch_asks_saves_loads_and_forgets(start_thin, serve, connect):
    from stream_vlm.srv import ListMemories, LoadMemory, SaveMemory

    server = serve(max_cache_tokens=400, memory_name="memory")
    node = start_thin(server.url.replace("http", "ws"), namespace="thin")
    node.wait_for("the node is active")
    client = connect("thin")
    client.stamp_ns = time.time_ns()
    stamps = sent(client, 4)
    status = client.wait_status(lambda s: s.frames == 4)
    assert (status.connection_error, status.gap) == ("", "") and balanced(status)
    reply = client.ask()
    assert (reply.error_code, reply.error_message) == (0, "") and reply.answer_tokens > 0
    assert nanoseconds(reply.newest_stamp) == stamps[-1]
    assert reply.header.frame_id == "camera_optical_frame"
    called = client.graph.call
    done = called(SaveMemory, f"{client.name}/save_memory", SaveMemory.Request(name="noon"))
    assert done.success and done.bytes > 0, done.message
    sent(client, 2)
    client.wait_status(lambda s: s.frames == 6)
    names = called(ListMemories, f"{client.name}/list_memories").names
    assert names == ["noon"]
    done = called(LoadMemory, f"{client.name}/load_memory", LoadMemory.Request(name="noon"))
    assert done.success and nanoseconds(done.newest_stamp) == stamps[-1], done.message
    client.wait_status(lambda s: s.frames == 4)
    done = called(LoadMemory, f"{client.name}/load_memory", LoadMemory.Request(name="none"))
    assert not done.success and "none" in done.message
    sent(client, 2)
    status = client.wait_status(lambda s: s.frames == 6)
    assert client.reset().success
    status = client.wait_status(lambda s: s.frames == 0)
    assert balanced(status) and client.ask().error_code == reply.EMPTY_MEMORY
    mapped = Path(f"/proc/{node.process.pid}/maps").read_text()
    assert "libtorch" not in mapped and "cv2" not in mapped
    (session,) = server.sessions.all()
    assert session.id == "thin.stream_vlm"


def test_each_camera_has_a_session_of_its_own(start_thin, serve, connect):
    from stream_vlm.srv import Query

    server = serve(max_cache_tokens=400)
    url = server.url.replace("http", "ws")
    node = start_thin(url, namespace="pair", sources="front,rear")
    node.wait_for("the node is active")
    front, rear = (connect("pair", camera=name) for name in ("front", "rear"))
    sent(front, 2)
    sent(rear, 4)
    front.wait_status(lambda s: s.frames == 2)
    rear.wait_status(lambda s: s.frames == 4)
    both = front.graph.call(Query, f"{front.name}/query", Query.Request(question="What?"))
    assert [(one.source, one.error_code) for one in both.answers] == [("front", 0), ("rear", 0)]
    assert [one.cache_status.frames for one in both.answers] == [2, 4]
    names = sorted(one.id for one in server.sessions.all())
    assert names == ["pair.stream_vlm.front", "pair.stream_vlm.rear"]


def test_a_server_that_goes_is_told_at_once_and_one_that_comes_back_is_gone_on_with(
    start_thin, connect
):
    server = ModelServer()
    node = start_thin(server.url, namespace="lost")
    node.wait_for("the node is active")
    client = connect("lost")
    assert client.set_parameter("max_chunk_delay", 0.0).successful  # chunks are whole
    client.stamp_ns = time.time_ns()
    sent(client, 2)
    client.wait_status(lambda s: s.frames_ingested == 2)
    port, session = server._port, server.session
    server.close()
    status = client.wait_status(lambda s: s.connection_error != "")
    assert server.url in status.connection_error and nanoseconds(status.disconnected_since) > 0
    began = time.monotonic()
    reply = client.ask()
    assert reply.error_code == reply.DISCONNECTED and time.monotonic() - began < PATIENCE / 4
    sent(client, 8)  # four chunks, and two may wait
    status = client.wait_status(lambda s: s.dropped_overflow == 4)
    assert balanced(status) and status.frames_pending == 4
    health = client.diagnostic("model and memory", lambda d: server.url in d.message)
    assert health.level == b"\x02"
    server = ModelServer(port)
    server.session = session
    status = client.wait_status(lambda s: s.frames_ingested == 6)
    assert (status.connection_error, status.frames_pending) == ("", 0) and balanced(status)
    assert client.ask().error_code == 0
    server.close()
    client.wait_status(lambda s: s.connection_error != "")
    began = time.monotonic()
    assert node.stop() == 0
    assert time.monotonic() - began < PATIENCE / 4
    wait_until(node.group_is_empty)


def test_what_a_server_that_begins_again_has_lost_is_in_the_log(start_thin, connect):
    server = ModelServer()
    node = start_thin(server.url, namespace="gap")
    node.wait_for("the node is active")
    client = connect("gap")
    client.stamp_ns = time.time_ns()
    sent(client, 2)
    client.wait_status(lambda s: s.frames_ingested == 2)
    port, session = server._port, server.session.begun_again()
    server.close()
    client.wait_status(lambda s: s.connection_error != "")
    server = ModelServer(port)
    server.session = session
    gap = client.wait_status(lambda s: s.gap != "").gap
    assert "what it had seen is lost" in gap
    node.wait_for(gap)
    server.close()


def test_a_key_that_is_refused_leaves_the_node_unconfigured_and_says_so(start_thin):
    server = ModelServer()
    server.refusal = (401, {}, '{"error": {"message": "no key of this server"}}')
    node = start_thin(server.url, namespace="refused")
    node.wait_for("the node waits unconfigured")
    assert "no key of this server" in node.output and "Traceback" not in node.output
    server.close()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (dict(engine="remote"), "engine remote needs engine_url"),
        (dict(engine_url="ws://there:1"), "engine_url is for the engine remote"),
        (dict(engine="remote", engine_url="http://there"), "did you mean ws://there"),
        (
            dict(engine="remote", engine_url="ws://there", memory_folder="/m"),
            "memory_folder is the",
        ),
    ],
)
def test_settings_that_do_not_go_together_are_refused_in_words(settings, words):
    from stream_vlm_ros.config import Settings
    from stream_vlm_ros.errors import InvalidParameterError

    with pytest.raises(InvalidParameterError, match=re.escape(words)):
        Settings(**settings)
