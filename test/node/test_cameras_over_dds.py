# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Several cameras in one node: a memory each, and what is asked and told of one, some, or all."""

import asyncio
import itertools
import json
import re
import tempfile
from pathlib import Path

import pytest
from patience import PATIENCE

pytest.importorskip("rclpy")
import rclpy
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_msgs.msg import String
from stream_vlm.action import Ask
from stream_vlm.msg import CacheStatus
from stream_vlm.srv import ListMemories, LoadMemory, Query, SaveMemory
from typer.testing import CliRunner

from stream_vlm_ros.cli import app
from stream_vlm_ros.client import AskError, StreamVlmClient
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.node.stream_vlm_node import StreamVlmNode

pytestmark = pytest.mark.ros

TWO = {
    "sources": "front,rear",
    "front.weight": 2.0,
    "rear.max_new_tokens": 7,
    "rear.max_cache_tokens": 9000,
}
FOLDER = Path(tempfile.mkdtemp())
two_cameras = pytest.mark.parametrize("here", [TWO], indirect=True)


@pytest.fixture
def cameras(here, connect):
    """Clients of both."""
    return [connect("here", camera=name) for name in ("front", "rear")]


def see(camera, count):
    """Let it see so many frames more; its status with them."""
    wanted = camera.status.frames + count
    for _ in range(count):
        camera.send(camera.image())
    return camera.wait_status(lambda s: s.frames == wanted, what="the frames")


def answers(client, **fields):
    request = Query.Request(question="What?", **fields)
    return client.graph.call(Query, f"{client.name}/query", request)


@two_cameras
def test_each_camera_has_its_own_memory_and_is_asked_alone_or_with_others(here, cameras):
    front, rear = cameras
    rear.stamp_ns += 10**12
    assert (see(front, 2).source, see(rear, 3).source) == ("front", "rear")
    one = answers(front, source="rear")
    assert (one.answer.source, one.answer.text, len(one.answers)) == ("rear", "x" * 7, 0)
    assert one.answer.cache_status.frames == 3
    for source in ("", "*", "rear, front"):
        both = answers(front, source=source, max_new_tokens=3)
        assert [(a.source, a.text) for a in both.answers] == [("front", "xxx"), ("rear", "xxx")]
        assert (both.answer.source, both.answer.text) == ("front,rear", "front: xxx\nrear: xxx")
        assert [a.cache_status.frames for a in both.answers] == [2, 3]
        assert (both.answer.newest_stamp, both.answer.oldest_stamp) == (
            both.answers[1].newest_stamp,
            both.answers[0].oldest_stamp,
        )
        assert both.answer.answer_tokens == 6
    wrong = answers(front, source="left").answer
    assert wrong.error_code == wrong.INVALID_PARAMETER
    assert "there is no camera 'left': there are front, rear" in wrong.error_message
    here.client.graph.wait(lambda: len(here.client.answers) >= 7, what="the answers told")
    assert [a.source for a in here.client.answers[:3]] == ["rear", "front", "rear"]
    # One that has seen nothing says so, and the other answers all the same.
    assert rear.reset().success
    both = answers(front, max_new_tokens=3)
    assert [a.error_code for a in both.answers] == [0, both.answer.EMPTY_MEMORY]
    assert (both.answer.text, both.answer.error_code) == ("front: xxx", both.answer.EMPTY_MEMORY)
    assert both.answer.error_message.startswith("rear: the memory holds no image yet")
    assert front.status.frames == 2 and here.engines["front/image"].times
    assert here.said == []


@two_cameras
def test_the_text_of_several_grows_and_a_cancel_ends_all(here, cameras):
    front, rear = cameras
    see(front, 1), see(rear, 1)
    goal = here.client.send_goal("What?", max_new_tokens=5)
    _, answer = goal.result()
    goal.wait_for_text()  # which may be heard behind the result
    assert answer.text == "front: xxxxx\nrear: xxxxx"
    texts = [one.text for one in goal.feedback if one.state == Ask.Feedback.WRITING]
    assert texts and all(answer.text.startswith(text) for text in texts)
    assert all(b.startswith(a) for a, b in itertools.pairwise(texts))
    asked = [len(engine.calls) for engine in here.engines.values()]
    goal = here.client.send_goal("What?", max_new_tokens=2_000_000)
    goal.wait_for_text()  # of the first one; the other begins by itself
    here.client.graph.wait(
        lambda: all(len(e.calls) > n for e, n in zip(here.engines.values(), asked, strict=True))
    )
    goal.cancel()
    _, answer = goal.result()
    assert (answer.error_code, answer.finish_reason) == (answer.CANCELLED, "cancelled")


@two_cameras
def test_the_text_of_each_camera_is_published_piece_by_piece_whoever_asked(here, cameras):
    front, rear = cameras
    see(front, 1), see(rear, 1)
    graph = here.client.graph
    heard, subscriptions = zip(
        *(
            graph.listen(String, f"{here.client.name}/{name}/answer_delta")
            for name in ("front", "rear")
        ),
        strict=True,
    )
    graph.wait(lambda: all(one.delta.is_heard for one in here.node.cameras), what="subscribers")
    answers(front, max_new_tokens=3)
    goal = here.client.send_goal("What?", max_new_tokens=4, source="rear")
    goal.result()
    assert answers(front, source="front", choices=["yes", "no"]).answer.text
    wanted = [["x"] * 3, ["x"] * 7]

    def pieces():
        return [[one.data for one in its] for its in heard]

    graph.wait(lambda: pieces() == wanted, what="the pieces")
    for subscription in subscriptions:
        graph.do(lambda one=subscription: graph.node.destroy_subscription(one))


@two_cameras
def test_pausing_forgetting_and_faults_of_one_leave_the_other(here, cameras):
    front, rear = cameras
    see(front, 1), see(rear, 1)
    paused = front.trigger("pause")
    assert paused.success and paused.message.endswith("until ~/front/resume")
    front.send(front.image())
    assert see(rear, 1).paused is False
    assert (front.status.paused, front.status.frames, front.status.dropped_paused) == (True, 1, 1)
    assert here.client.trigger("resume").success
    assert see(front, 1).paused is False
    # A user's function may end one engine for good.
    here.engines["rear/image"].fail_next = SystemExit(3)
    rear.send(rear.image())
    here.client.graph.wait(lambda: here.node.cameras[1].worker.ended, what="the end of it")
    assert see(front, 1).frames == 3
    told = answers(front, max_new_tokens=1)
    assert [a.error_code for a in told.answers] == [0, told.answer.INTERNAL]

    def diagnosed():
        names = {}
        for heard in here.client.diagnostics[-3:]:
            names |= {s.name: (s.level, s.message) for s in heard.status}
        level, words = names.get("here/stream_vlm: rear: model and memory", (b"0", ""))
        return names if level == b"\x02" and "SystemExit(3)" in words else None

    names = here.client.graph.wait(diagnosed, what="the diagnostics")
    assert names["here/stream_vlm: front: model and memory"][0] == b"\x00"
    assert {f"here/stream_vlm: {name}: image input" for name in ("front", "rear")} <= set(names)


@two_cameras
def test_a_question_to_what_was_forgotten_and_paused_is_told_so(here, cameras):
    front, rear = cameras
    see(front, 1), see(rear, 1)
    assert rear.trigger("pause").success and rear.reset().success
    told = answers(front, max_new_tokens=1)
    assert [a.error_code for a in told.answers] == [0, told.answer.EMPTY_MEMORY]
    assert told.answers[1].error_message.endswith("paused, and drops images until ~/rear/resume")


@two_cameras
def test_a_setting_of_one_camera_is_its_own_and_others_follow_the_node(here, cameras):
    set_parameter = here.client.set_parameter
    assert set_parameter("front.sample_fps", 5).successful
    assert set_parameter("sample_fps", 3.0).successful
    assert [one.settings.sample_fps for one in here.node.cameras] == [5.0, 3.0]
    for name, value, words in (
        ("front.sample_fps", 500.0, "front.sample_fps out of range"),
        ("rear.sample_fps", -1.0, "rear.sample_fps out of range"),
        ("rear.max_cache_tokens", 16_384, "only while the node is unconfigured"),
        ("rear.engine", "delayed_batch", "no parameter 'rear.engine'"),
        ("rear.model_path", "x", "no parameter 'rear.model_path'"),
        ("left.sample_fps", 1.0, "no parameter 'left.sample_fps'"),
    ):
        refused = set_parameter(name, value)
        assert not refused.successful and words in refused.reason
    assert set_parameter("sample_fps", 4.0).successful  # what was refused has left nothing behind
    assert [one.settings.sample_fps for one in here.node.cameras] == [5.0, 4.0]
    assert [one.worker.weight for one in here.node.cameras] == [2.0, 1.0]


def test_one_camera_needs_no_name(here):
    see(here.client, 1)
    for source in ("", "stream", "*"):
        told = answers(here.client, source=source, max_new_tokens=2)
        assert (told.answer.text, told.answer.source, len(told.answers)) == ("xx", "", 0)
    refused = answers(here.client, source="front").answer
    assert "this node has only one; leave source empty" in refused.error_message
    assert here.client.status.source == ""


@two_cameras
def test_memories_are_saved_and_loaded_of_one_or_of_all(here, cameras):
    for within in (here.client.name, f"{here.client.name}/rear"):
        for kind, name in ((SaveMemory, "save_memory"), (LoadMemory, "load_memory")):
            told = here.client.graph.call(kind, f"{within}/{name}")
            assert not told.success and "memory_folder is not set" in told.message
            assert told.message.startswith("front: ") == (within == here.client.name)


@pytest.mark.parametrize("here", [TWO | {"memory_folder": str(FOLDER)}], indirect=True)
def test_saved_memories_are_listed_of_one_or_of_all(here, cameras):
    everything = ["both-front", "both-rear", "one-front", "plain"]
    for name in everything:
        (FOLDER / f"{name}.safetensors").touch()

    def listed(within):
        told = here.client.graph.call(ListMemories, f"{within}/list_memories")
        assert told.success, told.message
        return sorted(told.names)

    assert listed(f"{here.client.name}/rear") == everything
    assert listed(here.client.name) == ["both"]  # loading "one" would find none for the rear
    request = LoadMemory.Request(name="one")
    told = here.client.graph.call(LoadMemory, f"{here.client.name}/load_memory", request)
    assert not told.success
    assert told.message == "rear: there is no memory 'one-rear'; no camera's is loaded"


@two_cameras
def test_the_console_shows_and_steers_one_of_several(here, cameras, alone):
    from stream_vlm_ros.session.question import Question
    from stream_vlm_ros.web.over_node import OverNode

    front, rear = cameras
    see(front, 1), see(rear, 2)

    async def until(memory, condition):
        async with asyncio.timeout(PATIENCE):
            while not condition(memory.status):
                await asyncio.sleep(0.02)

    async def use():
        shown = {name: OverNode(here.client.name, name) for name in ("front", "rear")}
        first = OverNode(here.client.name)
        for memory in (*shown.values(), first):
            await memory.start()
        try:
            await until(shown["front"], lambda status: status.memory.frames == 1)
            await until(shown["rear"], lambda status: status.memory.frames == 2)
            await until(first, lambda status: status.memory.frames == 1)
            assert (first.name, shown["rear"].name) == ("front", "rear")
            for memory in shown.values():
                await until(memory, lambda status: "max_new_tokens" in status.settings)
            assert shown["rear"].status.settings["max_new_tokens"] == 7
            assert shown["front"].status.settings["max_new_tokens"] != 7
            await shown["rear"].set(max_new_tokens=3)
            await shown["front"].set(max_new_tokens=5)
            assert shown["rear"].status.settings["max_new_tokens"] == 3
            outcome = await shown["rear"].ask(Question("What?", max_new_tokens=0)).outcome()
            assert outcome.answer == "xxx"
            await shown["rear"].pause()
            await until(shown["rear"], lambda status: status.paused)
            await shown["rear"].reset()
            await until(shown["rear"], lambda status: status.memory.frames == 0)
            assert not first.status.paused and first.status.memory.frames == 1
        finally:
            for memory in (*shown.values(), first):
                await memory.close()

    asyncio.run(use())


@two_cameras
def test_the_client_asks_and_steers_one_of_several(here, cameras, alone):
    front, rear = cameras
    see(front, 1), see(rear, 1)

    async def use():
        async with StreamVlmClient(here.client.name, patience=PATIENCE) as memory:
            async with memory.stream("What?", max_new_tokens=2) as stream:
                pieces = [piece async for piece in stream]
                answer = await stream.answer()
            assert "".join(pieces) == answer.text == "front: xx\nrear: xx"
            assert [one.source for one in stream.answers] == ["front", "rear"]
            assert (await memory.ask("What?", source="rear", max_new_tokens=1)).text == "x"
            assert "paused" in await memory.pause("rear")
            assert (await memory.resume("front, rear")).count("images are watched") == 2
            assert "paused" in await memory.pause("*")
            assert "images are watched" in await memory.resume("front")
            with pytest.raises(InvalidParameterError, match=r"rear\.image_topic is not set"):
                await memory.get("rear.image_topic")
            with pytest.raises(InvalidParameterError, match="no camera 'left': there are front, r"):
                await memory.reset("left")
            await memory.reset("rear")
            with pytest.raises(AskError, match="rear: the memory holds no image yet") as refused:
                await memory.ask("What?", max_new_tokens=2)
            assert [one.text for one in refused.value.answers] == ["xx", ""]
            assert await memory.cameras() == ["front", "rear"] == sorted(memory.statuses)
            assert await memory.get("front.sample_fps") == {"front.sample_fps": 0.0}
            await memory.set(**{"front.sample_fps": 3})
            assert await memory.get("front.sample_fps", "rear.sample_fps") == {
                "front.sample_fps": 3.0,
                "rear.sample_fps": 0.0,
            }
            with pytest.raises(InvalidParameterError, match=r"no parameter 'left\.sample_fps'"):
                await memory.get("left.sample_fps")

    asyncio.run(use())
    assert rear.wait_status(lambda s: s.frames == 0, what="the reset").paused
    assert not front.status.paused and front.status.frames == 1


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"sources": ["front", "front"]}, "a name is there twice: front, front"),
        ({"sources": "front,2nd"}, "'2nd' names no camera"),
        ({"sources": "front", "image_topic": "/a"}, "set front.image_topic"),
        ({"sources": "front", "front.sampl_fps": 1.0}, "no parameter 'front.sampl_fps'"),
        ({"sources": "front", "front.sample_fps": -1.0}, "front.sample_fps must lie in"),
        ({"sources": "front", "max_cache_tokens": 0}, "say how many for front"),
        (
            {"sources": ["front", "rear"], "front.image_topic": "/a", "rear.image_topic": "/a"},
            "image_topic '/a' is that of two cameras",
        ),
    ],
)
def test_cameras_that_make_no_sense_are_refused_at_the_start(values, words):
    context = rclpy.Context()
    rclpy.init(context=context)
    given = [Parameter(name, value=value) for name, value in values.items()]
    try:
        with pytest.raises(InvalidParameterError, match=re.escape(words)):
            StreamVlmNode(load=None, context=context, parameter_overrides=given)
    finally:
        context.shutdown()


@two_cameras
def test_the_status_of_all_comes_on_one_topic_too(here, cameras):
    def sources():
        return {status.source for status in here.client.statuses}

    here.client.graph.wait(lambda: sources() == {"front", "rear"}, what="both statuses")
    late, subscription = here.client.graph.listen(
        CacheStatus, f"{here.client.name}/cache_status", latched=True
    )
    here.client.graph.wait(lambda: {s.source for s in late} == {"front", "rear"}, what="both")
    here.client.graph.do(lambda: here.client.graph.node.destroy_subscription(subscription))


@two_cameras
def test_nodes_are_listed_with_a_row_for_each_camera(here, cameras):
    _, rear = cameras
    see(rear, 2)
    assert rear.trigger("pause").success
    told = CliRunner().invoke(app, ["node", "list", "--json"])
    assert told.exit_code == 0, told.output
    rows = [one for one in json.loads(told.stdout) if one["name"] == here.client.name]
    assert [(one["camera"], one["state"]) for one in rows] == [
        ("front", "active"),
        ("rear", "paused"),
    ]
    assert ["2 frames" in one["memory"] for one in rows] == [False, True]


def in_a_terminal(*arguments):
    result = CliRunner().invoke(app, [*arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


@two_cameras
def test_a_terminal_names_some_cameras_with_commas_or_one_by_one(here, cameras):
    front, rear = cameras
    see(front, 1), see(rear, 1)
    name = here.client.name
    for sources in (["front,rear"], ["front", "rear"]):
        of = [word for source in sources for word in ("--source", source)]
        told = in_a_terminal("ask", "--node", name, *of, "What?", "--max-new-tokens", "1", "--json")
        assert [a["source"] for a in json.loads(told)["answers"]] == ["front", "rear"]
        assert in_a_terminal("node", "pause", "--node", name, *of).count("paused") == 2


@two_cameras
def test_the_last_answer_of_each_camera_before_one_watches_is_told_as_earlier(here, cameras):
    front, rear = cameras
    see(front, 1), see(rear, 1)
    answers(front, max_new_tokens=1)
    told = in_a_terminal("watch", "--node", here.client.name, "--seconds", "5", "--json")
    events = [json.loads(line) for line in told.splitlines()]
    of = [(one["source"], one.get("earlier")) for one in events if one["kind"] == "Answer"]
    assert sorted(of) == [("front", True), ("rear", True)]


@pytest.mark.parametrize("here", [TWO | {"sources": ["front", "rear"]}], indirect=True)
def test_a_list_is_set_as_yaml_or_json_writes_it_or_with_commas(here, cameras):
    name = here.client.name
    for verb in ("deactivate", "cleanup"):
        in_a_terminal("node", verb, "--node", name)
    for text, value in (
        ("front", ["front"]),
        ("[rear, front]", ["rear", "front"]),
        ('["front","rear"]', ["front", "rear"]),
        ("rear,front", ["rear", "front"]),
    ):
        told = in_a_terminal("node", "set", "--node", name, "sources", text)
        assert told.endswith(f"-> {json.dumps(value)}\n")


@pytest.mark.parametrize("here", [TWO | {"rear.image_topic": "/nowhere"}], indirect=True)
def test_a_camera_without_images_is_not_sent_to_the_topic_of_another(here, cameras):
    front, rear = cameras
    see(front, 1)
    node = here.client.graph.node
    spare = here.client.graph.do(lambda: node.create_publisher(Image, "/here/spare", 10))
    rear.diagnostic(
        "rear: image input", lambda d: "are published on /here/spare: start" in d.message
    )
    here.client.graph.do(lambda: node.destroy_publisher(spare))
