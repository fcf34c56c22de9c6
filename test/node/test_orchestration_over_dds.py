# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What a system around the node does with it: brings it up and down, and sets its QoS."""

import pytest

pytest.importorskip("rclpy")
from lifecycle_msgs.msg import State, Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rclpy.qos import DurabilityPolicy, ReliabilityPolicy

pytestmark = pytest.mark.ros

UP = [
    (Transition.TRANSITION_CONFIGURE, State.PRIMARY_STATE_INACTIVE),
    (Transition.TRANSITION_ACTIVATE, State.PRIMARY_STATE_ACTIVE),
]
DOWN = [
    (Transition.TRANSITION_DEACTIVATE, State.PRIMARY_STATE_INACTIVE),
    (Transition.TRANSITION_CLEANUP, State.PRIMARY_STATE_UNCONFIGURED),
]
END = [(Transition.TRANSITION_UNCONFIGURED_SHUTDOWN, State.PRIMARY_STATE_FINALIZED)]


@pytest.mark.parametrize("here", [{"sources": "front,rear"}], indirect=True)
def test_nav2s_lifecycle_manager_brings_it_up_and_down_by_ids(here, connect):
    """Its sequence: each transition by its id alone, and the state read after each; startup, reset
    and shutdown."""
    graph, name = here.client.graph, here.client.name
    front = connect("here", camera="front")
    for transition, state in [*DOWN, *UP, *DOWN, *UP]:
        request = ChangeState.Request(transition=Transition(id=transition))
        assert graph.call(ChangeState, f"{name}/change_state", request).success
        assert graph.call(GetState, f"{name}/get_state").current_state.id == state
    front.send(front.image())
    assert front.wait_status(lambda s: s.frames == 1, what="the frame").state == "active"
    for transition, state in [*DOWN, *END]:
        request = ChangeState.Request(transition=Transition(id=transition))
        assert graph.call(ChangeState, f"{name}/change_state", request).success
        assert graph.call(GetState, f"{name}/get_state").current_state.id == state
    assert here.node.cameras == () and here.said == []


OVERRIDES = {
    "qos_overrides./here/stream_vlm/answer.publisher.depth": 7,
    "qos_overrides./here/stream_vlm/annotated_image.publisher.durability": "transient_local",
    "qos_overrides./here/stream_vlm/annotated_image.publisher.reliability": "best_effort",
    "qos_overrides./diagnostics.publisher.depth": 3,
    "qos_overrides./here/image.subscription.depth": 2,
}


@pytest.mark.parametrize("here", [OVERRIDES], indirect=True)
def test_qos_of_what_is_published_and_of_images_can_be_overridden(here):
    node = here.node
    own = {publisher.topic_name: publisher.qos_profile for publisher in node.publishers}
    assert own["/here/stream_vlm/answer"].depth == 7
    assert own["/here/stream_vlm/answer"].durability == DurabilityPolicy.TRANSIENT_LOCAL
    annotated = own["/here/stream_vlm/annotated_image"]
    assert annotated.durability == DurabilityPolicy.TRANSIENT_LOCAL
    assert annotated.reliability == ReliabilityPolicy.BEST_EFFORT
    assert own["/diagnostics"].depth == 3
    images = {one.topic_name: one.qos_profile for one in node.subscriptions}["/here/image"]
    assert images.depth == 2
    assert node.get_parameter("qos_overrides./here/image.subscription.depth").value == 2
    # Reliability follows the publisher's, as without overrides.
    here.client.send(here.client.image(), reliable=False)
