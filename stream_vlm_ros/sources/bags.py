"""Rosbags as sources: ROS 1, and ROS 2 in sqlite3 or MCAP, whole or damaged."""

from __future__ import annotations

import copy
import difflib
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rosbags.typesys import Stores, get_typestore

from stream_vlm_ros.engine.picture_sizes import MAX_DECODED_MEGAPIXELS, PictureLimit, shortened
from stream_vlm_ros.errors import InvalidImageError, InvalidParameterError, SourceUnreadableError

from .bag_files import BagFiles
from .bag_reader import Channel, Raw, plain_topic
from .frame import Frame, Source, SourceState
from .ros_images import compressed_to_rgb, image_to_rgb
from .sampling import NANOSECONDS, StampSampler, check_part

IMAGE, COMPRESSED = "sensor_msgs/Image", "sensor_msgs/CompressedImage"
ALL_TOPICS = "all"
STAMPS = ("header", "recorded")
# The layout of these two types is the same in every distribution, so the bag's own definitions,
# which may be missing or of another one, are not needed.
_TYPES = {IMAGE: "sensor_msgs/msg/Image", COMPRESSED: "sensor_msgs/msg/CompressedImage"}


class BagSource(Source):
    """The images of a rosbag: a ``.bag``, ``.mcap`` or ``.db3`` file, or a ROS 2 bag's folder.

    A frame's stamp is its header's, in nanoseconds as recorded; where a topic's first header has a
    stamp of zero, or with ``stamps`` "recorded", it is timed by the recorder's clock.
    ``Frame.source`` is the topic. Frames are sampled by stamp, topic by topic, and only those
    wanted are decoded.

    Args:
        path: the bag.
        topics: image topics to read; None: the one with the most images; ["all"]: every one.
        fps: frames per second to take of each topic (None: every one).
        start, end: seconds from the first frame; frames in [start, end) are given.
        size: (width, height) to scale to (None: as recorded).
        stamps: "header", or "recorded": when the recorder received it.
        name: what the source is called (None: the file's name).
        max_decoded_megapixels: larger pictures are left out, by their headers; compressed messages
            and chunks are unpacked up to 8 bytes for each of these pixels, and 64 MiB.

    Raises:
        SourceNotFoundError, SourceUnreadableError: at once, when there is nothing to read.
        InvalidParameterError: a topic that is not there, or that holds no images.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        topics: Sequence[str] | None = None,
        fps: float | None = None,
        start: float = 0.0,
        end: float | None = None,
        size: tuple[int, int] | None = None,
        stamps: str = "header",
        name: str | None = None,
        max_decoded_megapixels: float = MAX_DECODED_MEGAPIXELS,
    ) -> None:
        super().__init__()
        self.path = Path(path)
        self.name = name or self.path.name
        check_part(fps, start, end)
        if stamps not in STAMPS:
            raise InvalidParameterError(f"stamps is {stamps!r}; use {' or '.join(STAMPS)}.")
        self._fps, self._start, self._end, self.size = fps, start, end, size
        self._stamps = stamps
        self._limit = PictureLimit(max_decoded_megapixels)
        self._files = BagFiles(self.path, self._limit)
        self.image_channels = [c for c in self._files.channels if _reads(c)]
        self._notes = list(self._files.notes)
        self.topics = self._choose(topics)
        if self._files.start_ns is not None and self._files.end_ns is not None:
            self.duration = (self._files.end_ns - self._files.start_ns) / NANOSECONDS
        counts = [c.count for c in self.image_channels if c.topic in self.topics]
        if self.duration and len(counts) == 1 and counts[0] and counts[0] > 1:
            self.rate = (counts[0] - 1) / self.duration

    def __iter__(self) -> Iterator[Frame]:
        self.state = state = SourceState(notes=list(self._notes))
        reasons: dict[str, str] = {}  # why images are unusable: the first
        try:
            yield from self._read(state, reasons)
        finally:  # also where the reader has seen enough
            self._conclude(state, reasons.get("first", ""))

    def _read(self, state: SourceState, reasons: dict[str, str]) -> Iterator[Frame]:
        decoder = _Decoder(self.size, self._limit)
        by_log = True if self._stamps == "recorded" else None
        clocks = {t: _TopicClock(self._fps, by_log, t, state.notes) for t in self.topics}
        origin: int | None = None
        for raw in self._files.messages(set(self.topics)):
            if not _reads(raw.channel):
                continue
            state.counts.decoded += 1
            if raw.fault:
                state.counts.unusable += 1
                reasons.setdefault("first", raw.fault)
                continue
            clock = clocks[raw.channel.topic]
            stamp = clock.read(raw)
            if stamp is None:
                if clock.fault:
                    state.counts.unusable += 1
                    reasons.setdefault("first", clock.fault)
                else:
                    state.counts.unordered += 1
                continue
            origin = stamp if origin is None else origin
            offset = (stamp - origin) / NANOSECONDS
            late = self._end is not None and offset >= self._end
            if offset < self._start or late or not clock.wants(stamp):
                state.counts.unwanted += 1
                continue
            try:
                image = decoder.image(raw)
            except InvalidImageError as error:
                state.counts.unusable += 1
                reasons.setdefault("first", str(error))
                clock.pass_on()
                continue
            state.counts.given += 1
            yield Frame(stamp, image, raw.channel.topic)

    def _conclude(self, state: SourceState, reason: str) -> None:
        counts = state.counts
        state.damage = self._files.damage
        if counts.unusable:
            state.notes.append(f"{counts.unusable} of {counts.decoded} images unusable: {reason}")
        if counts.unordered:
            state.notes.append(
                f"{counts.unordered} of {counts.decoded} images left out: their stamps are not "
                "after the one before."
                + (
                    " Stamps 'recorded' are those of the recorder's own clock."
                    if self._stamps == "header"
                    else ""
                )
            )
        if state.damage is None and counts.decoded == 0:
            state.damage = f"{self.path} holds no image on {', '.join(self.topics)}."

    def _choose(self, topics: Sequence[str] | None) -> list[str]:
        """The topics to read."""
        found = list(dict.fromkeys(c.topic for c in self.image_channels))
        if not found:
            raise SourceUnreadableError(f"{self.path} holds no images. {self._what_there_is()}")
        if topics and list(topics) != [ALL_TOPICS]:
            wanted = list(dict.fromkeys(plain_topic(topic) for topic in topics))
            for topic in wanted:
                if topic not in found:
                    raise InvalidParameterError(self._why_not(topic, found))
            return wanted
        if topics:
            return found
        # Most images; of a camera's raw and compressed topic the raw one.
        count = {c.topic: (c.count or 0, c.kind == IMAGE) for c in self.image_channels}
        best = max(found, key=lambda topic: count[topic])
        if others := [topic for topic in found if topic != best]:
            self._notes.append(f"Read: {best}. Other image topics: {', '.join(others)}.")
        return [best]

    def _why_not(self, topic: str, found: list[str]) -> str:
        kinds = {c.topic: c.kind for c in self._files.channels}
        near = difflib.get_close_matches(topic, found, 1)
        meant = f" Did you mean {near[0]}?" if near else ""
        what = (
            f"The topic {topic} holds {kinds[topic] or 'something unknown'}, not images."
            if topic in kinds
            else f"There is no topic {topic} in {self.path}."
        )
        return f"{what}{meant} Image topics: {', '.join(found)}."

    def _what_there_is(self) -> str:
        channels = self._files.channels
        if not channels:
            return "It has no messages at all."
        foreign = sorted({c.wire for c in channels if c.wire not in ("cdr", "ros1")})
        listed = ", ".join(
            f"{shortened(c.topic)} ({shortened(c.kind or c.wire)})" for c in channels[:8]
        )
        more = f" and {len(channels) - 8} more" if len(channels) > 8 else ""
        if foreign:
            return (
                f"Its messages are not ROS's but {', '.join(foreign)}: {listed}{more}. Record "
                "sensor_msgs/Image or sensor_msgs/CompressedImage, or convert it."
            )
        video = [c for c in channels if "Video" in c.kind or "Packet" in c.kind]
        hint = f" {video[0].kind} is encoded video: convert it to images first." if video else ""
        return f"Wanted are {IMAGE} and {COMPRESSED}; it holds {listed}{more}.{hint}"


class _TopicClock:
    """Stamps of one topic, in order, and which of them to take."""

    def __init__(
        self, fps: float | None, by_log: bool | None, topic: str, notes: list[str]
    ) -> None:
        self._sampler = StampSampler(fps) if fps is not None else None
        self._before = None
        self._topic, self._notes = topic, notes
        self._by_log = by_log  # None until the first message decides
        self._last: int | None = None
        self.fault = ""

    def read(self, raw: Raw) -> int | None:
        """The message's stamp; None if it is not after the one before, or ``fault`` says why."""
        self.fault = ""
        try:
            stamp = _header_stamp(raw)
        except struct.error:
            self.fault = f"a message of {len(raw.data)} bytes is too short for its header"
            return None
        if self._by_log is None:
            self._by_log = stamp == 0
            if self._by_log:
                self._notes.append(
                    f"The headers of {self._topic} have no stamps; timed by the recorder's clock."
                )
        if self._by_log:
            stamp = raw.log_ns
        elif stamp <= 0:
            self.fault = f"a stamp of {stamp / NANOSECONDS:g} s among real ones"
            return None
        if self._last is not None and stamp <= self._last:
            return None
        self._last = stamp
        return stamp

    def wants(self, stamp: int) -> bool:
        self._before = copy.copy(self._sampler)
        return self._sampler is None or self._sampler.wants(stamp)

    def pass_on(self) -> None:
        """The frame taken last is unusable: the next one takes its place."""
        self._sampler = self._before


class _Decoder:
    def __init__(self, size: tuple[int, int] | None, limit: PictureLimit) -> None:
        self._size, self._limit = size, limit
        self._ros1 = get_typestore(Stores.ROS1_NOETIC)
        self._ros2 = get_typestore(Stores.ROS2_JAZZY)

    def image(self, raw: Raw) -> np.ndarray:
        """RGB [height, width, 3] uint8; raises InvalidImageError."""
        kind = raw.channel.kind
        try:
            message = (
                self._ros1.deserialize_ros1(raw.data, _TYPES[kind])
                if raw.channel.wire == "ros1"
                else self._ros2.deserialize_cdr(raw.data, _TYPES[kind])
            )
        except Exception as error:  # bytes from outside fail in any way
            words = " ".join(str(error).split())[:300] or type(error).__name__
            raise InvalidImageError(f"a message is no {kind}: {words}") from error
        to_rgb = image_to_rgb if kind == IMAGE else compressed_to_rgb
        image = to_rgb(message, limit=self._limit)
        if self._size is not None and image.shape[1::-1] != self._size:
            import cv2

            image = cv2.resize(image, self._size, interpolation=cv2.INTER_AREA)
        # Out of the recorded message's memory, so that a kept frame does not keep it.
        return image if image.flags.owndata else image.copy()


def _reads(channel: Channel) -> bool:
    return channel.kind in _TYPES and channel.wire in ("cdr", "ros1")


def _header_stamp(raw: Raw) -> int:
    """``header.stamp`` in nanoseconds, straight from the bytes."""
    if raw.channel.wire == "ros1":
        _, seconds, nanoseconds = struct.unpack_from("<III", raw.data)  # seq, secs, nsecs
    else:
        order = "<" if raw.data[1:2] == b"\x01" else ">"
        seconds, nanoseconds = struct.unpack_from(f"{order}iI", raw.data, 4)
    return seconds * NANOSECONDS + nanoseconds
