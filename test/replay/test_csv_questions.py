# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Questions from a spreadsheet are those of a YAML file, or refused with their line."""

from __future__ import annotations

import csv
import io
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_vlm_ros.replay.questions import load_questions
from stream_vlm_ros.replay.yaml_lines import QuestionFileError

YAML = """
questions:
  - {id: table, text: "What is on the table, now?", at: 12.5, expect: [a cup, cup], judge: contains}
  - {text: Was it open?, at: "1:05", choices: ["yes", "no"], expect: "yes", evidence: [3, 7.5]}
  - {text: How many?, at: end, expect: "3", judge: {number: {within: 1}}, tags: [a, b], type: count}
  - {text: "- 1 = 1?", at_stamp: "1700000042.123456789", camera: /cam, max_new_tokens: 5}
  - {text: Read, every: 25, until: 90, merge: true}
"""
CSV = """\
id,text,at,at_stamp,every,until,expect,judge,choices,evidence,tags,type,camera,max_new_tokens,merge
table,"What is on the table, now?",12.5,,,,a cup|cup,contains,,,,,,,

,Was it open?,1:05,,,,yes,,yes | no,"[3, 7.5]",,,,,
,How many?,end,,,,3,{number: {within: 1}},,,a|b,count,,,
,- 1 = 1?,,1700000042.123456789,,,,,,,,,/cam,5,
,Read,,,25,90,,,,,,,,,true
,,,,
"""


def told(question):
    """A question without its judge's function."""
    judge = question.judge
    return {**vars(question), "judge": (judge.name, judge.options)}


@pytest.mark.parametrize("delimiter, name", [(",", "q.csv"), (";", "q.CSV"), ("\t", "q.tsv")])
@pytest.mark.parametrize("bom", ["", "\ufeff"])
def test_the_same_questions_come_from_a_spreadsheet(write_questions, delimiter, name, bom):
    rows = [*csv.reader(io.StringIO(CSV))]
    table = io.StringIO()
    csv.writer(table, delimiter=delimiter).writerows(rows)
    found = load_questions(write_questions(bom + table.getvalue(), name))
    wanted = load_questions(write_questions(YAML))
    assert [told(one) for one in found.questions] == [told(one) for one in wanted.questions]


@pytest.mark.parametrize(
    "text, words",
    [
        ("question,at\nx,1\n", r"q\.csv:1: .*'text' is not among them"),
        ("text,at\na,1\nwhat, then?,2\n", r"q\.csv:3: 3 cells, but the first line has 2 keys"),
        ("text,at,when\nx,1,2\n", r"q\.csv:2: unknown key when"),
        ("text,at,at\nx,1,2\n", r"q\.csv:2: 'at' is given twice"),
        ('text,at\n"a\nb",1\nx,soon\n', r"q\.csv:4: at: 'soon' is no time"),
        ("text,at,evidence\nx,9,[3\n", r"q\.csv:2: evidence: not valid YAML"),
        ('text,at\n"x"y,1\n', r"q\.csv:2: not valid CSV"),
        ("text,at\n", r"q\.csv:1: "),
        ("", r"q\.csv:1: "),
        ("text,at,judge,expect\nx,1,#,y\n", r"q\.csv:2: judge: there is no judge '#'"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(write_questions, text, words):
    with pytest.raises(QuestionFileError, match=words):
        load_questions(write_questions(text, "q.csv"))


@pytest.mark.parametrize("first", ["", "sep=;\n", "SEP=;\r\n"])
def test_capitals_in_the_keys_and_a_line_that_names_the_delimiter_are_taken(write_questions, first):
    (found,) = load_questions(write_questions(f"{first}Text;At\na, b?;5\n", "q.csv")).questions
    assert (found.text, found.at) == ("a, b?", 5.0)


@pytest.mark.parametrize("order", ["le", "be"])
def test_a_table_in_utf_16_is_read_as_its_first_bytes_say(tmp_path, order):
    path = tmp_path / "q.csv"
    path.write_bytes("\ufefftext\tat\nWo war die Tür?\t5\n".encode(f"utf-16-{order}"))
    (found,) = load_questions(path).questions
    assert (found.text, found.at) == ("Wo war die Tür?", 5.0)


@pytest.mark.parametrize("name", ["q.csv", "q.yaml", "q.json"])
def test_a_file_in_utf_16_that_does_not_say_so_is_refused_in_words(tmp_path, name):
    path = tmp_path / name
    path.write_bytes("text;at\nWhere?;5\n".encode("utf-16-le"))
    with pytest.raises(QuestionFileError, match=f"{name}:1: .*in another encoding: save it as"):
        load_questions(path)


def test_numbers_with_a_decimal_comma_are_read_where_a_semicolon_separates(write_questions):
    text = "text;at;max_new_tokens\n5,5;5,5;\n"
    (found,) = load_questions(write_questions(text, "q.csv")).questions
    assert (found.text, found.at) == ("5,5", 5.5)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('text,at\nx,"5,5"\n', "at: '5,5' is no time"),
        ("text;at\nx;1,500\n", "at: '1,500' is no time"),  # 1.5, or 1500
        ("text;at;expect;judge\nx;1;5,5;number\n", "'5,5': write a decimal point"),
        ("text;at;expect;judge\nx;1;5,25 s;time\n", "'5,25 s': write a decimal point"),
    ],
)
def test_a_comma_of_which_nobody_knows_what_it_means_is_refused(write_questions, text, words):
    with pytest.raises(QuestionFileError, match=rf"q\.csv:2: .*{words}"):
        load_questions(write_questions(text, "q.csv"))


def test_the_example_of_the_pages_is_loaded_and_its_picture_is_small():
    folder = Path(__file__).resolve().parents[2] / "docs" / "report"
    found = load_questions(folder / "questions.csv").questions
    assert len(found) == 9
    assert {one.judge.name for one in found} == {"exact", "contains", "choice"}
    assert (folder / "report.png").stat().st_size < 300_000


@settings(max_examples=100)
@given(st.lists(st.lists(st.text(max_size=8), max_size=4), max_size=4), st.text(max_size=20))
def test_any_table_is_loaded_or_refused_with_its_line(tmp_path_factory, rows, end):
    path = tmp_path_factory.getbasetemp() / "any.csv"
    table = io.StringIO()
    csv.writer(table).writerows([["text", "at", "judge", "evidence"], *rows])
    path.write_text(table.getvalue() + end, encoding="utf-8", errors="replace", newline="")
    try:
        load_questions(path)
    except QuestionFileError as error:
        assert str(error).startswith(f"{path}:")
