# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How new a picture is compared with pictures already kept: 0 (seen before) to 1.

A measure turns a picture into a small *descriptor* once, and compares descriptors from then on.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from stream_vlm_ros.engine import StreamQwenModel


class NoveltyMeasure(ABC):
    """What `SmartFrameManager` needs of a measure of novelty."""

    @abstractmethod
    def describe(self, image: np.ndarray) -> np.ndarray:
        """The descriptor of a picture, uint8 RGB ``[height, width, 3]``: float32, one shape for
        all pictures."""

    @abstractmethod
    def novelty(self, descriptor: np.ndarray, others: np.ndarray) -> np.ndarray:
        """How new ``descriptor`` is compared with each of ``others`` ``[n, ...]``: ``[n]`` in 0..1.

        Symmetric, and 0 for equal descriptors.
        """


class ThumbnailNovelty(NoveltyMeasure):
    """Compares thumbnails of blocks, by the few blocks that differ most.

    A mean over the picture would hardly notice a thing that covers a twentieth of it; the mean
    over the ``share`` of blocks that differ most does. Light that grows or fades as a whole is
    divided out, and blocks are coarse enough not to mind a camera that sways a little.

    Args:
        rows, columns: blocks of a thumbnail.
        share: share of the blocks that are looked at.
        scale: difference of colour (0..1) at which the novelty is 1 - 1/e = 0.63.
    """

    _SAMPLES = 8  # lines and columns read in a block, whatever its size: cheap for any picture

    def __init__(self, rows: int = 12, columns: int = 16, share: float = 0.04, scale: float = 0.12):
        self.rows, self.columns, self.scale = rows, columns, scale
        self._looked_at = max(1, round(share * rows * columns))

    def describe(self, image: np.ndarray) -> np.ndarray:
        height, width, _ = image.shape
        lines = _spread_over(height, self.rows * self._SAMPLES)
        dots = _spread_over(width, self.columns * self._SAMPLES)
        read = image[lines][:, dots]  # [rows * s, columns * s, 3]
        blocks = read.reshape(self.rows, self._SAMPLES, self.columns, self._SAMPLES, 3)
        thumbnail = blocks.mean(axis=(1, 3), dtype=np.float32).reshape(-1, 3) / 255
        light = max(float(np.median(thumbnail)), 0.05)
        return thumbnail * np.float32(0.45 / light)  # [rows * columns, 3]

    def novelty(self, descriptor: np.ndarray, others: np.ndarray) -> np.ndarray:
        differences = np.abs(others - descriptor).max(axis=-1)  # [n, rows * columns]
        most = np.partition(differences, -self._looked_at, axis=-1)[:, -self._looked_at :]
        return 1 - np.exp(-most.mean(axis=-1) / self.scale)


class VisionNovelty(NoveltyMeasure):
    """Compares what the model's vision tower sees: for machines with a GPU to spare.

    The descriptor is the mean feature of every block of a coarse grid over the picture, each of
    length one; novelty is that of the block that differs most.

    Args:
        model, processor: as for the engine.
        max_pixels: size at which pictures are looked at.
        blocks: rows and columns of the grid.
        scale: one minus the cosine at which the novelty is 1 - 1/e = 0.63.
    """

    def __init__(
        self,
        model: StreamQwenModel,
        processor: Any,
        max_pixels: int = 50_176,
        blocks: int = 3,
        scale: float = 0.3,
    ):
        from stream_vlm_ros.engine import StreamProcessor

        self._model, self._blocks, self.scale = model, blocks, scale
        self._max_pixels = max_pixels
        processor = StreamProcessor.wrap(processor)
        self._frames = processor.frame_processor(model.device)
        self._min_pixels = min(max_pixels, processor.image_settings.min_pixels)
        self._merge = processor.image_settings.merge_size

    def describe(self, image: np.ndarray) -> np.ndarray:
        patches = self._frames([image], self._min_pixels, self._max_pixels)
        _, rows, columns = (size // self._merge for size in patches.grid_thw)
        features = self._model.encode_frames(patches).float().cpu().numpy()
        features = features.reshape(rows, columns, -1)
        lines = _edges(rows, self._blocks)
        dots = _edges(columns, self._blocks)
        means = np.stack(
            [features[a:b, c:d].mean(axis=(0, 1)) for a, b in lines for c, d in dots]
        )  # [blocks * blocks, hidden]
        return means / np.maximum(np.linalg.norm(means, axis=-1, keepdims=True), 1e-6)

    def novelty(self, descriptor: np.ndarray, others: np.ndarray) -> np.ndarray:
        cosines = (others * descriptor).sum(axis=-1)  # [n, blocks * blocks]
        return 1 - np.exp(-np.maximum(1 - cosines, 0).max(axis=-1) / self.scale)


def _spread_over(length: int, count: int) -> np.ndarray:
    """``count`` indices evenly over ``length``, each in the middle of its share."""
    return (2 * np.arange(count) + 1) * length // (2 * count)


def _edges(length: int, parts: int) -> list[tuple[int, int]]:
    """``length`` cut into ``parts`` ranges, none of them empty."""
    starts = [part * length // parts for part in range(parts)]
    ends = [(part + 1) * length // parts for part in range(parts)]
    return [(start, max(end, start + 1)) for start, end in zip(starts, ends, strict=True)]
