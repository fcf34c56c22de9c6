# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What is wrong on the command line is told before heavy libraries are imported."""

import contextlib
import io
import os
import pty
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console
from rich.progress import Progress

import stream_vlm_ros
from stream_vlm_ros.progress import TimeLeft

HEAVY = ("torch", "transformers", "av", "rosbags", "cv2", "matplotlib")


MISTAKES = [
    (["ask", "/nowhere.mp4", "What?"], "There is no file /nowhere.mp4"),
    (["ask", "world:7", "What?", "--at", "3", "--model", "/nowhere"], "no model folder"),
    (["ask", "world:7", "What?", "--modle", "x"], "No such option"),
    (["replay", "world:7", "--questions", "/nowhere.yaml"], "no question file"),
    (["info", "/nowhere"], "no model folder"),
    (["rate", "/nowhere.mp4"], "There is no file /nowhere.mp4"),
    (["demo", "--seconds", "abc"], "Invalid value for '--seconds'"),
    (["demo", "--vidoe", "x"], "No such option"),
    (["demo", "--video", "/nowhere.mp4"], "There is no file /nowhere.mp4"),
    (["demo", "--model", "/nowhere"], "no model folder"),
    (["rpelay"], "No such command"),
    (["experiment", "snik"], "No such command"),
    (["experiment", "sink", "--chunsk", "3"], "No such option"),
]


def test_a_mistake_is_told_before_torch_is_imported():
    """In one process, one after the other: what the first has not loaded, no other had loaded."""
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from stream_vlm_ros.cli import app\n"
        f"for arguments, words in {MISTAKES!r}:\n"
        "    told = CliRunner().invoke(app, arguments, env={'COLUMNS': '200'})\n"
        "    assert told.exit_code == 2 and words in told.output, (arguments, told.output)\n"
        "    loaded = {'torch', 'transformers'} & sys.modules.keys()\n"
        "    assert not loaded, (arguments, loaded)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_help_imports_nothing_heavy():
    code = (
        "import sys\n"
        "import stream_vlm_ros.cli\n"
        f"print(sorted(set({HEAVY!r}) & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_options_of_every_experiment_are_told_without_anything_heavy():
    code = (
        "import sys\n"
        "from typer.testing import CliRunner\n"
        "from stream_vlm_ros.cli import app\n"
        "from stream_vlm_ros.experiments import EXPERIMENTS\n"
        "for name in EXPERIMENTS:\n"
        "    told = CliRunner().invoke(app, ['experiment', name, '--help'])\n"
        "    assert told.exit_code == 0 and '--device' in told.stdout, told\n"
        f"print(sorted(set({HEAVY!r}) & sys.modules.keys()))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


ENDS_AT_TORCH = """
import os, sys, time
from stream_vlm_ros.cli import main

class Torch:
    def find_spec(self, name, path=None, target=None):
        if name in ("torch", "matplotlib"):
            time.sleep(1)  # what is shown is drawn ten times a second
            os._exit(77)

sys.meta_path.insert(0, Torch())
main()
"""
MODEL = str(Path(stream_vlm_ros.__file__).parent / "world" / "model")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["replay", "world:7", "--questions", "q.yaml", "--end", "3"], "Starting"),
        (["info", MODEL], "Reading the checkpoint"),
        (["experiment", "sink"], "Loading the experiment"),
        (["demo-model", "evaluate"], "Asking about drawn worlds"),
    ],
)
def test_on_a_terminal_something_is_shown_before_slow_libraries_are_imported(
    arguments, words, tmp_path
):
    master, slave = pty.openpty()
    (tmp_path / "q.yaml").write_text("questions: [{text: What?, at: 1}]")
    verb = subprocess.Popen(
        [sys.executable, "-c", ENDS_AT_TORCH, *arguments],
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
        stdout=slave,
        stderr=slave,
        env={**os.environ, "TERM": "xterm", "COLUMNS": "200"},
    )
    os.close(slave)
    shown = b""
    with contextlib.suppress(OSError), open(master, "rb", buffering=0) as terminal:
        while read := terminal.read(65536):
            shown += read
    assert verb.wait(timeout=60) == 77, shown
    assert words.encode() in shown


def test_a_bar_says_how_much_time_is_left_once_that_can_be_told():
    seconds = iter(range(100))
    bar = Progress(TimeLeft(), console=Console(file=io.StringIO()), get_time=lambda: next(seconds))
    task = bar.add_task("", total=10)
    column = TimeLeft()
    assert str(column.render(bar.tasks[0])).endswith(" s")  # that have passed
    for _ in range(3):
        bar.advance(task)
    assert re.fullmatch(r"\d.* s left", str(column.render(bar.tasks[0])))


def test_ctrl_c_while_the_command_is_imported_ends_it_without_a_traceback():
    code = (
        "import os, signal, sys\n"
        "class Interrupts:\n"
        "    def find_spec(self, name, path, target=None):\n"
        "        if name == 'typer':\n"
        "            os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.meta_path.insert(0, Interrupts())\n"
        "import stream_vlm_ros.cli\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (-signal.SIGINT, "")
