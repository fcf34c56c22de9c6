# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Question files changed at random: loaded, or refused in words; never a hang or a traceback."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "fuzz_questions.py"


@pytest.mark.parametrize(
    ("files", "seed"), [(300, 1), pytest.param(10_000, 2, marks=pytest.mark.slow)]
)
def test_mutated_files_are_loaded_or_refused_with_their_line(tmp_path, files, seed):
    out = tmp_path / "fuzz.json"
    options = ["--files", str(files), "--seed", str(seed), "--out", str(out)]
    done = subprocess.run(
        [sys.executable, str(SCRIPT), *options], capture_output=True, text=True, timeout=3600
    )
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-5000:]
    result = json.loads(out.read_text())
    assert (result["raised"], result["too_slow"], result["failures"]) == (0, 0, [])
    assert result["loaded"] + result["refused"] == result["files"] == files
    assert result["loaded"] > files / 50 and result["reasons"] > 20  # the changes are of many kinds
    # An empty file has no line.
    assert result["refused"] - result["refused_with_line"] <= files / 100
    assert result["refused_at_length"] == 0
    assert result["memory_mb_most"] - result["memory_mb_before"] < 200
