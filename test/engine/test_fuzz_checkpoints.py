# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Damaged checkpoint folders: bench/fuzz_checkpoints.py over many seeds.

In a process of its own, since each case is a fork of it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "fuzz_checkpoints.py"


@pytest.mark.parametrize(
    ("count", "seed"), [(15, 10_000), pytest.param(500, 0, marks=pytest.mark.slow)]
)
def test_a_damaged_checkpoint_answers_or_is_refused_in_words(tmp_path, count, seed):
    out = tmp_path / "fuzz.json"
    done = subprocess.run(
        [sys.executable, SCRIPT, "--count", str(count), "--seed", str(seed), "--out", out],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=3000,
    )
    assert out.exists(), done.stderr[-5000:]
    result = json.loads(out.read_text())
    assert (result["wrong"], done.returncode) == ([], 0)
    # The mutations reach it, and do not all end in the same.
    assert result["cases"] == count and result["outcomes"]["used: ModelLoadError"] > count / 4
    assert result["outcomes"]["used: answers"] > count / 20
