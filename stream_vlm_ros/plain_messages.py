# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Generated messages <-> dictionaries that JSON can hold, by the messages' own field names."""

from __future__ import annotations

import importlib
from collections.abc import Collection
from typing import Any


def to_dict(message: Any, leave_out: Collection[str] = ()) -> dict[str, Any]:
    """Every field of ``message`` and of those within it, but for fields of a name in
    ``leave_out``."""
    return {
        name: _plain(getattr(message, name), leave_out)
        for name in message.get_fields_and_field_types()
        if name not in leave_out
    }


def _plain(value: Any, leave_out: Collection[str]) -> Any:
    if hasattr(value, "get_fields_and_field_types"):
        return to_dict(value, leave_out)
    if isinstance(value, (str, bool, int, float)):
        return value
    if isinstance(value, bytes):  # ROS's type byte
        return value[0]
    if hasattr(value, "tolist"):  # of numbers
        return value.tolist()
    return [_plain(one, leave_out) for one in value]


def fill(message: Any, fields: dict[str, Any]) -> Any:
    """``message`` with what `to_dict` gave; fields that either side does not know are left.

    Raises AssertionError, AttributeError or TypeError for values that the message cannot have.
    """
    if hasattr(message, "_check_fields"):  # else, with newer ROS, the process dies as it is sent
        message._check_fields = True
    for name, kind in message.get_fields_and_field_types().items():
        if name not in fields:
            continue
        value, now = fields[name], getattr(message, name)
        if hasattr(now, "get_fields_and_field_types"):
            fill(now, value)
        elif "/" in kind:  # sequence<package/Name>
            package, _, type_name = kind.partition("<")[2].rstrip(">").partition("/")
            make = getattr(importlib.import_module(f"{package}.msg"), type_name)
            setattr(message, name, [fill(make(), one) for one in value])
        else:
            # Whoever filled the message may have put a whole number where ROS has a float.
            whole = kind in ("float", "double") and type(value) is int
            setattr(message, name, float(value) if whole else value)
    return message
