# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A replay writes over nothing that no replay has made, and removes nothing before its time."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from rosbags.rosbag2 import Reader
from typer.testing import CliRunner

from stream_vlm_ros import owned
from stream_vlm_ros.cli import app
from stream_vlm_ros.replay.command import settings_of
from stream_vlm_ros.replay.report import WRITES, read_report

from .conftest import BASE, real_engine

QUESTIONS = "questions: [{text: Which, at: 2, expect: x}]"


def everything(folder: Path) -> dict[str, tuple]:
    """Each path below ``folder``: what it is, and what it holds; links are not followed."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_symlink():
            found[str(path.relative_to(folder))] = ("link", os.readlink(path))
        else:
            found[str(path.relative_to(folder))] = (
                ("folder",) if path.is_dir() else ("file", path.read_bytes())
            )
    return found


def refused(*arguments: str) -> str:
    """What ``stream-vlm replay`` says as it refuses to start."""
    result = CliRunner().invoke(app, ["replay", *arguments])
    assert result.exit_code == 2, result.output
    return result.output


@pytest.fixture
def here(tmp_path, monkeypatch, write_questions):
    """The working folder, with a question file."""
    write_questions(QUESTIONS)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_recording_named_bag_is_not_replaced_by_the_bag_of_its_own_replay(here):
    (here / "bag").mkdir()
    (here / "bag" / "bag_0.mcap").write_bytes(b"an hour of driving")
    before = everything(here)
    said = refused("bag", "--questions", "q.yaml", "--out", ".", "--bag")
    assert "bag would be overwritten, but bag is an input" in said
    assert everything(here) == before


def test_an_empty_out_is_refused_and_the_working_folder_stays_as_it_is(here):
    before = everything(here)
    assert "--out is empty" in refused(
        "world:1", "--questions", "q.yaml", "--out", "", "--end", "3"
    )
    assert everything(here) == before


@pytest.mark.parametrize("what", ["folder", "file", "link", "link to nothing"])
def test_whatever_stands_where_the_bag_would_go_is_left_alone_if_it_is_none_of_ours(here, what):
    (here / "mine").mkdir()
    (here / "mine" / "notes.txt").write_text("mine")
    if what == "folder":
        (here / "mine").rename(here / "bag")
    elif what == "file":
        (here / "bag").write_text("mine")
    else:
        (here / "bag").symlink_to(here / ("mine" if what == "link" else "nothing"))
    before = everything(here)
    said = refused("world:1", "--questions", "q.yaml", "--out", ".", "--end", "3", "--bag")
    words = {"folder": "bag holds notes.txt", "file": "bag is a file"}
    assert words.get(what, "bag is a link") in said
    assert everything(here) == before


@pytest.mark.parametrize("name", WRITES)
def test_files_of_the_users_that_bear_the_reports_names_are_not_written_over(here, name):
    (here / name).write_text("mine")
    before = everything(here)
    said = refused("world:1", "--questions", "q.yaml", "--out", ".", "--end", "3")
    assert f". holds {name}, which this program did not put there" in said
    assert everything(here) == before


def test_other_files_may_stand_in_the_reports_folder_and_stay_there(make_job, tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "answers").write_text("of ros2 bag record")
    make_job().run()
    make_job().run()
    assert (tmp_path / "report" / "answers").read_text() == "of ros2 bag record"
    assert read_report(tmp_path / "report")["complete"]


@pytest.mark.parametrize("read", ["the bag", "a file of the bag", "the questions", "the folder"])
def test_what_is_read_is_not_written_over_even_if_it_is_ours(make_job, here, read):
    make_job(bag=True).run()
    report = here / "report"
    before = everything(report)
    bag = ["--out", "report", "--bag", "--questions", "q.yaml"]
    if read == "the bag":
        said = refused("report/bag", *bag)
    elif read == "a file of the bag":
        said = refused("report/bag/bag.mcap", *bag)
    elif read == "the questions":
        said = refused("world:1", "--questions", "report/report.json", "--out", "report")
    else:
        said = refused("report", "--questions", "q.yaml", "--out", "report")
    assert "name another" in said or "report.json" in said
    assert everything(report) == before


def test_a_report_from_before_the_mark_is_taken_up(make_job):
    job = make_job()
    job.run()
    (job.out / owned.MARK).unlink()

    def never(settings):
        raise AssertionError("a finished run was run again")

    assert make_job(engine=never).run()["complete"]
    assert owned.kind_of(job.out) == "report"
    (job.out / owned.MARK).unlink()
    (job.out / "report.json").unlink()  # it was killed before its end: a journal, and no report
    assert make_job(engine=never).run()["complete"]


def test_links_in_the_reports_folder_are_not_followed(make_job, tmp_path):
    job = make_job()
    job.run()
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "1-0001.jpg").write_bytes(b"mine")
    (mine / "file").write_text("mine")
    before = everything(mine)
    shutil.rmtree(job.out / "thumbnails")
    (job.out / "thumbnails").symlink_to(mine)
    with pytest.raises(owned.NotOursError, match="thumbnails is not a folder of this program"):
        make_job(resume=False)
    (job.out / "thumbnails").unlink()
    for name in ("report.json", "report.html", "junit.xml"):
        (job.out / name).unlink()
        (job.out / name).symlink_to(mine / "file")
    again = make_job(resume=False)
    again.run()
    assert again.failed == {} and not (job.out / "report.html").is_symlink()
    (job.out / "journal.jsonl").unlink()
    (job.out / "journal.jsonl").symlink_to(mine / "file")
    report = make_job(resume=False).run()
    assert report["runs"][0]["error"]["code"] == "JOURNAL"
    assert everything(mine) == before


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
@pytest.mark.parametrize("name", ["journal.jsonl", "report.json"])
def test_what_cannot_be_written_is_told_before_a_model_is_loaded(make_job, tmp_path, make, name):
    (tmp_path / "report").mkdir()
    owned.mark(tmp_path / "report", "report")
    make(tmp_path / "report" / name)
    loaded = []
    with pytest.raises(owned.NotOursError, match=f"{name} is a folder, a pipe or a device"):
        make_job(engine=loaded.append).run()
    assert not loaded


def test_two_replays_do_not_write_into_one_folder(make_job):
    job = make_job()
    with (
        owned.held(job.out, "report"),
        pytest.raises(owned.NotOursError, match="in use by another process"),
    ):
        job.run()
    assert make_job().run()["complete"]


def test_a_replay_that_does_not_begin_leaves_no_folder(make_job):
    def no_model(settings):
        from stream_vlm_ros.errors import ModelLoadError

        raise ModelLoadError("no model")

    job = make_job(engine=no_model, out="deep/report")
    with pytest.raises(Exception, match="no model"):
        job.run()
    assert not job.out.exists()


# -- the bag takes its place at the end ----------------------------------------------------------


def messages(folder: Path) -> int:
    with Reader(folder) as reader:
        return reader.message_count


def test_each_run_has_its_bag_and_the_next_replay_replaces_them(make_job):
    runs = settings_of(BASE, None, ["small:max_cache_tokens=70"])
    job = make_job(runs, bag=True)
    job.run()
    bags = [job.out / "bag", job.out / "bag_2"]
    counts = [messages(bag) for bag in bags]
    inodes = [bag.stat().st_ino for bag in bags]
    (job.out / "bag_3").mkdir()
    (job.out / "bag_3" / "mine").write_text("mine")  # no third run, so nobody's business
    again = make_job(runs, bag=True)
    again.run()
    assert again.failed == {}
    assert [messages(bag) for bag in bags] == counts
    assert [bag.stat().st_ino for bag in bags] != inodes
    assert (job.out / "bag_3" / "mine").exists()
    assert not [path.name for path in job.out.iterdir() if path.name.endswith((".part", ".old"))]


def test_a_bag_is_there_until_the_next_one_is_complete(make_job):
    job = make_job(bag=True)
    job.run()
    before = everything(job.out / "bag")
    seen = []

    def looking(settings):
        engine = real_engine()
        append = engine.append_video_chunk

        def appended(*arguments, **named):
            seen.append(everything(job.out / "bag") == before)
            if len(seen) == 3:
                raise RuntimeError("out of luck")
            return append(*arguments, **named)

        engine.append_video_chunk = appended
        return engine

    with pytest.raises(RuntimeError):
        make_job(bag=True, engine=looking).run()
    assert seen == [True] * 3
    assert everything(job.out / "bag") == before
    assert not (job.out / ".bag.part").exists()


@pytest.mark.parametrize("moment", ["writing", "old aside", "new in place"])
def test_what_a_killed_replay_has_left_of_its_bag_is_put_right(make_job, moment):
    job = make_job(bag=True)
    job.run()
    bag, old, part = (job.out / name for name in ("bag", ".bag.old", ".bag.part"))
    count = messages(bag)
    if moment == "writing":
        part.mkdir()
        owned.mark(part, "session bag")
        (part / "bag").mkdir()
    elif moment == "old aside":
        bag.rename(old)
    else:
        shutil.copytree(bag, old)
    make_job(bag=True).run()
    assert messages(bag) == count
    assert not old.exists() and not part.exists()


def test_what_is_aside_and_none_of_ours_is_left_alone(make_job):
    job = make_job(bag=True)
    job.run()
    (job.out / ".bag.part").mkdir()
    (job.out / ".bag.part" / "mine").write_text("mine")
    again = make_job(bag=True)
    again.run()
    assert "bag/" in again.failed
    assert (job.out / ".bag.part" / "mine").read_text() == "mine"
    assert messages(job.out / "bag") > 0


def test_a_fresh_replay_keeps_the_answers_of_before_until_it_has_its_own(make_job):
    job = make_job()
    job.run()
    before = (job.out / "journal.jsonl").read_bytes()
    make_job(resume=False, interrupt_at=6).run()  # after the first question, at 2 s
    journal = (job.out / "journal.jsonl").read_bytes()
    assert journal.startswith(before)
    fresh = [json.loads(line) for line in journal[len(before) :].splitlines()]
    assert "afresh" in fresh[0]
    asked = []

    def counting(settings):
        engine = real_engine()
        ask, choose = engine.ask, engine.ask_choice
        engine.ask = lambda text, *a, **k: asked.append(text) or ask(text, *a, **k)
        engine.ask_choice = lambda text, *a, **k: asked.append(text) or choose(text, *a, **k)
        return engine

    make_job(engine=counting).run()
    # What the fresh one was asked is known; what only the one before it was asked is not.
    answered = {line["answer"]["id"] for line in fresh if "answer" in line}
    assert len(asked) == 5 - len(answered) and answered
