# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Where the robot was: kept within bounds, found by its stamps, never told for a wrong one."""

import math
import os
import signal
import sqlite3
import stat

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scripts import LIMIT, started

from stream_vlm_ros.errors import FrameStoreError
from stream_vlm_ros.history.poses import FILE, Pose, PoseTrack, between, forget_in

SECOND = 10**9
STILL = (0.0, 0.0, 0.0, 1.0)


def pose(seconds, x=0.0, turn=STILL, frame="map"):
    return Pose(round(seconds * SECOND), frame, (x, 0.0, 0.0), turn)


def drive(track, start, stop, step=0.1, speed=1.0):
    """Along x, one metre a second."""
    count = round((stop - start) / step)
    for k in range(count + 1):
        seconds = start + k * step
        track.add(pose(seconds, speed * seconds))


def about_z(angle):
    return (0.0, 0.0, math.sin(angle / 2), math.cos(angle / 2))


def test_between_two_poses_it_is_on_the_line_and_turned_evenly():
    first, second = pose(0, 1.0, about_z(0.0)), pose(2, 5.0, about_z(math.pi / 2))
    middle = between(first, second, SECOND // 2)
    assert middle.position == (2.0, 0.0, 0.0)
    assert middle.orientation == pytest.approx(about_z(math.pi / 8))


def test_it_turns_the_shorter_way_though_a_quaternion_has_the_other_sign():
    other = tuple(-value for value in about_z(0.2))
    middle = between(pose(0, turn=about_z(0.0)), pose(1, turn=other), SECOND // 2)
    assert abs(middle.orientation[3]) == pytest.approx(math.cos(0.05))


def test_a_moving_robot_is_found_where_it_was_though_poses_are_thinned_out():
    track = PoseTrack()
    drive(track, 100, 160, step=0.02)  # 50 a second
    assert len(track) <= 60 * 5 + 1
    for seconds in (100.0, 117.33, 159.99):
        found = track.at(round(seconds * SECOND))
        assert found.position[0] == pytest.approx(seconds, abs=1e-6)
        assert found.stamp_ns == round(seconds * SECOND) and found.frame_id == "map"


def test_a_standing_robot_costs_one_pose_a_second():
    track = PoseTrack()
    for k in range(1001):
        track.add(pose(k / 50, 3.0))
    assert len(track) == 21
    assert track.at(round(10.47 * SECOND)).position[0] == 3.0


def test_beyond_the_tolerance_there_is_no_pose():
    track = PoseTrack(tolerance=0.5)
    drive(track, 100, 101)
    drive(track, 110, 111)
    assert track.at(round(101.4 * SECOND)).position[0] == pytest.approx(101.0)
    assert track.at(round(105.0 * SECOND)) is None
    assert track.at(round(109.6 * SECOND)).position[0] == pytest.approx(110.0)
    assert track.at(round(99.0 * SECOND)) is None


def test_poses_in_two_frames_are_not_mixed():
    track = PoseTrack()
    for k in range(4):
        track.add(pose(10 + 0.3 * k, float(k), frame="map"))
    for k in range(4):
        track.add(pose(11.2 + 0.3 * k, 500.0, frame="odom"))
    found = track.at(round(11.15 * SECOND))  # nearer to the first of odom
    assert (found.frame_id, found.position[0]) == ("odom", 500.0)


def test_a_pose_that_is_no_number_is_left_out():
    track = PoseTrack()
    drive(track, 10, 11)
    track.add(pose(11.1, math.nan))
    track.add(pose(11.1, 0.0, (0.0, math.inf, 0.0, 1.0)))
    assert track.at(round(11.1 * SECOND)).position[0] == pytest.approx(11.0)


def test_one_wrong_stamp_changes_nothing():
    track = PoseTrack()
    drive(track, 100, 105)
    track.add(pose(5.0, -7.0))
    track.add(pose(90_000.0, -7.0))
    drive(track, 105.1, 106)
    assert track.at(103 * SECOND).position[0] == pytest.approx(103)
    assert track.at(106 * SECOND).position[0] == pytest.approx(106)
    assert track.at(5 * SECOND) is None


def test_when_time_begins_again_the_time_before_is_no_longer_found():
    track = PoseTrack()
    drive(track, 100, 110)
    for k in range(40):
        track.add(pose(100 + k / 10, -1.0))
    assert track.at(102 * SECOND).position[0] == -1.0
    assert track.at(108 * SECOND) is None


def test_poses_that_came_after_a_pause_are_taken_when_none_follow():
    track = PoseTrack()
    drive(track, 100, 101)
    track.add(pose(160, 7.0))
    assert track.at(160 * SECOND) is None
    track.release()
    assert track.at(160 * SECOND).position[0] == 7.0


def test_the_oldest_go_beyond_the_bounds_in_time_and_in_number():
    track = PoseTrack(max_seconds=60, max_poses=100_000)
    drive(track, 0, 1000, step=0.5)
    assert track.at(100 * SECOND) is None
    assert track.at(950 * SECOND) is not None
    few = PoseTrack(max_poses=50)
    drive(few, 0, 1000, step=0.5)
    assert len(few) <= 51
    assert few.at(1000 * SECOND) is not None and few.at(500 * SECOND) is None


def test_in_a_folder_they_are_found_again_and_are_the_owners_alone(tmp_path):
    track = PoseTrack(tmp_path)
    drive(track, 100, 110)
    track.close()
    assert stat.S_IMODE((tmp_path / FILE).stat().st_mode) == 0o600
    again = PoseTrack(tmp_path)
    assert again.at(105 * SECOND).position[0] == pytest.approx(105)
    drive(again, 8 * 3600, 8 * 3600 + 1)  # the next morning: the day before stays
    assert again.at(105 * SECOND) is not None and again.at(8 * 3600 * SECOND) is not None
    again.close()


KILLED = """
import os, signal, sys
from pathlib import Path
from stream_vlm_ros.history.poses import Pose, PoseTrack

track = PoseTrack(Path(sys.argv[1]))
for tenth in range(1000, 1101):
    track.add(Pose(tenth * 10**8, "map", (tenth / 10, 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)))
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_was_added_is_there_after_the_process_was_killed(tmp_path):
    assert started(KILLED, tmp_path).wait(LIMIT) == -signal.SIGKILL
    track = PoseTrack(tmp_path)
    for seconds in (100, 105, 110):
        assert track.at(seconds * SECOND).position[0] == pytest.approx(seconds)
    track.close()


def test_a_time_is_erased_also_from_the_file(tmp_path):
    track = PoseTrack(tmp_path)
    for k in range(100):
        track.add(pose(1000 + k, 1000 + k, frame="secret" if 40 <= k < 60 else "map"))
    track.close()
    assert forget_in(tmp_path, 1040, 1059) == 20
    for name in os.listdir(tmp_path):
        assert b"secret" not in (tmp_path / name).read_bytes()
    again = PoseTrack(tmp_path)
    assert again.at(1050 * SECOND) is None
    assert again.at(1039 * SECOND).position[0] == 1039
    again.close()
    assert forget_in(tmp_path / "nowhere", 0, 1) == 0


def test_all_can_be_forgotten_and_it_goes_on():
    track = PoseTrack()
    drive(track, 100, 110)
    track.clear()
    assert track.at(105 * SECOND) is None and len(track) == 0
    drive(track, 50, 60)
    assert track.at(55 * SECOND).position[0] == pytest.approx(55)


def test_a_closed_track_takes_and_finds_nothing():
    track = PoseTrack()
    drive(track, 100, 110)
    track.close()
    drive(track, 110, 111)
    track.clear()
    assert track.at(105 * SECOND) is None


@pytest.mark.parametrize("content", [b"no database" * 200, None])
def test_a_file_that_is_not_ours_is_refused_and_left_as_it_is(tmp_path, content):
    file = tmp_path / FILE
    if content is None:
        with sqlite3.connect(file) as db:
            db.execute("CREATE TABLE others (x)")
        db.close()
    else:
        file.write_bytes(content)
    before = file.read_bytes()
    with pytest.raises(FrameStoreError, match="Move the file away"):
        PoseTrack(tmp_path)
    assert file.read_bytes() == before


@given(
    st.lists(st.tuples(st.integers(1, 40), st.floats(-5, 5)), min_size=4, max_size=60),
    st.integers(0, 1200),
)
def test_what_is_told_lies_between_two_poses_near_the_stamp(steps, tenth):
    """Whatever the rate: never a place where it was not, within the tolerance of the stamp."""
    track, seen, now = PoseTrack(tolerance=0.5), [], 0
    for step, x in steps:
        now += step
        seen.append((now / 10, x))
        track.add(pose(now / 10, x))
    track.release()
    found = track.at(tenth * SECOND // 10)
    if found is not None:
        near = [x for seconds, x in seen if abs(seconds - tenth / 10) <= 0.5 + 1e-9]
        assert near and min(near) - 1e-9 <= found.position[0] <= max(near) + 1e-9
