# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``~/save_memory`` and ``~/load_memory``, and what a node saves and loads by itself."""

import errno
import os
import tempfile
import threading
from pathlib import Path

import pytest
from patience import PATIENCE
from toy_qwen import chatter_model, toy_processor

from stream_vlm_ros import owned
from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.engine.saving.memory_copy import about_memory

pytestmark = pytest.mark.ros

SECOND = 10**9
MODEL = chatter_model()
HELD = tempfile.TemporaryDirectory()
FOLDER = Path(HELD.name) / "memories"  # made by the node
# Frames that waited for a jump to be believed come at once: more than the usual two may wait.
OWN = dict(memory_folder=str(FOLDER), queue_size=16)
LISTED = FOLDER.with_name("listed")
HERE = pytest.mark.parametrize("here", [OWN], indirect=True)


class ToyEngine(VideoStreamingInference):
    """A real engine where the node's fixture has a stand-in."""

    def __init__(self):
        super().__init__(MODEL, toy_processor(), eviction_config=EvictionConfig.novelty(400))
        self.gate = threading.Event()


@pytest.fixture
def fake_engine():
    return ToyEngine()


@pytest.fixture(autouse=True)
def empty_folder():
    yield
    for path in FOLDER.glob("*"):
        path.unlink()


def save(client, name=""):
    from stream_vlm.srv import SaveMemory

    request = SaveMemory.Request(name=name)
    return client.graph.call(SaveMemory, f"{client.name}/save_memory", request)


def load(client, name=""):
    from stream_vlm.srv import LoadMemory

    request = LoadMemory.Request(name=name)
    return client.graph.call(LoadMemory, f"{client.name}/load_memory", request)


def fill(client, frames):
    """So many frames, each in memory."""
    wanted = client.status.frames_ingested + frames
    for _ in range(frames):
        client.send(client.image())
    return client.wait_status(lambda s: s.frames_ingested == wanted)


def diagnostic(client, task, condition):
    """The first status of that task that meets a condition."""
    name = f"{client.name.lstrip('/')}: {task}"

    def found():
        for heard in list(client.diagnostics):
            for status in heard.status:
                if status.name == name and condition(status):
                    return status
        return None

    return client.graph.wait(found, what=f"a status of {task}")


def nanoseconds(stamp):
    return stamp.sec * SECOND + stamp.nanosec


# -- asked for ---------------------------------------------------------------------------------


def test_without_a_folder_both_are_refused_in_words(here):
    fill(here.client, 1)
    for reply in (save(here.client), load(here.client)):
        assert not reply.success
        assert "memory_folder is not set" in reply.message
    fill(here.client, 1)


@HERE
def test_what_was_saved_is_loaded_and_answers_as_before(here):
    client = here.client
    fill(client, 12)
    before, answer = client.status, client.ask(max_new_tokens=12)
    reply = save(client, "morning")
    assert reply.success, reply.message
    path = FOLDER / "morning.safetensors"
    assert (reply.bytes, str(path) in reply.message) == (path.stat().st_size, True)
    status = client.wait_status(lambda s: s.last_save_bytes)
    assert (status.last_save_bytes, status.save_error) == (reply.bytes, "")
    assert status.last_save.sec > 0
    told = diagnostic(client, "saved memory", lambda d: "morning" in d.message)
    assert told.level == b"\0"

    assert client.reset().success
    fill(client, 5)
    reply = load(client, "morning")
    assert reply.success, reply.message
    assert nanoseconds(reply.newest_stamp) == nanoseconds(before.newest_stamp)
    after = client.wait_status(lambda s: s.chunks == before.chunks and s.length == before.length)
    for name in ("header", "oldest_stamp", "newest_stamp", "spans", "levels", "frames"):
        assert getattr(after, name) == getattr(before, name), name
    again = client.ask(max_new_tokens=12)
    assert (again.text, again.header) == (answer.text, answer.header)
    assert len(answer.text) > 5
    assert here.said == []


def names(client):
    from stream_vlm.srv import ListMemories

    return client.graph.call(ListMemories, f"{client.name}/list_memories")


@pytest.mark.parametrize("here", [OWN | {"memory_folder": str(LISTED)}], indirect=True)
def test_those_that_can_be_loaded_are_listed_the_newest_first_and_nothing_else(here):
    assert (names(here.client).success, names(here.client).names) == (True, [])
    fill(here.client, 2)
    for name in ("morning", "noon", "evening"):
        assert save(here.client, name).success
    os.utime(LISTED / "noon.safetensors", (2e9, 2e9))
    for other in ("notes.txt", ".hidden.safetensors", "a b.safetensors"):
        (LISTED / other).write_text("not ours")
    (LISTED / "a_folder.safetensors").mkdir()
    (LISTED / "a_link.safetensors").symlink_to(LISTED / "noon.safetensors")
    assert names(here.client).names == ["noon", "evening", "morning"]


def test_without_a_folder_none_are_listed_and_that_is_said(here):
    reply = names(here.client)
    assert (reply.success, reply.names) == (False, [])
    assert "memory_folder is not set" in reply.message


@HERE
def test_the_stream_goes_on_behind_a_loaded_memory_however_long_ago_it_ended(here):
    client = here.client
    newest = nanoseconds(fill(client, 6).newest_stamp)
    assert save(client).success
    assert load(client).success
    client.stamp_ns += 30 * 24 * 3600 * SECOND
    status = fill(client, 6)
    assert (status.time_jumps, status.chunks, status.frames) == (0, 12, 12)
    assert nanoseconds(status.oldest_stamp) < newest < nanoseconds(status.newest_stamp)


@HERE
def test_a_clock_that_is_earlier_than_a_loaded_memory_is_a_jump_of_time(here):
    client = here.client
    fill(client, 6)
    assert save(client).success
    assert load(client).success
    client.stamp_ns -= 900 * SECOND
    status = fill(client, 5)
    assert (status.time_jumps, status.frames) == (1, 5)
    assert load(client).success  # the file is as it was
    client.wait_status(lambda s: s.frames == 6)


@HERE
def test_names_stay_within_the_folder(here):
    fill(here.client, 1)
    for name in ["../out", "a/b", "/tmp/a", ".hidden", "..", "-f", "a b", "x" * 101, "a\n", "é"]:
        for reply in (save(here.client, name), load(here.client, name)):
            assert not reply.success, name
            assert "names no memory" in reply.message, name
    assert not FOLDER.exists() or os.listdir(FOLDER) == []


@HERE
def test_no_link_leads_out_of_the_folder(here, tmp_path):
    client = here.client
    fill(client, 2)
    assert save(client, "first").success
    outside = tmp_path / "outside.safetensors"
    (FOLDER / "first.safetensors").rename(outside)
    there = outside.read_bytes()
    (FOLDER / "first.safetensors").symlink_to(outside)
    for reply in (save(client, "first"), load(client, "first")):
        assert not reply.success
        assert "first.safetensors" in reply.message
    assert outside.read_bytes() == there


@HERE
def test_what_is_missing_or_no_memory_is_refused_and_the_stream_goes_on(here):
    client = here.client
    fill(client, 3)
    assert "No such file" in load(client, "nothing").message
    assert save(client, "cut").success
    path = FOLDER / "cut.safetensors"
    os.truncate(path, path.stat().st_size // 2)
    reply = load(client, "cut")
    assert not reply.success
    assert "it is cut" in reply.message
    told = diagnostic(client, "saved memory", lambda d: "it is cut" in d.message)
    assert told.level == b"\2"
    client.wait_status(lambda s: "it is cut" in s.save_error)
    status = fill(client, 3)
    assert (status.frames, status.time_jumps) == (6, 0)
    assert save(client, "good").success
    assert client.wait_status(lambda s: not s.save_error).last_save_bytes


@HERE
def test_frames_are_remembered_while_a_file_is_written_and_one_file_at_a_time(here, monkeypatch):
    client = here.client
    before = fill(client, 4)
    go_on, writing, real = threading.Event(), threading.Event(), owned.write_all

    def slow(*given):
        writing.set()
        assert go_on.wait(PATIENCE)
        return real(*given)

    monkeypatch.setattr(owned, "write_all", slow)
    saving = here.node.cameras[0].keeper.save()  # as the service does
    assert writing.wait(PATIENCE)
    status = fill(client, 5)
    assert status.frames == before.frames + 5
    assert client.ask().error_code == 0
    busy = save(client)
    assert not busy.success
    assert "try again" in busy.message
    assert "try again" in load(client).message
    go_on.set()
    assert "saved as" in saving.result(PATIENCE).words
    monkeypatch.undo()
    assert load(client).success
    client.wait_status(lambda s: s.frames == before.frames)  # as it was when it was copied


@HERE
def test_a_full_disk_is_an_error_on_diagnostics_and_no_end(here, monkeypatch):
    client = here.client
    fill(client, 3)
    assert save(client).success
    old = (FOLDER / "memory.safetensors").read_bytes()
    fill(client, 1)

    def full(*given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(owned, "write_all", full)
    reply = save(client)
    monkeypatch.undo()
    assert not reply.success
    assert "No space left on device" in reply.message
    told = diagnostic(client, "saved memory", lambda d: "No space left" in d.message)
    assert told.level == b"\2"
    assert os.listdir(FOLDER) == ["memory.safetensors"]
    assert (FOLDER / "memory.safetensors").read_bytes() == old
    assert fill(client, 2).frames == 6
    assert save(client).success


@HERE
def test_an_empty_memory_is_not_saved(here):
    reply = save(here.client)
    assert not reply.success
    assert "no memory to save" in reply.message
    assert not FOLDER.exists() or os.listdir(FOLDER) == []


# -- by itself ---------------------------------------------------------------------------------


@pytest.mark.parametrize("here", [dict(OWN, save_memory_minutes=0.001)], indirect=True)
def test_it_is_saved_every_so_often_if_it_has_changed(here):
    client, path = here.client, FOLDER / "memory.safetensors"
    fill(client, 2)
    # The second frame may come between two saves.
    client.wait_status(lambda s: s.last_save_bytes and about_memory(path).frames == 2)

    def pass_some_periods():
        statuses = len(client.statuses)
        client.graph.wait(lambda: len(client.statuses) > statuses + 10)  # 0.05 s apart

    pass_some_periods()  # what was being told of that save is told
    first, written = client.status.last_save, path.stat().st_mtime_ns
    pass_some_periods()
    assert (client.status.last_save, path.stat().st_mtime_ns) == (first, written)
    fill(client, 1)
    client.wait_status(lambda s: s.last_save != first and about_memory(path).frames == 3)


@pytest.mark.parametrize("minutes", [0.0, 1.0])
def test_what_needs_a_folder_is_refused_without_one(minutes):
    from stream_vlm_ros.config import Settings
    from stream_vlm_ros.errors import InvalidParameterError

    wanted = dict(save_memory_minutes=minutes) if minutes else dict(load_memory_at_start=True)
    with pytest.raises(InvalidParameterError, match="needs a memory_folder"):
        Settings(**wanted)
    Settings(memory_folder="/tmp", **wanted)


@pytest.fixture
def restarting(start_node, connect, tmp_path, request):
    """Starts nodes that share a folder; each gets a client that goes on with the time."""
    stamps = [1_000_000_000_000]

    def start(**parameters):
        node = start_node(
            namespace="restarts",
            sample_fps=0.0,
            chunk_frames=1,
            memory_folder=tmp_path / "memories",
            status_period=0.1,
            queue_size=16,
            **parameters,
        )
        client = connect("restarts")
        client.wait_status(lambda s: s.state == "active")
        client.stamp_ns = stamps[0]
        return node, client

    def stop(node, client):
        stamps[0] = client.stamp_ns
        client.drop_publishers()
        assert node.stop() == 0

    return start, stop


def test_a_node_that_starts_again_remembers_what_it_held_under_any_name(restarting, tmp_path):
    start, stop = restarting
    both = dict(save_memory_on_shutdown=True, load_memory_at_start=True)
    node, client = start(**both)
    assert "the node begins with an empty one" in node.output  # no error
    before = fill(client, 5)
    answer = client.ask().text
    assert save(client, "kitchen").success
    stop(node, client)  # saved under another name, it is still saved under its own
    held = sorted(os.listdir(tmp_path / "memories"))
    assert held == ["kitchen.safetensors", "memory.safetensors"]
    node, client = start(**both)
    assert client.wait_status(lambda s: s.frames == 5).spans == before.spans
    assert client.ask().text == answer
    client.stamp_ns += 24 * 3600 * SECOND
    status = fill(client, 4)
    assert (status.frames, status.time_jumps) == (9, 0)
    assert load(client, "kitchen").success
    stop(node, client)  # what it holds now is the kitchen, and so is what it begins with next
    node, client = start(load_memory_at_start=True)
    assert client.wait_status(lambda s: s.frames == 5).spans == before.spans
    stop(node, client)


def test_a_file_that_is_refused_at_the_start_is_said_and_left_alone(restarting, tmp_path):
    start, stop = restarting
    node, client = start(save_memory_on_shutdown=True)
    fill(client, 3)
    stop(node, client)
    path = tmp_path / "memories" / "memory.safetensors"
    there = path.read_bytes()
    # Another cap: the memory is of no use here, but it may be elsewhere.
    node, client = start(
        save_memory_on_shutdown=True,
        load_memory_at_start=True,
        save_memory_minutes=0.001,
        max_cache_tokens=4096,
    )
    assert client.status.frames == 0
    told = diagnostic(client, "saved memory", lambda d: "leaves the file alone" in d.message)
    assert told.level == b"\2"
    assert "max_cache_tokens 16384, and here max_cache_tokens is 4096" in told.message
    fill(client, 3)
    diagnostic(client, "saved memory", lambda d: "is left alone" in d.message)
    assert os.listdir(path.parent) == ["memory.safetensors"]
    assert save(client, "other").success  # which is not to ask for the first one
    fill(client, 3)
    diagnostic(client, "saved memory", lambda d: "is left alone" in d.message)
    stop(node, client)
    assert path.read_bytes() == there
    assert sorted(os.listdir(path.parent)) == ["memory.safetensors", "other.safetensors"]
