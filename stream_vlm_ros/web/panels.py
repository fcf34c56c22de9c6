# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What opens over the page: settings, past answers, saving, loading, a question before a reset."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from datetime import datetime
from typing import Any

from nicegui import ui
from nicegui.elements.mixins.validation_element import ValidationElement

from stream_vlm_ros.config import Settings
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import InvalidParameterError, StreamVlmError
from stream_vlm_ros.setting import ALWAYS, Setting

from .conversation import sentence
from .live_memory import LiveMemory, PastAnswer
from .tags import put, tag, tool, words_button
from .titles import TITLES, title

MemoryOf = Callable[[], LiveMemory]
MORE = "chunk_frames"  # from here on they are shown on demand


def tell(words: str, *, bad: bool = False) -> None:
    """In a line that goes by itself; what went wrong stays longer, until something else does."""
    ui.notify(
        sentence(words),
        position="bottom",
        classes="sv-told sv-bad" if bad else "sv-told",
        timeout=8000 if bad else 3500,
        close_button="Close" if bad else False,
        multi_line=bad,
        group="sv-bad" if bad else False,
        badgeClass="hidden",  # how many there have been
    )


async def order(ordered: Awaitable[str]) -> bool:
    """Have it carried out, and tell what came of it."""
    try:
        tell(await ordered)
    except StreamVlmError as refusal:
        tell(str(refusal), bad=True)
        return False
    return True


@contextlib.contextmanager
def _dialog(title: str, kind: str = "") -> Iterator[ui.dialog]:
    with ui.dialog() as dialog, tag("div", f"sv-dialog {kind}"):
        put(dialog, "aria-label", title)
        with tag("div", "sv-dialog-head"):
            ui.label(title).classes("sv-title").props("role=heading aria-level=2")
            tool("close", "Close", dialog.close)
        yield dialog


class Panels:
    """Each is opened by a method of its own."""

    def __init__(self, memory: MemoryOf) -> None:
        self._memory = memory
        self._boxes: list[Callable[[], None]] = []  # each brings a setting's up to date

    def build(self) -> None:
        """Lay them out, closed; called once, in the page's context."""
        with _dialog("Forget everything?") as self._resetting:
            _text("The memory is emptied. What was saved stays, and so do past answers.")
            with tag("div", "sv-dialog-foot"):
                words_button("Cancel", self._resetting.close)
                words_button("Forget", self._reset, "unelevated").props("color=negative")
        with _dialog("Begin a new memory?") as self._new_memory:
            _text("This setting is of the memory itself: what is held now is forgotten.")
            with tag("div", "sv-dialog-foot"):
                words_button("Cancel", lambda: self._new_memory.submit(False))
                words_button("Begin", lambda: self._new_memory.submit(True), "unelevated")
        with _dialog("Save the memory") as self._saving:
            self._name = ui.input("Name", placeholder="by the time, if empty").props("outlined")
            self._name.on("keydown.enter", self._save)
            with tag("div", "sv-dialog-foot"):
                words_button("Cancel", self._saving.close)
                words_button("Save", self._save, "unelevated")
        with _dialog("Load a memory") as self._loading:
            _text("It takes the place of the present one.")
            self._names = tag("div", "sv-list")
        with _dialog("Settings", "sv-wide") as self._settings:
            _text("They take effect at once, for all who look at this memory.")
            self._rows = tag("div", "sv-settings")
        with _dialog("Past answers", "sv-wide") as self._past:
            self._search = ui.input("Search questions and answers", on_change=self._find)
            self._search.props("outlined dense clearable debounce=200")
            self._found = tag("div", "sv-list", aria_live="polite")

    def reset(self) -> None:
        """Ask before everything is forgotten."""
        self._resetting.open()

    def save(self) -> None:
        """Ask for a name."""
        self._name.value = ""
        self._saving.open()

    async def load(self) -> None:
        """Offer what was saved."""
        try:
            names = await self._memory().saved_names()
        except StreamVlmError as refusal:
            tell(str(refusal), bad=True)
            return
        self._names.clear()
        with self._names:
            for name in names:
                ui.button(
                    name, icon="inventory_2", on_click=lambda name=name: self._load(name)
                ).props("flat no-caps align=left")
            if not names:
                ui.label("Nothing has been saved yet.").classes("sv-soft")
        self._loading.open()

    def settings(self) -> None:
        """Offer what may change now."""
        self._rows.clear()
        self._boxes.clear()
        values = self._memory().status.settings
        rows = sorted((Settings.named(name) for name in values), key=_place)
        always = [row for row in rows if row.change == ALWAYS]
        of_a_new_memory = [row for row in rows if row.change != ALWAYS]
        first = [row for row in always if _place(row) < list(TITLES).index(MORE)]
        with self._rows:
            for row in first:
                self._row(row, values[row.name])
            if of_a_new_memory:
                ui.label("What is kept").classes("sv-label").props("role=heading aria-level=3")
                _text("A change of these begins a new memory.")
            for row in of_a_new_memory:
                self._row(row, values[row.name])
            if more := [row for row in always if row not in first]:
                with ui.expansion("More").classes("sv-more"):
                    for row in more:
                        self._row(row, values[row.name])
            if not rows:
                ui.label("Nothing can be changed now.").classes("sv-soft")
        self._settings.open()

    def refresh(self) -> None:
        """Show what somebody else has set meanwhile."""
        if self._settings.value:
            for refresh in self._boxes:
                refresh()

    async def past(self) -> None:
        """Show what was asked before."""
        self._search.value = ""
        await self._find()
        self._past.open()

    async def _reset(self) -> None:
        self._resetting.close()
        await order(self._memory().reset())

    async def _save(self) -> None:
        self._saving.close()
        await order(self._memory().save((self._name.value or "").strip()))

    async def _load(self, name: str) -> None:
        self._loading.close()
        await order(self._memory().load(name))

    def _row(self, row: Setting, value: Any) -> None:
        name = title(row.name)
        shown = {"value": _shown(value)}
        box: Any
        with tag("div", "sv-setting"):
            if row.type is bool:
                box = ui.switch(name, value=value)
            elif row.choices:
                box = ui.select(list(row.choices), label=name, value=value)
            elif row.type in (int, float):
                box = ui.number(name, value=value)  # without limits, which it applies in silence
            else:
                box = ui.input(name, value=shown["value"])
            box.props("outlined dense")
            ui.label(row.text).classes("sv-soft sv-help")

        def refresh() -> None:
            now = _shown(self._memory().status.settings.get(row.name, value))
            if now != shown["value"]:
                untouched, shown["value"] = box.value == shown["value"], now
                if untouched:
                    box.value = now

        async def change() -> None:
            refresh()
            if box.value == shown["value"]:
                return
            try:
                wanted = row.checked(_typed(row, box.value))
                if row.change != ALWAYS:
                    await self._memory().check(**{row.name: wanted})
                    if not await self._sure():
                        box.value = shown["value"]
                        return
                told = await self._memory().set(**{row.name: wanted})
            except StreamVlmError as refusal:
                box.value = shown["value"]
                words = str(refusal).replace(row.name, name, 1)
                if isinstance(box, ValidationElement):
                    box.error = sentence(words)  # until something else is typed
                else:
                    tell(words, bad=True)
            else:
                shown["value"] = _shown(self._memory().status.settings.get(row.name, wanted))
                tell(told)

        self._boxes.append(refresh)
        if isinstance(box, ui.number | ui.input):
            box.on("blur", change).on("keydown.enter", change)
        else:
            box.on_value_change(change)

    async def _sure(self) -> bool:
        """Whether a new memory shall begin."""
        return bool(await self._new_memory)

    async def _find(self) -> None:
        try:
            found = await self._memory().past_answers((self._search.value or "").strip())
        except StreamVlmError as refusal:
            tell(str(refusal), bad=True)
            return
        self._found.clear()
        with self._found:
            for one in reversed(found):
                _past_answer(one)
            if not found:
                ui.label(
                    "Nothing was found." if self._search.value else "Nothing was asked yet."
                ).classes("sv-soft")


def _place(row: Setting) -> int:
    """In the order of `TITLES`, what is not there at the end."""
    return list(TITLES).index(row.name) if row.name in TITLES else len(TITLES)


def _shown(value: Any) -> Any:
    """As it stands in a box."""
    return value if isinstance(value, bool | int | float) else str(value)


def _typed(row: Setting, value: Any) -> Any:
    """What stands in a box; a whole number without its point.

    Raises InvalidParameterError for an empty box of a number's.
    """
    if row.type in (int, float) and value in (None, ""):
        raise InvalidParameterError(f"{row.name} needs a number")
    if row.type is int and isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def _text(words: str) -> None:
    ui.label(words).classes("sv-text")


def _past_answer(one: PastAnswer) -> None:
    when = datetime.fromtimestamp(one.answered_ns / SECOND)
    said = sentence(one.error) if one.error else one.text
    with tag("article", "sv-past"):
        ui.label(f"{when:%d %b %H:%M:%S}").classes("sv-soft")
        ui.label(one.question).classes("sv-past-asked")
        ui.label(said).classes("sv-error" if one.error else "sv-past-said")
        if one.choices:
            ui.label("of: " + ", ".join(one.choices)).classes("sv-soft")
