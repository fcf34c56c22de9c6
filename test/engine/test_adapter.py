# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A LoRA adapter next to the weights is folded in by its own config, or refused in words."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file, save_file
from toy_qwen import library_checkpoint, library_name

from stream_vlm_ros.engine import StreamQwenModel
from stream_vlm_ros.errors import ModelLoadError

Q, DOWN = "model.layers.1.self_attn.q_proj", "model.layers.0.mlp.down_proj"
VISION, EMBED = "visual.blocks.0.attn.qkv", "model.embed_tokens"
R, ALPHA = 4, 6


@pytest.fixture
def folder(tmp_path):
    return library_checkpoint(tmp_path, 2)


def weights_of(folder):
    return {n: w.clone() for n, w in StreamQwenModel.from_pretrained(folder).state_dict().items()}


def matrices(weight, rank=R, embeds=False):
    """A and B in the sizes that PEFT gives them."""
    rows, columns = weight.shape[::-1] if embeds else weight.shape
    return torch.randn(rank, columns), torch.randn(rows, rank)


def adapter(folder, modules, style=library_name, extra=None, ranks=None, embeds=(), **config):
    """Write an adapter for these modules; {module: (A, B)}."""
    plain = weights_of(folder)
    told = {"peft_type": "LORA", "r": R, "lora_alpha": ALPHA, "init_lora_weights": True, **config}
    given, tensors = {}, dict(extra or {})
    for module in modules:
        weight = plain[f"{module}.weight"]
        a, b = given[module] = matrices(weight, (ranks or {}).get(module, R), module in embeds)
        path = "base_model.model." + style(module + ".")
        if module in embeds:
            tensors |= {f"{path}lora_embedding_A": a, f"{path}lora_embedding_B": b}
        else:
            tensors |= {f"{path}lora_A.weight": a, f"{path}lora_B.weight": b}
    (folder / "adapter_config.json").write_text(json.dumps(told))
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
    save_file(tensors, folder / "adapter_model.safetensors")
    return plain, given


def assert_folded(folder, plain, changes):
    """The loaded weights are the plain ones, and those of ``changes`` that much more."""
    found = StreamQwenModel.from_pretrained(folder).state_dict()
    assert changes.keys() <= found.keys()
    for name, weight in found.items():
        torch.testing.assert_close(weight, plain[name] + changes.get(name, 0.0))
    assert all(change.abs().max() > 0.1 for change in changes.values())


@pytest.mark.parametrize("style", [library_name, lambda name: name])
@pytest.mark.parametrize("stabilised", [False, True])
def test_each_module_has_scale_times_b_a_more(folder, style, stabilised):
    plain, given = adapter(folder, [Q, DOWN, VISION], style, use_rslora=stabilised)
    scale = ALPHA / (math.sqrt(R) if stabilised else R)
    changes = {f"{module}.weight": scale * (b @ a) for module, (a, b) in given.items()}
    assert_folded(folder, plain, changes)


def test_patterns_say_the_rank_and_the_alpha_of_single_modules(folder):
    plain, given = adapter(
        folder,
        [Q, DOWN, VISION],
        ranks={Q: 2, VISION: 3},
        rank_pattern={"layers.1.self_attn.q_proj": 2, "qkv": 3},
        alpha_pattern={r".*\.mlp\.down_proj": 20, "proj": 1000},  # "proj" alone is no module
    )
    scales = {Q: ALPHA / 2, DOWN: 20 / R, VISION: ALPHA / 3}
    changes = {f"{name}.weight": scales[name] * (b @ a) for name, (a, b) in given.items()}
    assert_folded(folder, plain, changes)


def test_an_embedding_has_its_change_the_other_way_round(folder):
    plain, given = adapter(folder, [EMBED], embeds=[EMBED])
    a, b = given[EMBED]
    assert_folded(folder, plain, {f"{EMBED}.weight": ALPHA / R * (b @ a).T})


def test_weights_that_it_replaces_as_a_whole_are_replaced(folder):
    head = torch.randn(weights_of(folder)["lm_head.weight"].shape)
    bias = torch.randn(64)
    plain, _ = adapter(
        folder,
        [],
        modules_to_save=["lm_head"],
        bias="lora_only",
        extra={
            "base_model.model.lm_head.weight": head,
            "base_model.model.model.language_model.layers.1.self_attn.q_proj.bias": bias,
        },
    )
    changes = {"lm_head.weight": head - plain["lm_head.weight"]}
    changes[f"{Q}.bias"] = bias - plain[f"{Q}.bias"]
    assert_folded(folder, plain, changes)


def test_half_precision_weights_are_folded_in_float32(folder):
    _, given = adapter(folder, [Q])
    a, b = given[Q]
    (folder / "adapter_config.json").rename(folder / "aside.json")
    plain = StreamQwenModel.from_pretrained(folder, torch_dtype=torch.bfloat16).state_dict()
    (folder / "aside.json").rename(folder / "adapter_config.json")
    found = StreamQwenModel.from_pretrained(folder, torch_dtype=torch.bfloat16).state_dict()
    expected = (plain[f"{Q}.weight"].float() + ALPHA / R * (b @ a)).bfloat16()
    assert torch.equal(found[f"{Q}.weight"], expected)


@pytest.mark.parametrize(
    ("config", "extra", "words"),
    [
        ({"peft_type": "IA3"}, {}, "of the kind 'IA3', not LORA"),
        ({"use_dora": True}, {}, "use_dora"),
        ({"layer_replication": [[0, 2], [1, 2]]}, {}, "repeats layers"),
        ({"init_lora_weights": "pissa_niter_4"}, {}, "pissa_niter_4"),
        ({"r": 8}, {}, "has rank 4, but its config says 8"),
        ({"init_lora_weights": "lora_ga"}, {}, "lora_ga"),
        ({"lora_alpha": None}, {}, "lora_alpha is None"),
        ({"lora_alpha": math.nan}, {}, "lora_alpha is nan"),
        ({"lora_alpha": 10**400}, {}, "lora_alpha is 1000"),
        ({"lora_alpha": True}, {}, "lora_alpha is True"),
        ({"alpha_pattern": {"q_proj": math.inf}}, {}, "lora_alpha is inf"),
        ({"alpha_pattern": ["q_proj"]}, {}, r"alpha_pattern is \['q_proj'\], not an object"),
        ({"rank_pattern": "q_proj"}, {}, "rank_pattern is 'q_proj', not an object"),
        ({"rank_pattern": {"(": 4}}, {}, r"'\(' of its rank_pattern is no pattern"),
        ({}, {"model.layers.0.mlp.down_proj.lora_magnitude_vector": (64,)}, "more than a product"),
        ({}, {"model.layers.7.mlp.up_proj.lora_A.weight": (4, 64)}, "not part of the model"),
        ({}, {"model.layers.0.mlp.up_proj.lora_A.weight": (4, 64)}, "only one of"),
        ({}, {"lm_head.weight": (3, 64)}, r"lm_head.weight is \[3, 64\]"),
    ],
)
def test_what_is_more_than_that_is_refused_by_its_reason(folder, config, extra, words):
    extra = {f"base_model.model.{name}": torch.ones(size) for name, size in extra.items()}
    adapter(folder, [Q], extra=extra, **config)
    with pytest.raises(ModelLoadError, match=f"adapter in .* cannot be folded .*{words}"):
        StreamQwenModel.from_pretrained(folder)


IN_Q = "base_model.model.model.layers.1.self_attn.q_proj."


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({}, "holds no weights"),
        ({"lora_A.weight": torch.ones(0, 64), "lora_B.weight": torch.ones(64, 0)}, "has rank 0"),
        ({"weight": torch.ones(64, 64, dtype=torch.int8)}, "is stored as torch.int8"),
        ({"weight": torch.ones(64, 64, dtype=torch.complex64)}, "is stored as torch.complex64"),
        ({"weight": torch.full((64, 64), math.nan)}, "not finite"),
        ({"weight": torch.ones(64, 64), "modules_to_save.default.weight": torch.zeros(64, 64)},
         "are the same"),
    ],
)  # fmt: skip
def test_a_file_of_other_tensors_is_refused(folder, tensors, words):
    adapter(folder, [], extra={IN_Q + name: tensor for name, tensor in tensors.items()})
    with pytest.raises(ModelLoadError, match=f"adapter in .* cannot be folded .*{words}"):
        StreamQwenModel.from_pretrained(folder)


def test_one_module_under_the_names_of_two_libraries_is_refused(folder):
    adapter(folder, [Q], style=library_name)
    file = folder / "adapter_model.safetensors"
    given = load_file(file)
    plain = {name.replace("language_model.", ""): tensor + 0 for name, tensor in given.items()}
    save_file(given | plain, file)
    with pytest.raises(ModelLoadError, match="are the same"):
        StreamQwenModel.from_pretrained(folder)


def test_a_config_nested_without_end_is_refused(folder):
    adapter(folder, [Q])
    (folder / "adapter_config.json").write_text("[" * 100_000)
    with pytest.raises(ModelLoadError, match="cannot be read as JSON"):
        StreamQwenModel.from_pretrained(folder)


@pytest.mark.parametrize("held", [{3: torch.ones(2)}, {"a": 3}])
def test_a_file_that_torch_wrote_holds_names_and_tensors(folder, held):
    adapter(folder, [Q])
    (folder / "adapter_model.safetensors").unlink()
    torch.save(held, folder / "adapter_model.bin")
    with pytest.raises(ModelLoadError, match=r"cannot read .*names no tensor"):
        StreamQwenModel.from_pretrained(folder)


@pytest.mark.parametrize("what", ["head", "embedding"])
def test_of_weights_that_are_tied_it_cannot_change_one(tmp_path, what):
    folder = library_checkpoint(tmp_path, 2, tied=True)
    size = weights_of(folder)[f"{EMBED}.weight"].shape
    name = "lm_head" if what == "head" else "model.embed_tokens"
    adapter(folder, [Q], extra={f"base_model.model.{name}.weight": torch.ones(size)})
    with pytest.raises(ModelLoadError, match=r"one matrix for .*embed_tokens.weight, lm_head"):
        StreamQwenModel.from_pretrained(folder)


def test_an_incomplete_adapter_is_never_ignored(folder):
    adapter(folder, [Q])
    (folder / "adapter_model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"no adapter_model.safetensors"):
        StreamQwenModel.from_pretrained(folder)
    (folder / "adapter_model.safetensors").write_bytes(b"no tensors")
    with pytest.raises(ModelLoadError, match=r"cannot read .*adapter_model.safetensors"):
        StreamQwenModel.from_pretrained(folder)


def test_a_folder_with_an_adapter_alone_says_what_is_lacking(folder):
    adapter(folder, [Q])
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match="holds an adapter alone: put it next to the full"):
        StreamQwenModel.from_pretrained(folder)
