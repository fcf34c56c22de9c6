# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The executables that colcon installs say what is missing, whatever it is, in a line to act on."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

TEMPLATE = Path(__file__).resolve().parents[2] / "tools" / "executable.in"


@pytest.fixture
def run(tmp_path):
    """Run an executable whose program is this text; stream_vlm_ros is a stand-in."""

    def with_program(program, package="stream_vlm_ros"):
        folder = tmp_path / package
        folder.mkdir()
        (folder / "__init__.py").write_text("")
        (folder / "program.py").write_text(program)
        executable = tmp_path / "executable"
        text = TEMPLATE.read_text().replace("@STREAM_VLM_PYTHON@", sys.executable)
        executable.write_text(text.replace("@EXECUTABLE_MODULE@", "stream_vlm_ros.program"))
        executable.chmod(0o755)
        # -S: nothing that is installed here, and so no other stream_vlm_ros.
        python = tmp_path / "python"
        python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} -S "$@"\n')
        python.chmod(0o755)
        environment = {"PATH": os.environ["PATH"], "STREAM_VLM_PYTHON": str(python)}
        return subprocess.run(
            [str(executable), "--one"], env=environment, capture_output=True, text=True
        )

    return with_program


def test_the_program_runs_with_its_arguments(run):
    done = run("import sys; print(__name__, sys.argv[1:])")
    assert (done.returncode, done.stdout) == (0, "__main__ ['--one']\n")


@pytest.mark.parametrize("name", ["torch", "typer", "rich", "av", "rclpy"])
def test_any_missing_requirement_is_named_with_the_interpreter(run, name):
    done = run(f"import {name}.part")
    assert done.returncode == 1
    assert done.stderr.startswith(f"{name} is not installed for /")
    assert "STREAM_VLM_PYTHON=" in done.stderr and "Traceback" not in done.stderr


def test_without_the_package_its_setup_is_asked_for(run):
    done = run("", package="other")
    assert done.returncode == 1
    assert done.stderr == "stream_vlm_ros cannot be imported: source install/setup.bash first.\n"


def test_a_module_missing_from_the_package_itself_is_a_fault_and_shown(run):
    done = run("import stream_vlm_ros.nowhere")
    assert done.returncode == 1
    assert "Traceback" in done.stderr and "stream_vlm_ros.nowhere" in done.stderr
