# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Records: on the disk early, whole, and judged."""

import datetime
import json

import pytest

from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.experiments.record import FAILED, PASSED, Record


@pytest.fixture
def record(tmp_path):
    return Record("trial", "A trial", tmp_path / "new")


def read(record):
    return json.loads(record.path.read_text())


def test_rows_are_on_the_disk_before_the_end(tmp_path):
    record = Record("trial", "A trial", tmp_path / "new", save_every=0.0)
    record.add(chunk=1, length=10)
    assert read(record)["rows"] == [{"chunk": 1, "length": 10}]
    assert read(record)["status"] == "running"


@pytest.mark.parametrize(
    ("verdicts", "status"),
    [([], PASSED), ([True, None], PASSED), ([None], PASSED), ([True, False, None], FAILED)],
)
def test_one_failed_criterion_fails_and_what_cannot_be_judged_does_not(record, verdicts, status):
    for number, passed in enumerate(verdicts):
        record.check(f"number {number}", passed, 1, "2")
    assert record.finish() == status == read(record)["status"]
    assert [entry["passed"] for entry in read(record)["criteria"]] == verdicts


def test_the_day_of_the_run_is_noted(record):
    before = datetime.date.today()
    again = Record("trial", "A trial", record.folder)
    again.save()
    noted = datetime.date.fromisoformat(read(again)["date"])
    assert before <= noted <= datetime.date.today()


def test_what_json_cannot_say_becomes_null(record):
    record.add(value=float("nan"), most=float("inf"), path=record.folder)
    record.finish()
    assert read(record)["rows"] == [{"value": None, "most": None, "path": str(record.folder)}]


def test_a_run_after_it_can_read_what_was_there(record, tmp_path):
    record.add(key="a")
    record.save()
    again = Record("trial", "A trial", tmp_path / "new")
    assert again.earlier["rows"] == [{"key": "a"}]


@pytest.mark.parametrize("content", ["{ broken", "[1]", '{"experiment": "another"}'])
@pytest.mark.parametrize("name", ["trial.json", "trial.md", "trial-curve.png"])
def test_a_file_that_is_no_record_is_not_written_over(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    with pytest.raises(InvalidParameterError, match="no record of this experiment"):
        Record("trial", "A trial", tmp_path)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [(name, content)]


def test_the_page_shows_criteria_notes_and_plots(record):
    pytest.importorskip("matplotlib")
    record.check("memory is flat", True, "1 | 2", "flat")
    record.note("Once.")
    record.note("Once.")
    record.plot("curve", lambda figure, axes: axes.plot([1, 2]))
    record.finish()
    page = (record.folder / "trial.md").read_text()
    assert record.date in page
    assert "✓" in page and page.count("> Once.") == 1 and "![trial-curve.png]" in page
    assert (record.folder / "trial-curve.png").stat().st_size > 1000
