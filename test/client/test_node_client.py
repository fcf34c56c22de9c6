# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A client against a stand-in of the node: what it says, sends, and waits for."""

import contextlib
import threading

import pytest

rclpy = pytest.importorskip("rclpy")
pytestmark = pytest.mark.ros

PATIENCE = 60.0


class StandIn:
    """The node as far as a client sees it; it answers with what it was asked."""

    def __init__(self, node):
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from stream_vlm.msg import CacheStatus

        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self._status = node.create_publisher(CacheStatus, "~/cache_status", latched)
        self._node, self._type = node, CacheStatus
        self.resets = 0
        self.requests = []

    def say(self, state, **fields):
        self._status.publish(self._type(state=state, **fields))

    def serve(self):
        from std_srvs.srv import Trigger
        from stream_vlm.srv import Query

        self._node.create_service(Query, "~/query", self._answer)
        self._node.create_service(Trigger, "~/reset", self._reset)

    def _answer(self, request, response):
        self.requests.append(request)
        response.answer.text = request.question.upper()
        return response

    def _reset(self, request, response):
        self.resets += 1
        response.success = True
        return response


@pytest.fixture
def graph():
    """Makes nodes, which a thread serves."""
    from rclpy.context import Context
    from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor

    context = Context()
    rclpy.init(context=context)
    executor = SingleThreadedExecutor(context=context)
    nodes = []

    def spin():
        with contextlib.suppress(ExternalShutdownException):
            while context.ok():
                executor.spin_once(timeout_sec=0.05)

    def make(name, namespace="robot"):
        node = rclpy.create_node(name, namespace=namespace, context=context)
        nodes.append(node)
        executor.add_node(node)
        executor.wake()
        return node

    make.context = context
    serving = threading.Thread(target=spin)
    serving.start()
    yield make
    context.try_shutdown()
    serving.join()
    executor.shutdown()
    for node in nodes:
        node.destroy_node()


@pytest.fixture
def client(graph):
    from stream_vlm_ros.client.node_client import NodeClient

    return NodeClient(graph("asking"), "stream_vlm")


@pytest.fixture
def node(graph):
    return StandIn(graph("stream_vlm"))


def wait(client, condition, why=lambda: "it took too long", seconds=PATIENCE):
    client.wait(condition, why, seconds, lambda: threading.Event().wait(0.02))


def test_it_says_why_the_node_cannot_be_asked_and_when_it_can(client, node):
    assert client.why_not_ready() == "it cannot be seen: no message on ~/cache_status"
    assert (client.frames, client.chunks, client.counts) == (0, 0, {})
    assert client.why_no_frames() == "it received 0 images and took none into memory"
    node.say("inactive")
    wait(client, lambda: client.status is not None)
    assert client.why_not_ready() == "its state is inactive"
    node.say("active", frames=3, chunks=2, frames_received=9, dropped_sampling=6)
    wait(client, lambda: client.statuses == 2)
    assert client.why_not_ready() == "its service ~/query is away"
    node.serve()
    wait(client, lambda: client.ready, client.why_not_ready)
    assert (client.frames, client.chunks) == (3, 2)
    assert client.counts["frames_received"] == 9 and client.counts["dropped_sampling"] == 6
    assert client.why_no_frames() == "it received 9 images and took none into memory"


def test_a_question_goes_out_with_what_was_said_of_it(client, node):
    node.serve()
    node.say("active")
    wait(client, lambda: client.ready, client.why_not_ready)
    plain = client.ask("who?")
    about = client.ask("which?", ["a", "b"], 7, (1_000_000_002, 3_000_000_004))
    wait(client, lambda: plain.done() and about.done())
    assert [f.result().answer.text for f in (plain, about)] == ["WHO?", "WHICH?"]
    first, second = node.requests
    assert (list(first.choices), first.max_new_tokens, first.about_to.sec) == ([], 0, 0)
    assert (list(second.choices), second.max_new_tokens) == (["a", "b"], 7)
    assert (second.about_from.sec, second.about_from.nanosec) == (1, 2)
    assert (second.about_to.sec, second.about_to.nanosec) == (3, 4)


def test_a_reset_reaches_the_node(client, node):
    node.serve()
    node.say("active")
    wait(client, lambda: client.ready, client.why_not_ready)
    done = client.reset()
    wait(client, done.done)
    assert done.result().success and node.resets == 1


def test_waiting_in_vain_ends_with_the_reason(client):
    from stream_vlm_ros.client.node_client import NodeUnavailableError

    why = r"^waited 0 s for the node /robot/stream_vlm: it cannot be seen"
    with pytest.raises(NodeUnavailableError, match=why):
        wait(client, lambda: client.ready, client.why_not_ready, seconds=0.1)


def test_waiting_ends_with_the_context(client, graph):
    from rclpy.executors import ExternalShutdownException

    graph.context.try_shutdown()
    with pytest.raises(ExternalShutdownException):
        wait(client, lambda: False)


def test_two_nodes_of_one_name_are_refused_and_one_of_another_namespace_is_none_of_them(
    client, node, graph
):
    from stream_vlm_ros.client.node_client import NodeUnavailableError

    graph("stream_vlm", namespace="elsewhere")
    client.refuse_second_node()
    graph("stream_vlm")
    with pytest.raises(NodeUnavailableError, match="two nodes named /robot/stream_vlm run"):
        client.wait(lambda: False, str, PATIENCE, client.refuse_second_node)
