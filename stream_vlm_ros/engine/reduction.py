"""Fewer tokens where nothing happens: which vision tokens of a grid say something new.

Off by default. A static scene is most of a robot's day: a token whose features are almost those
last appended at its place in the picture is left out as long as that one is in memory, and the
others keep their positions.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from .errors import InvalidParameterError


class Known(NamedTuple):
    """What was last appended at each place of the picture."""

    features: torch.Tensor  # [tokens, hidden]
    grids: torch.Tensor  # [tokens]: the number of the grid it came with


class StaticTokenFilter:
    """Leaves out the tokens of a temporal grid that are like what was appended before.

    Args:
        similarity: a token is left out if the cosine between its features and those last appended
            at its place reaches this; above 0, at most 1.
    """

    def __init__(self, similarity: float):
        if not isinstance(similarity, (int, float)) or not 0 < similarity <= 1:
            raise InvalidParameterError(
                f"skip_similarity must be a number above 0 and at most 1: {similarity!r}"
            )
        self.similarity = similarity
        self._known: Known | None = None

    def clear(self) -> None:
        """The next grid is taken whole."""
        self._known = None

    def choose(
        self, features: torch.Tensor, first: int, oldest: int
    ) -> tuple[tuple[tuple[int, ...], ...], Known | None]:
        """Which tokens of each grid to append.

        Args:
            features: ``[grids, rows * columns, hidden]``.
            first: number of the first of these grids in the stream.
            oldest: number of the oldest grid that the window holds whole: a token is left out only
                if the one it is like came with this grid or later.

        Returns:
            For each grid the raster numbers of its tokens, at least one: a grid also marks its
            time. And what is then known, for `accept` once they are appended.
        """
        known, chosen = self._known, []
        for number, grid in enumerate(features, start=first):
            numbers = torch.full((len(grid),), number, device=grid.device)
            if known is None or known.features.shape != grid.shape:
                places, known = torch.arange(len(grid), device=grid.device), Known(grid, numbers)
            else:
                likeness = torch.cosine_similarity(grid.float(), known.features.float(), dim=-1)
                # (A number not below this one was taken back by a restored snapshot.)
                gone = (known.grids < oldest) | (known.grids >= number)
                new = gone | (likeness < self.similarity)
                new[likeness.argmin()] = True
                places = new.nonzero()[:, 0]
                known = Known(
                    torch.where(new[:, None], grid, known.features),
                    torch.where(new, numbers, known.grids),
                )
            chosen.append(tuple(places.tolist()))
        return tuple(chosen), known

    def accept(self, known: Known | None) -> None:
        """The tokens chosen last are in the stream."""
        self._known = known
