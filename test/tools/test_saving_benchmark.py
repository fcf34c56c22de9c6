# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""bench/saving.py: whatever kills a process that saves, there is a whole memory."""

import time
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "saving.py"


@pytest.fixture(scope="module")
def bench(load):
    return load(SCRIPT)


def test_a_process_that_is_killed_while_it_saves_leaves_a_whole_memory(bench, tmp_path):
    found = bench.kills(tmp_path, 12, seed=1)
    assert found["outcomes"] == {"whole": 12}
    assert found["left_after_the_next_save"] == []
    assert found["in_the_middle"] > 0


def test_the_kills_see_a_file_that_is_written_in_its_place(bench, tmp_path, monkeypatch):
    def in_place(path, data, mode):
        with open(path, "wb") as file:
            for piece in data:
                file.write(piece)
                file.flush()
                time.sleep(0.005)  # so that kills fall into it on a busy machine, too

    monkeypatch.setattr("stream_vlm_ros.engine.saving.memory_file.write_whole", in_place)
    found = bench.kills(tmp_path, 30, seed=1)
    assert set(found["outcomes"]) - {"whole"}


def test_the_times_are_of_as_many_bytes(bench, tmp_path):
    found = bench.measure_times(tmp_path, 2, tokens=1024)
    assert found["tokens"] == 1024
    # Keys and values: 36 layers x 2 x 2 heads x 128 x 2 bytes.
    assert 1024 * 36_864 <= found["megabytes"] * 1e6 < 1.01 * 1024 * 36_864
    assert found["ratio_from_to"][0] <= found["ratio"] <= found["ratio_from_to"][1]
