# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Damaged rosbags: bench/fuzz_bags.py over a few seeds (`make fuzz-bags`: 2,000)."""

import importlib

from scripts import fuzzed


def test_a_damaged_bag_gives_what_is_there_or_says_what_is_wrong(tmp_path):
    found = fuzzed("fuzz_bags", tmp_path / "found.json", "--seed", 20_000, "--count", 40)
    assert (found["cases"], found["wrong"]) == (40, [])
    # The mutations do reach it, and do not all end in the same.
    assert len(found["outcomes"]) >= 3


def test_the_fuzz_sees_what_is_lost_in_silence(tmp_path):
    fuzz = importlib.import_module("fuzz_bags")
    fuzz.write_ros1(tmp_path / "bag", None)
    assert fuzz.read(tmp_path / "bag") == "whole"
    fuzz.THERE += 1
    try:
        outcome = fuzz.read(tmp_path / "bag")
    finally:
        fuzz.THERE -= 1
    assert fuzz.is_wrong({"outcome": outcome, "memory": 0})
    assert outcome.startswith("silent: 24 of 25")
