# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""docs/experiments.md says what the results hold, and runs to come land where it looks for them."""

import argparse
import json
import re
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from stream_vlm_ros.experiments import EXPERIMENTS, reference
from stream_vlm_ros.experiments.command import parser
from stream_vlm_ros.experiments.model_under_test import ModelUnderTest
from stream_vlm_ros.experiments.options import settle
from stream_vlm_ros.experiments.pictures import parse_size

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
PAGE = (ROOT / "docs" / "experiments.md").read_text()


@pytest.fixture(scope="module")
def page(load):
    return load(ROOT / "bench" / "experiments_page.py")


@pytest.fixture(scope="module")
def bench(load):
    return load(ROOT / "bench" / "experiments_gpu.py")


@pytest.fixture
def results(tmp_path, page):
    """A copy of the results; ``change(run, ...)`` changes one of them and returns the page then."""
    for file in RESULTS.glob("*/**/*.json"):
        if file.relative_to(RESULTS).parts[0] in (page.GPU, page.SMALL, "periodic_small"):
            copy = tmp_path / file.relative_to(RESULTS)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(file, copy)

    def change(run, edit, of=None):
        found = json.loads((tmp_path / page.GPU / f"{of or run}.json").read_text())
        edit(found)
        path = tmp_path / page.GPU / f"{run}.json"
        path.parent.mkdir(exist_ok=True)
        path.write_text(json.dumps(found))
        return page.with_results(PAGE, tmp_path)

    return change


def row(text, what):
    (line,) = (line for line in text.splitlines() if line.startswith(f"| {what} |"))
    return line


def finding(text, what):
    """One of the points below the table, on one line."""
    begin = text.index(f"- **{what}")
    return " ".join(text[begin:].split("\n- ")[0].split("<!--")[0].split())


def test_the_page_equals_the_results(page):
    assert page.with_results(PAGE, RESULTS) == PAGE, "run: make docs"


def test_the_references_figures_are_those_that_the_experiments_compare_with():
    counts = reference.LONG_VIDEO_COUNTS
    text = PAGE.partition("## The reference's long video")[2].partition("\n## ")[0]
    for name, value in counts.items():
        if name != "length at the end":  # the cap
            assert f"{value:,}" in text, name
    costs = row(PAGE, "B, long video")
    for name in ("peak allocated, GiB", "reserved, GiB", "whole run, s", "TTFT, s"):
        assert reference.LONG_VIDEO_COSTS[name] in costs, name


@pytest.mark.parametrize(
    ("run", "part", "name", "value"),
    [
        ("native-720p/native", "settings", "frames", 12),
        ("native-720p/native", "source", "size", "112x84"),
        ("long-video/long-video", "settings", "memory_gib", None),
        ("sink/sink", "model", "name", "shape toy"),
        ("sink/sink", "machine", "device", "CPU"),
        ("caps/caps", "settings", "as_", "product"),
    ],
)
def test_a_result_of_another_configuration_than_the_page_names_is_refused(
    results, run, part, name, value
):
    with pytest.raises(ValueError, match=f"^{run} was run with "):
        results(run, lambda found: found[part].update({name: value}))


def test_a_run_that_did_not_pass_is_told_so(results):
    text = results("sink/sink", lambda found: found.update(status="failed"))
    assert row(text, "A, sink").endswith("sink.md) (failed) |")


def test_the_control_measured_again_is_told_as_what_it_found(results):
    def again(found):
        found["model"]["parameters"] = 3_754_622_976  # without padding, as it is counted now
        found["summary"]["out_of_memory_at_chunk"] = 49
        found["status"] = "passed"

    text = results("no-eviction/long-video", again)
    assert row(text, "its control").endswith(
        "[out of memory at chunk 49, with 258,718 tokens]"
        "(../bench/results/experiments_3b/no-eviction/long-video.md) |"
    )
    told = finding(text, "The control")
    # 258,718 of 262,144 tokens of 36,864 bytes were taken: 9 GiB.
    assert told.endswith(
        "lasts 9 chunks longer. It ends where its buffer is full: one of 18 GiB would have to "
        "stand next to its 9 GiB while they are copied."
    )
    first, later = finding(text, "Peaks").split(" Measured later, in a process of their own: ")
    assert first.endswith("`native-1080p-48` and `long-video`.")
    assert "`no-eviction`" in later and "`no-eviction`" not in first


def of_96_frames(tries, offline, peaks):
    """A result in which the offline pass ran out in ``tries``, and ended with ``offline`` frames;
    the streams' peaks by their frames."""

    def edit(found):
        found["settings"]["frames"] = 96
        found["rows"] = [{"run": "offline", "frames": n, "out_of_memory": "no"} for n in tries]
        streams = [{"frames": frames, "peak_gib": peak} for frames, peak in peaks.items()]
        found["summary"] = {"streamed": streams[0], "streamed_as_offline": streams[-1]}
        ended = {"frames": offline, "peak_gib": 20.0}
        found["summary"]["native"] = ended if offline else None

    return edit


@pytest.mark.parametrize(
    ("tries", "offline", "peaks", "ours", "told"),
    [
        (
            [96], 48, {96: 14.0, 48: 11.5},
            "offline out of memory with 96, 20.00 GiB with 48; streamed 14.00 with 96, 11.50 with "
            "48",
            "With 96 it did, and ended with every 2nd; the stream took them all.",
        ),
        (
            [96, 48], 24, {96: 14.0, 24: 9.5},
            "offline out of memory with 96 and 48, 20.00 GiB with 24; streamed 14.00 with 96, 9.50 "
            "with 24",
            "With 96 it did, and ended with every 4th; the stream took them all.",
        ),
        (
            [96, 48, 24], None, {96: 14.0},
            "offline out of memory with 96, 48 and 24 frames; streamed 14.00 GiB",
            "With 96 it did, and with every 2nd and every 4th, too.",
        ),
        (
            [], 96, {96: 14.0},
            "offline 20.00 GiB, streamed 14.00",
            "Nor with 96: so every 2nd was tried by tests alone.",
        ),
    ],
)  # fmt: skip
def test_the_ladder_is_told_as_it_ended(results, tries, offline, peaks, ours, told):
    edit = of_96_frames(tries, offline, peaks)
    text = results("native-1080p-96/native", edit, of="native-1080p-48/native")
    assert f"| [{ours}](" in row(text, "the ladder")
    assert finding(text, "The offline pass did not run out").endswith(told)


def test_what_is_not_measured_is_named(page, tmp_path, results):
    (tmp_path / page.GPU / "sink" / "sink.json").unlink()
    text = page.with_results(PAGE, tmp_path)
    assert row(text, "A, sink").endswith("| not measured yet (`sink`) |")


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("periodic", "periodic_small/periodic"),
        ("caps", "experiments_small/caps"),
        ("curves", "experiments_small/curves"),
    ],
)
def test_a_command_on_the_page_is_what_its_result_was_run_with(name, result):
    (line,) = re.findall(
        rf"\$ python -m stream_vlm_ros\.experiments ({name} --source world:.*)", PAGE
    )
    given = parser().parse_args(shlex.split(line))
    settle(given)
    settings = json.loads((RESULTS / f"{result}.json").read_text())["settings"]
    for key in {*settings} - {"device", "threads"}:
        have = getattr(given, key)
        assert (str(have) if isinstance(have, list) else have) == settings[key], key


# -- the runs to come ------------------------------------------------------------------------------


def test_every_run_on_a_gpu_has_the_configuration_and_the_place_that_the_page_names(page, bench):
    assert {*bench.RUNS} == {*page.RUNS}
    options = argparse.Namespace(out=Path("out"), device="cuda", shape="3b", small=False)
    for name, row in page.RUNS.items():
        given = parser().parse_args(bench.command_of(name, options))
        settle(given)
        assert f"{given.out}/{given.experiment}" == f"out/{row.run}"
        assert given.experiment in EXPERIMENTS
        kind, _, size = given.source.partition(":")
        assert kind == ("world" if name == "time-order" else "synthetic")
        usual = (640, 480) if kind == "world" else (1920, 1080)
        have = {**vars(given), "size": "x".join(map(str, parse_size(size or None) or usual))}
        for key, wanted in row.settings.items():
            told = have[key] if isinstance(wanted, (int, float, type(None))) else str(have[key])
            assert told == wanted, f"{name}: {key}"
        assert given.shape == (None if row.run in page.TRAINED else "3b")


def test_runs_land_where_the_page_looks_for_them(bench, page, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(ModelUnderTest, "load", ModelUnderTest.load)  # it is put back at the end
    names = ["no-eviction", "native-1080p-96", "sink"]
    small = ["--device", "cpu", "--shape", "toy", "--small", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["experiments_gpu.py", *small, "--only", *names])
    status = bench.main()
    found = {
        name: json.loads((tmp_path / f"{page.RUNS[name].run}.json").read_text())["status"]
        for name in names
    }
    assert status == any(one != "passed" for one in found.values())
    del found["native-1080p-96"]  # which of two toys is faster is not the point here
    assert {*found.values()} == {"passed"}
    said = capsys.readouterr().out
    assert "refused" not in said and "not there" not in said


def test_a_run_that_is_refused_is_told_beside_what_an_earlier_one_left(
    bench, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(ModelUnderTest, "load", ModelUnderTest.load)
    (tmp_path / "sink").mkdir()
    left = {"experiment": "sink", "status": "passed", "seconds": 1.0}
    (tmp_path / "sink" / "sink.json").write_text(json.dumps(left))
    arguments = ["--device", "nowhere", "--shape", "toy", "--only", "sink", "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["experiments_gpu.py", *arguments])
    assert bench.main() == 1
    assert "sink was refused" in capsys.readouterr().out
    assert json.loads((tmp_path / "sink" / "sink.json").read_text()) == left
