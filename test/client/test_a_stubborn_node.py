# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`StreamVlmClient` and the command line against a stand-in that does not do as a node should, and
values that no message can hold."""

import asyncio
import json
import threading
import time
from contextlib import contextmanager

import pytest
from patience import PATIENCE
from ros_client import Graph
from typer.testing import CliRunner

from stream_vlm_ros import cli_node
from stream_vlm_ros.cli import app
from stream_vlm_ros.errors import InvalidChoicesError, InvalidParameterError, StreamVlmError

rclpy = pytest.importorskip("rclpy")
pytestmark = pytest.mark.ros

NAME = "/stubborn/stream_vlm"


class Stubborn:
    """A node that is active and tells its state; what else it has, a second node holds, which takes
    nothing before it is spun."""

    def __init__(self, graph):
        from lifecycle_msgs.srv import GetState
        from rclpy.action import ActionServer, CancelResponse
        from rclpy.qos import DurabilityPolicy, QoSProfile
        from std_srvs.srv import Trigger
        from stream_vlm.action import Ask
        from stream_vlm.msg import CacheStatus
        from stream_vlm.srv import LoadMemory, Query, SaveMemory

        self.graph = graph
        self.goals, self.cancelled = [], []
        self.node = rclpy.create_node("stream_vlm", namespace="stubborn", context=graph.context)
        self.mute = rclpy.create_node("mute", namespace="stubborn", context=graph.context)

        def get_state(request, response):
            response.current_state.label = "active"
            return response

        def cancel(goal):
            self.cancelled.append(goal.request.question)
            return CancelResponse.ACCEPT

        self.node.create_service(GetState, "~/get_state", get_state)
        self.services = {
            name: self.mute.create_service(kind, f"{NAME}/{name}", lambda _, response: response)
            for kind, name in [
                (Trigger, "reset"),
                (SaveMemory, "save_memory"),
                (LoadMemory, "load_memory"),
                (Query, "query"),
            ]
        }
        self.server = ActionServer(
            self.mute,
            Ask,
            f"{NAME}/ask",
            pytest.fail,
            handle_accepted_callback=lambda goal: self.goals.append(goal.request.question),
            cancel_callback=cancel,
        )
        latched = QoSProfile(depth=1, durability=DurabilityPolicy.TRANSIENT_LOCAL)
        self.status = self.node.create_publisher(CacheStatus, "~/cache_status", latched)
        self.status.publish(CacheStatus(state="active"))
        graph.executor.add_node(self.node)

    def requests(self, name):
        """Those that have come to a service."""
        service, taken = self.services[name], []
        with service.handle:
            while (one := service.handle.service_take_request(service.srv_type.Request))[
                0
            ] is not None:
                taken.append(one[0])
        return taken

    @contextmanager
    def listening(self):
        """Takes questions meanwhile."""
        self.graph.executor.add_node(self.mute)
        self.graph.executor.wake()
        try:
            yield
        finally:
            self.graph.executor.remove_node(self.mute)

    def close(self):
        self.graph.executor.remove_node(self.node)
        self.server.destroy()
        self.mute.destroy_node()
        self.node.destroy_node()


@pytest.fixture(scope="module")
def node():
    graph = Graph()
    stubborn = Stubborn(graph)
    yield stubborn
    stubborn.close()
    graph.close()


async def opened():
    from stream_vlm_ros.client import StreamVlmClient

    client = StreamVlmClient(NAME, patience=PATIENCE / 2)
    await client.__aenter__()
    await client.until_ready()
    return client


@pytest.fixture(scope="module")
def client(node):
    """One client for all, since each takes seconds to find the node; and the loop that it is in."""
    loop = asyncio.new_event_loop()
    client = loop.run_until_complete(asyncio.wait_for(opened(), PATIENCE))
    yield client, loop
    loop.run_until_complete(client.__aexit__(None, None, None))
    loop.close()


@pytest.fixture
def use(client):
    """Runs ``await work(client)``; what it returns."""
    client, loop = client

    def use(work, patience=PATIENCE / 2):
        client.patience = patience
        return loop.run_until_complete(asyncio.wait_for(work(client), PATIENCE))

    return use


def terminal(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_an_order_without_a_reply_ends_after_the_patience(use, monkeypatch):
    from stream_vlm_ros.client import NodeUnavailableError

    monkeypatch.setattr("stream_vlm_ros.client.stream_vlm_client.FILE_PATIENCE", 0.3)
    monkeypatch.setattr("stream_vlm_ros.client.stream_vlm_client.ANNOUNCED", 0.3)  # one node alone

    async def order(client):
        for name, call in [
            ("reset", client.reset),
            ("save_memory", client.save),
            ("load_memory", client.load),
        ]:
            with pytest.raises(NodeUnavailableError, match=f"did not reply on ~/{name} within 0 s"):
                await asyncio.wait_for(call(), 5.0)

    use(order, patience=0.3)


def test_saving_may_take_longer_than_any_other_reply_and_is_asked_for_once(use, node, monkeypatch):

    monkeypatch.setattr("stream_vlm_ros.client.stream_vlm_client.FILE_PATIENCE", 0.8)

    async def save(client):
        begin = time.monotonic()
        node.requests("save_memory")
        with pytest.raises(StreamVlmError, match="~/save_memory"):
            await client.save("kitchen")
        return time.monotonic() - begin, [one.name for one in node.requests("save_memory")]

    took, asked = use(save, patience=0.1)
    assert took >= 0.8 and asked == ["kitchen"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(question=None), "question must be text"),
        (dict(question="\ud800"), "question must be text"),
        (dict(choices="yes"), "choices must be a list of texts, not 'yes'"),
        (dict(choices=["yes", 1]), r"choices\[1\] must be text"),
        (dict(max_new_tokens=-1), "max_new_tokens must be a whole number from 0"),
        (dict(max_new_tokens=2**32), "max_new_tokens must be a whole number from 0"),
        (dict(thumbnails=1.5), "thumbnails must be a whole number"),
        (dict(temperature="hot"), "temperature must be a number"),
        (dict(temperature=1e300), "temperature must be a number"),
        (dict(keep_exchange="no"), "keep_exchange must be true or false"),
        (dict(source=5), "source must be text"),
        (dict(about_ns=(0, 10**30)), r"about_ns\[1\] must be a whole number"),
        (dict(about_ns=(-1, 0)), r"about_ns\[0\] must be a whole number"),
        (dict(about_ns=7), "about_ns must be a pair"),
    ],
)
def test_what_no_question_can_hold_is_said_by_its_name(options, words):
    from stream_vlm_ros.client import StreamVlmClient

    with pytest.raises(StreamVlmError, match=words) as refusal:
        StreamVlmClient().stream(**{"question": "Hm?", **options})
    wanted = InvalidChoicesError if "choices" in options else InvalidParameterError
    assert type(refusal.value) is wanted


def test_what_no_request_can_hold_is_said_by_its_name(use):
    async def refused(client):
        for call, words in [
            (client.past_answers(limit=-1), "limit must be a whole number"),
            (client.past_answers(from_ns=10**30), "from_ns must be a whole number"),
            (client.past_answers(to_ns=-1), "to_ns must be a whole number"),
            (client.past_answers(text=None), "text must be text"),
            (client.save(None), "name must be text"),
            (client.load(7), "name must be text"),
        ]:
            with pytest.raises(InvalidParameterError, match=words):
                await call

    use(refused)


@pytest.mark.parametrize(
    "options",
    [
        ["--about", 0, "inf"],
        ["--about", "-inf", 0],
        ["--about", "nan", 0],
        ["--about", 0, 1e300],
        ["--cancel-after", "nan"],
        ["--wait", "nan"],
    ],
)
def test_seconds_that_are_none_are_refused_in_a_line(options):
    told = terminal("ask", "--node", NAME, "x", *options)
    assert told.exit_code == 2 and options[0] in told.stderr, told.exception


@pytest.mark.parametrize("minutes", ["inf", "nan", 1e300])
def test_minutes_that_are_none_are_refused_in_a_line(minutes):
    told = terminal("node", "answers", "--node", NAME, "--last", minutes)
    assert told.exit_code == 2 and "--last" in told.stderr, told.exception


# Ends --------------------------------------------------------------------------------------------


def test_an_order_that_is_under_way_when_its_client_is_closed_says_so(node):
    async def ordered():
        client = await opened()
        order = asyncio.ensure_future(client.pause())  # there is no such service
        await asyncio.sleep(0)
        await client.__aexit__(None, None, None)
        client.patience = 0.0
        return await order

    with pytest.raises(StreamVlmError, match="the client was closed"):
        asyncio.run(ordered())


def threads():
    return {one for one in threading.enumerate() if one.name == "client"}


def test_a_client_whose_end_is_cancelled_ends_all_the_same(node):
    from stream_vlm_ros.client import StreamVlmClient

    async def work(opened):
        async with (
            StreamVlmClient(NAME, patience=PATIENCE / 2) as client,
            client.stream("Anybody?") as stream,
        ):
            opened.set_result(None)
            await stream.answer()

    async def run():
        opened = asyncio.get_running_loop().create_future()
        task = asyncio.ensure_future(work(opened))
        await opened
        for _ in range(3):
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.wait({task})
        left = asyncio.all_tasks() - {asyncio.current_task()}
        return task.cancelled(), left

    before = threads()
    assert asyncio.run(run()) == (True, set())
    assert threads() == before


@pytest.mark.parametrize("leaving", ["the stream", "the client"])
def test_a_question_that_is_left_before_the_node_takes_it_is_cancelled_in_the_node(
    use, node, leaving
):
    question = f"Left with {leaving}?"

    async def leave_the_stream(client):
        await until_sent(client, question)
        with node.listening():
            await until_cancelled()

    async def leave_the_client():
        own = await opened()
        try:
            await until_sent(own, question)
        finally:
            await own.__aexit__(None, None, None)
        with node.listening():
            await until_cancelled()

    async def until_sent(client, question):
        async with client.stream(question) as stream:
            while not stream.sent:
                await asyncio.sleep(0.01)

    async def until_cancelled():
        end = time.monotonic() + PATIENCE / 2
        while question not in node.cancelled and time.monotonic() < end:
            await asyncio.sleep(0.02)

    if leaving == "the stream":
        use(leave_the_stream)
    else:
        asyncio.run(asyncio.wait_for(leave_the_client(), PATIENCE))
    assert question in node.goals and question in node.cancelled


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_fault_in_a_callback_is_said_as_what_it_is():
    from stream_vlm_ros.client import NodeUnavailableError
    from stream_vlm_ros.client.ros_thread import RosThread

    def broken():
        raise KeyError("wheel")

    async def run():
        ros = await RosThread.started()
        try:
            await ros.run(lambda: ros.node.create_timer(0.01, broken))
            while True:
                await ros.run(lambda: None)
                await asyncio.sleep(0.01)
        finally:
            await asyncio.to_thread(ros.close)

    with pytest.raises(NodeUnavailableError, match="fault in one of its callbacks: KeyError: 'w"):
        asyncio.run(asyncio.wait_for(run(), PATIENCE))


# What is said ------------------------------------------------------------------------------------


def test_json_of_watch_tells_that_the_node_left_and_came_back(monkeypatch, capsys):
    class Flickering:
        name, seen = NAME, iter([True, True, False, False, True])

        async def is_there(self):
            return next(self.seen, True)

        async def watch(self):
            await asyncio.sleep(PATIENCE)
            yield

    monkeypatch.setattr(cli_node, "LOOK", 0.01)
    monkeypatch.setattr(
        cli_node, "with_node", lambda node, wait, use: asyncio.run(use(Flickering()))
    )
    cli_node.watch(NAME, seconds=0.5, every=5.0, wait=1.0, as_json=True)
    assert list(map(json.loads, capsys.readouterr().out.splitlines())) == [
        {"kind": "Graph", "node": NAME, "there": False, "message": f"{NAME} has left the graph"},
        {"kind": "Graph", "node": NAME, "there": True, "message": f"{NAME} is there again"},
    ]


class Remembering:
    """A client of a node whose clock is at 1000 s."""

    name, answers_kept = NAME, "kept in memory"

    def __init__(self):
        self.begins = []

    async def now_ns(self):
        return 1000 * 10**9

    async def past_answers(self, from_ns, to_ns, text, limit):
        self.begins.append(from_ns)
        return []


@pytest.fixture
def remembering(monkeypatch):
    client = Remembering()
    monkeypatch.setattr(cli_node, "with_node", lambda node, wait, use: asyncio.run(use(client)))
    return client


def test_the_last_minutes_are_those_of_the_nodes_clock(remembering):
    for arguments in (["--last", 2], ["--last", 0.5], ["--last", 17], []):
        assert terminal("node", "answers", *arguments).exit_code == 0
    assert remembering.begins == [880 * 10**9, 970 * 10**9, 0, 0]


@pytest.mark.parametrize("lost", ["", "; 2 answers could not be kept: disk full"])
def test_answers_that_are_lost_are_said_next_to_those_that_are_kept(remembering, lost):
    remembering.answers_kept += lost
    told = terminal("node", "answers", "--json")
    assert told.stdout == "[]\n"
    assert told.stderr == (f"stream-vlm: kept in memory{lost}\n" if lost else "")


@pytest.mark.parametrize("second", [False, True])
def test_a_second_node_that_turns_up_while_one_is_asked_is_said(remembering, monkeypatch, second):
    from stream_vlm.msg import Answer

    async def is_there():
        if second:
            raise StreamVlmError("two nodes run")
        return True

    async def answered(*_):
        return [Answer(text="a cat")]

    remembering.is_there = is_there
    monkeypatch.setattr(cli_node, "ask_one", answered)
    told = terminal("ask", "--node", NAME, "Who?", "--json")
    assert told.exit_code == 0 and '"a cat"' in told.stdout
    assert ("which node answered is not known: two nodes run" in told.stderr) == second


@pytest.mark.parametrize("simulated", [False, True])
def test_the_time_of_a_node_is_that_of_its_clock(use, node, monkeypatch, simulated):
    from rclpy.qos import qos_profile_sensor_data
    from rosgraph_msgs.msg import Clock

    async def now(client):
        async def get(name):
            return {name: simulated}

        monkeypatch.setattr(client, "get", get)
        return await client.now_ns()

    clock = node.node.create_publisher(Clock, "/clock", qos_profile_sensor_data)
    message = Clock()
    message.clock.sec, message.clock.nanosec = 42, 7
    ticking = node.node.create_timer(0.05, lambda: clock.publish(message))
    before = time.time_ns()
    told = use(now)
    node.node.destroy_timer(ticking)
    node.node.destroy_publisher(clock)
    assert told == 42 * 10**9 + 7 if simulated else before <= told <= time.time_ns()


def test_a_node_that_is_not_there_is_said_with_the_domain_of_the_clients_context():
    from rclpy.signals import SignalHandlerOptions

    from stream_vlm_ros.client import NodeUnavailableError, StreamVlmClient

    context = rclpy.Context()
    rclpy.init(context=context, domain_id=97, signal_handler_options=SignalHandlerOptions.NO)

    async def open_one():
        async with StreamVlmClient("/nobody", context=context, patience=0.1):
            pytest.fail("it found somebody")

    with pytest.raises(NodeUnavailableError, match=r"\(ROS_DOMAIN_ID 97\)"):
        asyncio.run(open_one())
    context.try_shutdown()


def test_a_client_has_one_of_everything_and_nothing_to_ask_by_query(use):
    async def clients(client):
        node = client.ros.node
        names = await client.ros.run(
            lambda: node.get_client_names_and_types_by_node(node.get_name(), node.get_namespace())
        )
        return [name for name, _ in names], [one.srv_name for one in node.clients]

    on_graph, made = use(clients)
    assert f"{NAME}/query" not in on_graph and f"{NAME}/reset" in on_graph
    assert len(made) == len(set(made))
