# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""make removes what make has made, and nothing else."""

import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "remove_made.sh"
MADE = {
    ".venv": ".created-wheels",
    "build": ".sources",
    "install": "COLCON_IGNORE",
    "log": "COLCON_IGNORE",
}


def make(folder, name, mark=None):
    (folder / name).mkdir()
    (folder / name / "file").write_text("x")
    if mark:
        (folder / name / mark).touch()


def run(folder):
    return subprocess.run([SCRIPT, folder], capture_output=True, text=True, check=False)


def test_what_make_has_made_is_removed_and_other_files_stay(tmp_path):
    for name, mark in MADE.items():
        make(tmp_path, name, mark)
    make(tmp_path, "src")
    assert run(tmp_path).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["src"]


@pytest.mark.parametrize("name", MADE)
def test_a_folder_of_somebody_elses_is_left_alone_and_everything_with_it(tmp_path, name):
    for other, mark in MADE.items():
        make(tmp_path, other, None if other == name else mark)
    done = run(tmp_path)
    assert done.returncode == 1
    assert f"/{name} was not made by make" in done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(MADE)
    assert (tmp_path / name / "file").exists()


def test_an_environment_whose_making_broke_off_is_removed(tmp_path):
    make(tmp_path, ".venv", ".made_by_make")
    assert run(tmp_path).returncode == 0
    assert not (tmp_path / ".venv").exists()


def test_of_a_link_only_the_link_is_removed(tmp_path):
    make(tmp_path, "elsewhere")
    (tmp_path / ".venv").symlink_to(tmp_path / "elsewhere")
    assert run(tmp_path).returncode == 0
    assert [path.name for path in tmp_path.iterdir()] == ["elsewhere"]
    assert (tmp_path / "elsewhere" / "file").exists()
