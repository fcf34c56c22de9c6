# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The text of an answer, token by token."""

import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from stream_vlm_ros.engine.decoding import AnswerText, DecodingOptions, Sampler


@pytest.fixture(scope="module")
def byte_tokenizer():
    """As Qwen's: byte by byte, so that a character takes up to four tokens."""
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = Tokenizer(models.BPE({letter: n for n, letter in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.add_special_tokens({"additional_special_tokens": ["<|box|>"]})
    return fast


@pytest.fixture
def decoded(byte_tokenizer):
    """How to decode, and how many tokens each call was given."""
    counts = []

    def decode(ids):
        counts.append(len(ids))
        return byte_tokenizer.decode(list(ids), skip_special_tokens=True)

    return decode, counts


@pytest.mark.parametrize(
    "text", ["Grüße, 世界! 🤖🤖 ok", "plain words", "<|box|>é<|box|>", "🤖" * 40]
)
def test_the_pieces_are_the_text_and_no_piece_is_half_a_character(byte_tokenizer, decoded, text):
    decode, _ = decoded
    said = AnswerText(decode, ())
    pieces = [said.add(token) for token in byte_tokenizer.encode(text)]
    pieces.append(said.finish())
    assert "".join(pieces) == said.text == text.replace("<|box|>", "")
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_token_costs_the_same_at_the_end_of_a_long_answer(byte_tokenizer, decoded):
    decode, counts = decoded
    said = AnswerText(decode, ("never",))
    for token in byte_tokenizer.encode("Grüße an 🤖. " * 100):
        said.add(token)
    assert max(counts) <= 8
    for token in [byte_tokenizer.encode("é")[0]] * 200:  # never a character
        said.add(token)
    assert max(counts) <= 40


def test_a_stop_text_is_found_wherever_tokens_and_characters_end(byte_tokenizer, decoded):
    decode, _ = decoded
    draw = random.Random(3)
    for _ in range(200):
        text = "".join(draw.choice("aé🤖 .") for _ in range(30))
        at = draw.randrange(26)
        stop = text[at : at + draw.randint(1, 4)]
        said = AnswerText(decode, ["no such", stop])
        pieces = []
        for token in byte_tokenizer.encode(text):
            pieces.append(said.add(token))
            if said.stopped:
                break
        assert "".join(pieces) == said.text == text[: text.find(stop)]


WORDS = ("a", "b", "ab", "ba.", ".", " b", "b. a", "")  # the last is a control token


@given(
    ids=st.lists(st.integers(0, len(WORDS) - 1), min_size=1, max_size=8),
    stop=st.text("ab. ", min_size=1, max_size=3),
)
def test_the_ids_of_what_was_shown_are_its_text_however_a_stop_text_cuts_tokens(ids, stop):
    said = AnswerText(lambda some: "".join(WORDS[number] for number in some), [stop])
    for token in ids:
        said.add(token)
        if said.stopped:
            break
    said.finish()
    whole = "".join(WORDS[number] for number in ids)
    shown = said.shown_ids(lambda text: [WORDS.index(c) if c in WORDS else 100 for c in text])
    assert said.text == whole.split(stop)[0]
    assert "".join(WORDS[n] if n < 100 else " " for n in shown) == said.text
    same = [one == other for one, other in zip(shown, ids, strict=False)]
    cut = same.index(False) if False in same else len(same)
    # Only a token that the stop text cuts is written otherwise.
    assert len("".join(WORDS[n] if n < 100 else " " for n in shown[cut:])) < 4


def test_a_foreseen_token_is_chosen_whatever_becomes_of_its_logits():
    """A recorded step writes the next ones to the same place."""
    sampler = Sampler(DecodingOptions(), [1], torch.device("cpu"))
    place, expected = torch.empty(50), []
    for drawn in torch.randn(4, 50, generator=torch.Generator().manual_seed(0)):
        place.copy_(drawn)
        foreseen = sampler.foresee(place)
        place.fill_(float("nan"))
        assert sampler.choose(place) == int(foreseen) == int(drawn.argmax())
        expected.append(float(drawn.log_softmax(-1).max()))
    assert sampler.logprobs(3) == pytest.approx(expected[:3], abs=1e-6)


@pytest.mark.parametrize("options", [{"do_sample": True}, {"repetition_penalty": 1.2}])
def test_what_is_drawn_or_penalised_is_not_foreseen(options):
    sampler = Sampler(DecodingOptions(seed=0, **options), [1], torch.device("cpu"))
    logits = torch.randn(50, generator=torch.Generator().manual_seed(0))
    assert sampler.foresee(logits) is None
    chosen = [sampler.choose(logits) for _ in range(3)]
    expected = logits.log_softmax(-1)[chosen].tolist()
    assert sampler.logprobs(3) == pytest.approx(expected, abs=1e-6)
