# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`PictureTier`: the frames of a stream, kept as pictures and found again by their stamps."""

from __future__ import annotations

import io
import logging
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from PIL import Image

from stream_vlm_ros.engine.inputs.frames import to_arrays
from stream_vlm_ros.errors import FrameStoreError, PictureLostError
from stream_vlm_ros.history.results import TierInfo
from stream_vlm_ros.history.store import FrameStore, KeptFrame

log = logging.getLogger(__name__)

Shown = tuple[float, np.ndarray]  # a frame's stamp, and its picture


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

    def load(self, first: float, last: float, most: int) -> list[Shown]:
        """The frames from one stamp to another, oldest first; at most so many, evenly spread pairs.

        A picture that is lost is left out.
        """
        frames = self.store.between(first, last)
        if len(frames) > most:
            pairs = np.linspace(0, len(frames) // 2 - 1, max(1, most // 2)).round().astype(int)
            frames = [frames[2 * pair + half] for pair in pairs for half in (0, 1)]
        return [shown for frame in frames if (shown := self._shown(frame)) is not None]

    def load_newest(self, count: int) -> list[Shown]:
        found = self.store.newest(count)
        return [shown for frame in found if (shown := self._shown(frame)) is not None]

    def stamps(self, first: float, last: float, most: int) -> tuple[float, ...]:
        """Stamps of frames between two, evenly spread, at most so many."""
        found = [frame.stamp for frame in self.store.between(first, last)]
        if len(found) > most:
            found = [found[at] for at in np.linspace(0, len(found) - 1, most).round().astype(int)]
        return tuple(found)

    def size(self, stamp: float) -> tuple[int, int] | None:
        """Width and height of the frame nearest to a stamp; None: there is none."""
        near = self.store.around(stamp)
        return (near[-1].width, near[-1].height) if near else None

    def thumbnail(self, stamp: float, max_size: int) -> bytes | None:
        """The frame of that stamp as JPEG, no side longer than ``max_size``; None: it is gone."""
        frames = self.store.between(stamp, stamp)
        shown = self._shown(frames[0]) if frames else None
        if shown is None:
            return None
        picture = Image.fromarray(shown[1])
        picture.thumbnail((max_size, max_size))
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=85)
        return data.getvalue()

    def forget(self, start: float, stop: float) -> int:
        """Erase the pictures of a time; how many there were."""
        return self.store.forget_between(start, stop)

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
        )

    def _shown(self, frame: KeptFrame) -> Shown | None:
        try:
            return frame.stamp, self.store.load(frame)
        except PictureLostError as fault:
            log.warning("%s", fault)
            self.store.forget(frame)
            return None
