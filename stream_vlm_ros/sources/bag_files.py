"""The files of rosbags: channels, and messages as the bytes that were recorded.

Whole files are read by ``rosbags``. What it refuses (a file cut off, without an index, or of no
profile) is read from its start to where it breaks off. ``metadata.yaml`` is used for the order of
a bag's files only: a bag without one, or with a wrong one, reads the same.
"""

from __future__ import annotations

import contextlib
import re
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import yaml
import zstandard
from rosbags.rosbag1 import Reader as Ros1Reader
from rosbags.rosbag2 import Reader as Ros2Reader

from stream_vlm_ros.errors import SourceNotFoundError, SourceUnreadableError

from .bag_reader import Channel, FileReader, Raw, plain_kind, plain_topic, why_unreadable, words_of
from .bag_rescue import LooseMcapFile, LooseRos1File, LooseSqliteFile

_LOOSE = {".bag": LooseRos1File, ".mcap": LooseMcapFile, ".db3": LooseSqliteFile}
_ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"


def is_bag(path: Path) -> bool:
    """Whether ``path`` is named or laid out like a rosbag."""
    if path.is_dir():
        return (path / "metadata.yaml").is_file() or bool(_storage_files(path))
    return bool(re.search(r"\.(bag|mcap|db3)(\.zstd|\.zst)?$", path.name.lower()))


class BagFiles:
    """The files of one bag, in order. Iterating ``messages`` may be done several times.

    ``damage`` says, after a pass, where and why reading ended early.

    Raises:
        SourceNotFoundError, SourceUnreadableError: nothing can be read at all.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.damage: str | None = None
        self.notes: list[str] = []
        self.files = self._find()
        self.channels: list[Channel] = []
        self.start_ns: int | None = None
        self.end_ns: int | None = None
        failed: list[str] = []
        for file in self.files:
            try:
                with _opened(file) as reader:
                    self._learn(reader)
            except SourceUnreadableError as error:
                failed.append(str(error))
        if len(failed) == len(self.files):
            raise SourceUnreadableError(failed[0])
        self.notes += failed

    def messages(self, topics: set[str] | None) -> Iterator[Raw]:
        """Messages of ``topics`` (by ``plain_topic``; None: all), in the order of recording.

        A file that breaks off gives what it could; then ``damage`` says so.
        """
        self.damage = None
        for file in self.files:
            try:
                with _opened(file) as reader:
                    yield from self._guarded(reader, topics)
            except SourceUnreadableError as error:
                self.damage = self.damage or str(error)

    def _guarded(self, reader: FileReader, topics: set[str] | None) -> Iterator[Raw]:
        """Messages of one file; from where the library fails, those that can be found after it."""
        newest, given = 0, set()  # log time, and the topics given of that time
        for raw in self._until_broken(reader, topics):
            if raw.log_ns > newest:
                newest, given = raw.log_ns, set()
            given.add(raw.channel.topic)
            yield raw
        if reader.broken is None:
            return
        self.damage = self.damage or _broken_off(reader.path, reader.broken)
        loose = _LOOSE.get(reader.path.suffix.lower())
        if isinstance(reader, _WholeFile) and loose is not None:
            try:
                rest = loose(reader.path)
            except Exception:  # nothing there either
                return
            for raw in self._until_broken(rest, topics):
                again = raw.log_ns == newest and raw.channel.topic in given
                if raw.log_ns >= newest and not again:
                    yield raw

    @staticmethod
    def _until_broken(reader: FileReader, topics: set[str] | None) -> Iterator[Raw]:
        messages = reader.messages(topics)
        while True:
            try:
                raw = next(messages)
                if raw.data[:4] == _ZSTD_MAGIC:
                    raw = raw._replace(data=_unzstd(raw.data))
            except StopIteration:
                return
            except Exception as error:
                # A damaged file can fail in any way inside the libraries that read it.
                reader.broken = error
                return
            yield raw

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
        files = _storage_files(path)
        named = _files_by_metadata(path / "metadata.yaml")
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
    return [(0, int(p)) if p.isdigit() else (1, p) for p in re.split(r"(\d+)", name)]


def _files_by_metadata(file: Path) -> list[str]:
    """The names of a bag's files in their order; empty where metadata.yaml does not say."""
    try:
        content = yaml.safe_load(file.read_text(encoding="utf-8"))
        paths = content["rosbag2_bagfile_information"]["relative_file_paths"]
        return [Path(str(path)).name for path in paths]
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError):
        return []


@contextlib.contextmanager
def _opened(file: Path) -> Iterator[Any]:
    """A reader of one file: the library's, or else one that reads as far as the file goes."""
    with ExitStack() as stack:
        readable = _decompressed(file, stack)
        if not readable.is_file():
            raise SourceNotFoundError(f"There is no file {file}. Check the path.")
        if readable.stat().st_size == 0:
            raise SourceUnreadableError(
                f"{file} is empty (0 bytes): the recording or the copy did not finish."
            )
        yield stack.enter_context(_reader_of(readable, file))


def _decompressed(file: Path, stack: ExitStack) -> Path:
    """``file``, or what is compressed in it, in a temporary folder."""
    if file.suffix.lower() not in (".zstd", ".zst"):
        return file
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="stream_vlm_bag_"))
    target = Path(folder) / file.stem
    try:
        with file.open("rb") as compressed, target.open("wb") as out:
            zstandard.ZstdDecompressor().copy_stream(compressed, out)
    except zstandard.ZstdError as error:
        if not target.is_file() or target.stat().st_size == 0:
            raise SourceUnreadableError(f"{file} cannot be decompressed: {error}") from error
    return target


def _reader_of(readable: Path, file: Path) -> Any:
    loose = _LOOSE.get(readable.suffix.lower())
    try:
        return _WholeFile(readable)
    except Exception as error:  # the readers of damaged files fail in every way
        if loose is not None:
            with contextlib.suppress(Exception):
                return loose(readable)
        raise SourceUnreadableError(why_unreadable(file, readable, error)) from error


def _broken_off(file: Path, error: Exception) -> str:
    words = words_of(error)
    return (
        f"{file.name} breaks off or is damaged ({words}). Everything that could be read was used."
    )


def _unzstd(data: bytes) -> bytes:
    return zstandard.ZstdDecompressor().decompressobj().decompress(data)


class _WholeFile(FileReader):
    """Through the library's readers, in the order of time."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        ros1 = path.suffix.lower() == ".bag"
        self._reader = Ros1Reader(path) if ros1 else Ros2Reader(path)
        self._reader.open()
        wires = {
            c.id: "ros1" if ros1 else getattr(c.ext, "serialization_format", "cdr") or "cdr"
            for c in self._reader.connections
        }
        self._channels = {
            c.id: Channel(plain_topic(c.topic), plain_kind(c.msgtype), wires[c.id], c.msgcount)
            for c in self._reader.connections
        }
        self.channels = list(self._channels.values())
        start, end = self._reader.start_time, self._reader.end_time
        if self._reader.message_count and 0 <= start <= end:  # a damaged index may say anything
            self.span = (start, end)

    def __exit__(self, *exception: Any) -> None:
        self._reader.close()

    def messages(self, topics: set[str] | None) -> Iterator[Raw]:
        wanted = [
            c for c in self._reader.connections if topics is None or plain_topic(c.topic) in topics
        ]
        if not wanted:  # to the library an empty choice means all
            return
        for connection, log_ns, data in self._reader.messages(connections=wanted):
            yield Raw(self._channels[connection.id], log_ns, bytes(data))
