# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Whether the extra ``web`` is installed; nothing of it is imported for that."""

from __future__ import annotations

from stream_vlm_ros.machine import why_missing

NEEDED = ("nicegui", "fastapi", "uvicorn")  # requirements/web.txt


def why_no_console() -> str:
    """What the console needs and how it is installed, in one line; "": it is there."""
    return why_missing("the console", "web", NEEDED)
