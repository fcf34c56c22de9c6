# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The page: one screen that shows a memory at work and asks it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

from nicegui import ui

from stream_vlm_ros.session.memory_summary import LEVELS
from stream_vlm_ros.session.question import Outcome

from .conversation import Conversation, sentence
from .figures import (
    dropped,
    figures,
    length_text,
    share,
    state_text,
    taken_text,
)
from .live_memory import LiveMemory, Status
from .panels import Panels, order, tell
from .picture_view import PictureView
from .report import report_page
from .tags import put, tag, tool
from .time_line import EXPLAINED, KINDS, NewestLine
from .time_line_view import Span, TimeLineView

PERIOD = 0.5  # s between two looks at the memory
STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")
LEGEND = (*LEVELS, "history", "forgotten")


class Page:
    """What one viewer sees.

    Args:
        lines: of the memories.
    """

    def __init__(self, memories: Sequence[LiveMemory], lines: Sequence[NewestLine]) -> None:
        self._memories, self._lines = memories, lines
        self._index = 0
        self._about: Span | None = None
        self._evidence: tuple[Span, ...] = ()
        self._told: set[str] = set()  # faults
        self._panels = Panels(self._memory)
        self._talk = Conversation(
            self._memory,
            lambda: self._about,
            lambda: self._choose(None),
            self._answered,
            self._look,
            len(memories) > 1,
        )

    def _memory(self) -> LiveMemory:
        return self._memories[self._index]

    def build(self) -> None:
        """Lay it out; called once a viewer, in the page's own context."""
        ui.add_css(STYLE)
        ui.query(".nicegui-content").classes("sv-page")
        self._panels.build()
        self._head()
        with tag("main", "sv-main") as self._main:
            with ui.element("div").classes("sv-left"):
                self._pictures()
                self._status_card()
            self._talk.build()
            self._line_card()
        self._set_connected(False)
        ui.on_exception(self._fault)
        ui.timer(PERIOD, self.refresh)
        ui.context.client.on_connect(lambda: self._set_connected(True))
        ui.context.client.on_delete(self._talk.cancel_all)

    def _set_connected(self, connected: bool) -> None:
        """Until it is, nothing is taken: NiceGUI would send it later, and in any order.

        A question could overtake the choice of its camera.
        """
        self._connected = connected
        for part in (self._tools, self._main):
            put(part, "inert", not connected)
        self.refresh()

    def _head(self) -> None:
        with tag("header", "sv-head"):
            ui.html(LOGO, sanitize=False).classes("sv-logo").props("aria-hidden=true")
            ui.label("stream_vlm").classes("sv-brand").props("role=heading aria-level=1")
            with tag("div", "sv-state", role="status") as self._state:
                tag("span", "sv-lamp", aria_hidden="true")
                self._state_text = ui.label()
            self._model = ui.label().classes("sv-soft sv-model")
            tag("span", "sv-space")
            with tag("nav", "sv-tools", aria_label="Memory") as self._tools:
                self._pause = tool("pause", "Pause", self._pause_or_resume)
                tool("save", "Save", self._panels.save)
                tool("folder_open", "Load", self._panels.load)
                tool("restart_alt", "Reset", self._panels.reset)
                tag("span", "sv-rule")
                tool("history", "Past answers", self._panels.past)
                tool("download", "Download the conversation", self._download)
                tool("tune", "Settings", self._panels.settings)

    def _pictures(self) -> None:
        with tag("section", "sv-card sv-live", aria_label="Live picture"):
            self._picture = PictureView(0, self._memory().name)
            with tag("div", "sv-words", role="status") as self._why:
                self._why_text = ui.label()
            self._cameras: list[ui.element] = []
            if len(self._memories) > 1:
                with tag("div", "sv-cameras", role="group", aria_label="Cameras"):
                    for index, memory in enumerate(self._memories):
                        self._camera(index, memory.name)

    def _camera(self, index: int, name: str) -> None:
        pressed = "true" if index == self._index else "false"
        button = tag("button", "sv-camera", type="button", aria_pressed=pressed)
        put(button, "aria-label", f"Camera {name}")
        with button.on("click", lambda: self._turn_to(index)):
            PictureView(index, name, small=True)
            ui.label(name)
        self._cameras.append(button)

    def _status_card(self) -> None:
        with tag("section", "sv-card sv-figures", aria_label="State of the memory"):
            with tag("div", "sv-length"):
                ui.label("Memory").classes("sv-label").props("role=heading aria-level=2")
                self._length = ui.label().classes("sv-number")
            self._bar = tag("div", "sv-bar", role="meter", aria_valuemin=0, aria_valuemax=100)
            put(self._bar, "aria-label", "Share of the memory that is filled")
            self._figures = []
            with tag("dl", "sv-grid"):
                for _ in figures(Status()):
                    with tag("div") as box:
                        with tag("dt"):
                            label = ui.label()
                        with tag("dd", "sv-number"):
                            self._figures.append((label, ui.label(), box))
            with tag("div", "sv-drops"):
                self._taken = ui.label()
                self._drops = tag("ul", aria_label="Pictures that were not remembered")
                self._saved = ui.label()
            self._dropped: list[tuple[str, bool]] = []

    def _line_card(self) -> None:
        with tag("section", "sv-card sv-time", aria_label="What was seen"):
            self._line = TimeLineView(self._choose)
            with tag("div", "sv-under"):
                with tag("ul", "sv-legend", aria_label="Where a time is now"):
                    for kind in LEGEND:
                        with tag("li", title=EXPLAINED[kind]):
                            tag("span", f"sv-dot sv-{kind}", aria_hidden="true")
                            ui.label(KINDS[kind])
                ui.label(HELP).classes("sv-soft sv-help-line").props("id=sv-line-help")

    def refresh(self) -> None:
        """Show the memory as it is now."""
        memory = self._memory()
        status = memory.status
        state = state_text(status) if self._connected else "Connecting"
        self._state_text.set_text(state)
        put(self._state, "data-state", state.lower().replace(" ", "-"))
        self._model.set_text(" · ".join(filter(None, [status.model, status.device])))
        words = status.words or {"loading": "The model is being loaded"}.get(status.state, "")
        self._why.set_visibility(bool(words))
        self._why_text.set_text(sentence(words) if words else "")
        paused = status.paused
        put(self._pause, "icon", "play_arrow" if paused else "pause")
        put(self._pause, "aria-label", "Resume" if paused else "Pause")
        self._length.set_text(length_text(status))
        put(self._bar, "aria-valuenow", round(100 * share(status)))
        self._bar.style(f"--share: {share(status):.2f}")
        for figure, (label, value, box) in zip(figures(status), self._figures, strict=True):
            label.set_text(figure.label)
            value.set_text(figure.value)
            put(box, "title", figure.more)
        self._taken.set_text(taken_text(status.counters))
        self._saved.set_text(f"Last save: {status.saved}" if status.saved else "")
        if (why := dropped(status.counters)) != self._dropped:
            self._dropped = why
            self._drops.clear()
            with self._drops:
                for text, on_purpose in why:
                    with ui.element("li").classes("" if on_purpose else "sv-lost"):
                        ui.label(text)
        self._talk.show_examples()
        self._show_line(status)
        self._panels.refresh()

    def _show_line(self, status: Status) -> None:
        line = self._lines[self._index].of(status.memory)
        self._line.show(line, self._index, self._evidence, self._about)

    def _choose(self, span: Span | None) -> None:
        self._about = span
        self._talk.show_about()
        self._show_line(self._memory().status)

    def _look(self, span: Span) -> None:
        self._choose(span)

    def _answered(self, memory: LiveMemory, outcome: Outcome) -> None:
        if memory is self._memory() and outcome.error is None:
            self._evidence = tuple((one.start_ns, one.end_ns) for one in outcome.evidence)
            self._show_line(memory.status)

    def _turn_to(self, index: int) -> None:
        self._index = index
        self._about, self._evidence = None, ()
        self._picture.turn_to(index, self._memory().name)
        for number, button in enumerate(self._cameras):
            put(button, "aria-pressed", "true" if number == index else "false")
        self._talk.show_about()
        self.refresh()

    def _fault(self, fault: Exception) -> None:
        """What nobody foresaw; it is in the log with where it came from."""
        words = f"internal error: {fault!r}; see what the console printed"
        if words not in self._told:
            self._told.add(words)
            tell(words, bad=True)

    async def _pause_or_resume(self) -> None:
        memory = self._memory()
        await order(memory.resume() if memory.status.paused else memory.pause())
        self.refresh()

    def _download(self) -> None:
        if not self._talk.exchanges:
            tell("there is no answer yet to put into a report")
            return
        page = report_page(self._talk.exchanges, self._memory().status)
        name = f"stream_vlm_{datetime.now():%Y-%m-%d_%H-%M-%S}.html"
        ui.download.content(page.encode(), name, "text/html")


HELP = "Click or drag to ask about a time. With keys: arrows, then Enter."
LOGO = """<svg viewBox="0 0 28 28" width="26" height="26">
<rect x="1" y="6" width="4" height="16" rx="2" fill="var(--sink)"/>
<rect x="7" y="9" width="4" height="10" rx="2" fill="var(--important)"/>
<rect x="13" y="11" width="4" height="6" rx="2" fill="var(--history)"/>
<rect x="19" y="4" width="8" height="20" rx="2.5" fill="var(--window)"/></svg>"""
