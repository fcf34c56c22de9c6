# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Frames gathered into chunks."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_vlm_ros.engine.inputs.chunking import Chunker, gather
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import InvalidParameterError


@given(
    sizes=st.lists(st.sampled_from(["small", "large"]), max_size=40),
    chunk_frames=st.integers(1, 6),
)
def test_chunks_hold_every_frame_once_in_order_and_one_size_each(sizes, chunk_frames):
    chunker = Chunker(chunk_frames)
    chunks = []
    for number, size in enumerate(sizes):
        chunks += chunker.add(number, size, now_ns=number)
    chunks.append(chunker.flush())
    assert [number for chunk in chunks for number in chunk] == list(range(len(sizes)))
    assert all(len(chunk) <= chunk_frames for chunk in chunks)
    assert all(len({sizes[number] for number in chunk}) <= 1 for chunk in chunks)


@given(count=st.integers(0, 30), chunk_frames=st.integers(1, 6))
def test_frames_of_one_size_fill_their_chunks(count, chunk_frames):
    chunker = Chunker(chunk_frames)
    chunks = [c for number in range(count) for c in chunker.add(number, "size", 0)]
    assert [len(chunk) for chunk in chunks] == [chunk_frames] * (count // chunk_frames)
    assert len(chunker.frames) == count % chunk_frames


def test_a_chunk_is_overdue_by_the_age_of_its_first_frame():
    chunker = Chunker(3)
    assert not chunker.is_overdue(10 * SECOND, SECOND)  # nothing is waiting
    for frame, now in zip([1, 2], [100, 100 + SECOND // 2], strict=True):
        chunker.add(frame, "size", now)
    assert not chunker.is_overdue(99 + SECOND, SECOND)
    assert chunker.is_overdue(100 + SECOND, SECOND)
    assert not chunker.is_overdue(100 * SECOND, 0)  # 0: wait until it is full
    assert chunker.is_overdue(0, SECOND)  # the clock began again


@given(count=st.integers(0, 7), taken=st.integers(0, 8))
def test_what_is_taken_out_early_is_the_first_and_the_rest_stays(count, taken):
    chunker = Chunker(8)
    for number in range(count):
        chunker.add(number)
    assert chunker.flush(taken) == list(range(count))[:taken]
    assert chunker.flush() == list(range(count))[taken:]


@given(
    sizes=st.lists(st.sampled_from(["small", "large"]), max_size=40),
    chunk_frames=st.integers(1, 6),
)
def test_a_source_in_chunks_is_what_the_chunker_makes_of_it(sizes, chunk_frames):
    chunker = Chunker(chunk_frames)
    one_by_one = [c for n, size in enumerate(sizes) for c in chunker.add(n, size)]
    one_by_one += [chunker.frames] if chunker.frames else []
    assert list(gather(range(len(sizes)), chunk_frames, sizes.__getitem__)) == one_by_one


def test_a_chunk_needs_a_frame():
    for make in (lambda: Chunker(0), lambda: list(gather([], -1, id))):
        with pytest.raises(InvalidParameterError, match="at least 1"):
            make()
