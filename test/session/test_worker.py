# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The thread that owns the engine, and the queue in front of it."""

import math
import threading
import time
from pathlib import Path

import pytest
from amounts import examples
from fake_engine import SilentEngine
from hypothesis import given, settings
from hypothesis import strategies as st
from patience import PATIENCE, wait_until

from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import (
    InvalidImageError,
    InvalidParameterError,
    ModelLoadError,
    OutOfHorizonError,
    StreamBusyError,
    StreamVlmError,
)
from stream_vlm_ros.session.counters import Drop, FrameCounters
from stream_vlm_ros.session.memory_summary import LevelState
from stream_vlm_ros.session.question import (
    READING,
    WRITING,
    NotActiveError,
    Question,
    QueueFullError,
)
from stream_vlm_ros.session.timed_frame import TimedFrame
from stream_vlm_ros.session.worker import EngineWorker

EPOCH = 1_700_000_000_123_456_789  # ns; not a float of seconds


class Box:
    """A worker over the stand-in engine."""

    def __init__(self, engine, queue_size=2, max_questions=8, **options):
        self.engine = engine
        self.counters = FrameCounters()
        self.faults = []
        self.worker = EngineWorker(
            lambda: engine,
            self.counters,
            queue_size,
            max_questions,
            report=self.faults.append,
            **options,
        )
        self.worker.start()
        self.worker.loaded.result(PATIENCE)

    def append(self, *seconds):
        for _ in seconds:
            self.counters.receive()
        stamps = [EPOCH + round(second * SECOND) for second in seconds]
        self.worker.append(
            [
                TimedFrame(stamp, f"image {second}", f"header {second}")
                for stamp, second in zip(stamps, seconds, strict=True)
            ]
        )

    def ask(self, text="What?", **options):
        return self.worker.ask(Question(text, max_new_tokens=3, **options))

    def settle(self):
        """Until the worker has done all it was told."""
        while True:
            ticket = self.worker.ask(Question("settled?", max_new_tokens=1))
            outcome = ticket.future.result(PATIENCE)
            if not isinstance(outcome.error, QueueFullError):  # else refused before its turn
                return outcome
            time.sleep(0.01)

    def hold(self):
        """Keep the engine in its next call until ``self.engine.gate.set()``."""
        self.engine.gate.clear()
        self.append(0)
        assert self.engine.busy.wait(PATIENCE)


@pytest.fixture
def make_box(fake_engine):
    boxes = []

    def make(**options):
        boxes.append(Box(fake_engine, **options))
        return boxes[-1]

    yield make
    for box in boxes:
        box.engine.gate.set()
        assert box.worker.stop(PATIENCE)


def test_a_question_sees_every_chunk_delivered_before_it(make_box):
    box = make_box()
    box.append(0, 0.5)
    outcome = box.ask().future.result(PATIENCE)
    box.append(1, 1.5)
    later = box.ask().future.result(PATIENCE)
    assert (outcome.memory.frames, later.memory.frames) == (2, 4)


def test_stamps_and_header_of_an_outcome_are_the_sources_to_the_nanosecond(make_box):
    box = make_box()
    box.append(0, 0.1)
    box.append(0.3, 0.7)
    memory = box.ask().future.result(PATIENCE).memory
    assert memory.oldest_ns == EPOCH
    assert memory.newest_ns == EPOCH + 700_000_000
    assert memory.spans_ns == ((EPOCH, EPOCH + 700_000_000),)
    assert memory.header == "header 0.7"


def test_a_pause_that_the_model_does_not_see_is_told_and_counted(make_box):
    told = []
    box = make_box(pause_closed=told.append)
    box.append(0, 0.5)
    box.append(1, 1.5)
    box.append(1001.5, 1002)
    memory = box.ask().future.result(PATIENCE).memory
    assert (memory.closed_pauses, memory.closed_seconds, told) == (1, 1000.0, [1000.0])
    box.worker.reset(Drop.RESET).result(PATIENCE)
    assert (box.worker.memory.closed_pauses, box.worker.memory.closed_seconds) == (0, 0.0)


def test_the_settings_of_a_question_reach_the_engine(make_box):
    box = make_box()
    box.append(0)
    told = {"earlier": (("Who?", "I."),), "top_p": 0.5, "stop": (".",), "seed": 7}
    box.ask(temperature=0.5, keep_exchange=True, **told).future.result(PATIENCE)
    box.ask().future.result(PATIENCE)
    sampled, greedy = [call[3] for call in box.engine.calls if call[0] == "ask"]
    assert sampled == {
        "do_sample": True,
        "temperature": 0.5,
        "update_state": True,
        "about": None,
        **told,
    }
    plain = {"earlier": (), "top_p": 1.0, "stop": (), "seed": None}
    how = {"do_sample": False, "temperature": 1.0, "update_state": False}
    assert greedy == {**sampled, **how, **plain}


def test_the_time_a_question_is_about_reaches_the_engine_in_its_own_seconds(make_box):
    box = make_box()
    box.append(0, 2)
    for first, last in ((EPOCH + SECOND, EPOCH + 2 * SECOND), (EPOCH + SECOND, 0), (0, EPOCH + 1)):
        box.ask(about_ns=(first, last)).future.result(PATIENCE)
    about = [call[3]["about"] for call in box.engine.calls if call[0] == "ask"]
    assert about == [(1.0, 2.0), (1.0, math.inf), (-math.inf, 1e-9)]


@pytest.mark.usefixtures("utc")
def test_a_question_about_a_forgotten_time_is_refused_or_answered_from_what_there_is(make_box):
    box = make_box()
    box.append(0, 2)
    real, asked = box.engine.ask_stream, []

    def remembering(question, about=None, **options):
        asked.append(about)
        if about is not None and about[0] > 2:
            raise OutOfHorizonError("nothing of it")
        return real(question, about=about, **options)

    box.engine.ask_stream = remembering
    later = (EPOCH + 5 * SECOND, EPOCH + 6 * SECOND)
    refused = box.ask(about_ns=later).future.result(PATIENCE)
    assert refused.error.code == "OUT_OF_HORIZON" and refused.answer == ""
    # In the source's time, which begins at EPOCH.
    assert "in memory is 2023-11-14 22:13:20.1 to 22:13:22.2" in str(refused.error)
    assert asked == [(5.0, 6.0)]
    answered = box.ask(about_ns=later, refuse_forgotten=False).future.result(PATIENCE)
    assert (answered.error, answered.answer) == (None, "xxx")
    assert asked[1:] == [(5.0, 6.0), None]


def test_the_memory_tells_frames_tokens_and_times_of_every_level(make_box):
    box = make_box()
    box.append(0, 2)
    levels = box.ask().future.result(PATIENCE).memory.levels
    assert levels == (
        LevelState("sink"),
        LevelState("sampled"),
        LevelState("important"),
        LevelState("window", frames=2, tokens=20, spans_ns=((EPOCH, EPOCH + 2 * SECOND),)),
    )


def test_a_listener_that_fails_is_reported_and_the_thread_lives_on(make_box):
    def fail():
        raise RuntimeError("boom")

    box = make_box(changed=fail)
    box.append(0)
    assert box.settle().error is None and box.settle().memory.frames == 1
    assert {str(fault) for fault in box.faults} == {"boom"}


def test_who_cannot_be_told_of_a_pause_does_not_end_the_thread(make_box):
    def fail(seconds):
        raise RuntimeError("boom")

    box = make_box(pause_closed=fail)
    box.append(0, 0.5)
    box.append(1001.5, 1002)
    outcome = box.ask().future.result(PATIENCE)
    assert (outcome.error, outcome.memory.frames, box.worker.ended) == (None, 4, None)
    assert [str(fault) for fault in box.faults] == ["boom"]


def test_a_memory_that_cannot_be_looked_at_loses_no_frame(make_box):
    box = make_box()
    info, box.engine.get_cache_info = box.engine.get_cache_info, lambda: None
    box.append(0, 1)
    box.settle()
    assert isinstance(box.worker.reset(Drop.RESET).exception(PATIENCE), AttributeError)
    box.engine.get_cache_info = info
    box.append(2)
    assert box.settle().memory.newest_ns is not None
    assert (box.counters.pending, box.counters.dropped[Drop.ERROR]) == (0, 2)
    assert len(box.faults) == 2


def test_an_outcome_carries_the_metrics(make_box):
    box = make_box()
    box.append(0)
    outcome = box.ask().future.result(PATIENCE)
    assert (outcome.answer, outcome.finish_reason, outcome.error) == ("xxx", "length", None)
    assert (outcome.ttft, outcome.latency) == (0.25, 0.5)
    assert (outcome.prompt_tokens, outcome.answer_tokens) == (7, 3)


def test_choices_are_scored(make_box):
    box = make_box()
    box.append(0)
    outcome = box.ask(choices=("red", "blue")).future.result(PATIENCE)
    assert (outcome.answer, outcome.choice_index) == ("red", 0)
    assert outcome.choice_scores == (-1.0, -1.0)
    assert outcome.finish_reason == "choice"


def test_a_full_queue_drops_its_oldest_chunk_and_never_a_question(make_box):
    box = make_box(queue_size=2)
    box.hold()
    tickets = []
    for second in range(1, 6):
        box.append(second, second + 0.5)
        tickets.append(box.ask())
    assert box.worker.waiting_chunks == 2
    assert box.counters.dropped[Drop.OVERFLOW] == 6
    box.engine.gate.set()
    assert [ticket.future.result(PATIENCE).error for ticket in tickets] == [None] * 5
    box.settle()
    assert box.engine.times == [0, 4, 4.5, 5, 5.5]  # the newest two survived
    assert box.counters.ingested == 5


def test_too_many_waiting_questions_are_refused_at_once(make_box):
    box = make_box(max_questions=2)
    box.hold()
    tickets = [box.ask() for _ in range(3)]
    refused = tickets[2].future.result(0)
    assert refused.error.code == "QUEUE_FULL" and "2 questions are waiting" in str(refused.error)
    box.engine.gate.set()
    assert tickets[1].future.result(PATIENCE).error is None


def test_waiting_time_is_told_apart_from_the_answers_own(make_box):
    box = make_box()
    box.hold()
    ticket = box.ask()
    ticket.arrived -= 5.0
    box.engine.gate.set()
    outcome = ticket.future.result(PATIENCE)
    assert outcome.waiting >= 5.0 and outcome.latency == 0.5


def test_a_refused_chunk_is_counted_reported_and_the_stream_goes_on(make_box):
    box = make_box()
    box.append(0)
    box.settle()
    for fault in (InvalidImageError("too narrow"), RuntimeError("out of memory")):
        box.engine.fail_next = fault
        box.append(1, 2)
        box.worker.ask(Question("?")).future.result(PATIENCE)
        assert box.worker.last_fault == str(fault)
    box.append(3)
    outcome = box.settle()
    assert outcome.memory.frames == 2 and box.worker.last_fault == ""
    assert box.counters.dropped[Drop.ERROR] == 4
    assert [str(fault) for fault in box.faults] == ["too narrow", "out of memory"]


def let_end(box, where, fault):
    """Let what the worker calls next raise ``fault`` at that place; a question or a reset of it."""

    def broken(*arguments, **options):
        raise fault

    def append(state, text):
        if text == "x":
            box.append(1, 2)
            box.worker.limit_pixels("max_pixels", 100_000)

    if where == "append":
        box.engine.append_video_chunk = broken
        box.append(1, 2)
    elif where == "ask":
        box.engine.ask_stream = broken
        return box.ask()
    elif where == "progress":
        return box.worker.ask(Question("What?", max_new_tokens=3), broken)
    elif where == "chunk while answering":
        box.engine.limit_pixels = broken
        return box.worker.ask(Question("What?", max_new_tokens=50), append)
    elif where == "reset":
        box.engine.reset = broken
        return box.worker.reset(Drop.RESET)
    elif where == "copy":
        box.engine.copy_memory = broken
        return box.worker.copy_memory()
    elif where == "load":
        box.engine.load_memory = broken
        return box.worker.load_memory(Path("memory"))
    elif where == "listener":
        box.break_listener(fault)
    return None


CALLS = ["reset", "copy", "load"]  # of which somebody waits for the end
PLACES = ["append", "ask", "progress", "chunk while answering", *CALLS, "listener"]


@pytest.mark.parametrize("fault", [SystemExit(3), KeyboardInterrupt(), GeneratorExit()])
@pytest.mark.parametrize("where", PLACES)
def test_whatever_ends_the_thread_nobody_waits_and_every_frame_is_counted(make_box, where, fault):
    faults = []

    def listen():
        if faults:
            raise faults.pop()

    box = make_box(queue_size=5, changed=listen)
    box.break_listener = faults.append
    box.hold()
    running = let_end(box, where, fault)
    waiting = [box.ask(), box.ask(choices=("a", "b"))]
    box.append(9, 9.5)
    box.engine.gate.set()
    wait_until(lambda: box.worker.ended is not None, "the end of the engine's thread")
    tickets = [*waiting, box.ask()]
    if where in ("ask", "progress", "chunk while answering"):
        tickets.append(running)
    for ticket in tickets:
        outcome = ticket.future.result(PATIENCE)
        assert outcome.error.code == "INTERNAL" and repr(fault) in str(outcome.error)
        assert outcome.answer == ""
    later = [box.worker.reset(Drop.RESET), box.worker.copy_memory()]
    later += [box.worker.load_memory(Path("memory")), *([running] if where in CALLS else [])]
    for call in later:
        with pytest.raises(StreamVlmError, match="ended by"):
            call.result(PATIENCE)
    box.append(11)
    assert box.counters.ingested == 1 and box.counters.pending == 0
    assert box.counters.dropped[Drop.ERROR] == box.counters.received - 1
    wait_until(lambda: box.faults)
    assert box.faults == [fault]


def test_who_waits_for_a_call_when_the_thread_ends_is_told_so(make_box):
    box = make_box()
    box.hold()
    let_end(box, "ask", SystemExit(3))
    calls = [box.worker.reset(Drop.TIME_JUMP), box.worker.copy_memory()]
    calls.append(box.worker.load_memory(Path("memory")))
    box.engine.gate.set()
    for call in calls:
        with pytest.raises(StreamVlmError, match=r"SystemExit\(3\)"):
            call.result(PATIENCE)


def test_a_load_that_exits_ends_no_thread_that_asks_for_it():
    def load():
        raise SystemExit(3)

    worker = EngineWorker(load, FrameCounters(), 2, 2)
    worker.start()
    with pytest.raises(StreamVlmError, match=r"SystemExit\(3\)"):
        worker.loaded.result(PATIENCE)
    assert worker.stop(PATIENCE)


def test_an_engine_that_saves_nothing_says_why_and_goes_on(make_box):
    box = make_box()
    box.append(0)
    for call in (box.worker.copy_memory(), box.worker.load_memory(Path("memory"))):
        with pytest.raises(InvalidParameterError, match="not saved in a file"):
            call.result(PATIENCE)
    assert box.ask().future.result(PATIENCE).answer
    assert box.faults == []


def test_a_failing_answer_is_an_error_and_not_an_answer(make_box):
    box = make_box()
    empty = box.ask().future.result(PATIENCE)
    assert (empty.error.code, empty.answer) == ("EMPTY_MEMORY", "")
    box.append(0)
    box.settle()
    box.engine.fail_next = RuntimeError("boom")
    broken = box.ask().future.result(PATIENCE)
    assert broken.error.code == "INTERNAL" and "boom" in str(broken.error)
    assert box.ask().future.result(PATIENCE).error is None


def test_a_question_to_an_empty_memory_is_told_why_it_is_empty(make_box):
    error = make_box(why_empty=lambda: "the camera is off").ask().future.result(PATIENCE).error
    assert error.code == "EMPTY_MEMORY"
    assert str(error) == "the memory holds no image yet: the camera is off"


def test_a_waiting_question_can_be_cancelled(make_box):
    box = make_box()
    box.hold()
    ticket = box.ask()
    ticket.cancel()
    box.engine.gate.set()
    assert ticket.future.result(PATIENCE).error.code == "CANCELLED"
    assert not any(call[0] == "ask" for call in box.engine.calls)


def test_an_answer_can_be_cancelled_while_it_is_written(make_box):
    box = make_box()
    box.append(0)
    heard = []

    def progress(state, text):
        heard.append((state, text))
        if text == "xx":
            ticket.cancel()

    box.settle()
    box.engine.gate.clear()
    ticket = box.worker.ask(Question("?", max_new_tokens=100), progress)
    box.engine.gate.set()
    outcome = ticket.future.result(PATIENCE)
    assert (outcome.answer, outcome.finish_reason) == ("xx", "cancelled")
    assert outcome.error.code == "CANCELLED"
    assert heard == [(READING, ""), (WRITING, "x"), (WRITING, "xx")]


def test_a_reset_drops_waiting_chunks_and_answers_waiting_questions_first(make_box):
    box = make_box()
    box.hold()
    box.append(1, 2)
    ticket = box.ask()
    done = box.worker.reset(Drop.RESET)
    box.append(3)
    box.engine.gate.set()
    done.result(PATIENCE)
    assert ticket.future.result(PATIENCE).memory.frames == 1
    outcome = box.settle()
    assert outcome.memory.frames == 1 and outcome.memory.oldest_ns == EPOCH + 3 * SECOND
    assert box.counters.dropped[Drop.RESET] == 2 and box.worker.resets == 1


def test_abandoning_ends_all_questions_with_the_reason(make_box):
    box = make_box()
    box.hold()
    box.append(1)
    tickets = [box.ask(), box.ask()]
    box.worker.abandon(Drop.RESET, NotActiveError("the node was deactivated"))
    assert [str(t.future.result(0).error) for t in tickets] == ["the node was deactivated"] * 2
    assert box.counters.dropped[Drop.RESET] == 1


def test_stopping_ends_the_thread_and_whatever_waits(make_box):
    box = make_box()
    box.hold()
    ticket, reset = box.ask(), box.worker.reset(Drop.RESET)
    saving = box.worker.copy_memory()
    assert not box.worker.stop(0.05)  # the engine is in a call
    box.engine.gate.set()
    assert box.worker.stop(PATIENCE)
    assert ticket.future.result(0).error.code == "NOT_ACTIVE"
    for call in (reset, saving, box.worker.load_memory(Path("memory"))):
        assert isinstance(call.exception(0), NotActiveError)
    assert box.ask().future.result(0).error.code == "NOT_ACTIVE"
    box.append(5)
    assert box.counters.pending == 0


def test_what_slips_in_while_the_worker_is_stopped_comes_to_an_end_too(make_box):
    box = make_box()
    box.settle()
    abandon, tickets = box.worker.abandon, []

    def abandon_and_more(*arguments):
        abandon(*arguments)
        box.engine.gate.clear()
        box.append(0)  # keeps the engine busy
        assert box.engine.busy.wait(PATIENCE)
        box.append(1)
        tickets.append(box.ask())

    box.worker.abandon = abandon_and_more
    assert not box.worker.stop(0)
    box.engine.gate.set()
    assert tickets[0].future.result(PATIENCE).error.code == "NOT_ACTIVE"
    assert (box.counters.ingested, box.counters.dropped[Drop.RESET]) == (1, 1)
    box.worker.abandon = abandon


def test_a_bound_on_pixels_holds_from_the_next_command_on_and_is_set_once(make_box):
    box = make_box()
    box.hold()
    box.append(1)
    box.worker.limit_pixels("max_pixels", 1000)
    box.worker.limit_pixels("max_pixels", 2000)
    box.engine.gate.set()
    box.append(2)
    box.settle()
    box.worker.limit_pixels("max_pixels", 0)
    box.settle()
    kinds = [call for call in box.engine.calls if call[0] != "ask"]
    once = [("append", 1), ("limit_pixels", 2000), ("append", 1), ("append", 1)]
    assert kinds == [*once, ("limit_pixels", None)]


def test_a_bound_on_pixels_below_the_engines_least_is_refused_with_the_reason(make_box):
    box = make_box()
    with pytest.raises(
        InvalidParameterError, match=r"max_pixels \(783\) is below min_pixels \(784"
    ):
        box.worker.limit_pixels("max_pixels", 783)
    box.settle()
    assert all(call[0] == "ask" for call in box.engine.calls)
    unloaded = EngineWorker(lambda: box.engine, FrameCounters(), 1, 1)
    with pytest.raises(InvalidParameterError, match="still being loaded"):
        unloaded.limit_pixels("max_pixels", 2000)


def test_a_bound_on_pixels_that_fails_is_told_once_and_the_thread_lives_on(make_box):
    box = make_box()

    def fail(max_pixels):
        raise RuntimeError("no such bound")

    box.engine.limit_pixels = fail
    box.worker.limit_pixels("max_pixels", 1000)
    box.append(0)
    assert box.settle().memory.frames == 1
    assert [str(fault) for fault in box.faults] == ["no such bound"]


class Listener:
    """Follows an answer of six tokens, and does things when it has got so far."""

    def __init__(self, box, **question):
        self.box, self.at, self.seen = box, {}, {}
        self.question = Question("?", max_new_tokens=6, **question)

    def __call__(self, state, text):
        if state == WRITING:
            self.seen[len(text)] = list(self.box.engine.times)
            self.at.get(len(text), lambda: None)()

    def ask(self):
        self.ticket = self.box.worker.ask(self.question, self)
        return self.ticket

    def outcome(self):
        return self.ask().future.result(PATIENCE)


def test_a_chunk_that_comes_while_an_answer_is_written_is_appended_between_its_tokens(make_box):
    box = make_box(ingest_share=1.0)
    box.append(0)
    answer = Listener(box)
    answer.at = {2: lambda: (box.append(1), box.append(2)), 5: lambda: box.append(3)}
    outcome = answer.outcome()
    # One after each token; the last is appended after the answer's last token.
    assert [answer.seen[n] for n in range(1, 7)] == [
        [0],
        [0],
        [0, 1],
        [0, 1, 2],
        [0, 1, 2],
        [0, 1, 2, 3],
    ]
    assert (outcome.answer, outcome.error) == ("xxxxxx", None)
    assert box.counters.ingested == 4 and box.counters.dropped[Drop.OVERFLOW] == 0


def test_an_outcome_tells_of_the_memory_that_was_asked_whatever_came_meanwhile(make_box):
    box = make_box(ingest_share=1.0)
    box.append(0)
    for keep in (False, True):
        box.settle()
        asked = box.worker.memory
        answer = Listener(box, keep_exchange=keep)
        answer.at = {1: lambda: box.append(box.worker.memory.frames)}
        outcome = answer.outcome()
        assert outcome.memory == asked
        assert box.worker.memory.frames == asked.frames + 1
        assert box.worker.memory.header != outcome.memory.header


def test_with_no_share_chunks_wait_until_the_answer_is_complete(make_box):
    box = make_box(ingest_share=0.0)
    box.append(0)
    answer = Listener(box)
    answer.at = {1: lambda: (box.append(1), box.append(2), box.append(3))}
    answer.outcome()
    box.settle()
    assert answer.seen[6] == [0]
    assert box.engine.times == [0, 2, 3]  # two may wait
    assert box.counters.dropped[Drop.OVERFLOW] == 1


def test_the_share_of_chunks_may_change_at_any_time(make_box):
    box = make_box(ingest_share=0.0)
    box.append(0)
    answer = Listener(box)
    answer.at = {1: lambda: box.append(1), 3: lambda: setattr(box.worker, "ingest_share", 1.0)}
    answer.outcome()
    assert (answer.seen[3], answer.seen[4]) == ([0], [0, 1])


def test_a_chunk_overtakes_waiting_questions_but_no_reset(make_box):
    box = make_box(ingest_share=1.0)
    box.append(0)
    answer, tickets, resets = Listener(box), [], []

    def ask_and_reset():
        tickets.append(box.ask("later?"))
        box.append(1)
        resets.append(box.worker.reset(Drop.RESET))  # drops the chunk before it, too
        box.append(2)

    answer.at = {1: lambda: (tickets.append(box.ask("next?")), box.append(0.5)), 3: ask_and_reset}
    answer.outcome()
    resets[0].result(PATIENCE)
    box.settle()
    assert answer.seen[6] == [0, 0.5]
    assert [t.future.result(PATIENCE).memory.frames for t in tickets] == [2, 2]
    assert box.engine.times == [0]  # the only frame since, timed from itself
    assert box.counters.dropped[Drop.RESET] == 1


@pytest.mark.parametrize("fault", [InvalidImageError("too narrow"), RuntimeError("out of memory")])
def test_a_chunk_that_fails_ends_neither_the_answer_nor_the_stream(make_box, fault):
    box = make_box(ingest_share=1.0)
    box.append(0)
    answer = Listener(box)
    answer.at = {
        1: lambda: (box.append(1), setattr(box.engine, "fail_next", fault)),
        3: lambda: box.append(2),
    }
    outcome = answer.outcome()
    assert (outcome.answer, outcome.error) == ("xxxxxx", None)
    assert box.engine.times == [0, 2]
    assert box.counters.dropped[Drop.ERROR] == 1 and box.faults == [fault]


def test_a_chunk_with_no_room_beside_the_answer_is_tried_once_and_waits_for_its_end(make_box):
    box = make_box(ingest_share=1.0)
    box.append(0)
    answer = Listener(box)
    busy = StreamBusyError("an answer is in the way")
    answer.at = {1: lambda: (box.append(1), box.append(2), setattr(box.engine, "fail_next", busy))}
    outcome = answer.outcome()
    box.settle()
    assert outcome.error is None and answer.seen[6] == [0]
    assert box.engine.times == [0, 1, 2]  # in their order
    assert box.faults == [] and box.counters.dropped[Drop.ERROR] == 0
    assert len([call for call in box.engine.calls if call[0] == "append"]) == 4  # 1 twice


def test_a_chunk_put_back_into_a_full_queue_is_its_oldest_and_drops(make_box):
    box = make_box(ingest_share=1.0, queue_size=2)
    box.append(0)
    answer, append = Listener(box), box.engine.append_video_chunk

    def busy(frames, timestamps):
        box.engine.append_video_chunk = append
        box.append(2), box.append(3)
        raise StreamBusyError("an answer is in the way")

    answer.at = {1: lambda: (box.append(1), setattr(box.engine, "append_video_chunk", busy))}
    answer.outcome()
    box.settle()
    assert box.engine.times == [0, 2, 3]
    assert box.counters.dropped[Drop.OVERFLOW] == 1 and box.counters.pending == 0


def test_after_a_cancel_the_waiting_chunks_are_appended_all_the_same(make_box):
    box = make_box(ingest_share=1.0)
    box.append(0)
    answer = Listener(box)
    answer.at = {2: lambda: (box.append(1), answer.ticket.cancel(), box.append(2))}
    outcome = answer.outcome()
    assert (outcome.answer, outcome.error.code) == ("xx", "CANCELLED")
    assert box.settle().memory.frames == 3
    assert box.counters.pending == 0


@pytest.mark.parametrize("way", ["deactivate", "stop"])
def test_leaving_while_an_answer_is_written_loses_count_of_nothing(make_box, way):
    box = make_box(ingest_share=1.0)
    box.append(0)
    answer = Listener(box)
    gone = NotActiveError("the node was deactivated")
    leave = {
        "deactivate": lambda: box.worker.abandon(Drop.RESET, gone),
        "stop": lambda: (
            threading.Thread(target=box.worker.stop, args=(PATIENCE,)).start(),
            wait_until(lambda: answer.ticket.cancelled),
        ),
    }[way]
    answer.at = {1: lambda: box.append(1), 2: lambda: (box.append(2), leave(), box.append(3))}
    outcome = answer.outcome()
    assert (outcome.answer, outcome.error.code) == ("xx", "NOT_ACTIVE")
    assert box.worker.stop(PATIENCE)
    assert box.counters.pending == 0
    assert box.counters.ingested + box.counters.dropped[Drop.RESET] == 4


def test_a_bound_on_pixels_holds_for_chunks_between_tokens_too(make_box):
    box = make_box(ingest_share=1.0)
    box.append(0)
    answer = Listener(box)
    answer.at = {1: lambda: (box.worker.limit_pixels("max_pixels", 1000), box.append(1))}
    answer.outcome()
    assert [call for call in box.engine.calls if call[0] != "ask"] == [
        ("append", 1),
        ("limit_pixels", 1000),
        ("append", 1),
    ]


def test_what_loading_raises_is_told(fake_engine):
    def load():
        raise ModelLoadError("no such folder")

    worker = EngineWorker(load, FrameCounters(), 1, 1)
    worker.start()
    with pytest.raises(ModelLoadError, match="no such folder"):
        worker.loaded.result(PATIENCE)
    assert worker.stop(PATIENCE)


@settings(max_examples=examples(25))
@given(
    st.lists(st.sampled_from(["append", "ask", "reset", "fail", "busy", "abandon"]), max_size=25)
)
def test_no_frame_is_lost_or_counted_twice(events):
    box = Box(_Engine())
    for second, event in enumerate(events):
        if event == "append":
            box.append(second, second + 0.5)
        elif event == "fail":
            box.engine.fail_next = RuntimeError("boom")
        elif event == "busy":
            box.engine.fail_next = StreamBusyError("an answer is in the way")
        elif event == "ask":
            box.ask()
        elif event == "reset":
            box.worker.reset(Drop.RESET)
        else:
            box.worker.abandon(Drop.RESET, NotActiveError("gone"))
        counts = box.counters.snapshot()
        assert counts["frames_pending"] >= 0
    box.settle()
    assert box.counters.pending == 0
    assert box.counters.received == 2 * events.count("append")
    assert box.worker.stop(PATIENCE)


class _Engine(SilentEngine):
    """One that fails at a chunk when told to."""

    fail_next = None

    def append_video_chunk(self, frames, fps=None, timestamps=None):
        fault, self.fail_next = self.fail_next, None
        if fault is not None:
            raise fault
        return super().append_video_chunk(frames, fps, timestamps)
