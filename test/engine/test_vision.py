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


@pytest.fixture
def odd(toys):
    """Like the released models: in 16 bits no row of these matrices begins at 16 bytes."""
    return toys.model(7, vision={"intermediate_size": 100}).to(torch.bfloat16)


def test_a_padded_tower_gives_the_same_features_and_state(odd):
    chunk = patches((1, 6, 10))
    before, state = odd.encode_frames(chunk), odd.state_dict()
    state = {name: value.clone() for name, value in state.items()}
    vision.pad_mlps(odd.model.visual.blocks)
    mlp = odd.model.visual.blocks[0].mlp
    assert mlp.gate_proj.weight.shape[0] == len(mlp.up_proj.bias) == 128
    torch.testing.assert_close(odd.encode_frames(chunk), before)
    after = odd.state_dict()
    assert after.keys() == state.keys()
    assert all(torch.equal(after[name], state[name]) for name in state)
    vision.pad_mlps(odd.model.visual.blocks)  # of another engine: it is done
    assert mlp.up_proj.weight.shape[0] == 128 and len(mlp._state_dict_hooks) == 1


def test_a_padded_tower_takes_a_state_and_learns(odd):
    state = {name: value + 1 for name, value in odd.state_dict().items()}
    with torch.inference_mode():
        vision.pad_mlps(odd.model.visual.blocks)
    odd.load_state_dict(state)
    assert all(torch.equal(odd.state_dict()[name], state[name]) for name in state)
    mlp = odd.model.visual.blocks[0].mlp
    assert not mlp.down_proj.weight[:, 100:].any() and not mlp.up_proj.bias[100:].any()
    mlp(torch.randn(3, mlp.hidden_size, dtype=torch.bfloat16)).sum().backward()
    assert mlp.up_proj.weight.grad is not None


def test_a_checkpoint_saved_from_a_padded_model_loads_as_any_other(odd, tmp_path):
    state = {name: value.clone() for name, value in odd.state_dict().items()}
    vision.pad_mlps(odd.model.visual.blocks)
    odd.save_pretrained(tmp_path)
    again = type(odd).from_pretrained(tmp_path, dtype=torch.bfloat16).state_dict()
    assert again.keys() == state.keys()
    assert all(torch.equal(again[name], state[name]) for name in state)


def test_sizes_that_suit_a_gpu_are_left_alone(toys):
    model = toys.model(7, vision={"intermediate_size": 104}).to(torch.bfloat16)
    vision.pad_mlps(model.model.visual.blocks)
    assert model.model.visual.blocks[0].mlp.up_proj.weight.shape[0] == 104
