# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the released models take; expected values by hand and from the releases' own files."""

import pytest
import torch

from stream_vlm_ros.config import Settings
from stream_vlm_ros.experiments.shapes import words_processor
from stream_vlm_ros.replay.hardware import Hardware, Release, markdown_table

PIXELS = Settings().max_pixels


@pytest.fixture(scope="module")
def released():
    processor = words_processor()
    return lambda shape: Release(shape, shape, torch.bfloat16, processor)


@pytest.mark.parametrize(
    ("shape", "total_size", "token"),
    [  # total_size of model.safetensors.index.json; 2 x layers x KV heads x 128 x 2 bytes
        ("3b", 7_509_245_952, 36_864),
        ("7b", 16_584_333_312, 57_344),
    ],
)
def test_a_release_takes_what_its_files_hold_and_its_tokens(released, shape, total_size, token):
    release = released(shape)
    assert release.weights == pytest.approx(total_size, rel=0.002)  # rows are padded on a GPU
    grown = release.taken(PIXELS, 128_000) - release.taken(PIXELS, 50_000)
    # Of the preset novelty 70 %, and a sixteenth of the rest for the sink, have their keys (half a
    # token) stored twice.
    assert grown == pytest.approx(78_000 * token * (1 + (0.7 + 0.3 / 16) / 2), rel=1e-4)


def test_the_largest_memory_fits_and_a_token_more_does_not(released):
    release, free = released("3b"), 12 * 2**30
    cap = release.largest_cap(PIXELS, free)
    usable = release.weights + 0.95 * (free - release.weights)  # the engine leaves 5 % free
    assert release.taken(PIXELS, cap) <= usable < release.taken(PIXELS, cap + 2)


def test_what_is_smaller_than_the_weights_fits_nothing_and_what_is_huge_fits_the_context(released):
    assert released("7b").largest_cap(PIXELS, 16 * 2**30) == 0
    context = 128_000 - Settings().max_tail_tokens
    assert released("7b").largest_cap(PIXELS, 200 * 2**30) == context


def test_what_others_take_is_not_ours_and_video_is_told_for_the_camera():
    shown = Hardware((640, 480), Settings())
    (_, less), (_, more) = (shown.by_device([12], used) for used in (1, 2))
    tokens = [int(row[1].replace(",", "")) for row in (more, less)]
    assert tokens[1] - tokens[0] == pytest.approx(0.95e9 / (36_864 * 1.359375), abs=2)
    assert (less[0], less[3:]) == ("12 GB", ("does not fit", "–"))
    # 640x480 is resized to 644x476: 23 x 17 tokens for two frames, one such grid a second.
    minutes, seconds = divmod(round(tokens[1] / (23 * 17)), 60)
    assert less[2] == f"{minutes} min {seconds:02d} s"


def test_a_table_is_markdown_with_its_titles_first():
    assert markdown_table([("a", "b"), ("1", "2")]) == "| a | b |\n|---|--:|\n| 1 | 2 |"
