"""What can go wrong with kept frames."""

from __future__ import annotations

from stream_vlm_ros.engine.errors import StreamVlmError


class FrameStoreError(StreamVlmError):
    """The frame store cannot be opened, written or read: a full disk, a second owner, bad files."""


class PictureLostError(FrameStoreError):
    """The picture of one kept frame is gone or damaged; the others are not affected."""
