# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A history holds of its memory's one course of time what it was given, and nothing of another."""

import math
from functools import cache
from unittest import mock

import numpy as np
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule
from toy_qwen import chatter_model, toy_processor

from stream_vlm_ros.errors import FrameStoreError, SnapshotEvictedError
from stream_vlm_ros.history.calibration import CalibratedHead, Calibration, model_hash
from stream_vlm_ros.history.recall import RecallingInference
from stream_vlm_ros.history.store import FrameStore


@cache
def toy():
    model = chatter_model()
    calibration = Calibration(
        heads=(CalibratedHead(0, 1, "last", 0.9, 1.0),), threshold=1.0, of_best=0.5, looks=1.0,
        tail=1.0, scale="fixed", not_seen=(), grid_tokens=1, seconds_per_grid=1.0,
        model=model_hash(model),
    )  # fmt: skip
    return model, toy_processor(), calibration


def picture(number):
    return np.full((28, 28, 3), (number // 256, number % 256, 0), np.uint8)


def number_of(shown):
    return 256 * int(shown[0, 0, 0]) + int(shown[0, 0, 1])


class CourseOfTime(RuleBasedStateMachine):
    """Frames with a number each. ``course``: (number, stamp) of what the memory has seen."""

    def __init__(self):
        super().__init__()
        *checkpoint, calibration = toy()
        self.store = FrameStore(form="png")
        self.engine = RecallingInference(
            *checkpoint, "cpu", calibration=calibration, store=self.store, feature_bytes=1 << 20
        )
        self.count, self.course = 0, ()
        self.pictures, self.features = set(), set()  # numbers of frames that they were given
        self.snapshot, self.clones = None, []

    def teardown(self):
        self.engine.close()

    def looked_at(self):
        """What is not of the present course is gone for good once the history is looked at."""
        self.engine.get_cache_info()
        numbers = {number for number, _ in self.course}
        self.pictures &= numbers
        self.features &= numbers

    @rule(
        after=st.sampled_from([0.0, 0.5, 3.0]), step=st.sampled_from([0.0, 0.5]), full=st.booleans()
    )
    def append(self, after, step, full):
        first = self.course[-1][1] + after if self.course else 0.0
        frames = [(self.count, first), (self.count + 1, first + step)]
        self.count += 2
        numbers, stamps = zip(*frames, strict=True)
        with (
            mock.patch.object(FrameStore, "add", side_effect=FrameStoreError("full"))
            if full
            else (mock.MagicMock())
        ):
            self.engine.append_video_chunk([picture(n) for n in numbers], timestamps=stamps)
        self.course += tuple(frames)
        self.looked_at()
        self.pictures |= set() if full else set(numbers)
        self.features |= set(numbers)

    @rule()
    def take_a_snapshot(self):
        self.snapshot = self.engine.cache_manager.snapshot(), self.course

    @precondition(lambda self: self.snapshot is not None)
    @rule()
    def restore_the_snapshot(self):
        snapshot, course = self.snapshot
        try:
            self.engine.cache_manager.restore(snapshot)
        except SnapshotEvictedError:
            return
        self.course = course

    @rule()
    def clone(self):
        self.clones.append((self.engine.cache_manager.clone(), self.course))

    @precondition(lambda self: self.clones)
    @rule(data=st.data())
    def restore_a_clone(self, data):
        clone, self.course = data.draw(st.sampled_from(self.clones))
        self.engine.cache_manager.restore(clone)

    @rule(epoch=st.booleans())
    def begin_again(self, epoch):
        (self.engine.start_epoch if epoch else self.engine.reset)()
        self.course, self.pictures, self.features = (), set(), set()

    @precondition(lambda self: self.course)
    @rule(data=st.data(), length=st.sampled_from([0.0, 1.0, 4.0]))
    def forget(self, data, length):
        _, start = data.draw(st.sampled_from(self.course))
        self.engine.forget(start, start + length)
        self.looked_at()
        gone = {n for n, stamp in self.course if start <= stamp <= start + length}
        self.pictures -= gone
        self.features -= gone | {n ^ 1 for n in gone}  # grids go whole

    @rule()
    def look(self):
        self.looked_at()
        _, features, keys = self.engine.get_cache_info().tiers
        kept = self.store.between(-math.inf, math.inf)
        shown = [(number_of(self.store.load(frame)), frame.stamp) for frame in kept]
        assert shown == [one for one in self.course if one[0] in self.pictures]
        seen = [stamp for number, stamp in self.course if number in self.features]
        assert features.frames == len(seen)
        ends = (seen[0], seen[-1]) if seen else (None, None)
        assert (features.oldest, features.newest) == ends
        if keys.grids:
            assert self.course[0][1] <= keys.oldest <= keys.newest <= self.course[-1][1]


CourseOfTime.TestCase.settings = settings(max_examples=15, stateful_step_count=20)
TestCourseOfTime = CourseOfTime.TestCase
