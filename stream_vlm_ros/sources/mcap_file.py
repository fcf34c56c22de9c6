# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""MCAP files, by the format's own library, with every size that they announce checked first."""

from __future__ import annotations

import heapq
import io
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import IO, Any

from mcap.opcode import Opcode
from mcap.reader import SeekingReader
from mcap.records import Channel as McapChannel
from mcap.records import Chunk, ChunkIndex, Message, Schema
from mcap.stream_reader import StreamReader, breakup_chunk
from mcap.writer import MCAP0_MAGIC

from stream_vlm_ros.engine.inputs.picture_sizes import PictureLimit

from .bag_reader import Channel, FileReader, Raw, plain_kind, plain_topic
from .unpacking import unpack

_RECORD = struct.Struct("<BQ")  # opcode, length
_READ = (Opcode.SCHEMA, Opcode.CHANNEL, Opcode.MESSAGE, Opcode.CHUNK, Opcode.STATISTICS)


class UnindexedError(Exception):
    """An MCAP without the summary by which messages are found; to be read from its start."""


class IndexedMcapFile(FileReader):
    """Through the index in its summary, in the order of time.

    Chunks that overlap in time are merged, as far as ``limit.unpacked_bytes`` of messages hold.

    Raises UnindexedError, and what the library raises for a damaged summary.
    """

    def __init__(self, path: Path, limit: PictureLimit) -> None:
        super().__init__(path, limit)
        self._stream = path.open("rb")
        try:
            summary = SeekingReader(self._stream, record_size_limit=1 << 32).get_summary()
            if summary is None or summary.statistics is None or not summary.chunk_indexes:
                raise UnindexedError("the file has no summary of its chunks")
            counts = summary.statistics.channel_message_counts
            if not set(counts) <= set(summary.channels):
                raise UnindexedError("the summary does not name every channel")
            if not {c.schema_id for c in summary.channels.values()} <= {0, *summary.schemas}:
                raise UnindexedError("the summary does not name every type")
            _check_layout(self._stream)
        except BaseException:
            self._stream.close()
            raise
        self._chunks = sorted(summary.chunk_indexes, key=lambda chunk: chunk.message_start_time)
        self._known = {
            number: mcap_channel(channel, summary.schemas.get(channel.schema_id))
            for number, channel in summary.channels.items()
        }
        self.channels = [replace(c, count=counts.get(n, 0)) for n, c in self._known.items()]
        start, end = summary.statistics.message_start_time, summary.statistics.message_end_time
        if summary.statistics.message_count and 0 <= start <= end:
            self.span = (start, end)

    def __exit__(self, *exception: Any) -> None:
        self._stream.close()

    def messages(self, topics: set[str] | None) -> Iterator[Raw]:
        wanted = {n for n, c in self._known.items() if topics is None or c.topic in topics}
        waiting: list[tuple[int, int, Raw]] = []  # a heap by time, then by place in the file
        held = place = 0  # bytes that wait
        for chunk in self._chunks:
            while waiting and (
                waiting[0][0] < chunk.message_start_time or held > self.limit.unpacked_bytes
            ):
                raw = heapq.heappop(waiting)[-1]
                held -= len(raw.data)
                yield raw
            offsets = chunk.message_index_offsets
            if offsets and wanted.isdisjoint(offsets):
                continue
            for message in self._messages_of(chunk):
                if message.channel_id in wanted:
                    raw = Raw(self._known[message.channel_id], message.log_time, message.data)
                    heapq.heappush(waiting, (raw.log_ns, place, raw))
                    held, place = held + len(raw.data), place + 1
        while waiting:
            yield heapq.heappop(waiting)[-1]

    def _messages_of(self, index: ChunkIndex) -> Iterator[Message]:
        self._stream.seek(index.chunk_start_offset)
        chunk = next(mcap_records(self._stream, self.limit, _raise))
        if not isinstance(chunk, Chunk):
            raise ValueError("the index of the chunks points elsewhere")
        for item in chunk_items(chunk, self.limit):
            if isinstance(item, Message):
                yield item


def _check_layout(stream: IO[bytes]) -> None:
    """Raise UnindexedError for messages that the index does not know of: those outside chunks, and
    of a further MCAP, put in front of the one whose summary the file ends with."""
    size = stream.seek(0, io.SEEK_END)
    at = len(MCAP0_MAGIC)
    while at + _RECORD.size <= size:
        stream.seek(at)
        opcode, length = _RECORD.unpack(stream.read(_RECORD.size))
        at += _RECORD.size + length
        if opcode == Opcode.MESSAGE:
            raise UnindexedError("a message lies outside the chunks")
        if opcode == Opcode.FOOTER and at + len(MCAP0_MAGIC) < size:
            raise UnindexedError("another MCAP follows the first one")


def mcap_records(
    stream: IO[bytes], limit: PictureLimit, refuse: Callable[[Exception], None]
) -> Iterator[Any]:
    """Records of the library's that hold or count messages, from where ``stream`` stands.

    Others, such as attachments, are passed over, and so is one that is damaged or too long, once
    ``refuse`` has been told. Raises EOFError where the file ends without its footer,
    and ValueError where it goes on after that with something other than a further MCAP.
    """
    here = stream.tell()
    size = stream.seek(0, io.SEEK_END)
    stream.seek(here)
    while len(head := stream.read(_RECORD.size)) == _RECORD.size:
        opcode, length = _RECORD.unpack(head)
        end = stream.tell() + length
        if end > size and opcode not in _READ:  # these are given as far as they go
            raise EOFError("a record reaches beyond the file's end: bytes were put in, or lack")
        if opcode == Opcode.FOOTER:
            stream.seek(end)
            check_magic(stream)
            if not (more := stream.read(len(MCAP0_MAGIC))):
                return
            if more != MCAP0_MAGIC:  # else a further MCAP was put behind this one
                rest = size - end - len(MCAP0_MAGIC)
                raise ValueError(f"{rest:,} bytes follow the file's end, and were not read")
            continue
        if opcode in _READ:
            try:
                limit.check_bytes(length, "a record")
                record = head + stream.read(length)
                if stream.tell() < end:
                    raise EOFError("the file ends inside a record")
                one = StreamReader(io.BytesIO(record), skip_magic=True, emit_chunks=True)
                yield next(one.records)
            except Exception as error:  # it fails in any way; the next may be whole
                refuse(error)
        stream.seek(end)
    raise EOFError("the file ends without its footer")


def _raise(error: Exception) -> None:
    raise error


def check_magic(stream: IO[bytes]) -> None:
    """Raise ValueError unless ``stream`` stands where an MCAP file begins, or ends."""
    if stream.read(len(MCAP0_MAGIC)) != MCAP0_MAGIC:
        raise ValueError("the file does not begin or end as an MCAP does")


def chunk_items(chunk: Chunk, limit: PictureLimit) -> list[Any]:
    """The records in a chunk; raises for a damaged one, or one that unpacks to too much."""
    limit.check_bytes(chunk.uncompressed_size, "a chunk, unpacked,")
    data = unpack(chunk.data, chunk.compression, limit, "a chunk")
    if len(data) != chunk.uncompressed_size:
        raise ValueError(f"a chunk holds {len(data)} bytes, not {chunk.uncompressed_size}")
    return breakup_chunk(replace(chunk, data=data, compression=""), validate_crc=True)


def mcap_channel(channel: McapChannel, schema: Schema | None) -> Channel:
    """What a reader of bags tells of a channel."""
    kind = plain_kind(schema.name) if schema else ""
    return Channel(plain_topic(channel.topic), kind, channel.message_encoding)
