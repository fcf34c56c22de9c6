# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The live picture on the page."""

from __future__ import annotations

from nicegui import ui


class PictureView(ui.element, component="picture_view.js"):
    """Shows the newest picture of a camera with its time.

    Args:
        index: of the camera.
        name: for those who do not see it.
        small: one among several, with a picture a second.
    """

    def __init__(self, index: int, name: str, small: bool = False) -> None:
        super().__init__()
        self.props["pause"] = 1000 if small else 0
        self.turn_to(index, name)

    def turn_to(self, index: int, name: str) -> None:
        """Show another camera from now on."""
        self.props["url"] = f"cameras/{index}/pictures"
        self.props["label"] = f"Live picture of {name}"
