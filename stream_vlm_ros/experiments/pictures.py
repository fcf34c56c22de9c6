# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Frames to run an experiment on: any source, or synthetic ones made on the model's device."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from stream_vlm_ros.engine.inputs.chunking import gather
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import InvalidParameterError


@dataclass(frozen=True)
class Chunk:
    """Frames to be encoded together, with their times in seconds."""

    images: list[Any]
    stamps: list[float]


class Pictures:
    """An iterable of (picture, seconds), ``frames`` of them at most; each ``iter`` starts over.

    Attributes:
        size: (width, height) where it is known.
        fps: frames a second.
    """

    def __init__(self, name: str, fps: float, frames: int, size: tuple[int, int] | None) -> None:
        if frames < 1:
            raise InvalidParameterError(f"{frames} frames were requested; at least 1 is needed.")
        if not (math.isfinite(fps) and fps > 0):
            raise InvalidParameterError(f"The rate is {fps} frames/s; it must be above 0.")
        self.name, self.fps, self.frames, self.size = name, fps, frames, size

    def __iter__(self) -> Iterator[tuple[Any, float]]:
        raise NotImplementedError

    @property
    def expected(self) -> int:
        """About how many frames it will give."""
        return self.frames

    def first_size(self) -> tuple[int, int]:
        """(width, height) of the first picture, for a source that does not say it.

        Raises InvalidParameterError where there is none.
        """
        for picture, _ in self:
            height, width = np.shape(picture)[:2]
            return width, height
        raise InvalidParameterError(f"{self.name} has no frames.")

    def chunks(self, size: int) -> Iterator[Chunk]:
        """In lists of ``size`` frames; the last may be shorter."""
        for chunk in gather(self, size, lambda _: None):
            images, stamps = map(list, zip(*chunk, strict=True))
            yield Chunk(images, stamps)


class SyntheticPictures(Pictures):
    """A textured picture that drifts, ``[height, width, 3]`` uint8, made on the device.

    No two frames are equal, and making one costs nothing compared with encoding it.
    """

    _DRIFT = 64  # pixels

    def __init__(
        self, size: tuple[int, int], fps: float, frames: int, device: torch.device, seed: int = 0
    ) -> None:
        super().__init__(f"synthetic:{size[0]}x{size[1]}", fps, frames, size)
        self._device, self._seed = device, seed

    def __iter__(self) -> Iterator[tuple[torch.Tensor, float]]:
        assert self.size is not None
        width, height = self.size
        seeded = torch.Generator().manual_seed(self._seed)
        rows, columns = (height + self._DRIFT) // 8 + 1, (width + self._DRIFT) // 8 + 1
        coarse = torch.randint(0, 256, (rows, columns, 3), generator=seeded, dtype=torch.uint8)
        texture = coarse.to(self._device).repeat_interleave(8, 0).repeat_interleave(8, 1)
        for index in range(self.frames):
            # A way over all offsets whose step is not a multiple of the texture's 8 pixels.
            x, y = 5 * index % self._DRIFT, 3 * (5 * index // self._DRIFT) % self._DRIFT
            yield texture[y : y + height, x : x + width], index / self.fps


class SourcePictures(Pictures):
    """The frames of a video, bag, folder or drawn world."""

    def __init__(
        self, spec: str, fps: float, frames: int, size: tuple[int, int] | None = None
    ) -> None:
        import stream_vlm_ros.world  # noqa: F401 (world:SEED is a source here)
        from stream_vlm_ros.sources import open_source

        self._source = open_source(spec, fps=fps, size=size, end=(frames - 0.5) / fps)
        super().__init__(self._source.name, fps, frames, self._source.size or size)

    def __iter__(self) -> Iterator[tuple[Any, float]]:
        first = None
        for index, frame in enumerate(self._source):
            if index == self.frames:
                return
            first = frame.stamp_ns if first is None else first
            yield frame.image, (frame.stamp_ns - first) / SECOND

    @property
    def expected(self) -> int:
        duration = self._source.duration
        return self.frames if duration is None else min(self.frames, math.ceil(duration * self.fps))


class Halved(Pictures):
    """Every second frame of others, at the same times and in as many chunks, of two and more."""

    def __init__(self, whole: Pictures) -> None:
        super().__init__(whole.name, whole.fps / 2, -(-whole.frames // 2), whole.size)
        self.whole = whole

    def __iter__(self) -> Iterator[tuple[Any, float]]:
        return itertools.islice(self.whole, 0, None, 2)

    def chunks(self, size: int) -> Iterator[Chunk]:
        seen = 0
        for chunk in self.whole.chunks(size):
            first, seen = seen % 2, seen + len(chunk.images)
            images, stamps = chunk.images[first::2], chunk.stamps[first::2]
            yield Chunk(images, stamps) if images else chunk  # a last one of one frame


class WorldPictures(Pictures):
    """The drawn world of a seed, whose truth is known; needs nothing but numpy."""

    def __init__(
        self, seed: int, fps: float, frames: int, size: tuple[int, int] | None, pace: float = 1.0
    ) -> None:
        from stream_vlm_ros.world.world import World

        size = size or (640, 480)
        super().__init__(f"world:{seed}", fps, frames, size)
        self.world = World(seed, pace=pace, aspect=size[0] / size[1])

    def __iter__(self) -> Iterator[tuple[Any, float]]:
        assert self.size is not None
        for index in range(self.frames):
            seconds = index / self.fps
            yield self.world.render(seconds, *self.size), seconds


def parse_size(text: str | None) -> tuple[int, int] | None:
    """``"640x480"`` to (640, 480); None to None. Raises InvalidParameterError."""
    if text is None:
        return None
    match = re.fullmatch(r"(\d{1,5})x(\d{1,5})", text)
    if match is None or min(int(match[1]), int(match[2])) < 2:
        raise InvalidParameterError(f"The size {text!r} is not of the form 640x480.")
    return int(match[1]), int(match[2])


def later_world(spec: str, seeds: int) -> str:
    """``world:7``, 2 seeds on, is ``world:9``; other sources stay as they are."""
    seed = seed_of(spec)
    return spec if seed is None else f"world:{seed + seeds}"


def seed_of(spec: str) -> int | None:
    """Of a drawn world, ``world:SEED``; without one it is 0. None: of no drawn world."""
    match = re.fullmatch(r"world:(-?\d+)?", spec)
    return None if match is None else int(match[1] or 0)


def open_pictures(
    spec: str, fps: float, frames: int, size: tuple[int, int] | None, device: torch.device
) -> Pictures:
    """``synthetic`` or ``synthetic:WIDTHxHEIGHT``, ``world:SEED``, or what ``open_source`` takes.

    Raises InvalidParameterError, and what ``open_source`` raises.
    """
    if spec.partition(":")[0] == "synthetic":
        own = parse_size(spec.partition(":")[2] or None)
        return SyntheticPictures(size or own or (1920, 1080), fps, frames, device)
    if (seed := seed_of(spec)) is not None:
        return WorldPictures(seed, fps, frames, size)
    return SourcePictures(spec, fps, frames, size)
