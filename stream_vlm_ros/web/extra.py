# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Whether the extra ``web`` is installed; nothing of it is imported for that."""

from __future__ import annotations

import importlib.util
import sys

NEEDED = ("nicegui", "fastapi", "uvicorn")  # requirements/web.txt


def why_no_console() -> str:
    """What the console needs and how it is installed, in one line; "": it is there."""
    missing = [name for name in NEEDED if importlib.util.find_spec(name) is None]
    if not missing:
        return ""
    return (
        f"the console needs {', '.join(missing)}: {sys.executable} -m pip install "
        "'stream-vlm-ros[web]', or in a checkout -r requirements/web.txt"
    )
