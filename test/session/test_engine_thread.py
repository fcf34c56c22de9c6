# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Several sessions in one thread: each with its memory, and none disturbs another."""

import gc
import itertools
import threading
import time
import weakref

import numpy as np
import pytest
import torch
from fake_engine import FakeEngine, FakeReader, FakeRecall, episode
from patience import PATIENCE, wait_until
from safetensors.torch import load_file
from toy_qwen import chatter_model, toy_frames, toy_processor

from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference
from stream_vlm_ros.engine.decode_path import LANES
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.engine.results import SavedMemory
from stream_vlm_ros.engine.together import EngineGroup
from stream_vlm_ros.errors import InvalidImageError, ModelLoadError, StreamVlmError
from stream_vlm_ros.session.counters import Drop, FrameCounters
from stream_vlm_ros.session.engine_thread import (
    ANSWERS,
    CHUNKS,
    MAX_ANSWERS,
    MAX_READ,
    PREPARING,
    EngineThread,
    write_together,
)
from stream_vlm_ros.session.question import READING, WRITING, NotActiveError, Question
from stream_vlm_ros.session.timed_frame import TimedFrame
from stream_vlm_ros.session.worker import EngineWorker


class Camera:
    """A session of a shared thread, over a stand-in or a toy engine."""

    def __init__(self, thread, engine, load=None, **options):
        self.engine, self.counters, self.faults = engine, FrameCounters(), []
        self.thread = thread
        self.worker = EngineWorker(
            load or (lambda: self.engine),
            self.counters,
            queue_size=4,
            max_questions=50,
            report=self.faults.append,
            thread=thread,
            **options,
        )
        self.come_to = 0

    def append(self, *images):
        for _ in images:
            self.counters.receive()
        stamps = [round((self.come_to + k) * SECOND / 2) for k in range(len(images))]
        self.come_to += len(images)
        self.worker.append([TimedFrame(s, i, None) for s, i in zip(stamps, images, strict=True)])

    def ask(self, text="What?", tokens=3, progress=None, **options):
        return self.worker.ask(Question(text, max_new_tokens=tokens, **options), progress)

    def answer(self, *arguments, **options):
        return self.ask(*arguments, **options).future.result(PATIENCE)


@pytest.fixture
def start():
    """Cameras of the given names over stand-in engines, in one thread."""
    threads = []

    def make(names="ab", make_engine=FakeEngine, options=lambda name: {}, group="one", **thread):
        threads.append(EngineThread(**thread))
        cameras = [Camera(threads[-1], make_engine(), **options(name)) for name in names]
        for camera in cameras:
            camera.engine.group = group
        threads[-1].start()
        for camera in cameras:
            camera.worker.loaded.result(PATIENCE)
        return cameras

    yield make
    for thread in threads:
        assert thread.stop(PATIENCE)


def hold(camera):
    """Keep the thread in a call of this camera's engine until its gate is set."""
    camera.engine.gate.clear()
    camera.append("held")
    assert camera.engine.busy.wait(PATIENCE)


def test_each_session_has_its_own_memory_counters_and_time(start):
    a, b = start()
    a.append("1", "2")
    b.come_to = 100
    b.append("3")
    assert (a.answer().memory.frames, b.answer().memory.frames) == (2, 1)
    assert (a.counters.ingested, b.counters.ingested) == (2, 1)
    assert (a.worker.memory.oldest_ns, b.worker.memory.oldest_ns) == (0, 50 * SECOND)
    b.worker.reset(Drop.RESET).result(PATIENCE)
    assert (a.answer().memory.frames, b.answer().error.code) == (2, "EMPTY_MEMORY")
    assert (a.worker.resets, b.worker.resets) == (0, 1)


class Saved(FakeEngine):
    """Its memory can be read from a disk that is stuck until ``disk`` is set."""

    def __init__(self):
        super().__init__()
        self.disk = threading.Event()

    def memory_reader(self):
        return FakeReader(self.disk)

    def load_memory(self, read, *, origin_ns=None, check=None):
        self.calls.append(("load", read))
        self.times = [10.0, 10.5, 11.0]
        spans = ((10.0, 11.0),)
        return SavedMemory(tokens=30, frames=3, time_spans=spans, saved_at=0.0, bytes=100)


def test_others_go_on_while_a_memory_is_read_and_who_asked_behind_it_waits(start):
    a, b = start(make_engine=Saved)
    a.append("1")
    a.answer()
    loading, asked = a.worker.load_memory("file"), a.ask()
    a.come_to = 100
    a.append("2")
    resetting, empty = a.worker.reset(Drop.RESET), a.ask()
    for _ in range(3):
        b.append("x")
        assert b.answer().answer
    assert not any(one.done() for one in (loading, asked.future, resetting, empty.future))
    assert (a.counters.ingested, a.counters.pending) == (1, 0)  # the later one was forgotten
    a.engine.disk.set()
    assert loading.result(PATIENCE).frames == 3
    assert asked.future.result(PATIENCE).memory.newest_ns == 11 * SECOND
    assert empty.future.result(PATIENCE).error.code == "EMPTY_MEMORY"
    assert [call[0] for call in a.engine.calls] == ["append", "ask", "load", "ask", "ask"]


def test_who_ends_a_session_does_not_wait_for_the_memory_that_it_reads(start):
    a, b = start(make_engine=Saved)
    loading = a.worker.load_memory("file")
    wait_until(lambda: "memory that is read" in [one.name for one in threading.enumerate()])
    assert a.worker.stop(PATIENCE)
    with pytest.raises(NotActiveError):
        loading.result(0)
    wait_until(lambda: "memory that is read" not in [one.name for one in threading.enumerate()])
    b.append("x")
    assert b.answer().answer


def test_no_more_memories_are_read_at_a_time_than_the_host_is_to_hold(start):
    cameras = start("abcdefgh", make_engine=Saved)
    inside, most, held = [], [], threading.Event()

    class Counting(FakeReader):
        def read(self, path, over):
            inside.append(path)
            most.append(len(inside))
            assert held.wait(PATIENCE)
            inside.remove(path)
            return path

    for camera in cameras:
        camera.engine.memory_reader = Counting
    loading = [camera.worker.load_memory(str(n)) for n, camera in enumerate(cameras)]
    wait_until(lambda: len(inside) == MAX_READ)
    assert cameras[-1].worker.stop(PATIENCE)  # nor does one wait for its turn to read
    held.set()
    assert [one.result(PATIENCE).frames for one in loading[:-1]] == [3] * 7
    assert max(most) == MAX_READ


def test_a_memory_that_was_read_is_one_of_them_until_it_is_taken_over(start):
    *cameras, busy = start("abcdefgh", make_engine=Saved)
    held, most = [], []
    at_another = threading.Event()  # the engines' thread is at another one's chunk

    class Counting(FakeReader):
        def read(self, path, over):
            assert at_another.wait(PATIENCE)
            held.append(path)
            most.append(len(held))
            return path

    for camera in cameras:
        load = camera.engine.load_memory
        camera.engine.memory_reader = Counting
        camera.engine.load_memory = lambda read, load=load, **given: (
            held.remove(read) or load(read, **given)
        )
    loading = [camera.worker.load_memory(str(n)) for n, camera in enumerate(cameras)]
    reading = lambda: [one.name for one in threading.enumerate()].count("memory that is read")  # noqa: E731
    wait_until(lambda: reading() == 7)
    hold(busy)
    at_another.set()
    wait_until(lambda: len(held) >= MAX_READ)
    time.sleep(0.3)  # in which others would begin
    busy.engine.gate.set()
    assert [one.result(PATIENCE).frames for one in loading] == [3] * 7
    assert max(most) == MAX_READ and not held


class Layers:
    """What was read of a memory."""


def test_a_memory_that_is_refused_is_let_go(start):
    a, _ = start("ab", make_engine=Saved)
    read = []

    class Reader(FakeReader):
        def read(self, path, over):
            layers = Layers()
            read.append(weakref.ref(layers))
            return layers

    def refuse(layers, **given):
        raise InvalidImageError("there is no room for it beside the present one")

    a.engine.memory_reader, a.engine.load_memory = Reader, refuse
    gc.disable()
    try:
        for _ in range(2):
            with pytest.raises(InvalidImageError):
                a.worker.load_memory("file").result(PATIENCE)
        wait_until(lambda: [one() for one in read] == [None, None])
    finally:
        gc.enable()


def test_where_nobody_else_would_wait_a_memory_is_read_in_its_place_piece_by_piece(start):
    [a] = start("a", make_engine=Saved)
    assert a.worker.load_memory("file").result(PATIENCE).frames == 3
    assert a.engine.calls == [("load", "file")]  # though its reader would not come to an end
    [b] = start("b", make_engine=Saved, lasting=True)  # others may come at any time
    loading = b.worker.load_memory("file")
    wait_until(lambda: "memory that is read" in [one.name for one in threading.enumerate()])
    b.engine.disk.set()
    assert loading.result(PATIENCE).frames == 3


def test_a_memory_that_no_thread_is_left_to_read_is_told_and_the_session_goes_on(
    start, monkeypatch
):
    a, _ = start(make_engine=Saved)
    begin = threading.Thread.start

    def begin_none(thread):
        if thread.name == "memory that is read":
            raise RuntimeError("can't start new thread")
        begin(thread)

    monkeypatch.setattr(threading.Thread, "start", begin_none)
    with pytest.raises(RuntimeError, match="new thread"):
        a.worker.load_memory("file").result(PATIENCE)
    a.append("1")
    assert a.answer().memory.frames == 1


def test_a_question_goes_before_the_chunks_of_all_other_sessions(start):
    cameras = start("abcdefgh")
    calls = []
    for camera in cameras:
        camera.append("first")
        camera.answer()
        camera.engine.calls = calls
    hold(cameras[0])
    for camera in cameras:
        camera.append("x")
        camera.append("y")
    asked = cameras[-1].ask(tokens=1)
    cameras[0].engine.gate.set()
    assert asked.future.result(PATIENCE).error is None
    # What was under way, and what its own session got before it.
    assert [call[0] for call in calls][:4] == ["append", "append", "append", "ask"]
    wait_until(lambda: not any(camera.counters.pending for camera in cameras))
    assert [camera.counters.ingested for camera in cameras] == [4, *[3] * 7]


def test_answers_of_several_sessions_are_written_together_and_chunks_get_their_turns(start):
    told = []
    pieces = itertools.count()  # each takes as long as any other
    a, b, c = start("abc", ingest_share=1.0, clock=lambda: float(next(pieces)))
    for camera in (a, b):
        camera.append("first")
        camera.answer()
    hold(c)
    tickets = [
        camera.ask(tokens=40, progress=lambda state, text, name=name: told.append((name, text)))
        for name, camera in (("a", a), ("b", b))
    ]
    c.append("during")
    c.engine.gate.set()
    assert [len(ticket.future.result(PATIENCE).answer) for ticket in tickets] == [40, 40]
    texts = [(name, len(text)) for name, text in told if text]
    # By turns: one is never more than two pieces ahead of the other.
    for count in range(1, len(texts)):
        written = [sum(name == one for name, _ in texts[:count]) for one in "ab"]
        assert abs(written[0] - written[1]) <= 2 or 40 in written
    wait_until(lambda: c.counters.ingested == 2)


def test_a_camera_with_a_larger_weight_gets_more_of_the_time(start):
    weights, order = {"a": 1.0, "b": 4.0}, []

    class Recorded(FakeEngine):
        def append_video_chunk(self, frames, fps=None, timestamps=None):
            order.append(self)
            return super().append_video_chunk(frames, fps, timestamps)

    a, b = start(
        "ab", Recorded, lambda name: {"weight": weights[name]}, clock=lambda: float(len(order))
    )
    for camera in (a, b):
        camera.worker.queue_size = 1000
    hold(a)
    for _ in range(40):
        a.append("x")
        b.append("x")
    a.engine.gate.set()
    wait_until(lambda: len(order) == 81)
    assert [order[1:41].count(camera.engine) for camera in (a, b)] == [8, 32]


def test_chunks_of_several_sessions_go_to_who_appends_them_together(start):
    together = []

    def append_together(chunks, coming):
        together.append((len(chunks), [images for _, images in coming]))
        results = []
        for engine, images, times in chunks:
            if "bad" in images:
                results.append(InvalidImageError("too narrow"))
            else:
                results.append(engine.append_video_chunk(images, timestamps=times))
        return results

    a, b, c = start("abc", append_together=append_together, clock=lambda: 0.0)
    hold(a)
    for camera, image in ((a, "x"), (b, "bad"), (c, "x"), (c, "y")):
        camera.append(image)
    a.engine.gate.set()
    wait_until(lambda: not any(camera.counters.pending for camera in (a, b, c)))
    assert together == [(3, [["y"]])]  # the last went by itself
    assert [camera.counters.ingested for camera in (a, b, c)] == [2, 0, 2]
    assert b.counters.dropped[Drop.ERROR] == 1 and b.worker.last_fault == "too narrow"


class Clock:
    """Seconds that pass while chunks are appended, and at no other time."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now

    def engine(self, seconds, engine=None):
        """One that takes so long for a chunk."""
        engine = engine or FakeEngine()
        append = engine.append_video_chunk

        def take_time(images, **how):
            self.now += seconds
            return append(images, **how)

        engine.append_video_chunk = take_time
        return engine


@pytest.mark.parametrize(
    ("seconds", "waiting", "sizes"),
    [
        (1 / 128, 1, [5, 5, 4]),  # 0.04 s at a time
        (1 / 32, 1, [1] * 7 + [4, 3]),  # chunks have waited for 0.25 s then: 0.15 s at a time
        (1 / 32, 2, [4] * 7),  # at once, as two of one session wait
        (0.5, 1, [1] * 13),  # a question would wait longer; the last one goes by itself
    ],
)
def test_as_many_go_together_as_a_question_can_wait_for_and_more_once_they_fall_behind(
    start, seconds, waiting, sizes
):
    found, clock = [], Clock()

    def append_together(chunks, coming):
        found.append(len(chunks))
        return [engine.append_video_chunk(i, timestamps=t) for engine, i, t in chunks]

    cameras = start(
        "abcdefghijklmno",
        lambda: clock.engine(seconds),
        append_together=append_together,
        clock=clock,
    )

    def wait_for_all():
        wait_until(lambda: not any(camera.counters.pending for camera in cameras))

    for camera in cameras:  # each by itself: how long they take is not known
        camera.append("x")
        wait_for_all()
    for _ in range(2):  # an empty queue ends the first time; the second has the same sizes
        found.clear()
        hold(cameras[0])
        for camera in cameras[1:]:
            for _ in range(waiting):
                camera.append("x")
        cameras[0].engine.gate.set()
        wait_for_all()
        assert found == sizes


def test_a_session_whose_chunks_take_long_does_not_keep_the_others_apart(start):
    found, clock = [], Clock()
    each = iter([1 / 128] * 8 + [0.5])

    def append_together(chunks, coming):
        found.append(len(chunks))
        return [engine.append_video_chunk(i, timestamps=t) for engine, i, t in chunks]

    cameras = start(
        "abcdefghi",
        lambda: clock.engine(next(each)),
        append_together=append_together,
        clock=clock,
    )
    for camera in cameras:
        camera.append("x")
        wait_until(lambda camera=camera: not camera.counters.pending)
    hold(cameras[0])
    for camera in cameras[1:]:
        camera.append("x")
    cameras[0].engine.gate.set()
    wait_until(lambda: not any(camera.counters.pending for camera in cameras))
    assert found == [5, 2]  # and the slow one, whose turn comes behind them, by itself


def test_chunks_that_wait_for_a_memory_to_be_read_do_not_make_a_question_wait_longer(start):
    found, clock = [], Clock()

    def append_together(chunks, coming):
        found.append(len(chunks))
        return [engine.append_video_chunk(i, timestamps=t) for engine, i, t in chunks]

    reading, first, *others = start(
        "abcdefghi",
        lambda: clock.engine(1 / 128, Saved()),
        append_together=append_together,
        clock=clock,
    )
    for camera in (first, *others):
        camera.append("x")
        wait_until(lambda camera=camera: not camera.counters.pending)
    loading = reading.worker.load_memory("file")
    wait_until(lambda: "memory that is read" in [one.name for one in threading.enumerate()])
    for _ in range(2):
        reading.append("x")
    hold(first)
    for camera in others:
        camera.append("x")
    first.engine.gate.set()
    wait_until(lambda: not any(camera.counters.pending for camera in (first, *others)))
    reading.engine.disk.set()
    loading.result(PATIENCE)
    assert found == [5, 2]  # as many as take 0.04 s


def test_pictures_encoded_ahead_are_those_whose_turn_is_next(start):
    rounds = []

    def append_together(chunks, coming):
        rounds.append(([e for e, *_ in chunks], [e for e, _ in coming]))
        return [engine.append_video_chunk(i, timestamps=t) for engine, i, t in chunks]

    cameras = start(
        "abcdefghijklmnop", append_together=append_together, together=3, clock=lambda: 0.0
    )
    hold(cameras[0])
    for _ in range(3):
        for camera in cameras:
            camera.append("x")
    cameras[0].engine.gate.set()
    wait_until(lambda: not any(camera.counters.pending for camera in cameras))
    assert all(len(coming) <= 3 for _, coming in rounds)
    while rounds[1:] and len(rounds[1][0]) == 3:  # the last ones go as they are left over
        assert rounds[0][1] == rounds[1][0]
        rounds.pop(0)
    assert len(rounds) < 4


def test_a_slow_chunk_goes_by_itself_while_the_next_ones_pictures_are_encoded(start):
    rounds, now = [], iter(range(10**6))

    def append_together(chunks, coming):
        rounds.append((len(chunks), len(coming)))
        return [engine.append_video_chunk(i, timestamps=t) for engine, i, t in chunks]

    a, b, c = start("abc", append_together=append_together, clock=lambda: float(next(now)))
    for camera in (a, b, c):  # whose chunks take a second
        camera.append("x")
    wait_until(lambda: not any(camera.counters.pending for camera in (a, b, c)))
    rounds.clear()
    hold(c)
    for camera in (a, b):
        camera.append("x")
    c.engine.gate.set()
    wait_until(lambda: not any(camera.counters.pending for camera in (a, b, c)))
    assert rounds == [(1, 1)]  # the last one has none behind it


def test_it_tells_what_its_time_went_to(start):
    def append_together(chunks, coming):
        return [engine.append_video_chunk(i, timestamps=t) for engine, i, t in chunks]

    now = itertools.count()  # asked for before and after a piece of work: each takes a second
    a, b, c = start("abc", append_together=append_together, clock=lambda: float(next(now)))
    thread = a.thread
    assert set(thread.spent.values()) == {(0, 0, 0.0)}
    hold(a)  # the first chunk
    for camera in (b, c):
        camera.append("x")
        camera.append("y")  # they pile up: two go together, and then, as they are slow, each alone
    a.engine.gate.set()
    wait_until(lambda: thread.spent[CHUNKS].parts == 5)
    assert thread.spent[CHUNKS] == (4, 5, 4.0)
    assert thread.spent[ANSWERS] == (0, 0, 0.0)
    b.answer(tokens=2)
    wait_until(lambda: thread.spent[ANSWERS].passes > 1)
    passes, parts, seconds = thread.spent[ANSWERS]
    assert passes == parts == seconds  # by itself, piece by piece
    assert thread.spent[CHUNKS] == (4, 5, 4.0)


class Unprepared:
    """What engines have in common, with three things to make ready."""

    def __init__(self):
        self.left, self.during, self.told = 3, lambda: None, []

    def is_prepared(self, most):
        self.told.append(most)
        return self.left == 0

    def prepare_next(self, most):
        assert most == self.told[-1]
        self.left -= 1
        self.during()


def test_what_chunks_would_wait_for_is_made_ready_while_nobody_wants_anything(start):
    group, order = Unprepared(), []

    def append_together(chunks, coming):
        raise AssertionError("nothing piles up")

    a, b = start("ab", append_together=append_together, group=None)
    append = a.engine.append_video_chunk
    a.engine.append_video_chunk = lambda i, **given: order.append(i[0]) or append(i, **given)

    def come_between():
        order.append(f"{group.left} left")
        if group.left == 2:
            a.append("x")

    group.during = come_between
    wait_until(lambda: a.thread.is_idle)  # it asks for no group before it is woken
    a.engine.group = b.engine.group = group
    b.append("wakes them")
    wait_until(lambda: a.thread.spent[PREPARING][:2] == (3, 3))
    assert order == ["2 left", "x", "1 left", "0 left"]


@pytest.mark.parametrize(
    ("names", "seconds", "most"),
    [
        ("abcdefghijklmno", [1 / 128], 8),  # no more are appended together
        ("abcdefghijklmno", [1 / 32], 4),  # in 0.15 s
        ("abc", [1 / 128], 3),
        ("abcdefgh", [0.5] * 7 + [1 / 32], 4),  # those that are slow may have nothing
        ("ab", [0.5], 1),
    ],
)
def test_only_what_could_be_appended_together_is_made_ready(start, names, seconds, most):
    group, clock, each = Unprepared(), Clock(), itertools.cycle(seconds)

    def append_together(chunks, coming):
        raise AssertionError("nothing piles up")

    cameras = start(
        names,
        lambda: clock.engine(next(each)),
        append_together=append_together,
        group=None,
        clock=clock,
    )
    for camera in cameras:
        camera.engine.group = group
    for camera in cameras:
        camera.append("x")
        wait_until(lambda camera=camera: not camera.counters.pending)
    wait_until(lambda: cameras[0].thread.is_idle)
    assert group.told[-1] == most


def test_it_is_idle_once_nobody_wants_anything_and_all_is_made_ready(start):
    group, seen = Unprepared(), []

    def append_together(chunks, coming):
        raise AssertionError("nothing piles up")

    a, b = start("ab", append_together=append_together, group=None)
    wait_until(lambda: a.thread.is_idle)
    group.during = lambda: seen.append(a.thread.is_idle)
    a.engine.group = b.engine.group = group
    hold(a)
    assert not a.thread.is_idle
    a.engine.gate.set()
    wait_until(lambda: a.thread.is_idle)
    assert seen == [False] * 3


def test_engines_that_have_nothing_in_common_append_one_by_one(start):
    def append_together(chunks, coming):
        raise AssertionError("they gain nothing by it")

    cameras = start("abc", append_together=append_together, group=None, clock=lambda: 0.0)
    hold(cameras[0])
    for camera in cameras * 2:
        camera.append("x")
    cameras[0].engine.gate.set()
    wait_until(lambda: not any(camera.counters.pending for camera in cameras))
    assert [camera.counters.ingested for camera in cameras] == [3, 2, 2]


def test_a_chunk_whose_pictures_are_encoded_is_not_the_one_that_is_pushed_out(start):
    seen, appended = [], []

    def append_together(chunks, coming):
        seen.append([images for _, images in coming])
        if len(seen) == 1:
            for name in "pqrs":  # four wait at most
                a.append(name)
        return [engine.append_video_chunk(i, timestamps=t) for engine, i, t in chunks]

    a, b = start("ab", append_together=append_together, clock=lambda: 0.0)
    append = a.engine.append_video_chunk
    a.engine.append_video_chunk = lambda i, **given: appended.append(i) or append(i, **given)
    hold(b)
    a.append("x"), b.append("x"), a.append("next")
    b.engine.gate.set()
    wait_until(lambda: not any(camera.counters.pending for camera in (a, b)))
    assert seen[0] == [["next"]]
    assert appended == [["x"], ["next"], ["q"], ["r"], ["s"]]


def test_what_ends_a_step_for_several_sessions_ends_these_and_no_other(start):
    def append_together(chunks, coming):
        raise SystemExit(3)

    a, b, c = start("abc", append_together=append_together, clock=lambda: 0.0)
    hold(c)
    a.append("x"), b.append("x"), b.append("x")  # they pile up
    c.engine.gate.set()
    wait_until(lambda: a.worker.ended and b.worker.ended)
    assert c.answer().error is None and c.worker.ended is None
    assert [camera.counters.pending for camera in (a, b, c)] == [0, 0, 0]


def test_answers_of_several_sessions_go_on_together(start):
    going = []
    told = lambda answers: going.append(len(answers))  # noqa: E731
    a, b, c = start("abc", write_together=told, clock=lambda: 0.0)
    for camera in (a, b, c):
        camera.append("first")
        camera.answer()
    hold(c)
    tickets = [camera.ask(tokens=5) for camera in (a, b, c)]
    c.engine.gate.set()
    assert [ticket.future.result(PATIENCE).answer for ticket in tickets] == ["xxxxx"] * 3
    assert set(going) <= {2, 3} and going.count(3) >= 4


def test_answers_of_engines_that_have_nothing_in_common_are_written_by_turns(start):
    def write_together(answers):
        raise AssertionError("they gain nothing by it")

    cameras = start("abc", write_together=write_together, group=None)
    for camera in cameras:
        camera.append("first")
    tickets = [camera.ask(tokens=5) for camera in cameras]
    assert [ticket.future.result(PATIENCE).error for ticket in tickets] == [None] * 3


def test_what_ends_one_of_the_answers_that_go_on_together_ends_no_other(start):
    def progress(state, text):
        if len(text) == 3:
            raise SystemExit(3)

    a, b, c = start("abc", write_together=lambda answers: None)
    for camera in (a, b, c):
        camera.append("first")
        camera.answer()
    hold(c)
    fatal, cancelled = a.ask(tokens=9, progress=progress), b.ask(tokens=10**9)
    last = c.ask(tokens=9)
    c.engine.gate.set()
    assert last.future.result(PATIENCE).answer == "x" * 9
    cancelled.cancel(StreamVlmError("not wanted any more"))
    assert str(cancelled.future.result(PATIENCE).error) == "not wanted any more"
    assert fatal.future.result(PATIENCE).error.code == "INTERNAL"
    assert a.worker.ended and not b.worker.ended and b.answer().error is None


def test_sessions_of_one_model_answer_together_what_each_would_alone():
    model, config = chatter_model(), EvictionConfig.novelty(300)
    group, going = EngineGroup([300] * 3), []

    def watched(answers):
        going.append(len(answers))
        write_together(answers)

    said = []
    together = EngineThread(write_together=watched, clock=lambda: 0.0)  # none gets ahead by time
    for thread, shared in ((together, group), (EngineThread(), None)):
        cameras = [
            Camera(
                thread, VideoStreamingInference(model, toy_processor(), None, config, group=shared)
            )
            for _ in range(3)
        ]
        thread.start()
        for number, camera in enumerate(cameras):
            for chunk in range(2 + number):  # four wait at most
                camera.append(*toy_frames(4, seed=10 * chunk + number))
            camera.answer()
        with thread.wake:  # none is begun before all are asked
            tickets = [camera.ask("What is it?", tokens=30) for camera in cameras]
        outcomes = [ticket.future.result(PATIENCE) for ticket in tickets]
        said.append([(one.answer, one.answer_tokens, one.finish_reason) for one in outcomes])
        assert thread.stop(PATIENCE)
    assert said[0] == said[1] and going.count(3) >= 10


def test_one_answers_end_lets_a_chunk_in_before_another_one_ends(start):
    """With a share of 0, also where both go on together."""
    told = []
    options = {"ingest_share": 0.0, "write_together": lambda answers: None}
    a, b, c = start("abc", clock=lambda: 0.0, **options)
    for camera in (a, b, c):
        camera.append("first")
        camera.answer()
    hold(c)
    short = a.ask(tokens=5)
    long = b.ask(tokens=40, progress=lambda state, text: told.append(c.counters.ingested))
    c.append("during")
    c.engine.gate.set()
    assert short.future.result(PATIENCE).error is None and long.future.result(PATIENCE)
    assert 2 in told and 3 in told  # before the short one's end, and behind it


def test_only_what_is_written_goes_on_together(start):
    """Not an answer whose pictures are fetched."""
    going = []
    told = lambda answers: going.append(len(answers))  # noqa: E731
    a, b, c = start("abc", FakeRecall, write_together=told, clock=lambda: 0.0)
    for camera in (a, b, c):
        camera.append("first", "second", "third")
        camera.engine.found = [episode(0.0, 0.5, 1.0)]
    hold(c)
    tickets = [a.ask(tokens=3, thumbnails=3), b.ask(tokens=9)]
    c.engine.gate.set()
    assert [ticket.future.result(PATIENCE).error for ticket in tickets] == [None] * 2
    assert set(going) == {2}


def test_as_many_answers_go_together_as_a_step_takes():
    assert MAX_ANSWERS == LANES


def test_an_engine_that_cannot_be_loaded_leaves_the_others(start):
    def load():
        raise ModelLoadError("no such folder")

    thread = EngineThread()
    broken, good = Camera(thread, None, load), Camera(thread, FakeEngine())
    thread.start()
    with pytest.raises(ModelLoadError, match="no such folder"):
        broken.worker.loaded.result(PATIENCE)
    good.worker.loaded.result(PATIENCE)
    good.append("x")
    assert good.answer().error is None
    assert broken.answer().error.code == "INTERNAL"
    broken.append("x")
    assert broken.counters.pending == 0
    assert thread.stop(PATIENCE)


def test_a_session_that_is_stopped_gives_its_engine_back_and_the_others_go_on(start):
    closed = []
    a, b = start()
    a.engine.close = lambda: closed.append("a")
    a.append("x")
    assert a.worker.stop(PATIENCE) and closed == ["a"]
    b.append("x")
    assert b.answer().error is None
    assert a.answer().error.code == "NOT_ACTIVE"


def test_no_answer_is_written_where_the_thread_is_stopped_while_two_are(start):
    a, b = start()
    for camera in (a, b):
        camera.append("first")
    asked = [camera.ask(tokens=10**9) for camera in (a, b)]
    wait_until(lambda: all("ask" in {call[0] for call in one.engine.calls} for one in (a, b)))
    assert a.worker.stop(PATIENCE) and b.worker.stop(PATIENCE)
    assert [t.future.result(PATIENCE).error.code for t in asked] == ["NOT_ACTIVE"] * 2


# -- sessions come and go ----------------------------------------------------------------------


@pytest.fixture
def lasting():
    """A thread that goes on without a session."""
    thread = EngineThread(lasting=True, append_together=_one_by_one_in_one, clock=lambda: 0.0)
    thread.start()
    yield thread
    assert thread.stop(PATIENCE)


together = []  # how many chunks were appended at once
mixed = []  # groups of those


def _one_by_one_in_one(chunks, coming):
    together.append(len(chunks))
    mixed.append({engine.group for engine, *_ in chunks})
    return [engine.append_video_chunk(i, timestamps=t) for engine, i, t in chunks]


def test_sessions_come_and_go_while_the_thread_runs(lasting):
    for _ in range(3):
        camera = Camera(lasting, FakeEngine())
        camera.worker.loaded.result(PATIENCE)
        camera.append("x")
        assert camera.answer().memory.frames == 1
        assert camera.worker.stop(PATIENCE)
        assert camera.answer().error.code == "NOT_ACTIVE"


def test_a_session_is_loaded_between_two_pieces_of_anothers_answer(lasting):
    a = Camera(lasting, FakeEngine())
    a.append("x")
    long = a.ask(tokens=10**9)
    wait_until(lambda: "ask" in {call[0] for call in a.engine.calls})
    b = Camera(lasting, FakeEngine())
    b.worker.loaded.result(PATIENCE)
    b.append("y")
    assert b.answer(tokens=2).error is None
    assert b.worker.stop(PATIENCE) and not long.future.done()
    long.cancel()
    assert long.future.result(PATIENCE).answer


def test_one_of_another_group_stops_common_work_for_as_long_as_it_wants_to_append(lasting):
    def pile_up(cameras):
        together.clear()
        hold(cameras[0])
        for camera in cameras:
            camera.append("x"), camera.append("x")
        cameras[0].engine.gate.set()
        wait_until(lambda: not any(camera.counters.pending for camera in cameras))
        return max(together, default=1)

    cameras = [Camera(lasting, FakeEngine()) for _ in range(3)]
    for camera, group in zip(cameras, ("one", "one", "another"), strict=True):
        camera.worker.loaded.result(PATIENCE)
        camera.engine.group = group
    assert pile_up(cameras[:2]) == 2
    pile_up(cameras)
    assert all(len(groups) == 1 for groups in mixed)
    assert cameras[2].worker.stop(PATIENCE)
    assert pile_up(cameras[:2]) == 2


def test_each_chunk_is_told_once_how_it_ended(start):
    ends = []
    a, b = start("ab", options=lambda name: {"chunk_ended": ends.append})

    def told(*images):
        def found():  # behind what is counted
            return [end.cause for end in ends if [f.image for f in end.frames] == [*images]]

        wait_until(lambda: not a.counters.pending and found())
        (cause,) = found()
        return cause

    a.append("good", "too")
    assert told("good", "too") is None and a.counters.ingested == 2
    append, a.engine.append_video_chunk = a.engine.append_video_chunk, _fails
    a.append("refused")
    assert told("refused") is Drop.ERROR
    assert ends[-1].words == "too narrow"
    a.engine.append_video_chunk = append
    hold(b)
    for number in range(5):  # four wait at most
        a.append(number)
    b.engine.gate.set()
    assert told(0) is Drop.OVERFLOW and told(4) is None
    hold(b)
    a.append("before"), a.worker.drop_chunks(Drop.RESET)
    b.engine.gate.set()
    assert told("before") is Drop.RESET
    a.engine.append_video_chunk = _exits
    a.append("ends it")
    wait_until(lambda: a.worker.ended)
    a.append("after it")
    assert told("ends it") is told("after it") is Drop.ERROR
    assert sum(len(end.frames) for end in ends) == a.counters.received + b.counters.received


def _fails(*given, **more):
    raise InvalidImageError("too narrow")


def _exits(*given, **more):
    raise SystemExit(3)


# -- isolation, with real engines over one model ------------------------------------------------

CAP, APPENDED = 150, 10


def stream(camera, folder):
    """What a camera sees and is asked: its answers, and the memory in the end."""
    answers = []
    for chunk in range(APPENDED):
        camera.append(*toy_frames(4, seed=chunk))
        outcome = camera.answer("What is it?", tokens=6)
        answers.append((outcome.answer, outcome.error, outcome.memory.length))
        outcome = camera.answer("Which?", choices=("red", "blue"))
        answers.append((outcome.choice_index, outcome.choice_scores))
    path = folder / "memory.safetensors"
    camera.worker.copy_memory().result(PATIENCE).copy.write(path)
    memory = load_file(path)
    del memory["sums"]  # of the file, which also says when it was saved
    return answers, memory


class Trouble:
    """What goes wrong in the session of another camera, over and over."""

    def __init__(self, camera):
        self.camera, self.over = camera, threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self):
        while not self.over.is_set():
            self.step()

    def bad_image(self):
        self.camera.append(*[np.zeros((1, 1, 3), np.uint8)] * 2)
        self.camera.append("no image at all", None)
        self.camera.answer(tokens=2)

    def jump(self):
        self.camera.append(*toy_frames(4, seed=99))
        self.camera.answer("So?", tokens=4, keep_exchange=True)
        self.camera.worker.reset(Drop.TIME_JUMP).result(PATIENCE)
        self.camera.come_to = 0

    def reset(self):
        self.camera.append(*toy_frames(4, seed=98))
        self.camera.worker.reset(Drop.RESET).result(PATIENCE)

    def cancel_storm(self):
        self.camera.append(*toy_frames(4, seed=97))
        tickets = [self.camera.ask(tokens=30) for _ in range(20)]
        for ticket in tickets:
            ticket.cancel()
        assert {t.future.result(PATIENCE).error.code for t in tickets} <= {"CANCELLED"}

    def error(self):
        self.camera.append(*toy_frames(4, seed=96))

        def broken(state, text):
            raise RuntimeError("a listener")

        assert self.camera.answer(tokens=4, progress=broken).error.code == "INTERNAL"

    def exit(self):
        self.camera.append(*toy_frames(4, seed=95))

        def broken(state, text):
            raise SystemExit(3)

        assert self.camera.answer(tokens=4, progress=broken).error.code == "INTERNAL"
        self.over.set()

    def exit_in_an_answer(self):
        self.camera.append(*toy_frames(4, seed=95))

        def broken(state, text):
            if state == WRITING:
                raise SystemExit(3)
            assert state == READING

        assert self.camera.answer(tokens=4, progress=broken).error.code == "INTERNAL"
        self.over.set()


TROUBLES = ["bad_image", "jump", "reset", "cancel_storm", "error", "exit", "exit_in_an_answer"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """What the camera gives when it is alone; and the model."""
    model = chatter_model()
    thread = EngineThread()
    camera = Camera(thread, toy_engine(model))
    thread.start()
    found = stream(camera, tmp_path_factory.mktemp("alone"))
    assert thread.stop(PATIENCE)
    return model, found


def toy_engine(model):
    return VideoStreamingInference(
        model, toy_processor(), eviction_config=EvictionConfig(CAP), fork_slack_tokens=24
    )


@pytest.mark.parametrize("trouble", TROUBLES)
def test_whatever_goes_wrong_in_one_session_the_others_are_bit_identical(
    trouble, undisturbed, tmp_path
):
    model, (answers, memory) = undisturbed
    thread = EngineThread()
    victim, other = (Camera(thread, toy_engine(model)) for _ in "ab")
    thread.start()
    troubled = Trouble(other)
    troubled.step = getattr(troubled, trouble)
    troubled.step()  # at least once before, and then meanwhile
    troubled.thread.start()
    try:
        found, held = stream(victim, tmp_path)
    finally:
        troubled.over.set()
        troubled.thread.join(PATIENCE)
    assert found == answers
    assert held.keys() == memory.keys()
    assert all(torch.equal(held[name], memory[name]) for name in memory)
    assert victim.faults == [] and victim.counters.pending == 0
    assert victim.counters.ingested == 4 * APPENDED
    ends = trouble.startswith("exit")
    assert (other.worker.ended is not None) == ends
    assert thread.stop(PATIENCE)
    assert other.counters.pending == 0
    with pytest.raises(StreamVlmError):
        other.worker.reset(Drop.RESET).result(PATIENCE)
