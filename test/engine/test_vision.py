"""What the vision tower is told of a chunk's layout is what the library reckons for itself."""

import pytest
import torch

from stream_vlm_ros.engine import vision
from stream_vlm_ros.engine.frames import PatchGrid

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tower(toys):
    """Windows of two by two tokens, so that small pictures have several, cut at the edges."""
    return toys.model(7, vision={"window_size": 56, "depth": 3, "fullatt_block_indexes": [1]})


def patches(grid, seed=0):
    torch.manual_seed(seed)
    rows, columns = grid[1], grid[2]
    return PatchGrid(torch.randn(grid[0] * rows * columns, 3 * 2 * 14 * 14), grid)


@pytest.mark.parametrize("grid", [(1, 4, 4), (2, 6, 10), (3, 10, 6), (1, 2, 2), (2, 2, 14)])
def test_features_are_those_of_the_tower_left_to_itself(tower, grid):
    chunk = patches(grid)
    with torch.inference_mode():
        alone = tower.model.visual(chunk.pixel_values, grid_thw=torch.tensor([grid]))
    for _ in range(2):  # reckoned, and as kept
        assert torch.equal(tower.encode_frames(chunk), alone.pooler_output)


def test_a_size_is_reckoned_once_and_the_oldest_of_many_goes(tower, monkeypatch):
    reckoned = []
    real = vision.get_vision_window_index

    def note(grid, *arguments):
        reckoned.append(tuple(grid[0].tolist()))
        return real(grid, *arguments)

    monkeypatch.setattr(vision, "get_vision_window_index", note)
    layouts = vision.VisionLayouts(tower.config.vision_config)
    sizes = [(1, 2 * side, 4) for side in range(1, 9)]
    for size in [*sizes, sizes[0]]:
        layouts.arguments(size, CPU)
    assert reckoned == sizes
    layouts.arguments((1, 20, 4), CPU)  # the second goes, as the first was used since
    layouts.arguments(sizes[0], CPU)
    layouts.arguments(sizes[1], CPU)
    assert reckoned == [*sizes, (1, 20, 4), sizes[1]]


def test_the_tower_reckons_nothing_and_its_longest_sequences_are_plain_numbers(tower, monkeypatch):
    """On a GPU a tensor there would make the host wait at each of its layers."""
    arguments = vision.VisionLayouts(tower.config.vision_config).arguments((2, 6, 10), CPU)
    assert arguments["max_seqlen"] == 6 * 10
    assert arguments["max_window_seqlen"] == 2 * 2 * 4  # a window's tokens, four patches each
    module = __import__(type(tower.model.visual).__module__, fromlist=["_"])
    for name in ("get_vision_position_ids", "get_vision_window_index"):
        original = getattr(module, name)

        def only_given(grid, *rest, original=original, kwargs=None, **options):
            before = dict(kwargs)
            found = original(grid, *rest, kwargs=kwargs, **options)
            assert len(kwargs) < len(before)
            return found

        monkeypatch.setattr(module, name, only_given)
    tower.encode_frames(patches((2, 6, 10)))
