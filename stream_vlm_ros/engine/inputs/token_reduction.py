# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Fewer tokens where nothing happens: which vision tokens of a grid say something new.

Off by default. A static scene is most of a robot's day: a token whose features are almost those
last appended at its place in the picture is left out as long as that one is in memory, and the
others keep their positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from stream_vlm_ros.errors import InvalidParameterError, real_number


class Known(NamedTuple):
    """What was last appended at each place of the picture."""

    features: torch.Tensor  # [rows, columns, hidden]
    grids: torch.Tensor  # [rows, columns]: the number of the grid it came with


class StaticTokenFilter:
    """Leaves out the tokens of a temporal grid that are like what was appended before.

    Args:
        similarity: a token is left out if the cosine between its features and those last appended
            at its place reaches this; above 0, at most 1.
    """

    def __init__(self, similarity: float):
        reached = real_number(similarity)
        if reached is None or not 0 < reached <= 1:
            raise InvalidParameterError(
                f"skip_similarity must be a number above 0 and at most 1: {similarity!r}"
            )
        self.similarity = reached

    def choose(
        self, features: torch.Tensor, first: int, oldest: int, known: Known | None
    ) -> tuple[tuple[tuple[int, ...], ...], Known | None]:
        """Which tokens of each grid to append.

        Args:
            features: ``[grids, rows, columns, hidden]``.
            first: number of the first of these grids in the stream.
            oldest: number of the oldest grid that the window will hold whole: a token is left out
                only if the one it is like came with this grid or later.
            known: what the stream knows; None: nothing, as after a change of the picture's size.

        Returns:
            For each grid the raster numbers of its tokens, at least one: a grid also marks its
            time. And what is known once they are appended.
        """
        chosen = []
        for number, grid in enumerate(features, start=first):
            numbers = torch.full(grid.shape[:2], number, device=grid.device)
            if known is None or known.features.shape != grid.shape:
                new, known = torch.ones_like(numbers, dtype=torch.bool), Known(grid, numbers)
            else:
                likeness = torch.cosine_similarity(grid.float(), known.features.float(), dim=-1)
                new = (known.grids < oldest) | (likeness < self.similarity)
                new.view(-1)[likeness.argmin()] = True
                known = Known(
                    torch.where(new[..., None], grid, known.features),
                    torch.where(new, numbers, known.grids),
                )
            chosen.append(tuple(new.flatten().nonzero()[:, 0].tolist()))
        return tuple(chosen), known
