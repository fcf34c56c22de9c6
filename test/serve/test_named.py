# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""One replica of several refuses what has come to it by chance."""

import pytest
from fastapi import FastAPI, WebSocket
from fastapi.testclient import TestClient
from fastapi.websockets import WebSocketDisconnect

from stream_vlm_ros.remote import protocol
from stream_vlm_ros.serve.keys import Keys
from stream_vlm_ros.serve.named import Named

NAME = {protocol.SESSION_HEADER: "front"}


def client(keys=(), **options):
    """Of an application behind it that answers everything."""
    app = FastAPI()

    @app.api_route("/{path:path}", methods=["GET", "POST", "DELETE"])
    def anything(path: str):
        return path

    @app.websocket(protocol.PATH)
    async def camera(socket: WebSocket):
        await socket.accept(protocol.SUBPROTOCOL)
        await socket.send_text("served")
        await socket.close()

    return TestClient(Named(app, "abcd", Keys(keys)), **options)


@pytest.fixture
def local():
    return client(client=("127.0.0.1", 50000))


def test_what_is_of_no_session_passes(local):
    for path in ("/health", "/metrics", "/v1/models", "/v1/sessions"):
        answer = local.get(path)
        assert (answer.status_code, answer.headers["x-stream-vlm-replica"]) == (200, "abcd")


@pytest.mark.parametrize(
    ("method", "path"),
    [("POST", "/v1/chat/completions"), ("DELETE", "/v1/sessions/front")],
)
def test_what_is_of_a_session_must_name_it_in_the_header(local, method, path):
    refused = local.request(method, path)
    assert refused.status_code == 400
    assert refused.json()["error"]["code"] == "SESSION_MISSING"
    assert "name the session in the header x-session-id" in refused.json()["error"]["message"]
    assert local.request(method, path, headers=NAME).status_code == 200


def test_a_session_that_is_ended_must_be_that_of_the_header(local):
    refused = local.delete("/v1/sessions/rear", headers=NAME)
    assert refused.status_code == 400
    assert "names front, and the path another session" in refused.json()["error"]["message"]


def test_without_a_key_this_machine_alone_is_let_in_and_with_one_the_key_decides():
    refused = client(client=("192.0.2.7", 50000)).get("/health")
    assert refused.status_code == 401
    assert "no key" in refused.json()["error"]["message"]
    assert client(["k" * 16], client=("192.0.2.7", 50000)).get("/health").status_code == 200


def test_a_camera_that_names_no_session_is_refused_in_words(local):
    offered = [protocol.SUBPROTOCOL]
    with local.websocket_connect(protocol.PATH, subprotocols=offered, headers=NAME) as socket:
        assert socket.receive_text() == "served"
    with (
        pytest.raises(WebSocketDisconnect) as refused,
        local.websocket_connect(protocol.PATH, subprotocols=offered),
    ):
        pass
    assert refused.value.status_code == 400
    assert "name the session in the header" in refused.value.json()["error"]["message"]
