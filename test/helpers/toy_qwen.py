# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A toy Qwen2.5-VL: the real architecture at a size that a test affords, random weights."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
)

from stream_vlm_ros.engine import StreamProcessor, StreamQwenModel
from stream_vlm_ros.engine.inputs.frames import ImageSettings

CHAT_TEMPLATE = (
    "{% for m in messages %}{% if loop.first and m['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n{% endif %}"
    "<|im_start|>{{ m['role'] }}\n"
    "{% if m['content'] is string %}{{ m['content'] }}{% else %}{% for c in m['content'] %}"
    "{% if c['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in c %}{{ c['text'] }}{% endif %}{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SPECIALS = [
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
]

# Shares of an eviction config for level 1 alone, token-exact, as in the reference.
SINK_AND_WINDOW = {"sampled_share": 0.0, "important_share": 0.0}


def toy_processor() -> StreamProcessor:
    """Bytes are the words; the special tokens have Qwen's names and other ids."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary = {letter: number for number, letter in enumerate(alphabet)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIALS})
    tokenizer.chat_template = CHAT_TEMPLATE
    return StreamProcessor(tokenizer, ImageSettings(min_pixels=28 * 28), CHAT_TEMPLATE)


def toy_config(
    heads: int = 4, kv_heads: int = 2, head_dim: int = 16, layers: int = 2, **changes: object
) -> Qwen2_5_VLConfig:
    tokenizer = toy_processor().tokenizer
    ids = tokenizer.convert_tokens_to_ids
    eighth = head_dim // 8
    text = dict(
        hidden_size=heads * head_dim,
        intermediate_size=96,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        vocab_size=len(tokenizer),
        rope_parameters={
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [head_dim // 2 - 4 * eighth + eighth, eighth, 2 * eighth],
        },
        bos_token_id=ids("<|endoftext|>"),
        eos_token_id=ids("<|im_end|>"),
        pad_token_id=ids("<|endoftext|>"),
        tie_word_embeddings=False,
        max_position_embeddings=32768,
    )
    vision = dict(
        depth=2,
        hidden_size=32,
        intermediate_size=48,
        num_heads=2,
        out_hidden_size=heads * head_dim,
        patch_size=14,
        spatial_merge_size=2,
        window_size=112,
        fullatt_block_indexes=[1],
        tokens_per_second=2,
    )
    vision.update(changes.pop("vision", {}))
    text.update(changes.pop("text", {}))
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=ids("<|image_pad|>"),
        video_token_id=ids("<|video_pad|>"),
        vision_start_token_id=ids("<|vision_start|>"),
        vision_end_token_id=ids("<|vision_end|>"),
        tie_word_embeddings=False,
        **changes,
    )


def library_model(config: Qwen2_5_VLConfig, seed: int) -> Qwen2_5_VLForConditionalGeneration:
    """Random weights, larger than the library's, so that attention is far from uniform."""
    torch.manual_seed(seed)
    stock = Qwen2_5_VLForConditionalGeneration(config).eval()
    with torch.no_grad():
        for name, weight in stock.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0.0, 1.5 / weight[0].numel() ** 0.5)
            elif name.endswith("bias"):
                weight.normal_(0.0, 0.1)
    return stock


def toy_model(seed: int = 0, **changes: object) -> StreamQwenModel:
    """The weights of a `library_model`."""
    config = toy_config(**changes)
    model = StreamQwenModel(config).eval()
    model.load_state_dict(library_model(config, seed).state_dict())
    return model


def library_checkpoint(
    folder: Path,
    seed: int = 0,
    tied: bool = False,
    flat: bool = False,
    names: str = "",
    max_shard_size: str = "50GB",
    **changes: object,
) -> Path:
    """A folder with weights like `toy_model`'s, drawn and written by the library's own class.

    Args:
        tied: the head is the embedding, and not in the file.
        flat: the language model's settings stand in config.json as in the first releases.
        names: of the tensors: "library" as in memory, "released" as in the releases, "" as the
            installed transformers writes them.
    """
    config = toy_config(**changes)
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = tied
    library_model(config, seed).save_pretrained(folder, max_shard_size=max_shard_size)
    if names:
        file = folder / "model.safetensors"
        rename = released_name if names == "released" else library_name
        renamed = {rename(name): tensor for name, tensor in load_file(file).items()}
        save_file(renamed, file, metadata={"format": "pt"})
    if flat:
        flatten_config(folder / "config.json")
    return folder


def library_name(name: str) -> str:
    """As transformers calls a tensor in memory, from either name."""
    if name.startswith("visual."):
        return f"model.{name}"
    if name.startswith("model.") and not name.startswith(
        ("model.visual.", "model.language_model.")
    ):
        return name.replace("model.", "model.language_model.", 1)
    return name


def released_name(name: str) -> str:
    """As the releases call a tensor, from either name."""
    return (
        library_name(name)
        .replace("model.visual.", "visual.", 1)
        .replace("model.language_model.", "model.", 1)
    )


def flatten_config(file: Path) -> None:
    """Write a configuration as the first releases have it: text settings on the top floor."""
    config = json.loads(file.read_text())
    text = config.pop("text_config")
    rope = text.pop("rope_parameters")
    text.pop("model_type")
    config |= {name: value for name, value in text.items() if name not in config}
    config["rope_theta"] = rope["rope_theta"]
    config["rope_scaling"] = {"type": "mrope", "mrope_section": rope["mrope_section"]}
    file.write_text(json.dumps(config))


def stock_twin(
    model: StreamQwenModel, folder: Path | None = None, attention: str = "eager", **saving: object
) -> Qwen2_5_VLForConditionalGeneration:
    """The library's class, loaded by itself from the folder that the model is saved to."""
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(folder or scratch, **saving)
        return Qwen2_5_VLForConditionalGeneration.from_pretrained(
            folder or scratch, dtype=model.dtype, attn_implementation=attention
        ).eval()


def toy_frames(count: int, height: int = 56, width: int = 84, seed: int = 0) -> list[np.ndarray]:
    noise = np.random.default_rng(seed)
    return list(noise.integers(0, 256, (count, height, width, 3), dtype=np.uint8))


def chatter_model(seed: int = 0) -> StreamQwenModel:
    """A model that writes to the end of its budget: it never finds the end of its turn likeliest.

    With the library's initial weights the other logits vary around zero; that of the end is zero.
    """
    config = toy_config()
    model = StreamQwenModel.with_random_weights(config, seed)
    model.state_dict()["lm_head.weight"][config.text_config.eos_token_id] = 0.0
    return model


def save_checkpoint(folder: Path, model: StreamQwenModel | None = None) -> Path:
    """Write a toy as the checkpoint folder that a user would have; gives the folder back."""
    processor = toy_processor()
    (model or chatter_model()).save_pretrained(folder)
    processor.tokenizer.save_pretrained(folder)
    settings = processor.image_settings
    (folder / "preprocessor_config.json").write_text(
        json.dumps({"min_pixels": settings.min_pixels, "max_pixels": settings.max_pixels})
    )
    return folder


def question_logits(engine: Any, question: str = "What is there?", path: Any = None) -> Any:
    """Logits after a question on the engine's own path or another, in float64 on the CPU."""
    manager = engine.cache_manager
    prompt, start = engine._question_ids(question, None), manager.ledger.next_position
    with manager.question_fork(len(prompt), 0) as fork:
        logits = (path or engine.text_path).append(prompt, start, fork)
        return logits.double().cpu()


def written_in_turns(engine, questions, max_new_tokens):
    """The answers to all questions, written at once, piece by piece in turn."""
    writers = [engine.ask_stream(question, max_new_tokens) for question in questions]
    running = list(writers)
    while running:
        running = [writer for writer in running if next(writer, None) is not None]
    return [writer.text for writer in writers]
