# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Past answers are found again, within their bound, and no file of somebody else's is touched."""

import resource
import sqlite3
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_vlm_ros.session.answer_log import MAX_FOUND_BYTES, AnswerLog, AnswerLogError

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


@settings(max_examples=25)
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


def test_rows_of_somebody_else_are_left_out_counted_and_hold_nothing_up(make_log, faults, tmp_path):
    file = tmp_path / "answers"
    log = make_log(file)
    add(log, 1, "first")
    log.close()
    rows = [
        (2, "x", "x", "no JSON", 7), (3, "x", "x", "[1]", 3), (4, "x", "x", '{"a": 1}', "many"),
        (5, "x", b"\xff", b"\xff\xfe", 2), ("soon", b"x", "x", "{}", 2), (6, "x", "x", "{}", -1e9),
    ]  # fmt: skip
    with sqlite3.connect(file) as database:
        insert = "INSERT INTO answers (answered_ns, question, answer, fields, bytes) VALUES "
        database.executemany(insert + "(?, ?, ?, ?, ?)", rows)
        database.execute(insert + "(7, CAST(x'ff' AS TEXT), '', CAST(x'ff' AS TEXT), 1)")
    database.close()
    again = make_log(file, max_bytes=100)
    add(again, 8, "last")
    for text in ("", "t"):
        found = again.find(text=text).result()
        kept = [fields.get("question") for _, fields in found.answers if "question" in fields]
        assert kept == ["first", "last"]
    assert again.find().result().unreadable == 5
    add(again, 9, "more" * 20)
    assert faults == []


def test_a_file_that_is_larger_than_its_bound_is_made_smaller_as_it_is_opened(make_log, tmp_path):
    file = tmp_path / "answers"
    log = make_log(file)
    for number in range(400):
        add(log, number, str(number), "x" * 5000)
    log.close()
    assert file.stat().st_size > 2_000_000
    again = make_log(file, max_bytes=50_000)
    kept = questions(again.find().result())
    assert kept == [str(number) for number in range(400 - len(kept), 400)] and 8 <= len(kept) <= 9
    again.close()
    assert sum(one.stat().st_size for one in tmp_path.iterdir()) < 200_000


@pytest.fixture
def full_disk():
    """A switch: no byte can be written to any file from then on."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    yield lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (0, before[1]))
    resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_on_a_full_disk_old_answers_are_read_and_new_ones_counted_as_lost(
    make_log, full_disk, faults, tmp_path
):
    log = make_log(tmp_path / "answers")
    add(log, 1, "old")
    log.close()
    full_disk()
    again = make_log(tmp_path / "answers")
    for number in (2, 3):
        add(again, number, "new")
    assert questions(again.find().result()) == ["old"]
    assert (again.lost, len(faults)) == (2, 2) and again.why_lost == str(faults[-1])


def test_a_file_called_memory_is_a_file(make_log, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    add(make_log(Path(":memory:")), 1, "x")
    assert (tmp_path / ":memory:").is_file()


def test_a_name_that_no_file_can_have_is_said(make_log):
    with pytest.raises(AnswerLogError, match=r"a\\x00b cannot be used"):
        make_log(Path("a\0b"))
