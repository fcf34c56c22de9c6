# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Pictures as JPEG or PNG, in a folder or in memory."""

from __future__ import annotations

import io
import os
import re
import stat
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import numpy as np
from PIL import Image

from stream_vlm_ros.engine.inputs.picture_sizes import (
    HIGHEST_MEGAPIXELS,
    PictureLimit,
    open_picture,
    rgb_of,
)
from stream_vlm_ros.errors import InvalidImageError
from stream_vlm_ros.owned import open_regular, write_all

SUFFIXES = {"jpeg": "jpg", "png": "png"}
_GROUP = re.compile(r"\d{6,}", re.ASCII)
_NAME = re.compile(r"(\d{9,18})\.(jpg|png)", re.ASCII)
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW
_FRAMES_A_FOLDER = 1000


def encode(image: np.ndarray, form: str, quality: int) -> bytes:
    """``image``, uint8 RGB ``[height, width, 3]``, as ``form`` jpeg or png (lossless)."""
    buffer = io.BytesIO()
    picture = Image.fromarray(image)
    if form == "jpeg":
        picture.save(buffer, "JPEG", quality=quality)
    else:
        picture.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()


def decode(data: bytes, width: int, height: int) -> np.ndarray:
    """The picture, uint8 RGB ``[height, width, 3]``; ValueError if it is damaged or of another
    size, which its header says before anything is decoded."""
    try:
        picture = open_picture(data, PictureLimit(HIGHEST_MEGAPIXELS))
        if picture.size == (width, height):
            return rgb_of(picture)
    except InvalidImageError as error:
        raise ValueError(str(error)) from error
    raise ValueError(f"it announces {picture.width}x{picture.height}, not {width}x{height}")


class Pictures(ABC):
    """Where encoded pictures lie, by number and suffix."""

    @abstractmethod
    def write(self, number: int, suffix: str, data: bytes) -> None:
        """Keep ``data``; OSError if there is no room."""

    @abstractmethod
    def read(self, number: int, suffix: str) -> bytes:
        """What was written; OSError if it is not there."""

    @abstractmethod
    def delete(self, number: int, suffix: str) -> None:
        """Forget it, if it is there."""

    @abstractmethod
    def scan(self) -> Iterator[tuple[int, str, int]]:
        """Number, suffix and size of all that is there."""


class PictureFolder(Pictures):
    """Files ``000012/000012345.jpg`` under a folder, readable only by their owner.

    Files of other names in it are not touched, and no link below ``folder`` is followed: where one
    bears a name of ours, OSError.
    """

    def __init__(self, folder: Path):
        self._folder = folder

    def write(self, number: int, suffix: str, data: bytes) -> None:
        group, name = _place(number, suffix)
        with self._opened(group, make=True) as parent:
            file = os.open(name, _NEW, 0o600, dir_fd=parent)  # refused where something is
            try:
                write_all(file, data)
            except BaseException:
                os.unlink(name, dir_fd=parent)
                raise
            finally:
                os.close(file)

    def read(self, number: int, suffix: str) -> bytes:
        group, name = _place(number, suffix)
        with self._opened(group) as parent, os.fdopen(open_regular(name, dir_fd=parent), "rb") as f:
            return f.read()

    def delete(self, number: int, suffix: str) -> None:
        group, name = _place(number, suffix)
        try:
            with self._opened(group) as parent:
                os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            return
        with suppress(OSError), self._opened() as pictures:  # not empty yet
            os.rmdir(group, dir_fd=pictures)

    def scan(self) -> Iterator[tuple[int, str, int]]:
        try:
            with self._opened() as pictures:
                groups = sorted(name for name in os.listdir(pictures) if _GROUP.fullmatch(name))
        except FileNotFoundError:
            return
        for group in groups:
            with self._opened(group) as parent:
                names = [m for name in os.listdir(parent) if (m := _NAME.fullmatch(name))]
                for match in names:
                    number, suffix = int(match[1]), match[2]
                    if _place(number, suffix) != (group, match[0]):
                        continue
                    found = os.stat(match[0], dir_fd=parent, follow_symlinks=False)
                    if not stat.S_ISREG(found.st_mode):
                        raise OSError(
                            f"{self._folder / group / match[0]} is not a plain file: for example "
                            "a link"
                        )
                    yield number, suffix, found.st_size

    @contextmanager
    def _opened(self, group: str | None = None, make: bool = False) -> Iterator[int]:
        """A descriptor of the folder of pictures, or of a group's in it."""
        with ExitStack() as stack:
            # The store's own folder may be a link that its user named; what is in it may not.
            folder = _open_folder(self._folder.parent, None, 0, stack)
            for name in (self._folder.name, group):
                if name is None:
                    continue
                if make:
                    with suppress(FileExistsError):
                        os.mkdir(name, 0o700, dir_fd=folder)
                folder = _open_folder(name, folder, os.O_NOFOLLOW, stack)
            yield folder


def _open_folder(name: str | Path, parent: int | None, flags: int, stack: ExitStack) -> int:
    try:
        folder = os.open(name, os.O_RDONLY | os.O_DIRECTORY | flags, dir_fd=parent)
    except NotADirectoryError as error:
        raise OSError(f"{name} is not a plain folder: for example a link") from error
    stack.callback(os.close, folder)
    return folder


def _place(number: int, suffix: str) -> tuple[str, str]:
    """The names of a picture's folder and file."""
    return f"{number // _FRAMES_A_FOLDER:06d}", f"{number:09d}.{suffix}"


class PicturesInMemory(Pictures):
    """The same, gone with the process."""

    def __init__(self) -> None:
        self._data: dict[tuple[int, str], bytes] = {}

    def write(self, number: int, suffix: str, data: bytes) -> None:
        self._data[number, suffix] = data

    def read(self, number: int, suffix: str) -> bytes:
        if (number, suffix) not in self._data:
            raise FileNotFoundError(f"no picture {number}.{suffix}")
        return self._data[number, suffix]

    def delete(self, number: int, suffix: str) -> None:
        self._data.pop((number, suffix), None)

    def scan(self) -> Iterator[tuple[int, str, int]]:
        for (number, suffix), data in self._data.items():
            yield number, suffix, len(data)
