# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the node does with an image before the engine sees it."""

import itertools
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
from amounts import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_vlm_ros.config import Settings
from stream_vlm_ros.engine.inputs.stamp_check import MAX_WAITING
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import InvalidImageError
from stream_vlm_ros.session.counters import Drop, FrameCounters
from stream_vlm_ros.session.ingest import FrameIngest

KINDS = st.sampled_from(["frame", "bad", "zero", "back", "loop", "gap", "flush", "clear", "off"])
EVENTS = st.lists(st.tuples(KINDS, st.sampled_from([28, 56])), max_size=60)


class Ingest:
    """An ingest whose chunks, restarts and reports are written down."""

    def __init__(self, make_header, **values):
        values = {"sample_fps": 0.0, "chunk_frames": 2, **values}
        self.counters = FrameCounters()
        self.chunks, self.reports, self.told = [], [], []
        self.restarts = 0
        self.make_header = make_header
        self.ingest = FrameIngest(
            Settings.of(values),
            self.counters,
            deliver=self._deliver,
            restart=self._restart,
            report=lambda cause, words: self.reports.append((cause, words)),
            dropped=lambda what, cause, words: self.told.append(cause),
        )
        self.ingest.active = True

    def _deliver(self, chunk):
        self.chunks.append(chunk)
        self.counters.ingest(len(chunk))

    def _restart(self):
        self.restarts += 1

    def receive(self, seconds, now=0.0, size=(28, 28), bad=False):
        """An image with the stamp ``seconds``; None: it has no whole header."""
        stamp_ns = None if seconds is None else round(seconds * SECOND)

        def read():
            if bad:
                raise InvalidImageError("bad")
            return self.make_header(stamp_ns), np.zeros((*size, 3), np.uint8)

        self.ingest.receive(SimpleNamespace(stamp_ns=stamp_ns, read=read), round(now * SECOND))

    @property
    def stamps(self):
        return [[frame.stamp_ns / SECOND for frame in chunk] for chunk in self.chunks]

    def dropped(self, cause):
        return self.counters.dropped[cause]

    def holds(self):
        assert Counter(self.told) == Counter(self.counters.dropped)  # each once
        return self.counters.pending == self.ingest.open_frames


@pytest.fixture
def make_ingest(make_header):
    return lambda **values: Ingest(make_header, **values)


def test_frames_are_sampled_by_their_own_stamps_not_by_their_arrival(make_ingest):
    box = make_ingest(sample_fps=2.0)
    for index in range(30):
        box.receive(100 + index / 10, now=5.0)  # all arrive at once
    assert box.stamps == [[100.0, 100.5], [101.0, 101.5], [102.0, 102.5]]
    assert box.dropped(Drop.SAMPLING) == 24


def test_a_chunk_that_is_not_full_is_delivered_after_the_delay(make_ingest):
    box = make_ingest(chunk_frames=4, max_chunk_delay=2.0)
    box.receive(100, now=10.0)
    box.ingest.flush_overdue(round(11.9 * SECOND))
    assert box.chunks == []
    box.ingest.flush_overdue(round(12.0 * SECOND))
    assert box.stamps == [[100.0]]


def test_a_change_of_size_closes_the_chunk(make_ingest):
    box = make_ingest(chunk_frames=3)
    box.receive(100)
    box.receive(101, size=(56, 28))
    assert box.stamps == [[100.0]]


def test_frames_of_an_inactive_node_are_counted_and_dropped(make_ingest):
    box = make_ingest()
    box.ingest.active = False
    box.receive(100)
    assert box.dropped(Drop.INACTIVE) == 1 and box.holds()


def test_a_pause_drops_what_comes_remembers_what_waits_and_goes_on_behind_it(make_ingest):
    box = make_ingest()
    for seconds in (100, 101, 102):
        box.receive(seconds)
    box.ingest.pause()
    assert box.stamps == [[100.0, 101.0], [102.0]]
    box.receive(103)
    assert box.dropped(Drop.PAUSED) == 1 and box.dropped(Drop.INACTIVE) == 0
    box.ingest.paused = False
    for seconds in (200, 201, 202, 203):
        box.receive(seconds)
    assert box.stamps[2:] == [[200.0, 201.0], [202.0, 203.0]]
    assert box.restarts == 0 and box.holds()


def test_a_late_frame_is_dropped_and_the_stream_goes_on(make_ingest):
    box = make_ingest()
    for seconds in (100, 100.5, 100.2, 100.5, 101, 101.5):
        box.receive(seconds)
    assert box.stamps == [[100.0, 100.5], [101.0, 101.5]]
    assert box.dropped(Drop.INVALID_STAMP) == 2
    assert box.restarts == 0


def test_a_looped_bag_starts_the_memory_anew(make_ingest):
    box = make_ingest(chunk_frames=2)
    for seconds in (100, 101, 102, 50, 51):
        box.receive(seconds)
    assert box.restarts == 0 and box.ingest.open_frames == 3  # two frames may both be wrong
    box.receive(52)
    box.receive(53)
    assert box.restarts == 1
    assert box.stamps == [[100.0, 101.0], [50.0, 51.0], [52.0, 53.0]]
    assert box.dropped(Drop.TIME_JUMP) == 1  # the one that waited for its chunk
    assert box.ingest.time_jumps == 1
    assert "jumped by -52.000 s" in box.reports[0][1]


def test_a_looped_bag_can_be_rejected_until_time_catches_up(make_ingest):
    box = make_ingest(chunk_frames=1, on_time_jump="reject")
    for seconds in (100, 50, 51, 99.9, 100.5):
        box.receive(seconds)
    assert box.stamps == [[100.0], [100.5]]
    assert box.dropped(Drop.INVALID_STAMP) == 3 and box.restarts == 0


@pytest.mark.parametrize("policy", ["reset", "reject"])
@pytest.mark.parametrize("gap", [61, 86_400, 1_700_000_000])
def test_the_memory_goes_on_over_a_gap_of_any_length_once_three_frames_agree(
    make_ingest, gap, policy
):
    box = make_ingest(chunk_frames=4, on_time_jump=policy, max_time_gap=60.0)
    before, after = [100, 101, 102], [102 + gap + k for k in range(4)]
    for seconds in (*before, *after[:2]):
        box.receive(seconds)
    assert box.stamps == []  # two frames may both be wrong
    for seconds in after[2:]:
        box.receive(seconds)
    # What waited for its chunk before the gap is encoded by itself: no grid spans the gap.
    assert box.stamps == [before, after]
    assert (box.restarts, box.ingest.time_jumps, box.reports) == (0, 0, [])
    assert box.counters.pending == 0


@pytest.mark.parametrize("wrong", [[5], [5, 6]])
def test_first_frames_with_wrong_stamps_are_no_memory_that_paused(make_ingest, wrong):
    box = make_ingest(chunk_frames=1)
    for seconds in (*wrong, 10_000, 10_001, 10_002):
        box.receive(seconds)
    assert box.stamps[len(wrong) :] == [[10_000], [10_001], [10_002]]
    assert (box.restarts, box.ingest.time_jumps) == (1, 1)


def test_frames_on_disk_are_of_another_memory_behind_a_gap_that_they_may_not_span(make_ingest):
    for gap, restarts in ((7200, 0), (7201, 1)):
        box = make_ingest(
            chunk_frames=1, engine="delayed_batch", frame_store_hours=2.0, max_time_gap=60.0
        )
        for seconds in (100, 101, 102, *(102 + gap + k for k in range(3))):
            box.receive(seconds)
        assert (len(box.stamps), box.restarts) == (6, restarts)


@pytest.mark.parametrize("policy", ["reset", "reject"])
@pytest.mark.parametrize("wrong", [107, 1900, 100 + 7200, 100 + 7 * 86400, 3, 2**31 - 2])
def test_one_frame_with_a_wrong_stamp_is_one_frame_lost(make_ingest, policy, wrong):
    box = make_ingest(chunk_frames=1, on_time_jump=policy)
    good = [100 + k / 10 for k in range(100)]
    for seconds in (*good[:50], wrong, *good[50:]):
        box.receive(seconds)
    assert [stamp for (stamp,) in box.stamps] == pytest.approx(good)
    assert (box.dropped(Drop.INVALID_STAMP), box.restarts) == (1, 0)
    cause, words = box.reports[0]
    assert cause is Drop.INVALID_STAMP and ("ahead" if wrong > 100 else "older") in words


@pytest.mark.parametrize("policy", ["reset", "reject"])
def test_a_pause_loses_no_frame_and_is_no_jump(make_ingest, policy):
    box = make_ingest(chunk_frames=1, on_time_jump=policy)
    seconds = [100, 101, 102, 702, 703, 704, 705]
    for k, stamp in enumerate(seconds):
        box.receive(stamp)
        assert len(box.stamps) == (k + 1 if k not in (3, 4) else 3)
    assert box.stamps == [[stamp] for stamp in seconds]
    assert box.restarts == 0 and box.holds()


def test_the_last_frame_of_a_source_that_paused_is_taken_though_none_follows(make_ingest):
    box = make_ingest(chunk_frames=2, max_chunk_delay=2.0)
    for seconds in (100, 101, 102, 103, 703):
        box.receive(seconds, now=seconds)
    box.ingest.flush_overdue(round(705.9 * SECOND))
    assert box.stamps == [[100.0, 101.0], [102.0, 103.0]] and box.holds()
    box.ingest.flush_overdue(706 * SECOND)
    assert box.stamps[2:] == [[703.0]] and box.counters.pending == 0


def test_a_wrong_stamp_of_a_slow_camera_is_not_believed_before_its_next_frame_is_due(make_ingest):
    box = make_ingest(chunk_frames=1, max_chunk_delay=2.0)
    for stamp, now in ((100, 0), (105, 5), (110, 10), (1900, 15), (120, 20), (125, 25)):
        box.receive(stamp, now=now)
        box.ingest.flush_overdue(round((now + 4.9) * SECOND))
    box.ingest.flush_overdue(1000 * SECOND)
    assert box.stamps == [[100.0], [105.0], [110.0], [120.0], [125.0]]
    assert (box.dropped(Drop.INVALID_STAMP), box.restarts) == (1, 0)


def test_without_a_delay_for_chunks_frames_after_a_pause_wait_for_the_next_ones(make_ingest):
    box = make_ingest(chunk_frames=1, max_chunk_delay=0.0)
    for seconds in (100, 101, 701):
        box.receive(seconds, now=seconds)
    box.ingest.flush_overdue(10**15)
    assert box.stamps == [[100.0], [101.0]] and box.ingest.open_frames == 1


def test_a_wrong_first_stamp_does_not_bar_the_stream_that_follows(make_ingest):
    for wrong in (100 + 7200, 3):
        box = make_ingest(chunk_frames=1, on_time_jump="reject")
        for seconds in (wrong, 100, 101, 102):
            box.receive(seconds)
        assert box.stamps[1:] == [[100.0], [101.0], [102.0]]


@pytest.mark.parametrize("seconds", [-1, -0.5, 2**31 - 1, 2**31, 2**33, 2**62])
def test_a_stamp_that_no_message_can_hold_is_refused(make_ingest, seconds):
    box = make_ingest(chunk_frames=1)
    for stamp in (seconds, 100, seconds, 101):
        box.receive(stamp)
    assert box.stamps == [[100.0], [101.0]]
    assert box.dropped(Drop.INVALID_STAMP) == 2 and box.holds()
    assert "what a message can hold" in box.reports[0][1]


def test_what_waits_for_a_jump_to_be_believed_is_pending_until_the_stream_is_cleared(make_ingest):
    box = make_ingest(chunk_frames=1)
    for seconds in (100, 50, 51):
        box.receive(seconds)
    assert box.counters.pending == box.ingest.open_frames == 2
    box.ingest.clear(Drop.RESET)
    assert box.counters.pending == box.ingest.open_frames == 0
    assert box.dropped(Drop.RESET) == 2


def test_each_frame_that_waited_is_read_and_counted_for_itself(make_ingest):
    box = make_ingest(chunk_frames=1)
    box.receive(100)
    box.receive(50)
    box.receive(51, bad=True)
    box.receive(52)
    assert box.stamps == [[100.0], [50.0], [52.0]]
    assert box.dropped(Drop.INVALID_IMAGE) == 1 and box.holds()


def test_one_fault_of_ours_takes_none_of_those_admitted_with_it(make_ingest):
    def fail():
        raise RuntimeError("ours")

    box = make_ingest(chunk_frames=1)
    box.receive(100)
    box.receive(50)
    box.ingest.receive(SimpleNamespace(stamp_ns=51 * SECOND, read=fail), 0)
    with pytest.raises(RuntimeError, match="ours"):
        box.receive(52)
    assert box.stamps == [[100.0], [50.0], [52.0]]
    assert box.dropped(Drop.ERROR) == 1 and box.holds()


def test_after_a_pause_the_stream_goes_on_behind_what_is_in_memory(make_ingest):
    box = make_ingest(chunk_frames=1)
    box.ingest.clear(Drop.RESET)
    box.ingest.resume(100 * SECOND)
    for seconds in (101, 99.5, 50, 102):
        box.receive(seconds)
    assert box.stamps == [[101.0], [102.0]]
    assert box.dropped(Drop.INVALID_STAMP) == 2 and box.restarts == 0


def test_frames_on_disk_are_not_pushed_out_by_a_stamp_beyond_their_span(make_ingest):
    box = make_ingest(
        chunk_frames=1, engine="delayed_batch", frame_store_hours=0.5, max_time_gap=7200.0
    )
    for seconds in (100, 100 + 3600, 101):
        box.receive(seconds)
    assert box.stamps == [[100.0], [101.0]]


def test_a_refusal_repeats_no_more_than_a_line_of_what_was_sent(make_ingest):
    box = make_ingest(chunk_frames=1)

    def read():
        raise InvalidImageError("unknown encoding " + 10_000_000 * "x")

    box.ingest.receive(SimpleNamespace(stamp_ns=SECOND, read=read), 0)
    assert len(box.reports[0][1]) < 600


def test_one_first_stamp_of_zero_does_not_time_a_source_with_a_clock_by_arrival(make_ingest):
    box = make_ingest(chunk_frames=1)
    box.receive(0, now=7.0)
    for k in range(9):
        box.receive(100 + k, now=8.0 + k)
    assert not box.ingest.arrival_timed
    assert box.stamps[-4:] == [[105.0], [106.0], [107.0], [108.0]]
    assert box.holds()


def test_stamps_of_zero_and_a_real_one_now_and_then_stay_timed_by_arrival(make_ingest):
    box = make_ingest(chunk_frames=1)
    for k in range(9):
        box.receive(100 if k % 3 else 0, now=7.0 + k)
    assert box.ingest.arrival_timed and len(box.stamps) == 9


def test_a_source_without_stamps_is_timed_by_arrival_and_keeps_its_headers(make_ingest):
    box = make_ingest(chunk_frames=2)
    box.receive(0, now=7.0)
    box.receive(0, now=7.5)
    assert box.stamps == [[7.0, 7.5]]
    assert box.ingest.arrival_timed
    assert all(frame.header.stamp.sec == 0 for frame in box.chunks[0])


def test_a_zero_stamp_among_real_ones_is_refused(make_ingest):
    box = make_ingest(chunk_frames=2)
    for seconds in (100, 0, 101):
        box.receive(seconds, now=7.0)
    assert box.stamps == [[100.0, 101.0]]
    assert box.dropped(Drop.INVALID_STAMP) == 1


def test_a_bad_image_is_counted_and_the_next_one_takes_its_place(make_ingest):
    box = make_ingest(sample_fps=1.0, chunk_frames=1)
    box.receive(100, bad=True)
    box.receive(100.25)
    box.receive(100.5)
    assert box.stamps == [[100.25]]
    assert (box.dropped(Drop.INVALID_IMAGE), box.dropped(Drop.SAMPLING)) == (1, 1)


def test_a_message_without_a_whole_header_is_counted_and_the_stream_goes_on(make_ingest):
    box = make_ingest(chunk_frames=2)
    for seconds in (None, 100, None, 101):
        box.receive(seconds)
    assert box.stamps == [[100.0, 101.0]] and not box.ingest.arrival_timed
    assert box.dropped(Drop.INVALID_IMAGE) == 2 and box.holds()
    assert "header" in box.reports[0][1]


def test_an_image_that_is_sampled_away_is_never_read(make_ingest):
    box = make_ingest(sample_fps=1.0, chunk_frames=1)
    for index in range(31):  # 3 seconds, each of which fails when it is read but for one a second
        box.receive(100 + index / 10, bad=index % 10 != 0)
    assert box.stamps == [[100.0], [101.0], [102.0], [103.0]]
    assert box.dropped(Drop.INVALID_IMAGE) == 0


def test_after_clearing_any_stamp_is_the_first(make_ingest):
    box = make_ingest(chunk_frames=4)
    box.receive(100)
    box.ingest.clear(Drop.RESET)
    box.receive(50)
    assert box.dropped(Drop.RESET) == 1 and box.restarts == 0 and box.holds()


@settings(max_examples=examples(100))
@given(sample_fps=st.sampled_from([0.0, 1.0, 5.0]), events=EVENTS)
def test_no_frame_is_lost_or_counted_twice(sample_fps, events):
    box = Ingest(_header, sample_fps=sample_fps)
    seconds = 1000.0
    for event, side in events:
        if event == "flush":
            box.ingest.flush_overdue(10**15)
        elif event == "clear":
            box.ingest.clear(Drop.RESET)
        elif event == "off":
            box.ingest.active = not box.ingest.active
        else:
            seconds += {"back": -0.5, "loop": -500.0, "gap": 4000.0}.get(event, 0.3)
            stamp = 0.0 if event == "zero" else seconds
            box.receive(stamp, now=seconds, size=(side, side), bad=event == "bad")
        assert box.holds()
        assert box.ingest.open_frames <= 1 + MAX_WAITING  # in the open chunk, and for a jump
    for chunk in box.chunks:
        assert all(a.stamp_ns < b.stamp_ns for a, b in itertools.pairwise(chunk))
        assert len({frame.image.shape for frame in chunk}) == 1


def _header(stamp_ns):
    seconds, nanoseconds = divmod(stamp_ns, SECOND)
    stamp = type("Time", (), {"sec": seconds, "nanosec": nanoseconds})
    return type("Header", (), {"stamp": stamp})
