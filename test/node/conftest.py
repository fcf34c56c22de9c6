# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Fixtures around the node: a stand-in for its engine, a process of its own, a client over DDS."""

import functools
import json
import math
import threading
from types import SimpleNamespace

import pytest
from fake_engine import FakeEngine
from image_messages import image_message
from node_process import NodeProcess
from patience import PATIENCE
from ros_client import Graph, StreamVlmClient


@pytest.fixture
def fake_engine():
    return FakeEngine()


@pytest.fixture
def make_image():
    return image_message


# A node in a process of its own -------------------------------------------------------------------


@pytest.fixture(scope="session")
def toy_model(tmp_path_factory):
    """The folder of a toy model."""
    from toy_qwen import save_checkpoint

    folder = save_checkpoint(tmp_path_factory.mktemp("toy"))
    file = folder / "generation_config.json"  # a real one says how to sample
    file.write_text(json.dumps({**json.loads(file.read_text()), "temperature": 0.7}))
    return str(folder)


@pytest.fixture(scope="session")
def node_process(toy_model):
    """Starts nodes that outlive a test, with a toy model unless another one is named."""
    return functools.partial(NodeProcess, model_path=toy_model)


@pytest.fixture(scope="module")
def serve(toy_model, tmp_path_factory):
    """Serves the toy model, until the module's end; saved memories go into a folder."""
    from serving import RunningServer

    from stream_vlm_ros.config import Settings
    from stream_vlm_ros.serve.sessions import Sessions

    servers = []

    def start(**settings):
        folder = str(tmp_path_factory.mktemp("memories"))
        own = dict(model_path=toy_model, device="cpu", memory_folder=folder) | settings
        sessions = Sessions(Settings(**own))
        sessions.load()
        servers.append(RunningServer(sessions))
        return servers[-1]

    yield start
    for server in servers:
        server.sessions.drain(5.0)
        server.close()


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


@pytest.fixture(scope="module")
def graph():
    graph = Graph()
    yield graph
    graph.close()


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
        while not clients[-1].is_answered(within=6 * (1 + len(graphs))) and len(graphs) < 6:
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

    from stream_vlm_ros.node.error_log import ErrorLog
    from stream_vlm_ros.node.spinning import THREADS, spin
    from stream_vlm_ros.node.stream_vlm_node import StreamVlmNode
    from stream_vlm_ros.session.news import News

    context = rclpy.Context()
    rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)
    settings = dict(sample_fps=0.0, chunk_frames=1, status_period=0.05)
    settings |= getattr(request, "param", {})
    engines = {}

    def load(parameters):
        engine = type(fake_engine)() if engines else fake_engine
        return engines.setdefault(parameters.image_topic, engine)

    node = StreamVlmNode(
        load=load,
        context=context,
        namespace="here",
        parameter_overrides=[Parameter(name, value=value) for name, value in settings.items()],
    )
    said = []
    node.error_log = ErrorLog(said.append, News(math.inf))
    executor = MultiThreadedExecutor(THREADS, context=context)
    executor.add_node(node)
    thread = threading.Thread(target=spin, args=(executor, node), daemon=True)
    thread.start()
    graph.wait(lambda: node.state == "active", what="the active node")
    client = connect("here")
    yield SimpleNamespace(node=node, client=client, said=said, engine=fake_engine, engines=engines)
    for engine in engines.values():
        engine.gate.set()
    context.try_shutdown()
    thread.join(PATIENCE)
    assert not thread.is_alive()
    node.close()
    executor.shutdown(timeout_sec=5)
