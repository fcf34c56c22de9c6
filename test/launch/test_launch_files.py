"""The launch files: their arguments, and the whole system started by them."""

import ast
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

LAUNCH = Path(__file__).parents[2] / "launch"
WANTED = {"image", "model", "device", "params_file", "namespace", "use_sim_time"}


def declared(name):
    """The keys of ARGUMENTS in a launch file, read without launch."""
    for statement in ast.parse((LAUNCH / name).read_text()).body:
        if isinstance(statement, ast.Assign) and statement.targets[0].id == "ARGUMENTS":
            return {ast.literal_eval(key) for key in statement.value.keys}
    raise AssertionError(f"{name} has no ARGUMENTS")


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("stream_vlm.launch.py", set()),
        ("demo.launch.py", {"video", "seconds"}),
        ("replay.launch.py", {"bag", "questions", "out", "rate", "fail_under"}),
    ],
)
def test_the_arguments_a_user_needs_are_declared(name, more):
    assert declared(name) >= WANTED | more


@pytest.fixture
def launch():
    """Runs ``ros2 launch stream_vlm FILE``, on machines that have it."""
    pytest.importorskip("launch_ros", reason="launch and launch_ros are not installed")
    pytest.importorskip("ros2launch", reason="ros2 launch is not installed")
    command = [sys.executable, "-c", "import sys; from ros2cli.cli import main; sys.exit(main())"]

    def run(*arguments, timeout=180):
        return subprocess.run(
            [*command, "launch", "stream_vlm", *arguments],
            capture_output=True,
            text=True,
            timeout=timeout,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )

    run.command = command
    return run


@pytest.mark.ros
@pytest.mark.parametrize("name", ["stream_vlm.launch.py", "demo.launch.py", "replay.launch.py"])
def test_show_args_lists_the_arguments_with_their_meaning(launch, name):
    shown = launch(name, "--show-args")
    assert shown.returncode == 0, shown.stderr
    for argument in declared(name):
        assert f"'{argument}':" in shown.stdout


@pytest.mark.ros
def test_the_demo_runs_by_launch_and_ends_by_itself(launch):
    done = launch("demo.launch.py", "seconds:=6.0", "namespace:=robot", "device:=cpu")
    everything = done.stdout + done.stderr
    assert done.returncode == 0, everything
    assert "the node is active" in everything and "Summary" in everything
    assert everything.count("has finished cleanly") == 3, everything
    assert "Traceback" not in everything


@pytest.mark.ros
def test_arguments_are_laid_over_the_parameter_file(launch, tmp_path):
    settings = tmp_path / "robot.yaml"
    settings.write_text(
        "/**:\n  ros__parameters:\n    model_path: /nowhere/from_file\n    device: cpu\n"
    )
    for model, expected in (("", "/nowhere/from_file"), ("/nowhere/given", "/nowhere/given")):
        process = subprocess.Popen(
            [
                *launch.command,
                *["launch", "stream_vlm", "stream_vlm.launch.py"],
                f"params_file:={settings}",
                *([f"model:={model}"] if model else []),
            ],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        )
        said = []
        deadline = time.monotonic() + 90
        for line in process.stdout:
            said.append(line)
            if "configure failed" in line or time.monotonic() > deadline:
                break
        process.send_signal(signal.SIGINT)
        said += process.communicate(timeout=30)[0].splitlines(keepends=True)
        assert any("configure failed" in line and expected in line for line in said), "".join(said)
