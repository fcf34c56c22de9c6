# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""An image as it arrives in bytes, which rclpy's own serializer makes here."""

import struct

import numpy as np
import pytest

from stream_vlm_ros.errors import InvalidImageError, InvalidTimestampError

pytestmark = pytest.mark.ros

PIXELS = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
SHORTEST = 12  # bytes: kind and options of the CDR, sec, nanosec


def message_of(kind, sec=7, nanosec=9):
    from builtin_interfaces.msg import Time
    from sensor_msgs.msg import CompressedImage, Image
    from std_msgs.msg import Header

    header = Header(stamp=Time(sec=sec, nanosec=nanosec), frame_id="camera")
    if kind == "compressed":
        return CompressedImage(header=header, format="jpeg", data=PIXELS.tobytes())
    return Image(header=header, height=2, width=3, step=9, encoding="rgb8", data=PIXELS.tobytes())


def arrival_of(serialized, message_type):
    from stream_vlm_ros.node.serialized_image import SerializedImage

    def decode(message):
        return np.frombuffer(message.data, np.uint8).reshape(PIXELS.shape)

    return SerializedImage(serialized, message_type, decode)


def arrived(message):
    from rclpy.serialization import serialize_message

    return arrival_of(serialize_message(message), type(message))


@pytest.mark.parametrize("kind", ["raw", "compressed"])
@pytest.mark.parametrize(
    ("sec", "nanosec"), [(0, 0), (1_700_000_000, 999_999_999), (2**31 - 1, 1), (-3, 250_000_000)]
)
def test_the_stamp_is_read_without_the_message(kind, sec, nanosec):
    arrival = arrived(message_of(kind, sec, nanosec))
    assert arrival.stamp_ns == sec * 1_000_000_000 + nanosec
    cut = arrival_of(arrival.serialized[:SHORTEST], arrival.message_type)
    assert cut.stamp_ns == arrival.stamp_ns


@pytest.mark.parametrize("nanosec", [1_000_000_000, 2**32 - 1])
def test_nanoseconds_that_make_a_second_are_no_stamp(nanosec):
    with pytest.raises(InvalidTimestampError, match="a second or more"):
        print(arrival_of(b"\0\1\0\0" + struct.pack("<iI", 5, nanosec), None).stamp_ns)


def test_a_frame_id_is_cut_before_anybody_repeats_it():
    from stream_vlm_ros.node.serialized_image import MAX_FRAME_ID

    message = message_of("raw")
    message.header.frame_id = "c" * 10_000_000
    header, _ = arrived(message).read()
    assert header.frame_id == "c" * MAX_FRAME_ID


def test_the_stamp_of_a_big_endian_sender():
    serialized = b"\0\0\0\0" + struct.pack(">iI", 1_700_000_000, 5)
    assert arrival_of(serialized, None).stamp_ns == 1_700_000_000_000_000_005


def test_of_a_cdr_of_another_kind_the_stamp_is_that_of_the_message(monkeypatch):
    from stream_vlm_ros.node import serialized_image

    monkeypatch.setattr(serialized_image, "deserialize_message", lambda *_: message_of("raw"))
    assert arrival_of(b"\0\x09\0\0", None).stamp_ns == 7_000_000_009


@pytest.mark.parametrize("kind", ["raw", "compressed"])
def test_header_and_picture_are_those_that_were_sent(kind):
    message = message_of(kind)
    header, image = arrived(message).read()
    assert header == message.header
    np.testing.assert_array_equal(image, PIXELS)


def test_a_message_that_breaks_off_has_no_stamp_or_no_picture():
    whole = arrived(message_of("raw"))
    for length in (0, 3, SHORTEST - 1):
        assert arrival_of(whole.serialized[:length], whole.message_type).stamp_ns is None
    cut = arrival_of(whole.serialized[:SHORTEST], whole.message_type)
    with pytest.raises(InvalidImageError, match="of 12 bytes cannot be deserialized"):
        cut.read()
