"""Where timed frames come from: videos, rosbags, folders of images, cameras."""

from stream_vlm_ros.errors import (
    SourceError,
    SourceNotFoundError,
    SourceUnknownError,
    SourceUnreadableError,
)

from .bags import BagSource
from .device import DeviceSource
from .frame import Frame, Source, SourceCounts, SourceState
from .images import ImageFolderSource
from .looping import loop
from .opening import open_source, parse_size, register_scheme
from .sampling import StampSampler
from .video import VideoSource

__all__ = [
    "BagSource",
    "DeviceSource",
    "Frame",
    "ImageFolderSource",
    "Source",
    "SourceCounts",
    "SourceError",
    "SourceNotFoundError",
    "SourceState",
    "SourceUnknownError",
    "SourceUnreadableError",
    "StampSampler",
    "VideoSource",
    "loop",
    "open_source",
    "parse_size",
    "register_scheme",
]
