# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Pictures of plain colours, and a small model with random weights."""

import numpy as np
import pytest
from toy_qwen import chatter_model, toy_frames, toy_processor


@pytest.fixture(scope="session")
def small():
    """A model and its processor."""
    return chatter_model(), toy_processor()


@pytest.fixture(scope="session")
def noise():
    """A function: ``count`` pictures of noise, no two alike."""

    def make(count: int, height: int = 56, width: int = 84, seed: int = 0) -> list[np.ndarray]:
        return toy_frames(count, height, width, seed)

    return make


@pytest.fixture(scope="session")
def plain():
    """A function: a picture of one grey, with a box of a colour in one of twelve places."""

    def make(place: int = 0, colour=(250, 20, 20), grey: int = 115) -> np.ndarray:
        picture = np.full((48, 64, 3), grey, np.uint8)
        row, column = divmod(place % 12, 4)
        picture[16 * row : 16 * row + 14, 16 * column : 16 * column + 14] = colour
        return picture

    return make
