# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the engines return: typed, frozen, and answering ``[...]`` with the reference's keys.

A script of the reference reads ``metrics["total_latency"]``; code of ours reads
``metrics.latency``. Both are one value here, and a name that is not there is a `KeyError` or an
`AttributeError`, never a plausible default.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NoReturn

_GIB, _MIB = 1024**3, 1024**2

TimeSpans = tuple[tuple[float, float], ...]


class Record(dict[str, Any]):
    """A frozen dataclass that is a dictionary of its fields, too, so that ``json`` can write it.

    (Each is made with ``eq=False``, to keep a dictionary's equality.)

    Attributes:
        derived: names of properties that belong to the dictionary, besides the fields.
        aliases: further keys of ``[...]``, the reference's, and the names they stand for. They are
            not part of the dictionary's iteration, so nothing is written twice.
    """

    derived: ClassVar[tuple[str, ...]] = ()
    aliases: ClassVar[Mapping[str, str]] = {}

    def __post_init__(self) -> None:
        names = (*_fields(self), *self.derived)
        super().update((name, getattr(self, name)) for name in names)

    def __missing__(self, key: str) -> Any:
        if key in self.aliases:
            return self[self.aliases[key]]
        raise KeyError(f"{type(self).__name__} has no {key!r}; it has {', '.join(self)}")

    def __contains__(self, key: object) -> bool:
        return key in self.aliases or super().__contains__(key)

    def get(self, key: str, default: Any = None) -> Any:
        return super().get(self.aliases.get(key, key), default)

    def __reduce__(self) -> tuple[Any, ...]:  # copy and pickle would set items, which is refused
        return partial(type(self), **{name: self[name] for name in _fields(self)}), ()

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(f"{type(self).__name__} cannot be changed")

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionaries and lists all the way down, for JSON."""
        return {name: _plain(value) for name, value in self.items()}


def _fields(record: Record) -> tuple[str, ...]:
    return tuple(field.name for field in dataclasses.fields(record))  # type: ignore[arg-type]


def _plain(value: Any) -> Any:
    if isinstance(value, Record):
        return value.as_dict()
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        return [_plain(item) for item in value]
    return value


@dataclass(frozen=True, eq=False, kw_only=True)
class ChunkResult(Record):
    """What came of a chunk. Latencies in seconds.

    Attributes:
        tokens: appended to the stream.
        evicted_tokens: forgotten for them.
        cache_length: tokens in the stream after it.
        latency: of the whole call; ``encode_latency`` of the vision tower and what comes before it.
        grid: temporal grids, rows and columns of tokens.
        closed_seconds: of pauses before or within it that positions leave out (0: of none).
    """

    tokens: int
    evicted_tokens: int
    cache_length: int
    latency: float
    encode_latency: float
    grid: tuple[int, int, int]
    closed_seconds: float = 0.0


class Spanned:
    """Has ``time_spans``: the stamps of their first and last frame, None without any."""

    time_spans: TimeSpans

    @property
    def oldest_timestamp(self) -> float | None:
        return self.time_spans[0][0] if self.time_spans else None

    @property
    def newest_timestamp(self) -> float | None:
        return self.time_spans[-1][1] if self.time_spans else None


@dataclass(frozen=True, eq=False, kw_only=True)
class EvidenceEpisode(Record):
    """A stretch of time that fits a question.

    Attributes:
        start, end: the source's stamps of its first and last frame, in seconds.
        score: how well it fits; higher is better, and comparable within one question alone. 0 of
            all that was read without a search.
        tier: where it was held: ``memory`` (the KV memory) or ``history`` (what that let go).
        stamps: of those of its frames that stand for it, rising, at most 6.
    """

    start: float
    end: float
    score: float
    tier: str
    stamps: tuple[float, ...] = ()

    def spread(self, count: int) -> tuple[float, ...]:
        """So many of the stamps, evenly: first, last and others, or the middle one; at most all."""
        stamps = self.stamps
        if count >= len(stamps):
            return stamps
        if count == 1:
            return (stamps[len(stamps) // 2],)
        return tuple(stamps[round(k * (len(stamps) - 1) / (count - 1))] for k in range(count))


@dataclass(frozen=True, eq=False, kw_only=True)
class Evidence(Spanned, Record):
    """What an answer rests on.

    Attributes:
        cache_length: tokens of the stream that it was read from.
        time_spans: the unbroken stretches of time in memory, oldest first: the source's stamps of
            their first and last frame, in seconds.
        episodes: what of the past the answer names, oldest first, at most three; none where there
            is no history, or none was searched, and then it rests on all of the memory.
    """

    derived: ClassVar[tuple[str, ...]] = ("oldest_timestamp", "newest_timestamp")

    cache_length: int
    time_spans: TimeSpans
    episodes: tuple[EvidenceEpisode, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class QuestionMetrics(Evidence):
    """What every question costs. Times in seconds.

    Attributes:
        ttft: from the call to the first token.
        latency: from the call to the whole answer.
        prompt_tokens: of the question, with the chat template's words around it.
        fetched_tokens: of a history that were read for it; 0: the memory alone answered.
        search_latency, fetch_latency: of ``latency``, for searching the history, and for fetching
            and reading what was found.
    """

    aliases: ClassVar[Mapping[str, str]] = {"total_latency": "latency"}

    ttft: float
    latency: float
    prompt_tokens: int
    fetched_tokens: int = 0
    search_latency: float = 0.0
    fetch_latency: float = 0.0


@dataclass(frozen=True, eq=False, kw_only=True)
class AnswerMetrics(QuestionMetrics):
    """Of an answer that was written.

    Attributes:
        answer_tokens: that were decoded.
        finish_reason: ``stop``, ``length`` or ``cancelled``.
        token_ids: of those tokens, a stop text's with them.
        token_logprobs: the model's own log-probability of each, whatever temperature, ``top_p`` or
            penalty chose it.
    """

    aliases: ClassVar[Mapping[str, str]] = {
        **QuestionMetrics.aliases,
        "output_tokens": "answer_tokens",
    }

    answer_tokens: int
    finish_reason: str
    token_ids: tuple[int, ...] = ()
    token_logprobs: tuple[float, ...] = ()


@dataclass(frozen=True, eq=False, kw_only=True)
class ChoiceMetrics(QuestionMetrics):
    """Of a choice between given answers.

    Attributes:
        choice_index: which one, from 0.
        scores: log-probability of each as the whole answer.
        choice_tokens: tokens of each that its score is the sum of, with the end of the turn.
        mean_scores: the scores a token, for choices of unlike lengths.
    """

    derived: ClassVar[tuple[str, ...]] = (*QuestionMetrics.derived, "mean_scores")

    choice_index: int
    scores: tuple[float, ...]
    choice_tokens: tuple[int, ...]

    @property
    def mean_scores(self) -> tuple[float, ...]:
        return tuple(s / n for s, n in zip(self.scores, self.choice_tokens, strict=True))


@dataclass(frozen=True, eq=False, kw_only=True)
class LevelInfo(Record):
    """What one level of the memory holds: its tokens, temporal grids and frames.

    ``time_spans`` are the stamps of the oldest and newest frame of each unbroken stretch.
    """

    tokens: int
    grids: int
    frames: int
    time_spans: TimeSpans


@dataclass(frozen=True, eq=False, kw_only=True)
class EvictionStats(Record):
    """What was forgotten since the start or the last reset."""

    total_evictions: int
    total_tokens_evicted: int


@dataclass(frozen=True, eq=False, kw_only=True)
class CacheInfo(Spanned, Record):
    """The memory as it stands: lengths in tokens, sizes in bytes, times in seconds.

    Attributes:
        cache_seq_length: tokens in the stream, at most ``max_cache_tokens`` (None: no bound), but
            for up to ``fork_slack_tokens`` while an answer is being written.
        cache_memory_bytes: of their keys and values; ``reserved_memory_bytes``: taken for them.
        sink_size, window_size, sampled_size, important_size: how much each level may hold (None
            before the first chunk decides); ``shares_reason``: why.
        avg_chunk_tokens: running mean over the chunks after the first.
        chunks, frames, exchanges: appended since the start or the last reset; to a memory that was
            loaded, those before it was saved, too.
        closed_pauses: pauses that positions leave out since then, and ``closed_seconds`` of them.
        positions: that the stream spans as the model sees it.
        grids_in_memory: temporal grids that are held.
        levels: what of them ``sink``, ``sampled``, ``important`` and ``window`` hold.
        time_spans: the unbroken stretches of time in memory.
        oldest_timestamp, newest_timestamp: the source's, None before any frame.
    """

    derived: ClassVar[tuple[str, ...]] = (
        "cache_memory_gb",
        "cache_memory_mb",
        "oldest_timestamp",
        "newest_timestamp",
    )

    cache_seq_length: int
    cache_memory_bytes: int
    reserved_memory_bytes: int
    max_cache_tokens: int | None
    fork_slack_tokens: int
    sink_size: int | None
    window_size: int | None
    sampled_size: int | None
    important_size: int | None
    shares_reason: str
    avg_chunk_tokens: float
    chunks: int
    frames: int
    exchanges: int
    closed_pauses: int = 0
    closed_seconds: float = 0.0
    positions: int = 0
    grids_in_memory: int
    levels: Mapping[str, LevelInfo]
    time_spans: TimeSpans
    eviction_stats: EvictionStats

    @property
    def cache_memory_gb(self) -> float:
        """In GiB, as the reference has it."""
        return self.cache_memory_bytes / _GIB

    @property
    def cache_memory_mb(self) -> float:
        """In MiB, as the reference has it."""
        return self.cache_memory_bytes / _MIB


@dataclass(frozen=True, eq=False, kw_only=True)
class WarmUp(Record):
    """What was made ready before the first question.

    Attributes:
        path: how questions run: ``eager``, ``static`` or ``graph``.
        reason: why not as asked for; empty if so.
        seconds, bytes: of the device that it took.
    """

    path: str
    reason: str
    seconds: float
    bytes: int


@dataclass(frozen=True, eq=False, kw_only=True)
class SavedMemory(Spanned, Record):
    """A memory in a file.

    Attributes:
        tokens, frames: held, and appended since the start.
        time_spans: the unbroken stretches of time in it, oldest first, in the engine's seconds.
        saved_at: when it was copied, in seconds since 1970.
        bytes: of the file.
        origin_ns: the source's time at the engine's second 0, in nanoseconds.
        frame_id: of the newest frame.
        course: tells a history whether it is the one of this memory; 0: the memory had none.
    """

    derived: ClassVar[tuple[str, ...]] = ("oldest_timestamp", "newest_timestamp")

    tokens: int
    frames: int
    time_spans: TimeSpans
    saved_at: float
    bytes: int
    origin_ns: int = 0
    frame_id: str = ""
    course: int = 0
