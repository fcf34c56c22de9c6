# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Damaged videos and pictures: bench/fuzz_videos.py over some seeds (`make fuzz-videos`: 1,000)."""

import importlib.util
from pathlib import Path

import pytest

SCRIPT = Path(__file__).resolve().parents[2] / "bench" / "fuzz_videos.py"


@pytest.fixture(scope="module")
def fuzz():
    spec = importlib.util.spec_from_file_location("fuzz_videos", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_damaged_videos_and_pictures_give_what_is_there_or_say_what_is_not(fuzz, tmp_path):
    videos, pictures = fuzz.make_videos(tmp_path), fuzz.make_pictures()
    outcomes = [fuzz.case(seed, videos, pictures)["outcome"] for seed in range(50_000, 50_040)]
    assert [o for o in outcomes if o.startswith(("raw", "hangs", "silent"))] == []
    assert {"less, and said", "refused", "decoded"} <= set(outcomes)


def test_the_fuzz_sees_a_loss_that_nobody_says(fuzz, tmp_path, monkeypatch):
    video = fuzz.make_videos(tmp_path)[0]
    assert fuzz.read_video(video) == "whole"
    monkeypatch.setattr(fuzz, "FRAMES", fuzz.FRAMES + 1)
    assert fuzz.read_video(video).startswith("silent: 120 of 121")
