# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Damaged videos and pictures: bench/fuzz_videos.py over some seeds (`make fuzz-videos`: 1,000)."""

import importlib

from scripts import fuzzed


def test_damaged_videos_and_pictures_give_what_is_there_or_say_what_is_not(tmp_path):
    found = fuzzed("fuzz_videos", tmp_path / "found.json", "--first", 50_000, "--cases", 40)
    assert (found["cases"], found["failed"]) == (40, [])
    assert {"less, and said", "refused", "decoded"} <= set(found["outcomes"])


def test_the_fuzz_sees_a_loss_that_nobody_says(tmp_path, monkeypatch):
    fuzz = importlib.import_module("fuzz_videos")
    video = fuzz.make_videos(tmp_path)[0]
    assert fuzz.read_video(video) == "whole"
    monkeypatch.setattr(fuzz, "FRAMES", fuzz.FRAMES + 1)
    assert fuzz.read_video(video).startswith("silent: 120 of 121")
