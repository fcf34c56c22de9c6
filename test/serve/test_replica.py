# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What a replica tells Ray of itself, without a cluster."""

import asyncio
from types import SimpleNamespace
from unittest.mock import MagicMock

import pytest
from patience import wait_until

from stream_vlm_ros.config import Settings
from stream_vlm_ros.serve.cluster import Cluster
from stream_vlm_ros.serve.options import Limits

# What Ray awaits, Python itself calls when it lets a replica go.
pytestmark = pytest.mark.filterwarnings("ignore:coroutine 'Replica.__del__' was never awaited")

pytest.importorskip("ray.serve", reason="Ray is not installed: requirements/ray.txt")
ray_app = pytest.importorskip("stream_vlm_ros.serve.ray_app")


def is_healthy(replica):
    try:
        replica.check_health()
    except RuntimeError:
        return False
    return True


@pytest.fixture
def replica(monkeypatch):
    monkeypatch.setattr(ray_app, "serve", MagicMock())
    monkeypatch.setattr(ray_app, "Sessions", MagicMock())
    monkeypatch.setattr(ray_app.ring, "listeners", [])
    return ray_app.Replica(Settings(), Limits(drain_seconds=7.0), "")


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_replica_that_hands_nothing_over_any_more_is_to_be_replaced(replica):
    assert is_healthy(replica)
    broken = SimpleNamespace(has=lambda tag: True, home_of=lambda id: 1 / 0)
    replica.sessions.all.return_value = [SimpleNamespace(id="robot")]
    [hear] = ray_app.ring.listeners
    hear(broken)
    wait_until(lambda: not is_healthy(replica))


@pytest.mark.parametrize(
    ("gpus", "cpus", "has", "expected"),
    [
        (0.0, 1.0, [{"CPU": 2.0}], False),
        (0.0, 1.0, [{"CPU": 3.0}], True),
        (0.0, 0.5, [{"CPU": 2.0}], True),
        (0.0, 0.1, [{"CPU": 0.3}], True),
        (0.0, 0.0, [{}], True),
        (0.0, 4.0, [{"CPU": 6.0}, {"CPU": 6.0}], False),  # of which none has 4 left
        (0.0, 4.0, [{"CPU": 6.0}, {"CPU": 6.0}, {"CPU": 4.0}], True),
        (1.0, 1.0, [{"CPU": 64.0, "GPU": 2.0}], False),
        (1.0, 1.0, [{"CPU": 64.0, "GPU": 3.0}], True),
        (2.0, 1.0, [{"CPU": 64.0, "GPU": 3.0}, {"CPU": 64.0, "GPU": 3.0}], False),
        (0.6, 1.0, [{"CPU": 64.0, "GPU": 2.0}], False),
        (1.0, 1.0, [{"CPU": 2.0, "GPU": 8.0}, {"CPU": 64.0}], False),
    ],
)
def test_a_replica_begins_before_another_ends_only_where_a_further_one_fits(
    monkeypatch, gpus, cpus, has, expected
):
    monkeypatch.setattr(ray_app.ray, "is_initialized", lambda: True)
    nodes = [{"Alive": True, "Resources": one} for one in has]
    gone = {"Alive": False, "Resources": {"CPU": 64.0, "GPU": 8.0}}
    monkeypatch.setattr(ray_app.ray, "nodes", lambda: [*nodes, gone])
    cluster = Cluster(replicas=2, replica_gpus=gpus, replica_cpus=cpus)
    assert ray_app.has_room(cluster) is expected


def test_a_replica_that_ray_ends_saves_the_sessions_that_nobody_is_connected_to(replica):
    for listener in ray_app.ring.listeners:
        listener(SimpleNamespace(has=lambda tag: True))  # no proxy has heard of it
    replica.sessions.all.return_value = []
    asyncio.run(replica.__del__())
    replica.sessions.drain.assert_called_once_with(7.0)
