# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Where a history keeps what may be read again: `PictureTier`, frames as pictures; `FeatureTier`,
what the vision tower made of the newest of them.

`KeyTier` is what finds them: the key index, as a companion of the memory.
"""

from __future__ import annotations

import io
import logging
import math
from collections import deque
from collections.abc import Callable, Sequence
from itertools import islice
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image

from stream_vlm_ros.engine.cache.state import Change
from stream_vlm_ros.engine.inputs.frames import to_arrays
from stream_vlm_ros.errors import FrameStoreError, PictureLostError
from stream_vlm_ros.history.index import IndexState, KeyIndex
from stream_vlm_ros.history.results import TierInfo
from stream_vlm_ros.history.selection import GRID_FRAMES
from stream_vlm_ros.history.store import FrameStore, KeptFrame

log = logging.getLogger(__name__)

T = TypeVar("T")

Shown = tuple[float, np.ndarray]  # a frame's stamp, and its picture


def evenly(some: Sequence[T], most: int) -> Sequence[T]:
    """At most so many of them, evenly spread, the first and the last among them; of one alone, that
    in the middle."""
    if len(some) <= most:
        return some
    if most == 1:
        return [some[len(some) // 2]]
    return [some[at] for at in np.linspace(0, len(some) - 1, most).round().astype(int)]


def thinned(some: Sequence[T], grids: int, of: int) -> Sequence[T]:
    """At most so many grids of these, evenly spread; each is ``of`` of them that follow another."""
    if len(some) <= of * grids:
        return some
    starts = evenly(range(0, len(some) - of + 1, of), grids)
    return [some[start + part] for start in starts for part in range(of)]


def copied_to_host(features: torch.Tensor) -> list[torch.Tensor]:
    """Of each grid, in memory of its own; RuntimeError where there is none left."""
    return [own.to("cpu", copy=True) for own in features]


class SeenGrid(NamedTuple):
    """A grid as the vision tower saw it: stamps of its first and last frame, in seconds, and
    features ``[rows, columns, hidden]``."""

    stamp: float
    last: float
    features: torch.Tensor

    @property
    def tokens(self) -> int:
        return self.features.shape[:2].numel()


class KeyTier:
    """A key index as a companion of the memory that does not end the stream.

    What the index cannot take (its folder's disk is full) is said once, and the stream goes on
    without the keys of these grids.

    Attributes:
        error: why it took no keys, the last time; empty once it took some again.
    """

    def __init__(self, index: KeyIndex):
        self._index, self.error = index, ""

    def empty(self) -> IndexState:
        return self._index.empty()

    def draft(self, held: IndexState, change: Change) -> IndexState:
        try:
            held = self._index.draft(held, change)
        except FrameStoreError as fault:
            if not self.error:
                log.warning("keys are not kept for the history: %s", fault)
            self.error = str(fault)
        else:
            self.error = ""
        return held


class PictureTier:
    """The pictures of a stream, in a frame store.

    What the store cannot take is said once, counted, and does not end the stream.

    Attributes:
        lost: frames that the store could not take.
        error: why not, the last time; empty once it took one again.
    """

    def __init__(self, store: FrameStore):
        self.store = store
        self.lost, self.error = 0, ""

    @property
    def oldest(self) -> float | None:
        """Stamp of the oldest frame of this epoch, in seconds."""
        frame = self.store.oldest_frame
        return None if frame is None else frame.stamp

    @property
    def newest(self) -> float | None:
        frame = self.store.newest_frame
        return None if frame is None else frame.stamp

    def add(self, frames: Sequence[Any], stamps: Sequence[float]) -> None:
        """Keep frames that the stream has taken."""
        for picture, stamp in zip(to_arrays(frames), stamps, strict=True):
            try:
                self.store.add(picture, stamp)
            except FrameStoreError as fault:
                if not self.error:
                    log.warning("a frame is not kept for the history: %s", fault)
                self.lost, self.error = self.lost + 1, str(fault)
            else:
                self.error = ""

    def load(self, frames: Sequence[KeptFrame]) -> list[Shown]:
        """The frames with their pictures; one that is lost is forgotten, and left out."""
        found = []
        for frame, picture in zip(frames, self.store.load_all(frames), strict=True):
            if isinstance(picture, PictureLostError):
                log.warning("%s", picture)
                self.store.forget(frame)
            else:
                found.append((frame.stamp, picture))
        return found

    def stamps(self, first: float, last: float, most: int) -> tuple[float, ...]:
        """Stamps of frames between two, evenly spread, at most so many."""
        found = [frame.stamp for frame in self.store.between(first, last)]
        return tuple(evenly(found, most))

    def thumbnail(self, stamp: float, max_size: int) -> bytes | None:
        """The frame of that stamp as JPEG, no side longer than ``max_size``; None: it is gone."""
        frames = self.store.between(stamp, stamp)
        shown = self.load(frames[:1])
        if not shown:
            return None
        picture = Image.fromarray(shown[0][1])
        picture.thumbnail((max_size, max_size))
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=85)
        return data.getvalue()

    def forget(self, start: float, stop: float) -> int:
        """Erase the pictures of a time; how many there were."""
        return self.store.forget_between(start, stop)

    def take_back(self, last: float) -> None:
        """Forget this epoch's pictures after a stamp."""
        for frame in self.store.between(math.nextafter(last, math.inf), math.inf):
            self.store.forget(frame)

    def info(self) -> TierInfo:
        store = self.store
        return TierInfo(
            name="pictures",
            grids=math.ceil(len(store) / 2),
            frames=len(store),
            bytes=store.bytes,
            max_bytes=int(store.max_bytes),
            where="memory" if store.folder is None else str(store.folder),
            oldest=self.oldest,
            newest=self.newest,
            error=self.error,
        )


class FeatureTier:
    """Vision features of the newest grids, in the host's memory: read without being seen again.

    Args:
        max_bytes: that they may take; 0: none are kept.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes = max_bytes
        self.clear()

    def clear(self) -> None:
        self._grids: deque[SeenGrid] = deque()
        self._bytes = 0
        self._whole_from = math.inf  # since this stamp no grid was let go

    def add(self, features: torch.Tensor, stamps: Sequence[tuple[float, float]]) -> None:
        """Keep what the stream has seen: ``[grids, rows, columns, hidden]``."""
        if not self.max_bytes:
            return
        self._whole_from = min(self._whole_from, stamps[0][0])
        try:
            taken = copied_to_host(features)
        except RuntimeError as fault:  # what torch raises where the host has no memory left
            log.warning("no features are kept for the history: %s", fault)
            self.clear()
            return
        for own, (first, last) in zip(taken, stamps, strict=True):
            self._grids.append(SeenGrid(first, last, own))
            self._bytes += own.nbytes
        while self._bytes > self.max_bytes:
            self._let_go()

    def let_go_before(self, stamp: float) -> None:
        """Forget what was over by then."""
        while self._grids and self._grids[0].last < stamp:
            self._let_go()

    def _let_go(self) -> None:
        self._bytes -= self._grids.popleft().features.nbytes
        self._whole_from = self._grids[0].stamp if self._grids else math.inf

    def between(self, first: float, last: float) -> list[SeenGrid] | None:
        """All grids with some of this time, oldest first; None: some may have been let go."""
        if first < self._whole_from:
            return None
        return [one for one in self._grids if first <= one.last and one.stamp <= last]

    def newest(self, count: int, until: float) -> list[SeenGrid]:
        """At most so many that were over by ``until``, oldest first."""
        found = (one for one in reversed(self._grids) if one.last <= until)
        return list(islice(found, count))[::-1]

    def forget(self, start: float, stop: float) -> None:
        """Erase the grids with some of a time."""
        self._keep(lambda one: one.last < start or one.stamp > stop)

    def take_back(self, last: float) -> None:
        """Forget what came after a stamp."""
        self._keep(lambda one: one.last <= last)

    def _keep(self, kept: Callable[[SeenGrid], bool]) -> None:
        self._grids = deque(filter(kept, self._grids))
        self._bytes = sum(one.features.nbytes for one in self._grids)

    def info(self) -> TierInfo:
        grids = self._grids
        return TierInfo(
            name="features",
            grids=len(grids),
            frames=GRID_FRAMES * len(grids),
            bytes=self._bytes,
            max_bytes=self.max_bytes,
            where="memory",
            oldest=grids[0].stamp if grids else None,
            newest=grids[-1].last if grids else None,
        )
