# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Past answers are found again, within their bound, and no file of somebody else's is touched."""

import sqlite3

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_vlm_ros.node.answer_log import MAX_FOUND_BYTES, AnswerLog, AnswerLogError

LARGE = 1 << 30


@pytest.fixture
def faults():
    return []


@pytest.fixture
def make_log(faults):
    logs = []

    def make(path=None, max_bytes=LARGE):
        logs.append(AnswerLog(path, max_bytes, faults.append))
        return logs[-1]

    yield make
    for log in logs:
        log.close()


def questions(found):
    return [fields["question"] for _, fields in found.answers]


def add(log, answered_ns, question, answer="", **fields):
    log.add(answered_ns, question, answer, {"question": question, "text": answer, **fields})


def test_answers_are_found_by_time_and_by_text_in_question_or_answer(make_log, faults):
    log = make_log()
    add(log, 10, "What is THERE?", "a Straße")
    add(log, 20, "Who came?", "nobody")
    add(log, 30, "Is it there?", "no")
    assert questions(log.find().result()) == ["What is THERE?", "Who came?", "Is it there?"]
    assert questions(log.find(from_ns=20).result()) == ["Who came?", "Is it there?"]
    assert questions(log.find(to_ns=20).result()) == ["What is THERE?", "Who came?"]
    assert questions(log.find(from_ns=11, to_ns=29).result()) == ["Who came?"]
    assert questions(log.find(text="there").result()) == ["What is THERE?", "Is it there?"]
    assert questions(log.find(text="STRASSE").result()) == ["What is THERE?"]
    assert questions(log.find(text="%").result()) == []
    assert faults == []


def test_of_many_the_newest_are_given_and_all_are_counted(make_log):
    log = make_log()
    for number in range(150):
        add(log, number, str(number))
    found = log.find(limit=2).result()
    assert (found.total, questions(found)) == (150, ["148", "149"])
    assert questions(log.find().result()) == [str(number) for number in range(50, 150)]


def test_one_reply_never_grows_beyond_its_bound(make_log):
    log = make_log()
    for number in range(6):
        add(log, number, str(number), "x" * (MAX_FOUND_BYTES // 4))
    found = log.find(limit=6).result()
    assert (found.total, questions(found)) == (6, ["3", "4", "5"])


@settings(max_examples=25, deadline=None)
@given(sizes=st.lists(st.integers(0, 300), min_size=1, max_size=30), bound=st.integers(50, 1000))
def test_the_oldest_go_where_the_bound_is_reached(sizes, bound):
    log = AnswerLog(None, bound, pytest.fail)
    for number, size in enumerate(sizes):
        log.add(number, "", "", {"x": "y" * size})
    kept = [fields for _, fields in log.find().result().answers]
    log.close()
    # Independently: the longest end of the list whose JSON fits.
    lengths, expected = [len('{"x": ""}') + size for size in sizes], []
    while len(expected) < len(sizes) and sum(lengths[len(sizes) - len(expected) - 1 :]) <= bound:
        expected.insert(0, {"x": "y" * sizes[len(sizes) - len(expected) - 1]})
    assert kept == expected


def test_a_file_is_taken_up_again_with_its_bound(make_log, tmp_path):
    file = tmp_path / "made" / "answers.sqlite"
    log = make_log(file)
    add(log, 1, "one", "x" * 100)
    add(log, 2, "two", "x" * 100)
    log.close()
    again = make_log(file, max_bytes=300)
    assert questions(again.find().result()) == ["one", "two"]
    add(again, 3, "three", "x" * 100)
    assert questions(again.find().result()) == ["two", "three"]


@pytest.mark.parametrize("text", ["this is a diary\n" * 100, None])
def test_a_file_that_is_not_ours_is_refused_and_left_as_it_was(make_log, tmp_path, text):
    file = tmp_path / "diary"
    if text is None:
        with sqlite3.connect(file) as database:
            database.execute("CREATE TABLE diary (day TEXT)")
        database.close()
    else:
        file.write_text(text)
    before = file.read_bytes()
    with pytest.raises(AnswerLogError, match="diary"):
        make_log(file)
    assert file.read_bytes() == before and [one.name for one in tmp_path.iterdir()] == ["diary"]


def test_a_second_node_does_not_write_into_the_same_file(make_log, tmp_path):
    make_log(tmp_path / "answers")
    with pytest.raises(AnswerLogError, match="locked"):
        make_log(tmp_path / "answers")


def test_a_place_that_cannot_be_written_is_named(make_log, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(AnswerLogError, match="file/answers cannot be used"):
        make_log(tmp_path / "file" / "answers")


def test_an_answer_that_cannot_be_kept_is_reported_and_later_ones_are_kept(make_log, faults):
    log = make_log()
    add(log, 1, "half \ud800 a character")
    add(log, 2, "whole")
    assert questions(log.find().result()) == ["whole"]
    assert len(faults) == 1
