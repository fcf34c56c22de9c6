# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``open_source``: the source that a path or a name stands for."""

from __future__ import annotations

import errno
import inspect
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from stream_vlm_ros.errors import (
    InvalidParameterError,
    SourceNotFoundError,
    SourceUnknownError,
    SourceUnreadableError,
    cut,
)

from .frame import Source

# "scheme:rest" -> the class of the source, by a function so that it is imported when asked for.
_SCHEMES: dict[str, Callable[[], type[Source]]] = {}

ADDRESSES = ("rtsp", "rtsps", "http", "https")
# An address in a text, and a text that is one: its scheme, and what may be shown of the rest. To
# the last "@": a password may hold what it should not, be it a space.
_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(?:\S*@)?([^\s?#]*)\S*")
_ALONE = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*://)(?:.*@)?([^?#]*).*", re.DOTALL)


def register_scheme(scheme: str, source: Callable[[], type[Source]]) -> None:
    """Let ``scheme:rest`` stand for a source of another room, which calls this at its door.

    ``source()`` gives the class; that is called with what stands behind the colon, and options.
    """
    _SCHEMES[scheme] = source


def open_source(spec: str | os.PathLike[str], **options: Any) -> Source:
    """The source that ``spec`` stands for.

    ``/dev/video0`` or a camera's number: that camera; ``.bag``, ``.mcap``, ``.db3`` or the folder
    of a ROS 2 bag: its images; another folder: its images; ``world:SEED``: the drawn world;
    ``rtsp://`` or ``http://``: a video on a network; any other path: a video file. ``options`` go
    to the source (fps, start, end, size, topics, max_decoded_megapixels; see each class); those
    that are None count as not given.

    Raises:
        SourceNotFoundError, SourceUnreadableError, SourceUnknownError: in words for the user.
        InvalidParameterError: an option outside its range, or one this source does not have.
    """
    text = os.fspath(spec)
    options = {name: value for name, value in options.items() if value is not None}
    if not text.strip():
        raise SourceNotFoundError("No source given. Name a video file, a folder or a camera.")
    scheme, _, rest = text.partition(":")
    if scheme in _SCHEMES and not os.path.exists(text):
        options.pop("max_decoded_megapixels", None)  # what is drawn is not decoded
        return _make(_SCHEMES[scheme](), rest, options)
    # Imported when asked for: each kind brings libraries that take their time, or that a machine
    # which only measures may lack.
    from .bag_files import is_bag
    from .bags import BagSource
    from .device import DeviceSource
    from .images import SUFFIXES, ImageFolderSource
    from .video import VideoSource, check_video_file

    if re.fullmatch(r"/dev/video\d+", text):
        return _make(DeviceSource, text, options)
    if re.fullmatch(r"\d{1,2}", text) and not os.path.exists(text):
        return _make(DeviceSource, f"/dev/video{text}", options)
    address = re.match(r"([A-Za-z][A-Za-z0-9+.-]*)://", text)
    if address and not os.path.exists(text):
        if address[1].lower() in ADDRESSES:
            from .address import AddressSource

            return _make(AddressSource, text, options)
        raise SourceUnreadableError(
            f"{without_secrets(text)} is an address of a kind that is not read from here (read are "
            f"{', '.join(f'{scheme}://' for scheme in ADDRESSES)}). Save it first (ffmpeg -i URL "
            "-c copy FILE.mkv), or let a ROS driver publish it as images for the node."
        )
    path = Path(os.path.expanduser(text))
    _check_name(path)
    if re.fullmatch(r"/dev/video\d+", camera := os.path.realpath(path)):  # a link: /dev/v4l/by-id
        return _make(DeviceSource, camera, options)
    if is_bag(path):
        return _make(BagSource, path, options)
    if path.is_dir():
        return _make(ImageFolderSource, path, options)
    if path.suffix.lower() in SUFFIXES and path.is_file():
        check_video_file(path)  # an animated picture is no single one
        raise SourceUnknownError(f"{path} is a single image. Give the folder that holds it.")
    return _make(VideoSource, path, options)


def without_secrets(spec: str | os.PathLike[str]) -> str:
    """``spec`` as messages show it: an address without its user, password and query."""
    return cut(redacted(os.fspath(spec)))


def redacted(text: str) -> str:
    """``text`` with every address in it without its user, password and query."""
    alone = _ALONE.fullmatch(text)
    return alone.expand(r"\1\2") if alone else _ADDRESS.sub(r"\1\2", text)


def _check_name(path: Path) -> None:
    """Raise SourceNotFoundError for what can be no file's name."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return
    except (OSError, ValueError) as error:
        if isinstance(error, ValueError) or error.errno == errno.ENAMETOOLONG:
            raise SourceNotFoundError(f"{cut(str(path))} is not a file name.") from error


def _make(kind: Callable[..., Source], place: str | Path, options: dict[str, Any]) -> Source:
    unknown = sorted(set(options) - set(inspect.signature(kind).parameters))
    if unknown:
        raise InvalidParameterError(
            f"{without_secrets(place)} is read by {kind.__name__}: no option {', '.join(unknown)}."
        )
    return kind(place, **options)


def parse_size(text: str | None) -> tuple[int, int] | None:
    """``"640x480"`` -> (640, 480); empty or None -> None (as filmed)."""
    if not text:
        return None
    match = re.fullmatch(r"\s*(\d{1,5})\s*[xX*]\s*(\d{1,5})\s*", text)
    if match is None or min(int(match[1]), int(match[2])) < 2:
        raise InvalidParameterError(f"The size {text!r} is not of the form 640x480.")
    return int(match[1]), int(match[2])
