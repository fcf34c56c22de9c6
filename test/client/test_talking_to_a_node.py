# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`StreamVlmClient` and ``stream-vlm ask --node``, ``watch`` and ``node``, over DDS."""

import asyncio
import json
import signal
import subprocess
import sys
import threading
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
from node_process import NodeProcess
from patience import PATIENCE
from ros_client import Graph
from ros_client import StreamVlmClient as Camera
from toy_qwen import save_checkpoint
from typer.testing import CliRunner

from stream_vlm_ros.cli import app
from stream_vlm_ros.errors import InvalidParameterError, StreamVlmError

rclpy = pytest.importorskip("rclpy")
pytestmark = pytest.mark.ros

NAME = "/talking/stream_vlm"
LONG = 15_000  # tokens of an answer that lasts until it is cancelled, on any machine
FAST = dict(
    sample_fps=0.0,
    chunk_frames=2,
    max_chunk_delay=0.5,
    status_period=0.2,
    device="cpu",
    max_cache_tokens=200,
    max_tail_tokens=16_384,
)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(save_checkpoint(tmp_path_factory.mktemp("toy")))


@pytest.fixture(scope="module")
def graph():
    graph = Graph()
    yield graph
    graph.close()


@pytest.fixture(scope="module")
def node(graph, checkpoint, tmp_path_factory):
    """A node that has seen four frames, with its camera."""
    file = tmp_path_factory.mktemp("answers") / "answers.sqlite"
    process = NodeProcess(
        namespace="talking", model_path=checkpoint, answers_file=str(file), **FAST
    )
    try:
        process.wait_for("the node is active")
        camera = Camera(graph, "talking")
        for _ in range(4):
            camera.send(camera.image())
        camera.wait_status(lambda status: status.frames == 4)
        yield SimpleNamespace(process=process, camera=camera, file=file)
        camera.close()
    finally:
        status = process.stop()
    assert status == 0


@pytest.fixture(scope="module")
def do():
    """Runs a coroutine in a loop that another thread runs; its value."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    yield lambda work: asyncio.run_coroutine_threadsafe(work, loop).result(PATIENCE)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()


@pytest.fixture(scope="module")
def client(node, do):
    from stream_vlm_ros.client import StreamVlmClient

    client = StreamVlmClient(NAME, patience=PATIENCE / 2)
    do(client.__aenter__())
    yield client
    do(client.__aexit__())


def terminal(*arguments, status=0):
    """What a command prints; its exit status is as said."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == status, result.output
    return result.stdout if status < 2 else result.stderr


# Asking -------------------------------------------------------------------------------------------


def test_an_answer_comes_piece_by_piece_and_is_the_same_as_a_whole(client, do):
    async def ask():
        whole = await client.ask("What is there?", max_new_tokens=12)
        async with client.stream("What is there?", max_new_tokens=12) as stream:
            pieces = [piece async for piece in stream]
            return whole, pieces, await stream.answer()

    whole, pieces, answer = do(ask())
    assert answer.text == whole.text == "".join(pieces)
    assert 1 < len(pieces) <= 12 and answer.answer_tokens == 12
    assert answer.cache_status.frames == 4


def test_of_choices_one_is_picked_and_nothing_is_written(client, do):
    async def ask():
        async with client.stream("Which?", ["red", "green"]) as stream:
            return [piece async for piece in stream], await stream.answer()

    pieces, answer = do(ask())
    assert pieces == [] and answer.text == ("red", "green")[answer.choice_index]


def test_an_error_of_the_node_has_its_code_and_its_words(client, do):
    from stream_vlm_ros.client import AskError

    for options, code in [
        (dict(question=""), "INVALID_QUESTION"),
        (dict(question="Hm?", source="kitchen"), "INVALID_PARAMETER"),
        (dict(question="Hm?", about_ns=(1, 2)), "OUT_OF_HORIZON"),
        (dict(question="Hm?", choices=["a", ""]), "INVALID_CHOICES"),
    ]:
        with pytest.raises(AskError) as refusal:
            do(client.ask(**options))
        assert refusal.value.code == code and str(refusal.value)


def test_several_questions_and_several_clients_at_once_get_their_own_answers(client, do):
    from stream_vlm_ros.client import StreamVlmClient

    async def ask():
        async with StreamVlmClient(NAME.lstrip("/")) as other:
            asked = [
                one.ask(f"Question {number}?", max_new_tokens=2)
                for number, one in enumerate([client, other] * 3)
            ]
            return await asyncio.gather(*asked)

    assert [answer.question for answer in do(ask())] == [f"Question {n}?" for n in range(6)]


def test_a_cancelled_answer_is_kept_as_far_as_it_came(client, do):
    async def ask():
        async with client.stream("Tell.", max_new_tokens=LONG) as stream:
            first = await anext(stream)
            await stream.cancel()
            return first, await stream.answer()

    first, answer = do(ask())
    assert answer.text.startswith(first) and answer.finish_reason == "cancelled"
    assert 0 < answer.answer_tokens < LONG


@pytest.mark.parametrize("leaving", ["the task", "the loop over the pieces"])
def test_who_leaves_early_cancels_the_answer(client, do, leaving):
    async def ask():
        if leaving == "the task":
            asks = [client.ask("Leave?", max_new_tokens=LONG) for _ in range(2)]
            tasks = [asyncio.ensure_future(ask) for ask in asks]
            while client.status.queue_depth == 0:  # one is answered, one waits
                await asyncio.sleep(0.01)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            assert all(task.cancelled() for task in tasks)
        else:
            async with client.stream("Leave?", max_new_tokens=LONG) as stream:
                async for _ in stream:
                    break
        await client.ask("And now?", max_new_tokens=1)
        return (await client.past_answers(text="leave?", limit=1))[0].answer

    answer = do(ask())
    assert answer.error_code == answer.CANCELLED


def test_a_full_queue_is_said(client, do):
    from stream_vlm_ros.client import AskError

    async def ask():
        await client.set(max_questions=1)
        async with client.stream("First?", max_new_tokens=LONG) as first:
            await anext(first)
            async with client.stream("Second?", max_new_tokens=LONG):
                while client.status.queue_depth == 0:
                    await asyncio.sleep(0.01)
                await client.ask("Third?")

    with pytest.raises(AskError, match="wait") as refusal:
        do(ask())
    assert refusal.value.code == "QUEUE_FULL"
    do(client.set(max_questions=8))


# Settings and orders ------------------------------------------------------------------------------


def test_settings_are_read_changed_and_refused_in_words(client, do):
    assert do(client.get("max_questions", "device")) == {"max_questions": 8, "device": "cpu"}
    assert do(client.get())["use_sim_time"] is False
    do(client.set(no_image_timeout=7))  # a whole number for a float
    assert do(client.get("no_image_timeout")) == {"no_image_timeout": 7.0}
    for values, words in [
        ({"no_image_timeout": -1.0}, "range"),
        ({"sink_size": 5}, "only while the node is unconfigured"),
        ({"colour": "red"}, "no parameter 'colour'"),
    ]:
        with pytest.raises(InvalidParameterError, match=words):
            do(client.set(**values))


def test_a_paused_node_watches_nothing_says_so_and_answers(client, node, do):
    before = node.camera.status
    assert "paused" in do(client.pause())
    node.camera.send(node.camera.image())
    status = node.camera.wait_status(lambda s: s.dropped_paused == before.dropped_paused + 1)
    assert status.paused and status.state == "active" and status.frames == before.frames

    async def health():
        async for event in client.watch():
            if getattr(event, "name", "").endswith("image input") and "paused" in event.message:
                return event.level

    assert do(health()) == b"\x01"  # WARN
    assert do(client.ask("Still there?", max_new_tokens=1)).error_code == 0
    do(client.resume())
    for _ in range(4):
        node.camera.send(node.camera.image())
    node.camera.wait_status(lambda s: s.frames == before.frames + 4 and not s.paused)
    do(client.reset())
    for _ in range(4):
        node.camera.send(node.camera.image())
    node.camera.wait_status(lambda s: s.frames == 4)


def test_past_answers_are_found_by_their_text_and_time(client, do):
    do(client.ask("Is there a Zebra?", max_new_tokens=2))
    (found,) = do(client.past_answers(text="zebra"))
    assert found.answer.question == "Is there a Zebra?" and found.answer.answer_tokens == 2
    assert found.answer.cache_status.levels[0].name == "sink"
    answered_ns = found.answered.sec * 10**9 + found.answered.nanosec
    assert do(client.past_answers(from_ns=answered_ns))[0] == found
    assert do(client.past_answers(to_ns=answered_ns, limit=1)) == [found]
    assert do(client.past_answers(from_ns=answered_ns + 1, text="zebra")) == []


def test_what_the_node_says_can_be_watched(client, do):
    async def watch():
        kinds, question = set(), None
        async for event in client.watch():
            kinds.add(type(event).__name__)
            if question is None:
                question = asyncio.ensure_future(client.ask("Watched?", max_new_tokens=1))
            if kinds == {"CacheStatus", "Answer", "DiagnosticStatus"}:
                return await question

    assert do(watch()).question == "Watched?"


def test_saving_without_a_folder_is_refused_in_the_nodes_words(client, do):
    with pytest.raises(StreamVlmError, match="memory_folder"):
        do(client.save())


# Which node ---------------------------------------------------------------------------------------


def opened(name="", patience=5.0):
    """The name of the node that a client finds."""
    from stream_vlm_ros.client import StreamVlmClient

    async def run():
        async with StreamVlmClient(name, patience=patience) as client:
            return client.name

    return asyncio.run(run())


@contextmanager
def stand_in(graph, namespace):
    """A node of that name, as far as the graph knows."""
    other = rclpy.create_node("stream_vlm", namespace=namespace, context=graph.context)
    try:
        yield other
    finally:
        other.destroy_node()


def test_a_node_that_is_not_there_is_said_with_those_that_are(node):
    from stream_vlm_ros.client import NodeUnavailableError

    with pytest.raises(NodeUnavailableError, match=f"no node named /other was .*there is {NAME}"):
        opened("/other", patience=8)


@pytest.mark.parametrize("name", ["", "/stream_vlm"])
def test_where_no_node_is_the_demos_domain_is_told_of_and_a_command_that_is_here(
    name, do, monkeypatch, tmp_path
):
    from rclpy.context import Context

    from stream_vlm_ros.client import NodeUnavailableError, StreamVlmClient
    from stream_vlm_ros.processes.graph import claim_domain

    async def ask(context):
        async with StreamVlmClient(name, context=context, patience=0.3):
            pass

    monkeypatch.setenv("STREAM_VLM_RUN", str(tmp_path / "run.sh"))
    monkeypatch.setenv("PATH", str(tmp_path))  # no ros2 there
    (claim, domain), context = claim_domain(), Context()
    with claim:
        rclpy.init(context=context, domain_id=domain)
        with pytest.raises(NodeUnavailableError) as fault:
            do(ask(context))
        reason, hint, _, start = str(fault.value).splitlines()
        assert f"(ROS_DOMAIN_ID {domain})." in reason and "demo has a ROS domain of its" in hint
        assert "/run.sh python -m stream_vlm_ros.node" in start
        (tmp_path / "ros2").touch(0o755)
        with pytest.raises(NodeUnavailableError, match="\n    ros2 launch stream_vlm stream_vlm"):
            do(ask(context))
        context.try_shutdown()


def test_of_two_nodes_one_must_be_named(node, graph):
    from stream_vlm_ros.client import NodeUnavailableError

    which = f"/kitchen/stream_vlm, {NAME}; say which"
    with stand_in(graph, "kitchen"), pytest.raises(NodeUnavailableError, match=which):
        opened()


def test_a_node_that_was_not_heard_at_first_is_found_where_the_one_that_was_does_not_reply(
    node, graph, monkeypatch
):
    from stream_vlm_ros.client import NodeUnavailableError, stream_vlm_client

    hear, ears = stream_vlm_client.nodes_seen_by, []

    def half_deaf(own):
        ears.append(own)
        return ["/kitchen/stream_vlm"] if own is ears[0] else hear(own)

    monkeypatch.setattr(stream_vlm_client, "nodes_seen_by", half_deaf)
    which = f"/kitchen/stream_vlm, {NAME}; say which"
    with stand_in(graph, "kitchen"), pytest.raises(NodeUnavailableError, match=which):
        opened(patience=3.5)


def test_two_nodes_of_one_name_are_refused_when_both_have_been_heard(client, graph, do):
    from stream_vlm_ros.client import NodeUnavailableError

    async def ask():
        while True:
            await client.ask("Who?", max_new_tokens=1)

    async def alone_again():
        while True:
            with suppress(NodeUnavailableError):  # until it has been heard that the other went
                return await client.is_there()
            await asyncio.sleep(0.05)

    with (
        stand_in(graph, "talking"),
        pytest.raises(NodeUnavailableError, match=f"two nodes named {NAME} run"),
    ):
        do(ask())
    assert do(alone_again())
    with stand_in(graph, "talking"):
        told = terminal("node", "pause", "--node", NAME, status=2)
        assert f"two nodes named {NAME} run" in told and not client.status.paused


def test_a_node_that_is_seen_but_does_not_reply_is_said(node, graph):
    from stream_vlm_ros.client import NodeUnavailableError

    with stand_in(graph, "dumb"), pytest.raises(NodeUnavailableError, match="does not reply"):
        opened("/dumb/stream_vlm", patience=8)


def test_a_node_that_is_not_configured_cannot_be_asked_and_its_state_is_said(graph, do):
    from lifecycle_msgs.srv import GetState

    from stream_vlm_ros.client import NodeUnavailableError, StreamVlmClient

    def get_state(request, response):
        response.current_state.label = "unconfigured"
        return response

    async def ask():
        async with StreamVlmClient("/off/stream_vlm", patience=PATIENCE) as client:
            client.patience = 3.0
            await client.ask("Who?")

    with stand_in(graph, "off") as off:
        off.create_service(GetState, "~/get_state", get_state)
        graph.executor.add_node(off)
        with pytest.raises(NodeUnavailableError, match="its state is unconfigured"):
            do(ask())
        graph.executor.remove_node(off)


def test_a_client_in_somebody_elses_context_says_when_that_was_shut_down(node, do):
    from rclpy.signals import SignalHandlerOptions

    from stream_vlm_ros.client import NodeUnavailableError, StreamVlmClient

    context = rclpy.Context()
    rclpy.init(context=context, signal_handler_options=SignalHandlerOptions.NO)

    async def use():
        async with (
            StreamVlmClient(NAME, context=context, patience=PATIENCE) as client,
            client.stream("Tell.", max_new_tokens=2000) as stream,
        ):
            await anext(stream)
            context.shutdown()
            await stream.answer()

    with pytest.raises(NodeUnavailableError, match="ROS was shut down"):
        do(use())


def test_a_client_that_is_cancelled_while_it_is_made_leaves_no_thread_behind():
    from stream_vlm_ros.client.ros_thread import RosThread

    async def make():
        task = asyncio.ensure_future(RosThread.started())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait({task})
        return task.cancelled()

    before = set(threading.enumerate())
    assert asyncio.run(make())
    assert [one.name for one in set(threading.enumerate()) - before if one.name == "client"] == []


def test_the_example_of_a_node_of_ones_own_asks_and_ends_by_ctrl_c(node, graph):
    from std_msgs.msg import String

    example = Path(__file__).parents[2] / "examples" / "ask_from_your_node.py"
    # A background process of a shell may have inherited a SIGINT that is ignored.
    guide = subprocess.Popen(
        [sys.executable, str(example)],
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    try:
        heard, subscription = graph.listen(String, "reply")
        question = graph.node.create_publisher(String, "question", 10)
        graph.wait(lambda: question.get_subscription_count() and subscription.get_publisher_count())

        def asked_again():
            """Of a publisher and a subscription that have just met, one knows of it before the
            other, and what is sent in between is lost."""
            question.publish(String(data="What is there?"))
            time.sleep(1.0)
            return heard

        assert graph.wait(asked_again)[0].data
        guide.send_signal(signal.SIGINT)
        _, said = guide.communicate(timeout=PATIENCE)
        assert guide.returncode == 0 and "Traceback" not in said
    finally:
        guide.kill()
        graph.node.destroy_publisher(question)
        graph.node.destroy_subscription(subscription)


# From a terminal ----------------------------------------------------------------------------------


def test_questions_from_a_terminal(node, alone):
    printed = terminal("ask", "--node", NAME, "What is there?", "--max-new-tokens", 4)
    question, answer, figures = printed.splitlines()[:3]
    assert question == "What is there?" and answer and figures.endswith("4 tokens")
    several = terminal("ask", "Which?", "Again?", "--choices", "red, green", "--node")
    assert several.count("> red") + several.count("> green") == 2
    # Of a time that counts from the newest frame: of the stamps -30 s to 0 s nothing is there.
    about = ["--about", -30, 0, "--max-new-tokens", 4, "--json"]
    told = json.loads(terminal("ask", "--node", NAME, "What?", *about))
    assert told["node"] == NAME and told["answers"][0]["answer_tokens"] == 4
    assert told["answers"][0]["cache_status"]["frames"] == 4
    told = json.loads(terminal("ask", "--node", NAME, "What?", "--about", 1, 2, "--json", status=1))
    assert told["answers"][0]["error_code"] == 24  # OUT_OF_HORIZON: stamps, long before the first


def test_a_terminals_answer_is_cancelled_after_its_time(node):
    result = CliRunner().invoke(
        app,
        ["ask", "--node", NAME, "Tell.", "--max-new-tokens", str(LONG), "--cancel-after", "0.3"],
    )
    assert result.exit_code == 1 and result.stdout.rstrip().endswith("cancelled")


def test_settings_and_orders_from_a_terminal(node, client, do, alone):
    assert "8 -> 6" in terminal("node", "set", "--node", NAME, "max_questions", 6)
    assert json.loads(terminal("node", "get", "--node", NAME, "max_questions", "--json")) == {
        "max_questions": 6
    }
    do(client.set(max_questions=8))
    do(client.pause())
    assert f"{NAME}   paused" in terminal("node", "list")
    do(client.resume())
    assert "What is there?" in terminal("node", "answers", "--node", NAME, "what is")


def test_a_nodes_lifecycle_is_steered_and_what_it_refuses_is_said(client, do, alone):
    assert do(client.transition("deactivate")) == f"{NAME} is inactive"
    with pytest.raises(StreamVlmError, match="did not deactivate: it is inactive"):
        do(client.transition("deactivate"))
    with pytest.raises(InvalidParameterError, match="'destroy' is none of configure, activate"):
        do(client.transition("destroy"))
    assert f"{NAME} is active" in terminal("node", "activate", "--node", NAME)
    assert do(client.state()) == "active"


def test_a_terminal_watches_and_ends_in_time(node):
    told = terminal("watch", "--node", NAME, "--seconds", 6, "--json")
    events = [json.loads(line) for line in told.splitlines()]
    assert {event["kind"] for event in events} == {"CacheStatus", "Answer", "DiagnosticStatus"}
    assert [event["earlier"] for event in events if event["kind"] == "Answer"] == [True]


def test_the_last_answer_before_one_watches_is_told_as_earlier_and_a_new_one_is_not(client, do):
    do(client.ask("And this one?", max_new_tokens=2))
    assert client.earlier is None or client.earlier[0].question != "And this one?"
    past = do(client.past_answers(limit=1))[0]
    told = terminal("watch", "--node", NAME, "--seconds", 6).splitlines()
    (line,) = (line for line in told if " -> " in line)
    when, words = line.split(maxsplit=1)
    assert words.startswith("earlier: And this one? -> ")
    near = [past.answered.sec + shift for shift in (-1, 0, 1)]  # it is told, and then kept
    assert when in [time.strftime("%H:%M:%S", time.localtime(second)) for second in near]


def test_a_node_that_ends_in_the_middle_of_an_answer_is_said_and_past_answers_stay(
    client, node, do
):
    """The last of this file: it ends the node."""

    async def ask():
        async with client.stream("Tell.", max_new_tokens=LONG) as stream:
            await anext(stream)
            assert await asyncio.to_thread(node.process.stop) == 0
            await stream.answer()

    with pytest.raises(StreamVlmError) as fault:
        do(ask())
    # Either the node still said so itself, or it was gone.
    assert "ended before it had answered" in str(fault.value) or "stopped" in str(fault.value)
    from stream_vlm_ros.session.answer_log import AnswerLog

    log = AnswerLog(node.file, 1 << 24, pytest.fail)
    found = log.find(text="what is there?").result()
    log.close()
    assert found.total > 0
