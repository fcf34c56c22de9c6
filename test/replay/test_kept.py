# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A history in a folder, searched and erased from the command line."""

import os
import time

import numpy as np
import pytest
from fake_engine import FakeRecall, episode
from key_streams import Stream, index
from typer.testing import CliRunner

from stream_vlm_ros.cli import app
from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.history import FrameStore
from stream_vlm_ros.history.folder import KEYS, erase
from stream_vlm_ros.history.poses import Pose, PoseTrack
from stream_vlm_ros.replay import kept
from stream_vlm_ros.replay.kept import (
    find_folder,
    open_history,
    parse_time,
    span_text,
    time_text,
)

START = 1_700_000_000.0


@pytest.fixture(autouse=True)
def utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


@pytest.fixture
def folder(tmp_path):
    """Ten frames a second apart, in an epoch of their own another ten, and their poses."""
    folder = tmp_path / "frames"
    picture = np.full((28, 28, 3), 90, np.uint8)
    with FrameStore(folder) as store:
        for epoch in range(2):
            for k in range(10):
                store.add(picture + epoch, START + k)
            if not epoch:
                store.start_epoch()
    track = PoseTrack(folder)
    for k in range(10):
        track.add(Pose(round((START + k) * 1e9), "map", (float(k), 0.0, 0.0), (0.0, 0.0, 0.0, 1.0)))
    track.close()
    return folder


def pictures(folder):
    return sum(len(files) for _, _, files in os.walk(folder / "pictures"))


def test_a_time_is_erased_of_every_epoch_with_its_poses(folder):
    erased = erase(folder, START + 2, START + 4)
    assert (erased.frames, erased.poses, erased.left) == (6, 3, 14)
    assert erased.reach == (START, START + 9)
    assert pictures(folder) == 14
    with FrameStore(folder) as store:
        stamps = [frame.stamp - START for frame in store.newest(99)]
    assert stamps == [0, 1, 5, 6, 7, 8, 9]


def test_forget_takes_dates_and_says_what_it_erased_and_what_stays(folder):
    done = run("forget", folder, "2023-11-14T22:13:22", "2023-11-14T22:13:24Z")
    assert done.exit_code == 0, done.output
    assert done.stdout == (
        "Erased 6 frames and 3 poses. 14 frames stay, 2023-11-14 22:13:20.0 to 22:13:29.0.\n"
    )
    again = run("forget", folder, START + 2, START + 4)
    assert again.stdout.startswith("Erased 0 frames. 14 frames stay")


def test_a_folder_in_use_is_refused_and_nothing_is_erased(folder):
    with FrameStore(folder) as store:
        for arguments in (("forget", folder, START, START + 9), ("history", folder, "a cup")):
            done = run(*arguments)
            assert done.exit_code == 2
            assert "is in use by another process: end the node first that writes it" in done.stderr
        assert len(store) == 20


@pytest.mark.parametrize("kind", ["missing", "empty", "others", "file", "unnamed"])
def test_a_folder_without_a_history_is_refused_and_nothing_is_made_in_it(tmp_path, kind):
    place = tmp_path / "place"
    if kind in ("empty", "others"):
        place.mkdir()
    if kind in ("others", "file"):
        (place / "letter.txt" if kind == "others" else place).write_text("dear")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InvalidParameterError, match=r"holds no history|no folder"):
        find_folder("" if kind == "unnamed" else str(place))
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("5", "3"), "TO is before FROM"),
        (("yesterday", "3"), "FROM is 'yesterday': give seconds"),
        (("3", "nan"), "TO is no number"),
        (("2026-99-01", "3"), "FROM is '2026-99-01': give seconds"),
    ],
)
def test_a_time_that_makes_no_sense_is_refused(folder, arguments, words):
    done = run("forget", folder, *arguments)
    assert done.exit_code == 2 and words in done.stderr
    assert pictures(folder) == 20


def test_times_are_read_and_written_for_people():
    assert parse_time("FROM", "12.5") == 12.5
    assert parse_time("FROM", "2023-11-14T22:13:20+00:00") == START
    assert parse_time("FROM", "2023-11-14 22:13") == START - 20
    assert time_text(12.34) == "12.3 s"
    assert time_text(START + 0.5) == "2023-11-14 22:13:20.5"
    assert span_text(1.0, 2.0) == "1.0 s to 2.0 s"
    assert span_text(START, START + 7200) == "2023-11-14 22:13:20.0 to 2023-11-15 00:13:20.0"


def test_keys_of_another_model_are_refused_and_left_where_they_are(folder):
    with pytest.raises(InvalidParameterError, match="nothing to find them by"):
        open_history(Settings(device="cpu"), folder)
    with index(folder=folder / KEYS) as one:
        one.draft(one.empty(), Stream().chunk(3, 3)[0])
    before = sorted(path.name for path in (folder / KEYS).iterdir())
    with pytest.raises(InvalidParameterError, match="of another model or calibration: name"):
        open_history(Settings(device="cpu"), folder)
    assert sorted(path.name for path in (folder / KEYS).iterdir()) == before
    assert find_folder(str(folder)) == folder  # nobody holds it


def test_a_sentence_is_looked_for_and_its_episodes_are_listed(folder, monkeypatch):
    asked, closed = [], []

    class Searched(FakeRecall):
        def search(self, text, about=None, count=10):
            asked.append((text, about, count))
            return [episode(START + 3, START + 4.5, score=4.25), episode(START + 90)][:count]

        def close(self):
            closed.append(True)

    monkeypatch.setattr(kept, "open_history", lambda settings, place: Searched())
    done = run("history", folder, "a red cup", "--count", 2, "--about", START, "2023-11-15")
    assert done.exit_code == 0, done.output
    assert asked == [("a red cup", (START, parse_time("", "2023-11-15")), 2)] and closed == [True]
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["score", "when", "seconds"]
    assert lines[1] == ["4.25", "2023-11-14", "22:13:23.0", "to", "22:13:24.5", "1.5"]
    assert max(map(len, done.stdout.splitlines())) <= 80
    told = run("history", folder, "a red cup", "--json", "--count", 1)
    assert '"start": 1700000003.0' in told.stdout
    wrong = run("history", folder, "cup", "--about", 5, 3)
    assert wrong.exit_code == 2 and "--about ends before it begins" in wrong.stderr
    assert run("history", folder, " ").exit_code == 2


def test_a_stretch_of_time_is_said_so_that_it_holds_all_of_it():
    assert span_text(1.04, 2.01) == "1.0 s to 2.1 s"
    begin, end = span_text(START + 0.75, START + 0.795).split(" to ")
    assert parse_time("it", begin) <= START + 0.75
    assert parse_time("it", f"{begin[:10]} {end}") >= START + 0.795
