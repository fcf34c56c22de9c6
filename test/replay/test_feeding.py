# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest
from fake_engine import SilentEngine, chunk_result

from stream_vlm_ros.errors import InvalidImageError, InvalidParameterError
from stream_vlm_ros.replay import chunks, feed
from stream_vlm_ros.replay.feeding import frame_seconds
from stream_vlm_ros.sources import Frame

from .conftest import KnownSource


def frame(index, shape=(28, 28, 3)):
    return Frame(index * 500_000_000, np.full(shape, index, np.uint8), "test")


class RecordingEngine(SilentEngine):
    def __init__(self):
        self.calls = []

    def append_video_chunk(self, frames, fps=None, timestamps=None):
        self.calls.append(([int(f[0, 0, 0]) for f in frames], timestamps))
        return chunk_result(10 * len(frames), evicted_tokens=1)


def test_frames_arrive_in_order_with_their_stamps_and_none_is_lost():
    engine, seen = RecordingEngine(), []
    fed = feed(engine, map(frame, range(10)), 4, lambda fed: seen.append(fed.frames))
    assert engine.calls == [
        ([0, 1, 2, 3], [0.0, 0.5, 1.0, 1.5]),
        ([4, 5, 6, 7], [2.0, 2.5, 3.0, 3.5]),
        ([8, 9], [4.0, 4.5]),
    ]
    assert seen == [4, 8, 10]
    assert (fed.frames, fed.chunks, fed.tokens, fed.evicted_tokens) == (10, 3, 100, 3)
    assert (fed.first_ns, fed.last_ns) == (0, 4_500_000_000)


def test_a_chunk_ends_where_the_picture_size_changes():
    frames = [frame(0), frame(1), frame(2, (56, 28, 3)), frame(3, (56, 28, 3))]
    assert [len(chunk) for chunk in chunks(frames, 4)] == [2, 2]


def test_a_chunk_needs_a_frame():
    with pytest.raises(InvalidParameterError, match="at least 1"):
        list(chunks([], 0))


def test_the_next_frame_is_not_read_before_its_chunk_is_needed():
    read = []

    def source():
        for index in range(4):
            read.append(index)
            yield frame(index)

    engine = RecordingEngine()
    feed(engine, source(), 2, lambda fed: read.append("fed"))
    assert read == [0, 1, "fed", 2, 3, "fed"]


def test_a_frame_lasts_as_long_as_the_rate_says_or_else_the_source_s_own():
    source = KnownSource([0.0, 0.1])
    assert (frame_seconds(2.0, source), frame_seconds(0.0, source)) == (0.5, 0.0)
    source.rate = 10.0
    assert (frame_seconds(2.0, source), frame_seconds(0.0, source)) == (0.5, 0.1)


def test_a_picture_that_the_model_cannot_use_is_left_out_counted_and_said():
    class Choosy(RecordingEngine):
        def append_video_chunk(self, frames, fps=None, timestamps=None):
            if frames[0].shape[0] == 3000:
                raise InvalidImageError("too long")
            return super().append_video_chunk(frames, fps, timestamps)

    engine, odd = Choosy(), frame(2, (3000, 5, 3))
    fed = feed(engine, [frame(0), frame(1), odd, frame(3), frame(4)], 4)
    assert [numbers for numbers, _ in engine.calls] == [[0, 1], [3, 4]]
    assert (fed.frames, fed.refused, fed.refusal) == (4, 1, "too long")
    assert fed.note == "1 frame left out (the first: too long)"
