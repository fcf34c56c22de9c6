"""Loading: every weight comes from the file, and what does not fit is said in words."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VisionPatchEmbed
from transformers.utils import logging

from stream_vlm_ros.engine import StreamProcessor, StreamQwenModel, VideoStreamingInference
from stream_vlm_ros.engine.model import resolve_device, resolve_dtype
from stream_vlm_ros.errors import InvalidParameterError, ModelLoadError

# How the released checkpoints name their tensors, and where they go in the model.
RELEASED_NAMES = [("visual.", "model.visual."), ("model.", "model.language_model.")]


@pytest.fixture(scope="module")
def stock(toys):
    torch.manual_seed(0)
    return Qwen2_5_VLForConditionalGeneration(toys.config()).eval()


@pytest.fixture
def folder(stock, tmp_path):
    stock.save_pretrained(tmp_path)
    return tmp_path


def rename_as_released(folder):
    """Give the weights file the released checkpoints' tensor names; return them by model name."""
    file = folder / "model.safetensors"
    by_model_name, in_file = {}, {}
    for name, tensor in load_file(file).items():
        plain = name.removeprefix("model.").removeprefix("language_model.")
        inner = (
            f"model.visual.{plain.removeprefix('visual.')}"
            if plain.startswith("visual.")
            else name
            if name.startswith("lm_head")
            else f"model.language_model.{plain}"
        )
        outer = inner.replace("model.visual.", "visual.").replace("model.language_model.", "model.")
        by_model_name[inner], in_file[outer] = tensor, tensor
    save_file(in_file, file, metadata={"format": "pt"})
    return by_model_name


def test_every_weight_equals_the_file_under_the_released_names(folder):
    expected = rename_as_released(folder)
    model = StreamQwenModel.from_pretrained(folder, torch_dtype=torch.float32)
    state = model.state_dict()
    assert set(state) == set(expected)
    assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert type(model) is StreamQwenModel


def test_a_model_saved_by_the_library_loads_too_and_a_saved_one_loads_again(
    folder, stock, tmp_path
):
    model = StreamQwenModel.from_pretrained(folder)
    again = tmp_path / "again"
    model.save_pretrained(again)
    assert type(model) is StreamQwenModel
    twice = StreamQwenModel.from_pretrained(again)
    theirs = Qwen2_5_VLForConditionalGeneration.from_pretrained(again)
    for name, weight in stock.state_dict().items():
        assert torch.equal(weight, twice.state_dict()[name])
        assert torch.equal(weight, theirs.state_dict()[name])


def test_the_dtype_asked_for_is_the_dtype_of_model_and_memory(folder, processor, toys):
    model = StreamQwenModel.from_pretrained(folder, torch_dtype=torch.bfloat16).to("cpu").eval()
    engine = VideoStreamingInference(model, processor)
    engine.append_video_chunk(toys.frames(4), fps=2)
    assert engine.cache_manager.gather().dtype == torch.bfloat16
    assert engine.ask("What?", 3)


def test_tied_embeddings_load_without_a_head_of_their_own(toys, tmp_path):
    config = toys.config()
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = True
    tied = Qwen2_5_VLForConditionalGeneration(config)
    tied.save_pretrained(tmp_path)
    assert "lm_head.weight" not in load_file(tmp_path / "model.safetensors")
    model = StreamQwenModel.from_pretrained(tmp_path)
    assert model.lm_head.weight is model.model.language_model.embed_tokens.weight
    assert torch.equal(model.lm_head.weight, tied.lm_head.weight)


def without(name):
    def damage(folder):
        weights = load_file(folder / "model.safetensors")
        del weights[next(key for key in weights if name in key)]
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})

    return damage


def with_extra(folder):
    weights = load_file(folder / "model.safetensors")
    weights["model.language_model.layers.0.extra.weight"] = torch.zeros(3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def with_another_shape(folder):
    weights = load_file(folder / "model.safetensors")
    name = next(key for key in weights if "q_proj.weight" in key)
    weights[name] = torch.zeros(3, 3)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


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


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda folder: shutil.rmtree(folder), "no model folder .*nothing is downloaded"),
        (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
        (lambda folder: (folder / "config.json").write_text("{"), "config.json"),
        (lambda folder: (folder / "model.safetensors").unlink(), "has no weights"),
        (of_another_kind, "of type 'bert': only Qwen2.5-VL"),
        (without("k_proj.weight"), "missing in the file: .*k_proj.weight"),
        (without("visual.patch_embed"), "missing in the file: .*patch_embed"),
        (with_extra, "not part of the model: .*extra.weight"),
        (with_another_shape, "q_proj.weight"),
        (truncated, "cannot (load|read)"),
        (missing_shard, "model-00002-of-00002|cannot load"),
    ],
)
def test_a_folder_that_is_not_whole_is_refused_in_words(folder, damage, words):
    damage(folder)
    with pytest.raises(ModelLoadError, match=words):
        StreamQwenModel.from_pretrained(folder)


@pytest.mark.parametrize("load", [StreamProcessor.from_pretrained, StreamQwenModel.from_pretrained])
def test_a_file_for_a_folder_is_called_so_and_a_missing_folder_missing(folder, load):
    file = folder / "model.safetensors"
    with pytest.raises(ModelLoadError, match=f"{file} is a file, not a model folder: give the"):
        load(file)
    with pytest.raises(ModelLoadError, match=f"no model folder {folder / 'nowhere'}: give the"):
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


def test_an_unsupported_rotation_is_refused(toys):
    config = toys.config()
    config.text_config.rope_parameters = {
        **config.text_config.rope_parameters,
        "rope_type": "yarn",
        "factor": 4.0,
    }
    with pytest.raises(ModelLoadError, match="scales its rotary embedding"):
        StreamQwenModel(config)


def test_devices_and_number_formats_go_by_their_names():
    cpu, gpu = torch.device("cpu"), torch.device("cuda", 0)
    assert resolve_device("cpu") == resolve_device(cpu) == cpu
    assert resolve_device("auto") == (gpu if torch.cuda.is_available() else cpu)
    assert resolve_dtype("auto", cpu) is torch.float32
    assert resolve_dtype("auto", gpu) is torch.bfloat16
    assert resolve_dtype("float16", cpu) is torch.float16
    with pytest.raises(InvalidParameterError, match="'int7': use auto, bfloat16, float16, float32"):
        resolve_dtype("int7", cpu)


def test_the_first_vision_layer_as_a_product_computes_the_librarys_convolution(toys):
    """Patches of three channels and two frames of 14 x 14, unlike each other in every place."""
    embed = toys.model(5).model.visual.patch_embed
    patches = torch.randn(37, 3 * 2 * 14 * 14)
    with torch.inference_mode():
        expected = Qwen2_5_VisionPatchEmbed.forward(embed, patches)
        found = embed(patches)
    assert not torch.equal(found, torch.zeros_like(found))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    assert embed(patches.to(torch.float64)).dtype == torch.float32  # as the weights are
