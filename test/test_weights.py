# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Where weights come from is told in one command, and nothing is fetched unasked."""

import shlex
import shutil
import socket
import subprocess
from pathlib import Path

import pytest
from huggingface_hub.cli.hf import app as hf
from typer.testing import CliRunner

from stream_vlm_ros.cli import app
from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import RELEASES, ModelLoadError, check_model_folder, fetch_command
from stream_vlm_ros.factory import calibration_of, default_model, load_model

SMALLEST = "Qwen/Qwen2.5-VL-3B-Instruct"
LARGER = "Qwen/Qwen2.5-VL-7B-Instruct"


@pytest.fixture(autouse=True)
def plain(monkeypatch):
    """As where the environment is active already, whatever started these tests."""
    monkeypatch.delenv("STREAM_VLM_RUN", raising=False)


@pytest.fixture
def calls(monkeypatch):
    """The addresses that are looked up or connected to; none of them answers."""
    calls = []

    def refuse(*arguments):
        calls.append(arguments)
        raise OSError("there is no network")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", lambda _, address: refuse(address))
    return calls


def parsed(command):
    """What the hub's own program takes a command for: (repository, folder)."""
    program, verb, *rest = shlex.split(command)
    assert (program, verb) == ("hf", "download")
    verb = hf.commands["download"].materialize()
    values = verb.make_context("download", rest).params
    assert not values["filenames"]
    return values["repo_id"], values["local_dir"]


@pytest.mark.parametrize(
    ("given", "repository"),
    [
        (SMALLEST, SMALLEST),
        (LARGER, LARGER),
        ("qwen/qwen2.5-vl-7b-instruct", LARGER),
        ("/models/Qwen2.5-VL-7B-Instruct", LARGER),
        ("someone/Their-Qwen2.5-VL", "someone/Their-Qwen2.5-VL"),
        ("here/Their-Qwen2.5-VL", SMALLEST),  # a folder of that name is here: no name of a hub
        ("/nowhere", SMALLEST),
        ("my models/it's here", SMALLEST),
    ],
)
def test_the_command_told_fills_the_very_folder_that_was_named(
    given, repository, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    with pytest.raises(ModelLoadError, match="nothing is downloaded") as refusal:
        check_model_folder(given)
    command = str(refusal.value).rpartition("\n")[2].strip()
    assert parsed(command) == (repository, given)


def test_a_folder_of_the_users_home_stays_one_in_the_command():
    with pytest.raises(ModelLoadError, match=f"hf download {SMALLEST} --local-dir ~/'my 7B'$"):
        check_model_folder("~/my 7B")


@pytest.mark.parametrize("here", [".", "my code", "my code/tools", "a/b/c/d/e/f"])
def test_started_through_run_sh_the_command_told_runs_from_where_the_user_is(
    here, tmp_path, monkeypatch
):
    through = tmp_path / "my code/tools/run.sh"
    through.parent.mkdir(parents=True)
    through.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    through.chmod(0o755)
    (tmp_path / here).mkdir(parents=True, exist_ok=True)
    monkeypatch.chdir(tmp_path / here)
    monkeypatch.setenv("STREAM_VLM_RUN", str(through))
    with pytest.raises(ModelLoadError) as refusal:
        check_model_folder(SMALLEST)
    command = str(refusal.value).rpartition("\n")[2].strip()
    ran = subprocess.run(command, shell=True, capture_output=True, text=True, check=True)
    assert parsed(shlex.join(ran.stdout.splitlines())) == (SMALLEST, SMALLEST)
    assert len(shlex.split(command)[0]) <= len(str(through))


@pytest.mark.parametrize(
    "arguments",
    [
        ["ask", "world:7", "What?", "--model", SMALLEST],  # not: it has no end, use --at
        ["replay", "world:7", "--end", "3", "--questions", "q.yaml", "--model", SMALLEST],
        ["demo", "--model", SMALLEST],
        ["info", SMALLEST],
        ["calibrate", SMALLEST],
    ],
    ids=lambda arguments: arguments[0],
)
def test_each_verb_answers_a_hubs_name_with_that_command_and_tries_no_network(
    arguments, tmp_path, monkeypatch, calls
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "q.yaml").write_text("questions: [{text: Is it day, at: 1}]")
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 2
    assert parsed(told.stderr.strip().rpartition("\n")[2]) == (SMALLEST, SMALLEST)
    reason, *_, command = told.stderr.splitlines()
    assert reason == f"stream-vlm: no model folder {SMALLEST}." and command.startswith("    ")
    assert max(map(len, told.stderr.splitlines()[:-1])) <= 80
    assert calls == []


def test_a_folder_of_the_users_home_is_loaded_with_its_calibration_and_without_the_network(
    tmp_path, monkeypatch, calls
):
    monkeypatch.setenv("HOME", str(tmp_path))
    shutil.copytree(default_model(), tmp_path / "model")
    own = Settings(model_path="~/model", device="cpu")
    named = Settings(history_calibration="~/model/history_calibration.json")
    checkpoint = load_model(own)
    shipped = calibration_of(Settings(), checkpoint)
    assert calibration_of(own, checkpoint) == calibration_of(named, checkpoint) == shipped
    assert calls == []


@pytest.mark.parametrize("release", RELEASES)
def test_the_page_has_the_command_that_the_error_tells(release):
    page = (Path(__file__).resolve().parents[1] / "docs/weights.md").read_text()
    folder = f"/models/{release.partition('/')[2]}"
    assert f"\n{fetch_command(folder)}\n" in page
    assert f"\nmodelscope download {release} --local-dir {folder}\n" in page
