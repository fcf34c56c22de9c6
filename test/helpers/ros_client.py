# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A node of the test's own, and a client that drives the node under test over DDS."""

import array
import functools
import itertools
import threading
import time

import numpy as np
import pytest
from node_process import NodeProcess
from patience import PATIENCE


class Graph:
    """A node of the test's own, spun in a thread."""

    def __init__(self):
        import rclpy
        from rclpy.executors import SingleThreadedExecutor
        from rclpy.signals import SignalHandlerOptions

        self.context = rclpy.Context()
        rclpy.init(context=self.context, signal_handler_options=SignalHandlerOptions.NO)
        self.node = rclpy.create_node("tester", context=self.context)
        self.executor = SingleThreadedExecutor(context=self.context)
        self.executor.add_node(self.node)
        self._ending = False
        self._fault = None
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self):
        from stream_vlm_ros.node.spinning import is_of_what_went

        while not self._ending:
            try:
                self.executor.spin_once(timeout_sec=0.1)
            except Exception as fault:
                if not is_of_what_went(fault):
                    self._fault = fault
                    raise

    def close(self):
        self._ending = True
        self._thread.join(5)
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()

    def wait(self, condition, timeout=PATIENCE, what="the condition"):
        """Until ``condition()`` is true; its value."""
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            assert self._fault is None, f"the thread that spins failed: {self._fault!r}"
            if time.monotonic() > deadline:
                pytest.fail(f"{what} did not come within {timeout} s{NodeProcess.what_they_do()}")
            time.sleep(0.02)
        return value

    def result(self, future):
        self.wait(future.done, what="the reply")
        return future.result()

    def do(self, call):
        """``call()`` in the thread that spins; its value."""
        return self.result(self.executor.create_task(call))

    def call(self, service_type, name, request=None):
        reply = self.reply(service_type, name, request)
        if reply is None:
            pytest.fail(f"no reply of {name} in {PATIENCE} s{NodeProcess.what_they_do()}")
        return reply

    def reply(self, service_type, name, request=None, within=PATIENCE):
        """The reply of a service; None if it does not come in so many seconds.

        A service that has not yet found the client's side loses its reply, without a word to
        either: who gets none asks again.
        """
        client = self.node.create_client(service_type, name)
        try:
            if not client.wait_for_service(within):
                return None
            request = request or service_type.Request()
            done = self.first_done(lambda: client.call_async(request), within)
            return None if done is None else done.result()
        finally:
            self.node.destroy_client(client)

    def first_done(self, send, within=PATIENCE):
        """The first future that is done of those of ``send()``, which is called up to three times;
        None if none is in so many seconds."""
        sent, begin = [], time.monotonic()
        while (waited := time.monotonic() - begin) < within:
            if waited >= len(sent) * within / 3:
                sent.append(send())
            if done := [one for one in sent if one.done()]:
                return done[0]
            assert self._fault is None, f"the thread that spins failed: {self._fault!r}"
            time.sleep(0.02)
        return None

    def listen(self, message_type, topic, latched=False):
        """A list that grows by each message, and the subscription that does it."""
        from rclpy.qos import DurabilityPolicy, QoSProfile

        durability = DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
        heard = []
        qos = QoSProfile(depth=50, durability=durability)
        subscription = self.do(
            lambda: self.node.create_subscription(message_type, topic, heard.append, qos)
        )
        return heard, subscription


class Goal:
    """A goal of ~/ask. rclpy's action client loses a reply that comes before its own call has
    returned (in another thread), so every call is made in the thread that spins."""

    def __init__(self, graph, action, message):
        self._graph = graph
        self.feedback = []
        send = lambda: graph.do(lambda: action.send_goal_async(message, self._hear))  # noqa: E731
        replied = graph.first_done(send)  # one is lost as a service's is: see `Graph.reply`
        assert replied is not None, f"no reply to a goal in {PATIENCE} s"
        self._handle = replied.result()
        assert self._handle.accepted
        self._pending = graph.do(self._handle.get_result_async)

    def _hear(self, message):
        self.feedback.append(message.feedback)

    @property
    def done(self):
        return self._pending.done()

    def wait_for_text(self):
        self._graph.wait(lambda: any(f.text for f in self.feedback), what="text of an answer")

    def result(self):
        """Its status and its answer."""
        reply = self._graph.result(self._pending)
        return reply.status, reply.result.answer

    def cancel(self):
        self._graph.result(self._graph.do(self._handle.cancel_goal_async))


class StreamVlmClient:
    """Drives one node over DDS, as a user's program would; of several cameras one."""

    def __init__(self, graph, namespace, topic="image", camera=""):
        from diagnostic_msgs.msg import DiagnosticArray
        from stream_vlm.msg import Answer, CacheStatus

        self.graph = graph
        self._subscriptions, self._actions = [], []
        self.name = f"/{namespace}/stream_vlm"
        self.own = f"{self.name}/{camera}" if camera else self.name
        self.image_topic = f"/{namespace}/{camera}/{topic}" if camera else f"/{namespace}/{topic}"
        self.diagnosed = f"{self.name.lstrip('/')}: {camera + ': ' if camera else ''}image input"
        self.statuses = self.listen(CacheStatus, f"{self.own}/cache_status", latched=True)
        self.answers = self.listen(Answer, f"{self.name}/answer", latched=True)
        self.diagnostics = self.listen(DiagnosticArray, "/diagnostics")
        self.stamp_ns = 1_000_000_000_000
        self.publishers = {}

    def listen(self, *arguments, **options):
        heard, subscription = self.graph.listen(*arguments, **options)
        self._subscriptions.append(subscription)
        return heard

    def is_answered(self, within):
        """Whether the node answers this client at all, in so many seconds."""
        from lifecycle_msgs.srv import GetState

        return self.graph.reply(GetState, f"{self.name}/get_state", within=within) is not None

    def close(self):
        self.drop_publishers()
        for subscription in self._subscriptions:
            self.graph.do(functools.partial(self.graph.node.destroy_subscription, subscription))
        for action in self._actions:
            self.graph.do(action.destroy)

    def publisher(self, reliable=True, kind=None):
        from rclpy.qos import QoSProfile, ReliabilityPolicy
        from sensor_msgs.msg import Image

        kind = kind or Image
        if (reliable, kind) not in self.publishers:
            policy = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
            publisher = self.graph.node.create_publisher(
                kind, self.image_topic, QoSProfile(depth=10, reliability=policy)
            )
            self.adopt(publisher, reliable, kind)
        return self.publishers[reliable, kind]

    def adopt(self, publisher, reliable, kind):
        """Use a publisher once its images arrive: until both sides have found each other, and the
        node has taken over its QoS, some are lost. The images that try it out are unusable ones;
        when the last of them has been refused, none is on its way any more."""
        self.publishers[reliable, kind] = publisher
        self.graph.wait(lambda: self._is_followed(reliable, kind), what="the node's subscription")
        # Between the image before and the one that is about to be sent.
        stamps = itertools.count(self.stamp_ns - 400_000_000, 1_000_000)

        def arrives():
            number, before = next(stamps), self.status.frames_received
            words = {"format" if hasattr(kind, "format") else "encoding": f"probe {number}"}
            publisher.publish(kind(header=self.header(number), **words))
            deadline = time.monotonic() + 2.0  # lost, if it has not come until then
            while time.monotonic() < deadline:
                # Diagnostics are told behind the status, which may have been made before it came.
                counted = self.status.frames_received > before
                refused = self.status.state != "active" or f"probe {number}" in self.refusal()
                if counted and refused:
                    return True
                time.sleep(0.02)
            return False

        self.graph.wait(arrives, what="the first image")

    def _is_followed(self, reliable, kind):
        """Whether the node, and nobody else, subscribes as this publisher publishes."""
        from rclpy.qos import ReliabilityPolicy

        found = self.graph.node.get_subscriptions_info_by_topic(self.image_topic)
        name = f"sensor_msgs/msg/{kind.__name__}"
        wanted = ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT
        return [(info.topic_type, info.qos_profile.reliability) for info in found] == [
            (name, wanted)
        ]

    def refusal(self):
        """The last refusal of an image that the node's diagnostics tell."""
        statuses = [s for heard in self.diagnostics[-4:] for s in heard.status]
        found = [s for s in statuses if s.name == self.diagnosed]
        return self.last_refusal(found[-1]) if found else ""

    @staticmethod
    def last_refusal(diagnostic):
        return {value.key: value.value for value in diagnostic.values}.get("last_refusal", "")

    def diagnostic(self, task, condition):
        """The first status of a task from now on that fulfils the condition."""
        heard = self.diagnostics
        del heard[:]
        name = f"{self.name.lstrip('/')}: {task}"

        def find():
            for told in heard:
                for status in told.status:
                    if status.name == name and condition(status):
                        return status
            return None

        return self.graph.wait(find, what=f"{name} on /diagnostics")

    def drop_publishers(self):
        for publisher in self.publishers.values():
            self.graph.node.destroy_publisher(publisher)
        self.publishers.clear()

    def image(self, step_ns=500_000_000, height=56, width=84, **changes):
        """The next image; ``changes`` overwrite its fields."""
        from sensor_msgs.msg import Image

        self.stamp_ns += step_ns
        message = Image(height=height, width=width, encoding="rgb8", step=3 * width)
        message.header = self.header(self.stamp_ns)
        pixels = np.random.default_rng(self.stamp_ns).integers(0, 256, height * width * 3)
        message.data = array.array("B", pixels.astype(np.uint8).tobytes())
        for name, value in changes.items():
            setattr(message, name, value)
        return message

    @staticmethod
    def header(stamp_ns):
        from builtin_interfaces.msg import Time
        from std_msgs.msg import Header

        seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
        stamp = Time(sec=seconds, nanosec=nanoseconds)
        return Header(stamp=stamp, frame_id="camera_optical_frame")

    def send(self, message, reliable=True):
        """Publish, and wait until the node has counted it."""
        publisher = self.publisher(reliable, type(message))
        before = self.status.frames_received
        publisher.publish(message)
        self.wait_status(lambda s: s.frames_received > before, what="the image's arrival")

    @property
    def status(self):
        self.graph.wait(lambda: self.statuses, what="a status")
        return self.statuses[-1]

    def wait_status(self, condition, what="the status"):
        self.graph.wait(lambda: self.statuses and condition(self.statuses[-1]), what=what)
        return self.statuses[-1]

    def ask(self, question="What do you see?", **fields):
        from stream_vlm.srv import Query

        fields = {"max_new_tokens": 4, **fields}
        request = Query.Request(question=question, **fields)
        return self.graph.call(Query, f"{self.name}/query", request).answer

    def send_goal(self, question="What do you see?", **fields):
        from rclpy.action import ActionClient
        from stream_vlm.action import Ask

        action = ActionClient(self.graph.node, Ask, f"{self.name}/ask")
        self._actions.append(action)
        assert action.wait_for_server(PATIENCE)
        return Goal(self.graph, action, Ask.Goal(question=question, **fields))

    def reset(self):
        return self.trigger("reset")

    def trigger(self, name):
        from std_srvs.srv import Trigger

        return self.graph.call(Trigger, f"{self.own}/{name}")

    def change_state(self, transition):
        from lifecycle_msgs.srv import ChangeState

        request = ChangeState.Request()
        request.transition.label = transition
        return self.graph.call(ChangeState, f"{self.name}/change_state", request).success

    def state(self):
        from lifecycle_msgs.srv import GetState

        return self.graph.call(GetState, f"{self.name}/get_state").current_state.label

    def set_parameter(self, name, value):
        from rcl_interfaces.srv import SetParameters
        from rclpy.parameter import Parameter

        request = SetParameters.Request(
            parameters=[Parameter(name, value=value).to_parameter_msg()]
        )
        return self.graph.call(SetParameters, f"{self.name}/set_parameters", request).results[0]
