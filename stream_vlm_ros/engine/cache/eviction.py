# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What to forget: arithmetic on lengths, times and small descriptors; no cache is touched here.

Level 1 keeps a *sink* (the stream's first tokens, which attention leans on) and a *window* (its
last), as in StreamingLLM (Xiao et al., 2023), token-exact. Of what leaves the window, level 2 keeps
whole temporal grids spread evenly over time, and level 3 those that matter most, by default the
ones least like any other (the star memory of streaming video models).
"""

from __future__ import annotations

import math
import operator
import warnings
from bisect import insort
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple, Protocol, TypeGuard

import numpy as np
import torch

from stream_vlm_ros.config import AUTO as AUTO
from stream_vlm_ros.config import NOVELTY_SHARE, NOVELTY_WINDOW_CHUNKS
from stream_vlm_ros.config import EvictionConfig as EvictionConfig
from stream_vlm_ros.engine.copies import arrival, to_host
from stream_vlm_ros.engine.reference_names import EvictorNames
from stream_vlm_ros.errors import CapTooSmallError, InvalidParameterError, in_words


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

    def __init__(self, budget: int, grids: Sequence[Candidate] = ()):
        self.budget = budget
        self._grids = list(grids)
        self.tokens = sum(map(operator.attrgetter("tokens"), grids))

    @property
    def grids(self) -> tuple[Candidate, ...]:
        return tuple(self._grids)

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
        # A memory changes by a row or two at a time. Replaced as a whole: whatever interrupts
        # `rank`, what is here fits together.
        self._last = _Ranked.of(())

    def describe(self, features: torch.Tensor) -> np.ndarray:
        return self.project(features).cpu().numpy()

    def project(self, features: torch.Tensor) -> torch.Tensor:
        """`describe`, on the features' device."""
        if self._projection is None or len(self._projection) != features.shape[-1]:
            seeded = torch.Generator().manual_seed(0)
            shape = (features.shape[-1], self._DIMENSIONS)
            self._projection = torch.randn(shape, generator=seeded).to(features.device)
        coarse = torch.nn.functional.adaptive_avg_pool2d(
            features.float().movedim(-1, 0), self._RASTER
        )  # [hidden, 4, 4]
        vector = (coarse.flatten(1).T @ self._projection).flatten()
        return torch.nn.functional.normalize(vector, dim=0)

    def rank(self, descriptors: np.ndarray) -> np.ndarray:
        return self._ranked(tuple(descriptors), np.array_equal)

    def rank_rows(self, rows: Sequence[np.ndarray]) -> np.ndarray:
        """`rank` of descriptors that are never changed: known again without a look at them."""
        return self._ranked(tuple(rows), operator.is_)

    def _ranked(self, rows: tuple[np.ndarray, ...], same: _Same) -> np.ndarray:
        self._last = self._last.followed(rows, same) or _Ranked.of(rows)
        return 1.0 - self._last.likeness


def _is_own(score: ImportanceScore, method: str) -> TypeGuard[FeatureNovelty]:
    """Whether it does that as `FeatureNovelty`, and is no user's class that overrides it."""
    its = getattr(type(score), method, None)
    return isinstance(score, FeatureNovelty) and its is getattr(FeatureNovelty, method)


_Same = Callable[[np.ndarray, np.ndarray], bool]


class _Ranked(NamedTuple):
    """What was ranked last, with each row's nearest."""

    rows: tuple[np.ndarray, ...]
    table: np.ndarray  # [n - 1, d], the same but for the last: that one may go at once
    likeness: np.ndarray  # [n], to the nearest other one
    nearest: np.ndarray  # [n], which row that is

    @classmethod
    def of(cls, rows: tuple[np.ndarray, ...]) -> _Ranked:
        table = np.stack(rows) if rows else np.empty((0, 0), np.float32)
        return cls(rows, table[:-1], *_look_for_nearest(table, np.arange(len(table))))

    def followed(self, rows: tuple[np.ndarray, ...], same: _Same) -> _Ranked | None:
        """Once at most one row went and then another came last; None: something else happened."""
        before, others = self.rows, rows[:-1]
        missing = len(before) - len(others)
        if not others or missing not in (0, 1):
            return None
        matches = [*map(same, before, others)]
        gone = matches.index(False) if False in matches else len(others)
        if not all(map(same, before[gone + missing :], others[gone:])):
            return None
        table, likeness, nearest = self.table, self.likeness, self.nearest
        if gone + missing < len(before) or not missing:
            table = np.concatenate([table[:gone], table[gone + missing :], before[-1][None]])
        if missing:
            likeness, nearest = np.delete(likeness, gone), np.delete(nearest, gone)
            bereft = np.flatnonzero(nearest == gone)
            nearest[nearest > gone] -= 1
            likeness[bereft], nearest[bereft] = _look_for_nearest(table, bereft)
        to_last = table @ rows[-1]
        nearer = to_last > likeness
        likeness = np.append(np.where(nearer, to_last, likeness), to_last.max())
        nearest = np.append(np.where(nearer, len(to_last), nearest), to_last.argmax())
        return _Ranked(rows, table, likeness, nearest)


def _look_for_nearest(table: np.ndarray, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of some rows of a table the likeness to the nearest other one, and which that is."""
    likeness = table[rows] @ table.T
    likeness[np.arange(len(rows)), rows] = -1.0  # itself
    if not len(rows):
        return np.empty(0, likeness.dtype), np.empty(0, int)
    return likeness.max(axis=1), likeness.argmax(axis=1)


class StarMemory:
    """Level 3: the grids that matter most, by a score over all that are kept."""

    def __init__(self, budget: int, score: ImportanceScore, grids: Sequence[Candidate] = ()):
        self.budget = budget
        self._score = score
        self._grids = list(grids)
        self.tokens = sum(map(operator.attrgetter("tokens"), grids))

    @property
    def grids(self) -> tuple[Candidate, ...]:
        return tuple(self._grids)

    def offer(self, grid: Candidate) -> list[Candidate]:
        """Take a grid in; return those that must go for it, maybe itself."""
        if grid.tokens > self.budget:  # it would push out all the others, and then itself
            return [grid]
        insort(self._grids, grid, key=lambda one: one.number)
        self.tokens += grid.tokens
        gone = []
        while self.tokens > self.budget:
            # Of two that are alike both score low: the later goes, the first sight stays.
            scores = np.round(self._scores(), 6)
            least = int(np.flatnonzero(scores == scores.min())[-1])
            gone.append(self._grids.pop(least))
            self.tokens -= gone[-1].tokens
        return gone

    def _scores(self) -> np.ndarray:
        count = len(self._grids)
        try:
            rows = [*map(operator.attrgetter("descriptor"), self._grids)]
            # (A class of a user's that ranks otherwise inherits `rank_rows`.)
            if _is_own(self._score, "rank"):
                ranked = self._score.rank_rows(rows)
            else:
                ranked = self._score.rank(np.stack(rows))
            scores = np.asarray(ranked, dtype=float)
            if scores.shape != (count,) or np.isnan(scores).any():
                raise ValueError(f"rank() gave {scores!r} for {count} grids")
        except (MemoryError, torch.OutOfMemoryError):
            raise  # not the score's own: the chunk may come again when there is room
        except Exception as fault:
            # A score that always fails must not break the stream.
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
    """Tells two states of an evictor's figures apart."""

    chunks: int
    later_tokens: int
    sink_size: int
    evictions: int
    tokens_evicted: int


class Described(NamedTuple):
    """What the evictor is to know of a chunk's frames; see `KVCacheEvictor.describe`."""

    descriptors: Mapping[int, np.ndarray]  # of its grids, by their numbers
    tokens: int
    grid_tokens: int
    last_seconds: float  # of its last frame, in the source's time


@dataclass(frozen=True, eq=False)
class EvictorState:
    """What an evictor has seen, and which grids it keeps. Never changed: what changes is another.

    Attributes:
        sink_size: tokens that stay; 0 while an automatic sink awaits its first chunk.
        chunks: chunks recorded.
        later_tokens: of all chunks after the first.
        first_chunk, first_vision, first_grid: tokens of the first chunk, of its frames, and of one
            of its grids.
        sink_end: the source's time of its last frame, in seconds.
        sampled, important: the grids that levels 2 and 3 keep, in order of time.
        descriptors: of the grids in the window, by number.
        evictions, tokens_evicted: how often something was forgotten, and how much.
    """

    sink_size: int = 0
    chunks: int = 0
    later_tokens: int = 0
    first_chunk: int = 0
    first_vision: int = 0
    first_grid: int = 0
    sink_end: float = 0.0
    sampled: tuple[Candidate, ...] = ()
    important: tuple[Candidate, ...] = ()
    descriptors: Mapping[int, np.ndarray] = field(default_factory=dict)
    evictions: int = 0
    tokens_evicted: int = 0


class HoldsEvictor(Protocol):
    """Where an evictor finds its state, and puts the next one."""

    evictor: EvictorState


@dataclass
class HeldAlone:
    """A state that nothing else goes with."""

    evictor: EvictorState


class KVCacheEvictor(EvictorNames):
    """Watches chunks go by and says what must go, and which grids stay when the window passes on.

    Args:
        config: None means that nothing is ever evicted.
        score: level 3's; None: `FeatureNovelty`.
        holder: where its state is; None: its own.
    """

    def __init__(
        self,
        config: EvictionConfig | None = None,
        score: ImportanceScore | None = None,
        holder: HoldsEvictor | None = None,
    ):
        if config is not None and not config.max_cache_tokens:
            raise InvalidParameterError(
                "max_cache_tokens is 0, as large as fits: VideoStreamingInference settles that"
            )
        self.config = config
        self.score = score or FeatureNovelty()
        self._holder = holder or HeldAlone(self.first_state(config))

    @staticmethod
    def first_state(config: EvictionConfig | None) -> EvictorState:
        """Before the first chunk."""
        return EvictorState(sink_size=config.sink_size if config else 0)

    def over(self, holder: HoldsEvictor) -> KVCacheEvictor:
        """The same rules for another state."""
        return KVCacheEvictor(self.config, self.score, holder)

    @property
    def state(self) -> EvictorState:
        return self._holder.evictor

    def _change(self, **changes: Any) -> None:
        self._holder.evictor = replace(self.state, **changes)

    @property
    def total_evictions(self) -> int:
        """How often something was forgotten."""
        return self.state.evictions

    @property
    def total_tokens_evicted(self) -> int:
        return self.state.tokens_evicted

    @property
    def first_chunk_recorded(self) -> bool:
        return self.state.chunks > 0

    @property
    def avg_chunk_tokens(self) -> float:
        """Mean length of the chunks after the first, in tokens; 0 before there is one."""
        state = self.state
        return state.later_tokens / (state.chunks - 1) if state.chunks > 1 else 0.0

    @property
    def effective_sink_size(self) -> int:
        """Tokens that stay; 0 while an automatic sink awaits its first chunk."""
        return self.state.sink_size

    @property
    def effective_window_size(self) -> int:
        """Tokens of the recent past that stay."""
        if self.config is None:
            return 0
        left = self.config.max_cache_tokens - self.state.sink_size - self.room_for_grids
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
            if size < max(1, self.state.first_grid):  # not one grid would fit
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
        state = self.state
        # The first chunk's text is more than a later one's, which must fit at any rate.
        least = max(state.first_chunk, NOVELTY_WINDOW_CHUNKS * state.first_vision)
        return self.config.max_cache_tokens - state.sink_size - least

    def _share(self, share: float) -> int:
        assert self.config is not None
        return math.floor(share * (self.config.max_cache_tokens - self.state.sink_size))

    @property
    def limit(self) -> int | None:
        """Longest stream after an append, in tokens; None: no limit."""
        if self.config is None:
            return None
        return self.state.sink_size + self.room_for_grids + self.effective_window_size

    def check_room(
        self,
        tokens: int,
        what: str = "a chunk",
        remedy: str = "lower max_pixels or the frames a chunk",
    ) -> None:
        """Raise CapTooSmallError if ``tokens`` can never be held at once."""
        if self.config is None:
            return
        cap, sink = self.config.max_cache_tokens, self.state.sink_size
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

    def record_chunk(self, tokens: int, frames: Described | None = None) -> None:
        """Note that a chunk of ``tokens`` was appended, and what is known of its frames."""
        state = self.state
        if not state.chunks:
            state = replace(state, first_chunk=tokens)
            if self.config is not None and not self.config.sink_size:
                state = replace(state, sink_size=tokens)
            if frames is not None:
                state = replace(
                    state,
                    first_vision=frames.tokens,
                    first_grid=frames.grid_tokens,
                    sink_end=frames.last_seconds,
                )
        else:
            state = replace(state, later_tokens=state.later_tokens + tokens)
        if frames is not None:
            descriptors = {**state.descriptors, **frames.descriptors}
            state = replace(state, descriptors=descriptors)
        self._holder.evictor = replace(state, chunks=state.chunks + 1)

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
        window = length - self.state.sink_size - kept
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
        then = self.over(HeldAlone(self.state))
        then.record_chunk(tokens)
        total, length = 0, length - sum(one.tokens for one in waiting)
        for one in (*waiting, then.appended(tokens)):
            length += one.tokens
            total += then.due(length - total, one, kept)
        return total

    @property
    def _describes(self) -> bool:
        """Whether it is to know what frames look like."""
        wanted = self.config is not None and self.config.shares[1] > 0
        return wanted and bool(self.important_size or not self.first_chunk_recorded)

    @property
    def describes_early(self) -> bool:
        """Whether no user's score describes or ranks the frames: it hears of none that is not
        appended."""
        own = _is_own(self.score, "describe") and _is_own(self.score, "rank")
        return own or not self._describes

    def describe(
        self, first: int, features: torch.Tensor, last_seconds: float
    ) -> Callable[[], Described]:
        """What to remember of a chunk's frames, while their features are at hand.

        Args:
            first: number of the first grid.
            features: ``[grids, rows, columns, hidden]``.
            last_seconds: the source's time of the chunk's last frame.

        Returns:
            What gives it. Where `describes_early` it waits for no more than the features;
            otherwise it is to be called once the device has done what it was given. A grid that a
            user's score cannot describe is told of, and never among the important.
        """
        sizes = features.shape[:3].numel(), features.shape[1:3].numel()
        if not self._describes:
            return lambda: Described({}, *sizes, last_seconds)
        tell: Callable[[int], np.ndarray | None]
        wait = lambda: None  # noqa: E731
        if _is_own(self.score, "describe"):
            projected = [to_host(self.score.project(grid)) for grid in features]
            tell, wait = lambda number: projected[number].numpy(), arrival(features.device)
        else:
            tell = lambda number: self._described(features[number])  # noqa: E731

        def described() -> Described:
            wait()
            told = {first + number: tell(number) for number in range(len(features))}
            known = {number: one for number, one in told.items() if one is not None}
            return Described(known, *sizes, last_seconds)

        return described

    def _described(self, grid: torch.Tensor) -> np.ndarray | None:
        try:
            if (told := self.score.describe(grid)) is None:
                raise ValueError("describe() gave None")
            return told
        except (MemoryError, torch.OutOfMemoryError):
            raise  # not the score's own: the chunk may come again when there is room
        except Exception as fault:  # a user's score raises anything, and must not break the stream
            warnings.warn(
                "the importance score cannot describe a frame, which is kept only as long as the "
                f"window: {in_words(fault)}",
                RuntimeWarning,
                stacklevel=2,
            )
            return None

    def leaves_window(self, number: int, tokens: int, seconds: float) -> set[int]:
        """A whole grid leaves the window: numbers of those to forget for it, maybe its own.

        Offered to level 3 first; what that turns down or pushes out may still serve level 2.
        """
        state, descriptors = self.state, dict(self.state.descriptors)
        described = number in descriptors
        grid = Candidate(number, tokens, seconds, descriptors.pop(number, np.empty(0)))
        sampled = EvenSample(self.sampled_size, state.sampled)
        important = StarMemory(self.important_size, self.score, state.important)
        offered = important.offer(grid) if important.budget and described else [grid]
        gone = {
            other.number
            for one in offered
            for other in (sampled.offer(one, state.sink_end, seconds) if sampled.budget else [one])
        }
        self._change(descriptors=descriptors, sampled=sampled.grids, important=important.grids)
        return gone

    def record_eviction(self, tokens: int) -> None:
        state = self.state
        counts = state.evictions + 1, state.tokens_evicted + tokens
        self._change(evictions=counts[0], tokens_evicted=counts[1])

    def mark(self) -> EvictorMark:
        state = self.state
        return EvictorMark(
            state.chunks,
            state.later_tokens,
            state.sink_size,
            state.evictions,
            state.tokens_evicted,
        )
