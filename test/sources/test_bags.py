# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Rosbags of every kind, whole and damaged. Bags are written here, so that each image is known."""

from __future__ import annotations

import gc
import io
import os
import shutil
import sqlite3
import struct
import tempfile
import tracemalloc
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import zstandard
from mcap.reader import SeekingReader
from mcap.writer import CompressionType, IndexType
from mcap.writer import Writer as McapWriter
from PIL import Image
from rosbags.rosbag1 import Writer as Ros1Writer
from rosbags.rosbag2 import StoragePlugin
from rosbags.rosbag2 import Writer as Ros2Writer
from rosbags.typesys import Stores, get_typestore

from stream_vlm_ros.engine.inputs.picture_sizes import PictureLimit
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import (
    InvalidParameterError,
    PictureTooLargeError,
    SourceUnreadableError,
    StreamVlmError,
)
from stream_vlm_ros.sources import BagSource, open_source
from stream_vlm_ros.sources.unpacking import unpack

START = 1_700_000_000 * SECOND
ROS2, ROS1 = get_typestore(Stores.ROS2_HUMBLE), get_typestore(Stores.ROS1_NOETIC)
IMAGE, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"


def header(stamp_ns, types, **more):
    time = types["builtin_interfaces/msg/Time"](sec=stamp_ns // SECOND, nanosec=stamp_ns % SECOND)
    return types["std_msgs/msg/Header"](stamp=time, frame_id="camera", **more)


def picture(index):
    """A flat picture whose grey level tells its number."""
    return np.full((24, 32, 3), 20 + 10 * index, np.uint8)


def raw_image(stamp_ns, index, types=ROS2.types, **more):
    pixels = picture(index)
    return types[IMAGE](
        header=header(stamp_ns, types, **more), height=24, width=32, encoding="rgb8",
        is_bigendian=0, step=96, data=pixels.reshape(-1),
    )  # fmt: skip


def jpeg_image(stamp_ns, index, types=ROS2.types, **more):
    out = io.BytesIO()
    Image.fromarray(picture(index)).save(out, "JPEG")
    return types[COMPRESSED](
        header=header(stamp_ns, types, **more), format="jpeg",
        data=np.frombuffer(out.getvalue(), np.uint8),
    )  # fmt: skip


def stamps(count, period_ns=SECOND // 10):
    return [START + i * period_ns for i in range(count)]


def write_ros2(path, messages, storage=StoragePlugin.MCAP):
    """``messages``: (topic, log time, message)."""
    with Ros2Writer(path, version=9, storage_plugin=storage) as writer:
        connections = {}
        for topic, log_ns, message in messages:
            kind = message.__msgtype__
            if topic not in connections:
                connections[topic] = writer.add_connection(topic, kind, typestore=ROS2)
            writer.write(connections[topic], log_ns, ROS2.serialize_cdr(message, kind))
    return path


def write_ros1(path, count):
    with Ros1Writer(path) as writer:
        connection = writer.add_connection("/camera", IMAGE, typestore=ROS1)
        for index, stamp in enumerate(stamps(count)):
            message = raw_image(stamp, index, ROS1.types, seq=index)
            writer.write(connection, stamp, ROS1.serialize_ros1(message, IMAGE))
    return path


def write_as_mcap_does(path, messages, **options):
    """Images of one camera, as the mcap library writes them."""
    with path.open("wb") as stream:
        writer = McapWriter(stream, **options)
        writer.start("ros2", "")
        schema = writer.register_schema(IMAGE, "ros2msg", b"")
        channel = writer.register_channel("/camera", "cdr", schema)
        for _, log_ns, message in messages:
            writer.add_message(channel, log_ns, bytes(ROS2.serialize_cdr(message, IMAGE)), log_ns)
        writer.finish()


def camera(count, make=raw_image, topic="/camera"):
    return [(topic, stamp + 7, make(stamp, index)) for index, stamp in enumerate(stamps(count))]


def storage_file(bag):
    (file,) = (f for f in bag.iterdir() if f.suffix in (".mcap", ".db3"))
    return file


def greys(source):
    return [round((int(f.image[5, 5, 0]) - 20) / 10) for f in source]


@pytest.fixture
def bag(tmp_path):
    return write_ros2(tmp_path / "drive", camera(8))


@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
@pytest.mark.parametrize("make", [raw_image, jpeg_image])
def test_a_ros_2_bag_gives_its_images_with_the_stamps_of_their_headers(tmp_path, storage, make):
    source = open_source(write_ros2(tmp_path / "drive", camera(8, make), storage))
    frames = list(source)
    assert [f.stamp_ns for f in frames] == stamps(8)
    assert [f.source for f in frames] == ["/camera"] * 8
    for index, frame in enumerate(frames):
        assert np.abs(frame.image.astype(int) - picture(index)).max() <= 2
    assert source.duration == pytest.approx(0.7, abs=1e-6)


def test_a_ros_1_bag_gives_its_images_with_the_stamps_of_their_headers(tmp_path):
    frames = list(open_source(write_ros1(tmp_path / "drive.bag", 5)))
    assert [f.stamp_ns for f in frames] == stamps(5)
    np.testing.assert_array_equal(frames[3].image, picture(3))


def test_metadata_is_not_needed(bag):
    (bag / "metadata.yaml").unlink()
    assert greys(open_source(bag)) == list(range(8))
    assert greys(open_source(storage_file(bag))) == list(range(8))


ALIASES = "a0: &a0 [x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 10)
)


@pytest.mark.parametrize(
    "content",
    [
        ALIASES + "rosbag2_bagfile_information: {relative_file_paths: [*a9]}",  # 10^9 texts
        "[" * 100_000,
        "rosbag2_bagfile_information: {relative_file_paths: [3, null, {a: b}]}",
    ],
    ids=["aliases", "nested", "no texts"],
)
def test_metadata_that_grows_when_it_is_read_does_no_harm(bag, content):
    (bag / "metadata.yaml").write_text(content)
    source = BagSource(bag)
    assert greys(source) == list(range(8))
    assert source.state.damage is None and not source.state.notes


def test_metadata_that_is_wrong_does_no_harm(bag):
    (bag / "metadata.yaml").write_text("rosbag2_bagfile_information: {version: 99, topics: 3}")
    assert greys(open_source(bag)) == list(range(8))


def test_files_compressed_one_by_one_and_split_bags_are_read_in_order(tmp_path):
    folder = tmp_path / "split"
    folder.mkdir()
    whole = camera(12)
    for part, piece in enumerate([whole[:4], whole[4:8], whole[8:]]):
        file = storage_file(write_ros2(tmp_path / f"part{part}", piece))
        name = f"split_{[2, 10, 11][part]}.mcap"  # 10 sorts before 2 as text
        (folder / f"{name}.zstd").write_bytes(zstandard.compress(file.read_bytes()))
    assert greys(open_source(folder)) == list(range(12))


def test_messages_compressed_one_by_one_under_old_names_without_a_slash_are_read(tmp_path):
    file = tmp_path / "old.mcap"
    with file.open("wb") as stream:
        writer = McapWriter(stream, compression=CompressionType.NONE)
        writer.start(profile="", library="recorder of its own")
        schema = writer.register_schema("sensor_msgs/Image", "ros2msg", b"")
        channel = writer.register_channel("camera/front", "cdr", schema)
        for _, log_ns, message in camera(4):
            data = zstandard.compress(bytes(ROS2.serialize_cdr(message, IMAGE)))
            writer.add_message(channel, log_ns, data, log_ns)
        writer.finish()
    source = open_source(file, topics=["camera/front"])
    assert greys(source) == [0, 1, 2, 3]
    assert source.topics == ["/camera/front"] and source.cameras == ("/camera/front",)


def test_an_mcap_that_is_not_ros_is_explained(tmp_path):
    file = tmp_path / "other.mcap"
    with file.open("wb") as stream:
        writer = McapWriter(stream)
        writer.start(profile="", library="")
        schema = writer.register_schema("foxglove.CompressedImage", "protobuf", b"")
        writer.add_message(writer.register_channel("/cam", "protobuf", schema), 1, b"x", 1)
        writer.finish()
    with pytest.raises(SourceUnreadableError, match=r"protobuf.*foxglove\.CompressedImage"):
        open_source(file)


def test_of_several_cameras_the_one_with_most_images_is_read_unless_named(tmp_path):
    messages = [*camera(3, topic="/rear"), *camera(8, topic="/front")]
    path = write_ros2(tmp_path / "drive", sorted(messages, key=lambda m: m[1]))
    source = open_source(path)
    assert source.topics == ["/front"]
    list(source)
    assert "/rear" in source.state.notes[0]
    assert greys(open_source(path, topics=["rear"])) == [0, 1, 2]
    both = list(open_source(path, topics=["all"]))
    assert [f.source for f in both].count("/rear") == 3
    assert len(both) == 11


def test_a_missing_topic_is_answered_with_those_there_are(bag):
    with pytest.raises(InvalidParameterError, match=r"no topic /camra.*Did you mean /camera"):
        open_source(bag, topics=["/camra"])


def test_a_bag_without_images_says_what_it_holds(tmp_path):
    text = ROS2.types["std_msgs/msg/String"](data="hello")
    path = write_ros2(tmp_path / "talk", [("/chatter", START, text)])
    with pytest.raises(SourceUnreadableError, match=r"no images.*chatter"):
        open_source(path)
    with pytest.raises(InvalidParameterError, match="no topic /x"):
        mixed = write_ros2(tmp_path / "mix", [("/chatter", START, text), *camera(1)])
        open_source(mixed, topics=["/x"])


def test_frames_are_sampled_by_stamp_and_only_a_part_is_read(tmp_path):
    path = write_ros2(tmp_path / "drive", camera(21))
    source = open_source(path, fps=2)
    assert greys(source) == [0, 5, 10, 15, 20]
    assert source.state.counts.unwanted == 16
    assert greys(open_source(path, start=0.5, end=1.0)) == [5, 6, 7, 8, 9]
    assert next(iter(open_source(path, size=(16, 12)))).image.shape == (12, 16, 3)


def test_stamps_that_run_backwards_or_repeat_are_counted_and_left_out(tmp_path):
    order = [0, 1, 1, 3, 2, 4]
    messages = [
        ("/camera", START + n, raw_image(stamps(5)[index], index)) for n, index in enumerate(order)
    ]
    source = open_source(write_ros2(tmp_path / "drive", messages))
    # Whether 3 was wrong or 2 overtaken: the source goes on with what came next.
    assert greys(source) == [0, 1, 2, 4]
    assert source.state.counts.unordered == 2


def stamped(path, offsets):
    """A bag of raw images stamped so many seconds after START, recorded one a tenth."""
    return write_ros2(
        path,
        [
            ("/camera", START + i * SECOND // 10, raw_image(START + round(s * SECOND), i))
            for i, s in enumerate(offsets)
        ],
    )


@pytest.mark.parametrize("wrong", [-86400, 2.55, 1800, 7200, 7 * 86400])
@pytest.mark.parametrize("place", [0, 1, 2, 6, 11, 12])
def test_one_wrong_stamp_is_one_lost_frame_wherever_it_is(tmp_path, wrong, place):
    good = [i / 10 for i in range(12)]
    source = open_source(stamped(tmp_path / "drive", [*good[:place], wrong, *good[place:]]))
    if place == 12 and 0 < wrong <= 3600:  # nothing contradicts it
        assert len(list(source)) == 13 and not source.state.notes
        return
    assert [f.stamp_ns for f in source] == [START + round(s * SECOND) for s in good]
    assert (source.state.counts.unordered, source.state.counts.decoded) == (1, 13)
    (note,) = source.state.notes
    assert "1 of 13 images left out" in note and ("the first: a f" in note)


@pytest.mark.parametrize("wrong", [(1800, 1800.1), (-1800, 1800), (7200, 7200.1), (9000, 7200)])
def test_two_wrong_first_stamps_are_no_more_than_two_lost_frames(tmp_path, wrong):
    good = [i / 10 for i in range(12)]
    source = open_source(stamped(tmp_path / "drive", [*wrong, *good]))
    assert [f.stamp_ns for f in source][-12:] == [START + round(s * SECOND) for s in good]


def test_a_pause_at_the_end_of_a_bag_loses_nothing(tmp_path):
    offsets = [0, 1, 2, 600, 601]
    source = open_source(stamped(tmp_path / "drive", offsets))
    assert greys(source) == [0, 1, 2, 3, 4] and source.state.notes == []


def test_a_gap_that_lasts_is_believed_and_said(tmp_path):
    offsets = [0, 1, 2, 86400, 86401, 86402]
    source = open_source(stamped(tmp_path / "drive", offsets))
    assert greys(source) == [0, 1, 2, 3, 4, 5]
    assert source.state.notes == ["The stamps of /camera jump ahead by 86,398.0 s."]


def test_a_camera_of_one_picture_a_day_is_read_with_a_longer_gap(tmp_path):
    path = stamped(tmp_path / "drive", [86400 * day for day in range(5)])
    assert greys(open_source(path, max_time_gap=90_000)) == [0, 1, 2, 3, 4]
    with pytest.raises(InvalidParameterError, match="max_time_gap"):
        open_source(path, max_time_gap=float("nan"))


def test_stamps_that_no_message_can_hold_are_left_out(tmp_path):
    messages = camera(6)
    messages[1][2].header.stamp.sec = 2**31 - 1
    messages[2][2].header.stamp.nanosec = 2**32 - 1
    messages[3][2].header.stamp.sec = -5
    source = open_source(write_ros2(tmp_path / "drive", messages))
    assert greys(source) == [0, 4, 5]
    assert source.state.counts.unusable == 3


def test_a_first_header_of_zero_does_not_bar_those_with_stamps(tmp_path):
    messages = camera(5)
    messages[0][2].header.stamp.sec = messages[0][2].header.stamp.nanosec = 0
    source = open_source(write_ros2(tmp_path / "drive", messages))
    assert [f.stamp_ns for f in source] == stamps(5)[1:]
    # Simulated time begins at zero: that is a stamp like another.
    messages = [("/camera", START + n, raw_image(n * SECOND // 10, n)) for n in range(5)]
    source = open_source(write_ros2(tmp_path / "simulated", messages))
    assert [f.stamp_ns for f in source] == [n * SECOND // 10 for n in range(5)]


def test_a_bag_of_one_image_gives_it(tmp_path):
    for name, stamp in (("stamped", START), ("unstamped", 0)):
        source = open_source(write_ros2(tmp_path / name, [("/camera", START, raw_image(stamp, 3))]))
        assert greys(source) == [3] and source.state.counts.decoded == 1


def test_an_image_that_names_no_encoding_costs_one_image(tmp_path):
    messages = camera(16)
    messages[5][2].encoding = ""
    source = open_source(write_ros2(tmp_path / "drive", messages))
    assert greys(source) == [k for k in range(16) if k != 5]
    assert source.state.counts.unusable == 1


def test_headers_without_stamps_are_timed_by_the_recorder(tmp_path):
    messages = [("/camera", stamp, raw_image(0, i)) for i, stamp in enumerate(stamps(3))]
    source = open_source(write_ros2(tmp_path / "drive", messages))
    assert [f.stamp_ns for f in source] == stamps(3)
    assert "no stamps" in source.state.notes[0]


def test_an_unusable_image_is_counted_and_the_next_takes_its_place(tmp_path):
    messages = camera(16)
    messages[5][2].encoding = "32FC1"
    source = open_source(write_ros2(tmp_path / "drive", messages), fps=2)
    assert greys(source) == [0, 6, 10, 15]
    assert source.state.counts.unusable == 1
    assert "32FC1" in source.state.notes[0]
    with closing(iter(source)) as frames:  # a reader may have seen enough before the end
        next(frames), next(frames)
    assert "1 of 7 images unusable" in source.state.notes[0]
    list(source)
    counts = source.state.counts
    assert counts.decoded == sum((counts.given, counts.unwanted, counts.unusable, counts.unordered))


def test_a_file_cut_off_gives_what_came_before(tmp_path, bag):
    whole = write_ros1(tmp_path / "whole.bag", 8).read_bytes()
    cut = tmp_path / "cut.bag"
    cut.write_bytes(whole[: len(whole) // 2])
    source = open_source(cut)
    assert greys(source) == [0, 1, 2]
    assert "breaks off" in source.state.damage

    data = storage_file(bag).read_bytes()
    file = tmp_path / "cut.mcap"
    write_as_mcap_does(file, camera(8), compression=CompressionType.NONE, use_chunking=False)
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    source = open_source(file)
    assert greys(source) == [0, 1, 2, 3]
    assert "breaks off" in source.state.damage


def test_a_damaged_chunk_is_left_out_and_the_next_one_read(tmp_path):
    mcap, ros1 = tmp_path / "hit.mcap", tmp_path / "hit.bag"
    with mcap.open("wb") as stream:
        writer = McapWriter(stream, compression=CompressionType.ZSTD, chunk_size=100)
        writer.start("ros2", "")
        schema = writer.register_schema(IMAGE, "ros2msg", b"")
        channel = writer.register_channel("/camera", "cdr", schema)
        for _, log_ns, message in camera(6):  # larger than a chunk: one in each
            writer.add_message(channel, log_ns, bytes(ROS2.serialize_cdr(message, IMAGE)), log_ns)
        writer.finish()
    bag = Ros1Writer(ros1)
    bag.set_compression(Ros1Writer.CompressionFormat.LZ4)
    bag.chunk_threshold = 100
    with bag:
        connection = bag.add_connection("/camera", IMAGE, typestore=ROS1)
        for index, stamp in enumerate(stamps(6)):
            message = raw_image(stamp, index, ROS1.types, seq=index)
            bag.write(connection, stamp, ROS1.serialize_ros1(message, IMAGE))
    for path, magic in ((mcap, b"\x28\xb5\x2f\xfd"), (ros1, b"\x04\x22\x4d\x18")):
        content = bytearray(path.read_bytes())
        places = [i for i in range(len(content)) if content[i : i + 4] == magic]
        assert len(places) == 6
        content[places[2] : places[2] + 4] = bytes(4)
        path.write_bytes(content)
        source = open_source(path)
        assert greys(source) == [0, 1, 3, 4, 5]
        assert "damaged" in source.state.damage


def test_the_recorders_clock_can_be_asked_for(tmp_path):
    # The camera's clock was set back by an hour after the third image.
    messages = [
        ("/camera", log, raw_image(log - (3600 * SECOND if i >= 3 else 0), i))
        for i, log in enumerate(stamps(5))
    ]
    path = write_ros2(tmp_path / "drive", messages)
    source = open_source(path)
    assert greys(source) == [0, 1, 2]
    assert "'recorded'" in source.state.notes[0]
    assert [f.stamp_ns for f in open_source(path, stamps="recorded")] == stamps(5)
    with pytest.raises(InvalidParameterError, match="header or recorded"):
        open_source(path, stamps="bag")


@pytest.mark.parametrize("suffix", [".bag", ".mcap", ".db3"])
def test_no_content_whatever_ends_in_a_traceback(tmp_path, bag, suffix):
    good = {
        ".bag": lambda: write_ros1(tmp_path / "good.bag", 3),
        ".mcap": lambda: storage_file(bag),
        ".db3": lambda: storage_file(
            write_ros2(tmp_path / "sql", camera(3), StoragePlugin.SQLITE3)
        ),
    }[suffix]().read_bytes()
    rng = np.random.default_rng(0)
    contents = [b"", b"\0" * 100, rng.bytes(3000), good[:100], good[: len(good) - 40]]
    for _ in range(12):
        damaged = bytearray(good)
        at = int(rng.integers(len(good) - 20))
        damaged[at : at + 20] = rng.bytes(20)
        contents.append(bytes(damaged))
    for number, content in enumerate(contents):
        path = tmp_path / f"bad{number}{suffix}"
        path.write_bytes(content)
        try:
            source = BagSource(path)
            frames = list(source)
        except StreamVlmError as error:
            assert len(str(error)) > 20
            continue
        assert all(f.image.shape[2] == 3 for f in frames)


# What a message or a chunk unpacks to ---------------------------------------------------------

SMALL = 0.01  # megapixels: 10^4 pixels; a message or a chunk may unpack to 64 MiB and 80 kB
BOMB = bytes(100_000_000)  # zeros, more than that


def large_image(stamp_ns):
    """Of 100 x 101 pixels, more than 10^4."""
    return ROS2.types[IMAGE](
        header=header(stamp_ns, ROS2.types), height=101, width=100, encoding="mono8",
        is_bigendian=0, step=100, data=np.zeros(10_100, np.uint8),
    )  # fmt: skip


def large_jpeg(stamp_ns):
    out = io.BytesIO()
    Image.new("RGB", (100, 101)).save(out, "JPEG")
    return ROS2.types[COMPRESSED](
        header=header(stamp_ns, ROS2.types), format="jpeg",
        data=np.frombuffer(out.getvalue(), np.uint8),
    )  # fmt: skip


@pytest.mark.parametrize(("make", "large"), [(raw_image, large_image), (jpeg_image, large_jpeg)])
def test_an_image_of_too_many_pixels_is_counted_and_the_rest_is_given(tmp_path, make, large):
    messages = camera(5, make)
    messages[2] = (*messages[2][:2], large(stamps(5)[2]))
    path = write_ros2(tmp_path / "drive", messages)
    source = open_source(path, max_decoded_megapixels=SMALL)
    assert greys(source) == [0, 1, 3, 4]
    assert source.state.counts.unusable == 1
    assert "1 of 5 images unusable" in source.state.notes[0]
    assert "announces 100x101" in source.state.notes[0]
    assert len(list(open_source(path))) == 5


def announcing(data):
    return zstandard.ZstdCompressor(write_content_size=True).compress(data)


def silent(data):
    return zstandard.ZstdCompressor(write_content_size=False).compress(data)


def write_sqlite(path, contents):
    """A bag whose messages are these bytes; None: a good image, compressed as rosbag2 does."""
    with Ros2Writer(path, version=9, storage_plugin=StoragePlugin.SQLITE3) as writer:
        connection = writer.add_connection("/camera", IMAGE, typestore=ROS2)
        for index, (stamp, content) in enumerate(zip(stamps(9), contents, strict=False)):
            good = announcing(bytes(ROS2.serialize_cdr(raw_image(stamp, index), IMAGE)))
            writer.write(connection, stamp, good if content is None else content)
    return path


@pytest.mark.parametrize("compress", [announcing, silent])
def test_a_message_that_unpacks_to_too_much_is_counted_and_the_rest_is_given(tmp_path, compress):
    bomb = compress(BOMB)
    assert len(bomb) < 10_000
    path = write_sqlite(tmp_path / "drive", [None, bomb, None, bomb[:-1000] + bytes(1000), None])
    source = open_source(path, max_decoded_megapixels=SMALL)
    assert greys(source) == [0, 2, 4]
    assert source.state.counts.unusable == 2
    assert "a message, unpacked, holds" in source.state.notes[0]
    assert source.state.damage is None


def test_a_message_that_does_not_say_how_much_it_unpacks_to_is_refused_before_it_is_held():
    out = io.BytesIO()
    with zstandard.ZstdCompressor().stream_writer(out, closefd=False) as writer:
        for _ in range(600):
            writer.write(bytes(2**20))
    tracemalloc.start()
    try:
        with pytest.raises(PictureTooLargeError, match="unpacked, holds"):
            unpack(out.getvalue(), "zstd", PictureLimit(64))  # which takes 552 MiB
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_a_message_of_sqlite_that_is_too_long_is_counted_and_the_rest_is_given(tmp_path):
    path = write_sqlite(tmp_path / "drive", [None, BOMB, None])
    source = open_source(path, max_decoded_megapixels=SMALL)
    assert greys(source) == [0, 2]
    assert "1 of 3 images unusable: a message holds 100,000,000 bytes" in source.state.notes[0]


def write_mcap(path, compression, bomb_at, bomb):
    """Six images, each in a chunk of its own; that of ``bomb_at`` holds so many zeros, too."""
    with path.open("wb") as stream:
        writer = McapWriter(stream, compression=compression, chunk_size=100)
        writer.start("ros2", "")
        schema = writer.register_schema(IMAGE, "ros2msg", b"")
        channel = writer.register_channel("/camera", "cdr", schema)
        for index, (_, log_ns, message) in enumerate(camera(6)):
            data = bytes(ROS2.serialize_cdr(message, IMAGE))
            data += bomb if index == bomb_at else b""
            writer.add_message(channel, log_ns, data, log_ns)
        writer.finish()
    return path


@pytest.mark.parametrize("compression", [CompressionType.ZSTD, CompressionType.LZ4])
@pytest.mark.parametrize("indexed", [True, False])
def test_a_chunk_of_mcap_that_unpacks_to_too_much_is_left_out(tmp_path, compression, indexed):
    path = write_mcap(tmp_path / "drive.mcap", compression, 3, BOMB)
    if not indexed:
        path.write_bytes(path.read_bytes()[:-40])  # without the footer
    source = open_source(path, max_decoded_megapixels=SMALL)
    assert greys(source) == [0, 1, 2, 4, 5]
    assert "a chunk, unpacked, holds 100,0" in source.state.damage


@pytest.mark.parametrize("compression", [CompressionType.ZSTD, CompressionType.LZ4])
@pytest.mark.parametrize("indexed", [True, False])
def test_a_chunk_of_mcap_that_lies_about_its_size_is_left_out(tmp_path, compression, indexed):
    path = write_mcap(tmp_path / "drive.mcap", compression, 3, BOMB)
    data = bytearray(path.read_bytes())
    index = SeekingReader(io.BytesIO(data)).get_summary().chunk_indexes[3]
    told = struct.pack("<Q", index.uncompressed_size)
    for at in (index.chunk_start_offset + 9 + 16, data.rindex(told)):  # the chunk's, the index's
        assert data[at : at + 8] == told
        data[at : at + 8] = struct.pack("<Q", 2000)
    path.write_bytes(data if indexed else data[:-40])
    source = open_source(path, max_decoded_megapixels=SMALL)
    assert greys(source) == [0, 1, 2, 4, 5]
    assert "a chunk, unpacked, holds" in source.state.damage


@pytest.mark.parametrize("compression", ["LZ4", "BZ2"])
@pytest.mark.parametrize("indexed", [True, False])
def test_a_chunk_of_ros_1_that_unpacks_to_too_much_is_left_out(tmp_path, compression, indexed):
    path = tmp_path / "drive.bag"
    bag = Ros1Writer(path)
    bag.set_compression(Ros1Writer.CompressionFormat[compression])
    bag.chunk_threshold = 100
    with bag:
        connection = bag.add_connection("/camera", IMAGE, typestore=ROS1)
        for index, stamp in enumerate(stamps(6)):
            data = bytes(ROS1.serialize_ros1(raw_image(stamp, index, ROS1.types, seq=index), IMAGE))
            bag.write(connection, stamp, data + (BOMB if index == 3 else b""))
    if not indexed:
        path.write_bytes(path.read_bytes()[:-40])
    source = open_source(path, max_decoded_megapixels=SMALL)
    assert greys(source) == [0, 1, 2, 4, 5]
    assert "a chunk, unpacked, holds" in source.state.damage


def test_attachments_of_mcap_are_not_read(tmp_path, monkeypatch):
    path = tmp_path / "drive.mcap"
    with path.open("wb") as stream:
        writer = McapWriter(stream, use_chunking=False)
        writer.start("ros2", "")
        schema = writer.register_schema(IMAGE, "ros2msg", b"")
        channel = writer.register_channel("/camera", "cdr", schema)
        for index, (_, log_ns, message) in enumerate(camera(3)):
            writer.add_message(channel, log_ns, bytes(ROS2.serialize_cdr(message, IMAGE)), log_ns)
            if index == 1:
                writer.add_attachment(0, 0, "zeros", "application/zeros", BOMB)
        writer.finish()
    tracemalloc.start()
    try:
        source = open_source(path, max_decoded_megapixels=SMALL)
        assert greys(source) == [0, 1, 2] and source.state.damage is None
        assert tracemalloc.get_traced_memory()[1] < 50_000_000
    finally:
        tracemalloc.stop()


def test_chunks_of_mcap_that_overlap_in_time_are_merged(tmp_path):
    path = tmp_path / "drive.mcap"
    with path.open("wb") as stream:
        writer = McapWriter(stream, compression=CompressionType.ZSTD, chunk_size=5000)
        writer.start("ros2", "")
        schema = writer.register_schema(IMAGE, "ros2msg", b"")
        channel = writer.register_channel("/camera", "cdr", schema)
        messages = camera(12)
        for index in (0, 2, 1, 4, 3, 6, 5, 8, 7, 10, 9, 11):  # as several writers do
            _, log_ns, message = messages[index]
            writer.add_message(channel, log_ns, bytes(ROS2.serialize_cdr(message, IMAGE)), log_ns)
        writer.finish()
    source = open_source(path)
    assert greys(source) == list(range(12))
    assert source.state.notes == []


def test_chunks_that_all_claim_the_same_time_are_not_held_at_once(tmp_path):
    path = tmp_path / "drive.mcap"
    with path.open("wb") as stream:
        writer = McapWriter(stream, compression=CompressionType.ZSTD, chunk_size=100)
        writer.start("ros2", "")
        schema = writer.register_schema(IMAGE, "ros2msg", b"")
        channel = writer.register_channel("/camera", "cdr", schema)
        for _ in range(12):  # 40 MB each, of which 64 MiB may wait
            writer.add_message(channel, START, BOMB[:40_000_000], START)
        writer.finish()
    tracemalloc.start()
    try:
        source = open_source(path, max_decoded_megapixels=SMALL)
        assert list(source) == [] and source.state.counts.decoded == 12
        assert tracemalloc.get_traced_memory()[1] < 300_000_000  # all at once: 480
    finally:
        tracemalloc.stop()


def test_a_compressed_file_that_is_cut_off_is_not_called_empty(tmp_path):
    path = tmp_path / "drive.mcap"
    write_as_mcap_does(path, camera(20))
    packed = zstandard.compress(path.read_bytes())
    cut_off = tmp_path / "cut.mcap.zstd"
    cut_off.write_bytes(packed[:-500])
    with pytest.raises(SourceUnreadableError, match=rf"{len(packed) - 500:,} bytes.*cut off"):
        open_source(cut_off)
    cut_off.write_bytes(b"")
    with pytest.raises(SourceUnreadableError, match=r"empty \(0 bytes\)"):
        open_source(cut_off)


def test_a_compressed_file_is_unpacked_only_as_far_as_the_disk_holds_it(tmp_path, monkeypatch):
    file = tmp_path / "drive.db3.zstd"
    file.write_bytes(announcing(BOMB))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=2**30 - 1))
    with pytest.raises(SourceUnreadableError, match="when unpacked: 0 bytes"):
        open_source(file)


BAGS = os.environ.get("STREAM_VLM_TEST_BAGS")


@pytest.mark.skipif(not BAGS, reason="set STREAM_VLM_TEST_BAGS to a folder of bags by others")
def test_bags_by_others_open_or_are_explained():
    for path in sorted(Path(BAGS or "").iterdir()):
        try:
            source = open_source(path, topics=["all"])
            assert list(source) or source.state.notes or source.state.damage, path
        except StreamVlmError as error:
            assert str(path) in str(error)


def test_images_further_apart_than_time_may_jump_are_left_out_and_the_setting_is_named(tmp_path):
    every_two_hours = [START + index * 7200 * SECOND for index in range(5)]
    messages = [("/camera", stamp, raw_image(stamp, n)) for n, stamp in enumerate(every_two_hours)]
    bag = write_ros2(tmp_path / "lapse", messages)
    source = BagSource(bag)
    assert len(list(source)) == 1
    (note,) = source.state.notes
    assert "4 of 5 images left out" in note and "up to 3600 s apart" in note
    assert "max_time_gap" in note
    assert greys(BagSource(bag, max_time_gap=7201)) == [0, 1, 2, 3, 4]


# What is there is read, or what is lacking is said ----------------------------------------------


@pytest.mark.parametrize("apart", [-7200, 7200, 365 * 86400])
def test_cameras_on_different_clocks_lose_nothing_and_it_is_said(tmp_path, apart):
    messages = [("/front", stamp + 3, raw_image(stamp, i)) for i, stamp in enumerate(stamps(10))]
    messages += [
        ("/rear", stamp + 5, raw_image(stamp + apart * SECOND, i))
        for i, stamp in enumerate(stamps(10))
    ]
    path = write_ros2(tmp_path / "drive", sorted(messages, key=lambda m: m[1]))
    source = open_source(path, topics=["all"], end=0.55)
    frames = list(source)
    for topic in ("/front", "/rear"):
        own = [f.stamp_ns for f in frames if f.source == topic]
        assert own == pytest.approx(stamps(6), abs=10)  # by the recorder's clock, to its 2 ns
    (note,) = source.state.notes
    assert f"/rear is {abs(apart):,}.0 s {'behind' if apart < 0 else 'ahead of'}" in note
    # Named alone, a camera is on its own clock.
    alone = [f.stamp_ns for f in open_source(path, topics=["/rear"])]
    assert alone == [s + apart * SECOND for s in stamps(10)]


def test_cameras_a_little_apart_keep_their_stamps_and_it_is_said(tmp_path):
    late = round(4.9 * SECOND)  # as transport may take, or as a clock may be set
    messages = [("/front", stamp + 3, raw_image(stamp, i)) for i, stamp in enumerate(stamps(20))]
    messages += [
        ("/rear", stamp + 3, raw_image(stamp - late, i)) for i, stamp in enumerate(stamps(20))
    ]
    path = write_ros2(tmp_path / "drive", sorted(messages, key=lambda m: m[1]))
    source = open_source(path, topics=["all"], start=1.0)
    assert {f.source for f in source} == {"/front"} and source.state.counts.unwanted == 30
    (note,) = source.state.notes
    assert "/rear is 4.9 s behind that of /front" in note and "not moved" in note


def test_the_earliest_of_two_cameras_is_given_though_it_was_recorded_after_the_other(tmp_path):
    late, early = START + SECOND // 10, START
    messages = [("/a", START + 1, raw_image(late, 0)), ("/b", START + 2, raw_image(early, 1))]
    source = open_source(write_ros2(tmp_path / "drive", messages), topics=["all"])
    assert sorted(f.stamp_ns for f in source) == [early, late]


def test_several_headers_of_zero_before_simulated_time_runs_cost_those_frames_only(tmp_path):
    seconds = [0, 0, 0, 0.1, 0.2, 0.3]
    messages = [
        ("/camera", stamp, raw_image(round(seconds[i] * SECOND), i))
        for i, stamp in enumerate(stamps(6))
    ]
    source = open_source(write_ros2(tmp_path / "drive", messages))
    assert [f.stamp_ns for f in source] == [round(s * SECOND) for s in (0, 0.1, 0.2, 0.3)]
    assert source.state.counts.unordered == 2
    assert "2 of 6 images left out" in source.state.notes[0]


def unfinished(folder, journal, count=20, settled=4):
    """A bag in SQLite as a recorder that was killed leaves it: most of it in the log next to it."""
    whole = storage_file(write_ros2(folder / "whole", camera(count), StoragePlugin.SQLITE3))
    file = folder / "drive.db3"
    with closing(sqlite3.connect(whole)) as source, closing(sqlite3.connect(file)) as target:
        source.backup(target)
        rows = source.execute("SELECT * FROM messages WHERE id > ?", (settled,)).fetchall()
        target.execute("DELETE FROM messages WHERE id > ?", (settled,))
        target.commit()
        target.execute("VACUUM")
        target.execute(f"PRAGMA journal_mode = {journal}").fetchall()
        target.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
        target.execute("PRAGMA cache_size = 1").fetchall()
        for row in rows:
            target.execute("INSERT INTO messages VALUES (?, ?, ?, ?)", row)
        if journal == "WAL":
            target.commit()
        killed = folder / "killed"
        killed.mkdir()
        for path in folder.glob("drive.db3*"):
            if not path.name.endswith("-shm"):
                shutil.copyfile(path, killed / path.name)
    return killed / "drive.db3"


@pytest.mark.parametrize(("journal", "there"), [("WAL", 20), ("DELETE", 4)])
def test_a_bag_of_sqlite_that_was_not_closed_is_read_as_sqlite_reads_it(tmp_path, journal, there):
    file = unfinished(tmp_path, journal)
    before = {path.name: path.read_bytes() for path in file.parent.iterdir()}
    assert len(before) == 2
    for given in (file, file.parent):
        source = open_source(given)
        assert greys(source) == list(range(there))
        assert source.state.damage is None
    assert {path.name: path.read_bytes() for path in file.parent.iterdir()} == before


@pytest.mark.parametrize("how", ["a byte", "cut"])
def test_a_log_of_sqlite_that_is_damaged_says_how_many_pages_were_dropped(tmp_path, how):
    bag = write_ros2(tmp_path / "drive", camera(20), StoragePlugin.SQLITE3)
    file, copied = storage_file(bag), tmp_path / "open.db3"
    with closing(sqlite3.connect(file)) as database:
        rows = database.execute("SELECT * FROM messages").fetchall()
        database.execute("DELETE FROM messages")
        database.commit()
        database.execute("PRAGMA journal_mode = WAL").fetchall()
        for row in rows:
            database.execute("INSERT INTO messages VALUES (?, ?, ?, ?)", row)
            database.commit()
        shutil.copyfile(file, copied)
        log = bytearray(file.with_name(f"{file.name}-wal").read_bytes())
    page = 24 + struct.unpack_from(">I", log, 8)[0]
    pages = (len(log) - 32) // page
    middle = 32 + (pages // 2) * page + 100
    if how == "cut":
        del log[middle:]
    else:
        log[middle] ^= 1
    copied.with_name("open.db3-wal").write_bytes(log)
    source = open_source(copied)
    given = greys(source)
    assert 0 < len(given) < 20 and given == list(range(len(given)))
    assert source.state.damage is not None
    assert "pages were dropped" in source.state.damage and "open.db3-wal" in source.state.damage


def test_a_bag_of_sqlite_whose_messages_are_computed_is_refused_at_once(tmp_path):
    file = storage_file(write_ros2(tmp_path / "drive", camera(4), StoragePlugin.SQLITE3))
    numbers = "WITH RECURSIVE x(n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM x)"
    columns = "n AS id, 1 AS topic_id, n AS timestamp, zeroblob(10) AS data"
    with closing(sqlite3.connect(file)) as database:
        database.execute("ALTER TABLE messages RENAME TO others")
        database.execute(f"CREATE VIEW messages AS {numbers} SELECT {columns} FROM x")
        database.commit()
    with pytest.raises(SourceUnreadableError, match="but a view"):
        open_source(file)


def test_messages_that_metadata_announces_and_no_file_has_are_said(tmp_path):
    bag = write_ros2(tmp_path / "drive", camera(20), StoragePlugin.SQLITE3)
    with closing(sqlite3.connect(storage_file(bag))) as database:
        database.execute("DELETE FROM messages WHERE id > 4")
        database.commit()
    source = open_source(bag)
    assert greys(source) == [0, 1, 2, 3]
    assert "lacks messages" in source.state.damage
    assert "Messages read: 4 of 20 on /camera" in source.state.damage


def test_more_messages_than_metadata_tells_of_are_said(tmp_path):
    """A flipped bit in a compressed file made rows of the chatter the camera's."""
    text = ROS2.types["std_msgs/msg/String"](data="hello")
    talk = [("/chatter", START + number, text) for number in range(3)]
    bag = write_ros2(tmp_path / "drive", [*camera(4), *talk], StoragePlugin.SQLITE3)
    with closing(sqlite3.connect(storage_file(bag))) as database:
        database.execute("UPDATE messages SET topic_id = 1")
        database.commit()
    source = open_source(bag)
    assert greys(source) == [0, 1, 2, 3]
    assert "holds more messages than its metadata.yaml tells of" in source.state.damage
    assert "(7 for 4 on /camera)" in source.state.damage


NO_INDEX = IndexType.ATTACHMENT | IndexType.METADATA
SUMMARIES = {
    "no message index": {"index_types": IndexType.CHUNK},
    "no chunk index": {"index_types": IndexType.MESSAGE},
    "no index": {"index_types": NO_INDEX},
    "no channels": {"repeat_channels": False},
    "no types": {"repeat_schemas": False},
    "no statistics": {"use_statistics": False},
    "no offsets": {"use_summary_offsets": False},
    "no chunks": {"use_chunking": False},
    "nothing": {
        "index_types": NO_INDEX, "repeat_channels": False, "repeat_schemas": False,
        "use_statistics": False, "use_summary_offsets": False,
    },
}  # fmt: skip


@pytest.mark.parametrize("leaving_out", SUMMARIES)
def test_an_mcap_is_read_whole_whatever_its_summary_leaves_out(tmp_path, leaving_out):
    path = tmp_path / "drive.mcap"
    write_as_mcap_does(path, camera(20), chunk_size=5000, **SUMMARIES[leaving_out])
    source = open_source(path)
    assert greys(source) == list(range(20))
    assert source.state == type(source.state)(counts=source.state.counts)  # nothing to say


def depth_image(stamp_ns, encoding):
    depth = np.full((24, 32), 1500, np.float32 if encoding == "32FC1" else np.uint16)
    message = raw_image(stamp_ns, 0)
    message.encoding, message.step = encoding, depth.strides[0]
    message.data = np.frombuffer(depth.tobytes(), np.uint8)
    return message


def compressed_depth(stamp_ns):
    message = jpeg_image(stamp_ns, 0)
    message.format = "16UC1; compressedDepth png"
    return message


@pytest.mark.parametrize("kind", ["16UC1", "mono16", "32FC1", "compressedDepth"])
@pytest.mark.parametrize("storage", [StoragePlugin.MCAP, StoragePlugin.SQLITE3])
def test_of_a_depth_cameras_bag_the_pictures_are_chosen_and_it_is_said(tmp_path, kind, storage):
    messages = camera(5, topic="/color")
    for stamp in stamps(15):
        deep = compressed_depth(stamp) if kind == "compressedDepth" else depth_image(stamp, kind)
        messages.append(("/depth", stamp + 1, deep))
    path = write_ros2(tmp_path / "drive", sorted(messages, key=lambda m: m[1]), storage)
    source = open_source(path)
    assert greys(source) == list(range(5))
    assert source.topics == ["/color"]
    (note,) = source.state.notes
    assert note.startswith("Read: /color. Other image topics: /depth (") and "remap" not in note


@pytest.mark.parametrize("kind", ["packed", "not closed"])
def test_a_copy_of_a_bag_is_made_once_however_many_topics_it_has(tmp_path, kind, monkeypatch):
    messages = camera(3, topic="/color")
    for number in range(3):
        for stamp in stamps(5):
            messages.append((f"/depth{number}", stamp + 1, depth_image(stamp, "16UC1")))
    file = storage_file(write_ros2(tmp_path / "drive", messages, StoragePlugin.SQLITE3))
    if kind == "packed":
        packed = tmp_path / "drive.db3.zstd"
        packed.write_bytes(zstandard.compress(file.read_bytes()))
        file = packed
    else:
        file.with_name(f"{file.name}-journal").write_bytes(bytes(600))
    made, mkdtemp = [], tempfile.mkdtemp
    monkeypatch.setattr(tempfile, "mkdtemp", lambda **o: made.append(mkdtemp(**o)) or made[-1])
    source = open_source(file)
    assert (source.topics, greys(source), greys(source)) == (["/color"], [0, 1, 2], [0, 1, 2])
    assert len(made) == 1
    del source
    gc.collect()
    assert not Path(made[0]).exists()


def loose_mcap(path, count=20):
    """An MCAP without chunks and without an index."""
    with path.open("wb") as stream:
        writer = McapWriter(stream, use_chunking=False, compression=CompressionType.NONE)
        writer.start("ros2", "")
        schema = writer.register_schema(IMAGE, "ros2msg", b"")
        channel = writer.register_channel("/camera", "cdr", schema)
        for _, log_ns, message in camera(count):
            writer.add_message(channel, log_ns, bytes(ROS2.serialize_cdr(message, IMAGE)), log_ns)
        writer.finish()
    return bytearray(path.read_bytes())


@pytest.mark.parametrize("first", [10, 6])
@pytest.mark.parametrize("chunked", [True, False])
def test_mcaps_put_end_to_end_are_read_as_one(tmp_path, first, chunked):
    parts, both = [tmp_path / "a.mcap", tmp_path / "b.mcap"], tmp_path / "both.mcap"
    messages = camera(first + 10)
    for part, images in zip(parts, (messages[:first], messages[first:]), strict=True):
        write_as_mcap_does(part, images, chunk_size=5000, use_chunking=chunked)
    both.write_bytes(parts[0].read_bytes() + parts[1].read_bytes())
    source = open_source(both)
    assert greys(source) == list(range(first + 10))
    assert source.state.damage is None


def test_messages_outside_the_chunks_of_an_mcap_are_read_too(tmp_path):
    path, outside = tmp_path / "drive.mcap", tmp_path / "outside.mcap"
    write_as_mcap_does(path, camera(10), chunk_size=5000)
    write_as_mcap_does(outside, camera(20), use_chunking=False)
    chunked, data = path.read_bytes(), outside.read_bytes()
    record = bytes([5]) + struct.pack("<Q", 22 + len(ROS2.serialize_cdr(camera(1)[0][2], IMAGE)))
    places = [i for i in range(len(data)) if data[i : i + 9] == record]
    size = places[1] - places[0]
    more = data[places[10] : places[19] + size]
    # Put before the summary, whose places in the footer move on.
    end = chunked.rindex(bytes([0x0F]) + struct.pack("<Q", 4))  # the record DataEnd
    footer = len(chunked) - 8 - 20
    begin, offsets, _ = struct.unpack_from("<QQI", chunked, footer)
    patched = bytearray(chunked)
    struct.pack_into("<QQI", patched, footer, begin + len(more), offsets + len(more), 0)
    path.write_bytes(bytes(patched[:end]) + more + bytes(patched[end:]))
    source = open_source(path)
    assert greys(source) == list(range(20))
    assert source.state.damage is None


@pytest.mark.parametrize("chunked", [True, False])
def test_bytes_behind_an_mcap_are_said(tmp_path, chunked):
    path = tmp_path / "drive.mcap"
    write_as_mcap_does(path, camera(20), use_chunking=chunked)
    path.write_bytes(path.read_bytes() + b"more" * 300)
    source = open_source(path)
    assert greys(source) == list(range(20))
    assert "1,200 bytes follow" in source.state.damage


ANOTHER_KIND = {"metadata": 0x0C, "a damaged schema": 0x03, "a damaged channel": 0x04}


@pytest.mark.parametrize("kind", ["chunks", "messages", "ROS 1"])
@pytest.mark.parametrize("put_in", [b"\xa7", bytes(range(1, 200))])
def test_what_is_lost_behind_bytes_put_into_a_bag_is_counted(tmp_path, kind, put_in):
    path = tmp_path / ("a.bag" if kind == "ROS 1" else "a.mcap")
    if kind == "ROS 1":
        write_ros1(path, 20)
    else:
        chunks = kind == "chunks"
        write_as_mcap_does(
            path, camera(20), use_chunking=chunks, chunk_size=6000, compression=CompressionType.NONE
        )
    data = path.read_bytes()
    at = len(data) // 3
    path.write_bytes(data[:at] + put_in + data[at:])
    source = BagSource(path)
    given = len(list(source))
    assert 0 < given < 20
    assert f"Messages read: {given} of 20 on /camera" in source.state.damage
    assert "integer" not in source.state.damage and "Errno" not in source.state.damage


@pytest.mark.parametrize("how", ["cut", *ANOTHER_KIND, "a length beyond the end"])
def test_an_mcap_that_lacks_messages_says_so_wherever_its_records_go_on(tmp_path, how):
    path = tmp_path / "drive.mcap"
    data = loose_mcap(path)
    record = bytes([5]) + struct.pack("<Q", 22 + len(ROS2.serialize_cdr(camera(1)[0][2], IMAGE)))
    places = [i for i in range(len(data)) if data[i : i + 9] == record]
    assert len(places) == 20
    if how == "cut":  # exactly between two records
        del data[places[10] :]
    elif how in ANOTHER_KIND:
        data[places[10]] = ANOTHER_KIND[how]
    else:
        data[places[10] : places[10] + 9] = bytes([0x0C]) + struct.pack("<Q", 10**9)
    path.write_bytes(data)
    source = open_source(path)
    kept = [n for n in range(20) if n < 10 or (n > 10 and how in ANOTHER_KIND)]
    assert greys(source) == kept
    assert "damaged" in source.state.damage


@pytest.mark.parametrize("what", ["number of chunks", "kind of a chunk", "number of messages"])
def test_a_ros_1_bag_that_lacks_chunks_says_so_or_finds_them(tmp_path, what):
    path = tmp_path / "drive.bag"
    bag = Ros1Writer(path)
    bag.chunk_threshold = 100
    with bag:
        connection = bag.add_connection("/camera", IMAGE, typestore=ROS1)
        for index, stamp in enumerate(stamps(6)):
            message = raw_image(stamp, index, ROS1.types, seq=index)
            bag.write(connection, stamp, ROS1.serialize_ros1(message, IMAGE))
    data = bytearray(path.read_bytes())
    if what == "number of chunks":
        at = data.index(b"chunk_count=") + 12
        assert data[at : at + 4] == struct.pack("<I", 6)
        data[at] = 2
    else:
        data[data.rindex(b"type=")] ^= 1  # the library refuses the index
        if what == "kind of a chunk":
            at = [i for i in range(len(data)) if data[i : i + 4] == b"op=\5"][3] + 3
            data[at] = 0x55
        else:
            data[data.index(b"\x0a\0\0\0count=") + 10] = 3
    path.write_bytes(data)
    source = open_source(path)
    if what == "number of chunks":
        assert greys(source) == list(range(6))
    elif what == "kind of a chunk":
        assert greys(source) == [0, 1, 2, 4, 5]
        assert "no known kind" in source.state.damage
    else:  # that of the first chunk's index, which holds one
        assert greys(source) == list(range(6))
        assert "6 of 8 messages are there" in source.state.damage


@pytest.mark.parametrize(
    "change",
    ["data = 'text'", "data = CAST(x'ff' AS TEXT)", "data = 5", "timestamp = 'soon'",
     "timestamp = 2.5"],
)  # fmt: skip
def test_a_row_of_another_type_costs_one_image_with_its_cause(tmp_path, change):
    bag = write_ros2(tmp_path / "drive", camera(6), StoragePlugin.SQLITE3)
    with closing(sqlite3.connect(storage_file(bag))) as database:
        database.execute(f"UPDATE messages SET {change} WHERE id = 3")
        database.commit()
    source = open_source(bag)
    assert greys(source) == [0, 1, 3, 4, 5]
    assert source.state.counts.unusable == 1
    cause = "1 of 6 images unusable: its time is no number, or its data no bytes"
    assert cause in source.state.notes and source.state.damage is None
    assert source.duration == pytest.approx(0.5)


@pytest.mark.parametrize("topic", ["99", "'a'"])
def test_a_row_of_no_topic_is_said_though_no_metadata_count_it(tmp_path, topic):
    bag = write_ros2(tmp_path / "drive", camera(6), StoragePlugin.SQLITE3)
    file = storage_file(bag)
    with closing(sqlite3.connect(file)) as database:
        database.execute(f"UPDATE messages SET topic_id = {topic} WHERE id = 3")
        database.commit()
    source = open_source(file)
    assert greys(source) == [0, 1, 3, 4, 5]
    assert "a message is of no known topic" in source.state.damage


@pytest.mark.parametrize("name", ["x'ff'", "x'2f63616d657261'"])
def test_a_topic_whose_name_is_no_text_is_said_to_be_so(tmp_path, name):
    bag = write_ros2(tmp_path / "drive", camera(6), StoragePlugin.SQLITE3)
    with closing(sqlite3.connect(storage_file(bag))) as database:
        database.execute(f"UPDATE topics SET name = {name}")
        database.commit()
    with pytest.raises(SourceUnreadableError, match="name, type or format of topic 1 is no text"):
        open_source(bag)
