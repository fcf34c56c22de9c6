# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What every reader of a bag's file gives: channels, and messages as bytes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mcap.writer import MCAP0_MAGIC

from stream_vlm_ros.engine.inputs.picture_sizes import PictureLimit


@dataclass(frozen=True)
class Channel:
    """A topic of one type in one file. ``kind`` is the type without ``msg/``; ``wire`` is "ros1",
    "cdr" or whatever else an MCAP holds."""

    topic: str
    kind: str
    wire: str
    count: int | None = None  # messages, where the file says


class Raw(NamedTuple):
    """One message as recorded. ``fault``: why its data is not there, though it was recorded."""

    channel: Channel
    log_ns: int
    data: bytes
    fault: str = ""


def plain_kind(name: str) -> str:
    """``sensor_msgs/msg/Image``, ``sensor_msgs::msg::Image`` and ``sensor_msgs/Image`` are one."""
    return name.replace("::", "/").replace("/msg/", "/")


def plain_topic(name: str) -> str:
    """A topic's name with its leading slash, which some recorders leave out."""
    return "/" + name.strip().lstrip("/")


class FileReader:
    """One file: ``channels``, ``span`` in log time, ``messages``, and why it ends early."""

    def __init__(self, path: Path, limit: PictureLimit) -> None:
        self.path, self.limit = path, limit
        self.channels: list[Channel] = []
        self.span: tuple[int, int] | None = None
        self.broken: Exception | None = None

    def __enter__(self) -> FileReader:
        return self

    def __exit__(self, *exception: Any) -> None:
        pass

    def messages(self, topics: set[str] | None) -> Iterator[Raw]:
        """Messages of ``topics`` (by ``plain_topic``; None: all)."""
        raise NotImplementedError


_MAGIC = {".bag": b"#ROSBAG V", ".mcap": MCAP0_MAGIC, ".db3": b"SQLite format 3\0"}


def why_unreadable(file: Path, readable: Path, error: Exception) -> str:
    """In the user's words; ``readable`` is ``file`` itself, or what was compressed in it."""
    words = words_of(error).replace(str(readable), str(file))
    magic = _MAGIC.get(readable.suffix.lower(), b"")
    with readable.open("rb") as stream:
        begins_well = stream.read(len(magic)) == magic
    if not begins_well:
        return f"{file} is not a rosbag, whatever its name says ({words})."
    repair = " Try: sqlite3 OLD.db3 .recover | sqlite3 NEW.db3" if "malformed" in words else ""
    return f"{file} is damaged, or was cut off before its first message ({words}).{repair}"


def words_of(error: Exception) -> str:
    if isinstance(error, UnicodeDecodeError):
        return "a text in it is not UTF-8"
    words = " ".join(str(error).split())[:300].rstrip(".")
    return words or "it ends too early"
