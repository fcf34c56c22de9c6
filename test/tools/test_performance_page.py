# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""docs/performance.md says what the files under bench/results hold."""

import json
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "bench" / "results"
HEADER = {
    "machine": "Some GPU",
    "shape": "3b",
    "dtype": "torch.bfloat16",
    "size": "1920x1080",
    "torch": "2.11.0",
    "transformers": "5.17.0",
    "date": "2026-01-02",
    "teraflops": 779.7,
    "terabytes_a_second": 4.17,
}


@pytest.fixture(scope="module")
def page(load):
    return load(ROOT / "bench" / "performance_page.py")


@pytest.fixture
def results(tmp_path):
    """Writes reports into a folder of their own, which it returns."""

    def write(**reports):
        for name, report in reports.items():
            (tmp_path / f"{name}.json").write_text(json.dumps(report))
        return tmp_path

    return write


def line_with(text, words):
    (line,) = (line for line in text.splitlines() if words in line)
    return line


def test_the_page_equals_the_results(page):
    text = (ROOT / "docs" / "performance.md").read_text()
    assert page.with_tables(text, RESULTS) == text, "run: make docs"


def test_a_figure_that_misses_its_bar_is_bold_whichever_way_the_bar_points(page, results):
    quick = {"wall_median": 99.0}
    small = {"machine": "CPU", "load_average": [0.25, 1, 2], "chunk_of_4_ms": quick}
    small |= {"first_token_ms": {"wall_median": 151.0}, "whole_answer_ms": {"wall_median": 499.0}}
    small |= {"load_ms": {"wall_median": 1000.0}}
    speeds = {"camera": {"times_real_time_on_one_core": 10.0, "load_average": 7.5}}
    speeds |= {"x264 defaults": {"times_real_time_on_one_core": 9.9}}
    reader = {"machine": "other", "encodings": speeds}
    text = page.cpu_table(results(small_model=small, reader=reader))
    assert line_with(text, "a chunk of four") == (
        "| Small model, a chunk of four 640x480 frames | ≤ 100 ms | 99.0 ms "
        "| [`small_model`](../bench/results/small_model.json): CPU, load 0.2 |"
    )
    assert "| ≤ 150, 500 ms | **151**, 499 ms | |" in line_with(text, "whole answer")
    assert "| ≤ 1,000 ms | 1,000 ms |" in line_with(text, "loading it")
    read = line_with(text, "Reading")
    assert "| ≥ 10 | 10.0, **9.90** |" in read and "other, load 7.5" in read
    assert "stock" not in text  # not measured here


def test_bars_of_a_gpu_are_told_as_the_file_has_them(page, results):
    held = {"what": "token, cap 150,000", "measured": 5.161, "unit": "ms", "at_most": 5.5}
    missed = {"what": "peak_reserved_gib, cap 9", "measured": 16.9, "unit": "GiB", "at_most": 16.5}
    bars = [held | {"go_for": 4, "holds": True}, missed | {"go_for": None, "holds": False}]
    section = {"caps": {}, "bars": bars, "skipped": ["cap: 16384"]}
    report = HEADER | {"sections": {"against_reference": section, "steady": {"failed": "Oops"}}}
    text = page.gpu_tables(results(gpu=report))
    assert "| a further token, cap 150,000 | 5.5 ms | 4 ms | 5.16 ms | ok |" in text
    assert "| peak reserved, cap 9 | 16.5 GiB | | 16.9 GiB | **miss** |" in text
    assert "Left out of `against_reference` for lack of time: cap: 16384." in text
    missing = line_with(text, "Not in this file")
    assert "`curves`" in missing and "`steady`" in missing and "reference" not in missing


def test_ours_stands_beside_the_reference_and_the_floor(page, results):
    row = {
        "ours": {"chunk": {"median": 740.087, "runs": 5}, "peak_reserved_gib": 14.87},
        "reference_style": {"chunk": {"median": 1497.542}, "peak_reserved_gib": 22.46},
        "times_faster": {"chunk": 2.02},
        "floor": {"chunk": 383.932},
    }
    section = {"caps": {"150000": row}, "bars": []}
    text = page.gpu_tables(results(gpu=HEADER | {"sections": {"against_reference": section}}))
    assert "| 150,000 | a whole chunk | 1,498 | 740 | 2.02 | 384 |" in text
    assert "| 150,000 | peak reserved, GiB | 22.5 | 14.9 | | |" in text


def test_the_references_long_video_has_its_bar(page, results):
    folder = results(gpu=HEADER | {"sections": {}})
    path = folder / page.LONG_VIDEO
    path.parent.mkdir(parents=True)
    for seconds, verdict in (
        (53.06, "53.1 s, at most 75 s: ok"),
        (75.1, "75.1 s, at most 75 s: **miss**"),
    ):
        report = {
            "summary": {"frames": 400, "seconds": seconds},
            "tables": [{"columns": ["", "reference", "ours"], "rows": [["evictions", "73", "–"]]}],
        }
        path.write_text(json.dumps(report))
        text = page.gpu_tables(folder)
        assert f"400 frames, {verdict}" in text and "| evictions | 73 | |" in text


def test_without_a_gpu_nothing_is_claimed_of_one(page, results):
    assert page.gpu_tables(results()) == "Not measured yet."


def test_a_page_without_its_markers_is_not_written_over(page):
    with pytest.raises(AssertionError, match="lacks its markers of cpu"):
        page.with_tables("# Performance\n", RESULTS)


def test_answers_at_once_stand_beside_those_written_by_turns(page, results):
    """A row for each count: 8 tokens a second by turns, 40 together."""
    row = {"first_token": {"median": 6.0, "p99": 9.0}, "token": {"median": 4.5, "p99": 5.25}}
    rows = [
        {"answers": 1, "by_turns": False, "tokens_a_second": 7.5, **row},
        {"answers": 4, "by_turns": False, "tokens_a_second": 40.0, **row},
        {"answers": 4, "by_turns": True, "tokens_a_second": 8.0, **row},
    ]
    text = page.gpu_tables(results(gpu=HEADER | {"sections": {"answers_at_once": {"rows": rows}}}))
    assert line_with(text, "| 1 |") == "| 1 | 7.50 | 7.50 | 6.00 | 9.00 | 4.50 | 5.25 |"
    assert line_with(text, "| 4 |") == "| 4 | 40.0 | 8.00 | 6.00 | 9.00 | 4.50 | 5.25 |"
