# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Programs that tests start. What forks is never forked off a test: in the child of a process with
threads a lock may be held by one that is not there."""

import json
import os
import subprocess
import sys
from pathlib import Path

BENCH = Path(__file__).resolve().parents[2] / "bench"
LIMIT = 240.0  # s


def started(program: str, *arguments: object, **options) -> subprocess.Popen:
    """A Python program that imports the package that is tested."""
    package = str(Path(sys.modules["stream_vlm_ros"].__file__).parents[1])
    paths = os.pathsep.join([package, str(BENCH)])
    return subprocess.Popen(
        [sys.executable, "-c", program, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": paths},
        **options,
    )


def fuzzed(name: str, out: Path, *options: object, limit: float = LIMIT) -> dict:
    """What a fuzz script of bench/ found."""
    command = [sys.executable, BENCH / f"{name}.py", "--out", out, *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=limit, check=False)
    assert out.exists(), done.stderr[-5000:]
    return json.loads(out.read_text())
