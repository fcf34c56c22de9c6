# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The stream's memory as one: buffer, ledger, evictor, and the forks that read it.

A chunk or a question runs on a `requests.Fork`, whose own tokens go to a small tail while attention
sees stream and tail. Committing a fork copies its tail into the `buffer.KVBuffer`, over what the
`eviction.KVCacheEvictor` forgets, and enters it in the `ledger.PositionLedger`. Nothing that a
living fork reads is overwritten: see `KVCacheManager.commit`.
"""

from __future__ import annotations

import copy
import logging
import math
import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from stream_vlm_ros.engine.attention.base import KVPart
from stream_vlm_ros.engine.cache.buffer import KVBuffer, KVShape
from stream_vlm_ros.engine.cache.eviction import (
    Appended,
    EvictionConfig,
    EvictorMark,
    ImportanceScore,
    KVCacheEvictor,
)
from stream_vlm_ros.engine.cache.ledger import LedgerMark, PositionLedger, Stretch
from stream_vlm_ros.engine.cache.mrope import ZERO, MultimodalRotary, Span
from stream_vlm_ros.engine.cache.requests import Fork, TailPool
from stream_vlm_ros.engine.inputs.timeline import Timeline
from stream_vlm_ros.engine.inputs.token_reduction import Known
from stream_vlm_ros.engine.reference_names import ManagerNames
from stream_vlm_ros.engine.results import LevelInfo, TimeSpans
from stream_vlm_ros.errors import (
    BudgetExceededError,
    InvalidParameterError,
    SnapshotEvictedError,
    StreamBusyError,
)

log = logging.getLogger(__name__)

# Of a manager without a model: lengths and nothing to see.
_NO_KEYS = KVShape(layers=1, kv_heads=1, head_dim=2, dtype=torch.float32)


@dataclass(frozen=True)
class StreamState:
    """Where the stream stands, besides its tokens. Replaced as a whole, never changed.

    Attributes:
        chunks: chunks appended.
        frames: frames appended (without the repeated last of an odd chunk).
        first_stamp: source time of the first frame in seconds, None before it.
        last_stamp: source time of the newest frame.
        open_segment: a vision segment stands open: more frames continue it.
        exchanges: question-answer pairs kept in the stream.
        timeline: where the grids so far lie on the t axis, and the pauses that were closed.
        known: what tokens that say nothing new are compared with, where such are left out.
    """

    chunks: int = 0
    frames: int = 0
    first_stamp: float | None = None
    last_stamp: float | None = None
    open_segment: bool = False
    exchanges: int = 0
    timeline: Timeline = field(default_factory=Timeline)
    known: Known | None = field(default=None, compare=False, repr=False)


@dataclass(frozen=True)
class Snapshot:
    """A point in the stream to come back to: a few integers, no copy of any key."""

    ledger: LedgerMark
    evictor: EvictorMark
    state: StreamState


@dataclass(frozen=True)
class Clone:
    """A copy of the whole memory that survives eviction and `KVCacheManager.clear`."""

    buffer: KVBuffer
    ledger: PositionLedger
    evictor: KVCacheEvictor
    state: StreamState
    waiting: tuple[Appended, ...]

    @property
    def nbytes(self) -> int:
        return self.buffer.nbytes


class KVCacheManager(ManagerNames):
    """The stream's memory: its keys and values, their positions, and what is forgotten.

    Args:
        shape, rotary: size of the model's KV, and its rotation. Without them it holds lengths
            and no keys: see `track_tokens`.
        config: the cap; None: nothing is evicted and the buffer doubles as it fills.
        device: where the memory lies.
        position_policy: ``contiguous`` or ``keep_gaps``, see `mrope`.
        max_tail_tokens: room for a question with its answer.
        fork_slack_tokens: slots beyond the cap, so that chunks can go on while an answer that
            reads the memory is being written.
        importance: level 3's score; None: `FeatureNovelty`.

    Attributes:
        first_capacity: tokens that the buffer has room for at first, where no cap says more.
    """

    # What forks and answers ask for, computed once and kept until the stream changes.
    _parts: list[KVPart] | None
    _time_spans: TimeSpans | None

    first_capacity = 4096

    def __init__(
        self,
        shape: KVShape | None = None,
        rotary: MultimodalRotary | None = None,
        config: EvictionConfig | None = None,
        device: torch.device | None = None,
        position_policy: str = "contiguous",
        max_tail_tokens: int = 2048,
        fork_slack_tokens: int = 0,
        importance: ImportanceScore | None = None,
    ):
        self.of_model = shape is not None and rotary is not None
        if shape is None or rotary is None:
            shape, rotary = _NO_KEYS, MultimodalRotary(1.0, [0])
        device = torch.device("cpu") if device is None else device
        self.shape, self._rotary, self._device = shape, rotary, device
        self._last_snapshot: Snapshot | None = None
        self.max_tail_tokens, self.fork_slack_tokens = max_tail_tokens, fork_slack_tokens
        self.evictor = KVCacheEvictor(config, importance)
        self.ledger = PositionLedger(position_policy)
        self.state = StreamState()
        capacity = self.first_capacity if config is None else config.max_cache_tokens
        long_lived = None
        if config is not None and config.keeps_grids and position_policy == "contiguous":
            share, tokens = config.long_lived
            long_lived = math.ceil(share * capacity + tokens)
        self._buffer = KVBuffer(
            shape,
            capacity + fork_slack_tokens,
            device,
            originals=long_lived,
        )
        self._tails = TailPool(shape, device, max_tail_tokens)
        self._forks: weakref.WeakSet[Fork] = weakref.WeakSet()
        self._waiting: list[Appended] = []  # what has been appended and not yet evicted for
        self._changed()
        self._followers: weakref.WeakSet[Any] = weakref.WeakSet()

    # -- reading -----------------------------------------------------------------------------

    @property
    def waiting(self) -> Sequence[Appended]:
        """Appends that nothing was evicted for yet: see `commit`."""
        return self._waiting

    def get_seq_length(self) -> int:
        """Tokens in the stream."""
        return self._buffer.length

    @property
    def last_cache_position(self) -> int:
        """Index of the newest token among all ever appended; -1 before the first."""
        return self.ledger.length + self.ledger.evicted - 1

    @property
    def rope_delta(self) -> int:
        """Next text position (largest axis) less the stream's length, as the library counts it."""
        return max(self.ledger.next_position) - self.get_seq_length()

    @property
    def rotates_long_lived(self) -> bool:
        """Keys of sink and kept grids are rotated again at each eviction, instead of the query."""
        return self._buffer.rotates_base

    @property
    def live_bytes(self) -> int:
        """Bytes of the keys and values in the stream."""
        return self.get_seq_length() * self.shape.bytes_per_token

    @property
    def memory(self) -> torch.Tensor:
        """Where the stream lies, ``[layers, 2, kv_heads, slots, head_dim]``."""
        return self._buffer.data

    @property
    def question_tail(self) -> torch.Tensor:
        """Where one question at a time finds its tail, ``[layers, 2, kv_heads, slots, head_dim]``.

        (The last slot is beyond ``max_tail_tokens``, for what nobody reads.)
        """
        return self._tails.question_tail[:, :, 0]

    @property
    def stream_bytes(self) -> int:
        """Bytes taken for the stream, its second copy of long-lived keys included."""
        return self._buffer.nbytes

    @property
    def reserved_bytes(self) -> int:
        """Bytes taken for stream and tails together."""
        return self.stream_bytes + self._tails.reserved_bytes

    def follow(self, follower: Any) -> None:
        """Call its ``memory_replaced()`` when `memory` is another tensor, as long as it lives."""
        self._followers.add(follower)

    def _memory_replaced(self) -> None:
        for follower in list(self._followers):
            follower.memory_replaced()

    def gather(self) -> torch.Tensor:
        """A copy of the stream, oldest first: ``[layers, 2, kv_heads, length, head_dim]``."""
        return self._buffer.data[:, :, :, self._buffer.order().to(self._device)]

    def build_full_attention_mask(
        self, query_length: int, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """The additive mask of ``query_length`` new tokens, ``[1, 1, query_length, all]``.

        For attention functions that need one: 0 where a token is seen (the whole stream, and new
        tokens up to itself), the dtype's lowest value elsewhere.
        """
        past = self.get_seq_length()
        mask = torch.full(
            (query_length, past + query_length),
            torch.finfo(dtype).min,
            dtype=dtype,
            device=self._device,
        )
        return mask.triu(past + 1)[None, None]

    def time_spans(self) -> TimeSpans:
        """See `PositionLedger.time_spans`."""
        if self._time_spans is None:
            self._time_spans = tuple(self.ledger.time_spans())
        return self._time_spans

    def levels(self) -> dict[str, LevelInfo]:
        """What each level of the memory holds, by its name."""
        held: dict[str, list[Stretch]] = {}
        for stretch in self.ledger.stretches():
            level = stretch.level
            if level == "kept":
                level = self.evictor.level_of(stretch.first_grid)
            held.setdefault(level, []).append(stretch)
        return {
            level: LevelInfo(
                tokens=sum(stretch.tokens for stretch in stretches),
                grids=sum(stretch.grids for stretch in stretches),
                frames=sum(stretch.frames for stretch in stretches),
                time_spans=tuple((stretch.oldest, stretch.newest) for stretch in stretches),
            )
            for level, stretches in held.items()
        }

    # -- forks -------------------------------------------------------------------------------

    def prepare_reading(self) -> None:
        """Precompute what the next question needs while the device is busy."""
        self._current_parts()
        self.time_spans()

    def fork(self, capacity: int, question: bool = False) -> Fork:
        """A reader of the stream as it stands, with room for ``capacity`` tokens of its own.

        ``question``: in the tail whose place never changes, if nobody has that.
        """
        parts, window = self._current_parts(), self._buffer.window
        fork = Fork(self._tails, parts, window, capacity, question=question)
        self._forks.add(fork)
        return fork

    def question_fork(self, prompt_tokens: int, new_tokens: int) -> Fork:
        """A fork for a question; BudgetExceededError if the answer might not fit its room."""
        needed = prompt_tokens + new_tokens
        if needed > self.max_tail_tokens:
            raise BudgetExceededError(
                f"the question takes {prompt_tokens} tokens and its answer up to {new_tokens}: "
                f"together {needed}, but {self.max_tail_tokens} are kept for both. Lower "
                "max_new_tokens, shorten the question, or raise max_tail_tokens"
            )
        return self.fork(self.max_tail_tokens, question=True)

    def check_free(self, tokens: int) -> None:
        """Raise StreamBusyError if so many tokens would overwrite what an answer still reads."""
        self._check_free(tokens, self._living())

    # In inference mode, because that may change what was made in or out of a caller's own.
    @torch.inference_mode()
    def commit(self, fork: Fork, spans: Sequence[Span], state: StreamState, chunk: bool) -> int:
        """Make a fork's tokens part of the stream, evict what is due, release the fork.

        While other forks live, sink and window alone evict as usual: what is forgotten stays in its
        slots until the ring comes round to them, which ``fork_slack_tokens`` puts off. Where grids
        are kept, eviction moves them and rotates their keys again, so it waits for
        `apply_pending_evictions`: until then the stream is up to ``fork_slack_tokens`` longer than
        the cap.

        Args:
            fork: made since the last commit.
            spans: its tokens, as laid out by the ledger's preview.
            state: the stream's state from now on.
            chunk: these tokens are frames and count in the evictor's mean.

        Returns:
            Number of tokens evicted.

        Raises:
            StreamBusyError: an answer is being written from memory that would be overwritten; the
                stream and the fork are as before.
        """
        count = fork.length
        assert count == sum(span.count for span in spans)
        evictor, buffer = self.evictor, self._buffer
        grows = evictor.config is None and buffer.length + count > buffer.capacity
        if grows:
            buffer.grow(max(2 * buffer.capacity, buffer.length + count))
        others = [other for other in self._living() if other is not fork]
        self._check_free(count, others)
        if chunk:
            evictor.record_chunk(count)
        self._waiting.append(evictor.appended(count))
        own = fork.own()
        self._changed()
        self.state = state
        self.ledger.append(spans)
        # Eviction comes first: without slack the ring has no slots beyond the cap.
        evicted = 0 if others and evictor.keeps_grids else self._evict()
        buffer.write(own)
        sink = evictor.effective_sink_size
        if self.ledger.sink_length is None and 0 < sink <= buffer.length:
            self._seal(sink)
        fork.release()
        if grows:
            self._memory_replaced()
        return evicted

    @torch.inference_mode()
    def apply_pending_evictions(self) -> None:
        """Carry out the evictions that waited for answers being written, once none is any more.

        What is forgotten and kept is to the token what would have been without waiting.
        """
        if self._waiting and not self._living():
            self._changed()
            self._evict()

    def _check_free(self, tokens: int, readers: Sequence[Fork]) -> None:
        claimed = self._buffer.overwritten_by(tokens)
        # Where grids are kept nothing leaves the window under a reader.
        waits = bool(readers) and self.evictor.keeps_grids
        read = [self._buffer.window] if waits else [fork.window for fork in readers]
        if any(_overlap(window, claimed) for window in read):
            raise StreamBusyError(
                "an answer is still being written from memory that these tokens would overwrite: "
                "finish or cancel it first, or raise fork_slack_tokens"
            )

    def _evict(self) -> int:
        """Forget what is due for each append that waits, in their order; return what was lost."""
        before, settled = self.ledger.evicted, True
        later = sum(one.tokens for one in self._waiting)
        for one in self._waiting:
            later -= one.tokens
            due = self.evictor.due(self.ledger.length - later, one, self._buffer.kept)
            if due:
                # Both at once would need a chunk larger than the window: refused by check_room.
                assert self.ledger.sink_length is not None
                self._forget(due)
                settled = False
        self._waiting.clear()
        if not settled:
            self.ledger.reindex()
            if self.rotates_long_lived:
                offsets = self.ledger.sink_offset, self.ledger.kept_offsets()
                self._buffer.rotate_base(self._rotary, *offsets)
        return self.ledger.evicted - before

    def _forget(self, due: int) -> None:
        """Make the window ``due`` tokens shorter and keep what deserves it."""
        buffer, ledger, evictor = self._buffer, self.ledger, self.evictor
        before = ledger.evicted
        while due > 0:
            grid = ledger.oldest_whole_grid
            if evictor.keeps_grids and grid is not None:
                forgotten = evictor.leaves_window(grid.number, grid.count, grid.stamps[0])
                for number in forgotten:
                    if number != grid.number:
                        ledger.drop_kept(number)
                        buffer.drop_kept(number)
                if grid.number not in forgotten:
                    ledger.keep_oldest()
                    buffer.keep_oldest(grid.number, grid.count)
                    due -= grid.count
                    continue
            step = min(due, ledger.oldest_piece) if evictor.keeps_grids else due
            ledger.evict(step)
            buffer.evict(step)
            due -= step
        if lost := ledger.evicted - before:
            evictor.record_eviction(lost)

    def _seal(self, sink: int) -> None:
        log.info(
            "sink found: the first %d tokens stay; window %d",
            sink,
            self.evictor.effective_window_size,
        )
        self.ledger.seal_sink(sink)
        self._buffer.seal_sink(sink, self.evictor.room_for_grids)
        for fork in self._living():
            numbers = fork.window
            fork.window = range(max(0, numbers.start - sink), max(0, numbers.stop - sink))

    def _living(self) -> list[Fork]:
        return [fork for fork in self._forks if fork.alive]

    def _changed(self) -> None:
        self._parts, self._time_spans = None, None

    def _current_parts(self) -> list[KVPart]:
        if self._parts is None:
            # Sink and kept grids were rotated again where grids are kept: they need no offset.
            base = self._buffer.sink + self._buffer.kept if self.rotates_long_lived else 0
            pieces = [(0, base, ZERO)] if base else []
            for start, stop, offset in self.ledger.parts():
                if stop <= base:
                    continue
                if pieces and pieces[-1][2] == offset:
                    pieces[-1] = (pieces[-1][0], stop, offset)
                else:
                    pieces.append((max(start, base), stop, offset))
            self._parts = []
            for start, stop, offset in pieces:
                rope_offset = None if offset == ZERO else self._rotary.offset(offset, self._device)
                for slots in self._buffer.slices(start, stop):
                    self._parts.append(KVPart(self._buffer.data, slots, rope_offset))
        return self._parts

    # -- snapshots ---------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """A point to come back to with `restore`. Costs nothing; undone by length."""
        self.apply_pending_evictions()
        self._last_snapshot = Snapshot(self.ledger.mark(), self.evictor.mark(), self.state)
        return self._last_snapshot

    @torch.inference_mode()
    def restore(self, saved: Snapshot | Clone | None = None) -> None:
        """Bring the stream back to a snapshot or a clone; None: to the last snapshot.

        Raises:
            InvalidParameterError: there is no last snapshot, or ``saved`` is none.
            SnapshotEvictedError: something that the snapshot covers has been evicted or cleared
                since; the stream is as before.
            StreamBusyError: an answer is being written; the stream is as before.
        """
        saved = self._last_snapshot if saved is None else saved
        if saved is None:
            raise InvalidParameterError("there is no snapshot to restore: take one first")
        if not isinstance(saved, (Snapshot, Clone)):
            raise InvalidParameterError(f"a snapshot or a clone is restored, not {saved!r}")
        if self._living():
            raise StreamBusyError("an answer is being written: finish or cancel it first")
        self.apply_pending_evictions()
        if isinstance(saved, Clone):
            self._restore_clone(saved)
            return
        if not self.ledger.holds(saved.ledger):
            gone = self.ledger.evicted - saved.ledger.evicted
            why = (
                f"{gone} tokens that it covers have been evicted since"
                if gone > 0
                else "the memory has been cleared or taken back further since"
            )
            raise SnapshotEvictedError(
                f"this snapshot of {saved.ledger.length} tokens cannot be restored: {why}. "
                "clone() makes a copy that survives"
            )
        if saved.ledger.sink_length is None and self.ledger.sink_length is not None:
            self._buffer.unseal_sink()
        self._buffer.forget_back(saved.ledger.length)
        self.ledger.restore(saved.ledger)
        self.evictor.restore(saved.evictor)
        self.state = saved.state
        self._changed()

    def discard_snapshot(self, saved: Snapshot | None = None) -> None:
        """Nothing is held for a snapshot; the last one (None) is no longer `restore`'s."""
        if saved is None or saved is self._last_snapshot:
            self._last_snapshot = None

    def clone(self) -> Clone:
        """A copy of everything, as large as the buffer; `restore` takes it at any time.

        (It copies once more, so that one clone may be restored again and again.)
        """
        self.apply_pending_evictions()
        return Clone(
            copy.deepcopy(self._buffer),
            copy.deepcopy(self.ledger),
            copy.deepcopy(self.evictor),
            self.state,
            tuple(self._waiting),
        )

    def _restore_clone(self, saved: Clone) -> None:
        followed = self.ledger
        self._buffer, self.ledger, self.evictor = copy.deepcopy(
            (saved.buffer, saved.ledger, saved.evictor)
        )
        self.ledger.follow(followed)
        self.state = saved.state
        self._waiting = list(saved.waiting)
        self._changed()
        self._memory_replaced()
        self.apply_pending_evictions()

    def clear(self) -> None:
        """Forget everything; the buffers stay. Answers being written end where they read."""
        for fork in self._living():
            fork.release()
        self._buffer.clear()
        self.ledger.clear()
        self.evictor.clear()
        self._waiting.clear()
        self.state = StreamState()
        self._changed()


def _overlap(one: range, other: range) -> bool:
    return max(one.start, other.start) < min(one.stop, other.stop)
