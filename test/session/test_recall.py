# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The worker and a history: what an answer rests on, told in the source's own time."""

import pytest
from fake_engine import FakeRecall, episode
from patience import PATIENCE, wait_until

from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import FrameStoreError, MemoryFileError
from stream_vlm_ros.history.poses import Pose, PoseTrack
from stream_vlm_ros.session.counters import Drop, FrameCounters
from stream_vlm_ros.session.question import (
    MAX_PICTURES,
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
    def __init__(self, engine=None, **options):
        self.engine = engine or FakeRecall()
        self.counters, self.faults = FrameCounters(), []
        self.worker = EngineWorker(
            lambda: self.engine, self.counters, 8, 8, report=self.faults.append, **options
        )
        self.worker.start()
        self.worker.loaded.result(PATIENCE)

    def append(self, *seconds):
        frames = [TimedFrame(at(second), "image", f"header {second}") for second in seconds]
        for _ in frames:
            self.counters.receive()
        self.worker.append(frames)

    def ask(self, progress=None, **options):
        question = Question("Where was it?", max_new_tokens=3, **options)
        return self.worker.ask(question, progress).future.result(PATIENCE)


def at(seconds):
    return EPOCH + round(seconds * SECOND)


@pytest.fixture
def make_box():
    boxes = []

    def make(*arguments, **options):
        boxes.append(Box(*arguments, **options))
        return boxes[-1]

    yield make
    for box in boxes:
        box.engine.gate.set()
        assert box.worker.stop(PATIENCE)


def test_an_answer_names_its_episodes_in_the_sources_time_to_the_nanosecond(make_box):
    box = make_box()
    box.append(0, 1, 2, 3)
    box.engine.found = (episode(0.0, 1.0, score=3.5), episode(3.0, tier="memory"))
    outcome = box.ask()
    first, second = outcome.evidence
    assert (first.start_ns, first.end_ns, first.stamps_ns) == (at(0), at(1), (at(0), at(1)))
    assert (first.score, first.tier, second.tier) == (3.5, "history", "memory")
    assert outcome.fetched_tokens == 40
    assert first.thumbnails == first.poses == ()


def test_a_choice_names_its_episodes_too(make_box):
    box = make_box()
    box.append(0, 1)
    box.engine.found = (episode(0.0, 1.0),)
    outcome = box.ask(choices=("table", "sofa"), history="always", thumbnails=1)
    assert outcome.evidence[0].end_ns == at(1)
    assert outcome.evidence[0].thumbnails == ((at(1), b"jpeg of 1.000"),)
    assert ("options", {"history": "always"}) in box.engine.calls


def test_no_more_than_three_episodes_are_named(make_box):
    box = make_box()
    box.append(*range(8))
    box.engine.found = [episode(float(k)) for k in range(8)]
    assert [one.start_ns for one in box.ask().evidence] == [at(0), at(1), at(2)]


def test_the_history_of_a_question_reaches_the_engine_where_one_was_named(make_box):
    box = make_box()
    box.append(0)
    box.ask(history="never")
    box.ask()
    named, silent = [call[3] for call in box.engine.calls if call[0] == "ask"]
    assert named["history"] == "never" and "history" not in silent


def test_pictures_come_as_many_as_were_asked_for_and_not_those_that_are_gone(make_box):
    box = make_box()
    box.append(*range(6))
    box.engine.found = (episode(0.0, 1.0, 2.0, 3.0, 4.0, 5.0),)
    box.engine.lost = {5.0}
    shown = box.ask(thumbnails=3).evidence[0].thumbnails
    assert shown == ((at(0), b"jpeg of 0.000"), (at(2), b"jpeg of 2.000"))
    assert [call for call in box.engine.calls if call[0] == "thumbnail"][-1] == (
        "thumbnail",
        5.0,
        320,
    )


def test_the_kept_picture_next_to_a_time_is_shown_if_it_is_near_enough(make_box):
    box = make_box()
    show = box.worker.picture_near
    assert show(at(0)).result(PATIENCE) is None  # nothing was seen yet
    box.append(0, 1, 2)
    box.engine.lost = {2.0}
    assert show(at(0.7), max_size=64).result(PATIENCE) == (at(1), b"jpeg of 1.000")
    assert box.engine.calls[-1] == ("thumbnail", 1.0, 64)
    assert show(at(0.7), SECOND // 2).result(PATIENCE) == (at(1), b"jpeg of 1.000")
    assert show(at(0.7), SECOND // 5).result(PATIENCE) is None
    assert show(at(9)).result(PATIENCE) is None  # its picture is gone
    box.engine.broken = FrameStoreError("the disk is gone")
    with pytest.raises(FrameStoreError):
        show(at(1)).result(PATIENCE)
    assert box.ask().error is None


def test_a_picture_comes_between_two_tokens_of_an_answer_and_changes_nothing(make_box):
    box = make_box()
    box.append(0, 1)
    shown = []

    def progress(state, text):
        if text == "x":
            shown.append(box.worker.picture_near(at(1)))
        elif text:
            assert shown[0].done()  # before the next token

    outcome = box.ask(progress)
    assert outcome.error is None and shown[0].result(PATIENCE) == (at(1), b"jpeg of 1.000")


def test_of_many_pictures_the_newest_are_waited_for_and_none_for_ever(make_box):
    box = make_box()
    box.append(0)
    box.ask()
    box.engine.gate.clear()
    box.append(1)
    assert box.engine.busy.wait(PATIENCE)
    waiting = [box.worker.picture_near(at(0)) for _ in range(MAX_PICTURES + 1)]
    with pytest.raises(QueueFullError):
        waiting[0].result(0)
    box.worker.stop(0)
    box.engine.gate.set()
    for one in waiting[1:]:
        with pytest.raises(NotActiveError):
            one.result(PATIENCE)
    with pytest.raises(NotActiveError):
        box.worker.picture_near(at(0)).result(0)


def test_a_store_that_fails_at_a_picture_costs_no_answer(make_box):
    box = make_box()
    box.append(0)
    box.engine.found, box.engine.broken = (episode(0.0),), FrameStoreError("the disk is gone")
    outcome = box.ask(thumbnails=2)
    assert outcome.error is None and outcome.answer == "xxx"
    assert outcome.evidence[0].thumbnails == ()
    assert [str(fault) for fault in box.faults] == ["the disk is gone"]


def test_the_pose_is_told_for_the_stamps_for_which_it_is_known(make_box):
    box = make_box()
    box.worker.poses = track = PoseTrack(tolerance=0.5)
    for k in range(11):
        track.add(Pose(at(1 + k / 10), "map", (k / 10, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)))
    box.append(*range(6))
    box.engine.found = (episode(0.0, 1.0, 1.55, 5.0),)
    poses = box.ask().evidence[0].poses
    assert [(pose.stamp_ns, pose.frame_id) for pose in poses] == [(at(1), "map"), (at(1.55), "map")]
    assert poses[1].position[0] == pytest.approx(0.55)


def test_chunks_that_wait_are_appended_while_the_past_is_fetched(make_box):
    box = make_box(ingest_share=1.0)
    box.append(0)
    box.engine.steps, box.engine.found = 5, (episode(0.0),)
    told, come = [], iter([1.0, 2.0])

    def progress(state, text):
        told.append((state, text, box.worker.memory.frames))
        if (second := next(come, None)) is not None:
            box.append(second)

    outcome = box.ask(progress)
    before_a_word = [(state, frames) for state, text, frames in told if not text]
    assert before_a_word[-1] == (READING, 3)
    assert told[-1][0] == WRITING and outcome.answer == "xxx"


def test_chunks_that_wait_are_appended_between_pictures(make_box):
    box = make_box(ingest_share=1.0)
    box.append(0, 1)
    box.engine.found = (episode(0.0, 1.0),)
    taken = box.engine.thumbnail

    def thumbnail(stamp, size):
        if stamp == 0.0:
            box.append(2)
        else:
            box.engine.calls.append(("frames then", box.worker.memory.frames))
        return taken(stamp, size)

    box.engine.thumbnail = thumbnail
    box.ask(thumbnails=2)
    assert ("frames then", 3) in box.engine.calls


@pytest.mark.usefixtures("utc")
def test_a_question_is_out_of_the_horizon_only_beyond_all_tiers(make_box):
    box = make_box(FakeRecall(cap=20))
    for second in range(6):
        box.append(second)
    wait_until(lambda: box.worker.memory.frames == 6)
    assert box.worker.memory.oldest_ns == at(4)
    assert box.ask(about_ns=(at(1), at(2))).error is None
    error = box.ask(about_ns=(at(50), at(60))).error
    assert error.code == "OUT_OF_HORIZON"
    # EPOCH in words.
    assert "in memory is 2023-11-14 22:13:24.1 to 22:13:25.2" in str(error)
    assert "the history holds 2023-11-14 22:13:20.1 to 22:13:25.2" in str(error)


def test_the_tiers_are_told_with_the_memory(make_box):
    box = make_box()
    box.append(0, 1, 2, 3)
    wait_until(lambda: box.worker.memory.frames == 4)
    pictures, keys = box.worker.memory.tiers
    assert (pictures.name, pictures.grids, pictures.frames, pictures.bytes) == (
        "pictures",
        2,
        4,
        400,
    )
    assert (pictures.oldest_ns, pictures.newest_ns) == (at(0), at(3))
    assert (keys.where, keys.oldest_ns) == ("device", None)
    assert box.worker.memory.history_ns == (at(0), at(3))


def test_why_a_tier_takes_nothing_is_told_for_as_long_as_it_lasts(make_box):
    box = make_box()
    for stamp, words in enumerate(("", "the disk is full", "")):
        box.engine.not_kept = words
        box.append(2 * stamp, 2 * stamp + 1)
        wait_until(lambda n=2 * stamp + 2: box.worker.memory.frames == n)
        assert box.worker.memory.history_fault == words


def test_a_time_jump_starts_an_epoch_of_the_history_and_a_reset_forgets_it_with_the_poses(make_box):
    box = make_box()
    box.worker.poses = track = PoseTrack()
    track.add(Pose(at(0), "map", (1.0, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)))
    box.append(0)
    box.worker.reset(Drop.TIME_JUMP).result(PATIENCE)
    assert box.engine.epochs == 1 and track.at(at(0)) is not None
    box.append(0)
    box.worker.reset(Drop.RESET).result(PATIENCE)
    assert box.engine.epochs == 1 and box.engine.kept == [] and track.at(at(0)) is None
    assert box.worker.memory.history_ns is None


def test_what_outlives_the_process_is_stamped_by_the_sources_own_clock(make_box):
    box = make_box(FakeRecall(keeps_source_time=True))
    box.engine.found = (episode(EPOCH / SECOND),)
    box.append(0)
    [found] = box.ask().evidence
    assert abs(found.start_ns - EPOCH) < 1000  # a float of seconds since 1970 holds microseconds


def test_a_memory_is_loaded_into_the_time_of_the_history_that_stays(make_box):
    empty, held, lasting = make_box(), make_box(), make_box(FakeRecall(keeps_source_time=True))
    for box in (held, lasting):
        box.append(7)
    for box, origin in ((empty, None), (held, at(7)), (lasting, 0)):
        with pytest.raises(MemoryFileError):
            box.worker.load_memory("file").result(PATIENCE)
        assert box.engine.loaded == [origin]
