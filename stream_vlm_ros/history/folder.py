# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A history's folder while no engine has it open: what its keys are of; erasing a time of it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from stream_vlm_ros.errors import FrameStoreError
from stream_vlm_ros.history.poses import forget_in
from stream_vlm_ros.history.store import FrameStore

KEYS = "keys"  # next to the pictures
_ANY_SIZE = 1 << 50  # bytes: what is kept is not thinned out by who only looks


class KeptKeys(NamedTuple):
    """What the keys in a folder are of.

    Attributes:
        heads: layer and KV head of each.
        dtype: as torch has it, without "torch.".
        model: hash of the checkpoint.
        bytes: of their files.
    """

    heads: tuple[tuple[int, int], ...]
    head_dim: int
    dtype: str
    model: str
    bytes: int


class Held(NamedTuple):
    """What a folder holds.

    Attributes:
        frames: of all runs of the source's clock.
        reach: stamps of the first and the last of them; None: there are none.
        searched: frames of the present run, which alone is searched.
        searched_reach: stamps of the first and the last of them; None: there are none.
    """

    frames: int
    reach: tuple[float, float] | None
    searched: int = 0
    searched_reach: tuple[float, float] | None = None


class Erased(NamedTuple):
    """What was erased of a folder, and what of it stays."""

    frames: int
    poses: int
    left: int
    reach: tuple[float, float] | None


def keys_in(folder: Path) -> KeptKeys | None:
    """What the keys of the history in ``folder`` are of; None: it has none.

    Raises FrameStoreError where that cannot be read.
    """
    from stream_vlm_ros.history.key_files import binding_in  # with torch

    place = folder / KEYS
    binding = binding_in(place)
    if binding is None:
        return None
    return KeptKeys(
        tuple((int(layer), int(head)) for layer, head in binding["heads"]),
        binding["head_dim"],
        binding["dtype"].removeprefix("torch."),
        binding["model"],
        sum(path.lstat().st_size for path in place.glob("*.keys")),
    )


def held_in(folder: Path) -> Held:
    """What the folder holds. Raises FrameStoreError: it cannot be used."""
    with FrameStore(folder) as store:
        first, last = store.oldest_frame, store.newest_frame
        present = None if first is None or last is None else (first.stamp, last.stamp)
        return Held(len(store), store.reach, len(store) - store.earlier, present)


def erase(folder: Path, start: float, stop: float) -> Erased:
    """Erase pictures, keys and poses from ``start`` to ``stop``, in seconds of the source, both
    included, of every time that the folder holds.

    Raises FrameStoreError: the folder cannot be used; what was erased until then is gone.
    """
    with FrameStore(folder) as store:  # which holds the folder against others
        frames = store.forget_between(start, stop)
        if os.path.lexists(folder / KEYS):
            _erase_keys(folder, start, stop)
        poses = forget_in(folder, start, stop)
        return Erased(frames, poses, len(store), store.reach)


def _erase_keys(folder: Path, start: float, stop: float) -> None:
    import torch

    from stream_vlm_ros.history.index import KeyIndex

    kept = keys_in(folder)
    if kept is None:
        return
    dtype = getattr(torch, kept.dtype, None)
    if not isinstance(dtype, torch.dtype):
        raise FrameStoreError(f"the keys in {folder / KEYS} are of no known kind: {kept.dtype}")
    with KeyIndex(
        kept.heads, kept.head_dim, _ANY_SIZE, dtype=dtype, folder=folder / KEYS, model=kept.model
    ) as index:
        index.forget(index.empty(), start, stop)
