# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The recipes of docs/reverse-proxy.md, run by the proxies themselves where these are installed."""

import os
import re
import shutil
import socket
import ssl
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import openai
import pytest
from patience import PATIENCE, wait_until
from serving import RunningServer, feed, hold_answers
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import connect

from stream_vlm_ros.factory import kept_model
from stream_vlm_ros.remote import protocol
from stream_vlm_ros.serve.keys import Keys
from stream_vlm_ros.serve.options import Limits
from stream_vlm_ros.serve.sessions import Sessions

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "reverse-proxy.md").read_text()
KEY = "0123456789abcdef"
QUESTION = [{"role": "user", "content": "What do you see?"}]
IDLE = 1  # s that a proxy lets a connection idle, in place of an hour
BESIDES = """
daemon off;
pid nginx.pid;
error_log stderr;
events {{}}
http {{
    access_log off;
    client_body_temp_path body;
    proxy_temp_path proxy;
    fastcgi_temp_path fastcgi;
    uwsgi_temp_path uwsgi;
    scgi_temp_path scgi;
    {}
}}
"""


def recipe(heading):
    """The block below a heading of the page."""
    return re.search(rf"## {heading}\n.*?```\n(.*?)```", PAGE, re.DOTALL)[1]


def put(text, old, new):
    """``text`` with its ``old``, which is there, replaced."""
    assert old in text
    return text.replace(old, new)


def nginx(folder, port, server):
    text = put(recipe("nginx"), "443", str(port))
    text = put(text, "127.0.0.1:8090", server)
    text = put(text, "/etc/ssl/memory", str(folder / "memory"))
    text = put(text, "1h", f"{IDLE}s")
    (folder / "nginx.conf").write_text(BESIDES.format(text))
    return ["nginx", "-p", str(folder), "-c", "nginx.conf", "-e", "stderr"]


def caddy(folder, port, server):
    (tls,) = re.findall(r"`(tls .*?)`", PAGE)
    tls = put(tls, "/etc/ssl/memory", str(folder / "memory"))
    text = put(recipe("Caddy"), "memory.example.org {", f"localhost:{port} {{\n    {tls}")
    text = put(text, "127.0.0.1:8090", server)
    (folder / "Caddyfile").write_text(f"{{\n    admin off\n    auto_https off\n}}\n{text}")
    return ["caddy", "run", "--config", str(folder / "Caddyfile"), "--adapter", "caddyfile"]


def haproxy(folder, port, server):
    text = (ROOT / "config" / "haproxy.cfg").read_text()
    (bind,) = re.findall(r"with TLS: (bind .*)", text)
    bind = put(put(bind, ":443", f":{port}"), "/etc/haproxy/server.pem", str(folder / "both.pem"))
    text = put(text, "bind 127.0.0.1:8090", bind)
    text = put(put(text, "127.0.0.1:8091", server), "127.0.0.1:8092", server)
    text = put(text, "timeout tunnel 1h", f"timeout tunnel {IDLE}s")
    (folder / "haproxy.cfg").write_text(text)
    return ["haproxy", "-f", str(folder / "haproxy.cfg")]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a certificate, made as on the page."""
    folder = tmp_path_factory.mktemp("proxies")
    (make,) = re.findall(r"^    (openssl .*)$", PAGE, re.MULTILINE)
    if shutil.which("openssl") is None:
        pytest.skip("openssl is not installed")
    made = put(make, "gpu-box", "localhost")
    subprocess.run(made, shell=True, cwd=folder, check=True, capture_output=True)
    both = (folder / "memory.pem").read_text() + (folder / "memory.key").read_text()
    (folder / "both.pem").write_text(both)
    return folder


@pytest.fixture(scope="module")
def server(settings):
    """One that pings all the time, and takes two sessions."""
    sessions = Sessions(
        replace(settings, memory_folder=""), Limits(max_sessions=2), keys=1, load=kept_model
    )
    sessions.load()
    running = RunningServer(sessions, Keys((KEY,)), ping=IDLE / 4, pong=PATIENCE)
    yield running
    sessions.drain(5.0)
    running.close()


PROXIES = (nginx, caddy, haproxy)


@pytest.fixture(scope="module", params=PROXIES, ids=lambda one: one.__name__)
def proxy(request):
    """What writes the configuration of a proxy that is installed; the command that runs it."""
    if shutil.which(request.param.__name__) is None:
        pytest.skip(f"{request.param.__name__} is not installed")
    return request.param


@pytest.fixture(scope="module")
def fronts(folder, server):
    """The addresses of the proxies that are installed, before the server: they start side by
    side."""
    with ExitStack() as stack:
        fronts = {
            one: stack.enter_context(started(one, folder, server))
            for one in PROXIES
            if shutil.which(one.__name__)
        }
        for address in fronts.values():
            wait_until_up(address, folder)
        yield fronts


@pytest.fixture(scope="module")
def front(proxy, fronts):
    """The address of a proxy before the server."""
    return fronts[proxy]


@contextmanager
def started(configure, folder, server):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = configure(folder, port, f"127.0.0.1:{server.port}")
    with subprocess.Popen(command, cwd=folder, env=os.environ | {"HOME": str(folder)}) as proxy:
        try:
            yield f"localhost:{port}"
        finally:
            proxy.terminate()


def wait_until_up(address, folder):
    with http(address, folder) as client:
        wait_until(lambda: _is_up(client))


def _is_up(client):
    try:
        return client.get("/health").status_code == 200
    except httpx.TransportError:
        return False


def trusted(folder):
    return ssl.create_default_context(cafile=folder / "memory.pem")


def trusted_by_threads(folder):
    """For a client that reads in one thread and writes in another.

    What TLS 1.3 sends behind its handshake is read just when the first bytes are written; where
    Python does not keep the two apart, these are lost now and then.
    """
    context = trusted(folder)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    return context


def http(address, folder, **headers):
    told = {"Authorization": f"Bearer {KEY}", **headers}
    return httpx.Client(
        base_url=f"https://{address}", verify=trusted(folder), headers=told, timeout=PATIENCE
    )


class Camera:
    """Of a session, through a proxy; what `serving.feed` takes."""

    def __init__(self, address, folder, session, key=KEY):
        self.socket = connect(
            f"wss://{address}{protocol.PATH}",
            ssl=trusted_by_threads(folder),
            additional_headers={"Authorization": f"Bearer {key}", "x-session-id": session},
            subprotocols=[protocol.SUBPROTOCOL],
            compression=None,
            legacy=True,
            open_timeout=PATIENCE,
        )
        self.sequence = 0
        self.next(protocol.SessionCreated)
        self.send(protocol.SessionUpdate(settings={"commit": "client"}))
        self.next(protocol.SessionUpdated)

    def close(self):
        """With its session."""
        self.send(protocol.SessionClose())
        with pytest.raises(ConnectionClosed):
            while True:
                self.socket.recv(PATIENCE)
        self.socket.close()

    def send(self, event):
        self.socket.send(protocol.encoded(event))

    def next(self, kind):
        while not isinstance(event := protocol.server_event(self.socket.recv(PATIENCE)), kind):
            assert not isinstance(event, protocol.ErrorEvent), event
        return event

    def chunk(self, stamps_ns, images, jpeg=False):
        for stamp_ns, image in zip(stamps_ns, images, strict=True):
            self.sequence += 1
            height, width = image.shape[:2]
            self.socket.send(
                protocol.FrameMessage(
                    self.sequence, stamp_ns, protocol.RAW, height, width, image.tobytes()
                ).packed()
            )
        self.send(protocol.Commit())


@pytest.fixture
def camera(front, folder, film):
    with closing(Camera(front, folder, "front")) as camera:
        feed(camera, film[:4])
        yield camera


def test_a_camera_and_openais_client_meet_at_the_session(camera, front, folder, monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(folder / "memory.pem"))
    client = openai.OpenAI(
        base_url=f"https://{front}/v1", api_key=KEY, default_headers={"x-session-id": "front"}
    )
    with client:
        answer = client.chat.completions.create(model="front", messages=QUESTION)
    camera.send(
        protocol.ResponseCreate(event_id="q", response=protocol.Ask(text="What do you see?"))
    )
    response = camera.next(protocol.ResponseDone).response
    assert answer.choices[0].message.content == response.text and response.memory.frames == 4


def test_an_answer_comes_word_by_word(camera, front, folder, monkeypatch):
    seen = hold_answers(monkeypatch)  # the next word, once the first has come
    asked = {"model": "front", "stream": True, "messages": QUESTION}
    with (
        http(front, folder, **{"x-session-id": "front"}) as client,
        client.stream("POST", "/v1/chat/completions", json=asked) as answer,
    ):
        for line in answer.iter_lines():
            if re.search('"content":"[^"]', line):
                seen.set()
    assert seen.is_set()


def test_a_large_frame_comes_through(camera):
    camera.chunk([10**11], [np.zeros((2600, 2600, 3), np.uint8)])  # 20 MB
    assert camera.next(protocol.Ingested | protocol.Dropped).frames == 1


@pytest.fixture(scope="module")
def after_silence(fronts, folder, server, film):
    """By proxy: the event that answers a camera which sent nothing for long, all at once."""

    def answered(proxy):
        with closing(Camera(fronts[proxy], folder, f"silent-{proxy.__name__}")) as camera:
            feed(camera, film[:4])
            with pytest.raises(TimeoutError):
                while True:  # words of the server would keep it, too
                    camera.socket.recv(3 * IDLE)
            camera.send(protocol.SessionUpdate(event_id="u", settings={"sample_fps": 1.0}))
            return camera.next(protocol.SessionUpdated)

    with pytest.MonkeyPatch.context() as patch, ThreadPoolExecutor() as pool:
        patch.setattr(server.sessions, "limits", Limits(max_sessions=len(PROXIES)))
        return {proxy: pool.submit(answered, proxy) for proxy in fronts}


def test_a_camera_that_sends_nothing_stays_as_it_is_pinged(proxy, after_silence):
    assert after_silence[proxy].result().event_id == "u"


def test_refusals_are_the_servers_own(camera, front, folder, film):
    for key, session, status, told, words in (
        ("f" * 16, "front", 401, {"WWW-Authenticate": "Bearer"}, "not one of this server's"),
        (KEY, "third", 429, {"Retry-After": "30"}, "2 sessions are served already"),
    ):
        with closing(Camera(front, folder, "second")) as second:
            feed(second, film[:4])
            with pytest.raises(InvalidStatus) as refused:
                Camera(front, folder, session, key)
        answer = refused.value.response
        assert answer.status_code == status and words in answer.body.decode()
        assert all(answer.headers[name] == value for name, value in told.items())
    with http(front, folder, **{"x-session-id": "front"}) as client:
        for size in (2 << 20, 20 << 20):
            asked = {"model": "front", "messages": [{"role": "user", "content": "x" * size}]}
            answer = client.post("/v1/chat/completions", json=asked)
            assert answer.status_code == 413
            assert "nginx" in answer.text or answer.json()["error"]["code"] == "TOO_LARGE"
        asked = {"model": "front", "messages": QUESTION}
        for origin, status in ((f"https://{front}", 200), ("https://elsewhere.example", 403)):
            answer = client.post("/v1/chat/completions", json=asked, headers={"Origin": origin})
            assert answer.status_code == status


def test_a_camera_is_told_of_the_end_of_its_session(front, folder, server):
    camera = Camera(front, folder, "ended")
    server.sessions.hand_over(server.sessions.all(), 1.0)
    assert camera.next(protocol.SessionEnding).retry_after
    camera.socket.close()


def own_address():
    """One of this machine that is not of the loopback; nothing is sent to find it."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("this machine is in no network")
        return probe.getsockname()[0]


def test_a_server_without_a_key_serves_its_own_machine_alone(proxy, folder, server):
    outside = own_address()
    with (
        closing(RunningServer(server.sessions)) as keyless,
        started(proxy, folder, keyless) as front,
        http(front, folder) as client,
    ):
        wait_until_up(front, folder)
        port = front.partition(":")[2]
        named = {"headers": {"Host": front}, "extensions": {"sni_hostname": "localhost"}}
        elsewhere = httpx.URL(f"https://{outside}:{port}/v1/sessions")
        assert client.get("/v1/sessions").status_code == 200
        assert client.get(elsewhere, **named).status_code == 401
        named["headers"]["X-Forwarded-For"] = "127.0.0.1"
        assert client.get(elsewhere, **named).status_code == 401
