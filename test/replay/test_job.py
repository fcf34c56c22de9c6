# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""From a source to a report: what is written, resumed, compared and failed."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import foxglove_layout
import pytest
from PIL import Image
from rich.console import Console
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore
from typer.testing import CliRunner

from stream_vlm_ros.cli import app
from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.replay import session_bag
from stream_vlm_ros.replay.command import diff, fails, run_job, settings_of
from stream_vlm_ros.replay.comparison import compare, mcnemar, paired_difference
from stream_vlm_ros.replay.report import ReportError, read_report, without_times
from stream_vlm_ros.replay.summary import wilson

from .conftest import BASE, KnownSource, real_engine

ROOT = Path(__file__).resolve().parents[2]


def test_the_report_is_written_in_four_forms_that_agree(make_job):
    job = make_job(settings_of(BASE, None, ["small:max_cache_tokens=64", "layout=segmented"]))
    report = job.run()
    assert [run["name"] for run in report["runs"]] == [
        "streaming",
        "small",
        "streaming,layout=segmented",
    ]
    assert read_report(job.out) == json.loads(json.dumps(report))
    accuracy = report["runs"][0]["summary"]["accuracy"]
    assert accuracy["judged"] == 2

    page = (job.out / "report.html").read_text()
    assert "&lt;Known&gt; &amp; simple" in page
    assert page.count("<svg") >= 5
    assert "data:image/jpeg;base64," in page
    assert not re.search(r'(src|href)="(?!data:|#)', page)  # nothing is loaded from elsewhere
    text = (job.out / "report.md").read_text()
    assert f"{accuracy['right']} of 2" in text
    assert "small against streaming" in text
    assert "### Read (3 answers merged)" in text

    suites = ElementTree.parse(job.out / "junit.xml").getroot()
    assert len(suites) == 3
    first = suites[0]
    wrong = 2 - accuracy["right"]
    assert (first.get("failures"), first.get("skipped")) == (str(wrong), "1")
    thumbnail = report["runs"][0]["answers"][0]["thumbnail"]
    with Image.open(job.out / thumbnail) as picture:
        assert picture.size == (84, 56)


def test_answers_about_what_came_live_are_not_those_of_the_next_time(make_job, monkeypatch):
    monkeypatch.setattr(KnownSource, "live", True)
    assert not make_job(interrupt_at=9, out="parts").run()["complete"]
    asked = []

    def counting(settings):
        engine = real_engine()
        ask, choose = engine.ask, engine.ask_choice
        engine.ask = lambda text, *a, **k: asked.append(text) or ask(text, *a, **k)
        engine.ask_choice = lambda text, *a, **k: asked.append(text) or choose(text, *a, **k)
        return engine

    assert make_job(out="parts", engine=counting).run()["complete"]
    assert len(asked) == 5


@pytest.mark.parametrize("out", ["q.yaml", "q.yaml/report"])
def test_a_file_in_the_place_of_the_reports_folder_is_refused_before_the_replay(make_job, out):
    with pytest.raises(InvalidParameterError, match=r"q\.yaml is a file: name a folder"):
        make_job(out=out)


def test_a_replay_that_was_interrupted_goes_on_and_ends_as_if_it_had_not_been(make_job):
    whole = make_job(out="whole").run()
    partial_job = make_job(interrupt_at=9, out="parts")
    partial = partial_job.run()
    assert partial_job.interrupted
    assert partial["complete"] is False
    assert read_report(partial_job.out)["runs"][0]["complete"] is False
    assert "Partial" in (partial_job.out / "report.html").read_text()
    before = {a["id"] for a in partial["runs"][0]["answers"]}
    assert before == {"q001", "read@2", "q002"}

    asked = []

    def counting():
        engine = real_engine()
        ask, choose = engine.ask, engine.ask_choice
        engine.ask = lambda text, *a, **k: asked.append(text) or ask(text, *a, **k)
        engine.ask_choice = lambda text, *a, **k: asked.append(text) or choose(text, *a, **k)
        return engine

    resumed = make_job(out="parts", engine=lambda settings: counting()).run()
    assert without_times(resumed) == without_times(whole)
    assert asked == ["Read", "Read"]  # at 4 s and 6 s; the others were known

    def never(settings):
        raise AssertionError("a finished run was run again")

    again = make_job(out="parts", engine=never).run()
    assert without_times(again["runs"]) == without_times(whole["runs"])


def test_other_settings_take_nothing_from_an_earlier_replay(make_job):
    make_job().run()
    made = []
    other = [Settings(max_cache_tokens=100, max_new_tokens=5)]
    make_job(other, engine=lambda s: made.append(s) or real_engine()).run()
    assert len(made) == 1


def test_an_engine_that_fails_in_the_middle_leaves_the_rest_in_the_report(make_job):
    small = Settings(name="tiny")
    job = make_job((BASE, small), engine=lambda s: real_engine(s, 20 if s.name else 100))
    report = job.run()
    assert report["complete"] is False
    assert report["runs"][1]["error"]["code"] == "CAP_TOO_SMALL"
    assert "tiny ended early" in (job.out / "report.html").read_text()


def test_the_console_tells_what_was_not_asked_and_what_was_not_judged(make_job):
    told = Console(record=True, width=40)
    run_job(make_job(settings_of(BASE, None, ["small:max_cache_tokens=64"])), None, told)
    lines = told.export_text().splitlines()
    for run in ("streaming", "small"):  # 14 frames of half a second; "read" is asked at 2, 4, 6 s
        assert (
            f"{run}: 1 of 6 questions lie after the end and were not asked (last frame at 6.5 s)"
            in lines
        )
        assert f"{run}: 3 of 5 answers not judged" in lines


def test_a_source_of_which_no_frame_can_be_used_fails(make_job, capsys):
    job = make_job()
    report = job.run()
    assert run_job(job, None, Console()) == 0
    report["runs"][0]["frames"]["ingested"] = 0
    assert fails(report, None, Console())
    assert "no frame of the source could be used" in capsys.readouterr().out


def test_a_bag_holds_images_and_answers_on_one_time_line(make_job):
    job = make_job(bag=True)
    report = job.run()
    store = get_typestore(Stores.ROS2_JAZZY)
    for name in ("TimeSpan", "MemoryLevel", "HistoryTier", "CacheStatus", "Evidence", "Answer"):
        text = (ROOT / "msg" / f"{name}.msg").read_text()
        store.register(get_types_from_msg(text, f"stream_vlm/msg/{name}"))
    said, pictures, lengths = [], [], []
    with Reader(job.out / "bag") as reader:
        kinds = {c.topic: c.msgtype for c in reader.connections}
        for connection, stamp, data in reader.messages():
            message = store.deserialize_cdr(data, connection.msgtype)
            if connection.topic == "/stream_vlm/answer":
                said.append((stamp, message.text))
            elif connection.topic == "/cam/compressed":
                pictures.append(stamp)
            elif connection.topic == "/stream_vlm/cache_status":
                lengths.append(message.length)
    run = report["runs"][0]
    answered = [a for a in run["answers"] if a["status"] == "answered"]
    assert said == [(a["stamp_ns"], a["answer"]) for a in answered]
    assert pictures == [1_700_000_000 * 10**9 + i * 500_000_000 for i in range(14)]
    assert lengths == [entry["cache_length"] for entry in run["series"]]
    assert kinds["/diagnostics"] == "diagnostic_msgs/msg/DiagnosticArray"
    assert kinds["/rosout"] == "rcl_interfaces/msg/Log"
    for topic, _, field in (path.partition(".") for path in foxglove_layout.paths()):
        fields = [name for name, _ in store.fielddefs[kinds[topic]][1]]
        assert not field or field in fields


@pytest.mark.parametrize(
    "name", ["Answer", "CacheStatus", "Evidence", "HistoryTier", "MemoryLevel", "TimeSpan"]
)
def test_the_bags_definitions_are_those_of_the_package(name):
    folder = Path(session_bag.__file__).with_name("interfaces")
    assert (folder / f"{name}.txt").read_text() == (ROOT / "msg" / f"{name}.msg").read_text()


def test_two_reports_are_compared_question_by_question(make_job, tmp_path):
    job = make_job()
    report = job.run()
    other = json.loads(json.dumps(report))
    for answer in other["runs"][0]["answers"]:
        if answer["right"] is not None:
            answer["right"] = not answer["right"]
        if "times" in answer:
            answer["times"] = {key: value + 1 for key, value in answer["times"].items()}
    (tmp_path / "other.json").write_text(json.dumps(other))
    difference = diff(str(job.out), str(tmp_path / "other.json"))
    accuracy = difference["accuracy"]
    assert len(accuracy["only_a_right"]) + len(accuracy["only_b_right"]) == 2
    assert accuracy["significant"] is False
    ttft = difference["times"]["ttft"]
    assert ttft["difference"] == pytest.approx(1.0)
    out = CliRunner().invoke(app, ["report", "diff", str(job.out), str(tmp_path / "other.json")])
    assert out.exit_code == 0
    assert "may be chance" in out.output
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ReportError, match="not a report"):
        read_report(tmp_path / "other.json")


@pytest.mark.parametrize(
    "runs", [None, 5, {}, [5], [{}], [{"name": "x", "answers": 5}], [{"answers": [{"id": 1}]}]]
)
def test_a_report_without_its_parts_is_refused_when_it_is_compared(tmp_path, runs):
    told = {"schema": "stream_vlm.replay.report", "version": 1}
    (tmp_path / "report.json").write_text(
        json.dumps(told if runs is None else told | {"runs": runs})
    )
    with pytest.raises(ReportError):
        diff(str(tmp_path), str(tmp_path))


def test_questions_behind_the_end_are_not_compared(make_job):
    run = make_job().run()["runs"][0]
    answers = [answer for answer in run["answers"] if answer["status"] == "answered"]
    late = dict(answers[-1], id="late", status="not_reached", answer="", right=None, times={})
    other = {**run, "answers": [*answers, late]}
    found = compare(other, other)
    assert found["common"] == found["same_words"] == len(answers)
    assert found["only_in_a"] == found["only_in_b"] == 0


def test_significance_agrees_with_the_textbook():
    # Binomial, two-sided: 1 against 9 of 10 is 2 * (1 + 10) / 1024.
    assert mcnemar(1, 9) == pytest.approx(22 / 1024)
    assert mcnemar(5, 5) == 1.0
    assert mcnemar(0, 0) is None
    # Wilson's interval for 8 of 10, from its closed form.
    assert wilson(8, 10) == pytest.approx((0.490162, 0.943318), abs=1e-5)
    same = paired_difference([1.0, 2.0, 3.0, 4.0], [1.1, 1.9, 3.1, 3.9])
    assert same["significant"] is False
    slower = paired_difference([1.0] * 12, [1.5] * 12)
    assert slower["significant"] is True


def test_the_verb_exits_by_the_share_of_right_answers(write_questions, tmp_path):
    path = write_questions(
        "questions: [{text: Which, at: 2, choices: [left, right], expect: [left, right]}]"
    )
    arguments = ["replay", "world:1", "--questions", str(path), "--end", "3"]
    options = ["--engine", "max_pixels=12544", "--device", "cpu", "--out", str(tmp_path / "r")]
    result = CliRunner().invoke(app, [*arguments, *options, "--fail-under", "1"])
    assert result.exit_code == 0, result.output
    assert "100.0 % (1 of 1)" in result.output
    report = read_report(tmp_path / "r")
    (run,) = report["runs"]
    assert report["times"]["command"].startswith(f"stream-vlm replay world:1 --questions {path}")
    assert (
        run["model"]["name"] == "the small model of the package, which knows only its drawn world"
    )
    assert (run["model"]["dtype"], run["model"]["device"]) == ("float32", "cpu")
    assert re.fullmatch("[0-9a-f]{64}", run["model"]["digest"])
    assert run["summary"]["by_type"] == {}  # the question names none
    path = write_questions("questions: [{text: Which, at: 2, expect: certainly not this}]")
    result = CliRunner().invoke(app, [*arguments, *options, "--fail-under", "0.5"])
    assert result.exit_code == 1
    assert "wanted at least 50 %" in result.output
    result = CliRunner().invoke(app, ["replay", "world:1", "--questions", str(path)])
    assert result.exit_code == 2


@pytest.mark.parametrize(
    "change",
    ["temperature=nan", "fps=inf", "fps=1e-300", "chunk_frames=1000000000000", "seed=1" + 40 * "0",
     "seed=" + 5000 * "9", "keep_fps=-inf", "max_new_tokens=1e9", 5000 * "x", 5000 * "x" + "=1"],
)  # fmt: skip
def test_a_setting_out_of_all_range_is_refused_in_a_few_words(change):
    with pytest.raises(InvalidParameterError) as caught:
        BASE.changed(change)
    assert len(str(caught.value)) < 1500


def test_log_probabilities_that_a_node_does_not_tell_are_refused_in_real_time(make_job):
    settings = (Settings(token_logprobs=True),)
    with pytest.raises(InvalidParameterError, match="--token-logprobs works only"):
        make_job(settings, run_live=lambda *given: None)
