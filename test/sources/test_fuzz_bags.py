# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Damaged rosbags: bench/fuzz_bags.py over a few seeds."""

import importlib
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"


@pytest.fixture
def fuzz(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCH))
    return importlib.import_module("fuzz_bags")


def test_a_damaged_bag_gives_what_is_there_or_says_what_is_wrong(fuzz):
    found = fuzz.fuzz(first_seed=20_000, count=40)
    assert [one for one in found if fuzz.is_wrong(one)] == []
    # The mutations do reach it, and do not all end in the same.
    assert len({one["outcome"] for one in found}) >= 3


def test_the_fuzz_sees_what_is_lost_in_silence(fuzz, tmp_path):
    fuzz.write_ros1(tmp_path / "bag", None)
    assert fuzz.read(tmp_path / "bag") == "whole"
    fuzz.THERE += 1
    try:
        outcome = fuzz.read(tmp_path / "bag")
    finally:
        fuzz.THERE -= 1
    assert fuzz.is_wrong({"outcome": outcome, "memory": 0})
    assert outcome.startswith("silent: 24 of 25")
