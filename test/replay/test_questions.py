# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Question files: what they mean, and that every mistake is named with its line."""

from __future__ import annotations

import json
import re
from pathlib import Path

import jsonschema
import pytest

from stream_vlm_ros.replay.questions import IMPORTERS, QuestionSet, load_questions, schema
from stream_vlm_ros.replay.yaml_lines import QuestionFileError

FULL = """\
version: 1
title: The kitchen
defaults:
  max_new_tokens: 20
  tags: [kitchen]
questions:
  - text: Was there a cup?
    at: 12.5
    choices: [yes, no]
    expect: yes
    evidence: [3, "0:07.5"]
  - id: count
    text: How many cups?
    at: "1:05"
    expect: 3
    judge: {number: {within: 1}}
    type: counting
    tags: []
  - text: When did the cup fall?
    at_stamp: "1700000000.123456789"
    expect: ["0:12", 14]
    judge: {time: {within: 2}}
    about: ["0:10", 15]
    evidence: [[1, 2], 9]
    extra: {difficulty: hard}
  - text: Read the text.
    every: 5
    from: 2
    until: 20
    camera: /front
    merge: {similarity: 0.8}
  - text: What happened?
    at: end
"""


def test_every_part_of_a_file_is_understood(write_questions):
    loaded = load_questions(write_questions(FULL))
    cup, count, fall, caption, end = loaded.questions
    assert loaded.title == "The kitchen"
    assert loaded.cameras == ("/front",)
    assert (cup.id, cup.at, cup.choices, cup.expect) == ("q001", 12.5, ("yes", "no"), ("yes",))
    assert cup.evidence == ((3.0, 7.5),)
    assert (cup.about, fall.about) == (None, (10.0, 15.0))
    assert (cup.type, cup.tags, cup.max_new_tokens) == ("", ("kitchen",), 20)
    assert (count.at, count.type, count.tags) == (65.0, "counting", ())
    assert count.judge("There were four cups.") is True
    assert count.judge("Five.") is False
    assert fall.at_stamp_ns == 1_700_000_000_123_456_789
    assert fall.judge("after 15 seconds") is True
    assert fall.evidence == ((1.0, 2.0), (9.0, 9.0))
    assert fall.extra == {"difficulty": "hard"}
    assert (caption.every, caption.first, caption.until) == (5, 2.0, 20.0)
    assert caption.merge_similarity == 0.8
    assert end.at_end
    assert end.judge("anything") is None


def test_yes_and_no_are_words_and_not_truth_values(write_questions):
    text = "questions: [{text: A, at: 1, choices: [yes, no, on], expect: no}]"
    (question,) = load_questions(write_questions(text)).questions
    assert question.choices == ("yes", "no", "on")


def test_json_is_read_like_yaml_with_tabs_too(write_questions):
    content = {"questions": [{"text": "A?", "at": 1.5, "expect": "b"}]}
    path = write_questions(json.dumps(content, indent="\t"), "q.json")
    assert load_questions(path).questions[0].at == 1.5


@pytest.mark.parametrize(
    ("text", "line", "words"),
    [
        ("questions:\n  - text: A?\n    at: 1\n    judgde: exact\n", 4, "judgde.*known are"),
        ("questions:\n  - text: A?\n    at: 1\n    every: 2\n", 2, "exactly one of at"),
        ("questions:\n  - text: A?\n", 2, "exactly one of at"),
        ("questions:\n  - at: 1\n", 2, "'text' is missing"),
        ("questions:\n  - text: A?\n    at: -1\n", 3, "at:"),
        (
            "questions:\n  - text: A?\n    at: soon\n",
            3,
            "at: 'soon' is no time; .*seconds, such as 12.5",
        ),
        ("questions:\n  - text: A?\n    at: '1:99'\n", 3, "at: '1:99'"),
        ("questions:\n  - text: A?\n    at: '1:60:00'\n", 3, "at: '1:60:00'"),
        (
            "questions:\n  - {text: A, at: 1}\n  - text: B?\n    at: 1\n    at: 2\n",
            5,
            "given twice",
        ),
        ("questions:\n  - text: A?\n    at: 1\n    judge: exact\n", 4, "needs 'expect'"),
        (
            "questions:\n  - text: A?\n    at: 1\n    expect: x\n    choices: [a, b]\n",
            4,
            "not one of the",
        ),
        ("questions:\n  - text: A?\n    at: 1\n    choices: [a, a]\n", 4, "given twice"),
        ("questions:\n  - text: A?\n    at: 1\n    expect: '('\n    judge: regex\n", 5, "regular"),
        (
            "questions:\n  - text: A?\n    at: 1\n    judge: python:no.such:f\n",
            4,
            "cannot be loaded",
        ),
        ("questions:\n  - text: A?\n    at: 1\n    merge: true\n", 4, "used with 'every'"),
        ("questions:\n  - text: A?\n    at: 1\n    evidence: [5, 3]\n", 4, "before it begins"),
        ("questions:\n  - {id: a, text: A, at: 1}\n  - {id: a, text: B, at: 1}\n", 3, "line 2"),
        ("questions:\n  - text: [A\n", 3, "not valid YAML"),
        ("questions: []\n", 1, "questions"),
        ("version: 2\nquestions: [{text: A, at: 1}]\n", 1, "version"),
        ("[1, 2]", 1, "object"),
        ("questions:\n  - text: A?\n    at: .nan\n", 3, "at: nan"),
        ("questions:\n  - text: A?\n    every: .inf\n", 3, "every: inf"),
        ("questions:\n  - text: A?\n    every: 0.0000000001\n", 3, "every:"),
        ("questions:\n  - text: A?\n    at: 9\n    about: [3]\n", 4, "about needs two times"),
        ("questions:\n  - text: A?\n    at: 9\n    about: [3, late]\n", 4, "'late' is no time"),
        (
            "questions:\n  - text: A?\n    at: 1\n    judge: contain\n    expect: x\n",
            4,
            "known are exact, choice, .*did you mean contains",
        ),
        (
            "questions:\n  - text: A?\n    at: 1\n    judge: {numer: {within: 1}}\n",
            4,
            "did you mean number",
        ),
        (
            "questions:\n  - text: A?\n    at: 1\n    judge: {number: {wthin: 1}}\n",
            4,
            "unknown key wthin",
        ),
        # Several: the first by line, and of one question a wrong key before what it lacks.
        ("questions:\n  - text: A?\n    at: 1\n    judge: exact\n  - at: soon\n", 4, "expect"),
        ("questions:\n  - text: A?\n    at: soon\n    judge: exac\n  - at: 1\n", 3, "at: 'soon'"),
        ("questions:\n  - text: A?\n    judge: exac\n    att: 1\n", 3, "did you mean exact"),
        ("questions:\n  - text: A?\n    att: 1\n", 3, "unknown key att"),
        ("questions:\n  - text: A?\n    at: 9\n    about: [3, 2]\n", 4, "about ends at 2"),
        # What can never be asked, seen or meant.
        (
            "questions:\n  - text: A?\n    every: 2\n    from: 10\n    until: 0:05\n",
            5,
            "until is 5 s, before the question is asked first, at 10 s",
        ),
        ("questions:\n  - text: A?\n    every: 9\n    until: 8\n", 4, "asked first, at 9 s"),
        (
            "questions:\n  - text: A?\n    at: 5\n    evidence: [[8, 9], 6]\n",
            4,
            "evidence begins at 6 s, after the question is asked, at 5 s",
        ),
        (
            "questions:\n  - text: A?\n    every: 2\n    until: 7\n    evidence: 7.5\n",
            5,
            "evidence begins at 7.5 s, after the question is asked, at 7 s",
        ),
        ('questions:\n  - text: "\u3000 "\n    at: 5\n', 2, "text: a text of spaces alone"),
        ("questions:\n  - text: ''\n    at: 5\n", 2, "text: an empty text"),
        ("questions:\n  - text: A?\n    at: 5\n    camera: ' '\n", 4, "camera: a text of spaces"),
        ("questions:\n  - text: A?\n    at: 5\n    choices: [a, '']\n", 4, "choices: an empty"),
        (
            "questions:\n  - text: A?\n    at: 5\n    judge: contains\n    expect: ['']\n",
            5,
            "expect: an empty text",
        ),
    ],
)
def test_a_mistake_is_named_with_its_line(write_questions, text, line, words):
    path = write_questions(text)
    with pytest.raises(QuestionFileError, match=words) as caught:
        load_questions(path)
    assert str(caught.value).startswith(f"{path}:{line}:")


def test_all_mistakes_of_a_file_are_named_at_once_in_their_order(write_questions):
    entries = [
        "{text: A?, att: 5}",
        "{text: ' ', at: 5}",
        "{text: B?, at: 5, until: 4}",
        "{text: C?, at: 5}",
        "{text: D?, at: soon}",
        "{id: x, text: E?, at: 5}",
        "{id: x, text: F?, at: 5}",
    ]
    path = write_questions("questions:\n" + "".join(f"- {entry}\n" for entry in entries))
    with pytest.raises(QuestionFileError) as caught:
        load_questions(path)
    first, *others = str(caught.value).splitlines()
    assert first.startswith(f"{path}:2: unknown key att")
    starts = ["line 3: text: ", "line 4: 'until' ", "line 6: at: 'soon'", "line 8: the id 'x' is"]
    assert len(others) == len(starts)
    assert all(line.startswith(start) for line, start in zip(others, starts, strict=True))
    path = write_questions("questions:\n" + "- {text: A?, at: soon}\n" * 1000)
    with pytest.raises(QuestionFileError) as caught:
        load_questions(path)
    told = str(caught.value).splitlines()
    assert len(str(caught.value)) < 1000 and told[-1] == f"and {1001 - len(told)} more mistakes"


def test_evidence_of_which_a_part_comes_later_is_taken(write_questions):
    text = "questions:\n  - {text: A?, at: 33, evidence: [[50, 51], [3, 5]]}\n"
    assert load_questions(write_questions(text)).questions[0].evidence == ((50, 51), (3, 5))


def lines_told(path):
    """The lines that the refusal of a file names, in its order, and the whole of it."""
    with pytest.raises(QuestionFileError) as caught:
        load_questions(path)
    words = str(caught.value).removeprefix(f"{path}:")
    return [int(n) for n in re.findall(r"^(?:line )?(\d+):", words, re.MULTILINE)], words


@pytest.mark.parametrize("number", [".nan", "1e9999", "-.inf", "[.nan, 3]"])
def test_a_number_that_is_none_hides_no_other_mistake(write_questions, number):
    path = write_questions(
        f"questions:\n- {{text: A?, at: -1}}\n- {{text: B?, at: 3, about: {number}}}\n"
        "- {text: C?, at: 4, until: 3}\n- {text: D?, at: 3, extra: .inf}\n"
    )
    lines, words = lines_told(path)
    assert lines == [2, 3, 4, 5]
    assert words.count("is not a usable time or number") == 2


def test_every_mistake_of_one_question_and_of_the_defaults_is_named(write_questions):
    path = write_questions(
        "titel: x\ndefaults:\n  max_new_tokens: 0\n  camera: ''\nquestions:\n"
        "- text: ' '\n  at: -3\n  evidence: [9, 3]\n  judg: x\n"
    )
    lines, words = lines_told(path)
    assert lines == [1, 3, 4, 6, 7, 8, 9]
    assert "exactly one of" not in words
    path = write_questions(
        "questions:\n- text: B?\n  at: 5\n  until: 4\n  choices: [a, a]\n  expect: b\n"
        "  evidence: [[5, 4], [7, 6]]\n"
    )
    assert lines_told(path)[0] == [4, 5, 6, 7, 7]


def test_what_a_broken_key_would_bear_on_is_not_blamed_for_it(write_questions):
    path = write_questions(
        "questions:\n- text: A?\n  evry: 5\n  until: 20\n- text: B?\n  at: 3\n  judge: exac\n"
        "  choices: [a, b]\n  expect: c\n- text: C?\n  every: soon\n  merge: true\n"
    )
    assert lines_told(path)[0] == [3, 7, 11]
    path = write_questions("defaults: {until: [3]}\nquestions:\n- {text: A?, every: 5}\n")
    assert lines_told(path)[0] == [1]


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("evidence: [[12, 13], [10, 20]]", "evidence begins at 10 s, after .* asked, at 5 s"),
        ("about: [10, 20]", "about begins at 10 s, after the question is asked, at 5 s"),
        ("about: 5.5", "about begins at 5.5 s, after the question is asked, at 5 s"),
        ("type: '\u200b'", r"type: a text in which nothing can be seen \('\\u200b'\)"),
        ("tags: ['\u2800']", "tags: a text in which nothing"),
        ("expect: [a, '\u3164\u200d']", "expect: a text in which nothing"),
        ('camera: "\\x9b31m"', r"the control character \\x9b is no text"),
        ("expect: ['!!!']", "expected is '!!!', of which nothing is left to compare"),
        ("judge: contains\n  expect: [cup, '...']", "nothing is left to compare"),
    ],
)
def test_what_can_be_no_answer_no_evidence_and_no_text_is_refused(write_questions, what, words):
    path = write_questions(f"questions:\n- text: A?\n  at: 5\n  {what}\n")
    with pytest.raises(QuestionFileError, match=f":4: {words}" if "\n" not in what else words):
        load_questions(path)


def test_about_may_reach_beyond_the_question_and_marks_within_a_text_stay(write_questions):
    text = "questions:\n- {text: 'A\u200db?', at: 5, about: [3, 20], evidence: [[1, 2], 5]}\n"
    (question,) = load_questions(write_questions(text)).questions
    assert (question.text, question.about) == ("A\u200db?", (3, 20))
    assert question.evidence == ((1, 2), (5, 5))


def test_broken_json_and_files_that_are_not_there_are_explained(write_questions, tmp_path):
    with pytest.raises(QuestionFileError, match=r"q\.json:2: not valid JSON"):
        load_questions(write_questions('{"questions":\n  [}', "q.json"))
    with pytest.raises(QuestionFileError, match="no question file"):
        load_questions(tmp_path / "none.yaml")
    with pytest.raises(QuestionFileError, match="empty"):
        load_questions(write_questions(""))


def test_the_schema_is_one_and_knows_every_key_of_the_example():
    jsonschema.Draft202012Validator.check_schema(schema())


def test_an_importer_of_another_format_can_be_added(tmp_path, monkeypatch):
    def importer(path):
        return QuestionSet(path, (), title="imported")

    monkeypatch.setitem(IMPORTERS, "mine", importer)
    assert load_questions(tmp_path / "x", "mine").title == "imported"
    with pytest.raises(QuestionFileError, match="no importer"):
        load_questions(tmp_path / "x", "yours")


def test_the_example_of_the_documentation_is_valid(write_questions):
    page = (Path(__file__).parents[2] / "docs" / "replay.md").read_text(encoding="utf-8")
    example = re.search(r"```yaml\n(.*?)```", page, re.DOTALL)[1]
    judges = [q.judge.name for q in load_questions(write_questions(example)).questions]
    assert judges == ["contains", "choice", "number", "exact", "none"]


HEAD = "questions:\n  - text: A?\n    at: 1\n"
LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join(10 * [f'*a{n - 1}'])}]\n" for n in range(1, 10)
)
DEEP = 100_000


@pytest.mark.parametrize(
    ("text", "name", "line", "words"),
    [
        (LAUGHS, "q.yaml", 4, "aliases repeat more than"),
        ("a: &a [1, *a]\n", "q.yaml", 1, "stands in what it names"),
        ("a: 1\nb: *a\n", "q.yaml", 2, "alias|anchor"),
        ("[" * DEEP, "q.yaml", 1, "nested deeper"),
        ("\n".join(n * " " + "a:" for n in range(500)), "q.yaml", 65, "nested deeper"),
        ('{"questions":\n' + "[" * DEEP + "]" * DEEP + "}", "q.json", 2, "nested deeper"),
        ('{"questions":\n' + '{"a":' * DEEP, "q.json", 2, "nested deeper"),
        (HEAD + "    extra: {1: a, b: c}\n", "q.yaml", 4, "'1' is not text; a key must be text"),
        (HEAD + "    extra: {? [1, 2] : a}\n", "q.yaml", 4, "a key must be text"),
        ("questions:\n  - text: A?\n    at: " + 4000 * "9", "q.yaml", 3, "4,000 characters"),
        ('{"questions": [{"text": "A",\n"at": ' + 5000 * "9" + "}]}", "q.json", 2, "5,000 char"),
        ("questions:\n  - text: A?\n    at: 1e400\n", "q.yaml", 3, "at: inf"),
        ("questions:\n  - text: A?\n    at: 1e12\n", "q.yaml", 3, "at: .* is no time"),
        ("questions:\n  - text: A?\n    at: '99999999999:00'\n", "q.yaml", 3, "later than any"),
        ("questions:\n  - text: A?\n    at_stamp: '99999999999'\n", "q.yaml", 3, "at_stamp"),
        (HEAD + "    merge: !!bool maybe\n", "q.yaml", 4, "'maybe' is not true or false"),
        (HEAD + "    extra: !!int 1.5\n", "q.yaml", 4, "'1.5' is not a whole number"),
        (HEAD + "    extra: !!python/name:os.system x\n", "q.yaml", 4, "is not supported here"),
        (HEAD + "    extra: !!set {a}\n", "q.yaml", 4, "is not supported here"),
        (HEAD + "---\nquestions: []\n", "q.yaml", 4, "second document"),
        (HEAD + "    judge: regex\n    expect: 'a{99999999999}'\n", "q.yaml", 4, "repeats more"),
        (HEAD + "    judge: regex\n    expect: '(?=a)'\n", "q.yaml", 4, "lookaround"),
        (".nan\n", "q.yaml", 1, "nan is not a usable time"),
        ('{"questions": [{"text":\n"a\\ud800", "at": 1}]}', "q.json", 2, r"\\ud800 is half"),
        ('{"questions": [{"text": "a", "at": 1,\n"extra": {"\\udc00": 1}}]}', "q.json", 2, "half"),
        ('{"questions": [{"text": "a",\n"at": 1, "id": "\\u0000"}]}', "q.json", 2, "control"),
        (f"questions:\n  - text: {10_001 * 'x'}\n    at: 1\n", "q.yaml", 2, "10,001 characters"),
        (HEAD + f"    judge: {1_000_000 * 'x'}\n", "q.yaml", 4, "there is no judge"),
        (HEAD + "    max_new_tokens: 1000000000000\n", "q.yaml", 4, "maximum"),
        (HEAD + "    <<: 5\n", "q.yaml", 4, "takes a mapping"),
    ],
)
def test_what_cannot_be_bounded_is_refused_with_its_line(write_questions, text, name, line, words):
    path = write_questions(text, name)
    with pytest.raises(QuestionFileError, match=words) as caught:
        load_questions(path)
    assert str(caught.value).startswith(f"{path}:{line}:")
    assert len(str(caught.value)) < 1000 + len(str(path))  # whatever the file repeats


def test_files_too_large_or_of_other_text_are_refused_at_once(tmp_path, write_questions):
    large = tmp_path / "large.yaml"
    with large.open("wb") as file:
        file.truncate(2**34)  # sparse
    with pytest.raises(QuestionFileError, match="bytes"):
        load_questions(large)
    with pytest.raises(QuestionFileError, match="not a question file"):
        load_questions("/dev/zero")  # says no size, and has no end
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"questions:\n  - text: caf\xe9\n")
    with pytest.raises(QuestionFileError, match=r"latin\.yaml:2: not text in UTF-8"):
        load_questions(latin)
    many = write_questions("questions: [" + "1, " * 300_001 + "]")
    with pytest.raises(QuestionFileError, match="more than 300,000 values"):
        load_questions(many)


def test_a_few_aliases_and_merge_keys_are_what_they_stand_for(write_questions):
    text = """\
defaults: {tags: &both [a, b]}
questions:
  - &one {text: A?, at: 1, tags: [c], extra: {same: *both}}
  - {<<: *one, text: B?}
"""
    first, second = load_questions(write_questions(text)).questions
    assert (first.extra, second.extra) == ({"same": ["a", "b"]}, {"same": ["a", "b"]})
    assert (second.text, second.at, second.tags) == ("B?", 1.0, ("c",))


def test_numbers_are_those_of_yaml_1_2_and_of_json(write_questions):
    text = "questions: [{text: A, at: 010}, {text: B, at: 1e1}, {text: C, at: 1:05}]"
    assert [q.at for q in load_questions(write_questions(text)).questions] == [10, 10, 65]
    text = '{"questions": [{"text": "A", "at": 1e1, "max_new_tokens": 32.0, "every": 1e-02}]}'
    with pytest.raises(QuestionFileError, match="exactly one of"):
        load_questions(write_questions(text, "q.json"))
    (question,) = load_questions(
        write_questions(text.replace(', "every": 1e-02', ""), "q.json")
    ).questions
    assert question.at == 10 and question.max_new_tokens == 32
    assert isinstance(question.max_new_tokens, int)


def test_an_emoji_is_text_also_as_the_pair_that_json_writes(write_questions):
    questions = {"questions": [{"text": "Seen 🙂?", "at": 1}]}
    pair = json.dumps(questions)
    assert r"\ud83d\ude42" in pair
    for name, text in (
        ("q.json", pair),
        ("q.json", json.dumps(questions, ensure_ascii=False)),
        ("q.yaml", "questions: [{text: Seen 🙂?, at: 1}]"),
    ):
        assert load_questions(write_questions(text, name)).questions[0].text == "Seen 🙂?"


def test_control_characters_are_refused_in_words(write_questions):
    with pytest.raises(QuestionFileError, match="not valid YAML"):
        load_questions(write_questions("\0"))


def refused_by_the_page():
    page = (Path(__file__).parents[2] / "docs" / "replay.md").read_text(encoding="utf-8")
    table = page.partition("| refused | such as |\n|---|---|\n")[2].partition("\n\n")[0]
    return re.findall(r"^\| (.+) \| `(.+)` \|$", table, re.MULTILINE)


@pytest.mark.parametrize(("what", "questions"), refused_by_the_page())
def test_what_the_page_says_is_refused_is_refused(write_questions, what, questions):
    with pytest.raises(QuestionFileError):
        load_questions(write_questions(f"questions: [{questions}]"))
    assert len(refused_by_the_page()) > 12
