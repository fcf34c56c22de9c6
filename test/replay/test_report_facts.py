# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What a report says of where its answers come from: model, source, memory, evidence, judge."""

from __future__ import annotations

import hashlib
import shlex
import subprocess
from html.parser import HTMLParser

import pytest
from PIL import Image

from stream_vlm_ros.history import DelayedBatchInferenceEngine
from stream_vlm_ros.replay.records import where_held
from stream_vlm_ros.replay.report import command_line, read_report
from stream_vlm_ros.replay.summary import place_of_evidence, realtime_factor, summary_of
from stream_vlm_ros.replay.time_line import Bar, TimeLine

from .conftest import real_model

EVIDENCE = """
questions:
  - {text: Seen?, at: 3, evidence: 1, expect: x, id: before}
  - {text: Seen?, at: 3, evidence: [2, 3], expect: "3", judge: {number: {within: 1}}, id: during}
  - {text: Seen?, at: 3, evidence: [[0, 0.5], [1, 1]], expect: x, judge: {contains: {all: true}}}
"""


@pytest.fixture(autouse=True)
def no_plots(make_job, monkeypatch):
    """They take most of a short replay's time; test_plots.py looks at them."""
    monkeypatch.setattr("stream_vlm_ros.replay.rendering.plots_of", lambda runs, failed: [])


class Texts(HTMLParser):
    """The texts of a page, one a line."""

    def __init__(self, page):
        super().__init__()
        self.found = []
        self.feed(page)

    def handle_data(self, data):
        self.found.append(data.strip())


# -- the source ----------------------------------------------------------------------------------


def sha256sum(*files, folder):
    told = subprocess.run(["sha256sum", *files], cwd=folder, capture_output=True, check=True)
    return told.stdout


def test_the_digest_of_a_file_and_of_a_folder_is_what_sha256sum_says(make_job, tmp_path):
    folder = tmp_path / "drive"
    folder.mkdir()
    (folder / ".directory").touch()  # of the desktop's
    for name in ("b.mcap", "a.mcap"):
        (folder / name).write_bytes(name.encode() * 1000)
    one = make_job(spec=str(folder / "a.mcap")).run()
    assert one["source"]["digest"] == sha256sum("a.mcap", folder=folder).split()[0].decode()
    many = make_job(spec=str(folder), out="other").run()
    listed = sha256sum("a.mcap", "b.mcap", folder=folder)
    assert many["source"]["digest"] == hashlib.sha256(listed).hexdigest()
    texts = Texts((tmp_path / "other" / "report.html").read_text()).found
    assert f"SHA-256 {many['source']['digest']}" in texts


def test_what_is_no_file_has_no_digest(make_job):
    assert make_job(spec="world:7").run()["source"]["digest"] is None


@pytest.mark.parametrize(
    "argument, shown",
    [
        ("rtsp://admin:pass@cam.local:554/live", "rtsp://cam.local:554/live"),
        ("rtsp://admin:p@ss w@cam.local/live?token=abc#x", "rtsp://cam.local/live"),
        ("ffplay -i http://me:pw@host/a?key=b --to a@b", "ffplay -i http://host/a --to a@b"),
        ("drive@home.mcap", "drive@home.mcap"),
    ],
)
def test_the_command_line_of_a_report_has_no_secrets(argument, shown):
    assert command_line(["replay", argument]) == shlex.join(["stream-vlm", "replay", shown])


def test_frames_that_somebody_let_go_on_purpose_are_not_lost():
    drops = {"sampling": 9, "inactive": 8, "paused": 7, "reset": 6, "overflow": 2, "player_late": 1}
    run = {"answers": [], "series": [], "times": {}, "frames": {"ingested": 5, "drops": drops}}
    assert summary_of(run)["lost"] == 3


# -- the model -----------------------------------------------------------------------------------


def test_an_engine_that_is_not_ours_is_named_and_nothing_made_up_of_it(make_job):
    done = make_job()
    (run,) = done.run()["runs"]
    assert [*run["model"]] == ["name"] and "knows only its drawn world" in run["model"]["name"]
    assert run["model"]["name"] in Texts((done.out / "report.html").read_text()).found


# -- the memory ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "evidence, where, words",
    [
        ([[8.0, 9.0]], "window", "in the window"),
        ([[7.0, 8.5]], "window", "in the window"),
        ([[1.0, 1.0]], "memory", "in memory, before the window"),
        ([[4.0, 5.0]], "history", "in the history alone"),
        ([[2.5, 2.6]], "forgotten", "forgotten"),
        ([[2.5, 2.6], [0.0, 0.5]], "memory", "in memory, before the window"),
        ([], None, None),
    ],
)
def test_evidence_is_told_by_the_nearest_place_that_holds_any_of_it(evidence, where, words):
    seen, held = [[0.0, 2.0], [8.0, 9.0]], {"window": [[8.0, 9.0]], "history": [[3.0, 9.0]]}
    assert where_held(evidence, seen, held) == where
    record = {} if where is None else {"evidence_held": where}
    assert place_of_evidence(record) == words


def test_evidence_in_the_history_alone_is_not_said_to_be_forgotten_by_a_node():
    # A node tells what is in its memory, not what its history holds.
    assert place_of_evidence({"evidence_in_memory": False}) == "not in memory"


def test_a_question_that_gets_no_answer_has_what_was_held(make_job):
    questions = "questions: [{text: Seen?, at: 3, max_new_tokens: 100000, expect: x, evidence: 1}]"
    (answer,) = make_job(questions=questions).run()["runs"][0]["answers"]
    assert answer["status"] == "error"
    assert answer["seen"] and answer["held"]["window"] and answer["held"]["history"] == []
    assert answer["evidence_held"] in ("window", "memory", "forgotten")


def test_frames_kept_for_a_batch_are_memory_and_in_no_window(make_job):
    def engine(settings):
        return DelayedBatchInferenceEngine(*real_model(), "cpu")

    questions = "questions: [{text: Seen?, at: 3, expect: x, evidence: 1}, {text: Seen?, at: 6}]"
    first, last = make_job(questions=questions, engine=engine).run()["runs"][0]["answers"]
    assert first["held"] == last["held"] == {"window": [], "history": []}
    assert first["evidence_held"] == "memory"
    # What was encoded for this question, not for the one before it.
    assert first["seen"][-1][1] <= 3.0 < last["seen"][-1][1]


def test_the_time_line_shows_each_place_over_the_sources_time():
    answer = {"at": 5.0, "seen": [[0.0, 1.0], [4.0, 5.0]], "evidence": [[2.0, 20.0]]}
    answer["held"] = {"window": [[4.0, 5.0]], "history": [[0.0, 4.0]]}
    assert TimeLine(0.0, 10.0).bars(answer) == [
        Bar("forgotten", 0.0, 50.0),
        Bar("history", 0.0, 40.0),
        Bar("memory", 0.0, 10.0),
        Bar("memory", 40.0, 10.0),
        Bar("window", 40.0, 10.0),
        Bar("evidence", 20.0, 80.0),
        Bar("asked", 50.0, 0.5),
    ]
    assert TimeLine(0.0, 10.0).bars({"at": 5.0}) == []  # not reached


def test_the_page_has_a_line_for_each_question_that_was_asked(make_job):
    done = make_job()
    answers = done.run()["runs"][0]["answers"]
    page = (done.out / "report.html").read_text()
    # Five were asked: once in the overview, and once with the question.
    assert page.count('<svg class="held') == 10
    stretches = sum(len(one["held"]["window"]) for one in answers if "held" in one)
    assert stretches and page.count('<rect class="window"') == 1 + 2 * stretches  # and the legend


# -- evidence and judge --------------------------------------------------------------------------


def test_the_picture_of_evidence_is_the_frame_in_its_middle(make_job):
    done = make_job(questions=EVIDENCE)
    before, during, twice = done.run()["runs"][0]["answers"]
    assert [one["at"] for one in before["evidence_pictures"]] == [1.0]
    # What goes on after the question is shown by the part before it, 2 to 3 s.
    assert [one["at"] for one in during["evidence_pictures"]] == [2.5]
    assert [one["at"] for one in twice["evidence_pictures"]] == [0.5, 1.0]
    for answer in (before, during):
        (one,) = answer["evidence_pictures"]
        with Image.open(done.out / one["path"]) as picture:
            # The known source's frame k, of every half second, is as bright as 10 + 7 k.
            assert picture.getpixel((5, 5))[0] == pytest.approx(10 + 7 * 2 * one["at"], abs=2)
    assert "the evidence, at 0:00.5, 0:01.0" in (done.out / "report.html").read_text()


def test_the_picture_of_evidence_is_of_the_camera_that_is_asked(make_job):
    questions = "questions: [{text: Seen?, at: 3, evidence: 1, camera: /%s}]"
    for index, camera in enumerate(("left", "right")):
        done = make_job(
            questions=questions % camera,
            out=camera,
            source_options={"cameras": ("left", "right")},
        )
        (answer,) = done.run()["runs"][0]["answers"]
        (one,) = answer["evidence_pictures"]
        assert (answer["camera"], one["at"]) == (camera, 1.0)
        assert one["path"] == f"thumbnails/1-evidence-{index}-1000.jpg"
        assert [*done.out.glob("thumbnails/*evidence*")] == [done.out / one["path"]]


def test_a_resumed_replay_has_the_pictures_of_its_evidence(make_job):
    make_job(questions=EVIDENCE, interrupt_at=9).run()
    done = make_job(questions=EVIDENCE)
    for answer in done.run()["runs"][0]["answers"]:
        for one in answer["evidence_pictures"]:
            assert (done.out / one["path"]).exists()


def test_the_page_says_how_each_answer_was_judged(make_job):
    done = make_job(questions=EVIDENCE)
    done.run()
    assert read_report(done.out)["runs"][0]["answers"][1]["judge_options"] == {"within": 1}
    text = " ".join(Texts((done.out / "report.html").read_text()).found)
    assert "judged by exact: x" in text
    assert "judged by number (within 1): 3" in text
    assert "judged by contains (all): x" in text


# -- figures -------------------------------------------------------------------------------------


def test_the_realtime_factor_is_video_over_encoding_after_the_first_chunk():
    series = [
        {"at": 1.5, "closed_seconds": 0.0, "times": {"latency": 9.0}},
        {"at": 3.5, "closed_seconds": 0.0, "times": {"latency": 0.5}},
        {"at": 105.5, "closed_seconds": 100.0, "times": {"latency": 0.3}},
    ]
    assert realtime_factor(series) == pytest.approx((2.0 + 2.0) / 0.8)
    assert realtime_factor(series[:1]) is None
    assert realtime_factor([]) is None
    assert realtime_factor([*series, {"at": 107.5, "closed_seconds": 0.0, "times": {}}]) is None
