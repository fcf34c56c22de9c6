"""Where a chunk's patches stand in the vision tower: reckoned once for each size of picture."""

from __future__ import annotations

from typing import Any

import torch
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
