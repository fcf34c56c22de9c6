# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A server over the small model.

What imports torch is imported where it is used: the process in which no test runs, but which starts
those where they do, reads this file first.
"""

import itertools

import pytest

import stream_vlm_ros.world  # noqa: F401 - a source may be drawn
from stream_vlm_ros.config import Settings
from stream_vlm_ros.factory import kept_model
from stream_vlm_ros.serve.options import Limits
from stream_vlm_ros.sources import open_source


@pytest.fixture(scope="module")
def threads_of_files_before():
    """None whose words are not wanted: the server's are of all files' tests."""
    return set()


@pytest.fixture(scope="session")
def film():
    """Frames of the drawn world, each with its stamp; the first is not at 0."""
    return list(itertools.islice(open_source("world:7", fps=2.0, end=60.0), 1, 49))


@pytest.fixture(scope="session")
def settings(tmp_path_factory):
    """Of a server that saves."""
    return Settings(
        device="cpu",
        max_cache_tokens=2048,
        max_pixels=100_352,
        max_chunk_delay=1000.0,  # chunks are whole, however slow the machine
        memory_folder=str(tmp_path_factory.mktemp("memories")),
    )


@pytest.fixture(scope="session")
def server(settings):
    """One for all tests; each takes sessions of its own."""
    from serving import RunningServer

    from stream_vlm_ros.serve.sessions import Sessions

    sessions = Sessions(settings, Limits(max_sessions=200), load=kept_model)
    sessions.load()
    running = RunningServer(sessions)
    yield running
    sessions.drain(5.0)
    running.close()


@pytest.fixture
def often(monkeypatch):
    """Sessions are looked after without much waiting in between."""
    monkeypatch.setattr("stream_vlm_ros.serve.sessions.TICK", 0.01)


@pytest.fixture
def another(server):
    """Makes another way in to the same sessions."""
    from serving import RunningServer

    servers = []

    def make(*arguments, **options):
        servers.append(RunningServer(server.sessions, *arguments, **options))
        return servers[-1]

    yield make
    for one in servers:
        one.close()
