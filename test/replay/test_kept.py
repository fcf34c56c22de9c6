# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A history in a folder, searched and erased from the command line."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from fake_engine import FakeRecall, episode
from key_streams import Stream, index
from typer.testing import CliRunner

from stream_vlm_ros.cli import app
from stream_vlm_ros.config import Settings
from stream_vlm_ros.console import span_text, time_text
from stream_vlm_ros.errors import InvalidParameterError, OutOfHorizonError
from stream_vlm_ros.history import FrameStore
from stream_vlm_ros.history.folder import KEYS, Held, erase
from stream_vlm_ros.history.poses import Pose, PoseTrack
from stream_vlm_ros.replay import kept
from stream_vlm_ros.replay.kept import (
    find_folder,
    held_text,
    open_history,
    parse_time,
)

START = 1_700_000_000.0


pytestmark = pytest.mark.usefixtures("utc")


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
        "Erased 6 frames and 3 poses.\nThe folder still holds 14 frames, "
        "2023-11-14 22:13:20.0 to 22:13:29.0.\n"
    )


def test_forget_says_where_nothing_lies_from_when_to_when_the_folder_holds_frames(folder):
    done = run("forget", folder, 0, 10)
    assert done.exit_code == 0, done.output
    assert done.stdout == (
        "Nothing lies from 0 to 10.\nThe folder holds 20 frames, "
        "2023-11-14 22:13:20.0 to 22:13:29.0.\n"
    )
    assert pictures(folder) == 20
    run("forget", folder, START, START + 8)
    assert "holds 2 frames, 2023-11-14 22:13:29.0 to" in run("forget", folder, 0, 10).stdout
    assert run("forget", folder, 0, "inf").stdout.endswith("The folder still holds nothing.\n")


def test_what_an_earlier_run_left_is_in_what_the_folder_is_said_to_hold(tmp_path):
    with FrameStore(tmp_path / "frames") as store:
        store.add(np.full((28, 28, 3), 90, np.uint8), 500.0)
        store.start_epoch()
        assert held_in_words(tmp_path, store) == ("1 frame, 500.0 s to 500.0 s", None)
    done = run("history", tmp_path / "frames", "a cup")
    assert done.exit_code == 2
    assert (
        "holds no frames of the present run, only 1 frame, 500.0 s to 500.0 s, of earlier ones"
        in " ".join(done.stderr.split())
    )


def held_in_words(folder, store):
    return held_text(Held(len(store), store.reach)), store.newest_frame


def test_a_folder_without_a_frame_is_said_to_hold_none(tmp_path):
    FrameStore(tmp_path / "frames").close()
    done = run("history", tmp_path / "frames", "a cup")
    assert done.exit_code == 2 and "/frames holds no frames: there is" in done.stderr


def test_no_model_is_loaded_to_erase(folder, tmp_path):
    other = tmp_path / "other"
    FrameStore(other).close()
    with index(folder=other / KEYS) as one:
        one.draft(one.empty(), Stream().chunk(3, 3)[0])
    code = f"""
import sys
from stream_vlm_ros.cli import app
for place, without in (({str(folder)!r}, "torch"), ({str(other)!r}, "transformers")):
    app(["forget", place, "5", "6"], standalone_mode=False)
    assert without not in sys.modules, place
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("day", ["", "2023-11-14T", "2023-11-14 "])
def test_times_of_the_day_that_the_folder_holds_are_taken(folder, day):
    done = run("forget", folder, f"{day}22:13:22.0", "22:13:24.0")
    assert done.stdout.startswith("Erased 6 frames and 3 poses.")


def test_a_time_of_no_certain_day_is_refused(folder):
    with FrameStore(folder) as store:
        store.add(np.full((28, 28, 3), 90, np.uint8), START + 86400)
    done = run("forget", folder, "22:13:22", "22:13:24")
    assert done.exit_code == 2 and "FROM is 22:13:22, a time of no certain day" in done.stderr
    assert pictures(folder) == 21


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


def test_a_time_before_0_is_erased(tmp_path):
    with FrameStore(tmp_path / "frames") as store:
        for stamp in (-6.0, -3.5, 0.0):
            store.add(np.full((28, 28, 3), 90, np.uint8), stamp)
    assert "Erased 1 frame." in run("forget", tmp_path / "frames", -5, "-.5").stdout
    assert "FROM is '--star'" in run("forget", tmp_path / "frames", "--star", 1).stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("5", "3"), "TO is 3, before 5"),
        (("yesterday", "3"), "FROM is 'yesterday': give seconds"),
        (("3", "nan"), "TO is no number"),
        (("2026-99-01", "3"), "FROM is '2026-99-01': give seconds"),
        (("2023-11-14", "2023-11-15"), "FROM is 2023-11-14, a date alone: give the time"),
        (("3", "2023-11-15"), "TO is 2023-11-15, a date alone: give the time of the day"),
        (("3", "22:13"), "TO is 22:13, a time of no certain day"),
    ],
)
def test_a_time_that_makes_no_sense_is_refused(folder, arguments, words):
    done = run("forget", folder, *arguments)
    assert done.exit_code == 2 and words in done.stderr
    assert pictures(folder) == 20


def test_times_are_read_and_written_for_people():
    assert parse_time("FROM", "12.5") == 12.5
    assert parse_time("FROM", time_text(12.5)) == 12.5
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
    asked, closed, weak = [], [], 0

    class Searched(FakeRecall):
        calibration = SimpleNamespace(threshold=3.3)

        def search(self, text, about=None, count=10):
            if about == (0.0, 10.0):
                raise OutOfHorizonError("nothing from 0.000 to 10.000 s is remembered")
            asked.append((text, about, count))
            return [
                episode(START + 3, START + 4.5, score=4.25),
                episode(START + 8, score=2.5),
            ][weak:count]

        def close(self):
            closed.append(True)

    monkeypatch.setattr(kept, "open_history", lambda settings, place: Searched())
    done = run("history", folder, "a red cup", "--count", 2, "--about", START, "22:13:28.0")
    assert done.exit_code == 0, done.output
    assert asked == [("a red cup", (START, START + 8), 2)] and closed == [True]
    assert (
        "Searching 10 frames, 2023-11-14 22:13:20.0 to 22:13:29.0; 10 frames of earlier runs not"
        in " ".join(done.stderr.split())
    )
    lines = [line.split() for line in done.stdout.splitlines()]
    assert lines[0] == ["score", "when", "lasts", "ago"]
    day = "2023-11-14"
    assert lines[1] == ["4.25", day, *"22:13:23.0 to 22:13:24.5 1.5 s 4.5 s".split()]
    assert lines[2] == ["2.50", "weak", day, *"22:13:28.0 to 22:13:28.0 0.0 s 1.0 s".split()]
    assert done.stdout.endswith("ago: before the newest frame, 2023-11-14 22:13:29.0\n")
    assert max(map(len, done.stdout.splitlines())) <= 80
    told = json.loads(run("history", folder, "a red cup", "--json").stdout)
    assert [(one["start"], one["weak"]) for one in told] == [(START + 3, False), (START + 8, True)]
    weak = 1
    assert run("history", folder, "an elephant").stdout.startswith(
        "Nothing scores 3.3, as what fits does. The nearest:\n"
    )
    beyond = run("history", folder, "a red cup", "--about", 0, 10)
    assert beyond.exit_code == 2
    assert (
        "nothing lies from 0 to 10 in what is searched: 10 frames, 2023-11-14 22:13:20.0 to "
        "22:13:29.0; 10 frames of earlier runs not" in beyond.stderr
    )
    wrong = run("history", folder, "cup", "--about", 5, 3)
    assert wrong.exit_code == 2 and "The second time of --about is 3, before 5." in wrong.stderr
    assert run("history", folder, " ").exit_code == 2


def test_a_stretch_of_time_is_said_so_that_it_holds_all_of_it():
    assert span_text(1.04, 2.01) == "1.0 s to 2.1 s"
    begin, end = span_text(START + 0.75, START + 0.795).split(" to ")
    assert parse_time("it", begin) <= START + 0.75
    assert parse_time("it", f"{begin[:10]} {end}") >= START + 0.795
