# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What to forget: arithmetic on lengths, times and small descriptors; no cache is touched here.

Level 1 keeps a *sink* (the stream's first tokens, which attention leans on) and a *window* (its
last), as in StreamingLLM (Xiao et al., 2023), token-exact. Of what leaves the window, level 2 keeps
whole temporal grids spread evenly over time, and level 3 those that matter most, by default the
ones least like any other (the star memory of streaming video models).
"""

from __future__ import annotations

import copy
import logging
import math
import warnings
from bisect import insort
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from stream_vlm_ros.config import AUTO as AUTO
from stream_vlm_ros.config import NOVELTY_SHARE, NOVELTY_WINDOW_CHUNKS
from stream_vlm_ros.config import EvictionConfig as EvictionConfig
from stream_vlm_ros.engine.reference_names import EvictorNames
from stream_vlm_ros.errors import CapTooSmallError, InvalidParameterError

log = logging.getLogger(__name__)


class Candidate(NamedTuple):
    """A temporal grid that leaves the window, or did and was kept."""

    number: int  # among all grids of the stream: their order in time
    tokens: int
    seconds: float  # the source's time
    descriptor: np.ndarray  # [d]; empty where no score asks for it


class EvenSample:
    """Level 2: grids as evenly over time as their budget allows, thinned as the stream grows.

    Over budget, the grid goes whose neighbours are the closest to each other in time: so the gaps
    stay within about a factor of two of each other whatever the rate of the frames.
    """

    def __init__(self, budget: int):
        self.budget = budget
        self._grids: list[Candidate] = []
        self.tokens = 0

    def offer(self, grid: Candidate, start: float, stop: float) -> list[Candidate]:
        """Take a grid in; return those that must go for it, maybe itself.

        ``start`` and ``stop`` are where sink and window border on what is sampled, in seconds.
        """
        if grid.tokens > self.budget:  # it would push out all the others, and then itself
            return [grid]
        insort(self._grids, grid, key=lambda one: one.number)
        self.tokens += grid.tokens
        gone = []
        while self.tokens > self.budget:
            times = [start, *(one.seconds for one in self._grids), stop]
            gaps = [later - earlier for earlier, later in zip(times, times[2:], strict=False)]
            gone.append(self._grids.pop(min(range(len(gaps)), key=gaps.__getitem__)))
            self.tokens -= gone[-1].tokens
        return gone

    def __contains__(self, number: int) -> bool:
        return any(one.number == number for one in self._grids)


class ImportanceScore(Protocol):
    """Which of some grids matter most. Give your own to `VideoStreamingInference`."""

    def describe(self, features: torch.Tensor) -> np.ndarray:
        """What to remember of a grid: vision features ``[rows, columns, hidden]`` to ``[d]``."""

    def rank(self, descriptors: np.ndarray) -> np.ndarray:
        """``[n, d]`` in order of time to ``[n]``: how much would be lost with each."""


class FeatureNovelty:
    """A grid matters as far as no other kept one is like it: its distance to the nearest.

    Described by its features averaged over a coarse raster, so that where something is counts, and
    projected at random to few dimensions, which keeps distances (Johnson and Lindenstrauss, 1984).
    """

    _RASTER, _DIMENSIONS = 4, 48

    def __init__(self) -> None:
        self._projection: torch.Tensor | None = None
        # What was ranked last, with each row's nearest: a memory changes by a row or two at a time.
        self._ranked = np.empty((0, 0), np.float32)  # [n, d]
        self._likeness = np.empty(0, np.float32)  # [n], to the nearest other one
        self._nearest = np.empty(0, int)  # [n], which row that is

    def describe(self, features: torch.Tensor) -> np.ndarray:
        if self._projection is None or len(self._projection) != features.shape[-1]:
            seeded = torch.Generator().manual_seed(0)
            shape = (features.shape[-1], self._DIMENSIONS)
            self._projection = torch.randn(shape, generator=seeded).to(features.device)
        coarse = torch.nn.functional.adaptive_avg_pool2d(
            features.float().movedim(-1, 0), self._RASTER
        )  # [hidden, 4, 4]
        vector = (coarse.flatten(1).T @ self._projection).flatten()
        return torch.nn.functional.normalize(vector, dim=0).cpu().numpy()

    def rank(self, descriptors: np.ndarray) -> np.ndarray:
        gone = self._row_gone(descriptors)
        if gone is None:
            self._look_for_nearest(descriptors, np.arange(len(descriptors)))
        else:
            self._drop(gone, descriptors)
            self._add_last(descriptors)
        self._ranked = descriptors
        return 1.0 - self._likeness

    def _row_gone(self, descriptors: np.ndarray) -> int | None:
        """Which row went before another came last (``n``: none did); None: something else."""
        before, count = self._ranked, len(descriptors)
        if count < 2 or before.shape[1] != descriptors.shape[1]:
            return None
        if len(before) == count - 1:
            return len(before) if np.array_equal(before, descriptors[:-1]) else None
        if len(before) != count:
            return None
        differs = (before[:-1] != descriptors[:-1]).any(axis=1)
        row = int(differs.argmax()) if differs.any() else count - 1
        return row if np.array_equal(before[row + 1 :], descriptors[row:-1]) else None

    def _drop(self, row: int, descriptors: np.ndarray) -> None:
        """Forget a row; those it was nearest to look for another one."""
        if row >= len(self._nearest):
            return
        self._likeness = np.delete(self._likeness, row)
        self._nearest = np.delete(self._nearest, row)
        bereft = np.flatnonzero(self._nearest == row)
        self._nearest[self._nearest > row] -= 1
        self._look_for_nearest(descriptors[:-1], bereft)

    def _add_last(self, descriptors: np.ndarray) -> None:
        likeness = descriptors[:-1] @ descriptors[-1]
        nearer = likeness > self._likeness
        self._likeness = np.append(np.where(nearer, likeness, self._likeness), likeness.max())
        self._nearest[nearer] = len(likeness)
        self._nearest = np.append(self._nearest, likeness.argmax())

    def _look_for_nearest(self, descriptors: np.ndarray, rows: np.ndarray) -> None:
        if len(self._nearest) != len(descriptors):
            self._likeness = np.full(len(descriptors), -1.0, np.float32)
            self._nearest = np.zeros(len(descriptors), int)
        if not len(rows):
            return
        likeness = descriptors[rows] @ descriptors.T
        likeness[np.arange(len(rows)), rows] = -1.0  # itself
        self._nearest[rows] = likeness.argmax(axis=1)
        self._likeness[rows] = likeness.max(axis=1)


class StarMemory:
    """Level 3: the grids that matter most, by a score over all that are kept."""

    def __init__(self, budget: int, score: ImportanceScore):
        self.budget = budget
        self._score = score
        self._grids: list[Candidate] = []
        self.tokens = 0

    def offer(self, grid: Candidate) -> list[Candidate]:
        """Take a grid in; return those that must go for it, maybe itself."""
        if grid.tokens > self.budget:  # it would push out all the others, and then itself
            return [grid]
        insort(self._grids, grid, key=lambda one: one.number)
        self.tokens += grid.tokens
        gone = []
        while self.tokens > self.budget:
            # Of two that are alike both score low: the later goes, the first sight stays.
            scores = self._scores()
            least = min(range(len(scores)), key=lambda at: (round(float(scores[at]), 6), -at))
            gone.append(self._grids.pop(least))
            self.tokens -= gone[-1].tokens
        return gone

    def _scores(self) -> np.ndarray:
        count = len(self._grids)
        try:
            scores = np.asarray(
                self._score.rank(np.stack([one.descriptor for one in self._grids])), dtype=float
            )
            if scores.shape != (count,) or np.isnan(scores).any():
                raise ValueError(f"rank() gave {scores!r} for {count} grids")
        except Exception as fault:
            # Mid-eviction: an exception in a user-supplied score must not break the stream.
            warnings.warn(
                f"the importance score failed, so the latest frames go: {fault!r}",
                RuntimeWarning,
                stacklevel=2,
            )
            return np.zeros(count)
        return scores

    def __contains__(self, number: int) -> bool:
        return any(one.number == number for one in self._grids)


class Appended(NamedTuple):
    """Tokens appended together, and how many more than is due are evicted for them, if any are."""

    tokens: int
    ahead: int


class EvictorMark(NamedTuple):
    """What a snapshot keeps of the evictor."""

    chunks: int
    later_tokens: int
    sink_size: int
    evictions: int
    tokens_evicted: int


class KVCacheEvictor(EvictorNames):
    """Watches chunks go by and says what must go, and which grids stay when the window passes on.

    Args:
        config: None means that nothing is ever evicted.
        score: level 3's; None: `FeatureNovelty`.
    """

    def __init__(self, config: EvictionConfig | None = None, score: ImportanceScore | None = None):
        if config is not None and not config.max_cache_tokens:
            raise InvalidParameterError(
                "max_cache_tokens is 0, as large as fits: VideoStreamingInference settles that"
            )
        self.config = config
        self._score = score or FeatureNovelty()
        self.clear()

    def clear(self) -> None:
        self._chunks = 0
        self._later_tokens = 0  # of all chunks after the first
        self._sink_size = self.config.sink_size if self.config else 0
        self._descriptors: dict[int, np.ndarray] = {}  # of the grids in the window
        # Tokens of it, of its frames, and of one of its grids.
        self._first_chunk = self._first_vision = self._first_grid = 0
        self._sink_end = 0.0  # source time in seconds
        self._levels: tuple[EvenSample, StarMemory] | None = None
        self.total_evictions = 0
        self.total_tokens_evicted = 0

    @property
    def first_chunk_recorded(self) -> bool:
        return self._chunks > 0

    @property
    def avg_chunk_tokens(self) -> float:
        """Mean length of the chunks after the first, in tokens; 0 before there is one."""
        return self._later_tokens / (self._chunks - 1) if self._chunks > 1 else 0.0

    @property
    def effective_sink_size(self) -> int:
        """Tokens that stay; 0 while an automatic sink awaits its first chunk."""
        return self._sink_size

    @property
    def effective_window_size(self) -> int:
        """Tokens of the recent past that stay."""
        if self.config is None:
            return 0
        left = self.config.max_cache_tokens - self._sink_size - self.room_for_grids
        return min(self.config.window_size or left, left)

    @property
    def sampled_size(self) -> int:
        """Tokens for level 2."""
        return self._share(self.config.shares[0]) if self.config else 0

    @property
    def important_size(self) -> int:
        """Tokens for level 3; where they are chosen here, known with the first chunk."""
        if self.config is None:
            return 0
        size = self._share(self.config.shares[1])
        if self.config.automatic and size:
            size = min(size, self._spare) if self.first_chunk_recorded else 0
            if size < max(1, self._first_grid):  # not one grid would fit
                size = 0
        return size

    @property
    def room_for_grids(self) -> int:
        """Tokens for levels 2 and 3 together."""
        return self.sampled_size + self.important_size

    @property
    def keeps_grids(self) -> bool:
        return self.room_for_grids > 0

    @property
    def reason(self) -> str:
        """Why the cap is shared out as it is."""
        config = self.config
        if config is None:
            return "no cap: nothing is forgotten"
        if not config.keeps_grids and not config.automatic:
            return "sink and window alone"
        if not config.automatic:
            return "shares as given"
        if config.window_size:
            return "novelty: a window_size is given, so sink and window alone"
        if not self.first_chunk_recorded:
            return "novelty: settled with the first chunk"
        if not self.important_size:
            return "novelty: sink and window alone, which have room for hardly more than two chunks"
        if self.important_size == self._spare:
            return "novelty: a window of two chunks, the rest for the frames least like any other"
        return f"novelty: {NOVELTY_SHARE:.0%} for the frames least like any other, then window"

    @property
    def _spare(self) -> int:
        """Tokens that a window of the frames of a few chunks leaves."""
        assert self.config is not None
        # The first chunk's text is more than a later one's, which must fit at any rate.
        least = max(self._first_chunk, NOVELTY_WINDOW_CHUNKS * self._first_vision)
        return self.config.max_cache_tokens - self._sink_size - least

    def __deepcopy__(self, memo: dict[int, Any]) -> KVCacheEvictor:
        """A copy that shares the score: it is the user's, and may hold anything."""
        twin = copy.copy(self)
        memo[id(self)], memo[id(self._score)] = twin, self._score
        twin.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return twin

    def _share(self, share: float) -> int:
        assert self.config is not None
        return math.floor(share * (self.config.max_cache_tokens - self._sink_size))

    @property
    def limit(self) -> int | None:
        """Longest stream after an append, in tokens; None: no limit."""
        if self.config is None:
            return None
        return self._sink_size + self.room_for_grids + self.effective_window_size

    def check_room(
        self,
        tokens: int,
        what: str = "a chunk",
        remedy: str = "lower max_pixels or the frames a chunk",
    ) -> None:
        """Raise CapTooSmallError if ``tokens`` can never be held at once."""
        if self.config is None:
            return
        cap, sink = self.config.max_cache_tokens, self._sink_size
        if not self.first_chunk_recorded:
            # An automatic sink takes the first chunk whole, whatever the window.
            room = sink + self.effective_window_size if sink else cap
            where = f"the memory of {cap} tokens"
        else:
            room = self.effective_window_size
            where = f"the window of {room} tokens (cap {cap}, sink {sink})"
        if tokens > room:
            raise CapTooSmallError(
                f"{what} of {tokens} tokens does not fit into {where}: raise max_cache_tokens, or "
                + remedy
            )

    def record_chunk(self, tokens: int) -> None:
        """Note that a chunk of ``tokens`` was appended."""
        if self._chunks:
            self._later_tokens += tokens
        else:
            self._first_chunk = tokens
            if self.config is not None and not self.config.sink_size:
                self._sink_size = tokens
        self._chunks += 1

    def appended(self, tokens: int) -> Appended:
        """What `due` needs to know of an append made now, whenever its turn comes."""
        interval = self.config.eviction_interval if self.config else 1
        return Appended(tokens, round((interval - 1) * self.avg_chunk_tokens))

    def due(self, length: int, newest: Appended, kept: int = 0) -> int:
        """Tokens that must leave the window of a stream of ``length`` tokens.

        Args:
            newest: its last tokens, which stay.
            kept: tokens of it that levels 2 and 3 keep.
        """
        if self.config is None:
            return 0
        window = length - self._sink_size - kept
        excess = window - self.effective_window_size
        if excess <= 0:
            return 0
        return max(excess, min(excess + newest.ahead, window - newest.tokens))

    def max_due(
        self, length: int, tokens: int, kept: int = 0, waiting: Sequence[Appended] = ()
    ) -> int:
        """What `due` may come to once a chunk of at most ``tokens`` is behind ``length`` others.

        ``waiting``: of those, what was appended last and has not had its turn.
        """
        before = self.mark()
        self.record_chunk(tokens)
        total, length = 0, length - sum(one.tokens for one in waiting)
        for one in (*waiting, self.appended(tokens)):
            length += one.tokens
            total += self.due(length - total, one, kept)
        self.restore(before)
        return total

    def note_grids(self, first: int, features: torch.Tensor, last_seconds: float) -> None:
        """Describe the grids of a chunk while their features are at hand.

        Args:
            first: number of the first grid.
            features: ``[grids, rows, columns, hidden]``.
            last_seconds: the source's time of the chunk's last frame.
        """
        if not self.first_chunk_recorded:
            self._sink_end = last_seconds
            self._first_vision = features.shape[:3].numel()
            self._first_grid = features.shape[1:3].numel()
        wanted = self.config is not None and self.config.shares[1] > 0
        if wanted and (self.important_size or not self.first_chunk_recorded):
            for number, grid in enumerate(features, start=first):
                self._descriptors[number] = self._score.describe(grid)

    def leaves_window(self, number: int, tokens: int, seconds: float) -> set[int]:
        """A whole grid leaves the window: numbers of those to forget for it, maybe its own.

        Offered to level 3 first; what that turns down or pushes out may still serve level 2.
        """
        sampled, important = self._kept_levels()
        descriptor = self._descriptors.pop(number, np.empty(0))
        grid = Candidate(number, tokens, seconds, descriptor)
        offered = important.offer(grid) if important.budget else [grid]
        return {
            gone.number
            for one in offered
            for gone in (sampled.offer(one, self._sink_end, seconds) if sampled.budget else [one])
        }

    def level_of(self, number: int) -> str:
        """Which level keeps a grid that is neither in the sink nor in the window."""
        return "important" if number in self._kept_levels()[1] else "sampled"

    def _kept_levels(self) -> tuple[EvenSample, StarMemory]:
        if self._levels is None:
            self._levels = (
                EvenSample(self.sampled_size),
                StarMemory(self.important_size, self._score),
            )
        return self._levels

    def record_eviction(self, tokens: int) -> None:
        self.total_evictions += 1
        self.total_tokens_evicted += tokens
        log.info("eviction %d: %d tokens forgotten", self.total_evictions, tokens)

    def mark(self) -> EvictorMark:
        return EvictorMark(
            self._chunks,
            self._later_tokens,
            self._sink_size,
            self.total_evictions,
            self.total_tokens_evicted,
        )

    def restore(self, mark: EvictorMark) -> None:
        self._chunks, self._later_tokens, self._sink_size = mark[:3]
        self.total_evictions, self.total_tokens_evicted = mark[3:]
