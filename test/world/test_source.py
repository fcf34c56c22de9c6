# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest

from stream_vlm_ros.errors import InvalidParameterError, SourceUnknownError
from stream_vlm_ros.sources import open_source
from stream_vlm_ros.world.world import World


def test_a_world_is_a_source_like_any_other():
    source = open_source("world:7", fps=2.0, start=1.0, end=3.0, size=(64, 48))
    frames = list(source)
    assert [frame.stamp_ns for frame in frames] == [10**9 * i // 2 for i in (2, 3, 4, 5)]
    assert np.array_equal(frames[1].image, World(7).render(1.5, 64, 48))
    assert frames[0].source == "world:7"


def test_a_world_is_named_by_a_number():
    with pytest.raises(SourceUnknownError, match="world:7"):
        open_source("world:mars")
    with pytest.raises(InvalidParameterError):
        open_source("world:1", start=3.0, end=2.0)


def test_a_world_without_an_end_says_so():
    assert open_source("world:1").endless
    assert not open_source("world:1", end=4.0).endless
