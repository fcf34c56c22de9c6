# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Where the robot was: a bounded track of poses by their stamps, in memory or next to the frames.

In a folder it is one table of SQLite, written ahead: what `PoseTrack.add` has returned from is
found again after the process was killed.
"""

from __future__ import annotations

import math
import os
import sqlite3
import threading
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from stream_vlm_ros.engine.inputs.stamp_check import Decision, StampCheck
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import FrameStoreError, InvalidParameterError
from stream_vlm_ros.owned import open_regular

FILE = "poses.sqlite"
MAX_POSES = 1_000_000  # about 100 MB
MOVING_STEP, STANDING_STEP = 0.2, 1.0  # s between two poses that are kept, at least
MOVED, TURNED = 0.01, math.radians(0.5)  # m, rad: less is standing
JUMP = 3600.0  # s: a step ahead that is believed only when it lasts
BACK = 1.0  # s that a stamp may lie behind the newest without a doubt that it is late

_VERSION = 1
_SCHEMA = """
CREATE TABLE poses (
    id INTEGER PRIMARY KEY,
    epoch INTEGER NOT NULL,
    stamp INTEGER NOT NULL,
    frame TEXT NOT NULL,
    x REAL NOT NULL, y REAL NOT NULL, z REAL NOT NULL,
    qx REAL NOT NULL, qy REAL NOT NULL, qz REAL NOT NULL, qw REAL NOT NULL
);
CREATE INDEX poses_by_stamp ON poses (epoch, stamp);
"""
_COLUMNS = "stamp, frame, x, y, z, qx, qy, qz, qw"
_TRIM_EVERY = 1000  # poses

Position = tuple[float, float, float]
Quaternion = tuple[float, float, float, float]


class Pose(NamedTuple):
    """Where something was: metres and a quaternion (x, y, z, w) in the frame ``frame_id``."""

    stamp_ns: int
    frame_id: str
    position: Position
    orientation: Quaternion


class PoseTrack:
    """Poses by their stamps, thinned out, and bounded in number and in time.

    While it moves five a second are kept, while it stands one a second; or more where
    ``tolerance`` is small. Where the stamps run backwards, three in a row, a new time begins, and
    what came before is no longer found. Safe to call from several threads.

    Args:
        folder: in which the table lies; made before. None: in memory.
        max_seconds: older ones are forgotten, from the newest back.
        tolerance: seconds from a stamp to the poses that `at` tells for it; may be changed.
        max_poses: at most so many are kept.

    Raises:
        FrameStoreError: the file cannot be used.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        max_seconds: float = 24 * 3600.0,
        tolerance: float = 0.5,
        max_poses: int = MAX_POSES,
    ) -> None:
        if not max_seconds > 0 or max_poses < 2:
            raise InvalidParameterError("a track of poses needs room for some seconds and two")
        self.tolerance = tolerance
        self.max_poses = max_poses
        self._max_ns = round(min(max_seconds, 1e9) * SECOND)
        self._lock = threading.Lock()
        self._closed = False
        self._path = ":memory:" if folder is None else str(folder / FILE)
        try:
            if folder is not None:
                # SQLite gives its other files the permissions of this one.
                os.close(open_regular(folder / FILE, os.O_RDWR | os.O_CREAT, 0o600))
            self._db = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            try:
                self._settle()
            except BaseException:
                self._db.close()
                raise
        except (sqlite3.Error, OSError) as error:
            raise FrameStoreError(
                f"the track of poses {self._path} cannot be used: {error}. Move the file away"
            ) from error

    def _settle(self) -> None:
        db = self._db
        version = db.execute("PRAGMA user_version").fetchone()[0]
        tables = db.execute("SELECT COUNT(*) FROM sqlite_master").fetchone()[0]
        new = version == 0 and not tables
        if not new and version != _VERSION:  # before anything is written
            raise sqlite3.DatabaseError(f"it is of another version ({version}) or not ours")
        db.execute("PRAGMA secure_delete = ON")  # what is forgotten is not left in the file
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA synchronous = NORMAL")
        if new:
            db.executescript(f"BEGIN; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
        self._since_trim = 0
        self._look()

    def _look(self) -> None:
        """Go on from what the table holds."""
        self._epoch = self._db.execute("SELECT COALESCE(MAX(epoch), 0) FROM poses").fetchone()[0]
        self._kept = self._newest = self._one("ORDER BY stamp DESC LIMIT 1")
        self._check: StampCheck[Pose] = StampCheck(
            round(BACK * SECOND),
            round(JUMP * SECOND),
            None if self._newest is None else self._newest.stamp_ns,
        )

    def __len__(self) -> int:
        with self._lock:
            count: int = self._db.execute("SELECT COUNT(*) FROM poses").fetchone()[0]
            return count

    def add(self, pose: Pose) -> None:
        """Take a pose; one that is no number, or whose stamp is not believed, is left out.

        Raises:
            FrameStoreError: no room on the disk, say; the pose is not kept.
        """
        if not all(map(math.isfinite, (*pose.position, *pose.orientation))):
            return
        with self._lock:
            if not self._closed:
                self._follow(self._check.offer(pose.stamp_ns, pose))

    def release(self) -> None:
        """No pose has come for long: those that waited after a pause are taken."""
        with self._lock:
            if self._check.waiting and not self._closed:
                self._follow(self._check.release())

    def at(self, stamp_ns: int) -> Pose | None:
        """The pose at a stamp: between its neighbours where both are within the tolerance, else
        the nearer one of them; None where neither is."""
        with self._lock:
            if self._closed:
                return None
            before = self._one("AND stamp <= ? ORDER BY stamp DESC LIMIT 1", stamp_ns)
            after = self._one("AND stamp >= ? ORDER BY stamp LIMIT 1", stamp_ns)
            newest = self._newest  # perhaps not kept
        if newest is not None and newest.stamp_ns >= stamp_ns:
            after = newest if after is None else min(after, newest, key=_stamp)
        elif newest is not None:
            before = newest if before is None else max(before, newest, key=_stamp)
        reach = round(self.tolerance * SECOND)
        near = [p for p in (before, after) if p is not None and abs(p.stamp_ns - stamp_ns) <= reach]
        if not near:
            return None
        if len(near) == 2 and near[0].frame_id == near[1].frame_id:
            return between(near[0], near[1], stamp_ns)
        return min(near, key=lambda p: abs(p.stamp_ns - stamp_ns))._replace(stamp_ns=stamp_ns)

    def forget(self, start: float, stop: float) -> int:
        """Erase the poses of a time, in seconds of the source, of every epoch; how many."""
        low, high = (max(-(2**62), min(2**62, s * SECOND)) for s in (start, stop))
        with self._lock:
            gone = self._change(
                "DELETE FROM poses WHERE stamp BETWEEN ? AND ?", math.floor(low), math.ceil(high)
            )
            self._write_back()
            self._look()
        return gone

    def clear(self) -> None:
        """Forget all of them."""
        with self._lock:
            if self._closed:
                return
            self._change("DELETE FROM poses")
            self._write_back()
            self._look()

    def close(self) -> None:
        """Give the file back; what is in it stays. Nothing is taken or found from then on."""
        with self._lock:
            self._closed = True
            self._db.close()

    # -- inside; the lock is held --------------------------------------------------------------

    def _follow(self, decision: Decision[Pose]) -> None:
        if decision.jump_ns is not None and decision.jump_ns < 0:
            self._epoch, self._kept, self._newest = self._epoch + 1, None, None
        for pose in decision.admitted:
            self._newest = pose
            if self._is_wanted(pose):
                self._keep(pose)

    def _is_wanted(self, pose: Pose) -> bool:
        kept = self._kept
        if kept is None or kept.frame_id != pose.frame_id:
            return True
        step = (pose.stamp_ns - kept.stamp_ns) / SECOND
        if step < min(MOVING_STEP, self.tolerance):
            return False
        return step >= min(STANDING_STEP, 2 * self.tolerance) or _moved(kept, pose)

    def _keep(self, pose: Pose) -> None:
        marks = ", ".join("?" * 10)
        self._change(
            f"INSERT INTO poses (epoch, {_COLUMNS}) VALUES ({marks})",
            self._epoch, pose.stamp_ns, pose.frame_id, *pose.position, *pose.orientation,
        )  # fmt: skip
        self._kept = pose
        self._since_trim += 1
        if self._since_trim >= min(_TRIM_EVERY, max(1, self.max_poses // 100)):
            self._since_trim = 0
            self._change("DELETE FROM poses WHERE stamp < ?", pose.stamp_ns - self._max_ns)
            self._change(
                "DELETE FROM poses WHERE id <= (SELECT MAX(id) FROM poses) - ?", self.max_poses
            )

    def _one(self, clause: str, *values: int) -> Pose | None:
        row = self._db.execute(
            f"SELECT {_COLUMNS} FROM poses WHERE epoch = ? {clause}", (self._epoch, *values)
        ).fetchone()
        return None if row is None else Pose(row[0], row[1], tuple(row[2:5]), tuple(row[5:9]))

    def _change(self, statement: str, *values: object) -> int:
        try:
            return self._db.execute(statement, values).rowcount
        except sqlite3.Error as error:
            raise FrameStoreError(
                f"the track of poses {self._path} cannot be written: {error}"
            ) from error

    def _write_back(self) -> None:
        """Leave nothing that was forgotten in the file that is written ahead."""
        with suppress(sqlite3.Error):
            self._db.execute("PRAGMA wal_checkpoint(TRUNCATE)")


def forget_in(folder: Path, start: float, stop: float) -> int:
    """Erase the poses of a time from the track in a folder, if there is one; how many."""
    if not (folder / FILE).exists():
        return 0
    track = PoseTrack(folder)
    try:
        return track.forget(start, stop)
    finally:
        track.close()


def between(first: Pose, second: Pose, stamp_ns: int) -> Pose:
    """The pose at a stamp between two others, in the frame of both: along a straight line, turned
    evenly the shorter way."""
    span = second.stamp_ns - first.stamp_ns
    share = (stamp_ns - first.stamp_ns) / span if span else 0.0
    x, y, z = (a + share * (b - a) for a, b in zip(first.position, second.position, strict=True))
    return Pose(
        stamp_ns, first.frame_id, (x, y, z), _turned(first.orientation, second.orientation, share)
    )


def _turned(first: Quaternion, second: Quaternion, share: float) -> Quaternion:
    lengths = math.hypot(*first), math.hypot(*second)
    if not all(lengths):  # no orientation at all
        return first if share < 0.5 else second
    a = [value / lengths[0] for value in first]
    b = [value / lengths[1] for value in second]
    cosine = sum(p * q for p, q in zip(a, b, strict=True))
    if cosine < 0:  # the same turn the other way round
        b, cosine = [-value for value in b], -cosine
    angle = math.acos(min(1.0, cosine))
    if angle < 1e-6:
        weights = 1 - share, share
    else:
        sine = math.sin(angle)
        weights = math.sin((1 - share) * angle) / sine, math.sin(share * angle) / sine
    x, y, z, w = (weights[0] * p + weights[1] * q for p, q in zip(a, b, strict=True))
    return x, y, z, w


def _moved(first: Pose, second: Pose) -> bool:
    if math.dist(first.position, second.position) >= MOVED:
        return True
    lengths = math.hypot(*first.orientation) * math.hypot(*second.orientation)
    if not lengths:
        return False
    cosine = sum(p * q for p, q in zip(first.orientation, second.orientation, strict=True))
    return 2 * math.acos(min(1.0, abs(cosine) / lengths)) >= TURNED


def _stamp(pose: Pose) -> int:
    return pose.stamp_ns
