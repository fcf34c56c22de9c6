# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The tokenizer: any text comes back, and users' text never becomes control tokens."""

import json
import random

import pytest
from amounts import examples
from hypothesis import given, settings
from hypothesis import strategies as st

from stream_vlm_ros.world.evaluate import MODEL
from stream_vlm_ros.world.questions import TYPES, History, ask
from stream_vlm_ros.world.tokenizer import SPECIAL, build_tokenizer, save
from stream_vlm_ros.world.world import World


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


@settings(max_examples=examples(60))
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"])))
def test_any_text_comes_back_unchanged(text):
    tokenizer = build_tokenizer()
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    assert tokenizer.decode(ids, skip_special_tokens=False) == text


def test_questions_of_the_world_need_no_bytes(tokenizer):
    rng = random.Random(0)
    for seed in range(40):
        world = World(seed, signs=0.3)
        stamps = [index / 2 for index in range(80)]
        history = History(world.sightings(stamps[-1]), stamps)
        for type_ in TYPES:
            question = ask(rng, history, type_)
            if question is not None and type_ != "unknown":
                for text in (question.text, question.answer):
                    tokens = tokenizer.encode(text, add_special_tokens=False).tokens
                    assert not [token for token in tokens if token.startswith("<0x")], text


def test_the_shipped_tokenizer_is_the_one_built_here(tmp_path):
    save(tmp_path)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.json"):
        assert json.loads((tmp_path / name).read_text()) == json.loads((MODEL / name).read_text())


def test_special_tokens_in_the_config_are_those_of_the_tokenizer(tokenizer):
    config = json.loads((MODEL / "config.json").read_text())
    for key, name in {
        "image_token_id": "<|image_pad|>",
        "video_token_id": "<|video_pad|>",
        "vision_start_token_id": "<|vision_start|>",
        "vision_end_token_id": "<|vision_end|>",
    }.items():
        assert config[key] == tokenizer.token_to_id(name)
    assert config["text_config"]["eos_token_id"] == tokenizer.token_to_id("<|im_end|>")
    assert config["text_config"]["vocab_size"] == tokenizer.get_vocab_size()


def test_the_chat_layout_is_that_of_qwen():
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast.from_pretrained(str(MODEL))
    content = [{"type": "video"}, {"type": "text", "text": "What came last?"}]
    text = fast.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=False, add_generation_prompt=True
    )
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|video_pad|><|vision_end|>What came last?<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    special = {fast.convert_tokens_to_ids(name) for name in SPECIAL}
    split = fast("<|im_end|><|vision_start|>", split_special_tokens=True)["input_ids"]
    assert not special & set(split)
