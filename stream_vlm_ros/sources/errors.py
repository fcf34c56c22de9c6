"""What can go wrong with a source of frames, in the user's words."""

from __future__ import annotations

from stream_vlm_ros.engine.errors import StreamVlmError


class SourceError(StreamVlmError):
    """Base of all errors of sources."""

    code = "SOURCE"


class SourceNotFoundError(SourceError):
    """There is no such file, folder or device, or it may not be read."""

    code = "SOURCE_NOT_FOUND"


class SourceUnreadableError(SourceError):
    """It is there, but no frame can be got out of it: empty, damaged, or not a video."""

    code = "SOURCE_UNREADABLE"


class SourceUnknownError(SourceError):
    """What was given names no kind of source that this package knows."""

    code = "SOURCE_UNKNOWN"
