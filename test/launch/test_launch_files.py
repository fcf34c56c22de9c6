# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The launch files: their arguments, and the whole system started by them."""

import os
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import Stores, get_typestore

from stream_vlm_ros.launching.arguments import DemoArguments, NodeArguments, ReplayArguments
from stream_vlm_ros.world.source import WorldSource

HERE = Path(__file__).parent
WANTED = {"image", "model", "device", "params_file", "namespace", "use_sim_time"}
WANTED |= {"web", "web_host", "web_port"}
TABLES = {
    "stream_vlm.launch.py": NodeArguments,
    "demo.launch.py": DemoArguments,
    "replay.launch.py": ReplayArguments,
}


@pytest.mark.parametrize(
    ("name", "more"),
    [
        ("stream_vlm.launch.py", {"log_level", "cameras", "engine_url"}),
        ("demo.launch.py", {"video", "rate", "seconds"}),
        ("replay.launch.py", {"bag", "questions", "out", "rate", "fail_under"}),
    ],
)
def test_the_arguments_a_user_needs_are_there(name, more):
    assert set(TABLES[name].table()) == WANTED | more


@pytest.fixture
def launch():
    """Runs ``ros2 launch stream_vlm FILE``, on machines that have it."""
    pytest.importorskip("launch_ros", reason="launch and launch_ros are not installed")
    pytest.importorskip("ros2launch", reason="ros2 launch is not installed")
    command = [sys.executable, "-c", "import sys; from ros2cli.cli import main; sys.exit(main())"]

    def run(*arguments, timeout=180):
        with started(*arguments) as process:
            try:
                output, _ = process.communicate(timeout=timeout)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                pytest.fail(f"the launch goes on:\n{process.communicate()[0]}")
        return SimpleNamespace(returncode=process.returncode, output=output)

    def started(*arguments):
        return subprocess.Popen(
            [*command, "launch", "stream_vlm", *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
            start_new_session=True,
        )

    run.start = started
    return run


def read_to(process, words):
    """What a launch says up to ``words``."""
    said = ""
    for line in process.stdout:
        said += line
        if words in line:
            return said
    pytest.fail(f"{words!r} never came:\n{said}")


def kill(process, executable):
    """Kill one of the processes that a launch started."""
    found = subprocess.run(
        ["pgrep", "--session", str(process.pid), "--full", f"lib/stream_vlm/{executable}"],
        capture_output=True,
        text=True,
        check=True,
    )
    for pid in found.stdout.split():
        os.kill(int(pid), signal.SIGKILL)


@pytest.mark.ros
@pytest.mark.parametrize("name", TABLES)
def test_show_args_lists_the_arguments_with_their_meaning(launch, name):
    shown = launch(name, "--show-args")
    assert shown.returncode == 0, shown.output
    for argument, setting in TABLES[name].table().items():
        assert f"'{argument}':" in shown.output
        assert setting.text in shown.output


@pytest.mark.ros
def test_the_demo_runs_by_launch_and_ends_by_itself(launch):
    done = launch("demo.launch.py", "seconds:=6.0", "namespace:=robot", "device:=cpu")
    assert done.returncode == 0, done.output
    assert "the node is active" in done.output and "Summary" in done.output
    assert done.output.count("has finished cleanly") == 3, done.output
    assert "Traceback" not in done.output


@pytest.mark.ros
@pytest.mark.parametrize(
    ("name", "arguments", "words"),
    [
        ("demo.launch.py", ["seconds:=abc"], "seconds must be a number, got 'abc'"),
        ("demo.launch.py", ["rate:=fast"], "rate must be a number, got 'fast'"),
        ("demo.launch.py", ["video:=/nope.mp4"], "video: There is no file /nope.mp4"),
        ("demo.launch.py", ["use_sim_time:=maybe"], "use_sim_time must be true or false"),
        ("demo.launch.py", ["model:=/nope"], "model: no model folder /nope"),
        ("stream_vlm.launch.py", ["params_file:=/nope.yaml"], "/nope.yaml cannot be read"),
        ("stream_vlm.launch.py", ["namespace:=a//b"], "namespace"),
        ("stream_vlm.launch.py", ["image:=3x"], "image"),
        ("stream_vlm.launch.py", ["log_level:=loud"], "log_level must be one of debug"),
        ("replay.launch.py", ["bag:=/nope", "questions:=/nope"], "/nope"),
    ],
)
def test_a_wrong_argument_ends_the_launch_before_anything_starts(launch, name, arguments, words):
    done = launch(name, *arguments, timeout=60)
    assert done.returncode == 1, done.output
    assert words in done.output
    assert "process started" not in done.output and "Traceback" not in done.output


@pytest.mark.ros
@pytest.mark.parametrize("executable", ["source_node", "stream_vlm_node", "client"])
def test_what_dies_in_the_demo_ends_it_with_status_1(launch, executable):
    process = launch.start("demo.launch.py", "seconds:=120", "namespace:=dying", "device:=cpu")
    said = read_to(process, "first token")
    kill(process, executable)
    said += process.communicate(timeout=60)[0]
    assert process.returncode == 1, said
    assert "exit status -9" in said


@pytest.mark.ros
def test_ctrl_c_ends_the_demo_without_a_traceback(launch):
    process = launch.start("demo.launch.py", "seconds:=120", "namespace:=ended", "device:=cpu")
    said = read_to(process, "first token")
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to all of them
    said += process.communicate(timeout=60)[0]
    assert "Traceback" not in said and "Caught exception" not in said
    for name in ("stream_vlm_node", "source_node"):
        assert f"[{name}" in said.partition("SIGINT")[2]
    assert said.count("has finished cleanly") == 2, said  # and the client: 130


@pytest.mark.ros
def test_a_demo_next_to_a_node_of_its_name_says_so(launch):
    with launch.start("stream_vlm.launch.py", "namespace:=taken", "device:=cpu") as first:
        read_to(first, "the node is active")
        second = launch("demo.launch.py", "namespace:=taken", timeout=60)
        os.killpg(first.pid, signal.SIGINT)
        first.communicate(timeout=60)
    assert second.returncode == 1
    assert "A node named /taken/stream_vlm runs already" in second.output
    assert "process started" not in second.output


@pytest.mark.ros
def test_arguments_are_laid_over_the_parameter_file(launch, tmp_path):
    given = tmp_path / "given"
    given.mkdir()
    (given / "config.json").write_text("{}")
    settings = tmp_path / "robot.yaml"
    settings.write_text(
        "/**:\n  ros__parameters:\n    model_path: /nowhere/from_file\n    device: cpu\n"
    )
    for model, expected in (("", "/nowhere/from_file"), (given, str(given))):
        process = launch.start(
            "stream_vlm.launch.py",
            f"params_file:={settings}",
            *([f"model:={model}"] if model else []),
        )
        said = read_to(process, "configure failed")
        assert expected in said.splitlines()[-1], said
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=30)


@pytest.mark.ros
def test_a_topic_of_the_argument_cameras_is_laid_over_that_of_a_parameter_file(launch, tmp_path):
    settings = tmp_path / "cameras.yaml"
    settings.write_text(
        "/**:\n  ros__parameters:\n    sources: [front, rear]\n    device: cpu\n"
        "    front:\n      image_topic: /front/from_file\n"
    )
    process = launch.start(
        "stream_vlm.launch.py", f"params_file:={settings}", "cameras:=front=/left/image_raw"
    )
    said = read_to(process, "waiting for images on")
    assert "/left/image_raw" in said.splitlines()[-1], said
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)


@pytest.fixture
def replayed(tmp_path):
    """A folder with a bag of 12 seconds of a camera, and a question."""
    pytest.importorskip("ros2bag", reason="ros2 bag is not installed")
    store = get_typestore(Stores.ROS2_JAZZY)
    time_of, header_of, image_of = (
        store.types[name]
        for name in ("builtin_interfaces/msg/Time", "std_msgs/msg/Header", "sensor_msgs/msg/Image")
    )
    with Writer(tmp_path / "bag", version=9, storage_plugin=StoragePlugin.MCAP) as writer:
        connection = writer.add_connection("/camera", image_of.__msgtype__, typestore=store)
        for frame in WorldSource(7, fps=10.0, end=12.0, size=(160, 120)):
            seconds, nanoseconds = divmod(frame.stamp_ns + 1_700_000_000 * 10**9, 10**9)
            header = header_of(stamp=time_of(seconds, nanoseconds), frame_id="camera")
            pixels = frame.image.reshape(-1)
            image = image_of(header, 120, 160, "rgb8", 0, 480, pixels)
            data = store.serialize_cdr(image, image_of.__msgtype__)
            writer.write(connection, seconds * 10**9 + nanoseconds, data)
    (tmp_path / "questions.yaml").write_text('questions: [{at: 2, text: "What do you see?"}]')
    return tmp_path


@pytest.mark.ros
def test_a_replay_by_launch_writes_report_and_answers_and_ends_by_itself(launch, replayed):
    names = {"bag": "bag", "questions": "questions.yaml", "out": "report"}
    arguments = [f"{name}:={replayed / file}" for name, file in names.items()]
    done = launch("replay.launch.py", *arguments, "image:=/camera", "device:=cpu", timeout=500)
    assert done.returncode == 0, done.output
    assert (replayed / "report" / "report.json").is_file()
    assert (replayed / "report" / "answers").is_dir()


def run_launch_test(name, **environment):
    """Run a test of launch_testing, which has a process and a runner of its own."""
    pytest.importorskip("launch_testing", reason="launch_testing is not installed")
    folder = HERE / "launch_tests"
    # For what they share; behind the package, which one of them is named like.
    paths = [os.environ.get("PYTHONPATH"), str(folder)]
    environment |= {"PYTHONUNBUFFERED": "1", "PYTHONPATH": os.pathsep.join(filter(None, paths))}
    done = subprocess.run(
        [sys.executable, "-m", "launch_testing.launch_test", folder / name],
        capture_output=True,
        text=True,
        timeout=400,
        env={**os.environ, **environment},
    )
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.ros
@pytest.mark.parametrize("name", ["stream_vlm.py", "demo.py"])
def test_by_launch_testing(name):
    run_launch_test(name)


@pytest.mark.ros
def test_the_replay_by_launch_testing(replayed):
    run_launch_test("replay.py", REPLAY=str(replayed))
