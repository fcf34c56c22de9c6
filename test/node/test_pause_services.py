# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``~/pause`` and ``~/resume`` of a node that is not active."""

from types import SimpleNamespace

import pytest

pytest.importorskip("rclpy")
from std_srvs.srv import Trigger

from stream_vlm_ros.node.pause_services import PauseServices

pytestmark = pytest.mark.ros


def test_a_node_that_was_paused_and_deactivated_can_be_resumed_and_nothing_else():
    services = {}
    node = SimpleNamespace(
        state="inactive",
        create_service=lambda kind, name, callback, qos_profile: services.update({name: callback}),
        info=lambda words: None,
    )
    ingest = SimpleNamespace(paused=True)
    camera = SimpleNamespace(
        ingest=ingest, said=lambda words: words, publish_status=lambda: None, topic=str
    )
    PauseServices(node, [camera])
    told = services["~/resume"](Trigger.Request(), Trigger.Response())
    assert told.success and "once the node is active" in told.message and not ingest.paused
    for name in ("~/resume", "~/pause"):  # there is nothing to resume now
        told = services[name](Trigger.Request(), Trigger.Response())
        assert not told.success and "inactive, not active" in told.message
