# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Mutated image messages through the node's own decoding; see bench/fuzz_images.py."""

import json

import pytest
from scripts import BENCH, fuzzed

pytestmark = pytest.mark.ros

RESULTS = BENCH / "results" / "fuzz_images.json"


def holds(found):
    assert found["raw_exceptions"] == [] and found["unbalanced"] == 0
    counts = found["counts"]
    dropped = sum(count for name, count in counts.items() if name.startswith("dropped_"))
    assert counts["frames_received"] == counts["frames_ingested"] + dropped == found["messages"]
    assert sum(found["causes"].values()) == dropped
    assert found["slowest_seconds"] < 10
    assert found["megabytes_more_at_the_peak"] <= found["megabytes_allowed"]
    # It reaches what it is for: a good part is decoded, and sizes are refused.
    assert counts["frames_ingested"] > 0.1 * found["messages"]
    assert any("max_decoded_megapixels" in cause for cause in found["causes"])


def test_two_thousand_messages(tmp_path):
    holds(fuzzed("fuzz_images", tmp_path / "found.json", "--messages", 2000))


@pytest.mark.slow
def test_two_hundred_thousand_messages(tmp_path):
    holds(fuzzed("fuzz_images", tmp_path / "found.json", "--messages", 200_000, limit=3000))


def test_the_results_kept_are_of_two_hundred_thousand_messages():
    found = json.loads(RESULTS.read_text())
    assert found["messages"] >= 200_000 and found["passed"]
    holds(found)
