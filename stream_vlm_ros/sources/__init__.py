# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Where timed frames come from: videos, rosbags, folders of images, cameras."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from stream_vlm_ros.engine.inputs.sampling import StampSampler

from .frame import Frame, Source, SourceCounts, SourceState
from .looping import loop
from .opening import open_source, parse_size, redacted, register_scheme, without_secrets

if TYPE_CHECKING:
    from .address import AddressSource
    from .bags import BagSource
    from .device import DeviceSource
    from .images import ImageFolderSource
    from .video import VideoSource

# Imported when first used: each brings libraries that take their time.
_HOMES = {
    "AddressSource": "address",
    "BagSource": "bags",
    "DeviceSource": "device",
    "ImageFolderSource": "images",
    "VideoSource": "video",
}

__all__ = [
    "AddressSource",
    "BagSource",
    "DeviceSource",
    "Frame",
    "ImageFolderSource",
    "Source",
    "SourceCounts",
    "SourceState",
    "StampSampler",
    "VideoSource",
    "loop",
    "open_source",
    "parse_size",
    "redacted",
    "register_scheme",
    "without_secrets",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_HOMES[name]}", __name__), name)
