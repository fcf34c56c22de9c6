# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Damaged bag files, and those the libraries refuse: read from the start as far as they go.

An MCAP is read record by record here, and only its records are parsed by the library: the
library's own way without an index (``NonSeekingReader``) ends at the first damaged record, and
unpacks chunks without a bound. Of 400 MCAPs damaged as by bench/fuzz_bags.py it
gives 4,692 images, and this reader 4,878. Of as many ROS 1 bags ``rosbags``, which needs a whole
index, gives 1,937, and this reader 5,947. sqlite3 recovers logs, but no damaged rows.
"""

from __future__ import annotations

import contextlib
import io
import mmap
import re
import sqlite3
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from mcap.records import Channel as McapChannel
from mcap.records import Chunk, Message, Schema, Statistics
from rosbags.rosbag1.reader import RecordType

from stream_vlm_ros.engine.inputs.picture_sizes import PictureLimit
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import PictureTooLargeError

from .bag_reader import Channel, FileReader, Raw, plain_kind, plain_topic
from .mcap_file import check_magic, chunk_items, mcap_channel, mcap_records
from .unpacking import unpack

_OPS = {bytes([kind]) for kind in RecordType}  # as a record's header has it
_CONNECTION, _CHUNK, _MESSAGE, _INDEX, _CHUNK_INFO = (
    bytes([kind])
    for kind in (
        RecordType.CONNECTION,
        RecordType.CHUNK,
        RecordType.MSGDATA,
        RecordType.IDXDATA,
        RecordType.CHUNK_INFO,
    )
)


_CHUNK_INFO_SIZE = b"\x64\0\0\0"  # of its header, whose fields are of one size each
_STATISTICS = re.compile(rb"\x0b[\s\S]{3}\0{5}")  # opcode, and a length below 16 MiB
_LONGEST_SUMMARY = 64 << 20  # bytes of a file's end, in which they are looked for


class LooseFile(FileReader):
    """Read from its start, record by record, as far as it goes; channels come from a first pass.

    A damaged chunk is left out, and the next one read; ``broken`` then says what was wrong. Where
    the file's end still says how many messages there were, ``channels`` count these.
    """

    def __init__(self, path: Path, limit: PictureLimit) -> None:
        super().__init__(path, limit)
        # By number; of the whole file, as its end repeats what a damaged chunk would have told.
        self._known: dict[Any, Channel] = {}
        counts: Counter[Channel] = Counter()
        first = last = None
        for raw in self._scan(None, empty=True):
            counts[raw.channel] += 1
            if raw.fault:  # it may have no time
                continue
            first = raw.log_ns if first is None else min(first, raw.log_ns)
            last = raw.log_ns if last is None else max(last, raw.log_ns)
        if self.broken is not None:
            announced: Counter[Channel] = Counter()
            for key, number in self._announced().items():
                if (channel := self._known.get(key)) is not None:
                    announced[channel] += number
            counts |= announced
        self.channels = [replace(channel, count=number) for channel, number in counts.items()]
        if first is not None and last is not None:
            self.span = (first, last)
        elif self.broken is not None:
            raise self.broken

    def messages(self, topics: set[str] | None) -> Iterator[Raw]:
        yield from self._scan(topics)

    def _announced(self) -> Counter[Any]:
        """How many messages of each channel, by its number, the file's end says that there were."""
        return Counter()

    def _refuse(self, error: Exception) -> None:
        self.broken = self.broken or error

    def _scan(self, topics: set[str] | None, empty: bool = False) -> Iterator[Raw]:
        """``empty``: without the messages' data."""
        raise NotImplementedError


class LooseMcapFile(LooseFile):
    def _scan(self, topics: set[str] | None, empty: bool = False) -> Iterator[Raw]:
        self.broken = None
        schemas: dict[int, Schema] = {}
        found = 0
        with self.path.open("rb") as stream:
            try:
                check_magic(stream)
                for record in mcap_records(stream, self.limit, self._refuse):
                    for item in self._items(record):
                        if isinstance(item, Schema):
                            schemas[item.id] = item
                        elif isinstance(item, McapChannel):
                            schema = schemas.get(item.schema_id)
                            self._known[item.id] = mcap_channel(item, schema)
                        elif isinstance(item, Message):
                            channel = self._known.get(item.channel_id)
                            found += channel is not None
                            if channel is not None and _is_wanted(channel, topics):
                                yield Raw(channel, item.log_time, b"" if empty else item.data)
                        elif isinstance(item, Statistics):
                            if found < item.message_count:
                                counts = f"{found} of {item.message_count}"
                                self._refuse(ValueError(f"{counts} messages are there"))
                            found = 0  # another MCAP may follow
            except GeneratorExit:
                raise
            except Exception as error:
                self.broken = self.broken or error

    def _announced(self) -> Counter[Any]:
        """As the statistics say, which are found by their layout: what was put in or is missing
        before them has moved them from where the file's end points to."""
        found: Counter[Any] = Counter()
        with self.path.open("rb") as stream:
            stream.seek(max(0, self.path.stat().st_size - _LONGEST_SUMMARY))
            end = stream.read()
        for match in _STATISTICS.finditer(end):
            head, counts = struct.calcsize("<BQ"), struct.calcsize("<QHIIIIQQI")
            (length,) = struct.unpack_from("<Q", end, match.start() + 1)
            record = end[match.start() + head : match.start() + head + length]
            if len(record) == length >= counts and (length - counts) % 10 == 0:
                (total, *_, size) = struct.unpack_from("<QHIIIIQQI", record)
                by_channel = list(struct.iter_unpack("<HQ", record[counts:]))
                if size == length - counts and total == sum(number for _, number in by_channel):
                    found.update(dict(by_channel))
        return found

    def _items(self, record: Any) -> list[Any]:
        if not isinstance(record, Chunk):
            return [record]
        try:
            return chunk_items(record, self.limit)
        except Exception as error:
            self.broken = self.broken or error
            return []


def _is_wanted(channel: Channel, topics: set[str] | None) -> bool:
    return topics is None or channel.topic in topics


@contextlib.contextmanager
def _database(path: Path) -> Iterator[sqlite3.Connection]:
    uri = f"{path.absolute().as_uri()}?mode=ro&immutable=1"
    with contextlib.closing(sqlite3.connect(uri, uri=True)) as database:
        database.text_factory = lambda text: text.decode(errors="replace")
        _check_tables(database)
        yield database


def _check_tables(database: sqlite3.Connection) -> None:
    """Raise ValueError for a view in a table's place, as what it computes may have no end, and for
    topics whose names are none."""
    query = "SELECT name FROM sqlite_master WHERE type = 'view' AND lower(name) IN (?, ?)"
    for (name,) in database.execute(query, ("messages", "topics")):
        raise ValueError(f"{name} is not a table of messages or topics, but a view")
    query = "SELECT id, name, type, serialization_format FROM topics"
    for number, *words in database.execute(query):
        if not all(isinstance(word, str) for word in words):
            raise ValueError(f"the name, type or format of topic {number} is no text")


def check_rows(path: Path, limit: PictureLimit) -> None:
    """Raise PictureTooLargeError for a bag in SQLite with a message that is too long, and
    ValueError for a row that is no message; raises what sqlite3 does if it cannot be read. SQLite
    knows a blob's length and type without reading it."""
    with _database(path) as database:
        query = "SELECT length(data) FROM messages WHERE length(data) > ? LIMIT 1"
        if (row := database.execute(query, (limit.unpacked_bytes,)).fetchone()) is not None:
            limit.check_bytes(row[0], "a message")
        query = (
            f"SELECT 1 FROM messages WHERE NOT ({_IS_MESSAGE}) OR topic_id NOT IN "
            "(SELECT id FROM topics) LIMIT 1"
        )
        if database.execute(query).fetchone() is not None:
            raise ValueError("a row is no message")


# Any type fits a column.
_IS_MESSAGE = "typeof(timestamp) = 'integer' AND typeof(data) = 'blob'"


class LooseSqliteFile(LooseFile):
    """Rows in the order they were written, without the index by time."""

    def _scan(self, topics: set[str] | None, empty: bool = False) -> Iterator[Raw]:
        self.broken = None
        try:
            with _database(self.path) as database:
                channels = {
                    number: Channel(plain_topic(name), plain_kind(kind), wire)
                    for number, name, kind, wire in database.execute(
                        "SELECT id, name, type, serialization_format FROM topics"
                    )
                }
                content = "NULL" if empty else "CASE WHEN length(data) <= ? THEN data END"
                rows = database.execute(
                    f"SELECT topic_id, {_IS_MESSAGE}, timestamp, length(data), "
                    f"CASE WHEN {_IS_MESSAGE} THEN {content} END FROM messages",
                    () if empty else (self.limit.unpacked_bytes,),
                )
                for number, whole, log_ns, length, data in rows:
                    channel = channels.get(number)
                    if channel is None:
                        self._refuse(ValueError(f"a message is of no known topic ({number})"))
                    elif topics is None or channel.topic in topics:
                        yield (
                            self._raw(channel, log_ns, length, b"" if empty else data)
                            if whole
                            else Raw(channel, 0, b"", "its time is no number, or its data no bytes")
                        )
        except GeneratorExit:
            raise
        except Exception as error:
            self.broken = self.broken or error

    def _raw(self, channel: Channel, log_ns: int, length: int, data: bytes) -> Raw:
        try:
            self.limit.check_bytes(length, "a message")
        except PictureTooLargeError as error:
            return Raw(channel, log_ns, b"", str(error))
        return Raw(channel, log_ns, data)


class LooseRos1File(LooseFile):
    """The ROS 1 bag format, version 2.0: records of a header (fields) and data."""

    def _scan(self, topics: set[str] | None, empty: bool = False) -> Iterator[Raw]:
        self.broken = None
        found = announced = 0
        with self.path.open("rb") as stream:
            try:
                if not stream.readline().startswith(b"#ROSBAG V2.0"):
                    raise ValueError("the file has no magic of a ROS 1 bag, version 2.0")
                for header, data in _ros1_records(stream, self.limit, self._refuse):
                    for fields, content in self._items(header, data):
                        op = fields.get(b"op")
                        if op == _CONNECTION:
                            self._known[fields[b"conn"]] = _ros1_channel(fields, content)
                        elif op == _INDEX:
                            announced += struct.unpack("<I", fields[b"count"])[0]
                        elif op == _MESSAGE:
                            channel = self._known.get(fields[b"conn"])
                            found += channel is not None
                            if channel is not None and _is_wanted(channel, topics):
                                seconds, nanoseconds = struct.unpack("<II", fields[b"time"])
                                log_ns = seconds * SECOND + nanoseconds
                                yield Raw(channel, log_ns, b"" if empty else content)
                        elif op not in _OPS:
                            self._refuse(ValueError(f"a record is of no known kind ({op!r})"))
                if found < announced:
                    self._refuse(ValueError(f"{found} of {announced} messages are there"))
            except GeneratorExit:
                raise
            except Exception as error:
                self.broken = self.broken or error

    def _announced(self) -> Counter[Any]:
        """As the records say that tell of the chunks, wherever they lie."""
        found: Counter[Any] = Counter()
        with (
            self.path.open("rb") as stream,
            mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data,
        ):
            at = 0
            while (at := data.find(b"chunk_pos=", at + 1)) > 0:
                begin = data.rfind(_CHUNK_INFO_SIZE, max(0, at - _CHUNK_INFO_SIZE[0]), at)
                stream.seek(max(0, begin))
                with contextlib.suppress(Exception):  # it is damaged, or no such record
                    header, counts = next(_ros1_records(stream, self.limit, self._refuse))
                    if header[b"op"] == _CHUNK_INFO:
                        for number, count in struct.iter_unpack("<4sI", counts):
                            found[number] += count
        return found

    def _items(self, header: dict[bytes, bytes], data: bytes) -> Iterator[tuple[dict, bytes]]:
        if header.get(b"op") != _CHUNK:
            yield header, data
            return
        try:
            yield from _ros1_chunk(header, data, self.limit, self._refuse)
        except GeneratorExit:
            raise
        except Exception as error:
            self.broken = self.broken or error


def _ros1_records(
    stream: Any, limit: PictureLimit, refuse: Callable[[Exception], None]
) -> Iterator[tuple[dict[bytes, bytes], bytes]]:
    """Header fields and data of each record; a record that is cut off raises EOFError, after its
    part has been given if it is a chunk. One that is too long is passed over, once ``refuse`` has
    been told."""
    while size := stream.read(4):
        header = _ros1_fields(_exactly(stream, struct.unpack("<I", size)[0], limit))
        (length,) = struct.unpack("<I", _exactly(stream, 4, limit))
        try:
            limit.check_bytes(length, "a record")
        except PictureTooLargeError as error:
            refuse(error)
            stream.seek(length, io.SEEK_CUR)
            continue
        data = stream.read(length)
        yield header, data
        if len(data) < length:
            raise EOFError(f"the last record has {len(data)} of {length} bytes")


def check_index(path: Path, limit: PictureLimit, chunks: int) -> None:
    """Raise ValueError, or what reading does, unless the index of a ROS 1 bag has so many chunks:
    the number in the bag's header is all that its library looks at."""

    def refuse(error: Exception) -> None:
        raise error

    with path.open("rb") as stream:
        stream.readline()
        header, _ = next(_ros1_records(stream, limit, refuse))
        stream.seek(struct.unpack("<Q", header[b"index_pos"])[0])
        found = sum(
            fields.get(b"op") == _CHUNK_INFO for fields, _ in _ros1_records(stream, limit, refuse)
        )
    if found != chunks:
        raise ValueError(f"the index has {found} chunks, the header {chunks}")


def _ros1_chunk(
    header: dict[bytes, bytes],
    data: bytes,
    limit: PictureLimit,
    refuse: Callable[[Exception], None],
) -> Iterator[tuple[dict, bytes]]:
    compression = header.get(b"compression", b"none").decode(errors="replace")
    data = unpack(data, compression, limit, "a chunk")
    if (size := header.get(b"size")) is not None and len(data) != struct.unpack("<I", size)[0]:
        refuse(ValueError(f"a chunk holds {len(data)} bytes, and announces another size"))
    yield from _ros1_records(io.BytesIO(data), limit, refuse)


def _ros1_fields(data: bytes) -> dict[bytes, bytes]:
    fields, at = {}, 0
    while at < len(data):
        (length,) = struct.unpack_from("<I", data, at)
        name, _, value = data[at + 4 : at + 4 + length].partition(b"=")
        fields[name] = value
        at += 4 + length
    return fields


def _ros1_channel(header: dict[bytes, bytes], data: bytes) -> Channel:
    kind = _ros1_fields(data).get(b"type", b"").decode(errors="replace")
    return Channel(plain_topic(header[b"topic"].decode(errors="replace")), plain_kind(kind), "ros1")


def _exactly(stream: Any, length: int, limit: PictureLimit) -> bytes:
    limit.check_bytes(length, "a record's header")
    data = stream.read(length)
    if len(data) < length:
        raise EOFError("the file ends inside a record")
    return data
