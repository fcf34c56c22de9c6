# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Positions from scratch: every token of a stream on a list, laid out one by one.

Slow and plain, to hold the engine's ledger against.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

Position = tuple[int, int, int]


class Token(NamedTuple):
    """A text token (``segment`` None), or one of grid ``grid`` of a vision segment.

    ``number`` counts the grids of the whole stream, ``grid`` those of the segment.
    """

    segment: int | None = None
    grid: int = 0
    row: int = 0
    column: int = 0
    number: int = -1


@dataclass(frozen=True)
class Whole:
    """A whole stream of chunks that are alike.

    Attributes:
        tokens: all that were ever appended.
        ticks: of each segment's grids, on the t axis since the stream began.
    """

    tokens: list[Token]
    ticks: list[list[int]]

    @classmethod
    def of(
        cls, ticks: Sequence[int], grids_a_chunk: int, size: tuple[int, int], head: int,
        around: tuple[int, int] | None,
    ) -> Whole:  # fmt: skip
        """Of the ticks of all grids, each of ``size`` (rows, columns).

        ``head`` text tokens come first; ``around`` are those before and after the frames of a
        later user turn, None where all frames are one segment.
        """
        tokens = [Token()] * head
        by_segment: list[list[int]] = []
        for number, tick in enumerate(ticks):
            first = number % grids_a_chunk == 0
            if number == 0 or (first and around is not None):
                tokens += [Token()] * (around[0] if number and around is not None else 0)
                by_segment.append([])
            segment, grid = len(by_segment) - 1, len(by_segment[-1])
            by_segment[-1].append(tick)
            tokens += [
                Token(segment, grid, row, column, number)
                for row in range(size[0])
                for column in range(size[1])
            ]
            if around is not None and (number + 1) % grids_a_chunk == 0:
                tokens += [Token()] * around[1]
        return cls(tokens, by_segment)

    def kept(self, sink: int, grids: set[int], window: int) -> list[int]:
        """Indices of the tokens in memory: the sink's, those of whole grids, the window's."""
        start = len(self.tokens) - window
        between = range(sink, max(sink, start))
        return [
            *range(sink),
            *(index for index in between if self.tokens[index].number in grids),
            *range(max(sink, start), len(self.tokens)),
        ]

    def laid_out(self, indices: Sequence[int]) -> tuple[list[Position], int]:
        """Positions of some of the tokens by the trained rule, as if there were no others.

        And the next text token's. A grid follows the one before it in its segment by the step that
        followed that one originally; text and new segments begin after the maximum of all.
        """
        positions: list[Position] = []
        end, segment, grid, base, t = 0, None, 0, 0, 0
        for index in indices:
            token = self.tokens[index]
            if token.segment is None:
                positions.append((end, end, end))
                end, segment = end + 1, None
                continue
            if token.segment != segment:
                segment, grid, base, t = token.segment, token.grid, end, end
            elif token.grid != grid:
                ticks = self.ticks[token.segment]
                t, grid = t + ticks[grid + 1] - ticks[grid], token.grid
            positions.append((t, base + token.row, base + token.column))
            end = max(end, *(axis + 1 for axis in positions[-1]))
        return positions, end
