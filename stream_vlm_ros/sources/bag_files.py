# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The files of rosbags: channels, and messages as the bytes that were recorded.

Whole files are read by ``rosbags``, and MCAP by its own library. What they refuse (a file cut off,
without an index, or of no profile) is read from its start to where it breaks off.
``metadata.yaml`` is used for the order of a bag's files, and for how many messages there were: a
bag without one, or with a wrong one, reads the same.
"""

from __future__ import annotations

import contextlib
import functools
import io
import re
import shutil
import sqlite3
import struct
import tempfile
import weakref
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml
import zstandard
from rosbags.rosbag1 import Reader as Ros1Reader
from rosbags.rosbag2 import Reader as Ros2Reader

from stream_vlm_ros.engine.inputs.picture_sizes import PictureLimit
from stream_vlm_ros.errors import (
    PictureTooLargeError,
    SourceNotFoundError,
    SourceUnreadableError,
    cut,
)

from .bag_reader import Channel, FileReader, Raw, plain_kind, plain_topic, why_unreadable, words_of
from .bag_rescue import (
    LooseFile,
    LooseMcapFile,
    LooseRos1File,
    LooseSqliteFile,
    check_index,
    check_rows,
)
from .frame import no_plain_file
from .mcap_file import IndexedMcapFile
from .unpacking import ZSTD_MAGIC, unpack

_LOOSE = {".bag": LooseRos1File, ".mcap": LooseMcapFile, ".db3": LooseSqliteFile}
_ROS1_COMPRESSIONS = {b"BZh": "bz2", b"\x04\x22\x4d\x18": "lz4"}  # by magic
_LONGEST_METADATA = 4 << 20  # bytes of a metadata.yaml
# SQLite's log: magic, version, size of a page, number, salt, check sums; before each page its own.
_WAL_HEADER, _WAL_FRAME = struct.Struct(">IIII8s8s"), 24
_LEFT_FREE = 1 << 30  # bytes of a disk, when a compressed file is unpacked on it


def is_bag(path: Path) -> bool:
    """Whether ``path`` is named or laid out like a rosbag."""
    if path.is_dir():
        return (path / "metadata.yaml").is_file() or bool(_storage_files(path))
    return bool(re.search(r"\.(bag|mcap|db3)(\.zstd|\.zst)?$", path.name.lower()))


class BagFiles:
    """The files of one bag, in order. Iterating ``messages`` may be done several times.

    ``damage`` says, after a pass, where and why reading ended early, and how many fewer messages
    there were than the bag announces, or more than its metadata.yaml tells of.

    Raises:
        SourceNotFoundError, SourceUnreadableError: nothing can be read at all.
    """

    def __init__(self, path: Path, limit: PictureLimit) -> None:
        self.path, self.limit = path, limit
        self.damage: str | None = None
        self.notes: list[str] = []
        self._told: Counter[str] = Counter()  # messages by topic, as metadata.yaml says
        self.files = self._find()
        self._readable: _Readable | None = None  # the last one: each may be a large copy
        self.channels: list[Channel] = []
        self.start_ns: int | None = None
        self.end_ns: int | None = None
        failed: list[str] = []
        for file in self.files:
            try:
                with self._opened(file) as reader:
                    self._learn(reader)
            except SourceUnreadableError as error:
                failed.append(str(error))
        if len(failed) == len(self.files):
            raise SourceUnreadableError(failed[0])
        self.notes += failed
        in_files: Counter[str] = Counter()
        for channel in self.channels:
            in_files[channel.topic] += channel.count or 0
        self._announced = self._told | in_files

    def messages(self, topics: set[str] | None) -> Iterator[Raw]:
        """Messages of ``topics`` (by ``plain_topic``; None: all), in the order of recording.

        A file that breaks off gives what it could; then ``damage`` says so.
        """
        self.damage = None
        read: Counter[str] = Counter()
        for file in self.files:
            try:
                with self._opened(file) as reader:
                    for raw in self._guarded(reader, topics):
                        read[raw.channel.topic] += 1
                        yield raw
                if self._readable is not None:
                    self.damage = self.damage or self._readable.lost
            except SourceUnreadableError as error:
                self.damage = self.damage or str(error)
        lacking = [
            f"{read[topic]} of {count} on {cut(topic)}"
            for topic, count in self._announced.items()
            if read[topic] < count and (topics is None or topic in topics)
        ]
        if lacking:
            damage = self.damage or f"{self.path} lacks messages that it announces."
            self.damage = f"{damage} Messages read: {', '.join(lacking)}."
        # Bytes changed within a file can make messages of one topic another's.
        beyond = [
            f"{read[topic]} for {count} on {cut(topic)}"
            for topic, count in self._told.items()
            if read[topic] > count
        ]
        if beyond and self.damage is None:
            self.damage = (
                f"{self.path} holds more messages than its metadata.yaml tells of "
                f"({', '.join(beyond)}): it is damaged, or its recorder did not finish."
            )

    @contextlib.contextmanager
    def _opened(self, file: Path) -> Iterator[Any]:
        """A reader of one file: the library's, or else one that reads as far as the file goes."""
        readable = self._readable
        if readable is None or readable.file != file:
            self._readable = None  # removed before the next takes its place
            readable = self._readable = _Readable(file)
        with _reader_of(readable.path, file, self.limit) as reader:
            yield reader

    def _guarded(self, reader: FileReader, topics: set[str] | None) -> Iterator[Raw]:
        """Messages of one file; from where the library fails, those that can be found after it."""
        newest = 0  # log time
        given: set[str] = set()  # topics given of that time
        for raw in self._until_broken(reader, topics):
            if raw.log_ns > newest:
                newest, given = raw.log_ns, set()
            given.add(raw.channel.topic)
            yield raw
        if reader.broken is None:
            return
        self.damage = self.damage or _broken_off(reader.path, reader.broken)
        loose = _LOOSE.get(reader.path.suffix.lower())
        if loose is not None and not isinstance(reader, LooseFile):
            try:
                rest = loose(reader.path, self.limit)
            except Exception:  # nothing there either
                return
            for raw in self._until_broken(rest, topics):
                again = raw.log_ns == newest and raw.channel.topic in given
                if raw.log_ns >= newest and not again:
                    yield raw

    def _until_broken(self, reader: FileReader, topics: set[str] | None) -> Iterator[Raw]:
        messages = reader.messages(topics)
        while True:
            try:
                raw = next(messages)
            except StopIteration:
                return
            except Exception as error:
                # A damaged file can fail in any way inside the libraries that read it.
                reader.broken = error
                return
            yield self._unpacked(raw) if raw.data[:4] == ZSTD_MAGIC else raw

    def _unpacked(self, raw: Raw) -> Raw:
        try:
            return raw._replace(data=unpack(raw.data, "zstd", self.limit, "a message"))
        except (PictureTooLargeError, zstandard.ZstdError) as error:
            return raw._replace(data=b"", fault=words_of(error))

    def _learn(self, reader: Any) -> None:
        for channel in reader.channels:
            known = next(
                (c for c in self.channels if (c.topic, c.kind) == (channel.topic, channel.kind)),
                None,
            )
            if known is None:
                self.channels.append(channel)
            else:
                total = (known.count or 0) + (channel.count or 0)
                self.channels[self.channels.index(known)] = Channel(
                    known.topic, known.kind, known.wire, total
                )
        if reader.span is not None:
            start, end = reader.span
            self.start_ns = start if self.start_ns is None else min(self.start_ns, start)
            self.end_ns = end if self.end_ns is None else max(self.end_ns, end)

    def _find(self) -> list[Path]:
        path = self.path
        if not path.exists():
            raise SourceNotFoundError(f"There is no bag {path}. Check the path.")
        if path.is_file():
            return [path]
        if not path.is_dir():
            raise SourceUnreadableError(no_plain_file(path))
        files = _storage_files(path)
        named, self._told = _told_by_metadata(path / "metadata.yaml")
        missing = [name for name in named if not (path / name).is_file()]
        if missing:
            self.notes.append(f"metadata.yaml names files that are not there: {', '.join(missing)}")
        if not files:
            raise SourceUnreadableError(
                f"The folder {path} holds no file of a bag (*.db3, *.mcap)."
                + (
                    f" Its metadata.yaml names {', '.join(missing)}; copy it too."
                    if missing
                    else ""
                )
            )
        order = {name: index for index, name in enumerate(named)}
        return sorted(files, key=lambda f: (order.get(f.name, len(order)), _natural(f.name)))


def _storage_files(folder: Path) -> list[Path]:
    return [
        f for f in folder.iterdir() if f.is_file() and re.search(r"\.(mcap|db3)(\.zstd?)?$", f.name)
    ]


def _natural(name: str) -> list[tuple[int, int | str]]:
    return [(0, int(p)) if p.isdecimal() else (1, p) for p in re.split(r"(\d+)", name)]


def _told_by_metadata(file: Path) -> tuple[list[str], Counter[str]]:
    """The names of a bag's files in their order, and how many messages each topic has; both empty
    where metadata.yaml does not say."""
    names: list[str] = []
    counts: Counter[str] = Counter()
    try:
        if file.is_file() and file.stat().st_size <= _LONGEST_METADATA:
            told = yaml.safe_load(file.read_text(encoding="utf-8"))["rosbag2_bagfile_information"]
            # Texts alone: aliases make lists that no memory holds when they are written out.
            names = [Path(path).name for path in told["relative_file_paths"] if _is_text(path)]
            for entry in told.get("topics_with_message_count", ()):
                topic, count = entry["topic_metadata"]["name"], entry["message_count"]
                if _is_text(topic) and isinstance(count, int) and 0 <= count < 1 << 63:
                    counts[plain_topic(topic)] += count
    except (OSError, ValueError, yaml.YAMLError, LookupError, TypeError, RecursionError):
        pass
    except AttributeError:  # a list where a mapping should be
        pass
    return names, counts


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


class _Readable:
    """A file as readers can open it: in place, or as a copy among the temporary files, which is
    removed when nothing refers to it any more."""

    def __init__(self, file: Path) -> None:
        self.file = file
        self.lost: str | None = None  # what a recorder's log holds, and SQLite does not take
        self.path = self._recovered(self._decompressed(file))
        if not self.path.is_file():
            raise SourceNotFoundError(f"There is no file {file}. Check the path.")
        if self.path.stat().st_size == 0:
            if size := file.stat().st_size:
                raise SourceUnreadableError(
                    f"Nothing can be unpacked from {file} ({size:,} bytes): it was cut off before "
                    "the end of its first block, or nothing was packed. Copy or record it again."
                )
            raise SourceUnreadableError(
                f"{file} is empty (0 bytes): the recording or the copy did not finish."
            )

    def _temporary_folder(self) -> Path:
        folder = tempfile.mkdtemp(prefix="stream_vlm_bag_")
        weakref.finalize(self, shutil.rmtree, folder, ignore_errors=True)
        return Path(folder)

    def _recovered(self, file: Path) -> Path:
        """``file``, or, where its recorder has left a log next to it, a copy into which SQLite has
        brought what the log holds. The files themselves stay as they are."""
        logs = [file.with_name(file.name + end) for end in ("-wal", "-journal")]
        logs = [log for log in logs if log.is_file() and log.stat().st_size]
        if file.suffix.lower() != ".db3" or not logs or not file.is_file():
            return file
        folder = self._temporary_folder()
        size = sum(path.stat().st_size for path in (file, *logs))
        if shutil.disk_usage(folder).free < _LEFT_FREE + 2 * size:
            raise SourceUnreadableError(
                f"{file} was not closed by its recorder, and does not fit into {folder}, where it "
                f"would be closed ({size:,} bytes, twice). Close it: sqlite3 {file.name} 'VACUUM'"
            )
        for path in (file, *logs):
            shutil.copyfile(path, folder / path.name)
        wal = folder / f"{file.name}-wal"
        written = _frames(wal) if wal.is_file() else 0
        # What SQLite refuses is read as far as it goes, as any other damaged file.
        with (
            contextlib.suppress(sqlite3.Error, UnicodeDecodeError),  # of its own message, too
            contextlib.closing(sqlite3.connect(folder / file.name)) as database,
        ):
            (_, taken, _) = database.execute("PRAGMA wal_checkpoint").fetchone()
            dropped = written - taken
            if taken >= 0 and dropped > 0:  # below: SQLite did not look for a log
                self.lost = (
                    f"{file.name}-wal is damaged, was cut off, or ends in what was not committed: "
                    f"{dropped} of its {taken + dropped} pages were dropped, with the messages "
                    "that they hold."
                )
            database.execute("PRAGMA journal_mode = DELETE").fetchall()
            database.execute("SELECT count(*) FROM sqlite_master").fetchall()
        return folder / file.name

    def _decompressed(self, file: Path) -> Path:
        """``file``, or what is compressed in it, in a temporary folder."""
        if file.suffix.lower() not in (".zstd", ".zst"):
            return file
        folder = self._temporary_folder()
        target = folder / file.stem
        try:
            with file.open("rb") as compressed, target.open("wb") as out:
                for piece in zstandard.ZstdDecompressor().read_to_iter(compressed):
                    if shutil.disk_usage(folder).free < _LEFT_FREE:
                        raise SourceUnreadableError(
                            f"{file} does not fit into {folder} when unpacked: "
                            f"{out.tell():,} bytes were written, and removed again."
                        )
                    out.write(piece)
        except zstandard.ZstdError as error:
            if not target.is_file() or target.stat().st_size == 0:
                raise SourceUnreadableError(f"{file} cannot be decompressed: {error}") from error
        return target


def _frames(log: Path) -> int:
    """How many pages were written to a ``-wal`` since it was begun: those with its header's salt,
    whole or not. (Those of before are left from an earlier use.)"""
    with log.open("rb") as stream:
        head = stream.read(_WAL_HEADER.size)
        if len(head) < _WAL_HEADER.size:
            return 0
        _, _, page, _, salt, _ = _WAL_HEADER.unpack(head)
        size = stream.seek(0, io.SEEK_END)
        found = 0
        for at in range(_WAL_HEADER.size, size, _WAL_FRAME + max(page, 512)):
            stream.seek(at + 8)  # behind the page's number, and the file's size
            found += stream.read(len(salt)) == salt
    return found


def _reader_of(readable: Path, file: Path, limit: PictureLimit) -> Any:
    suffix = readable.suffix.lower()
    loose = _LOOSE.get(suffix)
    try:
        return (IndexedMcapFile if suffix == ".mcap" else _WholeFile)(readable, limit)
    except Exception as error:  # the readers of damaged files fail in every way
        if loose is not None:
            with contextlib.suppress(Exception):
                return loose(readable, limit)
        raise SourceUnreadableError(why_unreadable(file, readable, error)) from error


def _unpacked_chunk(
    decompressor: Callable[[bytes], bytes], limit: PictureLimit, data: bytes
) -> bytes:
    for magic, compression in _ROS1_COMPRESSIONS.items():
        if data.startswith(magic):
            return unpack(data, compression, limit, "a chunk")
    return decompressor(data)


def _broken_off(file: Path, error: Exception) -> str:
    words = words_of(error)
    return (
        f"{file.name} breaks off or is damaged ({words}). Everything that could be read was used."
    )


class _WholeFile(FileReader):
    """Through the readers of ``rosbags``, in the order of time.

    Raises what they do, and PictureTooLargeError if a part of it had to be read into memory that is
    larger than the limit.
    """

    def __init__(self, path: Path, limit: PictureLimit) -> None:
        super().__init__(path, limit)
        ros1 = path.suffix.lower() == ".bag"
        if not ros1:
            check_rows(path, limit)
        self._reader = Ros1Reader(path) if ros1 else Ros2Reader(path)
        self._reader.open()
        try:
            self._learn(ros1)
        except BaseException:
            self._reader.close()
            raise

    def _learn(self, ros1: bool) -> None:
        announced: Counter[int] = Counter()  # by connection; the index may hold fewer
        if ros1:
            check_index(self.path, self.limit, len(self._reader.chunk_infos))
            self._bound_chunks()
            for chunk in self._reader.chunk_infos:
                announced.update(chunk.connection_counts)
        wires = {
            c.id: "ros1" if ros1 else getattr(c.ext, "serialization_format", "cdr") or "cdr"
            for c in self._reader.connections
        }
        self._channels = {
            c.id: Channel(
                plain_topic(c.topic),
                plain_kind(c.msgtype),
                wires[c.id],
                max(c.msgcount, announced[c.id]),
            )
            for c in self._reader.connections
        }
        self.channels = list(self._channels.values())
        start, end = self._reader.start_time, self._reader.end_time
        if self._reader.message_count and 0 <= start <= end:  # a damaged index may say anything
            self.span = (start, end)

    def _bound_chunks(self) -> None:
        """Let each chunk of a ROS 1 bag be unpacked up to the limit."""
        chunks = self._reader.chunks
        for place, chunk in chunks.items():
            self.limit.check_bytes(chunk.datasize, "a chunk")
            chunks[place] = chunk._replace(
                decompressor=functools.partial(_unpacked_chunk, chunk.decompressor, self.limit)
            )

    def __exit__(self, *exception: Any) -> None:
        self._reader.close()

    def messages(self, topics: set[str] | None) -> Iterator[Raw]:
        wanted = [
            c for c in self._reader.connections if topics is None or plain_topic(c.topic) in topics
        ]
        if not wanted:  # to the library an empty choice means all
            return
        for connection, log_ns, data in self._reader.messages(connections=wanted):
            yield Raw(self._channels[connection.id], int(log_ns), bytes(data))
