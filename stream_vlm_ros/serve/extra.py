# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Whether the extra ``serve`` is installed; nothing of it is imported for that."""

from __future__ import annotations

from stream_vlm_ros.machine import why_missing

NEEDED = ("fastapi", "uvicorn", "websockets", "msgspec", "prometheus_client")


def why_not_served() -> str:
    """What the server needs and how it is installed, in one line; "": it is there."""
    return why_missing("the server", "serve", NEEDED)


def why_not_on_ray() -> str:
    """The same for ``--ray``."""
    return why_missing("--ray", "ray", (*NEEDED, "ray"))
