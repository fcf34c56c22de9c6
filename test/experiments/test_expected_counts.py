# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Lengths and evictions reckoned from sizes, held against the reference's run and a plain count."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stream_vlm_ros.engine import StreamProcessor
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.experiments.expected_counts import (
    Prediction,
    TextTokens,
    grid_tokens,
    lengthened_system_prompt,
)
from stream_vlm_ros.experiments.long_video import figures
from stream_vlm_ros.experiments.reference import LONG_VIDEO_COUNTS
from stream_vlm_ros.experiments.shapes import words_processor

QWEN = Path(
    os.environ.get("STREAM_VLM_QWEN_PROCESSOR")
    or Path(__file__).parents[2].parent / "shared/data/qwen2_5_vl"
)


@pytest.fixture(
    scope="module",
    params=[
        "words",
        pytest.param(
            "qwen",
            marks=pytest.mark.skipif(
                not QWEN.is_dir(), reason="no Qwen processor: set STREAM_VLM_QWEN_PROCESSOR"
            ),
        ),
    ],
)
def processor(request):
    return words_processor() if request.param == "words" else StreamProcessor.from_pretrained(QWEN)


def test_a_full_hd_grid_has_39_rows_of_69_tokens(processor):
    # 1080 and 1920 rounded to multiples of 28: 1092 and 1932.
    assert grid_tokens(processor, (1920, 1080)) == 39 * 69


def test_the_chat_layout_takes_18_text_tokens_and_7_for_each_further_turn(processor):
    # <|im_start|>system\n You are a helpful assistant .<|im_end|>\n: 11; <|im_start|>user\n: 3;
    # <|vision_start|>: 1; then <|vision_end|><|im_end|>\n: 3; a later turn: 3 + 1 before.
    text = TextTokens.of(processor)
    assert (text.head, text.close, text.turn) == (15, 3, 4)


def test_the_references_long_video_comes_out_to_the_token(processor):
    system = lengthened_system_prompt(processor, 53)
    predicted = Prediction.of(processor, (1920, 1080), 400, 4, 150_000, "segmented", system)
    assert figures(predicted.steps(), predicted.sink, predicted.window) == LONG_VIDEO_COUNTS
    assert len(predicted.chunks) == 100


def test_the_references_chunk_sizes_come_out_to_the_token(processor):
    # 8 x 8 tokens a grid of its small frames, and 55 text tokens.
    system = lengthened_system_prompt(processor, 55)
    first = [
        Prediction.of(processor, (224, 224), frames, frames, 1000, "segmented", system).sink
        for frames in (2, 4, 6, 3)
    ]
    assert first == [119, 183, 247, 183]


def test_a_prompt_shorter_than_any_cannot_be_made(processor):
    with pytest.raises(InvalidParameterError, match="text tokens"):
        lengthened_system_prompt(processor, 5)


@given(
    chunks=st.lists(st.integers(1, 50), min_size=1, max_size=40),
    room=st.integers(50, 200),
)
def test_the_steps_are_those_of_a_plain_count(chunks, room):
    cap = chunks[0] + room
    length, expected = 0, []
    for tokens in chunks:
        length += tokens
        evicted = 0
        while length > cap:  # one by one
            length -= 1
            evicted += 1
        expected.append((tokens, evicted, length))
    steps = Prediction(tuple(chunks), cap).steps()
    assert [(step.tokens, step.evicted, step.length) for step in steps] == expected


def test_an_odd_last_chunk_is_padded_and_layouts_differ_by_their_text(processor):
    sizes = {
        layout: Prediction.of(processor, (56, 56), 7, 4, 1000, layout).chunks
        for layout in ("continuous", "segmented")
    }
    assert sizes["continuous"] == (15 + 2 * 4, 2 * 4)  # 3 frames are 2 grids
    assert sizes["segmented"] == (18 + 2 * 4, 7 + 2 * 4)
