# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The language in which a run's settings are changed: ``NAME:engine,setting=value,...``."""

from __future__ import annotations

from typing import Any

from stream_vlm_ros.config import REPLAY, Settings
from stream_vlm_ros.errors import InvalidParameterError


def changed(settings: Settings, text: str | None) -> Settings:
    """With the changes of ``NAME:engine,setting=value,...`` (each part may be left out).

    A setting may be named in its short spelling (``fps``). Without a name the run is called after
    its engine and what was changed.

    Raises InvalidParameterError for a setting that a replay does not take, or a bad value.
    """
    if not text:
        return settings
    name, colon, rest = text.partition(":")
    if not colon or "=" in name or "," in name:
        name, rest = "", text
    changes: dict[str, Any] = {"name": name.strip()} if name.strip() else {}
    for part in filter(None, (part.strip() for part in rest.split(","))):
        key, equals, value = (piece.strip() for piece in part.partition("="))
        if not equals:
            key, value = "engine", key
        row = settings.named(key)
        if REPLAY not in row.takers:
            raise InvalidParameterError(
                f"{row.name} is a setting of the node only; replays do not take it"
            )
        changes[row.name] = row.parsed(value)
    if "name" not in changes and changes:
        shown = [
            f"{key}={str(value).lower() if isinstance(value, bool) else value}"
            for key, value in changes.items()
            if key != "engine"
        ]
        changes["name"] = ",".join([changes.get("engine", settings.engine), *shown])
    return settings.changed(changes)


def as_reported(settings: Settings) -> dict[str, Any]:
    """The settings of a run as they stand in its report."""
    return settings.values(REPLAY) | {"name": settings.title}
