# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""bench/gpu.py on a CPU with a toy: all sections run, keep to their time, are drawn and told."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).resolve().parents[2] / "bench"
TOY = "--device cpu --shape toy --size 224x168 --caps 1024 512 --small --repeats 2".split()


def run(script, *arguments):
    command = [sys.executable, str(BENCH / script), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_every_section_gives_figures_that_can_be_drawn(tmp_path):
    out = tmp_path / "gpu.json"
    done = run("gpu.py", *TOY, "--out", out)
    assert done.returncode == 0, done.stderr
    report = json.loads(out.read_text())
    assert all("failed" not in section for section in report["sections"].values())
    assert {"against_reference", "steady", "eviction", "curves"} <= set(report["sections"])
    bars = report["sections"]["against_reference"]["bars"]
    assert bars and all(bar["holds"] == (bar["measured"] <= bar["at_most"]) for bar in bars)
    drawn = run("gpu_plots.py", out)
    assert drawn.returncode == 0, drawn.stderr
    assert len(list(tmp_path.glob("gpu-*.png"))) == 5
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "performance.md"
    page.write_text((BENCH.parent / "docs" / "performance.md").read_text())
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "results").symlink_to(tmp_path)
    written = run("performance_page.py", tmp_path)
    assert written.returncode == 0, written.stderr
    text = page.read_text()
    assert "shape toy" in text and "Not in this file" not in text
    assert "![gpu-over-cap](../bench/results/gpu-over-cap.png)" in text

    again = run("gpu.py", *TOY, "--out", out, "--sections", "steady")
    assert again.returncode == 0, again.stderr
    kept = json.loads(out.read_text())["sections"]
    assert kept["curves"] == report["sections"]["curves"]


@pytest.mark.slow
def test_what_there_is_no_time_for_is_said(tmp_path):
    done = run("gpu.py", *TOY, "--out", tmp_path / "gpu.json", "--minutes", 0)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("skipped, no time left") == len(
        [line for line in done.stdout.splitlines() if line.startswith("== ")]
    )


@pytest.mark.slow
def test_the_steps_of_a_question_are_timed():
    done = run("question_steps.py", "--shape", "toy", "--caps", 500, "--times", 1)
    assert done.returncode == 0, done.stderr
    assert "memory of 500 tokens" in done.stdout and "without its attention" in done.stdout
    assert "attention of a question" in done.stdout
