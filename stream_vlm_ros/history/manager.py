# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`SmartFrameManager`: which frames are worth keeping, and which of them a question needs."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable

import numpy as np

from stream_vlm_ros.engine.inputs.sampling import StampSampler
from stream_vlm_ros.engine.inputs.stamp_check import Decision, StampCheck, Timing
from stream_vlm_ros.engine.inputs.timestamps import SECOND, check_about, check_order
from stream_vlm_ros.errors import (
    InvalidParameterError,
    InvalidTimestampError,
    OutOfHorizonError,
    PictureLostError,
    real_number,
    whole_number,
)
from stream_vlm_ros.history.importance import NoveltyMeasure, ThumbnailNovelty
from stream_vlm_ros.history.results import FrameStatistics
from stream_vlm_ros.history.selection import GRID_FRAMES, Shares, nested
from stream_vlm_ros.history.stars import StarMemory
from stream_vlm_ros.history.store import FrameStore, KeptFrame

LATE_SECONDS = 60.0  # behind the newest frame: so far a stamp is the caller's error, no jump
_MAX_SECONDS = 2**63 / SECOND  # either way; whole nanoseconds beyond it fit no int64

_Offered = tuple[np.ndarray, float, str]  # picture, stamp, source


class SmartFrameManager:
    """Keeps frames at a target rate, and remembers which are new and which are the latest.

    All frames taken at the target rate go to the store. Two small sets point into it: the *star
    memory* (frames whose novelty passed a threshold) and the *stream window* (the latest). A frame
    in both is one frame.

    One wrong stamp costs one frame: after a pause or a jump of the source's time frames wait until
    three agree on it (`StampCheck`), and a single one is dropped. After a pause they come in with
    the next question at the latest. A jump back, or ahead by more than the store spans, begins a
    new epoch of the store.

    Args:
        store: None: in memory, with the store's own bounds. What a store holds is taken up.
        star_capacity: most stars; 0: none.
        star_threshold: novelty (0..1) from which a frame becomes a star.
        stream_window: how many of the latest frames.
        target_fps: frames a second that are kept, by stamp; 0: every frame.
        max_time_gap: seconds from one frame to the next beyond which time has jumped; at most what
            the store spans. Infinite: the stamps were looked at before, no pause is doubted.
        measure: of novelty; None: `ThumbnailNovelty`.

    Raises:
        InvalidParameterError: a setting out of its range.
    """

    def __init__(
        self,
        store: FrameStore | None = None,
        *,
        star_capacity: int = 20,
        star_threshold: float = 0.6,
        stream_window: int = 20,
        target_fps: float = 1.0,
        measure: NoveltyMeasure | None = None,
        max_time_gap: float = 3600.0,
    ):
        star_capacity = whole_number("star_capacity", star_capacity, 0)
        self.stream_window = whole_number("stream_window", stream_window, 1)
        threshold, longest = real_number(star_threshold), real_number(max_time_gap)
        if threshold is None or not 0 <= threshold <= 1:
            raise InvalidParameterError(f"star_threshold must be in 0..1: {star_threshold!r}")
        if longest is None or not longest > 0:
            raise InvalidParameterError(f"max_time_gap must be above 0: {max_time_gap!r}")
        rate = real_number(target_fps)
        if rate is None or not 0 <= rate < math.inf:
            raise InvalidParameterError(
                f"target_fps must be a number of at least 0: {target_fps!r}"
            )
        self.target_fps = rate
        self._sampler = StampSampler(rate) if rate else None  # None: every frame
        self._measure = ThumbnailNovelty() if measure is None else measure
        self.store = FrameStore() if store is None else store
        gap = min(longest, self.store.max_seconds, _MAX_SECONDS)
        self._stamps: StampCheck[_Offered] = StampCheck(
            round(LATE_SECONDS * SECOND),
            round(gap * SECOND),
            doubt_pauses=math.isfinite(longest),
        )
        self._stars = StarMemory(self._measure, star_capacity, threshold)
        self._stream: deque[int] = deque(maxlen=self.stream_window)
        self.version = 0
        self._zero_counts()
        self._take_up()

    def _zero_counts(self) -> None:
        self._last_stamp: float | None = None  # of all frames admitted
        self.frames_added = self.frames_kept = self.frames_invalid_stamp = 0
        self.frames_repeated = self.frames_not_sampled = self.frames_forgotten = 0
        self.last_refusal = ""

    def _take_up(self) -> None:
        """Continue with what the store holds."""
        self._take_up_stars()
        latest = self.store.newest(self.stream_window)
        self._stream.extend(frame.id for frame in latest)
        if latest:
            self._last_stamp = latest[-1].stamp
            self._stamps.resume(_nanoseconds(self._last_stamp))

    def _take_up_stars(self) -> None:
        self._stars.clear()
        for frame in self.store.stars():
            try:
                self._stars.restore(frame.id, self._measure.describe(self.store.load(frame)))
            except PictureLostError:
                self.store.forget(frame)

    # -- keeping -----------------------------------------------------------------------------

    @property
    def last_stamp(self) -> float | None:
        """Stamp of the newest frame admitted or taken up, in seconds."""
        return self._last_stamp

    def add(self, image: np.ndarray, stamp: float, source: str = "") -> KeptFrame | None:
        """Offer a frame; it is kept if its stamp is believed and the target rate wants it.

        A frame with the stamp of the one before it is that frame again and is not counted twice.
        After a pause or a jump of time two frames wait, and come in with the third.

        Args:
            image: uint8 RGB ``[height, width, 3]``.
            stamp: seconds of the source.

        Returns:
            What is known of it if it was kept, else None.

        Raises:
            InvalidTimestampError: not finite, beyond 292 years, or up to `LATE_SECONDS` before the
                newest frame: time runs backwards.
            FrameStoreError: the store cannot take it.
        """
        check_order([stamp], None)
        stamp_ns = _nanoseconds(stamp)
        timing = self._stamps.classify(stamp_ns)
        if timing is Timing.LATE and not self._stamps.waiting:
            check_order([stamp], self._last_stamp)
        self.frames_added += 1
        if stamp_ns == self._stamps.newest_ns:
            self.frames_repeated += 1
            return None
        # What waits is looked at later: the caller may have filled the array again by then.
        own = image if timing is Timing.IN_ORDER else image.copy()
        return self._follow(self._stamps.offer(stamp_ns, (own, stamp, source)))

    def admit_waiting(self) -> None:
        """Keep the frames that wait after a pause: what is asked now is to be of them, too."""
        self._follow(self._stamps.release())

    def _follow(self, decision: Decision[_Offered]) -> KeptFrame | None:
        """Keep and drop frames as their stamps decided; the last frame kept."""
        for _, self.last_refusal in decision.refused:
            self.frames_invalid_stamp += 1
        if decision.jump_ns is not None and not 0 < decision.jump_ns <= self._span_ns:
            self._begin_epoch()
        kept = None
        for offered in decision.admitted:
            kept = self._take(*offered)
        return kept

    @property
    def _span_ns(self) -> float:
        return self.store.max_seconds * SECOND

    def _take(self, image: np.ndarray, stamp: float, source: str) -> KeptFrame | None:
        """Keep a frame whose stamp is believed, if the target rate wants it."""
        self._last_stamp = stamp
        if self._sampler is not None and not self._sampler.wants(_nanoseconds(stamp)):
            self.frames_not_sampled += 1
            return None
        return self._keep(image, stamp, source)

    def _keep(self, image: np.ndarray, stamp: float, source: str) -> KeptFrame:
        number = self.store.next_id
        verdict = self._stars.consider(number, self._measure.describe(image))
        try:
            frame, gone = self.store.add(
                image, stamp, source, verdict.novelty, verdict.is_star, verdict.dropped
            )
        except Exception:
            self._take_up_stars()  # as they were
            raise
        self._stream.append(frame.id)
        self._forget(gone)
        self.frames_kept += 1
        self.version += 1
        return frame

    def _forget(self, gone: Iterable[int]) -> None:
        for number in gone:
            self._stars.discard(number)
            self.frames_forgotten += 1
            while self._stream and self._stream[0] <= number:
                self._stream.popleft()

    def lose(self, frame: KeptFrame) -> None:
        """Forget a frame whose picture is lost."""
        self.store.forget(frame)
        self._stars.discard(frame.id)
        if frame.id in self._stream:
            self._stream.remove(frame.id)
        self.frames_forgotten += 1
        self.version += 1

    def clear(self) -> None:
        """Forget everything, in the store too."""
        self.store.clear()
        self._forget_all()

    def start_epoch(self) -> None:
        """As `clear`, for a source whose time restarts: what a folder holds stays there."""
        self.store.start_epoch()
        self._forget_all()

    def _forget_all(self) -> None:
        self._clear_choice()
        self._stamps.clear()
        self._zero_counts()

    def _begin_epoch(self) -> None:
        """Time jumped: choose only from frames to come; counts continue."""
        self.frames_forgotten += self.store.start_epoch()
        self._clear_choice()

    def _clear_choice(self) -> None:
        self._stars.clear()
        self._stream.clear()
        if self._sampler is not None:
            self._sampler.reset()
        self.version += 1

    # -- choosing ----------------------------------------------------------------------------

    @property
    def star_ids(self) -> tuple[int, ...]:
        """Frames of the star memory, oldest first."""
        return self._stars.ids

    @property
    def stream_ids(self) -> tuple[int, ...]:
        """Frames of the stream window, oldest first."""
        return tuple(self._stream)

    def select(
        self, max_frames: int = 48, about: tuple[float, float] | None = None
    ) -> list[tuple[KeptFrame, ...]]:
        """The frames for a question, in pairs of neighbours, oldest first.

        Around the named time, the latest, the stars, and the rest spread evenly over all that is
        kept. With no more than ``max_frames`` kept: all of them. A frame whose neighbour is
        missing or of another size stands alone.

        Args:
            max_frames: maximum number of frames; one without a partner counts twice.
            about: the time that the question asks about, from and to, in seconds.

        Raises:
            OutOfHorizonError: nothing of that time is kept.
        """
        about = check_about(about)
        pairs = whole_number("max_frames", max_frames, GRID_FRAMES) // GRID_FRAMES
        self.admit_waiting()
        newest = self.store.newest_frame
        if newest is None:
            return []
        shares = Shares.of(
            pairs, self.stream_window // GRID_FRAMES, len(self._stars), about is not None
        )
        chosen: dict[int, list[KeptFrame]] = {}

        def take(numbers: Iterable[int], most: int) -> None:
            """Choose pairs in the order given until ``most`` more are chosen."""
            limit = min(pairs, len(chosen) + most)
            fresh = (number for number in numbers if number not in chosen)
            while len(chosen) < limit:
                batch = [n for n, _ in zip(fresh, range(limit - len(chosen)), strict=False)]
                if not batch:
                    break
                self._load_pairs(batch, chosen)

        if about is not None:
            take(self._near(*about), shares.near)
        newest_pair = newest.id // GRID_FRAMES
        take(range(newest_pair, newest_pair - shares.window, -1), shares.window)
        take(self._star_pairs(), shares.star)
        oldest_pair = self.store.first_regular_id // GRID_FRAMES
        take(nested(oldest_pair, newest_pair), pairs)
        take(self._star_pairs(), pairs)
        return _one_size_each(chosen[number] for number in sorted(chosen))[-pairs:]

    def _load_pairs(self, numbers: list[int], chosen: dict[int, list[KeptFrame]]) -> None:
        ids = [number * GRID_FRAMES + k for number in numbers for k in range(GRID_FRAMES)]
        for frame in self.store.get(ids):
            chosen.setdefault(frame.id // GRID_FRAMES, []).append(frame)

    def _star_pairs(self) -> list[int]:
        stars = sorted(self.store.stars(), key=lambda frame: (-frame.importance, frame.id))
        return list(dict.fromkeys(frame.id // GRID_FRAMES for frame in stars))

    def _near(self, start: float, stop: float) -> Iterable[int]:
        """Pairs of that time; with none in it, the nearest before and after."""
        oldest, newest = self.store.oldest_frame, self.store.newest_frame
        assert oldest is not None and newest is not None
        if stop < oldest.stamp or newest.stamp < start:
            raise OutOfHorizonError(
                f"nothing from {start:.3f} to {stop:.3f} s is stored. Stored frames run from "
                f"{oldest.stamp:.3f} to {newest.stamp:.3f} s"
            )
        found = self.store.ids_between(start, stop)
        if found is None:
            nearest = self.store.around(start)
            return dict.fromkeys(frame.id // GRID_FRAMES for frame in nearest)
        first, last = (number // GRID_FRAMES for number in found)
        return nested(first, last)

    # -- telling -----------------------------------------------------------------------------

    def statistics(self) -> FrameStatistics:
        """Counts since the start or the last `clear`."""
        unique = len({*self._stars.ids, *self._stream})
        return FrameStatistics(
            frames_added=self.frames_added,
            frames_kept=self.frames_kept,
            frames_repeated=self.frames_repeated,
            frames_not_sampled=self.frames_not_sampled,
            frames_invalid_stamp=self.frames_invalid_stamp,
            frames_waiting=self._stamps.waiting,
            frames_forgotten=self.frames_forgotten,
            star_frames=len(self._stars),
            stream_frames=len(self._stream),
            unique_frames=unique,
            compression_ratio=self.frames_added / unique if unique else 0.0,
            stored_frames=len(self.store),
            stored_bytes=self.store.bytes,
        )


def _nanoseconds(stamp: float) -> int:
    """Seconds in whole nanoseconds; InvalidTimestampError beyond what an int64 of them holds."""
    if not abs(stamp) < _MAX_SECONDS:
        raise InvalidTimestampError(
            f"a time stamp of {stamp:.6g} s is out of range: time stamps are seconds (divide "
            "nanoseconds by 1e9)"
        )
    return round(stamp * SECOND)


def _one_size_each(pairs: Iterable[list[KeptFrame]]) -> list[tuple[KeptFrame, ...]]:
    """Pairs cut where the size of the picture changes."""
    grids: list[tuple[KeptFrame, ...]] = []
    for pair in pairs:
        sizes = {(frame.width, frame.height) for frame in pair}
        grids += [tuple(pair)] if len(sizes) == 1 else [(frame,) for frame in pair]
    return grids
