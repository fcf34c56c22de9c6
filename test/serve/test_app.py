# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What is told over HTTP, and to whom."""

from contextlib import closing
from pathlib import Path

import pytest
from fastapi.testclient import TestClient
from patience import wait_until
from prometheus_client.parser import text_string_to_metric_families
from serving import RunningServer, delete, feed, get

from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.factory import kept_model
from stream_vlm_ros.serve.app import create_app
from stream_vlm_ros.serve.keys import Keys
from stream_vlm_ros.serve.sessions import Sessions
from stream_vlm_ros.session.engine_thread import EngineThread
from stream_vlm_ros.session.question import NotActiveError

KEY, OTHER = "of this file: 16", "another of those"  # whose sessions no other test has


def bearer(key):
    return {"Authorization": f"Bearer {key}"}


@pytest.fixture(scope="module")
def keyed(server):
    """A way in for who knows a key."""
    with closing(RunningServer(server.sessions, Keys((KEY, OTHER)))) as running:
        yield running


def test_health_is_for_everybody_and_says_little(keyed):
    answer = get(f"{keyed.url}/health")
    assert (answer.status_code, answer.json()) == (200, {"status": "ok"})
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "server" not in answer.headers


@pytest.mark.parametrize("path", ["/metrics", "/v1/sessions", "/v1/nothing", "/docs", "/"])
def test_all_else_needs_a_key(keyed, path):
    for headers in ({}, bearer("0123456789abcdeX"), bearer("ключ".encode().decode("latin-1"))):
        answer = get(keyed.url + path, headers={k: v.encode() for k, v in headers.items()})
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer"
        assert answer.json()["error"]["type"] == "authentication_error"


def test_a_session_is_listed_and_deleted_by_its_key_alone(keyed, film):
    with keyed.camera("listed", KEY) as camera:
        feed(camera, film[:4])
        [listed] = get(f"{keyed.url}/v1/sessions", headers=bearer(KEY)).json()["data"]
        assert (listed["id"], listed["frames"], listed["connected"]) == ("listed", 4, True)
        assert get(f"{keyed.url}/v1/sessions", headers=bearer(OTHER)).json()["data"] == []
        url = f"{keyed.url}/v1/sessions/listed"
        answer = delete(url, headers=bearer(OTHER))
        assert answer.status_code == 404 and answer.json()["error"]["code"] == "NO_SESSION"
        assert delete(url, headers=bearer(KEY)).json()["deleted"]
        assert delete(url, headers=bearer(KEY)).status_code == 404
        while getattr(event := camera.hear(), "code", "") != "ENDING":
            pass
        assert event.retry_after is None  # it is forgotten


def test_the_front_cuts_off_nothing_of_a_server_that_drains():
    config = Path(__file__).parents[2] / "config" / "haproxy.cfg"
    # /health is 503 while questions are still answered and memories saved.
    assert "on-marked-down" not in config.read_text()


def test_who_can_open_no_session_since_the_engines_ended_is_not_healthy(monkeypatch):
    threads = []

    def made(*given, **options):
        threads.append(EngineThread(*given, **options))
        return threads[-1]

    monkeypatch.setattr("stream_vlm_ros.serve.sessions.EngineThread", made)
    settings = Settings(device="cpu", max_cache_tokens=2048, max_pixels=100_352)
    sessions = Sessions(settings, load=kept_model)
    sessions.load()
    health = TestClient(create_app(sessions, Keys())).get
    assert health("/health").json() == {"status": "ok"}
    [thread] = threads
    thread.scheduler.choose = None  # a fault of this package's own
    with thread.wake:
        thread.wake.notify()
    wait_until(lambda: not sessions.is_alive)
    answer = health("/health")
    assert (answer.status_code, answer.json()) == (503, {"status": "failed"})
    with pytest.raises(NotActiveError, match="has ended"):
        sessions.open("new", "local")
    sessions.drain(1.0)


def test_another_sites_page_changes_nothing(server):
    foreign = {"Origin": "https://elsewhere.example"}
    answer = delete(f"{server.url}/v1/sessions/x", headers=foreign)
    assert answer.status_code == 403
    renamed = get(f"{server.url}/v1/sessions", headers={"Host": "elsewhere.example"})
    assert renamed.status_code == 403


@pytest.mark.parametrize(
    ("told", "status"),
    [
        (["127.0.0.1"], 200),
        (["::1, 127.0.0.1"], 200),
        (["::1", "127.0.0.1"], 200),
        (["192.0.2.7"], 401),
        (["127.0.0.1, 192.0.2.7"], 401),
        (["127.0.0.1", "192.0.2.7"], 401),
        (["192.0.2.7", "127.0.0.1"], 401),
    ],
)
def test_without_a_key_a_proxy_lets_nobody_in_from_elsewhere(server, told, status):
    headers = [("X-Forwarded-For", line) for line in told]
    answer = get(f"{server.url}/v1/sessions", headers=headers)
    assert answer.status_code == status


def test_who_can_be_reached_by_others_needs_a_key():
    with pytest.raises(InvalidParameterError, match="needs a key"):
        Keys((), "0.0.0.0")


def test_prometheus_is_told_what_became_of_frames_and_questions(server, film):
    def scraped():
        text = get(f"{server.url}/metrics").text
        return {
            (sample.name, *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }

    before = scraped()
    with server.camera("measured") as camera:
        feed(camera, film[:8])
        camera.ask("What do you see?")
        during = scraped()
    server.sessions.close("measured", "local")
    after = scraped()

    def grown(now, *name):
        return now[name] - before.get(name, 0)

    for now in (during, after):
        assert grown(now, "stream_vlm_frames_total", "ingested") == 8
        assert grown(now, "stream_vlm_questions_total", "answered") == 1
        assert grown(now, "stream_vlm_first_token_seconds_count") == 1
    assert grown(during, "stream_vlm_sessions") == 1 and grown(after, "stream_vlm_sessions") == 0
    assert grown(during, "stream_vlm_connections") == 1
    assert grown(during, "stream_vlm_memory_tokens") > 80
    assert grown(during, "stream_vlm_engine_parts_total", "chunks") == 2
    assert grown(during, "stream_vlm_engine_passes_total", "answers") >= 1
    for work in ("chunks", "answers"):
        assert grown(during, "stream_vlm_engine_seconds_total", work) > 0
