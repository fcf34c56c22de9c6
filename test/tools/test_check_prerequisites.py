# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The first thing that make does: say in one line what the machine lacks."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "tools" / "check_prerequisites.sh"
APT_LINE = "    sudo apt-get install -y "
TOOLS = ("sh", "uname", "c++", "cmake", "make")


def fake_python(version="3.12.3", modules=("venv", "ensurepip"), headers=True):
    """A stand-in that answers the script's three questions to a Python as asked here."""
    return f"""#!/bin/sh
case "$*" in
    --version) echo "Python {version}" ;;
    *version_info*) [ "{version}" != 3.8.10 ] ;;
    *ensurepip*) [ "{len(modules)}" = 2 ] ;;
    *Python.h*) [ "{headers}" = True ] ;;
esac
"""


@pytest.fixture
def check(tmp_path):
    """Run the script on a machine that has just the named tools and this Python."""

    def run(tools=TOOLS, python=None, ros=False):
        folder = tmp_path / "bin"
        folder.mkdir()
        for name in tools:
            command = "echo x86_64" if name == "uname" else "exit 0"
            if name == "uname":
                command = '[ "$1" = -s ] && echo Linux || echo x86_64'
            target = folder / name
            if name == "sh":
                target.symlink_to("/bin/sh")
            else:
                target.write_text(f"#!/bin/sh\n{command}\n")
                target.chmod(0o755)
        if python:
            (folder / "python3").write_text(python)
            (folder / "python3").chmod(0o755)
        environment = {"PATH": str(folder)}
        if ros:
            environment["ROS_DISTRO"] = "jazzy"
        return subprocess.run(
            ["/bin/sh", str(SCRIPT), "python3", *(["ros"] if ros else [])],
            env=environment,
            capture_output=True,
            text=True,
        )

    return run


def apt_line(result):
    assert result.returncode == 1
    lines = [line for line in result.stderr.splitlines() if line.startswith(APT_LINE)]
    assert len(lines) == 1
    return lines[0].removeprefix(APT_LINE).split()


def test_a_complete_machine_passes_silently(check):
    result = check(python=fake_python())
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_a_bare_machine_gets_one_line_with_everything(check):
    assert apt_line(check(tools=("sh", "uname", "make"))) == [
        "python3",
        "python3-venv",
        "python3-dev",
        "g++",
        "cmake",
    ]


def test_the_packages_that_debian_splits_off_python_are_named(check):
    python = fake_python(modules=("venv",), headers=False)
    assert apt_line(check(python=python)) == ["python3-venv", "python3-dev"]


def test_an_old_python_is_refused_with_the_way_out(check):
    result = check(python=fake_python(version="3.8.10"))
    assert result.returncode == 1
    assert "Python 3.8.10" in result.stderr
    assert "make PYTHON=" in result.stderr


def test_with_an_installed_ros_colcon_is_asked_for(check):
    assert apt_line(check(python=fake_python(), ros=True)) == ["python3-colcon-common-extensions"]


@pytest.mark.skipif(os.environ.get("STREAM_VLM_INSTALLED") != "1", reason="make test runs it")
def test_this_machine_passes():
    result = subprocess.run(
        ["/bin/sh", str(SCRIPT), sys.executable], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
