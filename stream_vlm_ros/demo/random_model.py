"""A small Qwen2.5-VL with random weights: the real thing in all but size and sense."""

from __future__ import annotations

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast, Qwen2_5_VLConfig

from stream_vlm_ros.engine import StreamProcessor, StreamQwenModel
from stream_vlm_ros.engine.frames import ImageSettings

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' %}"
    "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
    "{% endif %}"
    "<|im_start|>{{ message['role'] }}\n"
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'video' %}<|vision_start|><|video_pad|><|vision_end|>"
    "{% elif 'text' in part %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %}<|im_end|>\n"
    "{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_CONTROL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)


def random_model(seed: int = 0) -> tuple[StreamQwenModel, StreamProcessor]:
    """A model whose answers are noise, and its processor; the same ones for the same seed."""
    processor = _letters_processor()
    config = _small_config(processor)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = StreamQwenModel(config).eval()
    return model, processor


def _letters_processor() -> StreamProcessor:
    """A tokenizer whose words are the printable ASCII letters, so that noise stays readable."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters = sorted(
        {byte_level.pre_tokenize_str(chr(code))[0][0] for code in (10, *range(32, 127))}
    )
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[], unk_token="?"))
    core.pre_tokenizer = byte_level
    core.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core, eos_token="<|im_end|>", pad_token="<|endoftext|>"
    )
    tokenizer.add_special_tokens({"additional_special_tokens": list(_CONTROL)})
    tokenizer.chat_template = CHAT_TEMPLATE
    return StreamProcessor(tokenizer, ImageSettings(min_pixels=28 * 28), CHAT_TEMPLATE)


def _small_config(processor: StreamProcessor) -> Qwen2_5_VLConfig:
    id_of = processor.tokenizer.convert_tokens_to_ids
    text = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": len(processor.tokenizer),
        "rope_parameters": {
            "rope_type": "default",
            "rope_theta": 10_000.0,
            "mrope_section": [2, 3, 3],
        },
        "bos_token_id": id_of("<|endoftext|>"),
        "eos_token_id": id_of("<|im_end|>"),
        "pad_token_id": id_of("<|endoftext|>"),
        "tie_word_embeddings": False,
        "max_position_embeddings": 32_768,
    }
    vision = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 64,
        "num_heads": 2,
        "out_hidden_size": 64,
        "patch_size": 14,
        "spatial_merge_size": 2,
        "window_size": 112,
        "fullatt_block_indexes": [1],
        "tokens_per_second": 2,
    }
    return Qwen2_5_VLConfig(
        text_config=text,
        vision_config=vision,
        image_token_id=id_of("<|image_pad|>"),
        video_token_id=id_of("<|video_pad|>"),
        vision_start_token_id=id_of("<|vision_start|>"),
        vision_end_token_id=id_of("<|vision_end|>"),
        tie_word_embeddings=False,
    )
