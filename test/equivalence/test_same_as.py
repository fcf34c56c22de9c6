# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The harness itself: it sees what differs, and says when a tree's process is gone."""

import os
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

FOLDER = Path(__file__).parent
sys.path.insert(0, str(FOLDER))  # the harness is a program of several files, and no package

import pair  # noqa: E402
from comparison import Worst, broke_a_tie, differences  # noqa: E402

FAULTS = [
    "choices_score_with_the_wrong_sign",
    "one_token_fewer_is_kept",
    "restoring_does_nothing",
    "a_kept_exchange_is_not_kept",
    "stamps_are_a_tenth_late",
]


def test_what_a_tree_says_more_is_no_difference():
    assert differences({"a": 1}, {"a": 1, "b": 2}) == []
    assert differences({"a": 1, "b": 2}, {"a": 1}) == [".b: is missing"]


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (1, 2),
        (1, 1.0),
        (True, 1),
        ("a", "b"),
        (None, 0),
        (0.5, 0.5000001),
        ([1, 2], [1, 2, 3]),
        ([1, 2], [1, 3]),
        ("ab", ["a", "b"]),
        ({"a": [{"b": 1}]}, {"a": [{"b": 2}]}),
        (np.zeros(3), np.zeros(4)),
        (np.zeros(3), [0, 0, 0]),
        (np.zeros(3), np.array([0, 0, 2e-5])),
        (np.zeros(3), np.array([0, 0, np.nan])),
        (np.full(3, 7.0), np.full(3, 7.0001)),
    ],
)
def test_what_differs_is_seen(before, after):
    assert len(differences(before, after)) == 1
    assert differences(before, before) == []


def test_arrays_may_be_a_hundred_thousandth_of_their_largest_value_apart():
    worst: dict[str, Worst] = {}
    before = np.array([20.0, 0.0, np.inf])
    after = np.array([20.0, 1.9e-4, np.inf])
    assert differences({"logits": [before]}, {"logits": [after]}, worst) == []
    assert worst["logits"].absolute == pytest.approx(1.9e-4)
    assert worst["logits"].relative == pytest.approx(1.9e-4 / 20)
    assert len(differences(before, np.array([20.0, 2.1e-4, np.inf]))) == 1


def test_only_two_tokens_nearer_than_the_tolerance_are_a_tie():
    tie, clear = np.array([0.0, 1.0, 1.000004]), np.array([0.0, 1.0, 1.01])
    other = tie[[0, 2, 1]]
    assert broke_a_tie([clear, tie], [clear, other])
    assert not broke_a_tie([clear, clear], [clear, clear[[0, 2, 1]]])
    # They had parted before: in a token that was no tie.
    assert not broke_a_tie([clear, tie], [clear + 0.1, other])
    assert not broke_a_tie([clear], [clear])


def script(tmp_path, body):
    file = tmp_path / "script.py"
    file.write_text(
        textwrap.dedent(
            """
            import os, sys, time
            from multiprocessing.connection import Connection
            connection = Connection(int(sys.argv[2]))
            connection.send({"ready": True})
            connection.recv()
            """
        )
        + textwrap.dedent(body)
    )
    return file


def test_what_an_engine_prints_is_no_answer(tmp_path):
    child = pair.Child(
        "after", tmp_path, script=script(tmp_path, "print('on'); connection.send({'result': 1})")
    )
    child.send("look", {})
    assert child.answer() == {"result": 1}
    child.close()


def test_a_process_that_dies_is_named_with_what_it_said(tmp_path):
    child = pair.Child("after", tmp_path, script=script(tmp_path, "raise SystemExit('no memory')"))
    child.send("look", {})
    with pytest.raises(pair.ChildFailed, match=r"(?s)the after tree's .* ended .*no memory"):
        child.answer()
    child.close()


def test_a_process_that_does_not_answer_is_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(pair, "COMMAND_SECONDS", 0.2)
    child = pair.Child("after", tmp_path, script=script(tmp_path, "time.sleep(100)"))
    child.send("look", {})
    with pytest.raises(pair.ChildFailed, match=r"not answered within 0.2 s \(status -9\)"):
        child.answer()
    child.close()


needs_history = pytest.mark.skipif(
    subprocess.run(["git", "-C", FOLDER, "rev-parse", "HEAD"], capture_output=True).returncode != 0,
    reason="needs the repository's history, which this copy lacks",
)


def same_as(*options):
    """The commit HEAD against itself, whatever stands in the working tree."""
    tree_at = FOLDER.parents[1] / "tools" / "tree_at.sh"
    head = subprocess.run([tree_at, "HEAD"], stdout=subprocess.PIPE, text=True, check=True)
    command = [sys.executable, FOLDER / "same_as.py", "--rev", "HEAD"]
    return subprocess.run(
        [*command, "--tree", head.stdout.strip(), *options],
        env={**os.environ, "PYTHONPATH": "", "PYTHONSAFEPATH": ""},
        capture_output=True,
        text=True,
        timeout=600,
    )


@needs_history
@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_in_the_second_tree_is_found(fault):
    done = same_as("--machines", "100", "--no-shrink", "--fault", fault)
    assert done.returncode == 1 and "AssertionError" in done.stderr, done.stderr


@needs_history
@pytest.mark.slow
def test_a_tree_is_the_same_as_itself():
    done = same_as("--machines", "10")
    assert done.returncode == 0 and "steps: equal" in done.stdout, done.stderr
