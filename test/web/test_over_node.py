# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`OverNode`: a node in a process of its own, with the small model, watched and asked."""

import asyncio
import io
import random
import threading
import time

import pytest
from browser import find_browser, launched, served
from node_process import NodeProcess
from patience import PATIENCE
from PIL import Image
from ros_client import Graph, StreamVlmClient

from stream_vlm_ros.errors import StreamVlmError
from stream_vlm_ros.session.question import Question
from stream_vlm_ros.world.questions import History, ask
from stream_vlm_ros.world.source import WorldSource

pytest.importorskip("rclpy")
pytestmark = pytest.mark.ros

SECOND = 10**9
STEP = 0.5  # s between two frames
FRAMES = 24


class Watched:
    """A console's memory in an event loop of its own, and how long it is waited for."""

    def __init__(self, name):
        from stream_vlm_ros.web.over_node import OverNode

        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self.memory = self.do(self._made(OverNode, name))

    async def _made(self, kind, name):
        memory = kind(name)
        await memory.start()
        return memory

    def do(self, work):
        return asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE)

    def until(self, condition):
        """Until the status meets a condition; that status."""
        end = time.monotonic() + PATIENCE
        while not condition(status := self.memory.status):
            assert time.monotonic() < end, status
            time.sleep(0.02)
        return status

    def ask(self, text, **options):
        """The texts as they grew, and the outcome."""

        async def asked():
            answer = self.memory.ask(Question(text, max_new_tokens=24, **options))
            return [text async for text in answer], await answer.outcome()

        return self.do(asked())

    def close(self):
        self.do(self.memory.close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        self._loop.close()


@pytest.fixture(scope="module")
def nodes():
    """Those that were started, each in a process of its own."""
    nodes = []
    yield nodes
    for node in nodes:
        node.stop()


@pytest.fixture(scope="module")
def start(tmp_path_factory, nodes):
    """Starts a node."""
    folder = tmp_path_factory.mktemp("memories")

    def start():
        nodes.append(
            NodeProcess(
                namespace="watched",
                sample_fps=2.0,
                chunk_frames=2,
                status_period=0.2,
                history="auto",
                device="cpu",
                memory_folder=folder,
            )
        )
        return nodes[-1]

    return start


@pytest.fixture(scope="module")
def watched():
    watched = Watched("/watched/stream_vlm")
    assert watched.memory.status.state == "away" and "looking for" in watched.memory.status.words
    yield watched
    watched.close()


@pytest.fixture(scope="module")
def graph():
    graph = Graph()
    yield graph
    graph.close()


@pytest.fixture(scope="module")
def camera(watched, start, graph):
    """That has shown `FRAMES` frames of a drawn world; with the node, and what may be asked."""
    node = start()
    node.wait_for("the node is active")
    camera = StreamVlmClient(graph, "watched")
    source = WorldSource(7, fps=1 / STEP, end=FRAMES * STEP)
    begin = camera.stamp_ns + SECOND
    for frame in source:
        camera.stamp_ns = begin + frame.stamp_ns
        camera.send(camera.image(0, *frame.image.shape[:2], data=frame.image.tobytes()))
    camera.wait_status(lambda status: status.frames == FRAMES)
    camera.begin_ns = begin
    stamps = [number * STEP for number in range(FRAMES)]
    camera.history = History(source.world.sightings(stamps[-1]), stamps)
    yield camera
    camera.close()


def test_what_is_ordered_as_the_node_leaves_is_told_why():
    from stream_vlm_ros.client.errors import NodeUnavailableError
    from stream_vlm_ros.web.over_node import OverNode

    class Leaving:
        async def reset(self, source):
            memory.client = left
            raise NodeUnavailableError("the client was closed")

    def left():
        raise NodeUnavailableError("the node /leaves has ended")

    memory = OverNode("/leaves")
    memory.client = Leaving
    with pytest.raises(NodeUnavailableError, match="/leaves has ended"):
        asyncio.run(memory.reset())


def question(camera, kind="was_there"):
    """Of a kind, with its one right answer."""
    return ask(random.Random(1), camera.history, kind)


def test_the_memory_is_told_as_the_node_tells_it(camera, watched):
    status = watched.until(lambda s: s.memory.frames == FRAMES and s.settings and s.model)
    assert (status.state, status.paused) == ("active", False)
    assert status.words == "" or "images/s arrive" in status.words  # on a busy machine
    assert status.memory.spans_ns == ((camera.begin_ns, camera.stamp_ns),)
    assert sum(level.frames for level in status.memory.levels) == FRAMES
    assert [tier.frames for tier in status.memory.tiers] == [FRAMES, FRAMES]
    assert status.counters["frames_ingested"] == FRAMES
    assert "drawn world" in status.model and status.device == "cpu"
    assert status.used_bytes > 100e6  # of a process with torch in it
    assert watched.memory.examples[0] == "What is visible now?"
    assert status.settings["sample_fps"] == 2.0 and "sampled_max_pixels" not in status.settings


def test_the_node_answers_rightly_and_shows_what_it_rests_on(camera, watched):
    asked = question(camera)
    texts, outcome = watched.ask(asked.text, history="always", thumbnails=2)
    assert outcome.error is None and asked.is_right(outcome.answer)
    assert texts[-1] == outcome.answer and outcome.ttft > 0
    (episode,) = outcome.evidence
    assert camera.begin_ns <= episode.start_ns < episode.end_ns <= camera.stamp_ns
    assert episode.start_ns < camera.begin_ns + 4 * SECOND  # when the ring left
    assert {stamp for stamp, _ in episode.thumbnails} < set(episode.stamps_ns)
    assert all(size_of(jpeg) == (320, 240) for _, jpeg in episode.thumbnails)
    assert outcome.memory.spans_ns == ((camera.begin_ns, camera.stamp_ns),)
    (past,) = watched.do(watched.memory.past_answers(text=asked.text))
    assert (past.question, past.text, past.error) == (asked.text, outcome.answer, "")


def test_of_choices_one_is_picked_and_an_answer_grows_by_its_words(camera, watched):
    asked = question(camera, "choice")
    _, outcome = watched.ask(asked.text, choices=asked.choices)
    assert asked.is_right(outcome.answer)
    assert asked.choices[outcome.choice_index] == outcome.answer
    texts = []
    while len(texts) < 2:  # who was busy meanwhile sees all of a short answer at once
        texts, outcome = watched.ask(question(camera, "ago").text)
        assert texts[-1] == outcome.answer
        assert all(outcome.answer.startswith(text) for text in texts)


def test_what_the_node_refuses_is_told_in_its_words(camera, watched):
    _, outcome = watched.ask("What was there?", about_ns=(1, 2))
    assert outcome.error.code == "OUT_OF_HORIZON" and "nothing of that time" in str(outcome.error)
    with pytest.raises(StreamVlmError, match="range"):
        watched.do(watched.memory.set(sample_fps=-1.0))
    with pytest.raises(StreamVlmError, match="nowhere"):
        watched.do(watched.memory.load("nowhere"))


def test_an_answer_ends_when_it_is_stopped(camera, watched):
    async def stopped():
        answer = watched.memory.ask(Question(question(camera).text))
        answer.cancel()
        return await answer.outcome()

    outcome = watched.do(stopped())
    assert outcome.error.code == "CANCELLED"


def test_kept_pictures_are_shown_by_their_time(camera, watched):
    def picture(stamp_ns, size=320):
        return watched.do(watched.memory.thumbnail(stamp_ns, size))

    assert size_of(picture(camera.begin_ns + SECOND // 3, 64)) == (64, 48)
    assert picture(camera.begin_ns - 60 * SECOND) is None


def test_pictures_come_as_the_camera_sends_them_while_a_paused_node_remembers_none(camera, watched):
    assert "paused" in watched.do(watched.memory.pause())
    watched.until(lambda s: s.paused and s.state == "active")
    assert "any time" not in watched.do(watched.memory.set(sample_fps=4))
    assert watched.until(lambda s: s.settings["sample_fps"] == 4.0).memory.frames == FRAMES
    shown = []
    end = time.monotonic() + PATIENCE
    while len(shown) < 3 and time.monotonic() < end:
        image = camera.image(height=480, width=640)
        camera.publisher().publish(image)
        time.sleep(0.15)
        picture = watched.memory.picture
        if picture is not None and picture not in shown:
            shown.append(picture)
    assert len(shown) == 3, watched.memory.status
    assert shown[0].number < shown[1].number < shown[2].number
    assert shown[0].stamp_ns < shown[1].stamp_ns < shown[2].stamp_ns <= camera.stamp_ns
    assert size_of(shown[-1].jpeg) == (640, 480)
    assert watched.memory.status.memory.frames == FRAMES
    watched.do(watched.memory.resume())
    watched.do(watched.memory.set(sample_fps=2.0))
    watched.until(lambda s: not s.paused)


def test_after_a_restart_a_loaded_memory_gives_the_same_answer(camera, watched, start, nodes):
    asked = question(camera, "ago")
    before = watched.ask(asked.text)[1]
    assert "saved as" in watched.do(watched.memory.save("proof"))
    saved = watched.until(lambda s: s.saved.startswith("proof ("))
    watched.do(watched.memory.save())
    assert len(watched.do(watched.memory.saved_names())) == 2
    nodes[-1].stop()
    away = watched.until(lambda s: s.state == "away")
    assert "/watched/stream_vlm" in away.words
    refused = watched.ask(asked.text)[1]
    assert refused.error is not None and str(refused.error)
    with pytest.raises(StreamVlmError, match="/watched/stream_vlm"):
        watched.do(watched.memory.reset())

    start()
    empty = watched.until(lambda s: s.state == "active" and s.memory.frames == 0)
    assert empty.counters["frames_received"] == 0
    assert "loaded" in watched.do(watched.memory.load("proof"))
    status = watched.until(lambda s: s.memory.frames == FRAMES)
    assert status.memory.levels == saved.memory.levels
    again = watched.ask(asked.text)[1]
    assert (again.answer, again.error) == (before.answer, None)
    assert asked.is_right(again.answer)


@pytest.fixture
def page(watched):
    """A console over the node, in a browser."""
    pytest.importorskip("nicegui", reason="the console is not installed")
    if find_browser() is None:
        pytest.skip("no Chromium here: make browser installs it")
    from stream_vlm_ros.web.over_node import OverNode

    with served([OverNode("/watched/stream_vlm")]) as address, launched() as browser:
        page = browser.new_page()
        page.set_default_timeout(1000 * PATIENCE)
        page.goto(address)
        yield page


def test_a_browser_asks_saves_sees_the_restart_loads_and_is_told_the_same(
    page, camera, watched, start, nodes
):
    from playwright.sync_api import expect

    def told(text):
        expect(page.get_by_text(text).first).to_be_visible(timeout=1000 * PATIENCE)

    def ask_there(text):
        articles = page.get_by_role("article")
        number = articles.count()
        page.get_by_label("Question", exact=True).fill(text)
        page.keyboard.press("Enter")
        article = articles.nth(number)
        expect(article).to_contain_text("in all", timeout=1000 * PATIENCE)
        return article.locator(".sv-answer-text").text_content()

    state = page.get_by_role("status").first
    expect(state).to_have_text("Live", timeout=1000 * PATIENCE)
    asked = question(camera, "first")
    before = ask_there(asked.text)
    assert asked.is_right(before)
    page.get_by_role("button", name="Save", exact=True).click()
    page.get_by_label("Name").fill("shown")
    page.get_by_role("button", name="Save", exact=True).last.click()
    told("Saved as")
    nodes[-1].stop()
    expect(state).to_have_text("Not answering", timeout=1000 * PATIENCE)
    told("/watched/stream_vlm")
    start()
    expect(state).to_have_text("Live", timeout=1000 * PATIENCE)
    page.get_by_role("button", name="Load", exact=True).click()
    page.get_by_role("button", name="shown").click()
    told("Loaded")
    assert ask_there(asked.text) == before


def test_a_second_node_of_the_name_is_said_and_both_are_left_alone(camera, watched, graph):
    import rclpy

    other = rclpy.create_node("stream_vlm", namespace="watched", context=graph.context)
    status = watched.until(lambda s: s.state == "away")
    assert "two nodes named /watched/stream_vlm" in status.words
    other.destroy_node()
    watched.until(lambda s: s.state == "active")


def size_of(jpeg):
    return Image.open(io.BytesIO(jpeg)).size
