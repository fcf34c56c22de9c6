# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_vlm_ros.client.messages import image_message, nanoseconds, seconds, set_stamp

pytest.importorskip("rclpy")
pytestmark = pytest.mark.ros


@given(sec=st.integers(0, 2**31 - 1), nanosec=st.integers(0, 10**9 - 1))
def test_a_stamp_is_the_same_after_it_was_a_number(sec, nanosec):
    from builtin_interfaces.msg import Time

    stamp, again = Time(sec=sec, nanosec=nanosec), Time()
    set_stamp(again, nanoseconds(stamp))
    assert again == stamp
    assert seconds(stamp) == pytest.approx(sec + nanosec * 1e-9)


def test_a_message_takes_over_the_pixels_of_any_layout():
    wide = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)
    for image in (wide, wide[:, ::2], wide[::-1], np.asfortranarray(wide)):
        message = image_message(image, 3_000_000_005)
        assert bytes(message.data) == image.tobytes()
        assert (message.height, message.width) == image.shape[:2]
        assert message.step == 3 * image.shape[1]
        assert message.header.frame_id == "camera"
        assert (message.header.stamp.sec, message.header.stamp.nanosec) == (3, 5)
