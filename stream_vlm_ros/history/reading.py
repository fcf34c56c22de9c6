# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`Reader`: a few frames read apart from the stream, as one short video of just these.

What it holds is what a fresh engine holds that was given these frames with their stamps: an offline
pass over them (a test says so).
"""

from __future__ import annotations

import math
import time
from collections.abc import Hashable, Sequence
from itertools import groupby
from typing import Any, NamedTuple

import torch

from stream_vlm_ros.engine import EvictionConfig, StreamProcessor, VideoStreamingInference
from stream_vlm_ros.engine.chunk_path import ChunkPath
from stream_vlm_ros.engine.inputs.picture_sizes import smart_resize
from stream_vlm_ros.engine.together import run
from stream_vlm_ros.errors import InvalidImageError
from stream_vlm_ros.history.selection import GRID_FRAMES
from stream_vlm_ros.history.tiers import SeenGrid, Shown


class _Kept(NamedTuple):
    """Features that were kept, in place of pictures to encode."""

    features: torch.Tensor
    device: torch.device

    @property
    def kind(self) -> Hashable:
        return id(self)

    def run(self) -> torch.Tensor:
        return self.features.to(self.device)


class Reader(VideoStreamingInference):
    """An engine for short videos, one after the other.

    Args:
        max_tokens: of vision, that are read at once; two grids of ``max_pixels`` at least.
        text_tokens: of the text before a video.
        max_pixels: larger pictures are reduced to so many.
        model, processor, device, options: as for `VideoStreamingInference`.

    Attributes:
        stamps: of the frames that it has read.
    """

    def __init__(
        self,
        model: Any,
        processor: Any,
        device: Any,
        max_tokens: int,
        text_tokens: int,
        *,
        max_pixels: int,
        **options: Any,
    ):
        largest = max_pixels // StreamProcessor.wrap(processor).image_settings.factor ** 2
        self.max_tokens = max(max_tokens, 2 * largest)
        self.stamps: list[float] = []
        # Pictures of several sizes are chunks of their own, with text between them.
        cap = EvictionConfig(self.max_tokens + 32 * (text_tokens + 1))
        super().__init__(model, processor, device, cap, max_pixels=max_pixels, **options)
        # Episodes come in many sizes, each once: recording a CUDA graph for one would keep the
        # question waiting for seconds. (With `compile` the layers are compiled all the same.)
        self.chunk_path = ChunkPath(self.model, self.functions)

    def grid_tokens(self, width: int, height: int) -> int:
        """Tokens of two frames of that size."""
        settings = self._frames.settings
        rows, columns = smart_resize(
            height, width, settings.factor,
            *self._frames.pixel_bounds(self.min_pixels, self.max_pixels),
        )  # fmt: skip
        return (rows // settings.factor) * (columns // settings.factor)

    def read(self, shown: Sequence[Shown]) -> int:
        """Forget what was read, and read these frames, oldest first; how many tokens of vision."""
        self.reset()
        tokens, self.stamps = 0, []
        for _, some in groupby(shown, key=lambda one: one[1].shape):
            same = list(some)
            try:
                done = self.append_video_chunk(
                    [picture for _, picture in same], timestamps=[stamp for stamp, _ in same]
                )
            except InvalidImageError:  # one that was made for other settings
                continue
            tokens += math.prod(done.grid)
            self.stamps += [stamp for stamp, _ in same]
        return tokens

    def reads(self, grid: SeenGrid) -> bool:
        """Whether it may take these features for pictures: two such grids fit."""
        return 2 * grid.tokens <= self.max_tokens

    @torch.inference_mode()
    def read_features(self, seen: Sequence[SeenGrid]) -> int:
        """As `read`, of grids that the model has seen; oldest first."""
        self.reset()
        self.stamps = [stamp for one in seen for stamp in (one.stamp, one.last)]
        for size, some in groupby(seen, key=lambda one: one.features.shape[:2]):
            same = list(some)
            stamps = [stamp for one in same for stamp in (one.stamp, one.last)]
            features = torch.cat([one.features.flatten(0, 1) for one in same])
            kept = _Kept(features, self.device)
            run(self._append((len(same), *size), stamps, kept, time.perf_counter()))
        return sum(one.tokens for one in seen)

    @property
    def busy(self) -> bool:
        """An answer is being written from what was read."""
        return bool(self.cache_manager.living_forks)


def grids_for(tokens: int, grid_tokens: int) -> int:
    """How many grids fit into so many tokens; one at least."""
    return max(1, tokens // max(1, grid_tokens))


def frames_for(grids: int) -> int:
    return GRID_FRAMES * grids
