# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The time line on the page."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from nicegui import events, ui

from .time_line import KINDS, MS, TimeLine

Span = tuple[int, int]  # nanoseconds of the source, from and to


class TimeLineView(ui.element, component="time_line_view.js"):
    """Draws a time line, and lets a time be picked.

    Args:
        choose: is given what was picked; None: nothing any more.
    """

    def __init__(self, choose: Callable[[Span | None], None]) -> None:
        super().__init__()
        self._choose = choose
        self.props["kinds"] = KINDS
        self.on("choose", self._pick)

    def show(
        self, line: TimeLine | None, index: int, marked: Iterable[Span], chosen: Span | None
    ) -> None:
        """Draw it.

        Args:
            index: of the camera.
            marked: what the last answer rests on.
            chosen: what the next question is about.
        """
        new = {
            "line": None if line is None else line.props,
            "thumbnails": f"cameras/{index}/thumbnails",
            "marked": line.spans(marked) if line else [],
            "chosen": line.spans([chosen])[:1] if line and chosen else [],
        }
        if any(self.props.get(name) != value for name, value in new.items()):
            self.props.update(new)
            self.update()

    def _pick(self, event: events.GenericEventArguments) -> None:
        if (picked := event.args) is None:
            self._choose(None)
            return
        origin = int(picked["origin"])
        self._choose((origin + picked["from"] * MS, origin + picked["to"] * MS))
