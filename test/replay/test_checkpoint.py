# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

import json
import os
import shutil

import pytest
import torch
from safetensors.torch import save_file
from toy_qwen import save_checkpoint

from stream_vlm_ros.errors import InvalidParameterError, ModelLoadError
from stream_vlm_ros.factory import default_model
from stream_vlm_ros.replay.checkpoint import CheckpointInfo, PictureCost

# Of Qwen2.5-VL-3B-Instruct: 36 layers, 2 KV heads of 128.
CONFIG_3B = {
    "model_type": "qwen2_5_vl",
    "hidden_size": 2048,
    "num_attention_heads": 16,
    "num_hidden_layers": 36,
    "num_key_value_heads": 2,
    "vocab_size": 151936,
    "torch_dtype": "bfloat16",
    "vision_config": {"depth": 32},
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(CONFIG_3B))
    return tmp_path


def test_a_token_of_the_3b_model_takes_36864_bytes(folder):
    assert CheckpointInfo.read(folder).token_bytes() == 36_864  # the reference's own figure


def test_a_config_in_the_newer_nested_form_reads_the_same(folder):
    names = {"model_type", "vision_config"}
    text = {name: value for name, value in CONFIG_3B.items() if name not in names}
    nested = {name: CONFIG_3B[name] for name in names} | {"text_config": text, "dtype": "bfloat16"}
    flat = CheckpointInfo.read(folder)
    (folder / "config.json").write_text(json.dumps(nested))
    assert CheckpointInfo.read(folder) == flat


def test_weights_are_counted_without_being_loaded(folder):
    save_file({"a": torch.zeros(3, 4), "b": torch.zeros(5)}, folder / "one.safetensors")
    save_file({"c": torch.zeros(())}, folder / "two.safetensors")
    info = CheckpointInfo.read(folder)
    assert (info.parameters, info.weight_files) == (3 * 4 + 5 + 1, 2)
    assert info.weight_bytes == sum(f.stat().st_size for f in folder.glob("*.safetensors"))


@pytest.mark.parametrize("megabytes", [20, 10_000])  # the memory is what binds, or the context
def test_what_fits_here_is_what_the_node_takes_at_its_start(tmp_path, monkeypatch, megabytes):
    from stream_vlm_ros.config import Settings
    from stream_vlm_ros.engine import inference
    from stream_vlm_ros.engine.cache import budget
    from stream_vlm_ros.engine.model.device import resolve_device, resolve_dtype
    from stream_vlm_ros.node.loading import engine_loader

    folder = str(save_checkpoint(tmp_path))
    info = CheckpointInfo.read(folder)
    weights = info.parameters * resolve_dtype("auto", resolve_device("auto")).itemsize
    beside = megabytes * 1_000_000
    monkeypatch.setattr(inference, "free_bytes", lambda device: beside)
    monkeypatch.setattr(budget, "free_bytes", lambda device: beside + weights)
    parameters = Settings(model_path=folder, max_cache_tokens=0, max_pixels=56 * 56)
    assert (
        info.plan_here(56 * 56)
        == f"On this machine, {engine_loader([parameters])(parameters).memory_plan}"
    )


def test_what_fits_a_config_that_the_library_refuses_is_told_with_the_cause(tmp_path):
    folder = tmp_path / "model"
    shutil.copytree(default_model(), folder)
    config = json.loads((folder / "config.json").read_text())
    config["vision_config"]["in_channels"] = "3"
    (folder / "config.json").write_text(json.dumps(config))
    told = CheckpointInfo.read(folder).plan_here(None)
    assert told.startswith("On this machine: cannot read") and "in_channels" in told


def test_what_fits_a_folder_that_is_not_complete_is_not_guessed(folder):
    assert "has no preprocessor_config.json" in CheckpointInfo.read(folder).plan_here(None)


def test_what_is_missing_is_named(folder):
    assert set(CheckpointInfo.read(folder).missing) == {
        "*.safetensors (the weights)",
        "tokenizer.json",
        "preprocessor_config.json",
    }
    save_file({"a": torch.zeros(1)}, folder / "model-00001-of-00002.safetensors")
    index = {
        "weight_map": {
            "a": "model-00001-of-00002.safetensors",
            "b": "model-00002-of-00002.safetensors",
        }
    }
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    assert "model-00002-of-00002.safetensors" in CheckpointInfo.read(folder).missing
    for wrong in ({"weight_map": {"a": 3}}, {"weight_map": {"a": ["x"]}}, {"weight_map": [3]}, []):
        (folder / "model.safetensors.index.json").write_text(json.dumps(wrong))
        with pytest.raises(ModelLoadError, match=r"index.json cannot be read"):
            CheckpointInfo.read(folder)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "no config.json"),
        ("{", "cannot be read"),
        ('{"model_type": "llama"}', "llama"),
        ("[]", "only Qwen2.5-VL"),
        ('{"model_type": "qwen2_5_vl"}', "does not say"),
        ("[" * 100_000, "cannot be read"),
        (json.dumps(CONFIG_3B | {"num_hidden_layers": [36]}), "layers must be a whole number"),
        (json.dumps(CONFIG_3B | {"num_key_value_heads": 0.5}), "kv_heads must be a whole number"),
        (json.dumps(CONFIG_3B | {"text_config": ["x"]}), "does not say"),
        (json.dumps(CONFIG_3B | {"vision_config": "x"}), "does not say"),
    ],
)
def test_a_folder_that_is_no_checkpoint_is_an_error(tmp_path, text, words):
    (tmp_path / "README.md").write_text("A model")
    if text is not None:
        (tmp_path / "config.json").write_text(text)
    with pytest.raises(ModelLoadError, match=words):
        CheckpointInfo.read(tmp_path)


def test_a_missing_folder_is_an_error(folder):
    with pytest.raises(ModelLoadError, match="no model folder"):
        CheckpointInfo.read(folder / "nowhere")


@pytest.mark.parametrize("left", [0, 4, 20, -1])  # nothing, half a length, half a header, no end
def test_a_weight_file_that_is_cut_short_is_named_and_a_whole_one_is_not(folder, left):
    save_file({"a": torch.zeros(3, 4)}, folder / "one.safetensors")
    save_file({"b": torch.zeros(5)}, folder / "two.safetensors")
    assert CheckpointInfo.read(folder).broken == ()
    cut = folder / "two.safetensors"
    cut.write_bytes(cut.read_bytes()[:left])
    info = CheckpointInfo.read(folder)
    (said,) = info.broken
    assert said.startswith("two.safetensors") and "copy it again" in said
    assert said in dict(info.rows())["Broken"]
    assert info.parameters == 3 * 4


@pytest.mark.parametrize("kind", ["pipe", "link to itself", "folder"])
def test_weights_that_are_no_plain_file_are_named(folder, kind):
    save_file({"a": torch.zeros(3, 4)}, folder / "one.safetensors")
    odd = folder / "two.safetensors"
    if kind == "pipe":
        os.mkfifo(odd)
    elif kind == "folder":
        odd.mkdir()
    else:
        odd.symlink_to(odd)
    info = CheckpointInfo.read(folder)
    assert info.broken == ("two.safetensors is no plain file: copy it again",)
    assert (info.parameters, info.weight_files) == (3 * 4, 1)


def test_the_cost_of_a_picture_is_that_of_the_engine_notes(folder):
    """1920x1080 kept whole is 1932x1092: 39 x 69 tokens for two frames."""
    (folder / "preprocessor_config.json").write_text('{"max_pixels": 12845056}')
    cost = PictureCost.of(folder, (1920, 1080), fps=2.0, max_pixels=1932 * 1092)
    assert cost.resized == (1932, 1092)
    assert cost.grid_tokens == 39 * 69
    assert cost.tokens_per_second == 39 * 69  # two frames a second, two frames a grid
    row = CheckpointInfo.read(folder).cap_row(150_000, cost)
    assert row == ("150,000", "5.5 GB", "11.1 GB", "56 s")  # 36,864 B a token; / 2,691 tokens/s


def test_sizes_are_not_invented_for_a_folder_that_does_not_say_them(folder):
    with pytest.raises(ModelLoadError, match=r"preprocessor_config\.json"):
        PictureCost.of(folder, (640, 480), fps=2.0)


@pytest.mark.parametrize("fps", [0, -1, float("nan")])
def test_a_rate_that_is_no_rate_is_refused(folder, fps):
    with pytest.raises(InvalidParameterError, match="rate"):
        PictureCost.of(folder, (640, 480), fps=fps)
