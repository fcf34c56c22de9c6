# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Lines read again and again are kept once."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from stream_vlm_ros.replay.lines import merged_lines


def test_lines_that_differ_by_case_spaces_or_a_letter_are_one():
    answers = [
        (25.0, "Gate 12\nBoarding now"),
        (50.0, "- GATE  12.\n- Boarding nov"),
        (75.0, "Gate 13"),
    ]
    lines = merged_lines(answers)
    assert [(line.text, line.first, line.last, line.times) for line in lines] == [
        ("Gate 12", 25.0, 50.0, 2),
        ("Boarding now", 25.0, 50.0, 2),
        ("Gate 13", 75.0, 75.0, 1),
    ]


def test_only_alike_to_the_degree_asked_for_is_the_same():
    answers = [(1.0, "the quick brown fox"), (2.0, "the quick brown box")]
    assert len(merged_lines(answers, 0.9)) == 1
    assert len(merged_lines(answers, 1.0)) == 2


@given(st.lists(st.text(alphabet="ab1 \n", max_size=12), max_size=6))
def test_merging_what_is_merged_changes_nothing(texts):
    once = merged_lines(list(enumerate(texts)), 1.0)
    again = merged_lines([(0.0, "\n".join(line.text for line in once))], 1.0)
    assert [line.text for line in again] == [line.text for line in once]
