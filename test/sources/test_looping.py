# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

import numpy as np

from stream_vlm_ros.sources import Frame, Source, loop

IMAGE = np.zeros((2, 2, 3), np.uint8)


class Listed(Source):
    name = "listed"

    def __init__(self, stamps, rate=None):
        super().__init__()
        self.stamps, self.rate, self.passes = stamps, rate, 0

    def __iter__(self):
        self.passes += 1
        for stamp in self.stamps:
            yield Frame(stamp, IMAGE, self.name)


def stamps(frames):
    return [frame.stamp_ns for frame in frames]


def test_stamps_run_on_over_the_end_at_the_rate_of_the_last_two_frames():
    source = Listed([500, 600, 700])
    assert stamps(loop(source, duration=800e-9)) == [500, 600, 700, 800, 900, 1000, 1100, 1200]
    assert source.passes == 3


def test_a_single_frame_is_repeated_at_the_sources_rate():
    source = Listed([7], rate=2.0)
    assert stamps(loop(source, duration=1.5)) == [7, 500_000_007, 1_000_000_007]


def test_a_pass_without_frames_ends_the_loop():
    assert stamps(loop(Listed([]))) == []


def test_the_duration_counts_from_the_first_stamp():
    source = Listed([10_000_000_000, 10_500_000_000, 11_000_000_000])
    assert len(list(loop(source, duration=1.0))) == 2
