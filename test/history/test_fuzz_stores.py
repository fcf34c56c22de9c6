# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Damaged frame stores: bench/fuzz_stores.py over many seeds."""

import json
import subprocess

import pytest
from scripts import LIMIT, fuzzed, started

MIB = 2**20
# What `use` does to a store, and what the script says of it.
WRONG = """
import json, sys, time
from pathlib import Path
import fuzz_stores as fuzz

stores = fuzz.make_stores(Path(sys.argv[1]))

def wrong_after(name, change):
    fuzz.use = change
    root = Path(sys.argv[1], name)
    root.mkdir()
    found = fuzz.case(0, stores, root)
    print(json.dumps(found | {"name": name, "wrong": bool(fuzz.is_wrong(found))}))

def raises(folder):
    raise KeyError("raw")

def touches(folder):
    (folder.parent / "outside" / "notes.txt").unlink()
    return "whole"

wrong_after("takes", lambda folder: "whole" if b"x" * (64 << 20) else "")
wrong_after("raises", raises)
wrong_after("touches", touches)
fuzz.LIMIT = 0.2
wrong_after("waits", lambda folder: time.sleep(9))
fuzz.LIMIT = 30.0
wrong_after("nothing", lambda folder: "whole")
"""


def test_a_damaged_store_gives_what_was_put_in_or_says_what_is_wrong(tmp_path):
    found = fuzzed("fuzz_stores", tmp_path / "found.json", "--seed", 10_000, "--count", 25)
    assert (found["cases"], found["wrong"]) == (25, [])
    # The mutations do reach it, and do not all end in the same.
    assert len(found["outcomes"]) >= 3


def test_the_fuzz_sees_what_is_wrong(tmp_path):
    told, _ = started(WRONG, tmp_path, stdout=subprocess.PIPE).communicate(timeout=LIMIT)
    found = {one["name"]: one for one in map(json.loads, told.splitlines())}
    assert 60 * MIB <= found["takes"]["memory"] < 96 * MIB
    assert "KeyError" in found["raises"]["outcome"] and found["raises"]["wrong"]
    assert found["touches"]["touched"] and found["touches"]["wrong"]
    assert found["waits"]["outcome"] == "hangs" and found["waits"]["wrong"]
    assert not found["nothing"]["wrong"]


@pytest.mark.slow
def test_five_hundred_damaged_stores(tmp_path):
    found = fuzzed("fuzz_stores", tmp_path / "found.json", "--count", 500, limit=3000)
    assert (found["cases"], found["wrong"]) == (500, [])
