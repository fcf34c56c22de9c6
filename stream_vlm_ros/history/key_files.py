# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`KeyFiles`: the keys of an index in a folder, taken up again by the next process.

A segment of slots is a file: a row of 64 bytes for each slot, then the keys as they are searched,
``[heads, slots, tokens, head_dim]``. They are read through a map, and written by calls, so that a
full disk is an error and not the end of the process.

A slot's row is void before its keys are overwritten, and is written when they are all there. So
whenever the process is killed, every grid whose row was written has its keys. Rows and keys carry
checksums: what a power failure or a fault of the disk has torn is left out.
"""

from __future__ import annotations

import json
import logging
import mmap
import os
import re
import shutil
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stream_vlm_ros.errors import FrameStoreError
from stream_vlm_ros.history.key_slots import FREE, KeySlots
from stream_vlm_ros.owned import (
    NotOursError,
    check,
    held,
    open_regular,
    place_to_write,
    write_whole,
)

log = logging.getLogger(__name__)

KIND = "key index"  # in the folder's mark
VERSION = 1
ROW = np.dtype(
    [
        ("ticket", "<i8"),
        ("serial", "<i8"),
        ("span", "<i8"),
        ("first", "<f8"),
        ("last", "<f8"),
        ("slot", "<i8"),  # the first one of the grid
        ("parts", "<i4"),
        ("used", "<i4"),  # 1; 0: nothing is there
        ("keys_sum", "<u4"),
        ("row_sum", "<u4"),
    ]
)
_OF_GRID = ["ticket", "serial", "span", "first", "last", "slot", "parts"]
_SUMMED, _U32 = struct.Struct("<qqqddqiiI"), struct.Struct("<I")  # a row: these two
_MAX_OPEN = 64  # files
_PAGE = mmap.PAGESIZE
_META, _ASIDE = "meta.json", "set_aside"
_SEGMENT = re.compile(r"\d{4,}\.keys")


class KeyFiles:
    """The files of one index, which nobody else may have open.

    Args:
        folder: made if it is missing; one that holds anything else is refused.
        binding: what the keys are of. What was kept there with another binding is set aside.

    Raises:
        FrameStoreError: the folder cannot be used, or another process has it open.

    Attributes:
        tokens, segment_slots: of a slot, and of a segment; 0 before there are any.
        common: what was taken off all keys, ``[heads, head_dim]`` in float32; None before.
    """

    def __init__(self, folder: str | Path, binding: dict[str, Any], dtype: torch.dtype):
        self.folder = place_to_write("the folder of the key index", os.path.expanduser(folder))
        self._paths: dict[int, Path] = {}
        self._binding, self._dtype = {"version": VERSION, **binding}, dtype
        self._opened: dict[int, int] = {}  # descriptors of segments
        self._forget_layout()
        with ExitStack() as opening:
            opening.callback(self._close_segments)
            try:
                check(self.folder, KIND, link=True)
                opening.enter_context(held(self.folder, KIND, 0o700))
                self._open()
            except NotOursError as error:
                raise FrameStoreError(str(error)) from error
            except OSError as error:
                raise FrameStoreError(
                    f"the folder of the key index {self.folder} cannot be used: {error}"
                ) from error
            self._lock = opening.pop_all()

    def close(self) -> None:
        """Give the folder back."""
        self._lock.close()

    # -- the folder ----------------------------------------------------------------------------

    def _forget_layout(self) -> None:
        self.tokens = self.segment_slots = 0
        self.common: np.ndarray | None = None
        self.rows = np.zeros(0, ROW)  # as they are in the files
        self._unsure = np.zeros(0, bool)  # but for these: writing them failed or was interrupted
        self._sums = np.zeros(0, np.uint32)  # of each slot's keys, whether its row is void or not

    def _open(self) -> None:
        """Take up what there is."""
        try:
            meta = json.loads(self._read(_META))
        except FileNotFoundError:
            self._remove_segments(0)  # of a process that was killed before it said what they are
            return
        except ValueError:
            meta = None
        if not self._take_up(meta):
            was = meta.get("binding") if isinstance(meta, dict) else None
            why = "cannot be read" if was is None else f"is of another model or version ({was})"
            self._set_aside(why)

    def _take_up(self, meta: Any) -> bool:
        heads, width = len(self._binding["heads"]), self._binding["head_dim"]
        if not isinstance(meta, dict) or meta.get("binding") != self._binding:
            return False
        try:
            common = np.array(meta["common"], np.float32).reshape(heads, width)
            sizes = [int(meta[name]) for name in ("tokens", "segment_slots")]
        except (KeyError, TypeError, ValueError):
            return False
        if min(sizes) < 1 or not np.isfinite(common).all():
            return False
        (self.tokens, self.segment_slots), self.common = sizes, common
        there = 0
        while self._has_size(self._path(there)):
            there += 1
        self._remove_segments(there)
        blocks = [self._read_rows(number) for number in range(there)]
        self.rows = np.concatenate([self.rows, *blocks])
        self._sums, self._unsure = self.rows["keys_sum"].copy(), np.zeros(len(self.rows), bool)
        return True

    def _has_size(self, path: Path) -> bool:
        try:
            return path.lstat().st_size == self._segment_bytes
        except FileNotFoundError:
            return False

    def set_aside(self, why: str) -> None:
        """Move what is kept to where it is not in the way; ``why`` goes into the log."""
        with self._errors():
            self._set_aside(why)

    def _set_aside(self, why: str) -> None:
        self._close_segments()
        aside = self.folder / _ASIDE
        if os.path.lexists(aside / _META):  # one such stays
            shutil.rmtree(aside)
        aside.mkdir(0o700, exist_ok=True)
        for name in [*self._segment_names(), _META]:  # the last one says that all are there
            os.rename(self.folder / name, aside / name)
        self._forget_layout()
        log.warning(
            "%s: the key index that was kept there %s. It is set aside in %s, and another begins",
            self.folder, why, aside,
        )  # fmt: skip

    def remove_set_aside(self) -> None:
        """Remove what was set aside, which nobody searches."""
        with self._errors(), suppress(FileNotFoundError):
            shutil.rmtree(self.folder / _ASIDE)

    def clear(self) -> None:
        """Remove all that is kept."""
        with self._errors(), suppress(FileNotFoundError):
            os.unlink(self.folder / _META)  # without it the rest is nothing
        self._remove_segments(0)
        self._forget_layout()
        self.remove_set_aside()

    def _segment_names(self) -> list[str]:
        return sorted(name for name in os.listdir(self.folder) if _SEGMENT.fullmatch(name))

    def _remove_segments(self, first: int) -> None:
        """Remove the segments from this one on."""
        self._close_segments()
        for name in self._segment_names():
            if int(name[:-5]) >= first:
                os.unlink(self.folder / name)

    def shrink(self, segments: int) -> None:
        """Remove the segments beyond so many."""
        with self._errors():
            self._remove_segments(segments)
        left = segments * self.segment_slots
        self.rows, self._sums = self.rows[:left].copy(), self._sums[:left].copy()
        self._unsure = self._unsure[:left].copy()

    # -- sizes and places ----------------------------------------------------------------------

    def lay_out(self, tokens: int, segment_slots: int) -> None:
        """Say how large slots and segments are, before there are any."""
        self.tokens, self.segment_slots = tokens, segment_slots

    @property
    def _heads(self) -> int:
        return len(self._binding["heads"])

    @property
    def _page_bytes(self) -> int:
        """Of a head's keys of a slot."""
        return self.tokens * self._binding["head_dim"] * self._dtype.itemsize

    @property
    def _rows_bytes(self) -> int:
        return -(-self.segment_slots * ROW.itemsize // _PAGE) * _PAGE

    @property
    def _segment_bytes(self) -> int:
        return self._rows_bytes + self._heads * self.segment_slots * self._page_bytes

    def _path(self, segment: int) -> Path:
        # Made once: making one at each write leaves a gap in the interpreter's table of names.
        if segment not in self._paths:
            self._paths[segment] = self.folder / f"{segment:04d}.keys"
        return self._paths[segment]

    def _page_at(self, head: int, row: int) -> int:
        return self._rows_bytes + (head * self.segment_slots + row) * self._page_bytes

    # -- reading -------------------------------------------------------------------------------

    def _read(self, name: str) -> bytes:
        with os.fdopen(open_regular(self.folder / name), "rb") as file:
            return file.read()

    def _read_rows(self, segment: int) -> np.ndarray:
        with os.fdopen(open_regular(self._path(segment)), "rb") as file:
            data = file.read(self.segment_slots * ROW.itemsize)
        rows = np.frombuffer(data, ROW).copy()
        for number in np.flatnonzero(rows["used"]).tolist():
            if zlib.crc32(data[number * ROW.itemsize :][: _SUMMED.size]) != rows["row_sum"][number]:
                rows[number] = np.zeros((), ROW)
        return rows

    def segment(self, number: int) -> torch.Tensor:
        """A map of a segment's keys, ``[heads, slots, tokens, head_dim]``: for reading alone."""
        with self._writing(number) as file:
            mapped = mmap.mmap(file, self._segment_bytes, mmap.MAP_SHARED)
        keys = torch.frombuffer(mapped, dtype=self._dtype, offset=self._rows_bytes)
        return keys.view(self._heads, self.segment_slots, self.tokens, -1)

    def page(self, slot: int) -> torch.Tensor:
        """A copy of the keys of a slot, ``[heads, tokens, head_dim]``."""
        segment, row = divmod(slot, self.segment_slots)
        return self.segment(segment)[:, row].clone()

    def load(self, slots: KeySlots) -> np.ndarray:
        """Whole grids, the oldest first, as far as they are sound: their rows.

        All other slots are made void, and their keys are erased: nobody would know any more of
        what time they are.

        Args:
            slots: as many as there are here. They are told who has them.
        """
        rows = self.rows
        maps = [
            self.segment(number).view(torch.uint8).flatten(2).numpy()  # [heads, slots, bytes]
            for number in range(len(rows) // self.segment_slots)
        ]
        sound = (rows["used"] == 1) & (rows["slot"] >= 0) & (rows["slot"] < len(rows))
        for slot in np.flatnonzero(sound).tolist():
            segment, row = divmod(slot, self.segment_slots)
            sound[slot] = _sum_of(maps[segment][:, row]) == rows["keys_sum"][slot]
        slots.owner[sound], slots.first[sound] = rows["ticket"][sound], rows["slot"][sound]
        slots.stamps[sound, 0], slots.stamps[sound, 1] = rows["first"][sound], rows["last"][sound]
        # A grid is whole if as many slots as it has parts say so.
        heads = np.flatnonzero(sound & (rows["slot"] == np.arange(len(rows))))
        heads = heads[np.argsort(rows["serial"][heads], kind="stable")]
        _, of = slots.parts_of(heads)
        whole = np.bincount(of, minlength=len(heads)) == rows["parts"][heads]
        end, kept = -1, []
        for slot in heads[whole].tolist():
            if rows["serial"][slot] >= end:  # else one before stands for it already
                kept.append(slot)
                end = int(rows["serial"][slot] + rows["span"][slot])
        firsts = np.array(kept, np.int64)
        needed = np.zeros(len(rows), bool)
        needed[slots.parts_of(firsts)[0]] = True
        slots.owner[~needed] = FREE
        slots.give_back_all_but(firsts)
        for slot in np.flatnonzero(~needed).tolist():
            segment, row = divmod(slot, self.segment_slots)
            if maps[segment][:, row].any():
                self.erase(slots, np.array([slot]))
        self._void(~needed)
        return rows[firsts]

    # -- writing -------------------------------------------------------------------------------

    def add_segment(self) -> None:
        """A segment more, void; FrameStoreError where there is no room for it."""
        path = self._path(len(self.rows) // self.segment_slots)
        with self._errors():
            file = open_regular(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
            try:
                os.posix_fallocate(file, 0, self._segment_bytes)
            except BaseException:
                os.unlink(path)
                raise
            finally:
                os.close(file)
        self.rows = np.append(self.rows, np.zeros(self.segment_slots, ROW))
        self._sums = np.append(self._sums, np.zeros(self.segment_slots, np.uint32))
        self._unsure = np.append(self._unsure, np.zeros(self.segment_slots, bool))

    def write_keys(self, slots: KeySlots, places: Sequence[int], pages: torch.Tensor) -> None:
        """Keys ``[heads, slots, tokens, head_dim]`` into slots whose rows are void."""
        data = pages.contiguous().view(torch.uint8).flatten(2).numpy()  # [heads, slots, bytes]
        for segment, row, at, count in slots.runs(places):
            with self._writing(segment) as file:
                for head in range(self._heads):
                    _write_at(file, data[head, at : at + count].data, self._page_at(head, row))
        for at, place in enumerate(places):
            self._sums[place] = _sum_of(data[:, at])

    def write_rows(self, grids: Sequence[tuple[int, tuple[Any, ...]]]) -> None:
        """Say that slots hold their keys: each slot, and its grid's ticket, serial, span ..."""
        for place, grid in grids:
            summed = _SUMMED.pack(*grid, 1, self._sums[place])
            self.rows[place] = np.frombuffer(summed + _U32.pack(zlib.crc32(summed)), ROW)[0]
        self._write([place for place, _ in grids])

    def write_common(self, common: np.ndarray) -> None:
        """Say what the segments are, and what was taken off all keys, ``[heads, head_dim]``."""
        self.common = common
        meta = {
            "binding": self._binding,
            "tokens": self.tokens,
            "segment_slots": self.segment_slots,
            "common": common.tolist(),
        }
        with self._errors():
            write_whole(self.folder / _META, json.dumps(meta).encode(), 0o600)

    def update(self, slots: KeySlots, grids: np.ndarray) -> None:
        """Write the rows of these grids where they are others than in the files."""
        places, of = slots.parts_of(grids["slot"])
        wanted = self.rows[places]
        for name in _OF_GRID:
            wanted[name] = grids[name][of]
        wanted["used"], wanted["keys_sum"] = 1, self._sums[places]
        other = (wanted != self.rows[places]) | self._unsure[places]
        rows = [grid.item() for grid in grids[_OF_GRID][of[other]]]
        self.write_rows(list(zip(places[other].tolist(), rows, strict=True)))

    def sync(self, slots: KeySlots, grids: np.ndarray) -> None:
        """Let the files hold these grids and no others.

        What is killed in between leaves some that were to go: as if it had not begun, or one that
        another stands for already.
        """
        self.update(slots, grids)
        needed = np.zeros(len(self.rows), bool)
        needed[slots.parts_of(grids["slot"])[0]] = True
        self._void(~needed)

    def _void(self, which: np.ndarray) -> None:
        """Nothing is in these slots, by a mask of them all."""
        gone = np.flatnonzero(which & ((self.rows["used"] != 0) | self._unsure))
        self.rows[gone] = np.zeros((), ROW)
        self._write(gone.tolist())

    def _write(self, places: Sequence[int]) -> None:
        """Write the rows of these slots, and others between them once more.

        A call that is killed in the middle has written whole rows: none lies on two pages.
        """
        self._unsure[places] = True
        segments: dict[int, list[int]] = {}
        for place in places:
            segments.setdefault(place // self.segment_slots, []).append(place)
        for segment, here in segments.items():
            low, high = min(here), max(here) + 1
            at = (low - segment * self.segment_slots) * ROW.itemsize
            with self._writing(segment) as file:
                _write_at(file, self.rows[low:high].tobytes(), at)
            self._unsure[here] = False

    def erase(self, slots: KeySlots, places: np.ndarray) -> None:
        """Nothing of these slots' keys stays."""
        for segment, row, _, count in slots.runs(places.tolist()):
            with self._writing(segment) as file:
                for head in range(self._heads):
                    _write_at(file, bytes(count * self._page_bytes), self._page_at(head, row))

    @contextmanager
    def _writing(self, segment: int) -> Iterator[int]:
        """A segment's file, which stays open for the next time."""
        with self._errors():
            if segment not in self._opened:
                if len(self._opened) == _MAX_OPEN:
                    self._close_segments()
                self._opened[segment] = open_regular(self._path(segment), os.O_RDWR)
            yield self._opened[segment]

    def _close_segments(self) -> None:
        while self._opened:
            os.close(self._opened.popitem()[1])

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise FrameStoreError(
                f"the key index in {self.folder} cannot be written: {error}. Make room, or name "
                "another folder; what it holds already stays"
            ) from error


def _write_at(file: int, data: bytes | memoryview, at: int) -> None:
    """Write every byte; a disk that fills up takes fewer at first, and refuses the next."""
    rest = memoryview(data)
    while rest:
        done = os.pwrite(file, rest, at)
        rest, at = rest[done:], at + done


def _sum_of(pages: np.ndarray) -> int:
    """Of the bytes of a slot, ``[heads, bytes]``."""
    found = 0
    for page in pages:
        found = zlib.crc32(page, found)
    return found


def binding_in(folder: Path) -> dict[str, Any] | None:
    """What the keys in a folder are of, which is not opened; None: there are none.

    Raises FrameStoreError for a folder that says it in no way that can be read.
    """
    try:
        with os.fdopen(open_regular(folder / _META), "rb") as file:
            binding = json.loads(file.read())["binding"]
        if binding["version"] != VERSION:
            raise ValueError(f"version {binding['version']}")
        found: dict[str, Any] = {
            name: kind(binding[name])
            for name, kind in (("heads", list), ("head_dim", int), ("dtype", str), ("model", str))
        }
        return found
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise FrameStoreError(
            f"what the key index in {folder} is of cannot be read: {error!r}"
        ) from error
