# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Rosbags that something else has damaged, seed by seed.

    make fuzz-bags

Whole bags of three formats (SQLite and MCAP in ROS 2's folder, ROS 1) of 24 images in several
chunks, plain and compressed, each with another topic between them, are damaged at random: bytes
changed, blocks overwritten, put in, taken out or exchanged, ends cut off, lengths and indexes
altered, rows removed. A process of its own then reads them. It must end within ten seconds, by
nothing but the package's own errors; and what it says is held against the whole file: as many
images must be accounted for as were there, each that is not given with its cause, or else damage
must be said.
"""

from __future__ import annotations

import random
import shutil
import sqlite3
import sys
import tempfile
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from mcap.writer import CompressionType, IndexType
from mcap.writer import Writer as McapWriter
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import CompressionFormat, CompressionMode, StoragePlugin
from rosbags.rosbag2 import Writer as Ros2Writer
from rosbags.typesys import Stores, get_typestore

from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.machine import measured_on
from stream_vlm_ros.sources import BagSource

sys.path.append(str(Path(__file__).parent))  # tools/run.sh leaves it out
from fuzzing import counted, each_in_a_fresh_folder, in_its_own_process, options_of, tell

THERE = 24  # images in each bag
MEMORY = 600 * 2**20  # bytes a case may take, beyond what the process had before it
START = 1_700_000_000 * SECOND
IMAGE, TEXT = "sensor_msgs/msg/Image", "std_msgs/msg/String"
ROS1, ROS2 = get_typestore(Stores.ROS1_NOETIC), get_typestore(Stores.ROS2_JAZZY)


def messages(types: Any, **more: Any) -> list[tuple[str, str, int, Any]]:
    """(topic, type, stamp, message) of each image, and of the texts between them."""
    found = []
    for index in range(THERE):
        stamp = START + index * SECOND // 10
        time = types["builtin_interfaces/msg/Time"](sec=stamp // SECOND, nanosec=stamp % SECOND)
        header = types["std_msgs/msg/Header"](stamp=time, frame_id="camera", **more)
        pixels = np.random.default_rng(index).integers(0, 256, 16 * 12 * 3, np.uint8)
        image = types[IMAGE](
            header=header, height=12, width=16, encoding="rgb8", is_bigendian=0, step=48,
            data=pixels,
        )  # fmt: skip
        found.append(("/camera", IMAGE, stamp, image))
        found.append(("/chatter", TEXT, stamp + 1000, types[TEXT](data=f"frame {index}")))
    return found


def write_ros2(path: Path, storage: StoragePlugin, compression: CompressionMode) -> None:
    writer = Ros2Writer(path, version=9, storage_plugin=storage)
    if compression is not CompressionMode.NONE:
        writer.set_compression(compression, CompressionFormat.ZSTD)
    with writer:
        connections = {
            topic: writer.add_connection(topic, kind, typestore=ROS2)
            for topic, kind in (("/camera", IMAGE), ("/chatter", TEXT))
        }
        for topic, kind, stamp, message in messages(ROS2.types):
            writer.write(connections[topic], stamp, ROS2.serialize_cdr(message, kind))


def write_mcap(path: Path, **options: Any) -> None:
    path.mkdir()
    with (path / f"{path.name}.mcap").open("wb") as stream:
        writer = McapWriter(stream, chunk_size=4000, **options)
        writer.start("ros2", "")
        channels = {}
        for topic, kind in (("/camera", IMAGE), ("/chatter", TEXT)):
            schema = writer.register_schema(kind, "ros2msg", b"")
            channels[topic] = writer.register_channel(topic, "cdr", schema)
        for topic, kind, stamp, message in messages(ROS2.types):
            data = bytes(ROS2.serialize_cdr(message, kind))
            writer.add_message(channels[topic], stamp, data, stamp)
        writer.finish()


def write_ros1(path: Path, compression: str | None) -> None:
    path.mkdir()
    writer = Ros1Writer(path / f"{path.name}.bag")
    if compression:
        writer.set_compression(Ros1Writer.CompressionFormat[compression])
    writer.chunk_threshold = 4000
    with writer:
        connections = {
            topic: writer.add_connection(topic, kind, typestore=ROS1)
            for topic, kind in (("/camera", IMAGE), ("/chatter", TEXT))
        }
        for number, (topic, kind, stamp, message) in enumerate(messages(ROS1.types, seq=0)):
            if kind == IMAGE:
                message.header.seq = number
            writer.write(connections[topic], stamp, ROS1.serialize_ros1(message, kind))


def make_bags(root: Path) -> list[Path]:
    """Each in a folder of its own."""
    for mode in (CompressionMode.NONE, CompressionMode.MESSAGE, CompressionMode.FILE):
        write_ros2(root / f"sqlite_{mode.name.lower()}", StoragePlugin.SQLITE3, mode)
    write_ros2(root / "mcap_ros2", StoragePlugin.MCAP, CompressionMode.NONE)
    for compression in (CompressionType.NONE, CompressionType.LZ4, CompressionType.ZSTD):
        write_mcap(root / f"mcap_{compression.name.lower()}", compression=compression)
    write_mcap(root / "mcap_unchunked", use_chunking=False)
    write_mcap(root / "mcap_bare", index_types=IndexType.CHUNK, repeat_schemas=False)
    for compression in (None, "BZ2", "LZ4"):
        write_ros1(root / f"ros1_{(compression or 'none').lower()}", compression)
    return sorted(root.iterdir())


def file_of(bag: Path) -> Path:
    return next(p for p in sorted(bag.iterdir()) if p.name != "metadata.yaml")


# -- mutations: of a file's bytes, with its own random numbers -------------------------------------


def changed_bytes(data: bytearray, lot: random.Random) -> None:
    for _ in range(lot.choice([1, 1, 2, 8, 64])):
        data[lot.randrange(len(data))] = lot.randrange(256)


def a_flipped_bit(data: bytearray, lot: random.Random) -> None:
    data[lot.randrange(len(data))] ^= 1 << lot.randrange(8)


def a_changed_block(data: bytearray, lot: random.Random) -> None:
    length = min(lot.choice([4, 20, 512, 4096]), len(data))
    start = lot.randrange(len(data) - length + 1)
    data[start : start + length] = lot.choice([bytes(length), lot.randbytes(length)])


def put_in(data: bytearray, lot: random.Random) -> None:
    at = lot.randrange(len(data))
    data[at:at] = lot.randbytes(lot.choice([1, 13, 300, 5000]))


def taken_out(data: bytearray, lot: random.Random) -> None:
    at = lot.randrange(len(data))
    del data[at : at + lot.choice([1, 13, 300, 5000])]


def exchanged(data: bytearray, lot: random.Random) -> None:
    length = min(lot.choice([8, 512, 4096]), len(data) // 2)
    a, b = sorted(lot.randrange(len(data) - length) for _ in range(2))
    if a + length <= b:
        data[a : a + length], data[b : b + length] = data[b : b + length], data[a : a + length]


def cut(data: bytearray, lot: random.Random) -> None:
    del data[lot.randrange(len(data)) :]


def cut_a_little(data: bytearray, lot: random.Random) -> None:
    del data[-lot.choice([1, 8, 40, 400]) :]


def longer(data: bytearray, lot: random.Random) -> None:
    data += lot.choice([bytes(100), lot.randbytes(3000), bytes(data[-500:])])


def an_altered_head_or_end(data: bytearray, lot: random.Random) -> None:
    """Where the lengths and indexes of most formats are."""
    near = min(lot.choice([120, 1500]), len(data))
    at = lot.choice([lot.randrange(near), len(data) - 1 - lot.randrange(near)])
    data[at] = lot.choice([0, 1, 255, lot.randrange(256)])


BYTES: list[Callable[[bytearray, random.Random], None]] = [
    changed_bytes, a_flipped_bit, a_changed_block, put_in, taken_out, exchanged, cut,
    cut_a_little, longer, an_altered_head_or_end, an_altered_head_or_end,
]  # fmt: skip


def other_rows(file: Path, lot: random.Random) -> None:
    """What SQLite itself would allow."""
    number = lot.randrange(1, 2 * THERE)
    statement = lot.choice(
        [
            f"DELETE FROM messages WHERE id = {number}",
            f"DELETE FROM messages WHERE id > {number}",
            "DELETE FROM messages",
            f"UPDATE messages SET data = NULL WHERE id = {number}",
            f"UPDATE messages SET data = 'text' WHERE id = {number}",
            f"UPDATE messages SET data = 7 WHERE id = {number}",
            f"UPDATE messages SET timestamp = 'soon' WHERE id = {number}",
            f"UPDATE messages SET timestamp = NULL WHERE id = {number}",
            f"UPDATE messages SET timestamp = 1.5e300 WHERE id = {number}",
            f"UPDATE messages SET topic_id = 99 WHERE id = {number}",
            f"UPDATE messages SET topic_id = NULL WHERE id = {number}",
            "DELETE FROM topics",
            "UPDATE topics SET name = x'ff00fe'",
            "UPDATE topics SET name = NULL",
            "UPDATE topics SET type = 'sensor_msgs/msg/Image'",
            "UPDATE topics SET serialization_format = 'json'",
            "UPDATE topics SET offered_qos_profiles = '[[['",
            "UPDATE topics SET offered_qos_profiles = 7",
            "INSERT INTO topics SELECT id + 7, name, type, serialization_format, "
            "offered_qos_profiles, type_description_hash FROM topics",
            "DROP INDEX timestamp_idx",
            "DROP TABLE messages",
            "DROP TABLE topics",
            "DROP TABLE schema",
            "UPDATE schema SET schema_version = 99",
            "PRAGMA journal_mode = WAL",
            "VACUUM",
        ]
    )
    try:
        database = sqlite3.connect(file, isolation_level=None)
        try:
            database.execute(statement).fetchall()
        finally:
            database.close()
    except sqlite3.Error:
        pass  # an earlier mutation has left no database, or the library's has not this table


def a_foreign_log(file: Path, lot: random.Random) -> None:
    """A write-ahead log or journal that is none, or another database's."""
    log = file.with_name(file.name + lot.choice(["-wal", "-journal"]))
    log.write_bytes(lot.choice([lot.randbytes(5000), file.read_bytes()[:9000], b"\0" * 600]))


# -- one case ------------------------------------------------------------------------------------


def read(bag: Path) -> str:
    """What reading it comes to."""
    path = bag if (bag / "metadata.yaml").exists() else file_of(bag)
    source = BagSource(path)
    given = 0
    for frame in source:
        assert frame.image.ndim == 3 and frame.image.dtype == np.uint8
        given += 1
    counts, state = source.state.counts, source.state
    lost = counts.unwanted + counts.unusable + counts.unordered
    assert counts.given == given and counts.decoded == given + lost
    if counts.unusable + counts.unordered and not (state.notes or state.damage):
        return "silent: lost without a cause"
    if state.damage is not None:
        return "damage said, all read" if given == THERE else "damage said"
    if counts.decoded != THERE:
        return f"silent: {counts.decoded} of {THERE} accounted for, on {source.topics}"
    return "whole" if given == THERE else "images lost with their cause"


def case(seed: int, bags: list[Path], root: Path) -> dict[str, Any]:
    """One damaged bag: its mutations, and what came of it."""
    lot = random.Random(seed)
    whole = lot.choice(bags)
    bag = root / whole.name
    shutil.copytree(whole, bag)
    file = file_of(bag)
    drawn: list[Callable[..., None]] = [
        lot.choice([*BYTES, *([other_rows, other_rows, a_foreign_log] * (file.suffix == ".db3"))])
        for _ in range(lot.choice([1, 1, 1, 2, 3]))
    ]
    for mutate in drawn:
        if mutate in (other_rows, a_foreign_log):
            mutate(file, lot)
        elif data := bytearray(file.read_bytes()):
            mutate(data, lot)
            file.write_bytes(data)
    outcome, seconds, memory = in_its_own_process(lambda: read(bag))
    return {
        "seed": seed,
        "bag": whole.name,
        "mutations": [mutate.__name__ for mutate in drawn],
        "outcome": outcome,
        "seconds": round(seconds, 3),
        "memory": memory,
    }


def is_wrong(found: dict[str, Any]) -> bool:
    """Whether a case broke one of the rules."""
    return found["outcome"].startswith(("raw", "silent", "hangs")) or found["memory"] > MEMORY


def fuzz(first_seed: int, count: int) -> list[dict[str, Any]]:
    """``count`` cases from ``first_seed`` on."""
    with tempfile.TemporaryDirectory(prefix="fuzz_bags_") as folder:
        whole = Path(folder, "whole")
        whole.mkdir()
        bags = make_bags(whole)
        for bag in bags:  # nothing is said of what is whole
            assert read(bag) == "whole", bag
        return each_in_a_fresh_folder(
            Path(folder), first_seed, count, lambda seed, root: case(seed, bags, root)
        )


def main() -> int:
    options = options_of(__doc__, 2000)
    found = fuzz(options.seed, options.count)
    wrong = [one for one in found if is_wrong(one)]
    result = {
        **measured_on(np),
        "sqlite": sqlite3.sqlite_version,
        "rosbags": version("rosbags"),
        "mcap": version("mcap"),
        "command": f"python bench/fuzz_bags.py --seed {options.seed} --count {options.count}",
        "first_seed": options.seed,
        "cases": len(found),
        "outcomes": counted(one["outcome"][:60] for one in found),
        "bags": counted(one["bag"] for one in found),
        "mutations": counted(m for one in found for m in one["mutations"]),
        "slowest_s": max(one["seconds"] for one in found),
        "most_memory_mb": round(max(one["memory"] for one in found) / 2**20),
        "wrong": wrong,
    }
    tell(result, options.out)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
