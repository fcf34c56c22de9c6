# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``stream-vlm serve``: what it refuses, and its way from the command to a saved memory."""

import gc
import importlib.util
import re
import signal
import socket
import subprocess
import sys
import weakref

import pytest
from patience import PATIENCE
from serving import Camera, feed
from typer.testing import CliRunner
from websockets.exceptions import InvalidStatus

from stream_vlm_ros.cli import app
from stream_vlm_ros.remote import protocol
from stream_vlm_ros.serve.running import spare_what_stays

KEY = "0123456789abcdef"


@pytest.fixture(scope="module", autouse=True)
def begun(tmp_path_factory):
    """The verb in a process that begins while other tests run, and its folder."""
    own = tmp_path_factory.mktemp("verb")
    file, folder = own / "keys", own / "memories"
    file.write_text(f"{KEY}\n{KEY[::-1]}\n")
    file.chmod(0o600)
    command = [sys.executable, "-m", "stream_vlm_ros.cli", "serve", "--port", "0"]
    command += ["--key-file", str(file), "--max-cache-tokens", "2048", "--device", "cpu"]
    command += ["--max-sessions", "2", "--memory-folder", str(folder)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as verb:
        try:
            yield verb, folder
        finally:
            verb.kill()


def refusal(*arguments, environment=None):
    any_port = () if "--port" in arguments else ("--port", "0")
    done = CliRunner().invoke(app, ["serve", *any_port, *map(str, arguments)], env=environment)
    assert done.exit_code == 2, done.output
    return " ".join(done.stderr.split())


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--host", "0.0.0.0"], "which needs a key"),
        (["--model", "no_such/no_such_model"], "no_such_model"),
        (["--max-cache-tokens", 0], "max_cache_tokens must be said"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(options, words):
    assert words in refusal(*options, environment={"STREAM_VLM_API_KEY": None})


def test_a_port_that_is_taken_is_told_in_one_line():
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port} is taken" in refusal("--port", port)


def test_a_key_in_a_file_that_is_none_is_told_in_one_line(tmp_path):
    file = tmp_path / "keys"
    file.write_text(f"{KEY}\nshort\n")
    file.chmod(0o600)
    assert "16 to 1024 ASCII characters" in refusal("--key-file", file)


def test_without_its_packages_one_line_says_how_they_are_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = refusal()
    assert "the server needs fastapi, uvicorn, websockets, msgspec, prometheus_client: " in said
    assert "-m pip install 'stream-vlm-ros[serve]'" in said


def test_what_was_loaded_is_not_looked_through_again_for_garbage():
    class Ring:
        def __init__(self):
            self.itself = self

    dropped, kept = Ring(), Ring()
    watched = weakref.ref(dropped)
    del dropped
    try:
        spare_what_stays()
        assert watched() is None  # what nobody has is not kept for good
        assert gc.is_tracked(kept) and not any(one is kept for one in gc.get_objects())
        later = Ring()
        watched = weakref.ref(later)
        del later
        gc.collect()
        assert watched() is None  # what comes and goes is collected as ever
    finally:
        gc.unfreeze()


def test_it_prints_its_address_serves_who_knows_a_key_and_saves_when_it_is_told_to_end(begun, film):
    verb, folder = begun
    said = verb.stdout.readline()
    assert verb.stdout.readline().startswith("Each session: ")
    assert f"Memories in {folder}: " in verb.stdout.readline()
    port = int(re.search(r"http://127\.0\.0\.1:(\d+) for 2 keys", said)[1])
    with Camera(port, "robot", KEY) as camera:
        camera.next(protocol.SessionCreated)
        camera.send(protocol.SessionUpdate(settings={"commit": "client"}))
        feed(camera, film[:4])
        with pytest.raises(InvalidStatus) as refused:  # one is left, for the other key
            Camera(port, "another", KEY)
        assert b"this key has 1 sessions already" in refused.value.response.body
        with Camera(port, "another", KEY[::-1]) as other:
            other.next(protocol.SessionCreated)
        verb.send_signal(signal.SIGTERM)
        while not isinstance(event := camera.hear(), protocol.SessionEnding):
            pass
    assert event.code == "ENDING" and event.retry_after is not None
    assert verb.wait(PATIENCE) == 130
    assert "Traceback" not in verb.stderr.read()
    assert verb.stdout.read() == "Ending 2 sessions, within 30 s\nEnded, 1 memory saved\n"
    [saved] = folder.rglob("robot.safetensors")
    assert saved.stat().st_size > 1000
    assert saved.parent.stat().st_mode & 0o077 == 0
