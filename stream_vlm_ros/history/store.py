"""Frames kept for later: pictures in files, what is known of them in SQLite.

A picture is written first, then its row; a row is deleted first, then its picture. So after a crash
at any moment every row has its picture, and a picture without a row is removed when the store is
opened. The index is written ahead (SQLite's WAL): a killed process loses nothing that was
committed; when the power fails the last seconds may be missing, never the rest.
"""

from __future__ import annotations

import fcntl
import math
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np

from stream_vlm_ros.engine.picture_sizes import MAX_DECODED_MEGAPIXELS, PictureLimit
from stream_vlm_ros.errors import (
    FrameStoreError,
    InvalidImageError,
    InvalidParameterError,
    InvalidTimestampError,
    PictureLostError,
    PictureTooLargeError,
)
from stream_vlm_ros.history.pictures import (
    SUFFIXES,
    PictureFolder,
    Pictures,
    PicturesInMemory,
    decode,
    encode,
)

VERSION = 1
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
    star INTEGER NOT NULL
);
CREATE INDEX frames_by_stamp ON frames (stamp);
CREATE INDEX frames_star ON frames (id) WHERE star;
"""
_COLUMNS = "id, stamp, source, width, height, suffix, size, importance, star"
_ROW_BYTES = 256  # a row with its places in the indices
_BLOCK = 4096


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
    bound in time every frame goes, star or not.

    Args:
        folder: made if it is missing; what a store left there is taken up again. None: in memory.
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
        if not 1 <= quality <= 95:
            raise InvalidParameterError(f"quality must lie between 1 and 95: {quality!r}")
        if not max_bytes > 0:
            raise InvalidParameterError(f"max_bytes must be above 0: {max_bytes!r}")
        if not max_seconds > 0:
            raise InvalidParameterError(f"max_seconds must be above 0: {max_seconds!r}")
        self.folder = None if folder is None else Path(folder).expanduser()
        self.form, self.quality = form, quality
        self.max_bytes, self.max_seconds = max_bytes, max_seconds
        self._limit = PictureLimit(max_decoded_megapixels)
        self._lock: IO[str] | None = None
        self._pictures: Pictures
        if self.folder is None:
            self._pictures = PicturesInMemory()
            self._db = self._connect(":memory:")
        else:
            self._lock = _lock(self.folder)
            self._pictures = PictureFolder(self.folder / "pictures")
            self._db = self._connect(str(self.folder / "index.sqlite"))
        self._reconcile()
        self._look()

    def _connect(self, path: str) -> sqlite3.Connection:
        try:
            # One thread at a time, but not always the one that opened it.
            db = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
            db.execute("PRAGMA journal_mode = WAL")
            db.execute("PRAGMA synchronous = NORMAL")
            db.execute("PRAGMA journal_size_limit = 1048576")
            version = db.execute("PRAGMA user_version").fetchone()[0]
            if version == 0:
                db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {VERSION}; COMMIT;")
                version = VERSION
        except sqlite3.Error as error:
            raise FrameStoreError(
                f"the index of kept frames {path} cannot be used: {error}. Move it away to start "
                "anew"
            ) from error
        if version != VERSION:
            raise FrameStoreError(
                f"{path} was written by another version ({version}; this one writes {VERSION}): "
                "choose another folder"
            )
        return db

    def _reconcile(self) -> None:
        """Make rows and pictures agree again after a crash."""
        rows = {
            (number, suffix): size
            for number, suffix, size in self._db.execute("SELECT id, suffix, size FROM frames")
        }
        for number, suffix, size in list(self._pictures.scan()):
            if rows.get((number, suffix)) == size:
                del rows[number, suffix]
            else:
                self._pictures.delete(number, suffix)
        with self._transaction():
            self._db.executemany("DELETE FROM frames WHERE id = ?", [(n,) for n, _ in rows])

    def _look(self) -> None:
        """Take count, bytes and ends from the index."""
        self._count, last, blocks = self._db.execute(
            f"SELECT COUNT(*), MAX(id), COALESCE(SUM((size + {_BLOCK - 1}) / {_BLOCK}), 0) "
            "FROM frames"
        ).fetchone()
        self._next = 0 if last is None else last + 1
        self._bytes = blocks * _BLOCK + self._count * _ROW_BYTES
        newest = self.newest(1)
        self._newest = newest[0] if newest else None

    # -- what there is -----------------------------------------------------------------------

    def __len__(self) -> int:
        return self._count

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

    def newest(self, count: int) -> list[KeptFrame]:
        """The latest ``count`` frames, oldest first."""
        return self._find("ORDER BY id DESC LIMIT ?", count)[::-1]

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
        first, last = self._db.execute(
            "SELECT MIN(id), MAX(id) FROM frames WHERE stamp BETWEEN ? AND ?", (start, end)
        ).fetchone()
        return None if first is None else (first, last)

    def around(self, stamp: float) -> list[KeptFrame]:
        """The last frame before ``stamp`` and the first after it, as far as there are any."""
        before = self._find("WHERE stamp < ? ORDER BY stamp DESC, id DESC LIMIT 1", stamp)
        after = self._find("WHERE stamp >= ? ORDER BY stamp, id LIMIT 1", stamp)
        return before + after

    @property
    def first_regular_id(self) -> int:
        """Id from which on no frame was forgotten for want of room (stars can be older)."""
        first = self._db.execute("SELECT MIN(id) FROM frames WHERE NOT star").fetchone()[0]
        if first is None:
            first = self._db.execute("SELECT MIN(id) FROM frames").fetchone()[0]
        return self._next if first is None else first

    def load(self, frame: KeptFrame) -> np.ndarray:
        """The picture, uint8 RGB ``[height, width, 3]``.

        Raises:
            PictureLostError: it is gone or damaged.
            FrameStoreError: it is larger than max_decoded_megapixels; it stays where it is.
        """
        try:
            self._limit.check(frame.width, frame.height, f"the kept frame {frame.id}")
        except PictureTooLargeError as error:
            raise FrameStoreError(f"{error}: raise it, or choose another folder") from error
        try:
            data = self._pictures.read(frame.id, frame.suffix)
            return decode(data, frame.width, frame.height)
        except (OSError, ValueError, SyntaxError, InvalidImageError) as error:  # PIL's, and ours
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
            raise InvalidTimestampError(f"a time stamp is not finite: {stamp}")
        if self._newest is not None and stamp < self._newest.stamp:
            raise InvalidTimestampError(
                f"time runs backwards: a frame of {stamp:.3f} s comes after one of "
                f"{self._newest.stamp:.3f} s. reset() if the source started anew"
            )
        data = encode(image, self.form, self.quality)
        height, width, _ = image.shape
        suffix = SUFFIXES[self.form]
        frame = KeptFrame(
            self._next, stamp, source, width, height, suffix, len(data), importance, star
        )
        try:
            self._pictures.write(frame.id, suffix, data)
            with self._transaction():
                self._insert(frame)
                if no_star is not None:
                    self._db.execute("UPDATE frames SET star = 0 WHERE id = ?", (no_star,))
                gone = self._excess(frame)
                self._db.executemany("DELETE FROM frames WHERE id = ?", [(f.id,) for f in gone])
        except (OSError, sqlite3.Error) as error:
            self._pictures.delete(frame.id, suffix)
            raise FrameStoreError(f"the frame cannot be kept in {self.folder}: {error}") from error
        self._next += 1
        self._newest = frame
        self._count += 1 - len(gone)
        self._bytes += frame.cost - sum(f.cost for f in gone)
        for old in gone:
            self._pictures.delete(old.id, old.suffix)
        return frame, [old.id for old in gone]

    def forget(self, frame: KeptFrame) -> None:
        """Drop one frame, such as one whose picture is lost."""
        with self._transaction():
            self._db.execute("DELETE FROM frames WHERE id = ?", (frame.id,))
        self._pictures.delete(frame.id, frame.suffix)
        upcoming = self._next
        self._look()
        self._next = upcoming

    def clear(self) -> None:
        """Drop all frames; ids begin anew."""
        with self._transaction():
            self._db.execute("DELETE FROM frames")
        for number, suffix, _ in list(self._pictures.scan()):
            self._pictures.delete(number, suffix)
        self._look()

    def close(self) -> None:
        """Give the files back; what is kept in a folder stays there."""
        self._db.close()
        if self._lock is not None:
            self._lock.close()

    def __enter__(self) -> FrameStore:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    # -- inside ------------------------------------------------------------------------------

    def _insert(self, f: KeptFrame) -> None:
        self._db.execute(
            f"INSERT INTO frames ({_COLUMNS}) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (f.id, f.stamp, f.source, f.width, f.height, f.suffix, f.size, f.importance, f.star),
        )

    def _excess(self, newest: KeptFrame) -> list[KeptFrame]:
        """What must go once ``newest`` is in: never that one itself."""
        # Ordered as their index is: by id, SQLite would read the whole table at every frame.
        gone = self._find("WHERE stamp < ? ORDER BY stamp, id", newest.stamp - self.max_seconds)
        total = self._bytes + newest.cost - sum(frame.cost for frame in gone)
        ids = {frame.id for frame in gone}
        while total > self.max_bytes:
            over = -(-(total - self.max_bytes) // (_BLOCK + _ROW_BYTES))
            oldest = self._find(
                "WHERE id < ? AND id > ? AND NOT star ORDER BY id LIMIT ?",
                newest.id,
                max(ids, default=-1),
                over,
            ) or [f for f in self._find("WHERE star ORDER BY id") if f.id not in ids | {newest.id}]
            if not oldest:
                break  # a single frame larger than the bound
            for frame in oldest:
                if total > self.max_bytes:
                    gone.append(frame)
                    ids.add(frame.id)
                    total -= frame.cost
        return gone

    def _find(self, clause: str, *values: object) -> list[KeptFrame]:
        rows = self._db.execute(f"SELECT {_COLUMNS} FROM frames {clause}", values)
        return [KeptFrame(*row) for row in rows]

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            if self._db.in_transaction:
                self._db.execute("ROLLBACK")
            raise


def _lock(folder: Path) -> IO[str]:
    """An open file that holds the folder's lock; it ends with the process, however that ends."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = open(folder / "lock", "a")  # noqa: SIM115 - held until close
    except OSError as error:
        raise FrameStoreError(f"the folder {folder} cannot be used: {error}") from error
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        lock.close()
        raise FrameStoreError(
            f"{folder} is in use by another process: give each its own folder"
        ) from error
    return lock
