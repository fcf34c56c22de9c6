# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Loading: every weight comes from the file, and what does not fit is said in words."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_qwen import library_checkpoint, library_name, released_name, save_checkpoint
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.utils import logging

from stream_vlm_ros.engine import (
    StreamProcessor,
    StreamQwenModel,
    VideoStreamingInference,
    load_checkpoint,
)
from stream_vlm_ros.engine.loading import check_fit
from stream_vlm_ros.engine.model.device import resolve_device, resolve_dtype
from stream_vlm_ros.errors import InvalidParameterError, ModelLoadError


@pytest.fixture(scope="module")
def stock(toys):
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(toys.config()).eval()


@pytest.fixture
def folder(stock, tmp_path):
    stock.save_pretrained(tmp_path)
    return tmp_path


def edit(folder, change):
    """Change the weights file of a folder: a function of {name: tensor}."""
    weights = load_file(folder / "model.safetensors")
    weights = change(weights) or weights
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    return weights


@pytest.mark.parametrize("style", [released_name, library_name])
def test_every_weight_equals_the_file_under_either_names(folder, style):
    written = edit(folder, lambda weights: {style(name): w for name, w in weights.items()})
    model = StreamQwenModel.from_pretrained(folder, torch_dtype=torch.float32)
    expected = {released_name(name): weight for name, weight in written.items()}
    state = model.state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert type(model) is StreamQwenModel


@pytest.mark.parametrize("most", [5 * 10**9, 20_000])
def test_what_is_saved_loads_by_the_library_and_by_us(folder, stock, tmp_path, most):
    model = StreamQwenModel.from_pretrained(folder)
    again = tmp_path / "again"
    model.save_pretrained(again, max_shard_size=most)
    files = list(again.glob("*.safetensors"))
    assert (len(files) > 3) == (most == 20_000)
    assert set().union(*map(load_file, files)) == set(model.state_dict())  # the released names
    twice = StreamQwenModel.from_pretrained(again).state_dict()
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(again).state_dict()
    for name, weight in stock.state_dict().items():
        assert torch.equal(weight, twice[released_name(name)])
        assert torch.equal(weight, theirs[name])


def test_weights_that_read_the_same_input_lie_end_to_end_and_a_view_has_each_name(folder):
    model = StreamQwenModel.from_pretrained(folder)
    layer, state = model.text.layers[0], model.state_dict()
    names = [f"model.layers.0.self_attn.{x}_proj.weight" for x in "qkv"]
    assert torch.equal(layer.qkv, torch.cat([state[name] for name in names]))
    up = state["model.layers.0.mlp.up_proj.weight"]
    up.fill_(7)
    assert (layer.gate_up[len(up) :] == 7).all() and not (layer.gate_up[: len(up)] == 7).any()


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad, torch.enable_grad])
def test_a_model_loaded_in_any_mode_can_be_trained(folder, mode):
    with mode():
        model = StreamQwenModel.from_pretrained(folder)
    layer = model.text.layers[0]
    assert all(weight.is_leaf and weight.requires_grad for weight in model.parameters())
    layer.project(torch.randn(5, 64), model.functions).sum().backward()
    assert layer.qkv.grad.abs().sum() > 0 and layer.down.grad is None


def test_loading_leaves_the_process_default_dtype_alone(folder):
    before = torch.get_default_dtype()
    StreamQwenModel.from_pretrained(folder, torch_dtype=torch.bfloat16)
    assert torch.get_default_dtype() is before


@pytest.mark.parametrize(
    ("asked", "there"),
    [
        (None, torch.bfloat16),
        ("auto", torch.bfloat16),
        ("float16", torch.float16),
        (torch.float32, torch.float32),
    ],
)
def test_the_dtype_is_the_one_asked_for_or_else_the_checkpoints(folder, asked, there):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    assert StreamQwenModel.from_pretrained(folder, torch_dtype=asked).dtype is there
    assert StreamQwenModel.from_pretrained(folder, dtype=asked).dtype is there


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ({"attn_implementation": "flash_attention_2"}, "an attention of its own"),
        ({"device_map": "auto"}, r"move it there by \.to\(device\)"),
        ({"load_in_4bit": True}, "16 or 32 bits"),
        ({"torch_dtpye": torch.float32}, "takes the folder, torch_dtype"),
        ({"torch_dtype": torch.int8}, "use torch.bfloat16"),
    ],
)
def test_an_argument_that_means_nothing_here_is_refused_by_its_name(folder, option, words):
    with pytest.raises(InvalidParameterError, match=f"{next(iter(option))}.*{words}"):
        StreamQwenModel.from_pretrained(folder, **option)


@pytest.mark.parametrize("path", [None, 5, b"/model", "\0", "x" * 10_000])
def test_what_names_no_folder_is_refused_as_such(path):
    for made in (StreamQwenModel, StreamProcessor):
        with pytest.raises(ModelLoadError, match="model folder"):
            made.from_pretrained(path)
    with pytest.raises(ModelLoadError, match="model folder"):
        load_checkpoint(path)


def test_the_dtype_asked_for_is_the_dtype_of_model_and_memory(folder, processor, toys):
    model = StreamQwenModel.from_pretrained(folder, torch_dtype=torch.bfloat16).to("cpu").eval()
    engine = VideoStreamingInference(model, processor)
    engine.append_video_chunk(toys.frames(4), fps=2)
    assert engine.cache_manager.gather().dtype == torch.bfloat16
    assert engine.ask("What?", 3)


def test_tied_embeddings_load_without_a_head_of_their_own(tmp_path):
    library_checkpoint(tmp_path, tied=True)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model = StreamQwenModel.from_pretrained(tmp_path)
    assert "lm_head.weight" not in model.state_dict()
    embedding = model.state_dict()["model.embed_tokens.weight"]
    hidden = torch.randn(3, 64)
    expected = torch.nn.functional.linear(hidden, embedding)
    assert torch.equal(model.logits(hidden), expected)
    # A file may have both, if they are alike.
    head = embedding.clone()
    edit(tmp_path, lambda weights: {**weights, "lm_head.weight": head})
    assert torch.equal(StreamQwenModel.from_pretrained(tmp_path).logits(hidden), expected)
    edit(tmp_path, lambda weights: {**weights, "lm_head.weight": head + 1})
    with pytest.raises(ModelLoadError, match=r"twice, and not alike.*tie_word_embeddings"):
        StreamQwenModel.from_pretrained(tmp_path)


def without(name):
    def damage(folder):
        def change(weights):
            del weights[next(key for key in weights if name in key)]

        edit(folder, change)

    return damage


def with_extra(folder):
    name = "model.language_model.layers.0.extra.weight"
    edit(folder, lambda weights: {**weights, name: torch.zeros(3)})


def with_another_shape(folder):
    def change(weights):
        weights[next(key for key in weights if "q_proj.weight" in key)] = torch.zeros(3, 3)

    edit(folder, change)


def in_bytes(folder):
    def change(weights):
        name = next(key for key in weights if "q_proj.weight" in key)
        weights[name] = weights[name].to(torch.int8)

    edit(folder, change)


def configured(**changes):
    """Change config.json: of the text's or the vision tower's part, or (neither) of the top."""

    def damage(folder):
        config = json.loads((folder / "config.json").read_text())
        for place, value in changes.items():
            floor, _, name = place.rpartition("__")
            part = config[f"{floor}_config"] if floor else config
            part[name] = value(part[name]) if callable(value) else value
        (folder / "config.json").write_text(json.dumps(config))

    return damage


def rope(**changes):
    return lambda folder: configured(text__rope_parameters=lambda rope: {**rope, **changes})(folder)


def truncated(folder):
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def of_another_kind(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_type": "bert"}))


def missing_shard(folder):
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def escaping_shard(folder):
    (folder / "model.safetensors").unlink()
    index = {"weight_map": {"lm_head.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: shutil.rmtree(folder), "(?s)no model folder .*nothing is downloaded"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (of_another_kind, "of type 'bert': only Qwen2.5-VL"),
        (lambda folder: (folder / "config.json").write_text("[1]"), "must hold a JSON object"),
        (configured(quantization_config={"quant_method": "awq"}), "quantised weights .'awq'"),
        (configured(quantization_config={"quant_method": "fp8"}), "quantised weights .'fp8'"),
        (
            configured(quantization_config={"load_in_4bit": True}),
            "quantised weights .*load_in_4bit",
        ),
        (in_bytes, "quantised .*q_proj.weight is stored as torch.int8"),
        (configured(text__hidden_size="x"), "cannot read .*config.json: .*hidden_size"),
        (configured(text__hidden_size=62), "4 heads do not divide hidden_size 62"),
        (configured(text__num_key_value_heads=3), "3 key-value heads do not divide 4"),
        (configured(vision__depth=0), "depth is 0, not a whole number above 0"),
        (configured(text__hidden_act="gelu"), "hidden_act is 'gelu'"),
        (configured(text__use_sliding_window=True), "sliding window"),
        (configured(vision__out_hidden_size=128), "features are 128 wide, .* states 64"),
        (configured(vision__patch_size=[14, 14]), "patch_size is .14, 14."),
        (configured(vision__window_size=14), "a window of 14 pixels holds no token"),
        (configured(vision__num_heads=3), "3 heads of hidden_size 32"),
        (configured(vision__tokens_per_second=0), "tokens_per_second is 0"),
        (configured(vision__depth=10**12), "depth is 1,000,000,000,000; at most 1,024"),
        (configured(text__vocab_size=10**13), "vocab_size is 10,000,000,000,000; at most"),
        # 10 to 100 TB, and more bytes than can be counted.
        (configured(vision__intermediate_size=10**7, vision__hidden_size=10**6), "no room for"),
        (
            configured(vision__temporal_patch_size=10**7, vision__in_channels=10**7),
            "no room for the model that .*config.json announces",
        ),
        (configured(vision__depth=3), "missing in the file: .*blocks.2"),
        (rope(mrope_section=[3, 3, 3]), "add up to 8, half the size of a head"),
        (rope(mrope_section=[4, 4]), r"mrope_section is \[4, 4\]"),
        (rope(mrope_section="abc"), "mrope_section is 'abc'"),
        (rope(rope_type="yarn", factor=4.0), "scales its rotary embedding .'yarn'."),
        (
            lambda folder: (folder / "model.safetensors").rename(
                folder / "adapter_model.safetensors"
            ),
            "has no weights",
        ),
        (without("k_proj.weight"), "missing in the file: .*k_proj.weight"),
        (without("visual.patch_embed"), "missing in the file: .*patch_embed"),
        (with_extra, "not part of the model: .*extra.weight"),
        (with_another_shape, "q_proj.weight"),
        (truncated, "cannot (load|read)"),
        (missing_shard, "lacks files of its weights: model-00002-of-00002.safetensors"),
        (escaping_shard, "does not say which file"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_in_words(folder, damage, words):
    damage(folder)
    with pytest.raises(ModelLoadError, match=words):
        StreamQwenModel.from_pretrained(folder)


def test_a_checkpoint_in_torchs_own_format_loads_too(folder):
    expected = StreamQwenModel.from_pretrained(folder).state_dict()
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    found = StreamQwenModel.from_pretrained(folder).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    (folder / "pytorch_model.bin").write_bytes(b"PK\x03\x04 and no more")
    with pytest.raises(ModelLoadError, match=r"cannot read .*pytorch_model.bin"):
        StreamQwenModel.from_pretrained(folder)


def test_frequencies_that_old_files_have_are_computed_instead(folder):
    name = "model.layers.0.self_attn.rotary_emb.inv_freq"
    edit(folder, lambda weights: {**weights, name: torch.ones(8)})
    StreamQwenModel.from_pretrained(folder)


def test_the_tokens_that_end_an_answer_are_the_folders(folder):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [3, 5]}))
    assert StreamQwenModel.from_pretrained(folder).generation_config.eos_token_id == [3, 5]
    (folder / "generation_config.json").unlink()
    model = StreamQwenModel.from_pretrained(folder)
    assert model.generation_config.eos_token_id == model.config.text_config.eos_token_id
    (folder / "generation_config.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"generation_config.json"):
        StreamQwenModel.from_pretrained(folder)


def test_what_a_generation_config_says_of_decoding_is_said_to_be_left_out(folder, caplog):
    file = folder / "generation_config.json"
    plain = {
        "eos_token_id": 3,
        "pad_token_id": 3,
        "do_sample": False,
        "top_p": 1.0,
        "use_cache": True,
    }
    file.write_text(json.dumps(plain))
    StreamQwenModel.from_pretrained(folder)
    assert not caplog.records
    # As Qwen2.5-VL is released.
    file.write_text(
        json.dumps(plain | {"do_sample": True, "temperature": 1e-6, "repetition_penalty": 1.05})
    )
    StreamQwenModel.from_pretrained(folder)
    (told,) = [record.getMessage() for record in caplog.records if record.name.startswith("stream")]
    assert "do_sample True, temperature 1e-06, repetition_penalty 1.05" in told
    assert str(file) in told


@pytest.mark.parametrize(
    "ignored",
    [{"max_new_tokens": -5}, {"watermarking_config": {"a": 1}}, {"watermarking_config": 3}],
)
def test_what_is_left_out_of_a_generation_config_refuses_no_model(folder, caplog, ignored):
    file = folder / "generation_config.json"
    file.write_text(json.dumps({"eos_token_id": [3, 5], **ignored}))
    assert StreamQwenModel.from_pretrained(folder).generation_config.eos_token_id == [3, 5]
    assert next(iter(ignored)) in caplog.text


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("model.safetensors", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("pytorch_model.bin", b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"),
        ("pytorch_model.bin", [1, 2], "it holds a list, not tensors by their names"),
        ("pytorch_model.bin", {"state_dict": {"a": torch.ones(1)}}, "'state_dict', .* under it"),
        ("pytorch_model.bin", {"epoch": 3}, "it holds 'epoch', which names no tensor$"),
    ],
)
def test_whole_files_that_are_no_weights_are_not_called_incomplete(folder, name, content, words):
    (folder / "model.safetensors").unlink()
    if isinstance(content, bytes):
        (folder / name).write_bytes(content)
    else:
        torch.save(content, folder / name)
    with pytest.raises(ModelLoadError, match=words) as caught:
        StreamQwenModel.from_pretrained(folder)
    assert "complete" not in str(caught.value)


@pytest.mark.parametrize("ends", [[[3]], [3, "5"], "3", 0.5, -1, True, 10**9, [3, 2**70]])
def test_what_ends_an_answer_is_a_token_or_refused(folder, ends):
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
    with pytest.raises(ModelLoadError, match=r"generation_config.json: eos_token_id is"):
        StreamQwenModel.from_pretrained(folder)


@pytest.mark.parametrize("value", [10**9, 2**70, -1])
@pytest.mark.parametrize(
    "name",
    ["image_token_id", "video_token_id", "vision_start_token_id", "vision_end_token_id", "eos"],
)
def test_a_config_whose_marks_are_no_tokens_is_refused(toys, processor, name, value):
    config = toys.config()
    if name == "eos":
        config.text_config.eos_token_id = [3, value]
    else:
        setattr(config, name, value)
    with pytest.raises(ModelLoadError, match=f"{name}.* not a token"):
        check_fit(config, processor)


def test_a_state_is_taken_whole_or_refused_in_words(folder):
    model = StreamQwenModel.from_pretrained(folder)
    state = {name: weight + 1 for name, weight in model.state_dict().items()}
    model.load_state_dict({library_name(name): weight for name, weight in state.items()})
    assert all(torch.equal(weight, state[name]) for name, weight in model.state_dict().items())
    state.pop("lm_head.weight")
    with pytest.raises(ModelLoadError, match=r"missing in the file: lm_head.weight"):
        model.load_state_dict(state)
    with pytest.raises(InvalidParameterError, match="all of them"):
        model.load_state_dict(state, strict=False)


def test_a_tokenizer_with_more_words_than_the_embedding_is_refused(toys, processor, tmp_path):
    config = toys.config(text={"vocab_size": len(processor.tokenizer) - 1})
    model = StreamQwenModel.with_random_weights(config)
    with pytest.raises(ModelLoadError, match=r"the tokenizer has 263 words, the model's .* 262"):
        VideoStreamingInference(model, processor)
    save_checkpoint(tmp_path, model)
    with pytest.raises(ModelLoadError, match=r"the tokenizer has 263 words, the model's .* 262"):
        load_checkpoint(tmp_path, "cpu")


@pytest.mark.parametrize("load", [StreamProcessor.from_pretrained, StreamQwenModel.from_pretrained])
def test_a_file_for_a_folder_is_called_so_and_a_missing_folder_missing(folder, load):
    file = folder / "model.safetensors"
    with pytest.raises(ModelLoadError, match=f"{file} is a file, not a model folder$"):
        load(file)
    with pytest.raises(ModelLoadError, match=f"no model folder {folder / 'nowhere'}.\nGive the"):
        load(folder / "nowhere")


@pytest.mark.parametrize("shown", [True, False])
def test_loading_shows_no_progress_bar_and_leaves_the_librarys_setting(folder, capfd, shown):
    before = logging.is_progress_bar_enabled()
    change = {True: logging.enable_progress_bar, False: logging.disable_progress_bar}
    try:
        change[shown]()
        StreamQwenModel.from_pretrained(folder)
        after_loading = logging.is_progress_bar_enabled()
        (folder / "model.safetensors").write_bytes(b"")
        with pytest.raises(ModelLoadError):
            StreamQwenModel.from_pretrained(folder)
        assert (after_loading, logging.is_progress_bar_enabled()) == (shown, shown)
    finally:
        change[before]()
    assert "%|" not in capfd.readouterr().err


def test_a_gpu_comes_with_its_number(monkeypatch):
    for name, found in (("is_available", True), ("device_count", 2), ("current_device", 1)):
        monkeypatch.setattr(torch.cuda, name, lambda found=found: found)
    assert resolve_device("cuda") == torch.device("cuda", 1)
    assert resolve_device("cuda:0") == torch.device("cuda", 0)


def test_devices_and_number_formats_go_by_their_names():
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert resolve_device("cpu") == resolve_device(cpu) == cpu
    assert resolve_device("auto") == (gpu if torch.cuda.is_available() else cpu)
    assert resolve_dtype("auto", cpu) is torch.float32
    assert resolve_dtype("auto", gpu) is torch.bfloat16
    assert resolve_dtype("float16", cpu) is torch.float16
    with pytest.raises(InvalidParameterError, match="'int7': use auto, bfloat16, float16, float32"):
        resolve_dtype("int7", cpu)
