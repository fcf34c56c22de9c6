# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The drawn world as a source of frames: ``open_source("world:7")``."""

from __future__ import annotations

from collections.abc import Iterator

from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import InvalidParameterError, SourceUnknownError, cut
from stream_vlm_ros.sources.frame import Frame, Source, SourceState
from stream_vlm_ros.world.world import World

MAX_LENGTH = 7 * 86_400.0  # seconds; a world is drawn up from its beginning
MIN_RATE, MAX_RATE = 0.001, 1000.0  # frames a second


class WorldSource(Source):
    """The world of one seed, played like a camera; without ``end`` it lasts for a week.

    Args:
        seed: a whole number, as text or not; "" is 0.
        fps: frames per second (None: 10).
        start, end: seconds from the start of the world; frames in [start, end) are given.
        size: (width, height) of the pictures.
    """

    RATE = 10.0

    def __init__(
        self,
        seed: int | str = 0,
        *,
        fps: float | None = None,
        start: float = 0.0,
        end: float | None = None,
        size: tuple[int, int] = (640, 480),
    ) -> None:
        super().__init__()
        try:
            self.seed = int(seed or 0)
        except ValueError:
            raise SourceUnknownError(
                f"A drawn world needs a whole number (world:7), not {cut(repr(seed))}."
            ) from None
        if fps is not None and not MIN_RATE <= fps <= MAX_RATE:
            raise InvalidParameterError(
                f"The rate is {fps} frames/s; it must be above 0 ({MIN_RATE:g} to {MAX_RATE:g})."
            )
        if not 0 <= start < (MAX_LENGTH if end is None else end) <= MAX_LENGTH:
            raise InvalidParameterError(
                f"The part {start} s to {end} s of the world is empty, or extends beyond "
                f"{MAX_LENGTH:.0f} s, when every world ends."
            )
        self.name = f"world:{self.seed}"
        self.rate = self._rate = fps or self.RATE
        self.size = self._size = size
        self._start, self._end = start, end
        self.duration = None if end is None else end - start
        self.endless = end is None
        self.world = World(self.seed, aspect=size[0] / size[1])

    def __iter__(self) -> Iterator[Frame]:
        self.state = SourceState()
        width, height = self._size
        end = MAX_LENGTH if self._end is None else self._end
        index = 0
        while True:
            t = index / self._rate
            if t >= end:
                return
            self.state.counts.decoded += 1
            index += 1
            if t < self._start:
                self.state.counts.unwanted += 1
                continue
            self.state.counts.given += 1
            yield Frame(round(t * SECOND), self.world.render(t, width, height), self.name)
