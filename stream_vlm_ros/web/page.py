# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The page: one screen that shows a memory at work and asks it."""

from __future__ import annotations

from collections.abc import Sequence

from nicegui import ui

from .live_memory import LiveMemory
from .picture_view import PictureView


class Page:
    """What one viewer sees."""

    def __init__(self, memories: Sequence[LiveMemory]) -> None:
        self._memories = memories

    def build(self) -> None:
        """Lay it out; called once a viewer, in the page's own context."""
        ui.label("stream_vlm")
        for index, memory in enumerate(self._memories):
            PictureView(index, memory.name)
