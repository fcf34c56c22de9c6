"""Pictures of plain colours, and a small model with random weights."""

import numpy as np
import pytest
import torch

from stream_vlm_ros.demo.random_model import random_model

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def small():
    """A model and its processor."""
    return random_model()


@pytest.fixture(scope="session")
def noise():
    """A function: ``count`` pictures of noise, no two alike."""

    def make(count: int, height: int = 56, width: int = 84, seed: int = 0) -> list[np.ndarray]:
        random = np.random.default_rng(seed)
        return list(random.integers(0, 256, (count, height, width, 3), dtype=np.uint8))

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
