# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What a journal gives back is what was put into it, whatever has happened to its file."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stream_vlm_ros.replay.journal import Journal

ANSWERS = [
    {"id": f"q{k}", "answer": f'"{k}"\n', "right": k % 2 == 0, "times": {"ttft": k / 7}, "of": [k]}
    for k in range(4)
]
RUN = {"complete": True, "answers": ANSWERS, "series": [{"at": 0.1, "tokens": 7}]}


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("journal") / "journal.jsonl"
    journal = Journal(path, resume=False)
    for answer in ANSWERS:
        journal.keep_answer("run", answer)
    journal.keep_run("run", RUN)
    journal.close()
    return path, path.read_bytes()


def test_a_whole_one_gives_all(file):
    path, data = file
    path.write_bytes(data)
    journal = Journal(path, resume=True)
    assert [journal.answer("run", answer["id"]) for answer in ANSWERS] == ANSWERS
    assert journal.run("run") == RUN


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(
    cut=st.none() | st.floats(0, 1),
    changes=st.lists(
        st.tuples(st.floats(0, 1), st.sampled_from(b'01}{"[],: x\n\x00\xff')), max_size=4
    ),
)
def test_one_that_was_cut_or_changed_gives_an_answer_as_it_was_or_not_at_all(file, cut, changes):
    path, data = file
    damaged = bytearray(data if cut is None else data[: round(cut * len(data))])
    for share, byte in changes:
        if damaged:
            damaged[round(share * (len(damaged) - 1))] = byte
    path.write_bytes(damaged)
    journal = Journal(path, resume=True)
    for answer in ANSWERS:
        assert journal.answer("run", answer["id"]) in (None, answer)
    assert journal.run("run") in (None, RUN)


@pytest.mark.parametrize("line", [b"5", b"[]", b'{"run": "run"}', b"null", b'"sum"', b'{"sum": 0}'])
def test_a_line_of_another_kind_does_not_count(file, line):
    path, data = file
    path.write_bytes(line + b"\n" + data)
    assert Journal(path, resume=True).answer("run", "q0") == ANSWERS[0]
