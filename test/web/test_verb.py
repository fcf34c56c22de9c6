# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``stream-vlm web``: what it refuses, and its way from the command to the page and back."""

import importlib.util
import re
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import pytest
from patience import PATIENCE
from typer.testing import CliRunner

from stream_vlm_ros.cli import app

KEY = "0123456789abcdef"


def refusal(*arguments, environment=None):
    done = CliRunner().invoke(app, ["web", *map(str, arguments)], env=environment)
    assert done.exit_code == 2, done.output
    return " ".join(done.stderr.split())


@pytest.fixture
def taken():
    with socket.create_server(("127.0.0.1", 0)) as listening:
        yield listening.getsockname()[1]


def test_what_cannot_be_shown_is_told_before_anything_is_loaded(tmp_path, taken):
    assert "no_such.mp4" in refusal("--source", tmp_path / "no_such.mp4")
    assert "no_such_model" in refusal("--model", tmp_path / "no_such_model")
    assert "no option topics" in refusal("--source", "world:7", "--topic", "/camera")
    assert "--fps is of no use with --node" in refusal("--node", "stream_vlm", "--fps", "1")
    assert "the node's model is its parameter model_path" in refusal("--node", "--model", tmp_path)
    stored = ("--source", "world:1", "--source", "world:2", "--frame-store", tmp_path / "kept")
    assert "--frame-store is of one camera" in refusal(*stored)
    assert f"port {taken} is taken; choose another with --port" in refusal("--port", taken)


def test_other_machines_are_let_in_with_a_key_alone(tmp_path):
    without = {"STREAM_VLM_API_KEY": None}
    assert "which needs a key" in refusal("--host", "0.0.0.0", environment=without)
    short = {"STREAM_VLM_API_KEY": "short"}
    assert "16 to 1024 ASCII characters" in refusal("--host", "0.0.0.0", environment=short)
    file = tmp_path / "key"
    file.write_text(KEY)
    file.chmod(0o644)
    assert "chmod 600" in refusal("--host", "0.0.0.0", "--key-file", file)


def test_without_its_packages_one_line_says_how_they_are_installed(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    said = refusal()
    assert "the console needs nicegui, fastapi, uvicorn: " in said
    assert "-m pip install 'stream-vlm-ros[web]'" in said


def test_it_prints_its_address_serves_those_who_know_the_key_and_ends_at_ctrl_c(tmp_path):
    pytest.importorskip("nicegui", reason="the console is not installed")
    file = tmp_path / "key"
    file.write_text(KEY)
    file.chmod(0o600)
    with subprocess.Popen(
        [sys.executable, "-m", "stream_vlm_ros.cli", "web", "--port", "0", "--key-file", str(file)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as verb:
        said = verb.stdout.readline()
        address = re.search(r"http://127\.0\.0\.1:\d+", said)[0]
        assert "Type the key there." in said
        with pytest.raises(urllib.error.HTTPError, match="401"):
            urllib.request.urlopen(address, timeout=PATIENCE)
        known = urllib.request.Request(address, headers={"Authorization": f"Bearer {KEY}"})
        with urllib.request.urlopen(known, timeout=PATIENCE) as page:
            assert "stream_vlm" in page.read().decode()
        verb.send_signal(signal.SIGINT)
        rest, errors = verb.communicate(timeout=PATIENCE)
    assert (verb.returncode, rest, errors) == (130, "", "")
