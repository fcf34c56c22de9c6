# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The small model's tokenizer: the world's words whole, everything else as bytes.

Qwen's special tokens keep their names, with ids of their own. Words and numbers of the world are
one token each; any other text falls back to the bytes of its UTF-8 form, so every text can be
encoded and comes back unchanged.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING

from stream_vlm_ros.world.questions import vocabulary
from stream_vlm_ros.world.world import SIGN_LETTERS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SPECIAL = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>",
    "<|box_start|>", "<|box_end|>", "<|quad_start|>", "<|quad_end|>", "<|vision_start|>",
    "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip
UNKNOWN = "<unk>"
PIECE = r" ?\p{L}+| ?\p{N}{1,2}|\n| ?[^\s\p{L}\p{N}]|\s"
CHAT_TEMPLATE = (
    "{% for message in messages %}{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ message['role'] }}\n{% if message['content'] is string %}"
    "{{ message['content'] }}<|im_end|>\n{% else %}{% for content in message['content'] %}"
    "{% if content['type'] == 'image' or 'image' in content or 'image_url' in content %}"
    "<|vision_start|><|image_pad|><|vision_end|>"
    "{% elif content['type'] == 'video' or 'video' in content %}"
    "<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in content %}{{ content['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endif %}"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def pieces() -> list[str]:
    """The vocabulary without special tokens and bytes, in order of ids."""
    found = {"system", "user", "assistant", "\n", " ", ".", ",", "?", ":", "!"}
    found |= set(re.findall(r" ?[A-Za-z]+", "You are a helpful assistant"))
    for text in vocabulary():
        found |= set(re.findall(r" ?[A-Za-z]+", re.sub(r"\{.*?\}", " a ", text)))
    found |= {f" {number}" for number in range(100)} | {str(digit) for digit in range(10)}
    found |= set(SIGN_LETTERS) | {f" {letter}" for letter in SIGN_LETTERS}
    return sorted(found)


def build_tokenizer() -> Tokenizer:
    """The tokenizer as a `tokenizers.Tokenizer`."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = [(UNKNOWN, -20.0)] + [(f"<0x{byte:02X}>", -10.0) for byte in range(256)]
    vocabulary += [(piece, -1.0) for piece in pieces()]
    tokenizer = Tokenizer(models.Unigram(vocabulary, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Split(Regex(PIECE), "isolated")
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(
        [AddedToken(name, special=True, normalized=False) for name in SPECIAL]
    )
    return tokenizer


def save(folder: str | Path) -> dict[str, int]:
    """Write tokenizer.json, tokenizer_config.json and the chat template; return the special ids."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = build_tokenizer()
    tokenizer.save(str(folder / "tokenizer.json"))
    vocabulary = tokenizer.get_vocab()
    ids = {name: vocabulary[name] for name in SPECIAL}
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {
            str(index): {
                "content": name, "lstrip": False, "normalized": False, "rstrip": False,
                "single_word": False, "special": True,
            }
            for name, index in ids.items()
        },
        "additional_special_tokens": list(SPECIAL[1:]),
        "bos_token": None,
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
        "unk_token": UNKNOWN,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 131072,
        "chat_template": CHAT_TEMPLATE,
    }  # fmt: skip
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")
    (folder / "chat_template.json").write_text(
        json.dumps({"chat_template": CHAT_TEMPLATE}, indent=2) + "\n"
    )
    return ids
