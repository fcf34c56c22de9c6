# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Whether an answer counts as right."""

from __future__ import annotations

import time

import pytest

from stream_vlm_ros.replay.judging import make_judge, number_in, seconds_in


@pytest.mark.parametrize(
    ("spec", "expect", "answer", "right"),
    [
        (None, ("red car",), "The red  car.", True),
        (None, ("red car",), "a red cart", False),
        ("contains", ("car",), "I saw a red car, I think.", True),
        ("contains", ("car",), "I saw a carpet.", False),
        ({"contains": {"all": True}}, ("red", "car"), "a red bus", False),
        ({"contains": {"all": True}}, ("red", "car"), "a car in red", True),
        ({"number": {"within": 1}}, ("3",), "There are four of them", True),
        ({"number": {"within": 0}}, ("3",), "-3", False),
        ("number", ("1200",), "about 1,200 boxes", True),
        ("number", ("3",), "many", False),
        ({"time": {"within": 2}}, ("65",), "1:06", True),
        ({"time": {"within": 2}}, ("65",), "one minute and 8 seconds", False),
        ({"time": {"within": 1}}, ("1:05",), "1 min 5 s ago", True),
        ("regex", ("ga+te",), "The GAATE is open", True),
        ("none", ("x",), "x", None),
    ],
)
def test_an_answer_is_judged(spec, expect, answer, right):
    assert make_judge(spec, expect)(answer) is right


def test_a_choice_is_right_if_it_is_the_expected_one():
    judge = make_judge(None, ("b",), ("a", "b"))
    assert judge.name == "choice"
    assert (judge("b"), judge("a")) == (True, False)


def test_a_function_of_the_users_own_judges(monkeypatch, tmp_path):
    (tmp_path / "my_judges.py").write_text(
        "def longer(answer, expect, choices):\n    return len(answer) > int(expect[0])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    judge = make_judge("python:my_judges:longer", ("3",))
    assert (judge("four"), judge("one")) == (True, False)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2 h 3 min", 7380),
        ("at 1:02:03.5", 3723.5),
        ("90", 90),
        ("half minute ago", 30),
        ("", None),
    ],
)
def test_times_are_read_from_words(text, seconds):
    assert seconds_in(text) == seconds


def test_the_first_number_counts_and_articles_are_none():
    assert number_in("a dog and two cats, 3 birds") == 2
    assert number_in("a dog") is None


# Expressions on which a backtracking engine takes longer than the universe has lasted.
HOSTILE = ["(a|a)*b", "(a*)*b", "(x+x+)+y", "(a?){500}a{500}b", "[a-c]{0,999}[b-e]{0,999}z"]


@pytest.mark.parametrize("expression", HOSTILE)
def test_an_expression_takes_time_by_its_length_alone(expression):
    judge = make_judge("regex", (expression,))
    begin = time.process_time()
    assert judge("a" * 1_000_000) is False
    assert time.process_time() - begin < 10


@pytest.mark.parametrize(
    ("expression", "words"),
    [
        ("(", "missing"),
        ("a{99999999999}", "repeats more than"),
        ("a{2,99999}", "repeats more than"),
        ("((a{1,30}){1,30}){1,30}", "repetition"),
        ("(?=a)", "no lookaround"),
        (r"(a)\1", "back-references"),
    ],
)
def test_an_expression_that_cannot_run_in_bounded_time_is_refused(expression, words):
    with pytest.raises(ValueError, match=words):
        make_judge("regex", (expression,))


def test_an_expression_of_many_groups_is_one_like_another():
    assert make_judge("regex", ("(" * 500 + "A" + ")" * 500,))("a cat") is True
    assert make_judge("regex", ("a.b",))("A\nB") is True
    assert make_judge("regex", (r"\{12345\}",))("{12345}") is True


@pytest.mark.parametrize("kind", ["number", "time"])
@pytest.mark.parametrize(
    "text", ["9" * 20_000, "9" * 20_000 + ":10", "1" + " " * 20_000, "1 2 " * 5000]
)
def test_numbers_and_times_are_read_in_time_by_the_length_of_the_answer(kind, text):
    judge = make_judge(kind, ("5",))
    begin = time.process_time()
    assert judge(text) is False
    assert time.process_time() - begin < 5


def test_whole_words_are_those_of_any_language():
    judge = make_judge("contains", ("f", "наш дом", "a+b"))
    assert [judge(text) for text in ("für", "f, g", "это наш дом.", "нашдом", "so a+b=c")] == [
        False, True, True, False, True,
    ]  # fmt: skip
