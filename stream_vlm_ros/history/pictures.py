"""Pictures as JPEG or PNG, in a folder or in memory."""

from __future__ import annotations

import io
import os
import re
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np
from PIL import Image

from stream_vlm_ros.engine.picture_sizes import HIGHEST_MEGAPIXELS, PictureLimit, open_picture

SUFFIXES = {"jpeg": "jpg", "png": "png"}
_NAME = re.compile(r"(\d{9,})\.(jpg|png)")
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
    """The picture, uint8 RGB ``[height, width, 3]``; OSError, ValueError or InvalidImageError if it
    is damaged, or announces another size."""
    picture = open_picture(data, PictureLimit(HIGHEST_MEGAPIXELS))
    if picture.size != (width, height):
        raise ValueError(f"it announces {picture.width}x{picture.height}, not {width}x{height}")
    return np.array(picture.convert("RGB"))


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
    """Files ``000012/000012345.jpg`` under a folder; other files in it are not touched."""

    def __init__(self, folder: Path):
        self._folder = folder
        self._made: Path | None = None

    def write(self, number: int, suffix: str, data: bytes) -> None:
        path = self._path(number, suffix)
        if path.parent != self._made:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._made = path.parent
        path.write_bytes(data)

    def read(self, number: int, suffix: str) -> bytes:
        return self._path(number, suffix).read_bytes()

    def delete(self, number: int, suffix: str) -> None:
        path = self._path(number, suffix)
        path.unlink(missing_ok=True)
        if path.parent != self._made:
            with suppress(OSError):  # not empty yet
                path.parent.rmdir()

    def scan(self) -> Iterator[tuple[int, str, int]]:
        if not self._folder.is_dir():
            return
        for folder in sorted(path for path in self._folder.iterdir() if path.is_dir()):
            with os.scandir(folder) as entries:
                for entry in entries:
                    match = _NAME.fullmatch(entry.name)
                    if match and self._path(int(match[1]), match[2]).parent == folder:
                        yield int(match[1]), match[2], entry.stat().st_size

    def _path(self, number: int, suffix: str) -> Path:
        group = f"{number // _FRAMES_A_FOLDER:06d}"
        return self._folder / group / f"{number:09d}.{suffix}"


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
