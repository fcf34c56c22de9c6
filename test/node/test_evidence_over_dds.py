# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Over DDS: what an answer rests on, with pictures and the robot's poses."""

import time

import pytest
from fake_engine import FakeRecall, episode
from patience import PATIENCE

pytestmark = pytest.mark.ros

OWN = dict(history="auto", pose_topic="pose", queue_size=16)
HERE = pytest.mark.parametrize("here", [OWN], indirect=True)


# What a folder holds from before, in seconds; the client's first image is of about 1,000 s.
EARLIER, LATER = [100.0, 101.0], [5000.0, 5001.0]


@pytest.fixture
def fake_engine(request):
    engine = FakeRecall(keeps_source_time=True) if hasattr(request, "param") else FakeRecall()
    engine.kept = list(getattr(request, "param", []))
    return engine


def send_poses(here, message_type, stamps_ns, make):
    """Publish until the node has taken them: some are lost while both sides find each other."""
    client = here.client
    publisher = client.graph.node.create_publisher(message_type, "/here/pose", 50)
    try:
        deadline = time.monotonic() + PATIENCE
        while here.node.cameras[0].poses.taken < len(stamps_ns):
            assert time.monotonic() < deadline
            for stamp_ns in stamps_ns:
                publisher.publish(make(stamp_ns))
            time.sleep(0.3)
    finally:
        client.graph.node.destroy_publisher(publisher)


def pose_stamped(client):
    from geometry_msgs.msg import PoseStamped

    def make(stamp_ns):
        message = PoseStamped(header=client.header(stamp_ns))
        message.header.frame_id = "map"
        message.pose.position.x = stamp_ns / 1e9 - 1000
        return message

    return make


@HERE
def test_an_answer_names_when_with_pictures_and_where_the_robot_was(here):
    from geometry_msgs.msg import PoseStamped

    client = here.client
    first = client.stamp_ns + 500_000_000
    for _ in range(5):
        client.send(client.image())
    client.wait_status(lambda s: s.frames_ingested == 5, what="the frames")
    here.engine.found = (episode(0.0, 0.5, 1.0, 1.5, 2.0),)
    stamps = [first + k * 100_000_000 for k in range(4, 12)]  # 0.4 to 1.1 s
    send_poses(here, PoseStamped, stamps, pose_stamped(client))

    answer = client.ask(thumbnails=2, history="always")
    assert answer.error_code == 0
    [told] = answer.evidence
    nanoseconds = [stamp.sec * 10**9 + stamp.nanosec for stamp in told.stamps]
    assert nanoseconds == [first + k * 500_000_000 for k in range(5)]
    assert (told.tier, told.span.start, told.span.end) == (
        "history",
        told.stamps[0],
        told.stamps[4],
    )
    assert [bytes(picture.data) for picture in told.thumbnails] == [
        b"jpeg of 0.000",
        b"jpeg of 2.000",
    ]
    assert [picture.header.stamp for picture in told.thumbnails] == [told.stamps[0], told.stamps[4]]
    known = [pose.header.stamp for pose in told.poses]
    assert known == [told.stamps[k] for k in (0, 1, 2, 3)]  # at most half a second from a pose
    assert {pose.header.frame_id for pose in told.poses} == {"map"}
    assert told.poses[1].pose.position.x == pytest.approx(nanoseconds[1] / 1e9 - 1000, abs=1e-6)
    # The same message on the topic of all answers.
    client.graph.wait(lambda: client.answers, what="the answer on ~/answer")
    assert len(client.answers[-1].evidence[0].thumbnails) == 2
    assert len(client.ask().evidence[0].thumbnails) == 0

    assert client.reset().success
    assert here.engine.kept == [] and len(here.node.cameras[0].poses.track) == 0


@HERE
def test_the_kept_picture_next_to_a_time_is_given(here):
    from builtin_interfaces.msg import Duration
    from stream_vlm.srv import GetPicture

    def picture(stamp_ns, **fields):
        stamp = here.client.header(stamp_ns).stamp
        request = GetPicture.Request(stamp=stamp, **fields)
        return here.client.graph.call(GetPicture, f"{here.client.name}/get_picture", request)

    none = picture(1)
    assert (none.success, len(none.picture.data)) == (True, 0) and "no picture" in none.message
    client, first = here.client, here.client.stamp_ns + 500_000_000
    for _ in range(3):
        client.send(client.image())
    client.wait_status(lambda s: s.frames_ingested == 3, what="the frames")
    found = picture(first + 600_000_000, max_size=64)
    assert bytes(found.picture.data) == b"jpeg of 0.500" and found.picture.format == "jpeg"
    assert found.picture.header.stamp == client.header(first + 500_000_000).stamp
    assert here.engine.calls[-1] == ("thumbnail", 0.5, 64)
    near = Duration(nanosec=100_000_000)
    assert len(picture(first + 600_000_000, within=near).picture.data) > 0
    assert len(picture(first + 600_000_001, within=near).picture.data) == 0
    refused = picture(first, max_size=1281)
    assert not refused.success and "from 1 to 1280" in refused.message


@pytest.mark.parametrize("here", [{"sources": "front,rear"}], indirect=True)
def test_a_kept_picture_is_one_cameras_or_the_nearest_of_all(here, connect):
    from stream_vlm.srv import GetPicture

    cameras = {name: connect("here", camera=name) for name in ("front", "rear")}
    cameras["rear"].stamp_ns += 10**12
    seen = {}
    for name, camera in cameras.items():
        camera.send(camera.image())
        status = camera.wait_status(lambda s: s.frames == 1, what="the frame")
        seen[name] = status.newest_stamp

    def shown(within, stamp):
        request = GetPicture.Request(stamp=stamp, max_size=64)
        told = here.client.graph.call(GetPicture, f"{within}/get_picture", request)
        assert told.success, told.message
        return told.picture.header.stamp

    for name, stamp in seen.items():
        assert shown(here.client.name, stamp) == stamp
        assert shown(f"{here.client.name}/{name}", seen["front"]) == stamp


@HERE
def test_the_status_tells_the_tiers_of_the_history(here):
    client = here.client
    for _ in range(3):
        client.send(client.image())
    status = client.wait_status(lambda s: s.frames_ingested == 3, what="the frames")
    assert [(tier.name, tier.frames, tier.where) for tier in status.tiers] == [
        ("pictures", 3, "memory"),
        ("keys", 0, "device"),
    ]
    assert status.tiers[0].newest == status.newest_stamp


@HERE
@pytest.mark.parametrize(
    ("fake_engine", "epochs"), [(EARLIER, 0), (LATER, 1)], indirect=["fake_engine"]
)
def test_a_history_from_before_goes_on_unless_time_runs_back_from_it(here, epochs):
    """However long the pause, and with nothing in the memory itself."""
    client = here.client
    assert client.status.tiers[0].frames == 2 and client.status.frames == 0
    for _ in range(5):
        client.send(client.image())
    client.wait_status(lambda s: s.frames_ingested == 5, what="the frames")
    assert (here.engine.epochs, client.status.time_jumps) == (epochs, epochs)


@HERE
def test_a_history_that_makes_no_sense_is_an_error_in_words(here):
    here.client.send(here.client.image())
    answer = here.client.ask(history="perhaps")
    assert "never, auto, always or empty" in answer.error_message
    assert "at most 6" in here.client.ask(thumbnails=100).error_message


@HERE
def test_a_topic_that_carries_no_pose_is_told_and_the_node_goes_on(here):
    from std_msgs.msg import String

    client = here.client
    publisher = client.graph.node.create_publisher(String, "/here/pose", 1)
    client.graph.wait(lambda: here.node.cameras[0].poses.trouble, what="the warning")
    assert (
        "/here/pose carries std_msgs/msg/String; a pose is read from"
        in here.node.cameras[0].poses.trouble
    )
    client.graph.node.destroy_publisher(publisher)
    client.send(client.image())
    client.wait_status(lambda s: s.frames_ingested == 1)
    assert client.ask().error_code == 0
