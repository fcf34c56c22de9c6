# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Frames gathered into chunks."""

from hypothesis import given
from hypothesis import strategies as st

from stream_vlm_ros.node.sampling import SECOND, Chunker, TimedFrame


def frames_of(numbers):
    return [TimedFrame(number, None, None) for number in numbers]


@given(
    sizes=st.lists(st.sampled_from(["small", "large"]), max_size=40),
    chunk_frames=st.integers(1, 6),
)
def test_chunks_hold_every_frame_once_in_order_and_one_size_each(sizes, chunk_frames):
    chunker = Chunker(chunk_frames)
    chunks = []
    for number, frame in enumerate(frames_of(range(len(sizes)))):
        chunks += chunker.add(frame, sizes[number], now_ns=number)
    chunks.append(chunker.flush())
    assert [frame.stamp_ns for chunk in chunks for frame in chunk] == list(range(len(sizes)))
    assert all(len(chunk) <= chunk_frames for chunk in chunks)
    assert all(len({sizes[frame.stamp_ns] for frame in chunk}) <= 1 for chunk in chunks)


@given(count=st.integers(0, 30), chunk_frames=st.integers(1, 6))
def test_frames_of_one_size_fill_their_chunks(count, chunk_frames):
    chunker = Chunker(chunk_frames)
    chunks = [c for f in frames_of(range(count)) for c in chunker.add(f, "size", 0)]
    assert [len(chunk) for chunk in chunks] == [chunk_frames] * (count // chunk_frames)
    assert len(chunker.frames) == count % chunk_frames


def test_a_chunk_is_overdue_by_the_age_of_its_first_frame():
    chunker = Chunker(3)
    assert not chunker.is_overdue(10 * SECOND, SECOND)  # nothing is waiting
    for frame, now in zip(frames_of([1, 2]), [100, 100 + SECOND // 2], strict=True):
        chunker.add(frame, "size", now)
    assert not chunker.is_overdue(99 + SECOND, SECOND)
    assert chunker.is_overdue(100 + SECOND, SECOND)
    assert not chunker.is_overdue(100 * SECOND, 0)  # 0: wait until it is full
    assert chunker.is_overdue(0, SECOND)  # the clock started anew
