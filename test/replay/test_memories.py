# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A run that begins with a saved memory, and leaves one."""

import dataclasses

import numpy as np
import pytest
from rich.console import Console

from stream_vlm_ros.engine.saving.memory_copy import about_memory
from stream_vlm_ros.errors import InvalidParameterError, MemoryFileError
from stream_vlm_ros.factory import load_engine
from stream_vlm_ros.history.folder import held_in
from stream_vlm_ros.owned import NotOursError
from stream_vlm_ros.replay.command import run_job, settings_of

from .conftest import BASE, real_engine

START = 1_700_000_000  # s
LONG = 14 * 0.5  # s, of the known source
LAST = "questions: [{text: What is it, at: end, id: last}]"


def by_hand(*parts):
    """An engine that has seen the known source several times, from these seconds on."""
    engine = real_engine()
    for begin in parts:
        for first in range(0, 14, 4):
            numbers = range(first, min(first + 4, 14))
            engine.append_video_chunk(
                [np.full((56, 84, 3), 10 + 7 * n % 240, np.uint8) for n in numbers],
                timestamps=[begin + n / 2 for n in numbers],
            )
    return engine


def answer_of(report):
    (answer,) = report["runs"][0]["answers"]
    return answer["answer"]


def test_two_parts_of_a_recording_are_one_stream(make_job, tmp_path):
    file = str(tmp_path / "memory")
    first = dataclasses.replace(BASE, save_memory=file)
    make_job((first,), questions=LAST, out="first").run()
    assert about_memory(file).newest_timestamp == START + 6.5
    second = dataclasses.replace(BASE, load_memory=file)
    later = {"start_ns": (START + 10) * 10**9}
    report = make_job((second,), questions=LAST, out="second", source_options=later).run()
    (run,) = report["runs"]
    assert run["source"]["notes"] == []
    straight = by_hand(START, START + 10)
    assert run["memory"]["cam"]["cache_seq_length"] == straight.get_cache_info().cache_seq_length
    assert answer_of(report) == straight.ask("What is it", 4)[0]
    # What the memory holds of the first part lies before the source's first frame.
    begin, end = run["answers"][0]["seen"][0]
    assert (begin, run["answers"][0]["seen"][-1][1]) == (-10.0, 6.5)
    assert end >= begin


def test_a_source_that_begins_before_the_end_of_the_memory_is_moved_behind_it(make_job, tmp_path):
    file = str(tmp_path / "memory")
    make_job((dataclasses.replace(BASE, save_memory=file),), questions=LAST, out="first").run()
    again = dataclasses.replace(BASE, load_memory=file, save_memory=str(tmp_path / "both"))
    report = make_job((again,), questions=LAST, out="second").run()
    (note,) = report["runs"][0]["source"]["notes"]
    assert "moved by 7.5 s" in note  # to one second behind the newest frame, at 6.5 s
    assert answer_of(report) == by_hand(START, START + 7.5).ask("What is it", 4)[0]
    assert about_memory(tmp_path / "both").frames == 28


def test_another_memory_at_the_same_place_makes_another_run(make_job, tmp_path):
    """Answers of a run that began with another memory are not taken from the journal."""
    file = tmp_path / "memory"
    by_hand(START - 1000).save_memory(file)
    settings = dataclasses.replace(BASE, load_memory=str(file))
    asked = []

    class Counting:
        def __init__(self, engine):
            self.engine = engine

        def __getattr__(self, name):
            return getattr(self.engine, name)

        def ask(self, *arguments, **options):
            asked.append(1)
            return self.engine.ask(*arguments, **options)

    def run():
        make_job((settings,), questions=LAST, engine=lambda s: Counting(real_engine())).run()
        return len(asked)

    assert [run(), run()] == [1, 1]
    by_hand(START - 500).save_memory(file)
    assert run() == 2


def test_a_run_that_is_in_the_journal_is_run_again_to_save_its_memory(make_job, tmp_path):
    file = tmp_path / "memory"
    settings = dataclasses.replace(BASE, save_memory=str(file))
    make_job((settings,), questions=LAST).run()
    file.unlink()
    make_job((settings,), questions=LAST).run()
    assert about_memory(file).frames == 14


def test_what_cannot_be_saved_costs_no_answer_and_exits_with_1(make_job, tmp_path, monkeypatch):
    file = tmp_path / "memory"
    job = make_job((dataclasses.replace(BASE, save_memory=str(file)),), questions=LAST)
    file.parent.joinpath("memory").mkdir()  # it was free when the replay was asked for
    monkeypatch.setattr("stream_vlm_ros.replay.job.check_free", lambda path: None)
    out = Console(record=True, width=300)
    assert run_job(job, None, out) == 1
    assert "is left as it is" in out.export_text()
    assert (job.out / "report.json").is_file()


@pytest.mark.parametrize("engine", ["streaming,save_memory={0}", "streaming,load_memory={0}"])
def test_files_of_no_use_are_refused_before_anything_is_replayed(make_job, tmp_path, engine):
    file = tmp_path / "notes"
    file.write_text("mine")
    built = []
    job = make_job(settings_of(BASE, engine.format(file), []), engine=built.append)
    with pytest.raises((NotOursError, MemoryFileError), match="notes"):
        job.run()
    assert (built, file.read_text()) == ([], "mine")
    missing = settings_of(BASE, engine.format(tmp_path / "none" / "m"), [])
    with pytest.raises(MemoryFileError, match=r"No such file|no such folder"):
        make_job(missing, engine=built.append).run()


def test_a_file_holds_the_memory_of_one_run_and_of_one_camera(make_job, tmp_path):
    settings = dataclasses.replace(BASE, save_memory=str(tmp_path / "m"))
    with pytest.raises(InvalidParameterError, match="Two runs save their memory"):
        make_job(settings_of(settings, None, ["max_cache_tokens=64"]))
    cameras = {"cameras": ("left", "right")}
    report = make_job((settings,), questions=LAST, source_options=cameras).run()
    assert "several cameras" in report["runs"][0]["error"]["message"]
    assert not (tmp_path / "m").exists()


def test_a_run_leaves_its_frames_in_a_folder_and_gives_it_back(make_job, tmp_path):
    folder = tmp_path / "frames"
    settings = dataclasses.replace(BASE, history="auto", frame_store=str(folder))
    cameras = {"cameras": ("left", "right")}
    report = make_job((settings,), questions=LAST, engine=load_engine, source_options=cameras).run()
    assert "several cameras" in report["runs"][0]["error"]["message"]
    assert held_in(folder).frames == 0  # nobody holds it
    make_job((settings,), questions=LAST, out="second", engine=load_engine).run()
    assert held_in(folder) == (14, (START, START + 6.5), 14, (START, START + 6.5))
    both = settings_of(settings, None, ["max_cache_tokens=2048"])
    with pytest.raises(InvalidParameterError, match="Two runs keep their frames"):
        make_job(both)
    one = settings_of(settings, None, ["alone:frame_store=,history=never"])
    assert make_job(one).settings[1].frame_store == ""


def test_in_real_time_the_node_has_services_for_it(make_job, tmp_path):
    settings = dataclasses.replace(BASE, load_memory=str(tmp_path / "m"))
    with pytest.raises(InvalidParameterError, match="~/load_memory"):
        make_job((settings,), run_live=lambda: None)


def test_the_other_engine_takes_no_file():
    with pytest.raises(InvalidParameterError, match="frame_store"):
        settings_of(BASE, "delayed_batch,load_memory=m", [])
