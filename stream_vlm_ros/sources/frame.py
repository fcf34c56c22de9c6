# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``Frame``, a picture with its time, and ``Source``, where frames come from."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from stream_vlm_ros.engine.inputs.timestamps import SECOND


@dataclass(frozen=True)
class Frame:
    """One picture and when it was taken.

    ``stamp_ns`` is in nanoseconds: since the epoch where the source knows it, else since the
    source's first frame. ``image`` is height x width x 3, uint8, RGB. ``source`` names the camera
    or file.
    """

    stamp_ns: int
    image: np.ndarray  # [height, width, 3]
    source: str

    @property
    def seconds(self) -> float:
        return self.stamp_ns / SECOND


@dataclass
class SourceCounts:
    """What became of the frames of one pass; decoded = given + unwanted + unusable + unordered."""

    decoded: int = 0
    given: int = 0
    unwanted: int = 0  # not sampled, or outside start..end: never converted to a picture
    unusable: int = 0  # damaged pictures
    unordered: int = 0  # stamp not after the frame before: the source's clock ran backwards


@dataclass
class SourceState:
    """Filled during a pass over a source; a new pass starts with a new one."""

    counts: SourceCounts = field(default_factory=SourceCounts)
    damage: str | None = None  # one sentence, if the source broke off before its end
    notes: list[str] = field(default_factory=list)  # what had to be assumed


class Source(ABC):
    """An iterable of frames with strictly increasing stamps.

    Each ``iter()`` starts a new pass from the beginning. A source that breaks off in the middle
    gives every frame it could read and then ends; ``state.damage`` says so afterwards.
    """

    name: str
    size: tuple[int, int] | None = None  # width, height of the pictures given, if known
    rate: float | None = None  # frames per second before sampling, if known
    duration: float | None = None  # seconds, if known
    live: bool = False  # frames come at their own pace
    endless: bool = False  # frames never end by themselves
    cameras: tuple[str, ...] | None = None  # that frames may come from, if known

    def __init__(self) -> None:
        self.state = SourceState()

    @abstractmethod
    def __iter__(self) -> Iterator[Frame]: ...


def no_plain_file(path: Path) -> str:
    """What to say of a pipe, a socket or a device: reading one may wait for ever."""
    return (
        f"{path} is neither a file, a folder nor a camera (such as /dev/video0), but a pipe, a "
        "socket or another device. Save what comes from it to a file, and give that."
    )
