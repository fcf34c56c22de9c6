# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Damaged frame stores: bench/fuzz_stores.py over many seeds."""

import importlib.util
import time
from pathlib import Path

import pytest

MIB = 2**20
SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "fuzz_stores.py"


@pytest.fixture(scope="module")
def fuzz():
    specification = importlib.util.spec_from_file_location(SCRIPT.stem, SCRIPT)
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_a_damaged_store_gives_what_was_put_in_or_says_what_is_wrong(fuzz):
    found = fuzz.fuzz(first_seed=10_000, count=25)
    assert [one for one in found if fuzz.is_wrong(one)] == []
    # The mutations do reach it, and do not all end in the same.
    assert len({one["outcome"] for one in found}) >= 3


def test_the_fuzz_sees_what_is_wrong(fuzz, tmp_path, monkeypatch):
    stores = fuzz.make_stores(tmp_path)

    def wrong_after(change):
        monkeypatch.setattr(fuzz, "use", change)
        root = tmp_path / f"case {len(list(tmp_path.iterdir()))}"
        root.mkdir()
        return fuzz.case(0, stores, root)

    def raises(folder):
        raise KeyError("raw")

    def touches(folder):
        (folder.parent / "outside" / "notes.txt").unlink()
        return "whole"

    def takes(folder):
        return "whole" if b"x" * (64 * MIB) else ""

    assert 60 * MIB <= wrong_after(takes)["memory"] < 96 * MIB
    assert "KeyError" in wrong_after(raises)["outcome"]
    assert wrong_after(touches)["touched"]
    monkeypatch.setattr(fuzz, "LIMIT", 0.2)
    assert wrong_after(lambda folder: time.sleep(9))["outcome"] == "hangs"
    assert not fuzz.is_wrong(wrong_after(lambda folder: "whole"))


@pytest.mark.slow
def test_five_hundred_damaged_stores(fuzz):
    found = fuzz.fuzz(first_seed=0, count=500)
    assert [one for one in found if fuzz.is_wrong(one)] == []
