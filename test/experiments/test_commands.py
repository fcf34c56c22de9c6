# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The commands at toy sizes: what they find, and how they end."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from functools import partial

import pytest
from experiment_runs import SMALL, failed, run_experiment
from typer.testing import CliRunner

from stream_vlm_ros.cli import app
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.experiments import (
    EXPERIMENTS,
    command,
    endurance,
    native,
    options,
    record,
    shapes,
    streams,
)
from stream_vlm_ros.experiments.command import main


@pytest.fixture
def run(tmp_path):
    return partial(run_experiment, tmp_path)


def test_both_command_lines_give_an_experiment_the_same_options(monkeypatch):
    given = []
    monkeypatch.setattr(command, "run", lambda options: given.append(vars(options)) or 0)
    for arguments in (
        *([name] for name in EXPERIMENTS),
        ["caps", "--caps", "100", "150", "--layout", "continuous", "--fps", "0.5"],
        ["sink", "--chunk-frames", "3", "--shape", "toy"],
        ["policies", "--policies", "+ both", "sink + window", "--fresh", "--caps", "0.5"],
        ["curves", "--over", "rate", "length", "--rates", "0.5", "8", "--repeats", "2"],
    ):
        assert command.main(arguments) == 0
        result = CliRunner().invoke(app, ["experiment", *arguments])
        assert result.exit_code == 0, result.output
        ours, theirs = given[-1], given[-2]
        assert ours == theirs, arguments


def test_the_options_name_every_shape_setting_level_and_policy_that_there_is():
    assert options.SHAPES == shapes.SHAPES
    assert (*streams.SETTINGS,) == options.SETTINGS
    assert (*endurance.LEVELS,) == options.LEVELS
    assert options.POLICIES == streams.POLICIES


def test_model_source_and_folder_come_from_the_environment_where_no_option_says_so(
    tmp_path, monkeypatch, capsys
):
    for name, value in {
        "QWEN_MODEL_PATH": "/nowhere",
        "VIDEO_PATH": "synthetic:112x84",
        "REPORT_PATH": str(tmp_path / "report"),
    }.items():
        monkeypatch.setenv(name, value)
    assert main(["sink", "--device", "cpu"]) == 2
    assert "/nowhere" in capsys.readouterr().err
    assert main(["sink", "--shape", "toy", "--device", "cpu", "--min-sink", "20"]) == 0
    found = json.loads((tmp_path / "report" / "sink.json").read_text())
    assert found["source"]["size"] == "112x84"
    for name in EXPERIMENTS:
        assert options.parser_of(name).parse_args([]).out == str(tmp_path / "report")


SHORT = ["--chunks", 60, "--young", 30, "--stretch", 2, "--turns", 3]
AT_LEISURE = ["--max-ratio", 1e9, "--max-mib", 1e9]  # times and memory are not the point here


@pytest.mark.parametrize("layout", ["segmented", "continuous"])
def test_after_many_chunks_positions_and_keys_are_those_reckoned_from_scratch(run, layout):
    status, found = run("endurance", *SHORT, *AT_LEISURE, "--layout", layout)
    assert (status, failed(found)) == (0, [])
    assert len(found["summary"]) == 4  # level 1 and all levels, two position policies
    far, near = (
        found["summary"][f"all levels, {policy}"]["last_position"]
        for policy in ("keep_gaps", "contiguous")
    )
    if layout == "continuous":
        # 15 text tokens, then 2 positions a second from the first grid to the 60th.
        assert far == 15 + 2 * 59 + 1
    assert near < far


def test_positions_that_are_off_are_found(run, monkeypatch):
    from stream_vlm_ros.engine.cache.ledger import PositionLedger

    parts = PositionLedger.parts

    def astray(self, *levels):
        for start, stop, offset in parts(self, *levels):
            t, h, w = offset
            yield start, stop, type(offset)(t + (self.evicted >= 200), h, w)

    monkeypatch.setattr(PositionLedger, "parts", lambda *given: [*astray(*given)])
    status, found = run("endurance", *SHORT, *AT_LEISURE, "--positions", "contiguous")
    assert status == 1
    assert failed(found) == [
        "level 1, contiguous: positions exact at the end",
        "level 1, contiguous: keys as rotated in float64",
        "all levels, contiguous: positions exact at the end",
        "all levels, contiguous: keys as rotated in float64",
    ]


def test_keys_that_are_off_are_found_though_the_counts_are_right(run, monkeypatch):
    from stream_vlm_ros.engine.cache.buffer import KVBuffer

    rotate = KVBuffer.rotate_base

    def astray(self, rotary, slots, shifts, frame):
        further = shifts.by.copy()
        further[1:, 0] += 1  # not the sink
        return rotate(self, rotary, slots, shifts._replace(by=further), frame)

    monkeypatch.setattr(KVBuffer, "rotate_base", astray)
    status, found = run("endurance", *SHORT, *AT_LEISURE, "--positions", "contiguous")
    assert status == 1
    assert failed(found) == ["all levels, contiguous: keys as rotated in float64"]


def test_policies_ask_the_same_of_all_and_go_on_where_they_stood(run, capsys):
    few = ["--max-pixels", 16_800, "--videos", 1, "--seconds", 160, "--caps", 0.5, "--moments", 2,
           "--each", 1, "--layouts", "continuous"]  # fmt: skip
    status, found = run("policies", *few, "--minutes", 0)
    assert (status, found["rows"]) == (0, [])
    status, found = run("policies", *few, "--policies", "last 4 frames", "+ both")
    rows = {row["key"]: row for row in found["rows"]}
    assert status == 0 and len(rows) == 3  # "+ both" under two position policies
    asked = {tuple((kind, age) for kind, age, _ in row["results"]) for row in rows.values()}
    assert len(asked) == 1 and len(asked.pop()) > 10
    both = next(row for row in rows.values() if row["policy"] == "+ both")
    assert set(both["grids_by_level"]) == {"sink", "sampled", "important", "window"}
    assert both["length"] <= both["cap"] == both["history_tokens"] // 2
    capsys.readouterr()
    status, found = run("policies", *few)
    assert "3 streams are there already, 11 to go" in capsys.readouterr().out
    assert any(
        note.startswith("3 streams") and note.endswith("come from earlier runs.")
        for note in found["notes"]
    )
    assert status == 0 and len(found["rows"]) == 14  # 6 policies under two, 2 that evict nothing
    assert all(entry["passed"] is None for entry in found["criteria"])  # random weights


def left_by_an_earlier_run(folder, name):
    """Its record and its page; what is there is to be compared with what they return."""
    (folder / f"{name}.json").write_text(json.dumps({"experiment": name, "status": "passed"}))
    (folder / f"{name}.md").write_text("# What was found")
    return lambda: {file.name: file.read_bytes() for file in folder.iterdir()}


def said_in_a_sentence(capsys):
    """What stands on stderr: one line in words."""
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("stream-vlm: ")
    return line


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("long-video", ["--source", "nowhere.mp4"], "nowhere.mp4"),
        ("long-video", ["--cap", 10], "max_cache_tokens"),
        ("long-video", ["--size", "12"], "640x480"),
        ("caps", ["--min-pixels", 10**9], "min_pixels"),
        ("native", ["--attention", "best"], "--attention best"),
        ("periodic", ["--frames", 40, "--every", 11], "too few to be asked every 11"),
        ("endurance", ["--cap", 0], "--cap 0"),
    ],
)
def test_input_that_cannot_be_used_is_one_line_and_what_was_found_before_stays(
    tmp_path, capsys, name, arguments, says
):
    folder = left_by_an_earlier_run(tmp_path, name)
    before = folder()
    assert main([name, *SMALL, "--out", str(tmp_path), *map(str, arguments)]) == 2
    assert says in said_in_a_sentence(capsys)
    assert folder() == before


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_a_number_out_of_its_range_is_refused(name):
    parser = options.parser_of(name)
    for action in parser._actions:
        if action.dest not in options.RANGES or action.type not in (int, float):
            continue
        flag, allowed = action.option_strings[0], options.RANGES[action.dest]
        below = allowed.least if allowed.above else allowed.least - 1
        for value in map(action.type, (below, 10 * allowed.most + 1)):
            says = re.escape(f"{flag} {value} is out of its range: {allowed}")
            with pytest.raises(InvalidParameterError, match=says):
                options.settle(parser.parse_args([flag, str(value)]))
        options.settle(parser.parse_args([flag, str(action.type(allowed.most))]))


@pytest.mark.parametrize(
    "wrong", [["--threads", -1], ["--seed", 2**64], ["--chunk-frames", 2, 0], ["--first-text", -1]]
)
def test_a_number_out_of_its_range_ends_it_before_a_model_is_loaded(
    wrong, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(command.Context, "model", property(lambda self: pytest.fail("loaded")))
    folder = left_by_an_earlier_run(tmp_path, "sink")
    before = folder()
    assert main(["sink", *map(str, wrong), "--out", str(tmp_path)]) == 2
    assert f"{wrong[0]} {wrong[-1]} is out of its range" in said_in_a_sentence(capsys)
    assert folder() == before


@pytest.mark.parametrize(
    ("name", "flag"),
    [("sink", "--fps"), ("long-video", "--max-gb"), ("periodic", "--max-ttft"),
     ("time-order", "--min-right"), ("endurance", "--max-ratio")],
)  # fmt: skip
def test_what_is_no_number_is_refused_and_passes_nothing(name, flag, tmp_path, capsys):
    assert main([name, flag, "nan", "--out", str(tmp_path / "new")]) == 2
    assert flag in said_in_a_sentence(capsys)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("place", ["file", "file/below"])
def test_a_place_that_cannot_be_written_to_is_refused_before_anything_is_loaded(
    place, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(command.Context, "model", property(lambda self: pytest.fail("loaded")))
    (tmp_path / "file").write_text("mine")
    assert main(["sink", *SMALL, "--out", str(tmp_path / place)]) == 2
    assert "is no folder to write to" in said_in_a_sentence(capsys)
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    "unusable", [["--model", "/nope"], ["--device", "cuda:99"], ["--size", "12"]]
)
def test_what_never_begins_writes_nothing(tmp_path, capsys, unusable):
    out = tmp_path / "experiments"
    assert main(["sink", *unusable, "--out", str(out)]) == 2
    said = capsys.readouterr()
    assert not out.exists() and "Written" not in said.out
    assert said.err.startswith("stream-vlm: ") and "Traceback" not in said.err


@pytest.mark.parametrize("at", ["sink.json", "sink.md"])
def test_a_disk_that_is_full_ends_it_with_a_sentence(tmp_path, monkeypatch, capsys, at):
    whole = record.write_whole

    def full(path, data):
        if path.name == at:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        whole(path, data)

    monkeypatch.setattr(record, "write_whole", full)
    assert main(["sink", *SMALL, "--chunks", "2", "--out", str(tmp_path)]) == 2
    assert "cannot be written to: No space left on device" in said_in_a_sentence(capsys)


def test_an_empty_out_is_refused_before_anything_is_loaded(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["sink", *SMALL, "--out", ""]) == 2
    assert capsys.readouterr().err.startswith("stream-vlm: --out is empty")
    assert list(tmp_path.iterdir()) == []


def test_it_runs_where_only_torch_and_transformers_are_installed(tmp_path):
    absent = [
        "typer",
        "pydantic",
        "av",
        "rosbags",
        "mcap",
        "zstandard",
        "lz4",
        "cv2",
        "rclpy",
        "matplotlib",
    ]
    code = (
        f"import sys\nsys.modules.update(dict.fromkeys({absent!r}))\n"
        "from stream_vlm_ros.experiments.command import main\n"
        f"sys.exit(main(['long-video', *{SMALL!r}, '--frames', '8', '--out', {str(tmp_path)!r},"
        " '--max-new-tokens', '2']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "No plots" in (tmp_path / "long-video.md").read_text()


def test_a_time_limit_ends_it_as_ctrl_c_does_and_what_was_found_is_kept(run, monkeypatch):
    whole, before = native.offline_pass, signal.getsignal(signal.SIGTERM)

    def ended_behind(*arguments):
        found = whole(*arguments)
        os.kill(os.getpid(), signal.SIGTERM)
        return found

    monkeypatch.setattr(native, "offline_pass", ended_behind)
    status, found = run("native", "--frames", 4, "--max-new-tokens", 2)
    assert (status, found["status"], found["notes"][-1]) == (130, "broken off", "Interrupted.")
    assert [(row["run"], row["frames"]) for row in found["rows"]] == [("offline", 4)]
    assert signal.getsignal(signal.SIGTERM) is before
