# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

import time

import pytest

from stream_vlm_ros.errors import SourceUnreadableError
from stream_vlm_ros.sources import DeviceSource


class DrawnDevice(DeviceSource):
    """FFmpeg's own test picture in place of a camera's driver: the same code path."""

    FORMAT = "lavfi"
    SIZE_OPTION = None


def test_frames_are_stamped_with_the_wall_clock_on_arrival():
    before = time.time_ns()
    source = DrawnDevice("testsrc=size=64x48:rate=10:duration=1", size=(32, 24))
    frames = list(source)
    assert source.live
    assert len(frames) == 10
    stamps = [frame.stamp_ns for frame in frames]
    assert before <= stamps[0] and stamps == sorted(set(stamps)) and stamps[-1] <= time.time_ns()
    assert frames[0].image.shape == (24, 32, 3)
    assert source.rate == 10


def test_a_camera_that_does_not_start_is_an_error():
    with pytest.raises(SourceUnreadableError, match="does not start"):
        next(iter(DrawnDevice("no such filter")))


def test_a_camera_can_be_watched_for_a_while():
    frames = list(DrawnDevice("testsrc=size=64x48:rate=10,realtime", end=0.35))
    assert len(frames) == 4  # at 0, 0.1, 0.2 and 0.3 s


def test_a_camera_is_sampled_by_arrival():
    frames = list(DrawnDevice("testsrc=size=64x48:rate=20:duration=1,realtime", fps=5))
    assert len(frames) == 5


def test_pictures_of_a_camera_that_are_too_large_are_left_out_and_named():
    source = DrawnDevice("testsrc=size=128x96:rate=10:duration=1", max_decoded_megapixels=0.01)
    assert list(source) == []
    assert source.state.counts.unusable == 10
    assert "announces 128x96" in source.state.notes[0]
