# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Why there is no session, or not now, and their codes."""

from __future__ import annotations

from stream_vlm_ros.errors import MemoryFileError, StreamVlmError
from stream_vlm_ros.session.question import NotActiveError


class SessionUnknownError(StreamVlmError):
    """There is no such session of this key's."""

    code = "NO_SESSION"


class SessionLimitError(StreamVlmError):
    """There are as many sessions as there may be."""

    code = "TOO_MANY_SESSIONS"
    retry_after = 30.0  # s


class MemoryLimitError(StreamVlmError):
    """There are as many saved memories as there may be."""

    code = "TOO_MANY_MEMORIES"


class ServerEndingError(NotActiveError):
    """The server is being stopped, or this session is."""

    code = "ENDING"
    retry_after = 1.0  # s


class NotSavedError(StreamVlmError):
    """A session cannot be saved, and so does not end."""

    code = "NOT_SAVED"


class FolderError(MemoryFileError):
    """Where sessions are saved, nothing can be written: a full disk, or missing rights."""

    code = "NO_FOLDER"
    retry_after = 10.0  # s
