# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Poses out of serialized messages, read by hand: each begins with all that is needed of it.

So neither nav_msgs nor tf2 is imported, and of a message on /tf no object is made for each of the
robot's links.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from itertools import pairwise
from struct import Struct
from struct import error as StructError
from typing import Any, NamedTuple

from stream_vlm_ros.engine.inputs.stamp_check import check_stamp, join_stamp
from stream_vlm_ros.history.poses import Pose, Position, Quaternion, between

TF = "tf2_msgs/msg/TFMessage"
LONGEST_NAME = 256  # characters of a frame's name that are kept
MAX_LINKS = 10_000  # frames of a tree that are known
MAX_SAMPLES = 1000  # of one link of the chain
MAX_AGE_NS = 10 * 10**9  # by which the oldest of them may lie behind the newest


class UnreadableError(ValueError):
    """A message that breaks off, or is of a kind of CDR that is not read here."""


class _Reader:
    """Reads plain CDR, of either byte order: each number aligned to its size, behind 4 bytes."""

    def __init__(self, data: bytes) -> None:
        if data[:2] not in (b"\0\0", b"\0\1"):
            raise UnreadableError(f"CDR of the kind {data[:2].hex()}")
        order = "<" if data[1] else ">"
        self._data, self._at = data, 4
        self._whole, self._stamp = Struct(f"{order}I"), Struct(f"{order}iI")
        self._numbers = Struct(f"{order}7d")

    def whole(self) -> int:
        value: int = self._take(self._whole, 4)[0]
        return value

    def stamp(self) -> int:
        seconds, nanoseconds = self._take(self._stamp, 4)
        return check_stamp(join_stamp(seconds, nanoseconds))

    def text(self) -> str:
        length = self.whole()
        data = self._data[self._at : self._at + length]
        if len(data) < length:
            raise UnreadableError("it breaks off")
        self._at += length
        return data.rstrip(b"\0").decode("utf-8", "replace")[:LONGEST_NAME]

    def pose(self) -> tuple[Position, Quaternion]:
        x, y, z, *turn = self._take(self._numbers, 8)
        return (x, y, z), (turn[0], turn[1], turn[2], turn[3])

    def _take(self, layout: Struct, size: int) -> tuple[Any, ...]:
        self._at += -(self._at - 4) % size
        try:
            values = layout.unpack_from(self._data, self._at)
        except StructError:
            raise UnreadableError("it breaks off") from None
        self._at += layout.size
        return values


def _headed(data: bytes) -> Pose:
    """PoseStamped, and PoseWithCovarianceStamped: a header, then the pose. Raises UnreadableError,
    or InvalidTimestampError; so do the others."""
    reader = _Reader(data)
    stamp_ns, frame_id = reader.stamp(), reader.text()
    return Pose(stamp_ns, frame_id, *reader.pose())


def _odometry(data: bytes) -> Pose:
    """Odometry: a header, the name of the moving frame, then the pose."""
    reader = _Reader(data)
    stamp_ns, frame_id = reader.stamp(), reader.text()
    reader.text()
    return Pose(stamp_ns, frame_id, *reader.pose())


# By the types of messages; /tf is read by `TransformChain`.
READERS: dict[str, Callable[[bytes], Pose]] = {
    "geometry_msgs/msg/PoseStamped": _headed,
    "geometry_msgs/msg/PoseWithCovarianceStamped": _headed,
    "nav_msgs/msg/Odometry": _odometry,
}


class _Transform(NamedTuple):
    """A frame ``child`` in its parent."""

    stamp_ns: int
    parent: str
    child: str
    position: Position
    orientation: Quaternion


def transforms_of(data: bytes) -> Iterator[_Transform]:
    """The transforms of a serialized ``tf2_msgs/TFMessage``."""
    reader = _Reader(data)
    for _ in range(reader.whole()):
        stamp_ns, parent, child = reader.stamp(), reader.text(), reader.text()
        position, orientation = reader.pose()
        yield _Transform(
            stamp_ns, parent.lstrip("/"), child.lstrip("/"), position, orientation
        )  # once frames were written with a slash


class TransformChain:
    """Where ``frame`` is in ``parent``, out of the messages on /tf and /tf_static.

    ``frame`` must hang below ``parent``, over any number of links, fixed ones among them. A pose
    is told for each moment up to which every moving link of the chain is known: links between two
    of their own stamps are interpolated.
    """

    def __init__(self, frame: str, parent: str) -> None:
        self.frame, self.parent = frame.lstrip("/"), parent.lstrip("/")
        self._parents: dict[str, tuple[str, bool]] = {}  # child: its parent, and whether fixed
        self._fixed: dict[str, Pose] = {}
        self._moving: dict[str, deque[Pose]] = {}
        self._chain: list[str] = []  # children, from the frame upwards; empty: not known yet
        self._told_ns = -1

    @property
    def known(self) -> bool:
        """Whether the frames are connected."""
        return bool(self._chain) or self.frame == self.parent

    def take(self, data: bytes, static: bool) -> list[Pose]:
        """What a message adds: no pose, or the newest one that can be told now.

        Raises UnreadableError or InvalidTimestampError; what came before it in the message counts.
        """
        for transform in transforms_of(data):
            self._link(transform, static)
        pose = self._newest()
        return [] if pose is None else [pose]

    def _link(self, transform: _Transform, static: bool) -> None:
        child = transform.child
        link = (transform.parent, static)
        if self._parents.get(child) != link:
            if len(self._parents) >= MAX_LINKS and child not in self._parents:
                return
            self._parents[child] = link
            self._fixed.pop(child, None)
            self._moving.pop(child, None)
            self._chain = self._climb()
            for name in [name for name in self._moving if name not in self._chain]:
                del self._moving[name]
        pose = Pose(transform.stamp_ns, transform.parent, transform.position, transform.orientation)
        if static:
            self._fixed[child] = pose
        elif child in self._chain:
            samples = self._moving.setdefault(child, deque(maxlen=MAX_SAMPLES))
            if samples and pose.stamp_ns < samples[-1].stamp_ns - MAX_AGE_NS:
                self._moving.clear()  # time has begun again
                self._told_ns = -1
                samples = self._moving.setdefault(child, deque(maxlen=MAX_SAMPLES))
            if samples and pose.stamp_ns <= samples[-1].stamp_ns:
                return
            samples.append(pose)
            while samples[0].stamp_ns < pose.stamp_ns - MAX_AGE_NS:
                samples.popleft()

    def _climb(self) -> list[str]:
        """The links from the frame up to the parent; none if they are not connected."""
        chain, at = [], self.frame
        while at != self.parent:
            if at not in self._parents or at in chain:
                return []
            chain.append(at)
            at = self._parents[at][0]
        return chain

    def _newest(self) -> Pose | None:
        moving = [child for child in self._chain if not self._parents[child][1]]
        if not moving or any(not self._moving.get(child) for child in moving):
            return None  # of fixed links alone: it never moves, and no stamp says when
        stamp_ns = min(self._moving[child][-1].stamp_ns for child in moving)
        if stamp_ns <= self._told_ns:
            return None
        position: Position = (0.0, 0.0, 0.0)
        orientation: Quaternion = (0.0, 0.0, 0.0, 1.0)
        for child in self._chain:
            link = self._at(child, stamp_ns)
            if link is None:
                return None
            position = _sum(link.position, _rotated(position, link.orientation))
            orientation = _product(link.orientation, orientation)
        self._told_ns = stamp_ns
        return Pose(stamp_ns, self.parent, position, orientation)

    def _at(self, child: str, stamp_ns: int) -> Pose | None:
        if self._parents[child][1]:
            return self._fixed[child]
        samples = self._moving[child]
        if samples[-1].stamp_ns == stamp_ns:
            return samples[-1]
        for second, first in pairwise(reversed(samples)):
            if first.stamp_ns <= stamp_ns <= second.stamp_ns:
                return between(first, second, stamp_ns)
        return None  # all of them are later


def _sum(a: Position, b: Position) -> Position:
    return a[0] + b[0], a[1] + b[1], a[2] + b[2]


def _product(p: Quaternion, q: Quaternion) -> Quaternion:
    """Hamilton's: first turned by ``q``, then by ``p``."""
    px, py, pz, pw = p
    qx, qy, qz, qw = q
    return (
        pw * qx + px * qw + py * qz - pz * qy,
        pw * qy - px * qz + py * qw + pz * qx,
        pw * qz + px * qy - py * qx + pz * qw,
        pw * qw - px * qx - py * qy - pz * qz,
    )


def _rotated(v: Position, q: Quaternion) -> Position:
    back = (-q[0], -q[1], -q[2], q[3])
    x, y, z, _ = _product(_product(q, (*v, 0.0)), back)
    return x, y, z
