# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The benchmarks that a CPU runs in minutes, one after the other: ``make bench``.

    python bench/run.py                      # all, results beside the committed ones
    python bench/run.py against_stock        # some
    python bench/run.py --out results

Each prints a table and writes JSON with machine, versions, date and load. Run them on an idle
machine; what compares two things does so by turns, as ratios. Apart, because they take longer or
need ROS or a GPU: delayed_batch.py, reader.py, node_overhead.py, web.py, gpu.py,
experiments_gpu.py, history_trial.py, large_on_cpu.py.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
BENCHMARKS = ("small_model", "against_stock", "frame_memory", "ingest_while_answering", "saving")


def main() -> int:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("names", nargs="*", help=", ".join(BENCHMARKS))
    parse.add_argument("--out", type=Path, default=FOLDER / "results")
    options = parse.parse_args()
    unknown = [name for name in options.names if name not in BENCHMARKS]
    if unknown:
        parse.error(f"no benchmark {unknown[0]}; there are {', '.join(BENCHMARKS)}")
    failed = []
    for name in options.names or BENCHMARKS:
        print(f"== {name}", flush=True)
        out = ["--out", str(options.out / f"{name}.json")]
        command = [sys.executable, str(FOLDER / f"{name}.py"), *out]
        if subprocess.run(command, check=False).returncode:
            failed.append(name)
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
