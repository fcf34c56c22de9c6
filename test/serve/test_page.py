# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What docs/serving.md and docs/camera-protocol.md print, done at a server."""

import json
import re
import runpy
import shlex
import sys
import urllib.request
from pathlib import Path

import pytest
from jsonschema import Draft202012Validator

from stream_vlm_ros.remote import protocol
from stream_vlm_ros.serve.keys import Keys

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "serving.md").read_text()
PROTOCOL_PAGE = (ROOT / "docs" / "camera-protocol.md").read_text()
USUAL = "127.0.0.1:8090"


@pytest.fixture
def example(server, monkeypatch, capsys):
    """Runs the example's camera; what it printed."""

    def run(*options):
        words = ["--url", f"ws://127.0.0.1:{server.port}", "--frames", "8", *options]
        monkeypatch.setattr(sys, "argv", ["remote_camera.py", "world:7", *words])
        runpy.run_path(str(ROOT / "examples" / "remote_camera.py"), run_name="__main__")
        return capsys.readouterr().out

    return run


def test_the_camera_of_the_examples_is_remembered_and_answered(server, example):
    asked = ["--session", "example", "--ask", "What do you see?"]
    said = example(*asked)
    session = server.sessions.find("example", "local")
    assert session.memory.frames == 8
    response = server.camera("example").ask("What do you see?")
    assert said.strip() == response.text
    told = example(*asked, "--frames", "12")  # it goes on: what is there is not sent again
    assert told.startswith("Frames sent: 4. Not sent: 8, as session example has ")
    assert session.memory.frames == 12


def test_a_key_that_is_missing_or_wrong_is_told_the_camera_of_the_examples_in_a_line(
    another, example, monkeypatch, capsys, tmp_path
):
    key = "0123456789abcdef"
    at = another(Keys((key,))).url  # http://: read as ws://
    (tmp_path / "key").write_text(f"{key}\n")
    for told, words in (("", "needs a key"), (key[::-1], "not one of this server's")):
        monkeypatch.setenv("STREAM_VLM_API_KEY", told)
        with pytest.raises(SystemExit) as ended:
            example("--url", at)
        line = capsys.readouterr().err.splitlines()[-1]
        assert ended.value.code == 2 and words in line
        assert "STREAM_VLM_API_KEY" in line and "--key-file" in line
    assert example("--url", at, "--key-file", str(tmp_path / "key")).strip()


def test_the_python_and_the_curl_of_the_page_ask_it(server, example, capsys):
    example()
    at = f"127.0.0.1:{server.port}"
    (text,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(text.replace(USUAL, at), {})
    first, cost, *_, last = capsys.readouterr().out.splitlines()
    assert first and re.fullmatch(r"\d+ \[\[\d+, \d+\]\]", cost)
    assert re.search(r"(yes|no) \[-[\d.]+, -[\d.]+\]$", last)
    (line,) = re.findall(r"^    (curl .*)$", PAGE, re.MULTILINE)
    words = shlex.split(line)
    data = words[words.index("-d") + 1]
    header = dict([words[words.index("-H") + 1].split(": ")])
    request = urllib.request.Request(words[1].replace(USUAL, at), data.encode(), header)
    with urllib.request.urlopen(request) as answer:
        assert json.load(answer)["choices"][0]["message"]["content"]


def test_every_event_that_is_heard_fits_the_schema(server, film):
    schema = json.loads((ROOT / "docs" / "protocol.schema.json").read_text())
    check = Draft202012Validator({**schema["server"], "$defs": schema["$defs"]})
    with server.camera("schema") as camera:
        camera.chunk([f.stamp_ns for f in film[:4]], [f.image for f in film[:4]])
        camera.ask("What do you see?")
        camera.ask("Which?", choices=("a", "b"))
        camera.socket.send("{}")
        camera.next(protocol.ErrorEvent)
    kinds = set()
    for event in camera.heard:
        told = json.loads(protocol.encoded(event))
        check.validate(told)
        kinds.add(told["type"])
    assert kinds >= {"session.created", "input_frame_buffer.ingested", "response.done", "error"}


def test_the_frames_head_is_told_as_it_is(film):
    """As the page has it: two bytes, one of 16 bits, two of 32, two of 64, little-endian."""
    (told,) = re.findall(
        r"A frame\*\* is a binary message: (.*?)\n- \*\*", PROTOCOL_PAGE, re.DOTALL
    )
    sizes = [int(bits) // 8 for bits in re.findall(r"`u?int(\d+)`", told)]
    image = film[0].image
    height, width = image.shape[:2]
    message = protocol.FrameMessage(7, -9, protocol.RAW, height, width, image.tobytes()).packed()
    fields, at = [], 0
    for size in sizes:
        fields.append(int.from_bytes(message[at : at + size], "little"))
        at += size
    assert (at, int(re.search(r"(\d+) bytes", told)[1])) == (28, 28)
    assert fields == [1, 2, 0, height, width, 2**64 - 9, 7]
    assert message[at:] == image.tobytes()
