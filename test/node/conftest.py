"""A stand-in for the engine, image messages without ROS, and a node in a process of its own."""

import array
import contextlib
import functools
import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from stream_vlm_ros.engine.errors import EmptyMemoryError, InvalidTimestampError

TOKENS_PER_FRAME = 10
FOLLOW_PERIOD = 0.6  # s; the node looks for publishers twice a second


class FakeEngine:
    """The engine's public face over a list of times; each frame is ten tokens."""

    min_pixels = 784

    def __init__(self, cap=100):
        self.cap = cap
        self.gate = threading.Event()  # closed by a test to make the engine slow
        self.gate.set()
        self.busy = threading.Event()
        self.fail_next = None
        self.calls = []
        self.reset()

    def _enter(self, call):
        self.calls.append(call)
        self.busy.set()
        assert self.gate.wait(10)
        self.busy.clear()
        if self.fail_next is not None:
            fault, self.fail_next = self.fail_next, None
            raise fault

    def limit_pixels(self, max_pixels):
        self.calls.append(("limit_pixels", max_pixels))

    def append_video_chunk(self, frames, fps=None, timestamps=None):
        self._enter(("append", len(frames)))
        if self.times and timestamps[0] < self.times[-1]:
            raise InvalidTimestampError("time runs backwards")
        self.times += timestamps
        self.frames += len(frames)
        self.chunks += 1
        while len(self.times) * TOKENS_PER_FRAME > self.cap:
            self.times.pop(0)
            self.evicted += 1
        return {}

    def ask(self, question, max_new_tokens=128, on_token=None, cancel=None, **options):
        self._enter(("ask", question, max_new_tokens, options))
        if not self.times:
            raise EmptyMemoryError("nothing was seen yet")
        text = ""
        for count in range(max_new_tokens):
            if cancel():
                return text, {"finish_reason": "cancelled", "answer_tokens": count}
            text += "x"
            on_token(text)
        return text, {
            "finish_reason": "length",
            "ttft": 0.25,
            "latency": 0.5,
            "prompt_tokens": 7,
            "answer_tokens": max_new_tokens,
        }

    def ask_choice(self, question, choices, about=None):
        self._enter(("ask_choice", question, choices))
        return choices[0], {"choice_index": 0, "scores": [-1.0] * len(choices)}

    def get_cache_info(self):
        ends = (self.times[0], self.times[-1]) if self.times else (None, None)
        return {
            "cache_seq_length": len(self.times) * TOKENS_PER_FRAME,
            "cache_memory_bytes": len(self.times) * 1000,
            "max_cache_tokens": self.cap,
            "sink_size": 0,
            "window_size": self.cap,
            "chunks": self.chunks,
            "frames": self.frames,
            "oldest_timestamp": ends[0],
            "newest_timestamp": ends[1],
            "time_spans": [ends] if self.times else [],
            "eviction_stats": {
                "total_evictions": self.evicted,
                "total_tokens_evicted": self.evicted * TOKENS_PER_FRAME,
            },
        }

    def reset(self):
        self.times, self.frames, self.chunks, self.evicted = [], 0, 0, 0


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


class NodeProcess:
    """``python -m stream_vlm_ros.node`` with its output gathered."""

    def __init__(self, *remaps, namespace="", environment=None, **parameters):
        arguments = [sys.executable, "-m", "stream_vlm_ros.node", "--ros-args"]
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

    def wait_for(self, words, timeout=60.0):
        """Until the output holds ``words``."""
        deadline = time.monotonic() + timeout
        with self._changed:
            while words not in self.output:
                left = deadline - time.monotonic()
                over = self.process.poll() is not None and not self._reader.is_alive()
                assert left > 0 and not over, f"{words!r} never came:\n{self.output}"
                self._changed.wait(min(left, 0.5))

    def stop(self, number=signal.SIGINT, timeout=20.0):
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
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self):
        from rclpy.exceptions import InvalidHandle

        while not self._ending:
            # A test destroys an entity while this thread is about to wait on it.
            with contextlib.suppress(InvalidHandle):
                self.executor.spin_once(timeout_sec=0.1)

    def close(self):
        self._ending = True
        self._thread.join(5)
        self.executor.shutdown()
        self.node.destroy_node()
        self.context.try_shutdown()

    def wait(self, condition, timeout=30.0, what="the condition"):
        """Until ``condition()`` is true; its value."""
        deadline = time.monotonic() + timeout
        while not (value := condition()):
            assert time.monotonic() < deadline, f"{what} did not come within {timeout} s"
            time.sleep(0.02)
        return value

    def result(self, future, timeout=60.0):
        self.wait(future.done, timeout, "the reply")
        return future.result()

    def call(self, service_type, name, request=None, timeout=60.0):
        client = self.node.create_client(service_type, name)
        try:
            assert client.wait_for_service(timeout), f"no service {name}"
            return self.result(client.call_async(request or service_type.Request()), timeout)
        finally:
            self.node.destroy_client(client)

    def listen(self, message_type, topic, latched=False):
        """A list that grows by each message."""
        from rclpy.qos import DurabilityPolicy, QoSProfile

        durability = DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE
        heard = []
        self.node.create_subscription(
            message_type, topic, heard.append, QoSProfile(depth=50, durability=durability)
        )
        return heard


@pytest.fixture(scope="module")
def graph():
    graph = Graph()
    yield graph
    graph.close()


class StreamVlmClient:
    """Drives one node over DDS, as a user's program would."""

    def __init__(self, graph, namespace, topic="image"):
        from stream_vlm.msg import Answer, CacheStatus

        self.graph = graph
        self.name = f"/{namespace}/stream_vlm"
        self.image_topic = f"/{namespace}/{topic}"
        self.statuses = graph.listen(CacheStatus, f"{self.name}/cache_status", latched=True)
        self.answers = graph.listen(Answer, f"{self.name}/answer", latched=True)
        self.stamp_ns = 1_000_000_000_000
        self.publishers = {}

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
        node has taken over its QoS, some are lost. The images that try it out are unusable ones."""
        self.publishers[reliable, kind] = publisher
        self.graph.wait(publisher.get_subscription_count, 30, "the node's subscription")
        time.sleep(FOLLOW_PERIOD)
        before = self.status.frames_received
        stamps = itertools.count(self.stamp_ns - 400_000_000, 1_000_000)  # before the next image's

        def arrives():
            publisher.publish(kind(header=self.header(next(stamps))))
            time.sleep(0.3)
            return self.status.frames_received > before

        self.graph.wait(arrives, 30, "the first image")

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

    def wait_status(self, condition, timeout=30.0, what="the status"):
        self.graph.wait(
            lambda: self.statuses and condition(self.statuses[-1]),
            timeout,
            f"{what}; last: {self.statuses[-1:]}",
        )
        return self.statuses[-1]

    def ask(self, question="What do you see?", **fields):
        from stream_vlm.srv import Query

        fields = {"max_new_tokens": 4, **fields}
        return self.graph.call(
            Query, f"{self.name}/query", Query.Request(question=question, **fields)
        )

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
    """Makes a client of the node in a namespace; its publishers end with the test."""
    clients = []

    def make(namespace, **options):
        clients.append(StreamVlmClient(graph, namespace, **options))
        return clients[-1]

    yield make
    for client in clients:
        client.drop_publishers()
