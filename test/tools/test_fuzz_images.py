# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Mutated image messages through the node's own decoding; see bench/fuzz_images.py."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.ros

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "fuzz_images.py"
RESULTS = SCRIPT.parent / "results" / "fuzz_images.json"


def fuzzed(tmp_path, messages, *options):
    """What the script found, in a process of its own: its memory is measured, and it may crash."""
    out = tmp_path / "found.json"
    command = [sys.executable, SCRIPT, "--messages", str(messages), "--out", out, *options]
    ended = subprocess.run(command, capture_output=True, text=True)
    assert out.exists(), f"status {ended.returncode}: {ended.stderr[-3000:]}"  # a crash, or a hang
    return json.loads(out.read_text())


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
    holds(fuzzed(tmp_path, 2000))


@pytest.mark.slow
def test_two_hundred_thousand_messages(tmp_path):
    holds(fuzzed(tmp_path, 200_000))


def test_the_results_kept_are_of_two_hundred_thousand_messages():
    found = json.loads(RESULTS.read_text())
    assert found["messages"] >= 200_000 and found["passed"]
    holds(found)
