# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A server over the small model."""

import itertools

import pytest
from serving import RunningServer

import stream_vlm_ros.world  # noqa: F401 - a source may be drawn
from stream_vlm_ros.config import Settings
from stream_vlm_ros.serve.options import Limits
from stream_vlm_ros.serve.sessions import Sessions
from stream_vlm_ros.sources import open_source

SETTINGS = Settings(device="cpu", max_cache_tokens=2048, max_pixels=100_352, max_new_tokens=16)


@pytest.fixture(scope="session")
def film():
    """Frames of the drawn world, each with its stamp."""
    return list(itertools.islice(open_source("world:7", fps=2.0, end=60.0), 48))


@pytest.fixture(scope="module")
def server():
    """One for all tests of a module; each takes sessions of its own."""
    sessions = Sessions(SETTINGS, Limits(max_sessions=32))
    sessions.load()
    running = RunningServer(sessions)
    yield running
    sessions.drain(5.0)
    running.close()
