# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the released models take, and what fits a device: the engine's own sums, nothing loaded."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch

from stream_vlm_ros.config import Settings
from stream_vlm_ros.console import bytes_text, duration_text
from stream_vlm_ros.engine import StreamProcessor, StreamQwenModel
from stream_vlm_ros.engine.cache.budget import MemoryBudget
from stream_vlm_ros.engine.inputs.chat import ChatLayout
from stream_vlm_ros.errors import DeviceUnavailableError
from stream_vlm_ros.experiments.shapes import shape_config, words_processor
from stream_vlm_ros.replay.checkpoint import PictureCost, usual_budget

CAPS = (4096, 16_384, 50_000, 128_000)
GIBIBYTES = (8, 12, 16, 24, 32, 48, 80)  # of common GPUs
Rows = list[tuple[str, ...]]


@dataclass(frozen=True)
class Release:
    """A released model in one number format, of which only the shapes are made."""

    title: str
    shape: str
    dtype: torch.dtype
    processor: StreamProcessor

    @cached_property
    def network(self) -> StreamQwenModel:
        return StreamQwenModel(shape_config(self.shape, self.processor), self.dtype, "meta")

    @cached_property
    def weights(self) -> int:
        """Bytes; a head that is tied to the embedding counts once, as in the files."""
        return sum(weight.nbytes for weight in self.network.parameters())

    def budget(self, max_pixels: int, cap: int) -> MemoryBudget:
        network, images = self.network, self.processor.image_settings
        chat = ChatLayout(self.processor, network.config)
        shape = network.kv_shape
        return usual_budget(network.config, shape, self.weights, images, chat, max_pixels, cap)

    def taken(self, max_pixels: int, cap: int) -> int:
        """Bytes with a memory of ``cap`` tokens, at the node's defaults: weights, memory, and the
        room for a question and for encoding a chunk."""
        return self.weights + self.budget(max_pixels, cap).needed(cap)

    def largest_cap(self, max_pixels: int, free: int) -> int:
        """What ``max_cache_tokens: 0`` is on a GPU with ``free`` bytes; 0 where nothing fits."""
        left, budget = free - self.weights, self.budget(max_pixels, 0)
        try:
            return budget.automatic_cap(max(0, left), torch.device("cuda"))[0]
        except DeviceUnavailableError:
            return 0


class Hardware:
    """Tables of the released models for a camera; each is a list of rows, the first its titles.

    Args:
        size: width and height of its pictures.
        settings: of which ``sample_fps`` and ``max_pixels`` count.

    Raises InvalidParameterError, InvalidImageError.
    """

    def __init__(self, size: tuple[int, int], settings: Settings) -> None:
        processor = words_processor()
        self._releases = [
            Release(f"{name}, {number} ({place})", name.lower(), dtype, processor)
            for number, place, dtype in (
                ("bfloat16", "GPU", torch.bfloat16),
                ("float32", "CPU", torch.float32),
            )
            for name in ("3B", "7B")
        ]
        self._max_pixels = settings.max_pixels
        self._cost = PictureCost.by(
            processor.image_settings, size, settings.sample_fps, settings.max_pixels
        )

    def by_cap(self, caps: Sequence[int] = CAPS) -> Rows:
        """What each model takes, by the bound of its memory."""
        titles = ("max_cache_tokens", *(f"{cap:,}" for cap in caps), "weights alone")
        return [titles, *self._taken(caps)]

    def by_device(self, gibibytes: Sequence[float] = GIBIBYTES, used: float = 1.0) -> Rows:
        """The largest memory that fits a GPU, of which ``used`` GB are taken by others."""
        models = [release for release in self._releases if release.dtype == torch.bfloat16]
        names = [release.shape.upper() for release in models]
        rows: Rows = [("GPU memory", *(t for n in names for t in (f"{n}: tokens", "of video")))]
        for size in gibibytes:
            free = round(size * 2**30 - used * 1e9)
            caps = [release.largest_cap(self._max_pixels, free) for release in models]
            rows.append((f"{size:g} GB", *(text for cap in caps for text in self._cap(cap))))
        return rows

    def _taken(self, caps: Sequence[int]) -> Iterator[tuple[str, ...]]:
        for release in self._releases:
            taken = [bytes_text(release.taken(self._max_pixels, cap)) for cap in caps]
            yield release.title, *taken, bytes_text(release.weights)

    def _cap(self, cap: int) -> tuple[str, str]:
        if not cap:
            return "does not fit", "–"
        return f"{cap:,}", duration_text(cap / self._cost.tokens_per_second)


def markdown_table(rows: Rows) -> str:
    titles, *lines = ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join([titles, "|---|" + "--:|" * (len(rows[0]) - 1), *lines])
