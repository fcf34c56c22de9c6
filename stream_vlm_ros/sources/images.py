# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A folder of images as a source: one frame a file, stamps from the names or from a rate."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from stream_vlm_ros.engine.inputs.picture_sizes import (
    MAX_DECODED_MEGAPIXELS,
    PictureLimit,
    holds_several,
    open_picture,
    rgb_of,
)
from stream_vlm_ros.engine.inputs.sampling import StampSampler
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import (
    InvalidImageError,
    InvalidParameterError,
    SourceNotFoundError,
    SourceUnreadableError,
    cut,
    in_words,
)

from .frame import Frame, Source, SourceState
from .sampling import check_part

SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp", ".ppm", ".pgm"})

# Times since 1990 and before 2200 in the units that cameras and data sets write into names.
_EARLIEST, _LATEST = 631_152_000, 7_258_118_400
_UNITS = (SECOND, 1_000_000, 1_000, 1)  # nanoseconds in: s, ms, us, ns


class ImageFolderSource(Source):
    """The images of a folder, in the order of their numbers.

    If names end in a time since the epoch (in s, with or without a decimal point, ms, us or ns:
    ``1305031102.175304.png``, ``cam0_1403636579763555584.jpg``), that is the stamp; where most do,
    the others are left out, and a note says so. Otherwise image *n* of the sorted names gets the
    stamp n / ``frame_rate``.

    Args:
        folder: the folder; its sub-folders and hidden files (``._1.png``) are not read.
        frame_rate: images per second where the names hold no time (None: `DEFAULT_RATE`, and a
            note says so); given, it overrides the names.
        fps: frames per second to take (None: every one).
        start, end: seconds from the first image; images in [start, end) are given.
        size: (width, height) to scale to (None: as they are).
        max_decoded_megapixels: larger pictures are left out, by their headers.

    Raises:
        SourceNotFoundError, SourceUnreadableError: at once, when there is nothing to read.
    """

    DEFAULT_RATE = 2.0

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        frame_rate: float | None = None,
        fps: float | None = None,
        start: float = 0.0,
        end: float | None = None,
        size: tuple[int, int] | None = None,
        name: str | None = None,
        max_decoded_megapixels: float = MAX_DECODED_MEGAPIXELS,
    ) -> None:
        super().__init__()
        self.path = Path(folder)
        self.name = name or self.path.name or str(self.path)
        check_part(fps, start, end)
        if frame_rate is not None and not 0 < frame_rate <= 1000:
            raise InvalidParameterError(
                f"The frame rate is {frame_rate} images/s; it must be above 0 and at most 1000."
            )
        self._fps, self._start, self._end, self._scale = fps, start, end, size
        self._limit = PictureLimit(max_decoded_megapixels)
        if not self.path.is_dir():
            raise SourceNotFoundError(f"There is no folder {self.path}. Check the path.")
        images = [f for f in self.path.iterdir() if f.suffix.lower() in SUFFIXES]
        files = sorted((f for f in images if not f.name.startswith(".")), key=_natural)
        if not files:
            raise SourceUnreadableError(
                f"The folder {self.path} holds no images ({', '.join(sorted(SUFFIXES))})."
            )
        self._notes: list[str] = []
        if hidden := len(images) - len(files):
            self._notes.append(f"Hidden files are not read ({hidden} named like an image).")
        named = {} if frame_rate is not None else {f: t for f in files if (t := _stamp_of(f))}
        self._timeless: list[Path] = []  # left out among images with times
        if 2 * len(named) > len(files):
            self._timeless = [f for f in files if f not in named]
            files = sorted(named, key=lambda f: named[f])  # of the same time by their numbers
            stamps = [named[f] for f in files]
            span = stamps[-1] - stamps[0]
            self.rate = (len(stamps) - 1) * SECOND / span if span else None
        else:
            self.rate = frame_rate or self.DEFAULT_RATE
            stamps = [round(i * SECOND / self.rate) for i in range(len(files))]
            if frame_rate is None:
                have = f"Only {len(named)} of {len(files)}" if named else "None"
                self._notes.append(
                    f"{have} of the images' names in {self.name} end in a time: {self.rate:g} "
                    "images a second are assumed (frame_rate)."
                )
        self._files, self._stamps = files, stamps
        self._several: list[str] = []  # names of those that hold more than one picture
        self.duration = (stamps[-1] - stamps[0]) / SECOND + (1 / self.rate if self.rate else 0)
        self.size = size

    def __iter__(self) -> Iterator[Frame]:
        self.state = state = SourceState(notes=list(self._notes))
        counts = state.counts
        if self._timeless:
            counts.decoded = counts.unusable = len(self._timeless)
            state.notes.append(
                f"{counts.unusable} of {counts.unusable + len(self._files)} images left out: their "
                f"names end in no time, as the others do (the first: {cut(self._timeless[0].name)})"
                "; frame_rate times all by their order."
            )
        sampler = StampSampler(self._fps) if self._fps is not None else None
        last, first = None, ""  # the stamp before, and why the first unusable picture is so
        broken, repeated = 0, ""  # unusable pictures, and the first with the time of another
        self._several.clear()
        for stamp, file in zip(self._stamps, self._files, strict=True):
            counts.decoded += 1
            offset = (stamp - self._stamps[0]) / SECOND
            if last is not None and stamp <= last:
                counts.unordered += 1
                repeated = repeated or file.name
                continue
            last = stamp
            if (
                offset < self._start
                or (self._end is not None and offset >= self._end)
                or (sampler is not None and not sampler.wants(stamp))
            ):
                counts.unwanted += 1
                continue
            try:
                image = self._read(file)
            except InvalidImageError as error:
                counts.unusable += 1
                broken += 1
                first = first or f"{cut(file.name)}: {error}"
                others = f", as {broken - 1} others" if broken > 1 else ""
                state.damage = f"{first}; left out{others}."
                continue
            counts.given += 1
            yield Frame(stamp, image, self.name)
        if self._several:
            state.notes.append(
                f"{len(self._several)} of the files hold several pictures (the first: "
                f"{cut(self._several[0])}); the first of each is read."
            )
        if repeated:
            state.notes.append(
                f"{counts.unordered} of {counts.decoded} images left out: another has the same "
                f"time (the first: {cut(repeated)})."
            )

    def _read(self, file: Path) -> np.ndarray:
        """Raises InvalidImageError."""
        try:
            found = file.stat()
            if not stat.S_ISREG(found.st_mode):  # a pipe would wait, a device never ends
                raise InvalidImageError("it is not a plain file")
            self._limit.check_bytes(found.st_size, "the file")
            picture = open_picture(file.read_bytes(), self._limit)
        except OSError as fault:
            raise InvalidImageError(f"it cannot be read: {in_words(fault)}") from fault
        image = rgb_of(picture, self._scale)
        if holds_several(picture):
            self._several.append(file.name)
        return image


def _natural(file: Path) -> list[tuple[int, int | str]]:
    """Sort key by which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", file.stem)
    return [(0, int(p)) if p.isdecimal() else (1, p) for p in parts]


def _stamp_of(file: Path) -> int | None:
    """Nanoseconds since the epoch from the last number of a name, or None if that is no time."""
    match = re.search(r"(\d{9,19})(?:\.(\d{1,9}))?$", file.stem)
    if match is None:
        return None
    whole, fraction = int(match[1]), match[2]
    if fraction is not None:
        stamp = whole * SECOND + int(fraction.ljust(9, "0"))
        return stamp if _EARLIEST <= whole < _LATEST else None
    stamps = (whole * unit for unit in _UNITS)
    return next((s for s in stamps if _EARLIEST <= s / SECOND < _LATEST), None)
