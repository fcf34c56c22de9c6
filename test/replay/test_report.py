# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Reports are read with care, compared where they can be, and a gate for what became worse."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
from amounts import examples
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from stream_vlm_ros.cli import app
from stream_vlm_ros.replay.command import REGRESSED, diff
from stream_vlm_ros.replay.report import ReportError, read_report

# Written by version 0.1.0, with one answer right and one wrong.
OLD = Path(__file__).with_name("report-0.1.0.json")


def answer(name, right=True, **changes):
    known = {"id": name, "question": f"What of {name}?", "status": "answered", "answer": "it"}
    return known | {"right": right, "judge": "exact", "type": "", "times": {"ttft": 1.0}} | changes


def reported(folder, *answers, **changes):
    """A report of one run with these answers; its path."""
    run = {"name": "streaming", "settings": {}, "answers": list(answers)}
    known = {"schema": "stream_vlm.replay.report", "version": 1, "runs": [run], **changes}
    path = folder / f"{len([*folder.iterdir()])}.json"
    path.write_text(json.dumps(known))
    return str(path)


def compared(*arguments):
    return CliRunner().invoke(app, ["report", "diff", *map(str, arguments)])


# -- comparing -----------------------------------------------------------------------------------


def test_reports_without_a_common_question_are_an_error(tmp_path):
    some = reported(tmp_path, answer("q001"), answer("q002"))
    others = reported(tmp_path, answer("q001", question="Another?"), answer("q003"))
    told = compared(some, others)
    assert told.exit_code == 2
    assert "no question in common" in told.stderr and not told.stdout


def test_reports_of_which_one_reached_no_question_are_an_error(tmp_path):
    late = answer("q001", None, status="not_reached", answer=None)
    told = compared(reported(tmp_path, answer("q001")), reported(tmp_path, late))
    assert told.exit_code == 2
    assert "no question in common that both were asked" in told.stderr


@pytest.mark.parametrize(
    "now",
    [
        answer("q002", False),
        answer("q002", None, judge_error="ZeroDivisionError: x"),
        answer("q002", None, status="error", answer=None),
        answer("q002", None, status="not_reached", answer=None),
    ],
)
def test_what_was_right_and_is_not_now_is_a_regression_with_an_exit_status_of_its_own(
    tmp_path, now
):
    before = reported(tmp_path, answer("q001"), answer("q002"), answer("q003", False))
    after = reported(tmp_path, answer("q001"), now, answer("q003"))
    told = compared(before, after, "--fail-on-regression")
    assert told.exit_code == REGRESSED == 3
    assert "1 regression: q002" in told.stderr
    assert compared(before, after).exit_code == 0
    as_json = compared(before, after, "--fail-on-regression", "--json")
    assert as_json.exit_code == 3
    assert json.loads(as_json.stdout)["regressions"] == ["q002"]


@pytest.mark.parametrize("now", [[], [answer("q002", question="What of  q002?")]])
def test_a_right_answer_whose_question_is_not_asked_any_more_is_a_regression(tmp_path, now):
    before = reported(tmp_path, answer("q001"), answer("q002"), answer("q003", False))
    after = reported(tmp_path, answer("q001"), *now)
    told = compared(before, after, "--fail-on-regression")
    assert told.exit_code == REGRESSED and "1 regression: q002" in told.stderr
    assert "1 question in both" in told.stdout and "2 answers only in A" in told.stdout


def test_questions_of_one_id_are_paired_in_their_order(tmp_path):
    before = reported(tmp_path, answer("q001"), answer("q001", False))
    after = reported(tmp_path, answer("q001"), answer("q001"), answer("q001", False))
    there, back = diff(before, after), diff(after, before)
    assert [there[key] for key in ("common", "only_in_a", "only_in_b")] == [2, 0, 1]
    assert [back[key] for key in ("common", "only_in_a", "only_in_b")] == [2, 1, 0]
    assert there["regressions"] == [] and back["regressions"] == ["q001"]


def test_it_is_said_where_the_sources_differ_or_a_run_is_not_complete(tmp_path):
    def noted(a, b):
        return diff(reported(tmp_path, answer("q"), **a), reported(tmp_path, answer("q"), **b))[
            "notes"
        ]

    def source(digest, name):
        return {"source": {"digest": digest, "name": name}}

    assert noted({}, {}) == noted(source("1", "a.mp4"), source("1", "b.mp4")) == []
    words = ["the sources differ: a.mp4 and b.mp4"]
    assert noted(source("1", "a.mp4"), source("2", "b.mp4")) == words
    assert noted(source(None, "a.mp4"), source("2", "b.mp4")) == words
    assert noted({}, {"complete": False}) == ["the run of B is not complete"]
    cut = reported(tmp_path, answer("q"), complete=False)
    assert "Note: the run of A is not complete" in compared(cut, cut).stdout


def test_slower_reworded_new_or_never_right_is_no_regression(tmp_path):
    before = reported(tmp_path, answer("q001"), answer("q002", False), answer("gone", False))
    after = reported(
        tmp_path,
        answer("q001", answer="others", times={"ttft": 9.0}),
        answer("q002", None, status="error", answer=None),
        answer("new", False),
    )
    told = compared(before, after, "--fail-on-regression")
    assert told.exit_code == 0
    # Whoever takes a question away to pass the gate is seen.
    assert "1 answer only in A" in told.stdout


# -- reading -------------------------------------------------------------------------------------


def test_a_report_of_an_earlier_version_is_compared(tmp_path):
    difference = diff(str(OLD), str(OLD))
    assert (difference["common"], difference["accuracy"]["a"]["right"]) == (2, 1)
    assert difference["regressions"] == []


@pytest.mark.parametrize(
    "text, words",
    [
        (OLD.read_text()[:700], "is cut off, or no JSON"),
        ("", "is cut off, or no JSON"),
        ('{"schema": "stream_vlm.replay.report", "version": NaN}', "NaN is no number of JSON"),
        ("[" * 100_000, "is cut off, or no JSON"),
        ('{"version": 1, "runs": []}', "is not a report of stream-vlm replay"),
        ('{"schema": "stream_vlm.replay.report", "version": 2}', "of version 2; this program"),
        ('{"schema": "stream_vlm.replay.report", "version": 1}', "'runs' is a required property"),
    ],
)
def test_a_cut_foreign_or_later_report_is_refused_in_words(tmp_path, text, words):
    path = tmp_path / "report.json"
    path.write_text(text)
    told = compared(path, OLD)
    assert told.exit_code == 2
    assert f"{path} " in told.stderr and words in told.stderr


def places(value, here=()):
    """Where the values of a JSON value stand."""
    yield here
    if isinstance(value, (dict, list)):
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from places(value[key], (*here, key))


REPORT = json.loads(OLD.read_text())
RUN = {key: REPORT["runs"][0][key] for key in ("name", "answers")} | {"settings": {"seed": 0}}
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=4,
)


@settings(max_examples=examples(25))
@given(st.sampled_from([*places([RUN])]), JSON, st.booleans(), st.booleans())
def test_a_report_with_one_part_changed_is_compared_or_refused(
    tmp_path_factory, place, value, removed, first
):
    runs = {"": copy.deepcopy([RUN])}
    *above, last = ("", *place)
    inside = runs
    for key in above:
        inside = inside[key]
    if removed:
        del inside[last]
    else:
        inside[last] = value
    path = tmp_path_factory.getbasetemp() / "changed.json"
    path.write_text(json.dumps(REPORT | {"runs": runs.get("")}))
    before, now = (path, OLD) if first else (OLD, path)
    try:
        diff(str(before), str(now))
    except ReportError as error:
        assert "\n" not in str(error) and len(str(error)) < 1500


def test_a_report_is_read_from_its_folder(tmp_path):
    (tmp_path / "report.json").write_text(OLD.read_text())
    assert read_report(tmp_path) == REPORT
