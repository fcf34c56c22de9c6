# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Damaged checkpoint folders: bench/fuzz_checkpoints.py over many seeds."""

import pytest
from scripts import fuzzed


@pytest.mark.parametrize(
    ("count", "seed"), [(15, 10_000), pytest.param(500, 0, marks=pytest.mark.slow)]
)
def test_a_damaged_checkpoint_answers_or_is_refused_in_words(tmp_path, count, seed):
    out = tmp_path / "fuzz.json"
    found = fuzzed("fuzz_checkpoints", out, "--count", count, "--seed", seed, limit=3000)
    assert (found["cases"], found["wrong"]) == (count, [])
    # The mutations reach it, and do not all end in the same.
    assert found["outcomes"]["used: ModelLoadError"] > count / 4
    assert found["outcomes"]["used: answers"] > count / 20
