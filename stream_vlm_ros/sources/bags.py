# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Rosbags as sources: ROS 1, and ROS 2 in sqlite3 or MCAP, whole or damaged."""

from __future__ import annotations

import copy
import difflib
import itertools
import os
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from rosbags.typesys import Stores, get_typestore

from stream_vlm_ros.engine.inputs.picture_sizes import MAX_DECODED_MEGAPIXELS, PictureLimit
from stream_vlm_ros.engine.inputs.sampling import StampSampler
from stream_vlm_ros.engine.inputs.stamp_check import Decision, StampCheck, check_stamp, join_stamp
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import (
    InvalidImageError,
    InvalidParameterError,
    InvalidTimestampError,
    SourceUnreadableError,
    cut,
)

from .bag_files import BagFiles
from .bag_reader import Channel, Raw, plain_topic
from .frame import Frame, Source, SourceState
from .ros_images import compressed_to_rgb, image_to_rgb
from .sampling import MAX_SECONDS, check_part

IMAGE, COMPRESSED = "sensor_msgs/Image", "sensor_msgs/CompressedImage"
ALL_TOPICS = "all"
STAMPS = ("header", "recorded")
_SEEN = 2  # the best of how an image can be seen
_DEEP = "mono16"  # what depth is recorded as, though it could be a picture
_FIRST_IMAGES = 3  # of a topic, by which it is chosen
_UNSTAMPED_BYTES = 64 << 20  # of images without a stamp that wait for one with it
_SAME_CLOCK_NS = 5 * SECOND  # what transport may take; further apart, two cameras' clocks differ
_LONG_TRANSPORT_NS = SECOND  # from here on it is said, as it may as well be another clock
# The layout of these two types is the same in every distribution, so the bag's own definitions,
# which may be missing or of another one, are not needed.
_TYPES = {IMAGE: "sensor_msgs/msg/Image", COMPRESSED: "sensor_msgs/msg/CompressedImage"}


class BagSource(Source):
    """The images of a rosbag: a ``.bag``, ``.mcap`` or ``.db3`` file, or a ROS 2 bag's folder.

    A frame's stamp is its header's, in nanoseconds as recorded; where a topic's headers have
    stamps of zero, or with ``stamps`` "recorded", it is timed by the recorder's clock. Of several
    cameras those on another clock than the first are moved onto that, and a note says so.
    Stamps that do not increase are left out, and a pause or a jump ahead is believed if three
    frames agree on it, or the bag ends in a pause.
    ``Frame.source`` is the topic. Frames are sampled by stamp, topic by topic, and only those
    wanted are decoded.

    Args:
        path: the bag.
        topics: image topics to read; None: the one with the most images that can be seen, which
            those of a depth camera cannot; ["all"]: every one.
        fps: frames per second to take of each topic (None: every one).
        start, end: seconds from the first frame; frames in [start, end) are given.
        size: (width, height) to scale to (None: as recorded).
        stamps: "header", or "recorded": when the recorder received it.
        max_time_gap: seconds from one frame to the next beyond which time has jumped.
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
        max_time_gap: float = 3600.0,
        name: str | None = None,
        max_decoded_megapixels: float = MAX_DECODED_MEGAPIXELS,
    ) -> None:
        super().__init__()
        self.path = Path(path)
        self.name = name or self.path.name
        check_part(fps, start, end)
        if stamps not in STAMPS:
            raise InvalidParameterError(f"stamps is {stamps!r}; use {' or '.join(STAMPS)}.")
        if not 0 < max_time_gap <= MAX_SECONDS:
            raise InvalidParameterError(
                f"max_time_gap is {max_time_gap} s; it must be above 0 and at most {MAX_SECONDS:g}."
            )
        self._max_gap_ns = round(max_time_gap * SECOND)
        self._fps, self._start, self._end, self.size = fps, start, end, size
        self._stamps = stamps
        self._limit = PictureLimit(max_decoded_megapixels)
        self._files = BagFiles(self.path, self._limit)
        self.image_channels = [c for c in self._files.channels if _reads(c)]
        self._notes = list(self._files.notes)
        self.topics = self._choose(topics)
        self.cameras = tuple(self.topics)
        if self._files.start_ns is not None and self._files.end_ns is not None:
            self.duration = (self._files.end_ns - self._files.start_ns) / SECOND
        counts = [c.count for c in self.image_channels if c.topic in self.topics]
        if self.duration and len(counts) == 1 and counts[0] and counts[0] > 1:
            self.rate = (counts[0] - 1) / self.duration

    def __iter__(self) -> Iterator[Frame]:
        self.state = state = SourceState(notes=list(self._notes))
        reasons: dict[str, str] = {}  # why images are unusable, or out of order: the first
        try:
            yield from self._read(state, reasons)
        finally:  # also where the reader has seen enough
            self._conclude(state, reasons)

    def _read(self, state: SourceState, reasons: dict[str, str]) -> Iterator[Frame]:
        decoder = _Decoder(self.size, self._limit)
        by_log = True if self._stamps == "recorded" else None
        clocks = {
            topic: _TopicClock(topic, self._fps, by_log, self._max_gap_ns, state, reasons)
            for topic in self.topics
        }
        moved = _OneClock(state)
        origin: int | None = None
        for raw, own_stamp in self._timed(clocks, reasons):
            clock = clocks[raw.channel.topic]
            state.counts.decoded += 1
            stamp = own_stamp + moved.by(raw, own_stamp)
            if stamp < 0:
                state.counts.unordered += 1
                reasons.setdefault("unordered", "a stamp lies before the beginning of time")
                continue
            origin = stamp if origin is None else origin
            offset = (stamp - origin) / SECOND
            # Of several cameras the first frame read may not be the earliest.
            early = self._start > 0 and offset < self._start
            late = self._end is not None and offset >= self._end
            if early or late or not clock.wants(stamp):
                state.counts.unwanted += 1
                continue
            try:
                image = decoder.image(raw)
            except InvalidImageError as error:
                state.counts.unusable += 1
                reasons.setdefault("unusable", str(error))
                clock.pass_on()
                continue
            state.counts.given += 1
            yield Frame(stamp, image, raw.channel.topic)

    def _timed(
        self, clocks: dict[str, _TopicClock], reasons: dict[str, str]
    ) -> Iterator[tuple[Raw, int]]:
        """The images whose stamps are believed, with their stamps."""
        for raw in self._files.messages(set(self.topics)):
            if not _reads(raw.channel):
                continue
            if raw.fault:  # no header can be read from it
                self.state.counts.decoded += 1
                self.state.counts.unusable += 1
                reasons.setdefault("unusable", raw.fault)
                continue
            yield from clocks[raw.channel.topic].read(raw)
        for clock in clocks.values():
            yield from clock.finish()

    def _conclude(self, state: SourceState, reasons: dict[str, str]) -> None:
        counts = state.counts
        state.damage = self._files.damage
        if counts.unusable:
            reason = cut(reasons["unusable"])
            state.notes.append(f"{counts.unusable} of {counts.decoded} images unusable: {reason}")
        if counts.unordered:
            state.notes.append(
                f"{counts.unordered} of {counts.decoded} images left out: their stamps do not go "
                f"on from the one before (the first: {reasons['unordered']}). Time pauses or "
                "jumps where three agree on it; images up to "
                f"{self._max_gap_ns / SECOND:g} s apart go on (max_time_gap)."
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
        order = sorted(found, key=lambda topic: count[topic], reverse=True)
        if len(order) == 1:
            return order
        looks: dict[str, tuple[int, str]] = {}
        for topic in order:
            looks[topic] = self._look(topic)
            if looks[topic][0] == _SEEN:
                break
        best = max(looks, key=lambda topic: looks[topic][0])  # the first of them
        others = [topic + looks.get(topic, (0, ""))[1] for topic in order if topic != best]
        self._notes.append(f"Read: {best}. Other image topics: {', '.join(others)}.")
        return [best]

    def _look(self, topic: str) -> tuple[int, str]:
        """How well the images of ``topic`` can be seen, by its first ones, and why not better."""
        decoder, best = _Decoder(None, self._limit), (0, "")
        for raw in itertools.islice(self._files.messages({topic}), _FIRST_IMAGES):
            try:
                _, encoding = decoder.image(raw), decoder.encoding
            except InvalidImageError as error:
                best = max(best, (0, f" ({error})"))
                continue
            if encoding.lower() != _DEEP:
                return _SEEN, ""
            best = max(best, (1, f" ({encoding}: depth?)"))
        return best

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
        listed = ", ".join(f"{cut(c.topic)} ({cut(c.kind or c.wire)})" for c in channels[:8])
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
    """Stamps of one topic that are believed, and which of them to take.

    Args:
        by_log: timed by the recorder's clock; None: if the first headers have no stamps.
        state, reasons: where it is counted what is left out, and why the first was.
    """

    def __init__(
        self,
        topic: str,
        fps: float | None,
        by_log: bool | None,
        max_gap_ns: int,
        state: SourceState,
        reasons: dict[str, str],
    ) -> None:
        self._sampler = StampSampler(fps) if fps is not None else None
        self._before: StampSampler | None = None
        self._topic, self._state, self._reasons = topic, state, reasons
        self._by_log = by_log
        self._unstamped: list[Raw] = []  # the first, until the next decides
        self._check: StampCheck[tuple[Raw, int]] = StampCheck(
            0, max_gap_ns, believe_backwards=False, confirm_first=True
        )

    def read(self, raw: Raw) -> Iterator[tuple[Raw, int]]:
        """The images that are next, with their stamps: none, this one, or some with it."""
        try:
            stamp = _header_stamp(raw)
        except struct.error:
            self._leave_out(f"a message of {len(raw.data)} bytes is too short for its header")
            return
        except InvalidTimestampError as fault:
            stamp = None
            if not self._by_log:
                self._leave_out(str(fault))
                return
        if self._by_log is None:
            held = sum(len(other.data) for other in self._unstamped)
            if stamp == 0 and held < _UNSTAMPED_BYTES:
                self._unstamped.append(raw)
                return
            yield from self._decide(stamp == 0)
        yield from self._time(raw, stamp)

    def finish(self) -> Iterator[tuple[Raw, int]]:
        """The images left at the end of the bag."""
        yield from self._decide(True)
        yield from self._told(self._check.finish())

    def _decide(self, by_log: bool) -> Iterator[tuple[Raw, int]]:
        """From here on images are timed by the recorder's clock, or by their headers."""
        if self._by_log is None:
            self._by_log = by_log
            if self._by_log and self._unstamped:
                self._state.notes.append(
                    f"The headers of {self._topic} have no stamps; timed by the recorder's clock."
                )
        for raw in self._unstamped:
            yield from self._time(raw, 0)
        self._unstamped.clear()

    def _time(self, raw: Raw, stamp: int | None) -> Iterator[tuple[Raw, int]]:
        try:
            stamp = check_stamp(raw.log_ns if self._by_log or stamp is None else stamp)
        except InvalidTimestampError as fault:
            self._leave_out(str(fault))
            return
        yield from self._told(self._check.offer(stamp, (raw, stamp)))

    def _told(self, decision: Decision[tuple[Raw, int]]) -> tuple[tuple[Raw, int], ...]:
        for _, words in decision.refused:
            self._state.counts.decoded += 1
            self._state.counts.unordered += 1
            self._reasons.setdefault("unordered", words)
        if decision.jump_ns is not None:
            seconds = decision.jump_ns / SECOND
            self._state.notes.append(f"The stamps of {self._topic} jump ahead by {seconds:,.1f} s.")
        return decision.admitted

    def _leave_out(self, why: str) -> None:
        self._state.counts.decoded += 1
        self._state.counts.unusable += 1
        self._reasons.setdefault("unusable", why)

    def wants(self, stamp: int) -> bool:
        self._before = copy.copy(self._sampler)
        return self._sampler is None or self._sampler.wants(stamp)

    def pass_on(self) -> None:
        """The frame taken last is unusable: the next one takes its place."""
        self._sampler = self._before


class _OneClock:
    """By how much the stamps of each topic are moved, so that all are on the first one's clock.

    A clock is told by how far the topic's first frame is from the recorder's clock.
    """

    def __init__(self, state: SourceState) -> None:
        self._state = state
        self._ahead: dict[str, int] = {}  # of the recorder's clock, in ns
        self._moves: dict[str, int] = {}

    def by(self, raw: Raw, stamp: int) -> int:
        """In ns, for a frame with this stamp."""
        topic = raw.channel.topic
        if topic in self._moves:
            return self._moves[topic]
        self._ahead[topic] = stamp - raw.log_ns
        first = next(iter(self._ahead))
        apart = self._ahead[topic] - self._ahead[first]
        self._moves[topic] = 0 if abs(apart) <= _SAME_CLOCK_NS else -apart
        if abs(apart) >= _LONG_TRANSPORT_NS:
            way = "ahead of" if apart > 0 else "behind"
            done = (
                "its stamps were moved by as much."
                if self._moves[topic]
                else "its stamps were not moved, as transport may take "
                f"{_SAME_CLOCK_NS / SECOND:g} s. A part (start, end) holds other images of it."
            )
            self._state.notes.append(
                f"The clock of {topic} is {abs(apart) / SECOND:,.1f} s {way} that of {first}: "
                f"{done}"
            )
        return self._moves[topic]


class _Decoder:
    """``encoding`` is that of the last message, as it says itself."""

    def __init__(self, size: tuple[int, int] | None, limit: PictureLimit) -> None:
        self._size, self._limit = size, limit
        self.encoding = ""
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
            raise InvalidImageError(f"a message is not a {kind}: {words}") from error
        self.encoding = message.encoding if kind == IMAGE else message.format.partition(";")[0]
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
    """``header.stamp`` in nanoseconds, straight from the bytes; struct.error, or
    InvalidTimestampError, where there is none."""
    if raw.channel.wire == "ros1":
        _, seconds, nanoseconds = struct.unpack_from("<III", raw.data)  # seq, secs, nsecs
    else:
        order = "<" if raw.data[1:2] == b"\x01" else ">"
        seconds, nanoseconds = struct.unpack_from(f"{order}iI", raw.data, 4)
    return join_stamp(seconds, nanoseconds)
