# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Videos from a server in this process: files, and streams as they come."""

import contextlib
import http.server
import io
import socketserver
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from patience import PATIENCE
from PIL import Image

from stream_vlm_ros.errors import InvalidParameterError, SourceUnreadableError
from stream_vlm_ros.sources import VideoSource, address, open_source

from .conftest import write_video

PERIOD = 0.1  # seconds from one picture of the live stream to the next


def jpeg(index):
    out = io.BytesIO()
    Image.fromarray(np.full((48, 64, 3), 20 + 10 * index, np.uint8)).save(out, "JPEG")
    return out.getvalue()


class Camera(http.server.SimpleHTTPRequestHandler):
    """Files of a folder; ``/live``: ten pictures, the last a while after the first was read;
    ``/stalling``: and then nothing any more;
    ``/half/FILE``: the connection ends in the middle."""

    def log_message(self, *_):
        pass

    def do_GET(self):
        if self.path.startswith("/half/"):
            self.path = self.path.removeprefix("/half")
            data = Path(self.translate_path(self.path)).read_bytes()
            self.send_response(200)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data[: len(data) // 2])
            return None
        if self.path.split("?")[0] not in ("/live", "/stalling"):
            return super().do_GET()
        self.send_response(200)
        self.send_header("Content-Type", "multipart/x-mixed-replace; boundary=x")
        self.end_headers()
        try:
            for index in range(10):
                if index == 9 and self.path.startswith("/live"):
                    self.server.first_was_read.wait(PATIENCE)
                    time.sleep(4 * PERIOD)
                data = jpeg(index)
                head = f"--x\r\nContent-Type: image/jpeg\r\nContent-Length: {len(data)}\r\n\r\n"
                self.wfile.write(head.encode() + data + b"\r\n")
                time.sleep(PERIOD)
            if self.path.startswith("/stalling"):
                self.server.end.wait(30)
        except OSError:  # nobody reads any more
            pass


@pytest.fixture
def served(tmp_path):
    """The address of a server, with a password and a token, as a function of a path."""
    server = http.server.ThreadingHTTPServer(
        ("127.0.0.1", 0), lambda *a: Camera(*a, directory=str(tmp_path))
    )
    server.end, server.first_was_read = threading.Event(), threading.Event()
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()

    def place(path):
        return f"http://me:secret@127.0.0.1:{server.server_port}/{path}?token=secret"

    place.first_was_read = server.first_was_read
    yield place
    server.end.set()
    server.first_was_read.set()
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("name", ["a.mp4", "a.mkv"])
def test_a_file_on_a_server_is_read_as_the_file_is(served, tmp_path, name):
    whole = VideoSource(write_video(tmp_path / name, "libx264"), fps=5, start=0.5)
    source = open_source(served(name), fps=5, start=0.5)
    assert (source.live, source.endless, source.name) == (False, False, name)
    assert (source.duration, source.rate, source.size) == (whole.duration, whole.rate, whole.size)
    for ours, theirs in zip(source, whole, strict=True):
        assert ours.stamp_ns == theirs.stamp_ns and np.array_equal(ours.image, theirs.image)
    assert source.state == whole.state


def test_an_address_in_capitals_is_the_same_address(served, tmp_path):
    write_video(tmp_path / "a.mp4", "libx264")
    source = open_source(served("a.mp4").replace("http://", "HTTP://"))
    assert len(list(source)) == 20


@pytest.mark.parametrize("name", ["a.mcap", "a.html"])
def test_an_address_of_something_else_than_a_video_is_not_called_out_of_reach(
    served, tmp_path, name
):
    (tmp_path / "a.mcap").write_bytes(b"\x89MCAP0\r\n" + bytes(range(256)) * 20)
    (tmp_path / "a.html").write_text("<!DOCTYPE html><html><body>" + "No video. " * 99 + "</body>")
    with pytest.raises(SourceUnreadableError, match=r"is not a video|a text file") as told:
        open_source(served(name))
    assert "reached" not in str(told.value) and "secret" not in str(told.value)


def test_a_file_whose_server_goes_away_gives_its_beginning_and_says_so(served, tmp_path):
    write_video(tmp_path / "a.mkv", "ffv1", count=40)
    source = open_source(served("half/a.mkv"))
    assert not source.live
    assert 10 < len(list(source)) < 25
    assert "Everything before was read" in source.state.damage
    assert "secret" not in str(source.state)


def test_a_stream_goes_by_its_own_times_from_its_arrival_on(served, tmp_path):
    write_video(tmp_path / "a.ts", "libx264", container="mpegts")
    before = time.time_ns()
    source = open_source(served("a.ts"))
    stamps = [frame.stamp_ns for frame in source]
    assert source.live and source.endless and source.duration is None
    assert before <= stamps[0] <= time.time_ns()
    assert [stamp - stamps[0] for stamp in stamps] == [n * 100_000_000 for n in range(20)]
    assert source.state.notes == ["The stream ended after 1.9 s."]


def test_pictures_without_times_are_timed_as_they_are_read(served):
    source = open_source(served("live"))
    begin = time.time_ns()
    frames = []
    for frame in source:
        frames.append(frame)
        served.first_was_read.set()
    assert [round((int(frame.image[0, 0, 0]) - 20) / 10) for frame in frames] == list(range(10))
    stamps = [frame.stamp_ns for frame in frames]
    assert begin <= stamps[0] and stamps == sorted(set(stamps)) and stamps[-1] <= time.time_ns()
    assert stamps[-1] - stamps[0] >= 4 * PERIOD * 1e9
    told = " ".join(source.state.notes)
    assert "no times" in told and "The stream ended after" in told
    assert "secret" not in f"{source.name} {source.place} {source.state}"


def test_a_stream_can_be_watched_for_a_while(served):
    source = open_source(served("stalling"), end=0.3)
    assert source.live and not source.endless
    frames = list(source)
    assert frames and frames[-1].stamp_ns - frames[0].stamp_ns < 0.3e9
    assert source.state.damage is None


def test_a_stream_that_stalls_is_given_up_and_said(served, monkeypatch):
    monkeypatch.setattr(address, "SILENCE", 4.0)
    source = open_source(served("stalling"))
    assert len(list(source)) == 10
    assert "ended (nothing came for 4 s)" in source.state.damage
    assert "secret" not in str(source.state)


class SilentRtsp(socketserver.StreamRequestHandler):
    """Answers as a camera does, and then sends no picture."""

    SDP = "v=0\r\nm=video 0 RTP/AVP 26\r\na=control:track\r\n"

    def handle(self):
        with contextlib.suppress(ConnectionError):
            self.answer()

    def answer(self):
        while request := self.rfile.readline():
            fields = {}
            while line := self.rfile.readline().strip():
                name, _, value = line.decode().partition(": ")
                fields[name] = value
            body = self.SDP if request.startswith(b"DESCRIBE") else ""
            self.wfile.write(
                f"RTSP/1.0 200 OK\r\nCSeq: {fields['CSeq']}\r\nSession: 1\r\n"
                f"Transport: {fields.get('Transport', '')}\r\nContent-Type: application/sdp\r\n"
                f"Content-Length: {len(body)}\r\n\r\n{body}".encode()
            )


def test_a_camera_that_answers_and_sends_nothing_is_said_to_do_so(monkeypatch):
    monkeypatch.setattr(address, "SILENCE", 1.0)
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), SilentRtsp) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, daemon=True).start()
        with pytest.raises(SourceUnreadableError, match=r"cannot be read \(nothing came for 1 s\)"):
            open_source(f"rtsp://127.0.0.1:{server.server_address[1]}/camera")
        server.shutdown()


def test_what_cannot_be_reached_is_said_in_time_without_the_password(served, monkeypatch):
    assert address.SILENCE < 10
    with pytest.raises(SourceUnreadableError, match=r"404 Not Found.*Check the address") as gone:
        open_source(served("none.mp4"))
    with pytest.raises(SourceUnreadableError, match="Connection refused") as refused:
        open_source("rtsp://me:secret@127.0.0.1:1/x")
    monkeypatch.setattr(address, "SILENCE", 0.5)
    begin = time.monotonic()
    with pytest.raises(SourceUnreadableError, match=r"cannot be read \(") as other:
        open_source(served("stalling").replace("http:", "rtsp:"))  # no such server, but it answers
    assert time.monotonic() - begin < 10
    with pytest.raises(InvalidParameterError, match="frame_rate") as option:
        open_source(served("live"), frame_rate=3)
    for told in (gone, refused, other, option):
        assert "secret" not in str(told.value)
        assert told.value.__cause__ is None  # FFmpeg's own words name the address
