# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What a client can meet with, in the user's words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stream_vlm_ros.errors import StreamVlmError


class NodeUnavailableError(StreamVlmError):
    """The node cannot be asked, or does not do what was asked; the message says why."""

    code = "NODE_UNAVAILABLE"


class AskError(StreamVlmError):
    """The node answered a question with an error.

    Attributes:
        code: its name among the constants of ``stream_vlm/Answer``, such as "QUEUE_FULL".
        answer: the whole answer.
        answers: of several cameras, each one's, some of which may be without an error.
    """

    def __init__(self, answer: Any, answers: Sequence[Any] = ()) -> None:
        super().__init__(answer.error_message)
        self.answer, self.answers = answer, list(answers)
        self.code = code_name(answer)


def code_name(answer: Any) -> str:
    """The name of the ``error_code`` of a ``stream_vlm/Answer``: "NONE", "QUEUE_FULL", ..."""
    for name in dir(type(answer)):
        if name.isupper() and getattr(answer, name) == answer.error_code:
            return name
    return str(answer.error_code)  # of a newer node
