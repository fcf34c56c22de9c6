# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Frames gathered into chunks: what is encoded together."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Generic, TypeVar

from stream_vlm_ros.errors import InvalidParameterError

Frame = TypeVar("Frame")


class Chunker(Generic[Frame]):
    """Gathers frames of one ``kind`` (their size) into chunks of ``chunk_frames``.

    A frame of another kind closes the open chunk early: one chunk is one tensor.

    Attributes:
        chunk_frames: may be changed at any time.
        frames: of the open chunk.

    Raises:
        InvalidParameterError: ``chunk_frames`` below 1.
    """

    def __init__(self, chunk_frames: int) -> None:
        if chunk_frames < 1:
            raise InvalidParameterError(f"A chunk has {chunk_frames} frames; it needs at least 1.")
        self.chunk_frames = chunk_frames
        self.frames: list[Frame] = []
        self._kind: Hashable = None
        self._opened_ns = 0

    def add(self, frame: Frame, kind: Hashable = None, now_ns: int = 0) -> list[list[Frame]]:
        """Take a frame in at ``now_ns``; the chunks it completes, none to two of them."""
        done = []
        if self.frames and kind != self._kind:
            done.append(self.flush())
        if not self.frames:
            self._kind, self._opened_ns = kind, now_ns
        self.frames.append(frame)
        if len(self.frames) >= self.chunk_frames:
            done.append(self.flush())
        return done

    def is_overdue(self, now_ns: int, max_delay_ns: int) -> bool:
        """Whether the open chunk has waited ``max_delay_ns`` (0: it may wait forever).

        A clock that went backwards since the chunk was opened counts as overdue.
        """
        waited = now_ns - self._opened_ns
        return bool(self.frames) and max_delay_ns > 0 and not 0 <= waited < max_delay_ns

    def flush(self, count: int | None = None) -> list[Frame]:
        """The first ``count`` frames of the open chunk (None: all), which leave it."""
        frames, self.frames = self.frames[:count], [] if count is None else self.frames[count:]
        return frames


def gather(
    frames: Iterable[Frame], chunk_frames: int, kind: Callable[[Frame], Hashable]
) -> Iterator[list[Frame]]:
    """``frames`` in chunks, each before the next frame is read; the last may be shorter.

    Raises:
        InvalidParameterError: ``chunk_frames`` below 1.
    """
    chunker: Chunker[Frame] = Chunker(chunk_frames)
    for frame in frames:
        yield from chunker.add(frame, kind(frame))
    if chunker.frames:
        yield chunker.flush()
