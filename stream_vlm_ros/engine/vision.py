"""What the vision tower is spared: layouts reckoned anew, and matrices that no GPU likes."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from transformers.vision_utils import (
    get_vision_cu_seqlens,
    get_vision_position_ids,
    get_vision_window_index,
)


class VisionLayouts:
    """Positions, windows and sequences of chunks, kept on the device by the size of the grid.

    The library reckons them at each call, with Python loops, copies from the host and waits for the
    device; it takes them as arguments, too. A camera's chunks are all of one size or two.

    Args:
        config: of the vision tower.
    """

    _MOST = 8  # sizes kept

    def __init__(self, config: Any):
        self._config = config
        self._kept: dict[tuple[Any, ...], dict[str, Any]] = {}  # the latest used last

    def arguments(self, grid_thw: tuple[int, int, int], device: torch.device) -> dict[str, Any]:
        """What the tower is to be called with beside the patches of a chunk."""
        key = (grid_thw, device)
        found = self._kept.pop(key, None)
        if found is None:
            found = self._reckon(grid_thw, device)
            while len(self._kept) >= self._MOST:
                self._kept.pop(next(iter(self._kept)))
        self._kept[key] = found
        return dict(found)

    def _reckon(self, grid_thw: tuple[int, int, int], device: torch.device) -> dict[str, Any]:
        config = self._config
        grid = torch.tensor([grid_thw])
        windows, cu_windows = get_vision_window_index(
            grid, config.spatial_merge_size, config.window_size, config.patch_size
        )
        cu_whole = get_vision_cu_seqlens(grid)
        tensors = {
            "grid_thw": grid,
            "position_ids": get_vision_position_ids(grid, config.spatial_merge_size),
            "cu_seqlens": cu_whole,
            "window_index": windows,
            "cu_window_seqlens": cu_windows,
        }
        return {
            **{name: tensor.to(device) for name, tensor in tensors.items()},
            "max_seqlen": int(cu_whole.diff().max()),
            "max_window_seqlen": int(cu_windows.diff().max()),
        }


_ALIGNED_BYTES = 16  # rows of a matrix begin at multiples of this for a GPU's fast kernels
_INNER_MULTIPLE = 64


def pad_mlps(blocks: nn.ModuleList) -> None:
    """Pad the MLPs of vision blocks, in place, where their inner size is no good for a GPU.

    The released models have 3,420 there: in 16 bits no multiple of 16 bytes, and so cuBLAS takes
    kernels of an older GPU, at 246 TFLOP/s instead of 754 on an H200. Zeros are added: gate and up
    then give ``act(0) * 0``, which down multiplies by 0. `state_dict`, and so a saved checkpoint,
    has the sizes of before.
    """
    for block in blocks:
        mlp: Any = block.mlp
        layers = mlp.gate_proj, mlp.up_proj, mlp.down_proj
        if any(type(layer) is not nn.Linear for layer in layers):  # an adapter or the like
            continue
        inner = mlp.down_proj.weight.shape[1]
        if inner * mlp.down_proj.weight.itemsize % _ALIGNED_BYTES == 0:
            continue
        more = -inner % _INNER_MULTIPLE
        for layer in (mlp.gate_proj, mlp.up_proj):
            layer.weight = _padded(layer.weight, (0, 0, 0, more))
            layer.bias = _padded(layer.bias, (0, more))
        mlp.down_proj.weight = _padded(mlp.down_proj.weight, (0, more))
        mlp.register_state_dict_post_hook(_TrimmedTo(inner))
        mlp.register_load_state_dict_pre_hook(_padded_anew)


def _padded(weight: nn.Parameter, by: tuple[int, ...]) -> nn.Parameter:
    with torch.inference_mode(False), torch.no_grad():  # parameters are for training too
        padded = nn.functional.pad(weight, by)
    return nn.Parameter(padded, requires_grad=weight.requires_grad)


def _padded_anew(mlp: Any, state: dict[str, Any], prefix: str, *_: Any) -> None:
    """Pad what is to be loaded, as `pad_mlps` did what was there."""
    for name, there in mlp.named_parameters():
        given = state.get(prefix + name)
        if given is not None and given.ndim == there.ndim and given.shape != there.shape:
            lacking = [more - less for more, less in zip(there.shape, given.shape, strict=True)]
            by = [pad for size in reversed(lacking) for pad in (0, size)]
            state[prefix + name] = nn.functional.pad(given, by)


class _TrimmedTo:
    """What `pad_mlps` added left out of a ``state_dict``. (A class, so that it can be copied.)"""

    def __init__(self, inner: int):
        self._inner = inner

    def __call__(self, mlp: nn.Module, state: dict[str, Any], prefix: str, _: Any) -> None:
        for name in ("gate_proj.weight", "gate_proj.bias", "up_proj.weight", "up_proj.bias"):
            state[prefix + name] = state[prefix + name][: self._inner]
        name = prefix + "down_proj.weight"
        state[name] = state[name][:, : self._inner].contiguous()
