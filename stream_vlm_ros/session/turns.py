# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Whose turn it is while an answer is being written: its own next token's, or a chunk's."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Turns:
    """Shares the time of one answer between its tokens and the chunks that come meanwhile.

    Of ``elapsed`` seconds since the question was begun, chunks get about ``share``: one may begin
    where those before it took no more than that. So an answer that takes ``T`` seconds alone takes
    less than ``(T + C) / (1 - share)`` with chunks of at most ``C`` seconds between its tokens.

    Args:
        clock: seconds from any start.

    Attributes:
        chunks: how many have been appended.
        closed: no further chunk has a turn (there is no room next to what the answer reads).
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._begin = clock, clock()
        self._spent = 0.0  # seconds, on chunks
        self.chunks = 0
        self.closed = False

    def is_chunks(self, share: float) -> bool:
        """Whether a waiting chunk may go before the next token."""
        elapsed = self._clock() - self._begin
        return not self.closed and share > 0 and self._spent <= share * elapsed

    @contextmanager
    def chunk(self) -> Iterator[None]:
        """Around a chunk's turn."""
        begin = self._clock()
        try:
            yield
        finally:
            self._spent += self._clock() - begin
            self.chunks += 1
