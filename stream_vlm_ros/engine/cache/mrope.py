# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""M-RoPE positions: which ids a run of tokens gets, and the rotations they stand for.

Arithmetic on plain integers, plus the two rotations at the end; no model, no cache.

Every token of Qwen2.5-VL has a position on three axes (t, h, w). By the rule the released models
were trained with (``get_rope_index`` of transformers 4.x), a text token counts one on all three
axes; a vision token stands at ``base + (T, row, column)`` with ``T = floor(tokens_per_second *
seconds since the segment began)``; and whatever follows a segment starts at one more than the
maximum of all positions so far, over all three axes.

Rotary attention sees differences only, so a key once rotated never has to be rotated again: when
tokens in the middle are forgotten and the rest is to close up (policy ``contiguous``), it is the
*query* that stands elsewhere for each part of the memory. A run records where its keys were rotated
(``origin``) and by how much that differs from where the run would lie if the kept tokens were laid
out again (``shift``).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, NamedTuple

import torch

from stream_vlm_ros.engine.copies import to_device

POSITION_POLICIES = ("contiguous", "keep_gaps")

# Stamps a hair before a whole position (0.9999999 s) count as on it.
_TICK_TOLERANCE = 2e-3


class Vec(NamedTuple):
    """A position, or a difference of positions, on the axes (t, h, w)."""

    t: int
    h: int
    w: int

    def plus(self, other: Vec) -> Vec:
        return Vec(self.t + other.t, self.h + other.h, self.w + other.w)

    def minus(self, other: Vec) -> Vec:
        return Vec(self.t - other.t, self.h - other.h, self.w - other.w)


ZERO = Vec(0, 0, 0)


def everywhere(value: int) -> Vec:
    """The same value on all three axes: how text counts."""
    return Vec(value, value, value)


def time_to_ticks(seconds: float, tokens_per_second: float) -> int:
    """Positions on the t axis for a time since the stream began.

    Rounded down as in training, from absolute time, so that rounding does not add up.
    """
    return math.floor(seconds * tokens_per_second + _TICK_TOLERANCE)


@dataclass(frozen=True)
class TextSpan:
    """``count`` text tokens to append."""

    count: int


@dataclass(frozen=True)
class VisionSpan:
    """Temporal grids to append: all of ``height x width`` tokens.

    Attributes:
        ticks: position on the t axis since the stream began, one a grid, never falling.
        stamps: the source's time of each grid's first frame and of its last, in seconds.
        opens: a new vision segment begins with the first of the grids.
        places: which of each grid's tokens there are, rising, in raster order; None: all. What is
            left out still takes its place: no position depends on it.
    """

    ticks: tuple[int, ...]
    stamps: tuple[tuple[float, float], ...]
    height: int
    width: int
    opens: bool
    places: tuple[tuple[int, ...], ...] | None = None

    @property
    def count(self) -> int:
        if self.places is not None:
            return sum(map(len, self.places))
        return len(self.ticks) * self.height * self.width


Span = TextSpan | VisionSpan


@dataclass(frozen=True, slots=True)
class Grid:
    """One temporal grid in the ledger: its tick, its size in tokens, its frames' time stamps.

    ``number`` counts all grids of the stream, so that neighbours are known by it.
    """

    tick: int
    height: int
    width: int
    stamps: tuple[float, float]
    number: int
    places: tuple[int, ...] | None = None

    @property
    def count(self) -> int:
        return self.height * self.width if self.places is None else len(self.places)


@dataclass(frozen=True)
class TextRun:
    """Text tokens that lie one after the other. Never changed: what changes is another run."""

    origin: Vec  # where the first token's key was rotated
    count: int
    shift: Vec = ZERO

    def split(self, length: int) -> tuple[TextRun, TextRun]:
        """The first ``length`` tokens, and the others."""
        rest = self.origin.plus(everywhere(length))
        return replace(self, count=length), replace(self, origin=rest, count=self.count - length)

    def shifted(self, shift: Vec) -> TextRun:
        return replace(self, shift=shift)

    def laid_out_at(self, start: int) -> tuple[Vec, int]:
        """Where the run lies when it begins at ``start``, and the first position after it."""
        return everywhere(start), start + self.count


@dataclass(frozen=True)
class VisionRun:
    """Temporal grids of one segment with nothing missing between them.

    A token (grid, row, column) was rotated at ``origin + (grid.tick, row, column)``. Never changed:
    what changes is another run.

    Attributes:
        cut: tokens missing at the front of the first grid.
        cut_end: tokens missing at the end of the last grid (it goes on in the next run).
        continues: the first grid began in the run before.
        step_after: ticks from the last grid to the one that first followed it in another run.
    """

    origin: Vec
    segment: int
    grids: tuple[Grid, ...]
    shift: Vec = ZERO
    cut: int = 0
    cut_end: int = 0
    continues: bool = False
    step_after: int = 0

    @cached_property
    def count(self) -> int:
        return sum(grid.count for grid in self.grids) - self.cut - self.cut_end

    @cached_property
    def _alike(self) -> bool:
        """All grids are of one size."""
        sizes = {(grid.height, grid.width) for grid in self.grids}
        return len(sizes) == 1

    def _changed(self, count: int, **changes: Any) -> VisionRun:
        """The same but for some fields; ``count`` tokens are left.

        What is known of its grids stays known, so that the work does not grow with them.
        """
        twin = object.__new__(VisionRun)
        known = {"_alike": True} if self._alike else {}
        own = {name: self.__dict__[name] for name in self.__dataclass_fields__}
        twin.__dict__.update(own, **known, **changes, count=count)
        return twin

    def shifted(self, shift: Vec) -> VisionRun:
        """The same with another shift. (By `replace` it would take several times as long.)"""
        twin = object.__new__(VisionRun)
        twin.__dict__.update(self.__dict__, shift=shift)
        return twin

    def followed_by(self, grids: tuple[Grid, ...], step: int) -> VisionRun:
        """With more of its segment's grids, the first of them ``step`` ticks after its last."""
        last, more = self.grids[-1], sum(grid.count for grid in grids)
        longer = self._changed(self.count + more, grids=self.grids + grids, step_after=step)
        if any((grid.height, grid.width) != (last.height, last.width) for grid in grids):
            longer.__dict__.pop("_alike", None)
        return longer

    def without_front(self, count: int) -> tuple[VisionRun, tuple[Grid, ...]]:
        """What is left without the first ``count`` tokens, some being left; and the grids gone."""
        at, cut, left = 0, self.cut, count
        while left >= self.grids[at].count - cut:
            left -= self.grids[at].count - cut
            at, cut = at + 1, 0
        continues = self.continues and at == 0
        rest = self._changed(
            self.count - count, grids=self.grids[at:], cut=cut + left, continues=continues
        )
        return rest, self.grids[:at]

    def split(self, length: int) -> tuple[VisionRun, VisionRun]:
        """The first ``length`` tokens, and the others; neither is empty."""
        at, ends = 0, -self.cut
        while ends < length:
            ends += self.grids[at].count
            at += 1
        surplus = ends - length  # of the head's last grid, where the border cuts through it
        last, head, rest = self.grids[at - 1], self.grids[:at], self.count - length
        if surplus:
            cut = last.count - surplus
            return (
                self._changed(length, grids=head, cut_end=surplus, step_after=0),
                self._changed(rest, grids=self.grids[at - 1 :], cut=cut, continues=True),
            )
        step = self.grids[at].tick - last.tick
        return (
            self._changed(length, grids=head, cut_end=0, step_after=step),
            self._changed(rest, grids=self.grids[at:], cut=0, continues=False),
        )

    @cached_property
    def _extent(self) -> tuple[int, int]:
        """Rows and columns that its grids reach over, at most."""
        grids, last = self.grids, self.grids[-1]
        if self._alike and (len(grids) > 1 or not self.cut_end):
            return last.height, last.width
        if not self.cut_end or last.places is not None:
            return max(grid.height for grid in grids), max(grid.width for grid in grids)
        # Of its last grid only the first tokens are there: they may not reach the full extent.
        there = last.count - self.cut_end
        return (
            max([math.ceil(there / last.width), *(grid.height for grid in grids[:-1])]),
            max([min(there, last.width), *(grid.width for grid in grids[:-1])]),
        )

    def end_of(self, origin: tuple[int, int, int]) -> int:
        """The first position after the run, over all axes, if its origin were ``origin``."""
        t, h, w = origin
        height, width = self._extent
        return max(t + self.grids[-1].tick + 1, h + height, w + width)


Run = TextRun | VisionRun


def run_positions(run: Run) -> torch.Tensor:
    if isinstance(run, TextRun):
        line = torch.arange(run.count, dtype=torch.long)
        return torch.stack([line + axis for axis in run.origin])  # [3, count]
    grids = [_grid_positions(run.origin, grid) for grid in run.grids]
    ids = concatenate(grids)
    return ids[:, run.cut : ids.shape[1] - run.cut_end]


def _grid_positions(origin: Vec, grid: Grid) -> torch.Tensor:
    rows = torch.arange(grid.height).repeat_interleave(grid.width) + origin.h
    columns = torch.arange(grid.width).repeat(grid.height) + origin.w
    ticks = torch.full_like(rows, origin.t + grid.tick)
    ids = torch.stack([ticks, rows, columns])  # [3, height * width]
    return ids if grid.places is None else ids[:, list(grid.places)]


def concatenate(ids: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat(list(ids), dim=1) if ids else torch.empty(3, 0, dtype=torch.long)


# -- rotations ---------------------------------------------------------------------------------


class MultimodalRotary(torch.nn.Module):
    """cos and sin of M-RoPE angles, computed in float64.

    In float32 an angle at position 1,000,000 is off by 0.05 rad. The frequencies themselves are
    float32 numbers, in training as here.

    Args:
        theta: the base of the frequencies.
        axis_of: the axis (0: t, 1: h, 2: w) of each of them, half as many as a head is wide.
    """

    def __init__(self, theta: float, axis_of: Sequence[int]):
        super().__init__()
        steps = torch.arange(len(axis_of), device="cpu").float() / len(axis_of)
        # Plain attributes: a cast of the model to bfloat16 must not round the frequencies.
        self._tables = (1.0 / theta**steps).double(), torch.tensor(axis_of, device="cpu")

    def _on(self, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        # Engines in several threads may share it: both tables change at once.
        frequencies, axis_of = self._tables
        if frequencies.device != device:
            frequencies, axis_of = self._tables = frequencies.to(device), axis_of.to(device)
        return frequencies, axis_of

    def angles(self, position_ids: torch.Tensor) -> torch.Tensor:
        """``[3, ..., n]`` ids to ``[..., n, head_dim // 2]`` angles in float64."""
        frequencies, axis_of = self._on(position_ids.device)
        per_axis = position_ids.double()[axis_of]  # [head_dim // 2, ..., n]
        return per_axis.movedim(0, -1) * frequencies

    @torch.no_grad()
    def forward(
        self, position_ids: torch.Tensor, dtype: torch.dtype
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin of ids ``[3, ..., n]``, each ``[..., n, head_dim]``."""
        angles = self.angles(position_ids)
        cos, sin = angles.cos().to(dtype), angles.sin().to(dtype)
        return torch.cat([cos, cos], dim=-1), torch.cat([sin, sin], dim=-1)

    def offset(self, offset: Vec, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
        """cos and sin, ``[head_dim]`` float32, that rotate by ``offset`` positions more."""
        ids = to_device(torch.tensor([offset], dtype=torch.long), device).T  # [3, 1]
        angles = self.angles(ids)[0]
        angles = torch.cat([angles, angles])
        return angles.cos().float(), angles.sin().float()


def rotate(
    x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor, out: torch.Tensor | None = None
) -> torch.Tensor:
    """Rotate ``x [..., head_dim]`` by the given angles, in float32, to ``x``'s dtype.

    ``cos`` and ``sin`` hold each angle twice, as the library lays them out. ``out``: where to
    write, not ``x`` itself.
    """
    half = x.shape[-1] // 2
    first, second = x[..., :half].float(), x[..., half:].float()
    cos, sin = cos[..., :half], sin[..., :half]
    if out is None:
        out = torch.empty_like(x)
    # By halves: the library's form, which joins them turned round, takes several times as long.
    out[..., :half] = torch.addcmul(first * cos, second, sin, value=-1)
    out[..., half:] = torch.addcmul(second * cos, first, sin)
    return out
