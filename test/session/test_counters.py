# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Every frame is counted once, whatever becomes of it."""

import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_vlm_ros.session.counters import Drop, FrameCounters


@given(st.lists(st.sampled_from(["receive", "ingest", *Drop])))
def test_received_is_ingested_and_pending_and_dropped_at_all_times(events):
    counters = FrameCounters()
    pending = 0
    for event in events:
        if event == "receive":
            counters.receive()
            pending += 1
        elif pending:
            counters.ingest(1) if event == "ingest" else counters.drop(event)
            pending -= 1
        counts = counters.snapshot()
        assert counts["frames_pending"] == pending
        assert counts["frames_received"] == counts["frames_ingested"] + pending + sum(
            counts[cause.value] for cause in Drop
        )


def test_a_frame_cannot_end_twice():
    counters = FrameCounters()
    counters.receive()
    counters.ingest(1)
    with pytest.raises(AssertionError, match="more frames are counted out than in"):
        counters.drop(Drop.ERROR)


def test_no_count_is_lost_between_threads():
    counters = FrameCounters()

    def work():
        for _ in range(2000):
            counters.receive()
            counters.drop(Drop.SAMPLING)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counters.snapshot()["frames_received"] == 8000
    assert counters.pending == 0
