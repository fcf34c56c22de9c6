# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What a report says of the machine, and how many threads are taken of it."""

import datetime
import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

import stream_vlm_ros
from stream_vlm_ros import machine
from stream_vlm_ros.config import Settings
from stream_vlm_ros.factory import load_model
from stream_vlm_ros.machine import measured_on, processor_name, revision, threads_to_take


@pytest.mark.parametrize(
    ("told", "name"),
    [
        ("processor\t: 0\nmodel name\t: Maker X: 3 GHz\nprocessor\t: 1\nmodel name\t: Y\n",
         "Maker X: 3 GHz"),
        ("processor\t: 0\nBogoMIPS\t: 50\n", "aarch64"),
        (None, "aarch64"),
    ],
)  # fmt: skip
def test_the_processor_is_named_by_its_maker_or_its_architecture(monkeypatch, told, name):
    def read_text(path):
        if told is None:
            raise FileNotFoundError(path)
        return told

    monkeypatch.setattr(Path, "read_text", read_text)
    monkeypatch.setattr(platform, "processor", lambda: "")
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    assert processor_name() == name


def test_results_say_when_where_beside_what_load_and_with_which_versions(monkeypatch):
    class Version(str):  # as torch's own is
        pass

    monkeypatch.setattr(os, "getloadavg", lambda: (1.23456, 2.0, 0.1))
    tool = ModuleType("tool")
    tool.__version__ = Version("2.13.0+cpu")
    head = json.loads(json.dumps(measured_on(tool)))
    assert head == {
        "date": datetime.date.today().isoformat(),
        "machine": processor_name(),
        "cores": os.cpu_count(),
        "load_average": [1.23, 2.0, 0.1],
        "python": ".".join(map(str, sys.version_info[:3])),
        "tool": "2.13.0+cpu",
        "stream_vlm": stream_vlm_ros.__version__,
    }
    assert type(measured_on(tool)["tool"]) is str


def test_the_machine_is_told_with_pythons_own_library_alone():
    code = (
        "import sys; import stream_vlm_ros.machine\n"
        "print({name.split('.')[0] for name in sys.modules} & "
        "{'torch', 'numpy', 'rich', 'matplotlib', 'transformers', 'jinja2', 'yaml', 'rclpy'})"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"


def module_in(folder, monkeypatch):
    """Let the module stand in a package of ``folder``; its folder."""
    package = folder / "stream_vlm_ros"
    package.mkdir()
    monkeypatch.setattr(machine, "__file__", str(package / "machine.py"))
    return package


def test_an_installed_copy_says_the_revision_that_it_was_built_from(tmp_path, monkeypatch):
    package = module_in(tmp_path, monkeypatch)
    # A repository further up is somebody else's: of the robot, or of the whole workspace.
    subprocess.run(["git", "init", "-q", str(tmp_path.parent)], check=True)
    assert revision() is None
    (package / "revision.txt").write_text("0.1.0-3-gabc-dirty\n")
    assert revision() == "0.1.0-3-gabc-dirty"


def test_a_checkout_says_its_commit_and_whether_it_was_changed(tmp_path, monkeypatch):
    package = module_in(tmp_path, monkeypatch)
    (package / "machine.py").write_text("1")

    def git(*arguments):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x.x"]
        return subprocess.run([*command, *arguments], check=True, capture_output=True, text=True)

    git("init", "-q")
    assert revision() is None  # no commit yet
    git("add", ".")
    git("commit", "-qm", "x")
    commit = git("rev-parse", "HEAD").stdout.strip()
    assert revision() == commit[:12]
    (package / "machine.py").write_text("2")
    assert revision() == f"{commit[:12]}-dirty"


@pytest.mark.parametrize(("said", "cores", "threads"), [(None, 4, 3), (None, 1, 1), ("2", 8, None)])
def test_a_core_is_left_unless_the_user_says_how_many_threads(monkeypatch, said, cores, threads):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if said is not None:
        monkeypatch.setenv("OMP_NUM_THREADS", said)
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    assert threads_to_take() == threads
    engaged = []
    monkeypatch.setattr("torch.set_num_threads", engaged.append)
    load_model(Settings(device="cpu"))
    assert engaged == ([] if threads is None else [threads])
