# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The prototype's names for what this engine has under its own: thin, and all in this file.

docs/coming-from-the-reference.md lists them side by side. The keys of results (``total_latency``,
``cache_memory_mb``, ...) are answered by the results themselves.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from stream_vlm_ros.engine.cache.mrope import TextSpan
from stream_vlm_ros.errors import InvalidParameterError, whole_number

if TYPE_CHECKING:
    from stream_vlm_ros.engine.cache.manager import Clone, KVCacheManager, Snapshot
    from stream_vlm_ros.engine.inputs.processor import StreamProcessor


class EvictorNames:
    """Of `KVCacheEvictor`, which does its arithmetic on lengths and touches no cache."""

    @property
    def _first_chunk_recorded(self: Any) -> bool:
        return bool(self.first_chunk_recorded)

    @property
    def _avg_chunk_tokens(self: Any) -> float:
        return float(self.avg_chunk_tokens)

    def set_first_chunk_info(self: Any, tokens: int) -> None:
        """The first chunk has so many tokens, and is the sink where none is given."""
        if self.first_chunk_recorded:
            raise InvalidParameterError("the first chunk is recorded already: clear() first")
        self.record_chunk(tokens)

    def update_chunk_stats(self: Any, tokens: int) -> None:
        """A later chunk has so many tokens."""
        if not self.first_chunk_recorded:
            raise InvalidParameterError("no first chunk is recorded: set_first_chunk_info() first")
        self.record_chunk(tokens)

    def should_evict(self: Any, length: int) -> bool:
        """Whether a stream of so many tokens is longer than it may be."""
        return bool(self.limit is not None and length > self.limit)

    def evict(self: Any, length: int) -> int:
        """How many tokens a stream of so many must lose; counted as an eviction if any.

        What they are is the cache manager's business: an engine evicts by itself.
        """
        due: int = self.due(length, self.appended(0))
        if due:
            self.record_eviction(due)
        return due


class ManagerNames:
    """Of `KVCacheManager`."""

    def take_snapshot(self: Any) -> Snapshot:
        saved: Snapshot = self.snapshot()
        return saved

    def restore_snapshot(self: Any, saved: Snapshot | Clone | None = None) -> None:
        self.restore(saved)

    def track_tokens(self: Any, tokens: int, is_new_chunk: bool = False) -> int:
        """Count so many tokens as appended, and evict what is due; how many were evicted.

        For a manager made without a model, which holds lengths and no keys. That of an engine
        counts what the engine appends: InvalidParameterError.
        """
        manager: KVCacheManager = self
        tokens = whole_number("tokens", tokens, 0)
        if manager.of_model:
            raise InvalidParameterError("the engine counts by itself what it appends")
        if not tokens:
            return 0
        if is_new_chunk:
            manager.evictor.check_room(tokens)
        chunks = manager.state.chunks + is_new_chunk
        with manager.fork(tokens) as fork:
            fork.advance(tokens)
            state = dataclasses.replace(manager.state, chunks=chunks)
            return manager.commit(fork, [TextSpan(tokens)], state, chunk=is_new_chunk)


@dataclass(frozen=True)
class StreamPosition:
    """Where a stream stands: the index of its newest token (-1: none yet), and by how much the
    position of the next text token is ahead of the stream's length."""

    last_cache_position: int
    rope_deltas: int


# Several engines may share a model, which knows nothing of their streams: the latest one's is told.
_STREAMS: weakref.WeakKeyDictionary[Any, weakref.ref[KVCacheManager]] = weakref.WeakKeyDictionary()


def tell_stream(model: Any, manager: KVCacheManager) -> None:
    """Let ``model.stream_state`` speak of this stream from now on."""
    _STREAMS[model] = weakref.ref(manager)


class ModelNames:
    """Of `StreamQwenModel`."""

    @property
    def stream_state(self) -> StreamPosition:
        """Of the engine that was made last with this model."""
        reference = _STREAMS.get(self)
        manager = reference() if reference else None
        if manager is None:
            return StreamPosition(-1, 0)
        length = manager.get_seq_length()
        return StreamPosition(length - 1, max(manager.ledger.next_position) - length)


class EngineNames:
    """Of `VideoStreamingInference`."""

    def _extract_vision_segment(self: Any, ids: Any) -> Any:
        """From the rendering of a chunk's prompt the vision segment: see `trim_to_vision_segment`.

        ``ids`` is a sequence, or a tensor ``[n]`` or ``[1, n]``; what comes back is of its kind.
        """
        from stream_vlm_ros.engine.inputs.chat import trim_to_vision_segment

        config = self.model.config
        marks = config.vision_start_token_id, config.vision_end_token_id
        if not hasattr(ids, "tolist"):
            return trim_to_vision_segment(ids, *marks)
        kept: Sequence[int] = trim_to_vision_segment(ids.flatten().tolist(), *marks)
        return ids.new_tensor(kept).reshape(*ids.shape[:-1], len(kept))


class AutoProcessor:
    """Stands where a script has the library's, whose video part needs torchvision."""

    @staticmethod
    def from_pretrained(
        path: str | Path,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        **_others: Any,
    ) -> StreamProcessor:
        """`StreamProcessor.from_pretrained`, with other bounds of the pixels if they are given.

        The library's further options (``use_fast``, ``trust_remote_code``, ...) change nothing
        here. Raises ModelLoadError.
        """
        from stream_vlm_ros.engine.inputs.processor import StreamProcessor

        processor = StreamProcessor.from_pretrained(path)
        bounds = {"min_pixels": min_pixels, "max_pixels": max_pixels}
        given: dict[str, Any] = {name: value for name, value in bounds.items() if value is not None}
        images = dataclasses.replace(processor.image_settings, **given)
        return dataclasses.replace(processor, image_settings=images)
