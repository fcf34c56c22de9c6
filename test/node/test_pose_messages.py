# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Poses read by hand from messages that another library has serialized."""

import contextlib
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rosbags.typesys import Stores, get_typestore

from stream_vlm_ros.errors import InvalidTimestampError
from stream_vlm_ros.history.poses import Pose
from stream_vlm_ros.node.pose_messages import READERS, TransformChain, UnreadableError

STORE = get_typestore(Stores.ROS2_JAZZY)
TYPES = STORE.types
SECOND = 10**9


def message(kind, **fields):
    return TYPES[kind](**fields)


def header(seconds, frame):
    whole = int(seconds)
    stamp = message(
        "builtin_interfaces/msg/Time", sec=whole, nanosec=round((seconds - whole) * SECOND)
    )
    return message("std_msgs/msg/Header", stamp=stamp, frame_id=frame)


def pose_of(position, turn):
    return message(
        "geometry_msgs/msg/Pose",
        position=message("geometry_msgs/msg/Point", **dict(zip("xyz", position, strict=True))),
        orientation=message("geometry_msgs/msg/Quaternion", **dict(zip("xyzw", turn, strict=True))),
    )


def vector(x=0.0, y=0.0, z=0.0):
    return message("geometry_msgs/msg/Vector3", x=x, y=y, z=z)


def stamped(kind, seconds, frame, position, turn):
    pose = pose_of(position, turn)
    covariance = np.zeros(36)
    if kind.endswith("PoseStamped"):
        return message(kind, header=header(seconds, frame), pose=pose)
    pose = message("geometry_msgs/msg/PoseWithCovariance", pose=pose, covariance=covariance)
    if kind.endswith("PoseWithCovarianceStamped"):
        return message(kind, header=header(seconds, frame), pose=pose)
    twist = message("geometry_msgs/msg/Twist", linear=vector(), angular=vector())
    twist = message("geometry_msgs/msg/TwistWithCovariance", twist=twist, covariance=covariance)
    return message(
        kind, header=header(seconds, frame), child_frame_id="base", pose=pose, twist=twist
    )


def serialized(kind, content, little=True):
    return bytes(STORE.serialize_cdr(content, kind, little_endian=little))


def about_z(angle):
    return (0.0, 0.0, math.sin(angle / 2), math.cos(angle / 2))


def transform(seconds, parent, child, position, turn=(0.0, 0.0, 0.0, 1.0)):
    return message(
        "geometry_msgs/msg/TransformStamped",
        header=header(seconds, parent),
        child_frame_id=child,
        transform=message(
            "geometry_msgs/msg/Transform",
            translation=vector(*position),
            rotation=message(
                "geometry_msgs/msg/Quaternion", **dict(zip("xyzw", turn, strict=True))
            ),
        ),
    )


def tf(*transforms):
    kind = "tf2_msgs/msg/TFMessage"
    return serialized(kind, message(kind, transforms=list(transforms)))


@pytest.mark.parametrize("little", [True, False])
@pytest.mark.parametrize("kind", READERS)
@pytest.mark.parametrize("frame", ["", "m", "map", "world"])  # each another alignment
def test_every_kind_is_read_in_both_byte_orders(kind, little, frame):
    content = stamped(kind, 12.25, frame, (1.5, -2.0, 3.0), (0.1, 0.2, 0.3, 0.9))
    found = READERS[kind](serialized(kind, content, little))
    assert found == Pose(12_250_000_000, frame, (1.5, -2.0, 3.0), (0.1, 0.2, 0.3, 0.9))


@pytest.mark.parametrize("kind", READERS)
@given(st.integers(0, 200))
def test_a_message_that_breaks_off_is_refused_or_whole_in_what_is_read(kind, length):
    data = serialized(kind, stamped(kind, 1.5, "map", (1.0, 2.0, 3.0), (0.0, 0.0, 0.0, 1.0)))
    try:
        found = READERS[kind](data[:length])
    except UnreadableError:
        return
    assert found.position == (1.0, 2.0, 3.0)


@given(st.binary(max_size=200), st.sampled_from([b"\0\1\0\0", b"\0\0\0\0", b""]))
def test_any_bytes_are_refused_in_words_or_read(data, kind):
    for read in (*READERS.values(), lambda data: TransformChain("a", "b").take(data, False)):
        with contextlib.suppress(UnreadableError, InvalidTimestampError):
            read(kind + data)


def test_one_moving_link_is_the_pose_itself():
    chain = TransformChain("base_link", "map")
    assert chain.take(tf(transform(5.0, "map", "base_link", (1.0, 2.0, 0.0))), False) == [
        Pose(5 * SECOND, "map", (1.0, 2.0, 0.0), (0.0, 0.0, 0.0, 1.0))
    ]


def test_a_chain_is_composed_at_the_moment_up_to_which_all_of_it_is_known():
    """map -> odom a quarter turn and one metre ahead; odom -> base two metres along its x; so in
    map it is at (1, 2)."""
    chain = TransformChain("base_link", "map")
    chain.take(tf(transform(9.0, "map", "odom", (0.0, 0.0, 0.0), about_z(math.pi / 2))), False)
    assert chain.take(tf(transform(10.0, "odom", "base_link", (0.0, 0.0, 0.0))), False) == []
    assert chain.take(tf(transform(10.2, "odom", "base_link", (4.0, 0.0, 0.0))), False) == []
    [found] = chain.take(
        tf(transform(10.1, "map", "odom", (1.0, 0.0, 0.0), about_z(math.pi / 2))), False
    )
    assert found.stamp_ns == 10_100_000_000 and found.frame_id == "map"
    assert found.position == pytest.approx((1.0, 2.0, 0.0))
    assert found.orientation == pytest.approx(about_z(math.pi / 2))


def test_fixed_links_belong_to_the_chain_and_other_links_do_not_matter():
    chain = TransformChain("camera", "map")
    chain.take(tf(transform(0.0, "base_link", "camera", (0.0, 0.0, 1.5))), True)
    chain.take(
        tf(*(transform(1.0, "base_link", f"wheel_{k}", (1.0, 1.0, 1.0)) for k in range(50))), False
    )
    [found] = chain.take(
        tf(transform(7.0, "map", "base_link", (3.0, 0.0, 0.0), about_z(1.0))), False
    )
    assert found.position == pytest.approx((3.0, 0.0, 1.5))


def test_a_frame_that_does_not_hang_below_the_parent_has_no_pose():
    chain = TransformChain("base_link", "map")
    for k in range(3):
        assert chain.take(tf(transform(k, "odom", "base_link", (1.0, 0.0, 0.0))), False) == []
    assert not chain.known
    loop = TransformChain("a", "map")
    links = tf(transform(1.0, "b", "a", (0.0, 0.0, 0.0)), transform(1.0, "a", "b", (0.0, 0.0, 0.0)))
    assert loop.take(links, False) == [] and not loop.known


def test_time_that_begins_again_is_followed():
    chain = TransformChain("base_link", "map")
    for seconds in (100.0, 101.0):
        chain.take(tf(transform(seconds, "map", "base_link", (seconds, 0.0, 0.0))), False)
    [found] = chain.take(tf(transform(3.0, "map", "base_link", (9.0, 0.0, 0.0))), False)
    assert (found.stamp_ns, found.position[0]) == (3 * SECOND, 9.0)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([("map", "odom"), ("odom", "base")]),
            st.integers(1, 50),
            st.floats(-3, 3),
            st.floats(-3, 3),
        ),
        min_size=2,
        max_size=30,
    )
)
def test_a_composed_pose_is_that_of_matrices(steps):
    """The oracle: 4x4 matrices, interpolated between the same neighbours by numpy."""
    chain, links, now = TransformChain("base", "map"), {}, 0
    for (parent, child), step, x, angle in steps:
        now += step
        links.setdefault(child, []).append((now, x, angle))
        data = tf(transform(now / 100, parent, child, (x, 0.0, 0.0), about_z(angle)))
        for found in chain.take(data, False):
            at = min(samples[-1][0] for samples in links.values())
            expected = _matrix(links["odom"], at) @ _matrix(links["base"], at)
            assert found.stamp_ns == at * SECOND // 100
            assert found.position == pytest.approx(expected[:3, 3], abs=1e-9)


def _matrix(samples, at):
    """About z alone: an angle is interpolated the shorter way."""
    times = [time for time, _, _ in samples]
    assert times[0] <= at <= times[-1]
    x = np.interp(at, times, [x for _, x, _ in samples])
    angle = np.interp(at, times, np.unwrap([angle for _, _, angle in samples]))
    cosine, sine = np.cos(angle), np.sin(angle)
    return np.array([[cosine, -sine, 0, x], [sine, cosine, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
