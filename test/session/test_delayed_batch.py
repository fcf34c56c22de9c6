# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The node's worker drives the delayed batch engine as it drives the streaming one."""

import math
from types import SimpleNamespace

import numpy as np
from toy_qwen import chatter_model, toy_processor

from stream_vlm_ros.config import Settings
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.history import DelayedBatchInferenceEngine, FrameStore, SmartFrameManager
from stream_vlm_ros.session.counters import Drop, FrameCounters
from stream_vlm_ros.session.ingest import FrameIngest
from stream_vlm_ros.session.question import WRITING, Question
from stream_vlm_ros.session.timed_frame import TimedFrame
from stream_vlm_ros.session.worker import EngineWorker

EPOCH = 1_700_000_000_123_456_789  # ns
MICROSECOND = 1000


def started(folder) -> EngineWorker:
    def load():
        memory = SmartFrameManager(FrameStore(folder, form="png"), max_time_gap=math.inf)
        worker.engine = DelayedBatchInferenceEngine(chatter_model(), toy_processor(), memory=memory)
        return worker.engine

    counters = FrameCounters()
    worker = EngineWorker(load, counters, queue_size=8, max_questions=8)
    worker.counters = counters
    worker.start()
    worker.loaded.result(30)
    return worker


def append(worker, *seconds):
    frames = [
        TimedFrame(EPOCH + second * SECOND, np.full((56, 56, 3), second, np.uint8), f"at {second}")
        for second in seconds
    ]
    for _ in frames:
        worker.counters.receive()
    worker.append(frames)


def ask(worker, text="What?", **options):
    return worker.ask(Question(text, max_new_tokens=2, **options)).future.result(30)


def test_questions_are_answered_and_the_memory_is_told():
    worker = started(None)
    assert ask(worker).error.code == "EMPTY_MEMORY"
    append(worker, 0, 1, 2, 3)
    outcome = ask(worker)
    assert outcome.error is None and outcome.memory.frames == 4
    assert (outcome.memory.oldest_ns, outcome.memory.newest_ns) == (EPOCH, EPOCH + 3 * SECOND)
    assert outcome.memory.header == "at 3"
    chosen = ask(worker, choices=("yes", "no"))
    assert chosen.answer in ("yes", "no") and len(chosen.choice_scores) == 2
    far = (EPOCH + 50 * SECOND, EPOCH + 60 * SECOND)
    assert ask(worker, about_ns=far).error.code == "OUT_OF_HORIZON"
    near = (EPOCH + 1 * SECOND, EPOCH + 2 * SECOND)
    assert ask(worker, about_ns=near).error is None
    assert worker.stop(30)


def test_frames_are_kept_while_an_answer_is_written_from_those_before():
    worker = started(None)
    worker.ingest_share = 1.0
    append(worker, 0, 1, 2, 3)
    alone = ask(worker)
    held = []  # frames, at each piece of the answer

    def progress(state, text):
        if state == WRITING:
            if not held:
                append(worker, 4, 5)
            held.append(worker.memory.frames)

    question = Question("What?", max_new_tokens=16)
    outcome = worker.ask(question, progress).future.result(30)
    assert (held[0], held[-1], outcome.memory.frames) == (4, 6, 4)
    assert outcome.answer.startswith(alone.answer) and outcome.error is None
    assert ask(worker).memory.newest_ns == EPOCH + 5 * SECOND
    assert worker.stop(30)


def test_a_change_of_pixels_holds_from_the_next_question_on():
    worker = started(None)
    append(worker, 0, 1, 2, 3)
    for bound, tokens in ((0, 8), (28 * 28, 2), (0, 8)):  # two grids of 2 x 2 tokens, or of one
        worker.limit_pixels("sampled_max_pixels", bound)
        assert ask(worker).error is None
        assert worker.engine.visual_tokens == tokens
    assert worker.stop(30)


def test_frames_in_a_folder_are_there_after_a_restart_at_their_own_times(tmp_path):
    worker = started(tmp_path)
    append(worker, 0, 1, 2)
    ask(worker)
    assert worker.stop(30)  # which gives the folder back
    worker = started(tmp_path)
    assert abs(worker.memory.newest_ns - (EPOCH + 2 * SECOND)) < MICROSECOND
    append(worker, 100, 101)
    outcome = ask(worker, about_ns=(EPOCH, EPOCH + SECOND))
    assert outcome.error is None
    assert abs(outcome.memory.oldest_ns - EPOCH) < MICROSECOND
    assert abs(outcome.memory.newest_ns - (EPOCH + 101 * SECOND)) < MICROSECOND
    assert worker.stop(30)


def watching(worker):
    """What the node has before the worker, going on from what is in memory."""
    ingest = FrameIngest(
        Settings.of({"sample_fps": 0.0, "chunk_frames": 1, "engine": "delayed_batch"}),
        worker.counters,
        deliver=worker.append,
        restart=lambda: worker.reset(Drop.TIME_JUMP),
        report=lambda cause, words: None,
    )
    ingest.resume(worker.memory.newest_ns)
    ingest.active = True

    def show(*seconds):
        for second in seconds:
            read = lambda: (SimpleNamespace(frame_id="c"), np.full((28, 28, 3), 9, np.uint8))  # noqa: E731
            ingest.receive(SimpleNamespace(stamp_ns=EPOCH + second * SECOND, read=read), 0)

    return show


def test_no_stamp_and_no_jump_deletes_what_is_on_disk(tmp_path):
    week = 7 * 86_400
    worker = started(tmp_path)
    worker.queue_size = 1000
    watching(worker)(*range(40), week, *range(40, 80))
    assert ask(worker).memory.frames == 80
    assert worker.counters.dropped[Drop.INVALID_STAMP] == 1
    assert worker.stop(30)

    worker = started(tmp_path)  # and the first after a restart is wrong
    worker.queue_size = 1000
    show = watching(worker)
    show(week, 80, -week, 81)
    assert abs(ask(worker).memory.oldest_ns - EPOCH) < MICROSECOND
    assert worker.counters.dropped[Drop.INVALID_STAMP] == 2
    show(-week, -week + 1, -week + 2)  # a clock set back
    outcome = ask(worker)
    assert abs(outcome.memory.oldest_ns - (EPOCH - week * SECOND)) < MICROSECOND
    assert outcome.memory.frames == 3 and worker.resets == 1
    assert len(list(tmp_path.rglob("*.png"))) == 80 + 2 + 3
    worker.reset(Drop.RESET).result(30)  # the user's own wish
    assert list(tmp_path.rglob("*.png")) == []
    assert worker.stop(30)
    assert worker.counters.pending == 0
