# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``stream-vlm calibrate``: a recording's questions, the file it writes, and what it refuses."""

import json

import numpy as np
import pytest
import yaml
from PIL import Image
from toy_qwen import save_checkpoint, toy_model
from typer.testing import CliRunner

from stream_vlm_ros.cli import app
from stream_vlm_ros.errors import CalibrationError
from stream_vlm_ros.history.calibration import Calibration
from stream_vlm_ros.replay.calibrate import RecordingFilm
from stream_vlm_ros.replay.questions import load_questions
from stream_vlm_ros.sources import open_source


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_checkpoint(tmp_path_factory.mktemp("model"), toy_model())


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A minute and a quarter at two pictures a second."""
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for number in range(150):
        picture = rng.integers(0, 255, (28, 56, 3), np.uint8)
        Image.fromarray(picture).save(folder / f"{number / 2:07.1f}.png")
    return folder


def questions(tmp_path, entries):
    file = tmp_path / "questions.yaml"
    file.write_text(yaml.safe_dump({"questions": entries}))
    return file


def cups(count, **changes):
    entry = {"text": "Where was the cup?", "at": 70, "expect": "left", "evidence": [20, 24]}
    entry |= changes
    return [{key: entry[key] for key in entry if entry[key] is not None} for _ in range(count)]


def run(*arguments):
    return CliRunner().invoke(app, ["calibrate", *(str(argument) for argument in arguments)])


def test_evidence_that_can_be_seen_before_the_question_is_what_shows_it(tmp_path, pictures):
    entries = [
        {"text": "One?", "at": 70, "expect": "left", "evidence": [20, 24]},
        {"text": "Two?", "at": "end", "expect": "left", "evidence": [[30, 31], [3, 5]]},
        {"text": "Cut off?", "at": 33, "expect": "left", "evidence": [[3, 5], [30, 40], [50, 51]]},
        {"text": "Never?", "at": 50, "expect": "Not seen"},
        {"text": "Nothing said?", "at": 50, "expect": "left"},
        {"text": "Again?", "every": 10, "expect": "left", "evidence": [20, 24]},
    ]
    asked = load_questions(questions(tmp_path, entries)).questions
    film = RecordingFilm(open_source(pictures, fps=2.0), asked, ["not seen"])
    told = {probe.text: (probe.at, probe.evidence, probe.wanted) for probe in film.probes}
    assert told == {
        "One?": (70, ((20, 24),), "newest"),
        "Two?": (float("inf"), ((3, 5), (30, 31)), "all"),
        "Cut off?": (33, ((3, 5), (30, 33)), "all"),
        "Never?": (50, (), "newest"),
    }
    assert film.left_out == 2
    assert all(probe.shown == probe.evidence for probe in film.probes)
    stamps = [at for _, at in film.frames()]
    assert stamps[:3] == [0.0, 0.5, 1.0] and len(stamps) == 150


def test_a_question_file_without_evidence_is_refused(tmp_path, pictures):
    file = questions(tmp_path, [{"text": "What?", "at": 9, "expect": "left"}])
    asked = load_questions(file).questions
    with pytest.raises(CalibrationError, match="no question says by 'evidence' when"):
        RecordingFilm(open_source(pictures), asked, ["not seen"])


def test_a_recording_is_calibrated_on_and_the_file_fits_the_checkpoint(
    tmp_path, checkpoint, pictures, monkeypatch
):
    monkeypatch.setenv("COLUMNS", "80")
    entries = cups(9) + cups(1, expect="not seen", evidence=None) + cups(1, evidence=None)
    file, out = questions(tmp_path, entries), tmp_path / "made.json"
    result = run(checkpoint, pictures, "--questions", file, "--out", out, "--heads", 2)
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.replace(str(out), "").splitlines())) <= 80
    assert f"Written: {out}" in result.stdout
    assert "75 grids, 10 questions" in result.stdout
    assert "1 question without evidence" in " ".join(result.stdout.split())
    assert result.stdout.count("taken") == 2
    found = Calibration.load(out)
    found.check_fits(toy_model())
    assert len(found.heads) == 2 and found.grid_tokens == 2 and found.seconds_per_grid == 1.0
    assert found.made_with["questions"] == 10 and found.made_with["grids"] == 75
    again = run(checkpoint, pictures, "--questions", file, "--out", out, "--json")
    told = json.loads(again.stdout)
    assert told["file"] == str(out) and len(told["calibration"]["heads"]) == 3
    assert Calibration.load(out).threshold == told["calibration"]["threshold"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["{pictures}"], "has no questions: give a file of questions with evidence by --questions"),
        (["--questions", "{questions}"], "--questions belongs to a recording"),
        (["{pictures}", "--questions", "{empty}"], "no question says by 'evidence'"),
        (["{pictures}", "--questions", "{few}"], "75 grids (of two frames) and 2 questions"),
        (["{pictures}/none.mp4", "--questions", "{few}"], "none.mp4"),
        (["world:7", "--questions", "{few}"], "world:7 has no end: name a recording"),
        (["--worlds", "9"], "--worlds is 9: there are 3 for calibration"),
        (["--out", "{mine}"], "mine.json is there already and no calibration of this program"),
        (["--out", "{mine}/x.json"], "There is no folder"),
        (["--size", "3"], "3"),
    ],
)
def test_what_cannot_be_calibrated_on_is_refused_in_words(
    tmp_path, checkpoint, pictures, arguments, said
):
    mine = tmp_path / "mine.json"
    mine.write_text("{}")
    names = {"pictures": pictures, "mine": mine}
    contents = {"questions": cups(9), "few": cups(2), "empty": cups(3, evidence=None)}
    for name, entries in contents.items():
        (tmp_path / name).mkdir()
        names[name] = questions(tmp_path / name, entries)
    result = run(checkpoint, *(argument.format(**names) for argument in arguments))
    assert result.exit_code == 2, result.output
    assert said in " ".join(result.stderr.split())
    assert mine.read_text() == "{}"
    assert not (checkpoint / "history_calibration.json").exists()


def test_a_folder_that_is_no_checkpoint_is_refused_before_anything_else(tmp_path):
    result = run(tmp_path / "none")
    assert result.exit_code == 2 and "no model folder" in result.stderr
