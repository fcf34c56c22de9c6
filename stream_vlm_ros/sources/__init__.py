"""Where timed frames come from: videos, rosbags, folders of images, cameras."""

from .bags import BagSource
from .device import DeviceSource
from .errors import SourceError, SourceNotFoundError, SourceUnknownError, SourceUnreadableError
from .frame import Frame, Source, SourceCounts, SourceState
from .images import ImageFolderSource
from .looping import loop
from .opening import open_source, parse_size
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
]
