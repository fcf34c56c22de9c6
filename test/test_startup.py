# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What is wrong on the command line is told before heavy libraries are imported."""

import os
import subprocess
import sys

import pytest

HEAVY = ("torch", "transformers", "av", "rosbags", "cv2", "matplotlib")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["ask", "/nowhere.mp4", "What?"], "There is no file /nowhere.mp4"),
        (["ask", "world:7", "What?", "--at", "3", "--model", "/nowhere"], "no model folder"),
        (["ask", "world:7", "What?", "--modle", "x"], "No such option"),
        (["replay", "world:7", "--questions", "/nowhere.yaml"], "no question file"),
        (["info", "/nowhere"], "no model folder"),
        (["demo", "--seconds", "abc"], "Invalid value for '--seconds'"),
        (["demo", "--vidoe", "x"], "No such option"),
        (["demo", "--video", "/nowhere.mp4"], "There is no file /nowhere.mp4"),
        (["demo", "--model", "/nowhere"], "no model folder"),
        (["rpelay"], "No such command"),
        (["experiment", "snik"], "No such command"),
    ],
)
def test_a_mistake_is_told_before_torch_is_imported(arguments, words):
    code = (
        "import atexit, sys\n"
        "from stream_vlm_ros.cli import main\n"
        f"sys.argv[1:] = {arguments!r}\n"
        "slow = {'torch', 'transformers'}\n"
        "atexit.register(lambda: print('loaded:', sorted(slow & sys.modules.keys())))\n"
        "main()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**os.environ, "COLUMNS": "200"},
    )
    assert done.returncode == 2 and words in done.stdout + done.stderr
    assert "loaded: []" in done.stdout


def test_the_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "import stream_vlm_ros.cli\n"
        f"print(sorted(set({HEAVY!r}) & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
