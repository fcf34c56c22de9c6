# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Where a history keeps what may be read again: `PictureTier`, frames as pictures; `FeatureTier`,
what the vision tower made of the newest of them. `Readable` is both.

`KeyTier` is what finds them: the key index, as a companion of the memory.
"""

from __future__ import annotations

import io
import itertools
import logging
import math
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch
from PIL import Image

from stream_vlm_ros.engine.cache.state import Change
from stream_vlm_ros.engine.inputs.frames import to_arrays
from stream_vlm_ros.errors import FrameStoreError, PictureLostError
from stream_vlm_ros.history.index import IndexState, KeyIndex
from stream_vlm_ros.history.results import TierInfo
from stream_vlm_ros.history.selection import GRID_FRAMES, evenly
from stream_vlm_ros.history.store import FrameStore, KeptFrame

log = logging.getLogger(__name__)

T = TypeVar("T")

Shown = tuple[float, np.ndarray]  # a frame's stamp, and its picture


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
    """A grid as the vision tower saw it: a number that rises with time and is given once, stamps of
    its first and last frame, in seconds, and features ``[rows, columns, hidden]``."""

    id: int
    stamp: float
    last: float
    features: torch.Tensor

    @property
    def tokens(self) -> int:
        return self.features.shape[:2].numel()


class KeyTier:
    """A key index as a companion of the memory that does not end the stream.

    What the index cannot take (its folder's disk is full) is said once, and the stream goes on
    without the keys of these grids. That keys have to be left out because the index is full is said
    once, and again each time that half as many are kept.

    Attributes:
        waits: it takes none: in a folder they would be taken for keys of what is there.
        error: why it took no keys, the last time; empty once it took some again.
    """

    def __init__(self, index: KeyIndex):
        self._index, self.error = index, ""
        self._refused = False  # to be settled, the last time
        self.waits = False
        self._one_in = 1  # kept of so many, as was said
        self._say_what_is_left_out(index.empty())

    def empty(self) -> IndexState:
        return self._index.empty()

    def draft(self, held: IndexState, change: Change) -> IndexState:
        try:
            if self.waits:
                raise FrameStoreError("its folder does not know yet that another time has begun")
            held = self._index.draft(held, change)
        except FrameStoreError as fault:
            if not self.error:
                log.warning("keys are not kept for the history: %s", fault)
            self.error = str(fault)
        else:
            self.error = ""
        self._say_what_is_left_out(held)
        return held

    def settle(self, held: IndexState) -> IndexState:
        """As `KeyIndex.settle`; what the folder cannot take is said once, and tried again later."""
        try:
            held, self._refused = self._index.settle(held), False
        except FrameStoreError as fault:
            if not self._refused:
                log.warning("the history's folder still holds keys that were taken back: %s", fault)
            self._refused = True
        return held

    def start_epoch(self, held: IndexState) -> IndexState:
        """As `KeyIndex.start_epoch`; what the folder cannot take now is tried before the next."""
        try:
            return self._index.start_epoch(held)
        except FrameStoreError as fault:
            log.warning("the history's folder still holds keys of another time: %s", fault)
            return self._index.empty()

    def _say_what_is_left_out(self, held: IndexState) -> None:
        if not held.left_out:
            self._one_in = 1
        seen = held.grids + held.left_out
        if seen <= self._one_in * held.grids:
            return
        while seen > self._one_in * held.grids:
            self._one_in *= 2
        log.warning(
            "the index of the history is full: of %s grids the keys of %s are kept. What was in "
            "view for fewer than %d grids may be missed, and episodes are named up to as many too "
            "long. Give it more room (history_index_megabytes)",
            f"{seen:,}", f"{held.grids:,}", self._one_in,
        )  # fmt: skip


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

    def load(self, frames: Sequence[KeptFrame]) -> dict[int, Shown]:
        """The frames with their pictures, by id; one that is lost is forgotten, and left out."""
        found = {}
        for frame, picture in zip(frames, self.store.load_all(frames), strict=True):
            if isinstance(picture, PictureLostError):
                log.warning("%s", picture)
                with suppress(FrameStoreError):  # a full disk: it is left out again the next time
                    self.store.forget(frame)
            else:
                found[frame.id] = frame.stamp, picture
        return found

    def present(self, count: int, until: float) -> list[KeptFrame]:
        """So many of the newest frames up to a stamp, oldest first; none where it was not taken:
        what came before that is not the present."""
        found = self.store.newest(count, until) if count else []
        return found if found and found[-1].stamp == until else []

    def stamps(self, first: float, last: float) -> list[float]:
        """Stamps of frames between two."""
        return [frame.stamp for frame in self.store.between(first, last)]

    def thumbnail(self, stamp: float, max_size: int) -> bytes | None:
        """The frame of that stamp as JPEG, no side longer than ``max_size``; None: it is gone."""
        frames = self.store.between(stamp, stamp)
        for _, shown in self.load(frames[:1]).values():
            return as_jpeg(shown, max_size)
        return None

    def forget(self, start: float, stop: float) -> int:
        """Erase the pictures of a time; how many there were."""
        return self.store.forget_between(start, stop)

    def forget_from(self, number: int) -> None:
        """Forget the frames from an id on; what the disk does not let go is not read either."""
        try:
            self.store.forget_from(number)
        except FrameStoreError as fault:
            log.warning(
                "pictures of what the memory went back behind cannot be removed yet; they are not "
                "read: %s", fault,
            )  # fmt: skip

    def info(self) -> TierInfo:
        store = self.store
        frames = len(store) - store.earlier
        return TierInfo(
            name="pictures",
            grids=math.ceil(frames / 2),
            frames=frames,
            bytes=store.bytes,
            max_bytes=int(store.max_bytes),
            where="memory" if store.folder is None else str(store.folder),
            oldest=self.oldest,
            newest=self.newest,
            error=self.error,
        )


class _Features(NamedTuple):
    """What a feature tier holds: never changed, so that an interruption leaves one that is whole.

    Attributes:
        grids: oldest first.
        bytes: of their features.
        whole_from: since this stamp no grid was let go; infinite: nothing was taken yet.
    """

    grids: tuple[SeenGrid, ...] = ()
    bytes: int = 0
    whole_from: float = math.inf

    def with_more(self, grids: Sequence[SeenGrid]) -> _Features:
        whole_from = grids[0].stamp if self.whole_from == math.inf else self.whole_from
        nbytes = self.bytes + sum(one.features.nbytes for one in grids)
        return _Features((*self.grids, *grids), nbytes, whole_from)

    def without_oldest(self, count: int) -> _Features:
        if not count:
            return self
        gone = self.grids[:count]
        nbytes = self.bytes - sum(one.features.nbytes for one in gone)
        return _Features(self.grids[count:], nbytes, math.nextafter(gone[-1].last, math.inf))

    def only(self, kept: Callable[[SeenGrid], bool]) -> _Features:
        """Without those that are not to be kept, which are not missed."""
        grids = tuple(filter(kept, self.grids))
        return _Features(grids, sum(one.features.nbytes for one in grids), self.whole_from)


class FeatureTier:
    """Vision features of the newest grids, in the host's memory: read without being seen again.

    Args:
        max_bytes: that they may take; 0: none are kept.

    Attributes:
        next_id: of the grid that comes next.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes, self.next_id = max_bytes, 0
        self._held = _Features()

    def clear(self) -> None:
        self._held = _Features()

    @property
    def oldest(self) -> float | None:
        """Stamp of the first frame, in seconds."""
        return self._held.grids[0].stamp if self._held.grids else None

    @property
    def newest(self) -> float | None:
        return self._held.grids[-1].last if self._held.grids else None

    def add(self, features: torch.Tensor, stamps: Sequence[tuple[float, float]]) -> None:
        """Keep what the stream has seen: ``[grids, rows, columns, hidden]``."""
        try:
            taken = copied_to_host(features)
        except RuntimeError as fault:  # what torch raises where the host has no memory left
            log.warning("no features are kept for the history: %s", fault)
            self.clear()
            return
        first, self.next_id = self.next_id, self.next_id + len(taken)
        held = self._held.with_more(
            [
                SeenGrid(number, *times, own)
                for number, (own, times) in enumerate(zip(taken, stamps, strict=True), first)
            ]
        )
        over, count = held.bytes - self.max_bytes, 0
        while over > 0:
            over, count = over - held.grids[count].features.nbytes, count + 1
        self._held = held.without_oldest(count)

    def let_go_before(self, stamp: float) -> None:
        """Forget what was over by then."""
        over = itertools.takewhile(lambda one: one.last < stamp, self._held.grids)
        self._held = self._held.without_oldest(len(list(over)))

    def between(self, first: float, last: float) -> list[SeenGrid] | None:
        """All grids with some of this time, oldest first; None: some may have been let go."""
        if first < self._held.whole_from:
            return None
        return [one for one in self._held.grids if first <= one.last and one.stamp <= last]

    def present(self, count: int, until: float) -> list[SeenGrid]:
        """So many of the newest grids that were over by a stamp, oldest first; none where it was
        not taken."""
        found = [one for one in self._held.grids if one.last <= until][-count:] if count else []
        return found if found and found[-1].last == until else []

    def forget(self, start: float, stop: float) -> None:
        """Erase the grids with some of a time."""
        self._held = self._held.only(lambda one: one.last < start or one.stamp > stop)

    def forget_from(self, number: int) -> None:
        """Forget the grids from an id on."""
        self._held = self._held.only(lambda one: one.id < number)

    def info(self) -> TierInfo:
        held = self._held
        return TierInfo(
            name="features",
            grids=len(held.grids),
            frames=GRID_FRAMES * len(held.grids),
            bytes=held.bytes,
            max_bytes=self.max_bytes,
            where="memory",
            oldest=self.oldest,
            newest=self.newest,
        )


class Mark(NamedTuple):
    """How far pictures and features reach at a state of the memory: what is beyond came after it.

    Attributes:
        beginning: counts how often all was forgotten.
        picture, feature: ids of those that come next.
    """

    beginning: int
    picture: int
    feature: int


class Readable:
    """What may be read again, in step with the memory: as its companion this holds a `Mark`.

    Where the memory goes back, to a snapshot or a clone, the mark goes back with it, and says what
    is to be undone: see `undo`.
    """

    def __init__(self, pictures: PictureTier, features: FeatureTier):
        self.pictures, self.features = pictures, features
        self._beginning = 0

    def empty(self) -> Mark:
        """An empty memory leaves what is there."""
        return self.mark

    def draft(self, held: Mark, change: Change) -> Mark:
        """Frames are kept once they are in the memory: see `mark`."""
        return held

    @property
    def mark(self) -> Mark:
        """Of what is there now."""
        return Mark(self._beginning, self.pictures.store.next_id, self.features.next_id)

    @property
    def spans(self) -> list[tuple[float, float]]:
        """From when to when each tier reaches, in seconds of the source."""
        ends = [(tier.oldest, tier.newest) for tier in (self.pictures, self.features)]
        return [(first, last) for first, last in ends if first is not None and last is not None]

    def has_some_of(self, first: float, last: float) -> bool:
        """Whether anything of a time may be read."""
        pictures = self.pictures.store.ids_between(first, last)
        return pictures is not None or bool(self.features.between(first, last))

    def undo(self, held: Mark) -> bool:
        """Forget what came after a mark, and say whether the memory has gone back to it."""
        now = self.mark
        if held == now:
            return False
        again = held if held.beginning == now.beginning else Mark(now.beginning, 0, 0)
        self.features.forget_from(again.feature)
        self.pictures.forget_from(again.picture)
        return True

    def start_epoch(self) -> None:
        """The source's time restarts: what is there is found no more.

        Also where a folder's disk cannot take that: said, and `is_in_its_epoch` tries again.
        """
        try:
            self.pictures.store.start_epoch()
        except FrameStoreError as fault:
            log.warning(
                "what the history holds is of another time, and is not searched; its folder will "
                "know of it once there is room: %s", fault,
            )  # fmt: skip
            self.pictures.store.await_epoch()
        self._begin()

    def is_in_its_epoch(self) -> bool:
        """Whether the folder knows of the epoch that has begun, or can be told now."""
        try:
            self.pictures.store.note_epoch()
        except FrameStoreError:
            return False
        return True

    def clear(self) -> None:
        self.pictures.store.clear()
        self._begin()

    def _begin(self) -> None:
        self.features.clear()
        self._beginning += 1


def as_jpeg(picture: np.ndarray, max_size: int) -> bytes:
    """A picture as JPEG, no side longer than ``max_size``."""
    small = Image.fromarray(picture)
    small.thumbnail((max_size, max_size))
    data = io.BytesIO()
    small.save(data, "JPEG", quality=85)
    return data.getvalue()
