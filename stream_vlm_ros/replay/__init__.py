# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Timed questions over a source, without a robot and without a ROS graph, and their report."""

import importlib
from typing import Any

import stream_vlm_ros.world  # noqa: F401 (world:SEED is a source here)

# Looked up only when asked for: the command line's help should not wait for them.
_HOMES = {"Fed": "feeding", "chunks": "feeding", "feed": "feeding"}

__all__ = ["Fed", "chunks", "feed"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
