# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The stream's memory as one: buffer, ledger, evictor, and the forks that read it.

A chunk or a question runs on a `requests.Fork`, whose own tokens go to a small tail while attention
sees stream and tail. Committing a fork drafts the next `state.MemoryState` (where tokens lie, what
the `eviction.KVCacheEvictor` forgets), makes it current by one assignment, and copies the tail into
the `buffer.KVBuffer`. Nothing that a living fork reads is overwritten: see `KVCacheManager.commit`.
"""

from __future__ import annotations

import functools
import itertools
import logging
import math
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import torch

from stream_vlm_ros.engine.attention.base import KVPart, Readout, RopeOffset
from stream_vlm_ros.engine.cache.buffer import KVBuffer, KVShape, Moved, TakesRoom, Writing, lies_in
from stream_vlm_ros.engine.cache.eviction import (
    Appended,
    Described,
    EvictionConfig,
    EvictorState,
    ImportanceScore,
    KVCacheEvictor,
)
from stream_vlm_ros.engine.cache.ledger import LEVELS, PositionLedger, Stretch
from stream_vlm_ros.engine.cache.mrope import ZERO, MultimodalRotary, Span, Vec
from stream_vlm_ros.engine.cache.requests import Fork, TailPool
from stream_vlm_ros.engine.cache.slots import Slots
from stream_vlm_ros.engine.cache.state import (
    Companion,
    Draft,
    Forgotten,
    MemoryState,
    StreamState,
    emptied,
    grids_of,
)
from stream_vlm_ros.engine.reference_names import ManagerNames
from stream_vlm_ros.engine.results import LevelInfo, TimeSpans
from stream_vlm_ros.errors import (
    BudgetExceededError,
    InvalidParameterError,
    SnapshotEvictedError,
    StreamBusyError,
)

log = logging.getLogger(__name__)

_NUMBERS = itertools.count()  # of memories

# Of a manager without a model: lengths and nothing to see.
_NO_KEYS = KVShape(layers=1, kv_heads=1, head_dim=2, dtype=torch.float32)


@dataclass(frozen=True)
class Snapshot:
    """A point in the stream to come back to: no copy of any key.

    Attributes:
        of: number of the memory that it is of; no other takes it.
    """

    state: MemoryState
    of: int


@dataclass(frozen=True)
class Clone:
    """A copy of the whole memory that survives eviction and `KVCacheManager.clear`.

    Attributes:
        like: what a memory must be like to take it: its size and its rules.
    """

    state: MemoryState
    buffer: KVBuffer
    like: Mapping[str, Any]

    @property
    def nbytes(self) -> int:
        return self.buffer.nbytes


class Plan(NamedTuple):
    """What a commit will make current, worked out beforehand.

    Attributes:
        before: what it follows; of another state it is no plan.
        waits: evictions wait for an answer that is being written.
        evicted: tokens that go.
        sealed: tokens that become the sink; 0 if none do.
    """

    before: MemoryState
    waits: bool
    draft: Draft
    evicted: int
    sealed: int


class _Revision:
    """All that a memory is at a time. Replaced by one assignment; what is derived is kept with it.

    Args:
        state: plain data.
        buffer: keys and values.
        unwritten: what is still to be written there so that it holds what ``state`` says.
        untold: what was forgotten and listeners have not heard of.
    """

    parts: list[KVPart] | None = None
    base_offset: Vec = ZERO
    time_spans: TimeSpans | None = None

    def __init__(
        self,
        state: MemoryState,
        buffer: KVBuffer,
        unwritten: Writing | None = None,
        untold: Sequence[Forgotten] = (),
    ):
        self.state, self.buffer, self.unwritten, self.untold = state, buffer, unwritten, untold

    def with_state(self, state: MemoryState) -> _Revision:
        """With another state of the same tokens in the same places: what is derived still holds."""
        new = _Revision(state, self.buffer, self.unwritten, self.untold)
        new.parts, new.base_offset, new.time_spans = self.parts, self.base_offset, self.time_spans
        return new


class _Current:
    """Where a memory's revision is, so that its evictor finds it, too."""

    def __init__(self, revision: _Revision):
        self.revision = revision

    @property
    def evictor(self) -> EvictorState:
        return self.revision.state.evictor

    @evictor.setter
    def evictor(self, evictor: EvictorState) -> None:
        now = self.revision
        self.revision = now.with_state(replace(now.state, evictor=evictor))


Listener = Callable[[Sequence[Forgotten]], None]
Given = ParamSpec("Given")
Result = TypeVar("Result")


def _operation(
    method: Callable[Concatenate[KVCacheManager, Given], Result],
) -> Callable[Concatenate[KVCacheManager, Given], Result]:
    """One at a time, over a memory that holds what its state says, and then what waits is evicted.

    In inference mode, because that may change what was made in or out of a caller's own.
    """

    @functools.wraps(method)
    def alone(self: KVCacheManager, *args: Given.args, **options: Given.kwargs) -> Result:
        if self._telling and self._has_lock():
            raise StreamBusyError(
                "a listener to what is forgotten may look at the memory, not work on it: do that "
                "when the call that it was told by has ended"
            )
        # An operation that was aborted on its way out has left it locked: they never nest.
        while self._has_lock():
            self._lock.release()
        try:
            with self._lock, torch.inference_mode():
                self._telling = False  # one that was aborted may have left it
                self._finish()
                return method(self, *args, **options)
        finally:
            self._evict_what_waits()

    return alone


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
        room: where its memory lies with others'; None: it is by itself.
        tails: where the tail of a question lies with others'.

    Attributes:
        first_capacity: tokens that the buffer has room for at first, where no cap says more.
    """

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
        room: TakesRoom | None = None,
        tails: TakesRoom | None = None,
    ):
        self.of_model = shape is not None and rotary is not None
        if shape is None or rotary is None:
            shape, rotary = _NO_KEYS, MultimodalRotary(1.0, [0])
        device = torch.device("cpu") if device is None else device
        self.shape, self._rotary, self._device = shape, rotary, device
        self._last_snapshot: Snapshot | None = None
        self.max_tail_tokens, self.fork_slack_tokens = max_tail_tokens, fork_slack_tokens
        capacity = self.first_capacity if config is None else config.max_cache_tokens
        long_lived = None
        if config is not None and config.keeps_grids and position_policy == "contiguous":
            share, tokens = config.long_lived
            long_lived = math.ceil(share * capacity + tokens)
        rules = KVCacheEvictor(config, importance)
        ledger = PositionLedger(position_policy)
        self.room = room
        buffer = KVBuffer(shape, capacity + fork_slack_tokens, device, long_lived, room)
        state = MemoryState(Slots(buffer.capacity), ledger, rules.state)
        self._current = _Current(_Revision(state, buffer))
        self.evictor = rules.over(self._current)
        self._lock = threading.RLock()
        self._of_lock = threading.Condition(self._lock)
        given_back = weakref.WeakMethod(self._evict_what_waits)
        self._tails = TailPool(shape, device, max_tail_tokens, given_back, tails)
        self._followers: weakref.WeakSet[Any] = weakref.WeakSet()
        self._listeners: tuple[Listener, ...] = ()
        self._companions: dict[str, Companion] = {}
        self._reads: Readout | None = None
        self._number = next(_NUMBERS)
        self._telling = False  # listeners are being told, by who has the lock

    # -- reading -----------------------------------------------------------------------------

    @property
    def _state(self) -> MemoryState:
        return self._current.revision.state

    @property
    def _buffer(self) -> KVBuffer:
        return self._current.revision.buffer

    @property
    def ledger(self) -> PositionLedger:
        """Where each token lies now. What comes to the stream makes another one."""
        return self._state.ledger

    @property
    def state(self) -> StreamState:
        """Where the stream stands."""
        return self._state.stream

    @property
    def waiting(self) -> Sequence[Appended]:
        """Appends that nothing was evicted for yet: see `commit`."""
        return self._state.waiting

    def get_seq_length(self) -> int:
        """Tokens in the stream."""
        return self._state.slots.length

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
        return self._buffer.keeps_originals and self._state.slots.room > 0

    @property
    def live_bytes(self) -> int:
        """Bytes of the keys and values in the stream."""
        return self.get_seq_length() * self.shape.bytes_per_token

    @property
    def memory(self) -> torch.Tensor:
        """Where the stream lies, ``[layers, 2, kv_heads, slots, head_dim]``."""
        return self._buffer.data

    @property
    def longest(self) -> int:
        """Slots of `memory`."""
        return self._buffer.capacity

    def holds(self, memory: torch.Tensor) -> bool:
        """Whether a tensor ``[layers, 2, kv_heads, slots, head_dim]`` lies in `memory`."""
        return lies_in(memory, self.memory)

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

    def _has_lock(self) -> bool:
        """Whether this thread has it: a condition says so, the lock itself does not."""
        try:
            self._of_lock.notify(0)
        except RuntimeError as fault:
            if type(fault) is not RuntimeError:  # a device without memory: not the condition's
                raise
            return False
        return True

    @_operation
    def gather(self) -> torch.Tensor:
        """A copy of the stream, oldest first: ``[layers, 2, kv_heads, length, head_dim]``.

        Keys as first computed, at `PositionLedger.positions`.
        """
        return self._buffer.read(self._state.slots.order(), self._originals_below)

    @_operation
    def as_read(self) -> tuple[torch.Tensor, torch.Tensor]:
        """A copy of the stream like `gather`'s, but keys as forks read them.

        And the RoPE offset of a query for each token, ``[3, length]``.
        """
        self._current_parts()
        now = self._current.revision
        slots, pieces = now.state.slots, now.state.ledger.parts()
        offsets = torch.cat(
            [torch.tensor(at)[:, None].expand(3, stop - start) for start, stop, at in pieces], dim=1
        )
        if self.rotates_long_lived:
            offsets[:, : slots.sink + slots.kept] = torch.tensor(now.base_offset)[:, None]
        return now.buffer.data[:, :, :, self._buffer.numbers(slots.order())], offsets

    @property
    def _originals_below(self) -> int:
        """First slot whose key is there but once."""
        return self._state.slots.base if self.rotates_long_lived else 0

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
        now = self._current.revision
        if now.time_spans is None:
            now.time_spans = tuple(now.state.ledger.time_spans())
        return now.time_spans

    def levels(self) -> dict[str, LevelInfo]:
        """What each level of the memory holds, by its name."""
        state = self._state
        held: dict[str, list[Stretch]] = {}
        important = {grid.number for grid in state.evictor.important}
        for stretch in state.ledger.stretches():
            level = stretch.level
            if level == "kept":
                level = "important" if stretch.first_grid in important else "sampled"
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

    @_operation
    def prepare_reading(self) -> None:
        """Precompute what the next question needs while the device is busy."""
        self._current_parts()
        self.time_spans()

    @_operation
    def fork(self, capacity: int, question: bool = False, further: Sequence[KVPart] = ()) -> Fork:
        """A reader of the stream as it stands, with room for ``capacity`` tokens of its own.

        Args:
            question: in the tail whose place never changes, if nobody has that.
            further: parts of other memory that it sees, too. Their ``rope_offset``, from `offset`,
                is by how much a query is rotated further to see them. (Captured steps leave such a
                fork to plain calls.)
        """
        state = self._state
        parts, window = [*self._current_parts(), *further], state.slots.window
        start = state.ledger.next_position
        return Fork(self._tails, parts, window, start, capacity, question=question)

    def offset(self, offset: Vec) -> RopeOffset | None:
        """For `KVPart.rope_offset`: a query is rotated further by ``offset`` positions."""
        return None if offset == ZERO else self._rotary.offset(offset, self._device)

    def question_fork(
        self, prompt_tokens: int, new_tokens: int, further: Sequence[KVPart] = ()
    ) -> Fork:
        """A fork for a question; BudgetExceededError if the answer might not fit its room."""
        needed = prompt_tokens + new_tokens
        if needed > self.max_tail_tokens:
            raise BudgetExceededError(
                f"the question takes {prompt_tokens} tokens and its answer up to {new_tokens}: "
                f"together {needed}, but {self.max_tail_tokens} are kept for both. Lower "
                "max_new_tokens, shorten the question, or raise max_tail_tokens"
            )
        return self.fork(self.max_tail_tokens, True, further)

    @property
    def living_forks(self) -> list[Fork]:
        """The forks that have not been given back."""
        return self._tails.living

    def check_free(self, tokens: int) -> None:
        """Raise StreamBusyError if so many tokens would overwrite what an answer still reads."""
        self._check_free(tokens, self._tails.living)

    @_operation
    def plan(
        self, fork: Fork, spans: Sequence[Span], stream: StreamState, frames: Described
    ) -> Plan | None:
        """What `commit` of a chunk will have to know, while the device is busy with its tokens.

        The memory stays as it is. If it has changed by then, `commit` makes a plan of its own.
        Returns None without a cap, where nothing is evicted. See `commit` for the arguments.
        """
        if self.evictor.config is None:
            return None
        waits = self._waits(self._others(fork))
        return self._plan(spans, stream, True, frames, waits, self._state.slots)

    @_operation
    def commit(
        self,
        fork: Fork,
        spans: Sequence[Span],
        stream: StreamState,
        chunk: bool,
        frames: Described | None = None,
        read: Readout | None = None,
        plan: Plan | None = None,
    ) -> int:
        """Make a fork's tokens part of the stream, evict what is due, release the fork.

        All or nothing, whatever is raised wherever: before one assignment the memory is as it was;
        after it, what is still to be written is written by the next operation.

        While other forks live, sink and window alone evict as usual: what is forgotten stays in its
        slots until the ring comes round to them, which ``fork_slack_tokens`` puts off. Where grids
        are kept, eviction moves them, so it waits until the last fork is given back or dropped:
        until then the stream is up to ``fork_slack_tokens`` longer than the cap.

        Args:
            fork: made since the last commit.
            spans: its tokens, as laid out by the ledger's preview.
            stream: the stream's state from now on.
            chunk: these tokens are frames and count in the evictor's mean.
            frames: what the evictor is to know of them.
            read: of these tokens, for companions.
            plan: what `plan` returned for the same arguments; None: there is none yet.

        Returns:
            Number of tokens evicted.

        Raises:
            StreamBusyError: an answer is being written from memory that would be overwritten; the
                stream and the fork are as before.
        """
        count = fork.length
        assert count == sum(span.count for span in spans)
        # Asked for once: any of them may end meanwhile.
        others = self._others(fork)
        buffer, slots, waits = self._buffer, self._state.slots, self._waits(others)
        if self.evictor.config is None and slots.length + count > buffer.capacity:
            capacity = max(2 * buffer.capacity, slots.length + count)
            buffer = buffer.grown(capacity, slots.length)
            slots = replace(slots, capacity=capacity)
        else:
            self._check_free(count, others)
        if plan is None or plan.before is not self._state or plan.waits != waits:
            plan = self._plan(spans, stream, chunk, frames, waits, slots)
        draft = plan.draft
        draft.update_companions(self._companions, spans, read)
        replaced = buffer.data is not self._buffer.data
        self._make_current(draft, buffer, fork.own(), plan.sealed)
        fork.release()
        if replaced:
            self._memory_replaced()
        return plan.evicted

    def _plan(
        self,
        spans: Sequence[Span],
        stream: StreamState,
        chunk: bool,
        frames: Described | None,
        waits: bool,
        slots: Slots,
    ) -> Plan:
        """``slots``: of the memory, whose capacity may be about to grow."""
        draft = Draft(self._state, self.evictor)
        draft.slots = slots
        draft.append(spans, chunk, frames)
        draft.stream = stream
        evicted = 0 if waits else draft.evict()
        return Plan(self._state, waits, draft, evicted, draft.seal())

    def _others(self, fork: Fork) -> list[Fork]:
        return [other for other in self._tails.living if other is not fork]

    def _waits(self, others: Sequence[Fork]) -> bool:
        """Whether evictions wait until other forks are given back."""
        return bool(others) and self.evictor.keeps_grids

    def _make_current(
        self, draft: Draft, buffer: KVBuffer, tokens: torch.Tensor | None, sealed: int = 0
    ) -> None:
        """Flip to a draft. Whatever is to be written is read before; it is written after."""
        slots, moved = draft.slots, None
        sealed = sealed if slots.room and buffer.keeps_originals else 0
        of, to, grids = draft.moved()
        if grids:
            moved = Moved(buffer.numbers(to), buffer.read(of, self._originals_below), grids)
        if sealed:
            buffer = buffer.with_room_for_originals(slots.base)
        new = slots.of_newest(tokens.shape[3]) if tokens is not None else []
        writing = Writing(tokens, new, moved, sealed)
        untold = (*self._current.revision.untold, *draft.forgotten)
        self._current.revision = _Revision(draft.state(), buffer, writing, untold)
        for line in draft.log_lines:
            log.info(line)
        self._finish()

    def _finish(self) -> None:
        """Write what is still to be written, and tell what is still to be told."""
        now = self._current.revision
        if now.unwritten is not None:
            now.buffer.write(now.unwritten)
            now = self._current.revision = _Revision(now.state, now.buffer, None, now.untold)
        if now.untold:
            self._telling = True
            try:
                for listener in self._listeners:
                    self._tell(listener, now.untold)
            finally:
                self._telling = False
            self._current.revision = _Revision(now.state, now.buffer)

    def _tell(self, listener: Listener, forgotten: Sequence[Forgotten]) -> None:
        try:
            listener(forgotten)
        except Exception as fault:  # somebody else's: it must not end the stream
            warnings.warn(
                f"a listener to what is forgotten failed: {fault!r}", RuntimeWarning, stacklevel=2
            )

    def listen(self, listener: Listener) -> None:
        """Call ``listener`` with the grids that were forgotten, once that is so.

        It may look at the memory (`levels`, `time_spans`, `state`); what works on it or copies it
        raises StreamBusyError there.

        By the thread that made it so, which may be that of a garbage collection. An interruption
        may have the same grids told twice. A listener may look at `ledger`, `state` and `levels`,
        but call no operation (`fork`, `gather`, `clone` and whatever changes the memory): it is
        called within one.
        """
        self._listeners = (*self._listeners, listener)

    def readout(self) -> Readout | None:
        """To read what companions want to know of a chunk's queries and keys; None: nothing."""
        return None if self._reads is None else self._reads.like()

    @_operation
    def accompany(self, name: str, companion: Companion, reads: Readout | None = None) -> None:
        """Keep a companion in step from now on, at best before the first chunk.

        ``reads``: of which heads it is to be told what was read, un-rotated, as a chunk is
        appended. One for all companions: the last that is given.
        """
        self._reads = reads or self._reads
        now = self._current.revision
        held = {**now.state.companions, name: companion.empty()}
        state = replace(now.state, companions=held)
        self._companions = {**self._companions, name: companion}
        self._current.revision = now.with_state(state)

    def companion(self, name: str) -> Any:
        """What a companion holds now."""
        return self._state.companions[name]

    @_operation
    def amend(self, name: str, change: Callable[[Any], Any]) -> None:
        """Let a companion hold what ``change`` makes of what it holds; the memory stays."""
        now = self._current.revision
        held = {**now.state.companions, name: change(now.state.companions[name])}
        self._current.revision = now.with_state(replace(now.state, companions=held))

    def _evict_what_waits(self) -> None:
        """Carry out the evictions that waited for answers being written, once none is any more.

        What is forgotten and kept is to the token what would have been without waiting. Called by
        who made it so, maybe a garbage collection in any thread, even in the middle of an
        operation: it tries the lock, and whoever has it looks again after releasing it.
        """
        while self._state.waiting and not self._tails.living:
            if self._has_lock() or not self._lock.acquire(blocking=False):
                return
            try:
                with torch.inference_mode():
                    self._finish()
                    if self._state.waiting and not self._tails.living:
                        draft = Draft(self._state, self.evictor)
                        draft.evict()
                        draft.update_companions(self._companions, (), None)
                        self._make_current(draft, self._buffer, None)
            finally:
                self._lock.release()

    def _check_free(self, tokens: int, readers: Sequence[Fork]) -> None:
        slots = self._state.slots
        claimed = slots.overwritten_by(tokens)
        # Where grids are kept nothing leaves the window under a reader.
        read = [slots.window] if self._waits(readers) else [fork.window for fork in readers]
        if any(_overlap(window, claimed) for window in read):
            raise StreamBusyError(
                "an answer is still being written from memory that these tokens would overwrite: "
                "finish or cancel it first, or raise fork_slack_tokens"
            )

    def _current_parts(self) -> list[KVPart]:
        now = self._current.revision
        if now.parts is None:
            slots, ledger = now.state.slots, now.state.ledger
            pieces = ledger.parts(("window",) if self.rotates_long_lived else LEVELS)
            if self.rotates_long_lived:
                # Sink and kept grids are rotated so that one offset fits all of them.
                base = slots.sink + slots.kept
                shifts = ledger.long_lived_shifts()
                now.base_offset = now.buffer.rotate_base(self._rotary, slots, shifts, ledger.frame)
                pieces = [(0, base, now.base_offset), *pieces]
                if len(pieces) > 1 and pieces[1][2] == now.base_offset:
                    pieces[:2] = [(0, pieces[1][1], now.base_offset)]
            parts = []
            for start, stop, offset in pieces:
                rope_offset = self.offset(offset)
                for taken in slots.slices(start, stop):
                    parts.append(KVPart(now.buffer.data, taken, rope_offset))
            now.parts = parts
        return now.parts

    # -- snapshots ---------------------------------------------------------------------------

    def snapshot(self) -> Snapshot:
        """A point to come back to with `restore`. Costs nothing."""
        self._last_snapshot = Snapshot(self._state, self._number)
        return self._last_snapshot

    @_operation
    def restore(self, saved: Snapshot | Clone | None = None) -> None:
        """Bring the stream back to a snapshot or a clone; None: to the last snapshot.

        Raises:
            InvalidParameterError: there is no last snapshot, ``saved`` is none, or it is a snapshot
                of another memory or a clone of one with other settings.
            SnapshotEvictedError: something that the snapshot covers has been evicted or cleared
                since; the stream is as before.
            StreamBusyError: an answer is being written; the stream is as before.
        """
        saved = self._last_snapshot if saved is None else saved
        if saved is None:
            raise InvalidParameterError("there is no snapshot to restore: take one first")
        if not isinstance(saved, (Snapshot, Clone)):
            raise InvalidParameterError(f"a snapshot or a clone is restored, not {saved!r}")
        self._check_takes(saved)
        self.check_unread()
        now, earlier = self.ledger, saved.state.ledger
        if isinstance(saved, Clone):
            state = replace(saved.state, ledger=now.replaced_by(earlier))
            self._go_to(state, saved.buffer.copy(), "taken back")
            self._memory_replaced()
            return
        if not now.holds(earlier):
            gone = now.evicted - earlier.evicted
            why = (
                f"{gone} tokens that it covers have been evicted since"
                if gone > 0
                else "the memory has been cleared or taken back further since"
            )
            raise SnapshotEvictedError(
                f"this snapshot of {earlier.length} tokens cannot be restored: {why}. "
                "clone() makes a copy that survives"
            )
        slots = replace(saved.state.slots, capacity=self._state.slots.capacity)
        state = replace(saved.state, slots=slots, ledger=now.going_back(earlier))
        self._go_to(state, self._buffer, "taken back")

    def _check_takes(self, saved: Snapshot | Clone) -> None:
        """Raise InvalidParameterError for what is of another memory and means nothing to this."""
        if isinstance(saved, Snapshot):
            if saved.of != self._number:
                raise InvalidParameterError("this snapshot is of another engine's memory")
            return
        for name, ours in self._like().items():
            if saved.like.get(name) != ours:
                raise InvalidParameterError(
                    f"this clone is of a memory whose {name} is {saved.like.get(name)}, and here "
                    f"it is {ours}"
                )

    def _like(self) -> dict[str, Any]:
        return {
            "shape": self.shape,
            "device": self._buffer.data.device,
            "position policy": self.ledger.policy,
            "eviction": self.evictor.config,
            "fork_slack_tokens": self.fork_slack_tokens,
        }

    def _go_to(self, state: MemoryState, buffer: KVBuffer, why: str) -> None:
        """Flip to a state that is none of a draft."""
        there = grids_of(state) if self._listeners else {}
        gone = grids_of(self._state) if self._listeners else {}
        untold = [
            Forgotten.of(one, why) for number, one in gone.items() if there.get(number) != one
        ]
        self._current.revision = _Revision(state, buffer, None, untold)
        self._finish()

    def discard_snapshot(self, saved: Snapshot | None = None) -> None:
        """Nothing is held for a snapshot; the last one (None) is no longer `restore`'s."""
        if saved is None or saved is self._last_snapshot:
            self._last_snapshot = None

    @_operation
    def clone(self) -> Clone:
        """A copy of everything, as large as the buffer; `restore` takes it at any time.

        (It copies once more, so that one clone may be restored again and again.)
        """
        return Clone(self._state, self._buffer.copy(), self._like())

    # -- saving ------------------------------------------------------------------------------

    @_operation
    def reading(self, read: Callable[[MemoryState, KVBuffer], Result]) -> Result:
        """What ``read`` makes of the memory as it stands, while nothing else happens to it."""
        return read(self._state, self._buffer)

    def check_unread(self) -> None:
        """Raise StreamBusyError while an answer is being written."""
        if self._tails.living:
            raise StreamBusyError("an answer is being written: finish or cancel it first")

    def take_over(self, state: MemoryState, buffer: KVBuffer) -> None:
        """Flip to another memory, from within `reading`. Companions begin empty."""
        self.check_unread()
        companions = {name: one.empty() for name, one in self._companions.items()}
        replaced = buffer.data is not self._buffer.data
        self._go_to(replace(state, companions=companions), buffer, "another was loaded")
        if replaced:
            self._memory_replaced()

    @_operation
    def clear(self) -> None:
        """Forget everything; the buffers stay. Answers being written end where they read."""
        for fork in self._tails.living:
            fork.release()
        companions = {name: one.empty() for name, one in self._companions.items()}
        first = self.evictor.first_state(self.evictor.config)
        self._go_to(emptied(self._state, first, companions), self._buffer, "cleared")


def _overlap(one: range, other: range) -> bool:
    return max(one.start, other.start) < min(one.stop, other.stop)
