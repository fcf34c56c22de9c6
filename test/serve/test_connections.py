# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Whoever connects takes a bounded part of the server, before and after anything is known of it."""

import asyncio
import gc
import json
import socket
import struct
import threading
import time
import weakref

import pytest
from fastapi.responses import StreamingResponse
from patience import PATIENCE, wait_until
from serving import feed, get
from websockets.exceptions import ConnectionClosedError

from stream_vlm_ros.remote import protocol
from stream_vlm_ros.serve import connections, running

GET = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"
METRICS = b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
HEAD = b"HEAD /health HTTP/1.1\r\nHost: 127.0.0.1\r\n"
POST = b"POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
OPENS = b"""GET /v1/realtime HTTP/1.1\r
Host: 127.0.0.1\r
Upgrade: websocket\r
Connection: Upgrade\r
Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r
Sec-WebSocket-Version: 13\r
Sec-WebSocket-Protocol: stream-vlm.v1\r
"""


def client_of(server):
    return socket.create_connection(("127.0.0.1", server.port), PATIENCE)


def answer_to(client):
    """Status and error of an answer behind which the server ends the connection."""
    heard = b""
    while piece := client.recv(1 << 16):
        heard += piece
    head, _, content = heard.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(content)["error"] if content else {}


def is_ended(client):
    """Whether the server has ended the connection, by now."""
    client.setblocking(False)
    try:
        return client.recv(1 << 16) == b""
    except BlockingIOError:
        return False
    except ConnectionError:
        return True


def can_send(client):
    """Whether the server has not given the connection up, by now."""
    try:
        client.send(b"x")
    except ConnectionError:
        return False
    return True


# -- heads -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "begin, piece", [(b"GET /", b"a"), (GET + b"x: ", b"a"), (GET, b"a: b\r\n")]
)
def test_a_head_that_does_not_end_is_refused_before_it_costs(server, begin, piece):
    with client_of(server) as client:
        client.sendall(begin + piece * (connections.LONGEST_HEAD // len(piece) + 1))
        status, error = answer_to(client)
    assert (status, error["code"]) == (431, "HEAD_TOO_LARGE")


def test_a_head_that_has_begun_and_does_not_end_is_refused(server, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_TIMEOUT", 0.2)
    with client_of(server) as client:
        client.sendall(GET)
        status, error = answer_to(client)
    assert (status, error["code"]) == (408, "TOO_SLOW")


def test_a_piece_of_the_next_head_is_refused_like_one_of_the_first(server, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_TIMEOUT", 0.2)
    with client_of(server) as client:
        client.sendall(GET + b"\r\n" + GET)  # both at once
        heard = b""
        while piece := client.recv(1 << 16):
            heard += piece
    assert heard.startswith(b"HTTP/1.1 200") and b"HTTP/1.1 408" in heard


@pytest.mark.parametrize("before", [b"", GET + b"\r\n"])
def test_who_sends_a_head_byte_by_byte_gets_no_more_time(server, monkeypatch, before):
    monkeypatch.setattr(connections, "HEAD_TIMEOUT", 0.5)
    with client_of(server) as client:
        client.sendall(before)
        heard = b""
        while before and not heard.endswith(b'{"status":"ok"}'):
            heard += client.recv(1 << 16)
        client.sendall(GET + b"x: ")
        wait_until(lambda: not can_send(client) or is_ended(client))


def test_who_connects_and_says_nothing_is_let_go(server, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_TIMEOUT", 0.1)
    with client_of(server) as client:
        assert client.recv(1) == b""


def test_a_request_takes_its_time_once_it_is_there(server, film, monkeypatch):
    monkeypatch.setattr(connections, "HEAD_TIMEOUT", 0.5)
    body = b'{"model": "in-time", "messages": [{"role": "user", "content": "What?"}]}'
    with server.camera("in-time") as camera:
        feed(camera, film[:4])
        with client_of(server) as client:
            client.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body))
            time.sleep(0.7)  # the body comes later than a head may
            client.sendall(body)
            assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
        assert camera.ask("What?").text  # a WebSocket is open longer, too


@pytest.mark.parametrize(
    "sent", [b"\x00\x01\r\n\r\n", POST + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"]
)
def test_what_is_no_http_is_refused_in_the_form_of_all_errors(server, caplog, sent):
    with client_of(server) as client:
        client.sendall(sent)
        status, error = answer_to(client)
    assert (status, error["code"]) == (400, "INVALID_REQUEST")
    assert "no request of HTTP/1.1" in error["message"]
    assert not [one for one in caplog.records if one.levelname == "ERROR"]


def test_a_refusal_of_a_head_request_has_no_body(server, caplog):
    with client_of(server) as client:
        client.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")
        assert answer_to(client) == (400, {})
    assert not [one for one in caplog.records if one.levelname == "ERROR"]


def test_what_follows_a_head_request_is_refused_with_a_body(server):
    with client_of(server) as client:
        client.sendall(HEAD + b"\r\n")
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 ")
        client.sendall(b"\x00\x01\r\n\r\n")
        status, error = answer_to(client)
    assert (status, error["code"]) == (400, "INVALID_REQUEST")


def test_a_handshake_that_is_too_long_is_refused_in_words(server):
    with client_of(server) as client:
        client.sendall(OPENS + b"a: b\r\n" * 300 + b"\r\n")
        status, error = answer_to(client)
    assert status == 400 and "opens no WebSocket" in error["message"]


def test_who_goes_before_the_request_is_whole_leaves_no_error_in_the_log(another, caplog):
    server = another()
    with client_of(server) as client:
        client.sendall(POST + b"Content-Length: 100\r\n\r\n{")
    server.close()  # when all has come to its end
    assert not [one for one in caplog.records if one.levelname == "ERROR"]


@pytest.fixture
def made(monkeypatch):
    """Weak references to what reads HTTP on each connection, of servers made from now on."""
    references = []

    class Watched(connections.Http):
        def __init__(self, *given, **named):
            super().__init__(*given, **named)
            references.append(weakref.ref(self))

    monkeypatch.setattr(running, "Http", Watched)
    monkeypatch.setattr(connections, "HEAD_TIMEOUT", 1000)
    return references


def is_gone(reference):
    gc.collect()
    return reference() is None


def test_nothing_is_kept_of_a_connection_that_was_reset(another, made):
    with client_of(another()) as client:
        client.sendall(GET)
        wait_until(lambda: made)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    wait_until(lambda: is_gone(made[0]))


def test_nothing_of_http_is_kept_once_it_is_a_websocket(another, made):
    with another().camera("no-http"):
        wait_until(lambda: is_gone(made[0]))


# -- how many ----------------------------------------------------------------------------------


def test_of_too_many_connections_those_go_that_have_been_silent_longest(another, monkeypatch):
    monkeypatch.setattr(connections, "most_connections", lambda: 4)
    server = another()
    silent = [client_of(server) for _ in range(8)]
    try:
        wait_until(lambda: sum(map(is_ended, silent)) == 4)
        assert all(map(is_ended, silent[:4]))
        assert get(f"{server.url}/health").status_code == 200
        with server.camera("among-silent") as camera:
            camera.send(protocol.MemoryList())
            camera.next(protocol.MemoryDone)
    finally:
        for client in silent:
            client.close()


def test_who_got_an_answer_just_now_is_not_the_one_silent_longest(another, monkeypatch):
    monkeypatch.setattr(connections, "most_connections", lambda: 2)
    server = another()
    with client_of(server) as first, client_of(server) as second:
        first.sendall(GET + b"\r\n")
        assert first.recv(1 << 16).startswith(b"HTTP/1.1 200")
        with client_of(server):
            assert second.recv(1) == b""
            assert not is_ended(first)


def test_who_comes_at_the_limit_is_not_weighed_against_each_connection(another, monkeypatch):
    looked = []
    may_go = connections.Http.may_go
    monkeypatch.setattr(
        connections.Http, "may_go", property(lambda self: looked.append(self) or may_go.fget(self))
    )
    monkeypatch.setattr(connections, "most_connections", lambda: 20)
    server = another()
    silent = [client_of(server) for _ in range(40)]
    try:
        wait_until(lambda: sum(map(is_ended, silent)) == 20)
        assert len(looked) <= 40
    finally:
        for client in silent:
            client.close()


def test_where_all_connections_are_in_use_one_more_is_told_to_come_again(another, monkeypatch):
    monkeypatch.setattr(connections, "most_connections", lambda: 2)
    server = another()
    with server.camera("in-use-1") as one, server.camera("in-use-2") as two:
        refused = get(f"{server.url}/health")
        assert refused.status_code == 503 and refused.headers["Retry-After"]
        assert refused.json()["error"]["code"] == "TOO_MANY_CONNECTIONS"
        for camera in (one, two):
            camera.send(protocol.MemoryList())
            camera.next(protocol.MemoryDone)


def test_who_takes_no_answer_keeps_nobody_out(another, monkeypatch):
    monkeypatch.setattr(connections, "most_connections", lambda: 1)
    monkeypatch.setattr(connections, "UNREAD_TIMEOUT", 1000.0)
    server = another()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(METRICS * 2000)
        time.sleep(1.0)  # what can be sent is
        wait_until(lambda: get(f"{server.url}/health").status_code == 200)


def test_who_stops_to_take_a_long_answer_keeps_nobody_out(another, monkeypatch):
    monkeypatch.setattr(connections, "most_connections", lambda: 1)
    monkeypatch.setattr(connections, "UNREAD_TIMEOUT", 1000.0)
    server, others_came = another(), threading.Event()

    async def pieces():
        yield b"first"
        while True:
            await asyncio.sleep(0.01)
            if others_came.is_set():
                yield bytes(1 << 20)

    server.app.add_api_route("/long", lambda: StreamingResponse(pieces()))
    with client_of(server) as client:
        client.sendall(b"GET /long HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert client.recv(1 << 16).startswith(b"HTTP/1.1 200")
        assert get(f"{server.url}/health").status_code == 503  # it is being answered
        others_came.set()
        wait_until(lambda: get(f"{server.url}/health").status_code == 200)


# -- what each takes ---------------------------------------------------------------------------


def test_who_takes_nothing_of_what_is_sent_is_given_up(another, monkeypatch):
    monkeypatch.setattr(connections, "UNREAD_TIMEOUT", 0.5)
    server = another()
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(("127.0.0.1", server.port))
        client.sendall(METRICS * 500)
        wait_until(lambda: not can_send(client))


def test_a_client_that_sends_pings_without_end_is_cut_off(server, monkeypatch):
    monkeypatch.setattr(connections, "MANY", 20)
    with server.camera("pings") as camera:
        for _ in range(20):
            camera.socket.ping().wait(PATIENCE)
        camera.socket.ping()
        with pytest.raises(ConnectionClosedError, match=r"1008.*more than 20 pings"):
            camera.next(protocol.PictureDone)


def test_messages_come_in_pieces_but_not_in_crumbs(server, film, monkeypatch):
    monkeypatch.setattr(connections, "MANY", 20)
    pixels = film[0].image[:112, :112].tobytes()
    message = protocol.FrameMessage(1, film[0].stamp_ns, protocol.RAW, 112, 112, pixels).packed()
    with server.camera("pieces") as camera:
        camera.socket.send(message[at : at + 1024] for at in range(0, len(message), 1024))
        camera.send(protocol.Commit())
        assert camera.next(protocol.Ingested).first == 1
        with pytest.raises(ConnectionClosedError):  # it may send on when it is told why
            camera.socket.send(message[at : at + 1023] for at in range(0, len(message), 1023))
            camera.next(protocol.PictureDone)


def test_a_text_that_is_none_ends_the_connection_and_is_no_error_of_ours(another, caplog):
    server = another()
    with server.camera("no-text") as camera:
        camera.socket.send(b"\xff", text=True)
        with pytest.raises(ConnectionClosedError, match=r"1007.*no UTF-8"):
            camera.next(protocol.PictureDone)
    server.close()  # when all has come to its end
    assert not [one for one in caplog.records if one.levelname == "ERROR"]
