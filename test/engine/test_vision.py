# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Where patches stand in the vision tower, and its padded matrices: the library's own features."""

import pytest
import torch
from amounts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from toy_qwen import stock_twin
from transformers import Qwen2_5_VLConfig
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_position_ids,
    get_vision_window_index,
)

from stream_vlm_ros.engine.inputs.frames import PatchGrid
from stream_vlm_ros.engine.model import qwen2_5_vl
from stream_vlm_ros.engine.model.qwen2_5_vl import VisionLayout

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def tower(toys):
    """Windows of two by two tokens, so that small pictures have several, cut at the edges."""
    return toys.model(7, vision={"window_size": 56, "depth": 3, "fullatt_block_indexes": [1]})


def patches(grid, seed=0):
    torch.manual_seed(seed)
    rows, columns = grid[1], grid[2]
    return PatchGrid(torch.randn(grid[0] * rows * columns, 3 * 2 * 14 * 14), grid)


def stock_features(stock, chunk):
    with torch.no_grad():
        grid = torch.tensor([chunk.grid_thw])
        return stock.model.visual(chunk.pixel_values.to(stock.dtype), grid_thw=grid).pooler_output


def assert_same(found, expected, most):
    assert (found - expected).abs().max() <= most * expected.abs().max()


@pytest.mark.parametrize("grid", [(1, 4, 4), (2, 6, 10), (3, 10, 6), (1, 2, 2), (2, 2, 14)])
def test_features_are_those_of_the_librarys_tower(tower, grid):
    chunk, stock = patches(grid), stock_twin(tower)
    for _ in range(2):  # with a new layout, and with it kept
        assert_same(tower.encode_frames(chunk), stock_features(stock, chunk), 1e-5)


@settings(max_examples=examples(60))
@given(
    grids=st.integers(1, 3),
    tokens=st.tuples(st.integers(1, 14), st.integers(1, 14)),
    merge=st.sampled_from([1, 2]),
    window=st.sampled_from([28, 56, 112, 140, 448]),
)
def test_a_layout_is_what_the_library_computes_of_a_grid(grids, tokens, merge, window):
    config = Qwen2_5_VLConfig(
        vision_config={"hidden_size": 32, "num_heads": 2, "spatial_merge_size": merge,
                       "window_size": window}
    ).vision_config  # fmt: skip
    grid = (grids, tokens[0] * merge, tokens[1] * merge)
    layout = VisionLayout.of(grid, config, CPU)
    given_grid = torch.tensor([grid])
    order, windows = get_vision_window_index(given_grid, merge, window, config.patch_size)
    assert torch.equal(layout.order, order)
    assert torch.equal(layout.order[layout.back], torch.arange(len(order)))
    assert torch.equal(layout.windows.starts, windows.int())
    assert torch.equal(layout.grids.starts, get_vision_cu_seqlens(given_grid).int())
    assert layout.windows.longest == int(windows.diff().max())
    places = get_vision_position_ids(given_grid, merge).view(len(order), -1, 2)[order]
    frequencies = 1.0 / 10_000.0 ** (torch.arange(0, 8, 2).float() / 8)
    angles = (places.flatten(0, 1)[..., None] * frequencies).flatten(1).repeat(1, 2)
    assert torch.equal(layout.cos, angles.cos()) and torch.equal(layout.sin, angles.sin())


def test_a_size_is_computed_once_and_the_oldest_of_many_goes(toys, monkeypatch):
    computed, real = [], VisionLayout.of

    def note(grid, *rest):
        computed.append(grid)
        return real(grid, *rest)

    monkeypatch.setattr(qwen2_5_vl.VisionLayout, "of", note)
    model = toys.model(7)
    sizes = [(1, 2 * side, 4) for side in range(1, 9)]
    for size in [*sizes, sizes[0]]:
        model.encode_frames(patches(size))
    assert computed == sizes
    model.encode_frames(patches((1, 20, 4)))  # the second goes, as the first was used since
    model.encode_frames(patches(sizes[0]))
    model.encode_frames(patches(sizes[1]))
    assert computed == [*sizes, (1, 20, 4), sizes[1]]


@pytest.fixture(scope="module")
def odd(toys):
    """Like the released models: in 16 bits no row of these matrices begins at 16 bytes."""
    return toys.model(7, vision={"intermediate_size": 100})


def test_a_padded_tower_computes_what_the_librarys_tower_computes(odd):
    assert all(block.down.shape == (32, 128) for block in odd.visual.blocks)
    chunk = patches((1, 6, 10))
    assert_same(odd.encode_frames(chunk), stock_features(stock_twin(odd), chunk), 1e-5)


def test_what_was_added_is_in_no_state_and_stays_zero_when_one_is_taken(odd, tmp_path):
    state = odd.state_dict()
    assert state["visual.blocks.0.mlp.up_proj.weight"].shape == (100, 32)
    assert state["visual.blocks.0.mlp.down_proj.weight"].shape == (32, 100)
    odd.save_pretrained(tmp_path)
    again = type(odd).from_pretrained(tmp_path)
    again.load_state_dict({name: value + 1 for name, value in state.items()})
    for name, value in again.state_dict().items():
        assert torch.equal(value, state[name] + 1)
    for block in again.visual.blocks:
        gate, up = block.gate_up.chunk(2)
        for weight in (gate, up, block.down.T, *block.gate_up_bias.chunk(2)):
            assert not weight[100:].any() and weight[:100].all()


def test_sizes_that_suit_a_gpu_are_left_alone(toys):
    model = toys.model(7, vision={"intermediate_size": 104})
    assert model.visual.blocks[0].down.shape == (32, 104)
