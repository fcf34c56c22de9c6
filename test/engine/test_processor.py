# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The tokenizer, chat template and image settings of a checkpoint folder, without torchvision."""

import json
import os
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import tokenizers
import torch
from tokenizers import models, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from stream_vlm_ros.engine.inputs.frames import ImageSettings
from stream_vlm_ros.engine.inputs.processor import StreamProcessor
from stream_vlm_ros.errors import InvalidParameterError, ModelLoadError

REPOSITORY = Path(__file__).resolve().parents[2]
QWEN = Path(
    os.environ.get("STREAM_VLM_QWEN_PROCESSOR", REPOSITORY.parent / "shared/data/qwen2_5_vl")
)
needs_qwen = pytest.mark.skipif(
    not (QWEN / "tokenizer.json").is_file(),
    reason="no folder of a real Qwen2.5-VL (set STREAM_VLM_QWEN_PROCESSOR to its path)",
)

WORDS = ["<unk>", "red", "blue", "circle"]
CONTROL = ["<|im_start|>", "<|im_end|>", "<|video_pad|>"]  # ids 4, 5, 6
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m['content'] }}<|im_end|>{% endfor %}"
PREPROCESSOR = {"min_pixels": 3136, "max_pixels": 50_000, "patch_size": 14}


def write(file: Path, values) -> None:
    file.write_text(values if isinstance(values, str) else json.dumps(values), encoding="utf-8")


@pytest.fixture
def folder(tmp_path) -> Path:
    """A small checkpoint's surroundings: some words, a template, image settings, and a config.json
    that names the model's type, from which the library would choose another tokenizer class."""
    words = tokenizers.Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")
    )
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    words.add_special_tokens(CONTROL)
    words.save(str(tmp_path / "tokenizer.json"))
    write(
        tmp_path / "tokenizer_config.json",
        {"tokenizer_class": "Qwen2Tokenizer", "eos_token": "<|im_end|>", "unk_token": "<unk>"},
    )
    write(tmp_path / "chat_template.jinja", TEMPLATE)
    write(tmp_path / "preprocessor_config.json", PREPROCESSOR)
    write(tmp_path / "config.json", {"model_type": "qwen2_5_vl"})
    return tmp_path


def test_a_small_folder_loads_with_its_own_words(folder):
    processor = StreamProcessor.from_pretrained(str(folder))
    assert processor.tokenizer("red blue circle <|im_end|>").input_ids == [1, 2, 3, 5]
    assert processor.tokenizer.decode([1, 3]) == "red circle"
    assert processor.tokenizer.eos_token_id == 5
    assert processor.image_settings == ImageSettings(min_pixels=3136, max_pixels=50_000)
    text = processor.apply_chat_template([{"role": "user", "content": "red circle"}])
    assert text == "<|im_start|>red circle<|im_end|>"


def test_the_tokenizer_knows_the_template(folder):
    tokenizer = StreamProcessor.from_pretrained(folder).tokenizer
    ids = tokenizer.apply_chat_template([{"content": "red"}], return_dict=True).input_ids
    assert ids == tokenizer("<|im_start|>red<|im_end|>").input_ids


def test_control_tokens_in_a_text_can_be_read_as_text(folder):
    tokenizer = StreamProcessor.from_pretrained(folder).tokenizer
    assert tokenizer("red <|im_end|>", split_special_tokens=True).input_ids == [1, 0]
    assert tokenizer("red <|im_end|>").input_ids == [1, 5]


def test_a_tokenizer_needs_no_config_beside_it(folder):
    (folder / "tokenizer_config.json").unlink()
    (folder / "config.json").unlink()
    assert StreamProcessor.from_pretrained(folder).tokenizer("blue red").input_ids == [2, 1]


def test_the_frame_processor_has_the_settings_of_the_folder(folder):
    processor = StreamProcessor.from_pretrained(folder)
    frames = processor.frame_processor("cpu", torch.bfloat16)
    grid = frames([np.zeros((480, 640, 3), np.uint8)])
    # 640x480 shrunk by sqrt(307200 / 50000) = 2.479: 193.6 x 258.2, floored to 168 x 252
    assert grid.grid_thw == (1, 12, 18)
    assert grid.pixel_values.dtype == torch.bfloat16


TEMPLATE_FILES = {
    "chat_template.jinja": "{{ 'jinja' }}",
    "chat_template.json": {"chat_template": "{{ 'json' }}"},
    "processor_config.json": {"chat_template": "{{ 'processor' }}"},
    "tokenizer_config.json": {"chat_template": "{{ 'tokenizer' }}"},
}


@pytest.mark.parametrize("first", range(len(TEMPLATE_FILES)))
def test_the_template_comes_from_the_first_file_that_holds_one(folder, first):
    (folder / "chat_template.jinja").unlink()
    for name in list(TEMPLATE_FILES)[first:]:
        write(folder / name, TEMPLATE_FILES[name])
    processor = StreamProcessor.from_pretrained(folder)
    text = processor.apply_chat_template([{"content": "x"}])
    assert text == ["jinja", "json", "processor", "tokenizer"][first]
    assert processor.tokenizer.chat_template == processor.chat_template


def test_of_several_templates_the_default_is_taken(folder):
    (folder / "chat_template.jinja").unlink()
    several = [{"name": "tools", "template": "no"}, {"name": "default", "template": "yes"}]
    write(folder / "tokenizer_config.json", {"chat_template": several})
    assert StreamProcessor.from_pretrained(folder).chat_template == "yes"


@pytest.mark.parametrize("several", [[7], [["a"]], [{"name": ["default"], "template": "a"}], [{}]])
def test_a_list_of_what_are_no_templates_holds_none(folder, several):
    (folder / "chat_template.jinja").unlink()
    write(folder / "chat_template.json", {"chat_template": several})
    with pytest.raises(ModelLoadError, match="no chat template"):
        StreamProcessor.from_pretrained(folder)


@pytest.mark.parametrize(
    ("missing", "message"),
    [
        (["tokenizer.json"], "no tokenizer: neither tokenizer.json nor vocab.json"),
        (["preprocessor_config.json"], "no preprocessor_config.json"),
        (["chat_template.jinja"], "no chat template: none of chat_template.jinja"),
    ],
)
def test_a_missing_file_is_named(folder, missing, message):
    for name in missing:
        (folder / name).unlink()
    with pytest.raises(ModelLoadError, match=message) as error:
        StreamProcessor.from_pretrained(folder)
    assert str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("tokenizer_config.json", "[]", "tokenizer_config.json must hold a JSON object, not list"),
        ("tokenizer_config.json", "null", "tokenizer_config.json must hold a JSON object"),
        ("tokenizer.json", "{}", "the tokenizer in .* cannot be loaded"),
        ("tokenizer.json", "not json", "the tokenizer in .* cannot be loaded"),
        # Loaded without a word by the library, which raises at the first text.
        (
            "tokenizer_config.json",
            '{"model_max_length": ""}',
            "the tokenizer in .* cannot be loaded",
        ),
        ("preprocessor_config.json", "{", "preprocessor_config.json cannot be read as JSON"),
        ("preprocessor_config.json", '{"patch_size": -1}', "preprocessor_config.json: patch_size"),
    ],
)
def test_a_broken_file_is_named(folder, name, text, message):
    write(folder / name, text)
    with pytest.raises(ModelLoadError, match=message):
        StreamProcessor.from_pretrained(folder)


def test_a_template_that_is_not_text_is_named(folder):
    (folder / "chat_template.jinja").write_bytes(b"\xff\xfe\xff")
    with pytest.raises(ModelLoadError, match=r"chat_template\.jinja cannot be read as text"):
        StreamProcessor.from_pretrained(folder)


# --- processors of the library -------------------------------------------------------------------


def test_a_stream_processor_is_taken_as_it_is(folder):
    processor = StreamProcessor.from_pretrained(folder)
    assert StreamProcessor.wrap(processor) is processor


@pytest.mark.parametrize("slot", ["image_processor", "video_processor"])
def test_a_processor_of_the_library_is_understood(folder, slot):
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    images = Qwen2VLImageProcessorPil(min_pixels=4000, max_pixels=9000, image_mean=[0.5] * 3)
    theirs = SimpleNamespace(tokenizer=tokenizer, chat_template=TEMPLATE, **{slot: images})
    processor = StreamProcessor.wrap(theirs)
    assert processor.tokenizer is tokenizer
    assert processor.chat_template == TEMPLATE
    assert processor.image_settings == ImageSettings(
        min_pixels=4000, max_pixels=9000, image_mean=(0.5, 0.5, 0.5)
    )


def test_the_template_of_a_wrapped_processor_may_be_its_tokenizers(folder):
    tokenizer = StreamProcessor.from_pretrained(folder).tokenizer
    theirs = SimpleNamespace(tokenizer=tokenizer, image_processor=Qwen2VLImageProcessorPil())
    assert StreamProcessor.wrap(theirs).chat_template == TEMPLATE


def test_what_a_wrapped_processor_lacks_is_named(folder):
    tokenizer = StreamProcessor.from_pretrained(folder).tokenizer
    images = Qwen2VLImageProcessorPil()
    with pytest.raises(InvalidParameterError, match=r"\(object\) has no tokenizer"):
        StreamProcessor.wrap(object())
    with pytest.raises(InvalidParameterError, match="neither an image_processor nor a video"):
        StreamProcessor.wrap(SimpleNamespace(tokenizer=tokenizer, chat_template=TEMPLATE))
    tokenizer.chat_template = None
    with pytest.raises(InvalidParameterError, match="no chat template"):
        StreamProcessor.wrap(SimpleNamespace(tokenizer=tokenizer, image_processor=images))


# --- the real one --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen() -> StreamProcessor:
    return StreamProcessor.from_pretrained(QWEN)


@needs_qwen
@pytest.mark.parametrize(
    "text",
    [
        "Hello wörld, 12345 tests!",
        "<|im_start|>user\n<|vision_start|><|video_pad|><|vision_end|>what's  up\t?<|im_end|>\n",
        "漢字 e\u0301 \U0001f916\n\n   indented",
        "",
    ],
)
def test_the_real_tokenizer_reads_as_its_file_says(qwen, text):
    own = tokenizers.Tokenizer.from_file(str(QWEN / "tokenizer.json"))
    assert qwen.tokenizer(text).input_ids == own.encode(text).ids


@needs_qwen
def test_the_real_template_lays_out_a_video_and_a_question(qwen):
    content = [{"type": "video"}, {"type": "text", "text": "What is it?"}]
    text = qwen.apply_chat_template([{"role": "user", "content": content}], True)
    assert text == (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        "<|vision_start|><|video_pad|><|vision_end|>What is it?<|im_end|>\n<|im_start|>assistant\n"
    )
    assert qwen.tokenizer.eos_token == "<|im_end|>"


@needs_qwen
def test_full_hd_through_the_real_settings_is_5382_tokens_for_four_frames(qwen):
    grid = qwen.frame_processor()([np.zeros((1080, 1920, 3), np.uint8)] * 4)
    assert grid.grid_thw == (2, 1092 // 14, 1932 // 14)
    assert grid.tokens == 2 * 39 * 69 == 5382
