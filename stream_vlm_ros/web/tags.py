# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Elements of the page, briefly."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from nicegui import ui


def tag(name: str, classes: str = "", /, **attributes: Any) -> ui.element:
    """An element of HTML; ``aria_label`` becomes ``aria-label``."""
    made = ui.element(name).classes(classes)
    for key, value in attributes.items():
        put(made, key, value)
    return made


def put(element: ui.element, name: str, value: Any) -> None:
    """Give it an attribute; sent only where it changes something."""
    name = name.replace("_", "-")
    if element.props.get(name) != value:
        element.props[name] = value


def tool(icon: str, name: str, on_click: Callable[..., Any] | None = None) -> ui.button:
    """A round button of which the name is told when it is pointed at, or read out."""
    button = ui.button(icon=icon, on_click=on_click, color=None).props("flat round")
    button.classes("sv-tool")
    button.props["aria-label"] = name
    with button:
        ui.tooltip(name)
    return button


def words_button(text: str, on_click: Callable[..., Any], kind: str = "flat") -> ui.button:
    """A button with words on it; ``kind`` is one of Quasar's looks."""
    color = None if kind == "flat" else "primary"
    return ui.button(text, on_click=on_click, color=color).props(f"{kind} no-caps")
