# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Frames kept for later: pictures in files, what is known of them in SQLite.

A picture is written first, then its row; a row is deleted first, then its picture. So after a crash
at any moment every row has its picture, and a picture without a row is removed when the store is
opened. The index is written ahead (SQLite's WAL): a killed process loses nothing that was
committed; when the power fails the last seconds may be missing, never the rest.

A folder is taken for a store by its mark alone (`stream_vlm_ros.owned`), or by the index that a
version before the mark has left in it. Rows and pictures carry checksums: what a store gives back
is what was put in.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
import shutil
import sqlite3
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import astuple, dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any

import numpy as np

from stream_vlm_ros.engine.inputs.picture_sizes import MAX_DECODED_MEGAPIXELS, PictureLimit
from stream_vlm_ros.errors import (
    FrameStoreError,
    InvalidParameterError,
    InvalidTimestampError,
    PictureLostError,
    PictureTooLargeError,
    real_number,
    whole_number,
)
from stream_vlm_ros.history.pictures import (
    SUFFIXES,
    PictureFolder,
    Pictures,
    PicturesInMemory,
    decode,
    encode,
)
from stream_vlm_ros.owned import (
    NotOursError,
    check,
    held,
    kind_of,
    open_regular,
    place_to_write,
)

log = logging.getLogger(__name__)

KIND = "frame store"  # in the folder's mark
VERSION = 2
DEFAULT_MAX_BYTES = 4 * 1024**3
DEFAULT_MAX_SECONDS = 24 * 3600.0

_SCHEMA = """
CREATE TABLE frames (
    id INTEGER PRIMARY KEY,
    stamp REAL NOT NULL,
    source TEXT NOT NULL,
    width INTEGER NOT NULL,
    height INTEGER NOT NULL,
    suffix TEXT NOT NULL,
    size INTEGER NOT NULL,
    importance REAL NOT NULL,
    star INTEGER NOT NULL,
    picture_sum INTEGER,
    row_sum INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX frames_by_stamp ON frames (stamp);
CREATE INDEX frames_star ON frames (id) WHERE star;
CREATE TABLE epochs (first INTEGER PRIMARY KEY); -- first frame of each epoch after the first
"""
# Version 1 had neither checksums nor epochs; the pictures that it kept have no checksum.
_FROM_VERSION_1 = """
ALTER TABLE frames ADD COLUMN picture_sum INTEGER;
ALTER TABLE frames ADD COLUMN row_sum INTEGER NOT NULL DEFAULT 0;
CREATE TABLE IF NOT EXISTS epochs (first INTEGER PRIMARY KEY);
"""
_COLUMNS = "id, stamp, source, width, height, suffix, size, importance, star"
_SUMS = "picture_sum, row_sum"
_EPOCHS = ("table", "epochs")
_PARTS = {("table", "frames"), ("index", "frames_by_stamp"), ("index", "frames_star"), _EPOCHS}
_INDEX = "index.sqlite"
_ROW_BYTES = 256  # a row with its places in the indices
_BLOCK = 4096
_MAX_THREADS = 16  # that decode pictures


@dataclass(frozen=True)
class KeptFrame:
    """What is known of a kept frame.

    Attributes:
        id: counts the kept frames of a store from 0.
        stamp: the source's time in seconds.
        source: name of the camera or file.
        width, height: in pixels.
        suffix: of its file: jpg or png.
        size: of its file, in bytes.
        importance: how new it was when it came, 0..1.
        star: it is in the star memory.
    """

    id: int
    stamp: float
    source: str
    width: int
    height: int
    suffix: str
    size: int
    importance: float
    star: bool

    @property
    def cost(self) -> int:
        """Bytes it counts with: its file in whole blocks, and its row."""
        return -(-self.size // _BLOCK) * _BLOCK + _ROW_BYTES


class FrameStore:
    """Keeps frames within a bound in bytes and in time, and finds them again.

    Over the bound in bytes the oldest frame goes that is no star, and the stars last. Over the
    bound in time every frame goes, star or not. Stamps and their bound hold within an epoch: where
    the source's time restarts (`start_epoch`), what was kept before stays in its folder until
    its room is needed, and is no longer found.

    Attributes:
        course: a number that tells this epoch from any other, and from one of which frames were
            taken back: whoever knows it knows what came before.

    Args:
        folder: made if it is missing; what a store left there is taken up again. A folder that
            holds anything else is refused. None: in memory.
        form: jpeg, or png (lossless, larger, slower).
        quality: of JPEG, 1 to 95.
        max_bytes: pictures in whole blocks of the disk, and their rows.
        max_seconds: from the newest frame back.
        max_decoded_megapixels: larger pictures are not read back.

    Raises:
        InvalidParameterError: a setting out of its range.
        FrameStoreError: the folder cannot be used, or another process has it open.
    """

    def __init__(
        self,
        folder: str | Path | None = None,
        *,
        form: str = "jpeg",
        quality: int = 90,
        max_bytes: int = DEFAULT_MAX_BYTES,
        max_seconds: float = DEFAULT_MAX_SECONDS,
        max_decoded_megapixels: float = MAX_DECODED_MEGAPIXELS,
    ):
        if form not in SUFFIXES:
            raise InvalidParameterError(f"form must be jpeg or png: {form!r}")
        room, seconds = real_number(max_bytes), real_number(max_seconds)
        if room is None or not room > 0:
            raise InvalidParameterError(f"max_bytes must be above 0: {max_bytes!r}")
        if seconds is None or not seconds > 0:
            raise InvalidParameterError(f"max_seconds must be above 0: {max_seconds!r}")
        self.folder: Path | None = None
        if folder is not None:
            self.folder = place_to_write("the folder of kept frames", os.path.expanduser(folder))
        self.form, self.quality = form, whole_number("quality", quality, 1, 95)
        self.max_bytes, self.max_seconds = room, seconds
        self._undone: list[tuple[int, int]] = []  # ids yet to be dropped, the last excluded
        self._limit = PictureLimit(max_decoded_megapixels)
        self._pictures: Pictures
        self._awaited = False  # an epoch has begun that the index does not know of yet
        with ExitStack() as opening:
            if self.folder is None:
                self._pictures = PicturesInMemory()
                path = ":memory:"
            else:
                opening.enter_context(_taken(self.folder))
                self._pictures = PictureFolder(self.folder / "pictures")
                path = str(self.folder / _INDEX)
            self._path = path
            try:
                # One thread at a time, but not always the one that opened it.
                self._db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
                opening.callback(self._db.close)
                self._settle_index()
                self._look()
                # SQLite keeps a number for whoever uses it; 0: of a version that gave it none.
                self.course: int = self._execute("PRAGMA application_id").fetchone()[0]
                self._known_course = self.course
                self.course = self.course or _new_course()
            except (sqlite3.Error, OSError, UnicodeDecodeError) as error:
                raise FrameStoreError(
                    f"the index of kept frames {path} cannot be used: {error}. {_START_OVER}"
                ) from error
            self._open = opening.pop_all()

    def _settle_index(self) -> None:
        """Make the index, or bring it up to date and make it agree with the pictures."""
        db = self._db
        # What is no text is dropped by its checksum, not by an error in the middle of a search.
        db.text_factory = lambda data: data.decode("utf-8", "replace")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA journal_size_limit = 1048576")
        version = db.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, 1, VERSION):
            raise FrameStoreError(
                f"{self._path} was written by another version ({version}; this one writes "
                f"{VERSION}): choose another folder"
            )
        pictures = list(self._pictures.scan())
        if version == 0 and (pictures or _parts_of(db)):
            raise FrameStoreError(
                f"the index of kept frames {self._path} is empty, but there are pictures or "
                f"tables: it is not what a store has left. {_START_OVER}"
            )
        if version == 0:
            # On the disk before the first picture is: pictures without an index are refused.
            db.execute("PRAGMA synchronous = FULL")
            db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
        else:
            self._check_index()
        if version == 1:
            self._update_from_version_1()
        db.execute("PRAGMA synchronous = NORMAL")
        self._reconcile(pictures)

    def _check_index(self) -> None:
        """Raise FrameStoreError for an index that is damaged beyond SQLite's repair."""
        if not _is_index(self._db):
            raise FrameStoreError(
                f"the index of kept frames {self._path} holds other tables. {_START_OVER}"
            )
        fault = self._fault()
        if fault:  # a search order can be made again from the rows; they themselves cannot
            self._db.execute("REINDEX")
            fault = self._fault()
        if fault:
            raise FrameStoreError(
                f"the index of kept frames {self._path} is damaged: {fault}. {_START_OVER}"
            )

    def _fault(self) -> str:
        found = self._db.execute("PRAGMA integrity_check(1)").fetchone()[0]
        return "" if found == "ok" else " ".join(str(found).split())

    def _update_from_version_1(self) -> None:
        with self._transaction():
            for statement in filter(str.strip, _FROM_VERSION_1.split(";")):
                self._db.execute(statement)
            sums = [
                (_row_sum(row, None), row[0])
                for row in self._db.execute(f"SELECT {_COLUMNS} FROM frames")
                if _is_sound(row)
            ]
            self._db.executemany("UPDATE frames SET row_sum = ? WHERE id = ?", sums)
            self._db.execute(f"PRAGMA user_version = {VERSION}")

    def _reconcile(self, pictures: list[tuple[int, str, int]]) -> None:
        """Make rows and pictures agree again after a crash, or after damage."""
        damaged, rows = [], {}
        if self.folder is not None and not os.path.lexists(self.folder / "pictures"):
            count = self._db.execute("SELECT COUNT(*) FROM frames").fetchone()[0]
            if count:  # on a disk that is not there, say
                raise FrameStoreError(
                    f"{self.folder} knows of {count} frames, but its folder of pictures is "
                    "missing: put it back, or name another folder"
                )
        for *row, picture_sum, row_sum in self._db.execute(
            f"SELECT {_COLUMNS}, {_SUMS} FROM frames"
        ):
            if _is_sound(row) and row_sum == _row_sum(row, picture_sum):
                rows[row[0], row[5]] = row[6]
            else:
                damaged.append(row[0])
        for number, suffix, size in pictures:
            if rows.get((number, suffix)) == size:
                del rows[number, suffix]
            else:
                self._pictures.delete(number, suffix)
        gone = [number for number, _ in rows]
        if damaged or gone:
            log.warning(
                "%s: frames dropped: %d without their picture, %d with a damaged row",
                self.folder, len(gone), len(damaged),
            )  # fmt: skip
        with self._transaction():
            self._db.executemany(
                "DELETE FROM frames WHERE id = ?", [(number,) for number in gone + damaged]
            )

    def _look(self) -> None:
        """Take count, bytes and ends from the index."""
        self._count, last, blocks = self._execute(
            f"SELECT COUNT(*), MAX(id), COALESCE(SUM((size + {_BLOCK - 1}) / {_BLOCK}), 0) "
            "FROM frames"
        ).fetchone()
        if not self._awaited:
            self._epoch = self._execute("SELECT COALESCE(MAX(first), 0) FROM epochs").fetchone()[0]
        self._execute("DROP VIEW IF EXISTS temp.present")
        undone = "".join(f" AND NOT (id >= {a} AND id < {b})" for a, b in self._undone)
        self._execute(
            f"CREATE TEMP VIEW present AS SELECT * FROM frames WHERE id >= {self._epoch}{undone}"
        )
        self._next = self._epoch if last is None else max(last + 1, self._epoch)
        self._bytes = blocks * _BLOCK + self._count * _ROW_BYTES
        found = self._execute("SELECT COUNT(*) FROM present").fetchone()[0]
        self._earlier = self._count - found
        newest = self.newest(1)
        self._newest = newest[0] if newest else None

    def _look_again(self) -> None:
        """`_look`, and no id is given twice."""
        upcoming = self._next
        self._look()
        self._next = upcoming

    # -- what there is -----------------------------------------------------------------------

    def __len__(self) -> int:
        return self._count

    @property
    def earlier(self) -> int:
        """How many of the frames are of earlier epochs: they are not found."""
        return self._earlier

    @property
    def bytes(self) -> int:
        """Bytes kept, as the bound counts them."""
        return self._bytes

    @property
    def next_id(self) -> int:
        """The id that the next frame gets."""
        return self._next

    @property
    def newest_frame(self) -> KeptFrame | None:
        return self._newest

    @property
    def oldest_frame(self) -> KeptFrame | None:
        found = self._find("ORDER BY id LIMIT 1")
        return found[0] if found else None

    @property
    def reach(self) -> tuple[float, float] | None:
        """The first and the last stamp of all epochs; None: there is no frame."""
        first, last = self._execute("SELECT MIN(stamp), MAX(stamp) FROM frames").fetchone()
        return None if first is None else (first, last)

    def newest(self, count: int, until: float = math.inf) -> list[KeptFrame]:
        """The latest ``count`` frames up to a stamp, oldest first."""
        return self._find("WHERE stamp <= ? ORDER BY id DESC LIMIT ?", until, count)[::-1]

    def stars(self) -> list[KeptFrame]:
        """The frames of the star memory, oldest first."""
        return self._find("WHERE star ORDER BY id")

    def get(self, ids: Iterable[int]) -> list[KeptFrame]:
        """Those of ``ids`` that are there, oldest first."""
        ids = list(ids)
        marks = ", ".join("?" * len(ids))
        return self._find(f"WHERE id IN ({marks}) ORDER BY id", *ids)

    def ids_between(self, start: float, end: float) -> tuple[int, int] | None:
        """First and last id of the frames with ``start <= stamp <= end``, None without any."""
        first, last = self._execute(
            "SELECT MIN(id), MAX(id) FROM present WHERE stamp BETWEEN ? AND ?", start, end
        ).fetchone()
        return None if first is None else (first, last)

    def between(self, start: float, stop: float) -> list[KeptFrame]:
        """The frames with ``start <= stamp <= stop``, oldest first."""
        return self._find("WHERE stamp BETWEEN ? AND ? ORDER BY id", start, stop)

    def around(self, stamp: float) -> list[KeptFrame]:
        """The last frame before ``stamp`` and the first after it, as far as there are any."""
        before = self._find("WHERE stamp < ? ORDER BY stamp DESC, id DESC LIMIT 1", stamp)
        after = self._find("WHERE stamp >= ? ORDER BY stamp, id LIMIT 1", stamp)
        return before + after

    def stamp_near(self, stamp: float) -> float | None:
        """The stamp of the frame next to that time; None: there are no frames."""
        stamps = [frame.stamp for frame in self.around(stamp)]
        return min(stamps, key=lambda one: abs(one - stamp), default=None)

    @property
    def first_regular_id(self) -> int:
        """Id from which on no frame was dropped for lack of room (stars can be older)."""
        first = self._execute("SELECT MIN(id) FROM present WHERE NOT star").fetchone()[0]
        if first is None:
            first = self._execute("SELECT MIN(id) FROM present").fetchone()[0]
        return self._next if first is None else first

    def load(self, frame: KeptFrame) -> np.ndarray:
        """The picture, uint8 RGB ``[height, width, 3]``.

        Raises:
            PictureLostError: it is gone or damaged.
            FrameStoreError: it is larger than max_decoded_megapixels; it stays where it is.
        """
        return self._decoded(frame, self._sums([frame]))

    def load_all(self, frames: Sequence[KeptFrame]) -> list[np.ndarray | PictureLostError]:
        """As `load`, of several at once: decoded side by side, as many as the machine has cores.

        What is lost is an error in its place. Raises FrameStoreError as `load` does.
        """
        sums = self._sums(frames)

        def one(frame: KeptFrame) -> np.ndarray | PictureLostError:
            try:
                return self._decoded(frame, sums)
            except PictureLostError as error:
                return error

        if len(frames) < 2:
            return [one(frame) for frame in frames]
        with ThreadPoolExecutor(min(len(frames), _MAX_THREADS, os.cpu_count() or 1)) as pool:
            return list(pool.map(one, frames))

    def _sums(self, frames: Sequence[KeptFrame]) -> dict[int, int | None]:
        """Of the pictures that there are."""
        found: dict[int, int | None] = {}
        for frame in frames:
            row = self._execute("SELECT picture_sum FROM frames WHERE id = ?", frame.id).fetchone()
            if row is not None:
                found[frame.id] = row[0]
        return found

    def _decoded(self, frame: KeptFrame, sums: Mapping[int, int | None]) -> np.ndarray:
        """What `load` gives; in any thread."""
        try:
            if frame.id not in sums:
                raise ValueError("it was removed")
            self._limit.check(frame.width, frame.height, f"the kept frame {frame.id}")
            data = self._pictures.read(frame.id, frame.suffix)
            if sums[frame.id] is not None and zlib.crc32(data) != sums[frame.id]:
                raise ValueError("its file was changed")
            return decode(data, frame.width, frame.height)
        except PictureTooLargeError as error:
            raise FrameStoreError(f"{error}: raise it, or choose another folder") from error
        except (OSError, ValueError) as error:
            raise PictureLostError(
                f"the picture of frame {frame.id} ({frame.stamp:.3f} s) is lost: {error}"
            ) from error

    # -- changing ----------------------------------------------------------------------------

    def add(
        self,
        image: np.ndarray,
        stamp: float,
        source: str = "",
        importance: float = 0.0,
        star: bool = False,
        no_star: int | None = None,
    ) -> tuple[KeptFrame, list[int]]:
        """Keep a frame, and forget what exceeds the bounds.

        Args:
            image: uint8 RGB ``[height, width, 3]``.
            stamp: seconds, not before the newest frame's.
            star: it is in the star memory.
            no_star: id of the frame that no longer is.

        Returns:
            The frame, and the ids of those forgotten, oldest first.

        Raises:
            InvalidTimestampError: not finite, or before the newest frame.
            FrameStoreError: no room on the disk, say; nothing was kept.
        """
        if not math.isfinite(stamp):
            raise InvalidTimestampError(f"the time stamp is not finite: {stamp}")
        if self._newest is not None and stamp < self._newest.stamp:
            raise InvalidTimestampError(
                f"time runs backwards: a frame of {stamp:.3f} s comes after one of "
                f"{self._newest.stamp:.3f} s. call reset() if the source restarted"
            )
        data = encode(image, self.form, self.quality)
        height, width, _ = image.shape
        suffix = SUFFIXES[self.form]
        source = source.encode("utf-8", "backslashreplace").decode()  # a file's name may be no text
        frame = KeptFrame(
            self._next, float(stamp), source, width, height, suffix, len(data), float(importance),
            bool(star),
        )  # fmt: skip
        written = False
        try:
            self._pictures.write(frame.id, suffix, data)
            written = True
            with self._transaction():
                self._note_course()
                self._insert(frame, zlib.crc32(data))
                if no_star is not None:
                    self._db.execute("UPDATE frames SET star = 0 WHERE id = ?", (no_star,))
                gone = self._excess(frame)
                self._db.executemany("DELETE FROM frames WHERE id = ?", [(f.id,) for f in gone])
        except (OSError, FrameStoreError) as error:
            if written:
                self._delete([frame])
            raise FrameStoreError(
                f"the frame cannot be stored in {self.folder}: {error}"
            ) from error
        self._course_noted()
        self._next += 1
        self._newest = frame
        self._count += 1 - len(gone)
        self._earlier -= sum(old.id < self._epoch for old in gone)
        self._bytes += frame.cost - sum(f.cost for f in gone)
        self._delete(gone)
        self._try_to_drop_undone()
        return frame, [old.id for old in gone]

    def forget(self, frame: KeptFrame) -> None:
        """Drop one frame, such as one whose picture is lost."""
        self._drop([frame])

    def forget_from(self, number: int) -> None:
        """Drop the frames of this epoch from an id on; it is not given again.

        Raises FrameStoreError: no room on the disk, say. They are found no more all the same, and
        `add` and `close` try again to drop them.
        """
        self.course = _new_course()
        self._undone.append((max(number, self._epoch), self._next))
        self._look_again()
        self._drop_undone()

    def forget_between(self, start: float, stop: float) -> int:
        """Erase the frames of a time, those of earlier epochs too; how many there were.

        Their rows first, then their pictures. On a disk that keeps old blocks (as flash does) or
        in a snapshot of it a picture may be found longer than here.
        """
        frames = self._find("WHERE stamp BETWEEN ? AND ?", start, stop, table="frames")
        self._drop(frames)
        return len(frames)

    def _drop(self, frames: Sequence[KeptFrame]) -> None:
        with self._transaction():
            self._note_course()
            self._db.executemany("DELETE FROM frames WHERE id = ?", [(f.id,) for f in frames])
        self._course_noted()
        self._delete(frames)
        self._look_again()

    def _try_to_drop_undone(self) -> None:
        if self._undone:
            with suppress(FrameStoreError):  # it was said, and nobody finds them
                self._drop_undone()

    def _drop_undone(self) -> None:
        self._drop(
            [
                frame
                for undone in self._undone
                for frame in self._find("WHERE id >= ? AND id < ?", *undone, table="frames")
            ]
        )
        self._undone = []

    def start_epoch(self) -> int:
        """The source's time restarts; see the class.

        Returns:
            How many frames were forgotten: all of a store in memory, which nothing finds again.

        Raises:
            FrameStoreError: no room on the disk, say; nothing has changed.
        """
        forgotten = 0 if self.folder is not None else self._count

        def begin() -> None:
            self._db.execute("INSERT OR IGNORE INTO epochs VALUES (?)", (self._next,))
            if self.folder is None:
                self._db.execute("DELETE FROM frames")

        try:
            self._in_another_course(begin)
        except FrameStoreError as error:
            raise FrameStoreError(f"a new epoch cannot begin in {self.folder}: {error}") from error
        if self.folder is None:
            self._pictures = PicturesInMemory()
        self._look()
        return forgotten

    def await_epoch(self) -> None:
        """As `start_epoch`, on a disk that cannot take it yet: the index is told with the next
        frame that it takes, or by `note_epoch`. A store that is closed before has had none."""
        self._awaited, self._epoch, self.course = True, self._next, _new_course()
        self._look()

    def note_epoch(self) -> None:
        """Tell the index of an epoch that was awaited. Raises FrameStoreError: it cannot yet."""
        if self._awaited:
            with self._transaction():
                self._note_course()
            self._course_noted()

    def clear(self) -> None:
        """Drop all frames, those of earlier epochs too; ids begin again."""
        frames = self._find("", table="frames")

        def drop() -> None:
            self._db.execute("DELETE FROM frames")
            self._db.execute("DELETE FROM epochs")

        self._in_another_course(drop)
        self._undone = []
        self._delete(frames)
        self._look()

    def _in_another_course(self, change: Callable[[], object]) -> None:
        """Change the index, and the course of time, or neither."""
        course = _new_course()
        with self._transaction():
            if self._awaited:
                self._db.execute("INSERT OR IGNORE INTO epochs VALUES (?)", (self._epoch,))
            self._db.execute(f"PRAGMA application_id = {course}")
            change()
        self.course = self._known_course = course
        self._awaited = False

    def _note_course(self) -> None:
        """Within a transaction, after which `_course_noted`."""
        if self._awaited:
            self._db.execute("INSERT OR IGNORE INTO epochs VALUES (?)", (self._epoch,))
        if self.course != self._known_course:
            self._db.execute(f"PRAGMA application_id = {self.course}")

    def _course_noted(self) -> None:
        self._known_course, self._awaited = self.course, False

    def close(self) -> None:
        """Give the files back; what is kept in a folder stays there."""
        self._try_to_drop_undone()
        self._open.close()

    def __enter__(self) -> FrameStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- inside ------------------------------------------------------------------------------

    def _insert(self, frame: KeptFrame, picture_sum: int) -> None:
        row = astuple(frame)
        values = (*row, picture_sum, _row_sum(row, picture_sum))
        marks = ", ".join("?" * len(values))
        self._db.execute(f"INSERT INTO frames ({_COLUMNS}, {_SUMS}) VALUES ({marks})", values)

    def _delete(self, frames: Iterable[KeptFrame]) -> None:
        """Delete the pictures of frames whose rows are gone; a picture that resists is taken away
        when the store is opened next."""
        for frame in frames:
            with suppress(OSError):
                self._pictures.delete(frame.id, frame.suffix)

    def _excess(self, newest: KeptFrame) -> list[KeptFrame]:
        """What must go once ``newest`` is in: never that one itself."""
        start = newest.stamp - self.max_seconds
        # In an epoch stamps never fall, so no more rows are read than are too old.
        rows = self._execute(f"SELECT {_COLUMNS} FROM present ORDER BY id")
        gone = list(takewhile(lambda frame: frame.stamp < start, (KeptFrame(*r) for r in rows)))
        rows.close()
        total = self._bytes + newest.cost - sum(frame.cost for frame in gone)
        ids = {frame.id for frame in gone}
        looked = -1
        while total > self.max_bytes:
            over = -(-(total - self.max_bytes) // (_BLOCK + _ROW_BYTES))
            oldest = self._find(
                "WHERE id < ? AND id > ? AND (NOT star OR id < ?) ORDER BY id LIMIT ?",
                newest.id,
                looked,
                self._epoch,
                over,
                table="frames",
            ) or [f for f in self.stars() if f.id not in ids | {newest.id}]
            if not oldest:
                break  # a single frame larger than the bound
            looked = max(looked, oldest[-1].id)
            for frame in oldest:
                if total > self.max_bytes and frame.id not in ids:
                    gone.append(frame)
                    ids.add(frame.id)
                    total -= frame.cost
        return gone

    def _find(self, clause: str, *values: object, table: str = "present") -> list[KeptFrame]:
        """Frames of the present epoch, or of all of them."""
        rows = self._execute(f"SELECT {_COLUMNS} FROM {table} {clause}", *values).fetchall()
        return [KeptFrame(*(*row[:-1], bool(row[-1]))) for row in rows]

    def _execute(self, statement: str, *values: object) -> sqlite3.Cursor:
        try:
            return self._db.execute(statement, values)
        except sqlite3.Error as error:
            raise self._unusable(error) from error

    def _unusable(self, error: sqlite3.Error) -> FrameStoreError:
        return FrameStoreError(f"the index of kept frames {self._path} cannot be used: {error}")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:
                    self._db.execute("ROLLBACK")
                raise
        except sqlite3.Error as error:
            raise self._unusable(error) from error


def _new_course() -> int:
    return 1 + secrets.randbelow(2**31 - 1)


_START_OVER = "Move the folder away, or name another"


def _row_sum(row: Iterable[Any], picture_sum: int | None) -> int:
    """Checksum of a row but for ``star``, which may change."""
    *values, _ = row
    return zlib.crc32(repr((*values, picture_sum)).encode("utf-8", "backslashreplace"))


def _is_sound(row: Iterable[Any]) -> bool:
    """Whether every value is of its column's type: SQLite itself keeps anything anywhere."""
    kinds = (int, float, str, int, int, str, int, float, int)
    return all(isinstance(value, kind) for value, kind in zip(row, kinds, strict=True))


@contextmanager
def _taken(folder: Path) -> Iterator[None]:
    """The folder, proved to be a store's, marked, and held against other processes."""
    try:
        new = kind_of(folder) != KIND
        check(folder, KIND, known=_is_of_version_1, link=True)
        with held(folder, KIND, 0o700):
            if new:
                _remove_old_lock(folder)
            for suffix in ("-wal", "-shm", "-journal"):
                with suppress(FileNotFoundError):
                    os.close(open_regular(folder / f"{_INDEX}{suffix}"))
            # SQLite gives its other files the permissions of this one.
            index = open_regular(folder / _INDEX, os.O_RDWR | os.O_CREAT, 0o600)
            if os.fstat(index).st_size == 0:
                _make_pictures(folder)
            os.close(index)
            yield
    except NotOursError as error:
        raise FrameStoreError(str(error)) from error
    except OSError as error:
        raise FrameStoreError(f"the folder {folder} cannot be used: {error}") from error


def _make_pictures(folder: Path) -> None:
    """Their folder, on the disk before the index that a store without it is refused for."""
    with suppress(FileExistsError):
        os.mkdir(folder / "pictures", 0o700)
    file = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(file)
    finally:
        os.close(file)


def _remove_old_lock(folder: Path) -> None:
    """Versions before the mark locked an empty file of this name."""
    with suppress(OSError):
        if os.lstat(folder / "lock").st_size == 0:
            os.unlink(folder / "lock")


def _is_of_version_1(folder: Path) -> bool:
    """Whether the index in ``folder`` is one of ours, from before there were marks.

    A copy of it is looked at: SQLite changes what it opens.
    """
    names = [f"{_INDEX}{suffix}" for suffix in ("", "-wal")]
    with tempfile.TemporaryDirectory(prefix="stream_vlm_index_") as copy:
        try:
            for name in names:
                with suppress(FileNotFoundError), open(open_regular(folder / name), "rb") as file:
                    if name == _INDEX and not _may_be_ours(file.read(100), os.fstat(file.fileno())):
                        return False
                    file.seek(0)
                    with open(Path(copy, name), "wb") as out:
                        shutil.copyfileobj(file, out)
            db = sqlite3.connect(f"file:{copy}/{_INDEX}?mode=rw", uri=True)
            try:
                return _is_index(db)
            finally:
                db.close()
        except (OSError, sqlite3.Error, UnicodeDecodeError):  # of a damaged column's name
            return False


def _may_be_ours(header: bytes, found: os.stat_result) -> bool:
    """By the header of SQLite's file format: an index that was never written back is one page."""
    version = int.from_bytes(header[60:64], "big")
    return header.startswith(b"SQLite format 3\0") and (
        version in (1, VERSION) or (version == 0 and found.st_size <= 65536)
    )


def _is_index(db: sqlite3.Connection) -> bool:
    """Whether it holds our tables and nothing else."""
    version = db.execute("PRAGMA user_version").fetchone()[0]
    if version not in (1, VERSION):
        return False
    sums = f", {_SUMS}" if version == VERSION else ""
    parts = _parts_of(db) if version == VERSION else _parts_of(db) | {_EPOCHS}
    columns = [column[1] for column in db.execute("PRAGMA table_info(frames)")]
    return parts == _PARTS and columns == f"{_COLUMNS}{sums}".split(", ")


def _parts_of(db: sqlite3.Connection) -> set[tuple[str, str]]:
    return set(db.execute("SELECT type, name FROM sqlite_master"))
