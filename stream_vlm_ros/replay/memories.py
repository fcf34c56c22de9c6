# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The memory that a run begins with, and what it leaves: its memory, and frames in a folder."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import InvalidParameterError, MemoryFileError

if TYPE_CHECKING:
    from stream_vlm_ros.engine import InferenceEngine
    from stream_vlm_ros.engine.results import SavedMemory


def check_free(path: str) -> None:
    """Raise NotOursError or MemoryFileError if no memory could be saved there."""
    from stream_vlm_ros.engine.saving.memory_file import check_replaceable

    place = Path(os.path.abspath(os.path.expanduser(path)))
    if not place.parent.is_dir():
        raise MemoryFileError(f"the memory cannot be saved as {path}: there is no such folder")
    check_replaceable(place)


class RunMemory:
    """Engines of a run, whose memory is loaded from a file and saved in one.

    Args:
        settings: ``load_memory`` and ``save_memory`` name the files, ``frame_store`` the folder, ""
            none.
        make: builds an engine.
    """

    def __init__(self, settings: Settings, make: Callable[[Settings], InferenceEngine]) -> None:
        self._settings, self._make = settings, make
        self._engines: list[InferenceEngine] = []

    def engine(self) -> InferenceEngine:
        """A further engine of the run; stamps in it are the source's own seconds.

        Raises InvalidParameterError for a second one where a file or a folder is named: it holds
        one memory.
        """
        settings = self._settings
        named = settings.load_memory or settings.save_memory or settings.frame_store
        if self._engines and named:
            raise InvalidParameterError(
                "frames of several cameras come, each with a memory of its own, but a file of "
                "load_memory or save_memory and a frame_store hold one: choose a camera (--topic)"
            )
        self._engines.append(self._make(settings))
        if settings.load_memory:
            self._engines[-1].load_memory(settings.load_memory, origin_ns=0)
        return self._engines[-1]

    @contextlib.contextmanager
    def saved_at_the_end(self, tell: Callable[[SavedMemory], None]) -> Iterator[None]:
        """Save it when the block ends, also where a question in it was refused; and tell of it."""
        try:
            yield
        finally:
            if self._settings.save_memory:
                tell(self.save())

    def save(self) -> SavedMemory:
        """Save it; raises what `InferenceEngine.save_memory` raises."""
        if not self._engines:
            raise InvalidParameterError("no frame came: there is no memory to save")
        return self._engines[0].save_memory(self._settings.save_memory)

    def close(self) -> None:
        """Give back what its engines opened."""
        for engine in self._engines:
            engine.close()
