"""A stand-in for the engine, image messages without ROS, and a node in a process of its own."""

import array
import functools
import itertools
import math
import os
import signal
import subprocess
import sys
import threading
import time
import typing
import weakref
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from fake_engine import FakeEngine
from patience import PATIENCE


@pytest.fixture
def fake_engine():
    return FakeEngine()


def header(stamp_ns=1, frame_id="camera"):
    seconds, nanoseconds = divmod(stamp_ns, 1_000_000_000)
    stamp = SimpleNamespace(sec=seconds, nanosec=nanoseconds)
    return SimpleNamespace(stamp=stamp, frame_id=frame_id)


def image_message(pixels, encoding, padding=0, big_endian=False, stamp_ns=1):
    """The fields of a sensor_msgs/Image that carries the array ``pixels`` [height, width, ...]."""
    order = ">" if big_endian else "<"
    rows = np.ascontiguousarray(pixels.astype(pixels.dtype.newbyteorder(order)))
    rows = rows.view(np.uint8).reshape(pixels.shape[0], -1)
    rows = np.pad(rows, ((0, 0), (0, padding)), constant_values=171)
    return SimpleNamespace(
        header=header(stamp_ns),
        height=pixels.shape[0],
        width=pixels.shape[1],
        encoding=encoding,
        is_bigendian=int(big_endian),
        step=rows.shape[1],
        data=array.array("B", rows.tobytes()),
    )


@pytest.fixture
def make_image():
    return image_message


@pytest.fixture
def make_header():
    return header


# A node in a process of its own -------------------------------------------------------------------


# As ``python -m stream_vlm_ros.node``, and a signal makes it print what each thread is doing.
RUN_NODE = """
import faulthandler, runpy, signal
faulthandler.register(signal.SIGUSR2)
runpy.run_module("stream_vlm_ros.node", run_name="__main__", alter_sys=True)
"""


class NodeProcess:
    """``python -m stream_vlm_ros.node`` with its output gathered."""

    living: typing.ClassVar = weakref.WeakSet()

    @classmethod
    def what_they_do(cls):
        """Output of each node that runs, and where its threads are: what a failed wait is told."""
        told = []
        for node in [node for node in cls.living if node.process.poll() is None]:
            node.process.send_signal(signal.SIGUSR2)
            time.sleep(2.0)
            told.append("\n".join(["", f"node {node.process.pid}:", *node.lines[-120:]]))
        return "".join(told)

    def __init__(self, *remaps, namespace="", environment=None, **parameters):
        arguments = [sys.executable, "-c", RUN_NODE, "--ros-args"]
        for name, value in parameters.items():
            arguments += ["-p", f"{name}:={value}"]
        for remap in (*remaps, *([f"__ns:=/{namespace}"] if namespace else [])):
            arguments += ["-r", remap]
        self.process = subprocess.Popen(
            arguments,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1", **(environment or {})},
            start_new_session=True,
        )
        self.living.add(self)
        self.lines = []
        self._changed = threading.Condition()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self):
        for line in self.process.stdout:
            with self._changed:
                self.lines.append(line.rstrip())
                self._changed.notify_all()
        with self._changed:
            self._changed.notify_all()

    @property
    def output(self):
        return "\n".join(self.lines)

    def wait_for(self, words, timeout=PATIENCE):
        """Until the output holds ``words``."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while words not in self.output:
                left = deadline - time.monotonic()
                over = self.process.poll() is not None and not self._reader.is_alive()
                assert left > 0 and not over, f"{words!r} never came:\n{self.output}"
                self._changed.wait(min(left, 0.5))

    def stop(self, number=signal.SIGINT, timeout=PATIENCE):
        """Send a signal; the exit status."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            status = self.process.wait(timeout)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"the node did not end:\n{self.output}") from None
        self._reader.join(5)
        return status

    def group_is_empty(self):
        """Whether no process of the node's session is left."""
        for status in Path("/proc").glob("[0-9]*/stat"):
            try:
                fields = status.read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(fields[3]) == self.process.pid and fields[0] != "Z":  # its session
                return False
        return True


@pytest.fixture(scope="session")
def node_process(tmp_path_factory):
    """Starts nodes that outlive a test, with a toy model unless another one is named."""
    from toy_qwen import save_checkpoint

    folder = save_checkpoint(tmp_path_factory.mktemp("toy"))
    return functools.partial(NodeProcess, model_path=str(folder))


@pytest.fixture
def start_node(node_process):
    """Starts nodes; whatever is left of them is ended after the test."""
    nodes = []

    def start(*remaps, **options):
        nodes.append(node_process(*remaps, **options))
        return nodes[-1]

    yield start
    for node in nodes:
        if node.process.poll() is None:
            node.stop()
        assert "failed, the node continues" not in node.output, node.output


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
        from rclpy.exceptions import InvalidHandle

        while not self._ending:
            try:
                self.executor.spin_once(timeout_sec=0.1)
            except InvalidHandle:
                continue  # a test destroyed an entity while this thread was about to wait on it
            except Exception as fault:
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
        sent = []
        try:
            if not client.wait_for_service(within):
                return None
            begin = time.monotonic()
            while (waited := time.monotonic() - begin) < within:
                if waited >= len(sent) * within / 3:
                    sent.append(client.call_async(request or service_type.Request()))
                if done := [one for one in sent if one.done()]:
                    return done[0].result()
                assert self._fault is None, f"the thread that spins failed: {self._fault!r}"
                time.sleep(0.02)
            return None
        finally:
            self.node.destroy_client(client)

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


@pytest.fixture(scope="module")
def graph():
    graph = Graph()
    yield graph
    graph.close()


class Goal:
    """A goal of ~/ask. rclpy's action client loses a reply that comes before its own call has
    returned (in another thread), so every call is made in the thread that spins."""

    def __init__(self, graph, action, message):
        self._graph = graph
        self.feedback = []
        sent = graph.do(
            lambda: action.send_goal_async(message, lambda m: self.feedback.append(m.feedback))
        )
        self._handle = graph.result(sent)
        assert self._handle.accepted
        self._pending = graph.do(self._handle.get_result_async)

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
    """Drives one node over DDS, as a user's program would."""

    def __init__(self, graph, namespace, topic="image"):
        from diagnostic_msgs.msg import DiagnosticArray
        from stream_vlm.msg import Answer, CacheStatus

        self.graph = graph
        self._subscriptions, self._actions = [], []
        self.name = f"/{namespace}/stream_vlm"
        self.image_topic = f"/{namespace}/{topic}"
        self.statuses = self.listen(CacheStatus, f"{self.name}/cache_status", latched=True)
        self.answers = self.listen(Answer, f"{self.name}/answer", latched=True)
        self.diagnostics = self.listen(DiagnosticArray, "/diagnostics")
        self.stamp_ns = 1_000_000_000_000
        self.publishers = {}

    def listen(self, *arguments, **options):
        heard, subscription = self.graph.listen(*arguments, **options)
        self._subscriptions.append(subscription)
        return heard

    def is_answered(self):
        """Whether the node answers this client at all."""
        from lifecycle_msgs.srv import GetState

        return self.graph.reply(GetState, f"{self.name}/get_state", within=PATIENCE / 4) is not None

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
                if self.status.state == "active":
                    if f"probe {number}" in self.refusal():
                        return True
                elif self.status.frames_received > before:
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
        name = f"{self.name.lstrip('/')}: image input"
        found = [s for heard in self.diagnostics[-4:] for s in heard.status if s.name == name]
        return self.last_refusal(found[-1]) if found else ""

    @staticmethod
    def last_refusal(diagnostic):
        return {value.key: value.value for value in diagnostic.values}.get("last_refusal", "")

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
        from std_srvs.srv import Trigger

        return self.graph.call(Trigger, f"{self.name}/reset")

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


@pytest.fixture
def connect(graph):
    """Makes a client of a node that runs, in its namespace; its publishers end with the test.

    Fast DDS now and then leaves two participants half acquainted for good: the client finds the
    node's topics and services, and nothing that the node says ever reaches it. A participant made
    anew is heard then.
    """
    clients, graphs = [], []

    def make(namespace, **options):
        clients.append(StreamVlmClient(graph, namespace, **options))
        while not clients[-1].is_answered() and len(graphs) < 3:
            graphs.append(Graph())
            clients.append(StreamVlmClient(graphs[-1], namespace, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.close()
    for one in graphs:
        one.close()


# The node in this process, with the stand-in engine -----------------------------------------------


@pytest.fixture
def here(graph, connect, fake_engine, request):
    """The node with a client and what it logs of its faults; its context ends with the test.

    A test's own parameters of the node come by ``parametrize`` with ``indirect``.
    """
    import rclpy
    from rclpy.executors import MultiThreadedExecutor
    from rclpy.parameter import Parameter
    from rclpy.signals import SignalHandlerOptions

    from stream_vlm_ros.node.spinning import THREADS, spin
    from stream_vlm_ros.node.stream_vlm_node import StreamVlmNode

    context = rclpy.Context()
    rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)
    settings = dict(sample_fps=0.0, chunk_frames=1, status_period=0.05)
    settings |= getattr(request, "param", {})
    node = StreamVlmNode(
        load=lambda parameters: fake_engine,
        context=context,
        namespace="here",
        parameter_overrides=[Parameter(name, value=value) for name, value in settings.items()],
    )
    said = []
    node.error_log.write, node.error_log.period = said.append, math.inf
    executor = MultiThreadedExecutor(THREADS, context=context)
    executor.add_node(node)
    thread = threading.Thread(target=spin, args=(executor, node), daemon=True)
    thread.start()
    graph.wait(lambda: node.state == "active", what="the active node")
    client = connect("here")
    yield SimpleNamespace(node=node, client=client, said=said, engine=fake_engine)
    fake_engine.gate.set()
    context.try_shutdown()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    node.close()
    executor.shutdown(timeout_sec=5)
