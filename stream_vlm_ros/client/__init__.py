# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Asking and watching a node that runs.

For people's own programs, the command line and the console
    stream_vlm_client `StreamVlmClient`: asyncio; questions, settings, what the node says
    answer_stream   `AnswerStream`: one answer, piece by piece
    ros_thread      the ROS node behind it, and its thread
    errors          what can go wrong on the way

For programs that spin a node of their own, such as the demo and live replays
    node_client     `NodeClient`

Both
    messages        between ROS messages and plain values
    plain_values    what a node says, as the values it was made of
    camera          `Camera`: the newest image of a topic
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stream_vlm_ros.client.answer_stream import AnswerStream
    from stream_vlm_ros.client.errors import AskError, NodeUnavailableError
    from stream_vlm_ros.client.stream_vlm_client import StreamVlmClient

__all__ = ["AnswerStream", "AskError", "NodeUnavailableError", "StreamVlmClient"]

_HOMES = {
    "AnswerStream": "answer_stream",
    "AskError": "errors",
    "NodeUnavailableError": "errors",
    "StreamVlmClient": "stream_vlm_client",
}


def __getattr__(name: str) -> Any:
    """What needs ROS is loaded when it is asked for."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
