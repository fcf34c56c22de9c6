# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Checkpoint folders damaged by lot: what loading them, looking at them and asking them comes to.

    make fuzz-checkpoints

Each case is a copy of the small model that the package ships, with one to three mutations drawn
from its seed: values of its JSON files altered, taken away or added (quantised, of other
attention, of strange sizes), its tokenizer and chat template broken, its weights cut, changed,
renamed, put into shards or stored otherwise, an adapter laid next to them, files lost or replaced
by folders, pipes and links. A process of its own then loads the model, with a history, shows it
frames, asks it and lets it choose; another reads what ``stream-vlm info`` tells. Both must end
within ten seconds, by nothing but the package's own errors, and within a bound of memory.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers

from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import StreamVlmError
from stream_vlm_ros.factory import build_engine, default_model, load_model
from stream_vlm_ros.machine import measured_on
from stream_vlm_ros.replay.checkpoint import CheckpointInfo

sys.path.append(str(Path(__file__).parent))  # tools/run.sh leaves it out
from fuzzing import LIMIT, counted, each_in_a_fresh_folder, in_its_own_process, options_of, tell

# What the library imports when it is first used; else each case pays for it.
load_model(Settings(device="cpu"))

MEMORY = 2**30  # bytes a case may take, beyond what the process had before it
WEIGHTS = "model.safetensors"
JSON_FILES = (
    "config.json", "config.json", "config.json", "preprocessor_config.json", "tokenizer.json",
    "tokenizer_config.json", "generation_config.json", "chat_template.json",
    "history_calibration.json",
)  # fmt: skip
HOSTILE: tuple[Any, ...] = (
    None, True, False, -1, 0, 1, 2, 3, 7, 0.5, -0.0, 1e-300, 1e308, float("nan"), float("inf"),
    2**31, 2**63, 10**30, 100_000, "", "0", "text", "../../elsewhere", "\x00", "\u202e", "a" * 5000,
    [], [[]], [0], [None], [1, 2, 3], ["text"], {}, {"a": {}}, {"": None},
)  # fmt: skip
# What checkpoints of other makers have, or people write into theirs.
ADDED: tuple[tuple[str, str, Any], ...] = tuple(
    (file, key, value)
    for file, key, values in (
        ("config.json", "quantization_config", [
            {"quant_method": "awq", "bits": 4}, {"quant_method": "gptq", "bits": 4},
            {"quant_method": "fp8"}, {"load_in_4bit": True, "quant_method": "bitsandbytes"},
            {"quant_method": "compressed-tensors", "config_groups": {}}, "awq", ["awq"], 4]),
        ("config.json", "compression_config", [{"quant_method": "sparse"}]),
        ("config.json", "attn_implementation", ["flash_attention_2", "paged|eager", 3]),
        ("config.json", "_attn_implementation", ["flash_attention_3", "sdpa", {}]),
        ("config.json", "dtype", ["int4", "float8_e4m3fn", "auto", "float64", "torch.float16", 16]),
        ("config.json", "torch_dtype", ["bfloat16", "int8", None, []]),
        ("config.json", "rope_scaling", [
            {"type": "mrope", "mrope_section": [16, 8, 8]}, {"type": "yarn", "factor": 4},
            {"rope_type": "dynamic"}, "yarn", []]),
        ("config.json", "auto_map", [{"AutoConfig": "modeling_x.Config"}]),
        ("config.json", "model_type", ["qwen2_vl", "qwen3_vl", "llama", None, ["qwen2_5_vl"]]),
        ("config.json", "hidden_size", [256, 128, "256"]),
        ("config.json", "text_config", [None, [], {}, "qwen2"]),
        ("config.json", "vision_config", [None, [], {}, "qwen2"]),
        ("generation_config.json", "eos_token_id", [
            None, [], "589", [589, None], -1, 10**12, [[589]], 0.5, True]),
        ("generation_config.json", "do_sample", [True]),
        ("generation_config.json", "temperature", [0.1, 0, -1, "warm"]),
        ("generation_config.json", "repetition_penalty", [1.05, 0, "high"]),
        ("generation_config.json", "num_beams", [4, 0]),
        ("tokenizer_config.json", "eos_token", [None, "<|nothing|>", {"content": 3}, []]),
        ("tokenizer_config.json", "tokenizer_class", ["LlamaTokenizer", "Nothing", 3]),
        ("tokenizer_config.json", "chat_template", [[{"name": "x"}], [3], {"default": 3}]),
        ("chat_template.json", "chat_template", [
            "", "{{ nothing.at.all }}", "{% for", "{{ raise_exception('no') }}", "no words",
            "{{ messages }}", "{{ messages[9].content }}", "{{ 1 // 0 }}", [], [3], {"default": []},
            "{% for m in messages %}{{ m['role'] }}{% endfor %}"]),
        ("preprocessor_config.json", "size", [
            {"shortest_edge": 10**6, "longest_edge": 10}, {"height": 3}, [3], 448]),
        ("preprocessor_config.json", "image_std", [[0, 0, 0], [1e-300] * 3, ["a"] * 3, 0.5]),
    )
    for value in values
)  # fmt: skip


def read(file: Path) -> Any:
    """A JSON file's content; {} where an earlier mutation left none."""
    try:
        return json.loads(file.read_text()) if file.is_file() else {}
    except (OSError, ValueError, RecursionError):
        return {}


def write(file: Path, values: Any) -> None:
    """In the place of what is there; where an earlier mutation put a folder, nothing."""
    if not file.is_dir():
        file.unlink(missing_ok=True)
        file.write_text(json.dumps(values))


def places_in(values: Any) -> list[tuple[Any, Any]]:
    """(the list or mapping, key) of all values, of long lists the first and the last."""
    found: list[tuple[Any, Any]] = []
    keys: Any = []
    if isinstance(values, dict):
        keys = list(values)
    elif isinstance(values, list):
        keys = list(range(len(values)))
    for key in keys if len(keys) < 40 else [*keys[:3], *keys[-1:]]:
        found += [(values, key), *places_in(values[key])]
    return found


# -- mutations: each gets the folder and its own random numbers ----------------------------------


def a_value(folder: Path, lot: random.Random) -> None:
    file = folder / lot.choice(JSON_FILES)
    values = read(file)
    if places := places_in(values):
        inside, key = lot.choice(places)
        inside[key] = lot.choice(HOSTILE)
        write(file, values)


def a_near_value(folder: Path, lot: random.Random) -> None:
    """A number a little off, a text for a number, a list for what it holds."""
    file = folder / lot.choice(JSON_FILES)
    values = read(file)
    numbers = [(i, k) for i, k in places_in(values) if type(i[k]) in (int, float)]
    if numbers:
        inside, key = lot.choice(numbers)
        n = inside[key]
        inside[key] = lot.choice([n + 1, n - 1, 2 * n, n / 2, -n, str(n), [n], float(n), n * 10**9])
        write(file, values)


def a_lost_key(folder: Path, lot: random.Random) -> None:
    file = folder / lot.choice(JSON_FILES)
    values = read(file)
    if places := places_in(values):
        inside, key = lot.choice(places)
        del inside[key]
        write(file, values)


def an_added_key(folder: Path, lot: random.Random) -> None:
    name, key, value = lot.choice(ADDED)
    values = read(folder / name)
    if isinstance(values, dict):
        values[key] = value
        write(folder / name, values)


def another_text(folder: Path, lot: random.Random) -> None:
    """A JSON file that is none, or of something else."""
    file = folder / lot.choice([*JSON_FILES, "chat_template.jinja", "processor_config.json"])
    if file.is_dir():
        return
    file.unlink(missing_ok=True)
    file.write_bytes(lot.choice([
        b"", b"{", b"null", b"[]", b"3", b'"text"', b"\xff\xfe\x00", b"[" * 100_000, b"{}",
        b'{"a": 1, "a": 2}', b"\xef\xbb\xbf{}", b"version https://git-lfs.github.com/spec/v1\n",
        b'{"n": ' + b"9" * 6000 + b"}", b'{"n": 1e999}', b'{"s": "\\ud800"}',
    ]))  # fmt: skip


def changed_bytes(folder: Path, lot: random.Random) -> None:
    files = [file for file in sorted(folder.iterdir()) if file.is_file()]
    file = lot.choice([folder / WEIGHTS, *files])
    if not file.is_file():
        return
    with file.open("r+b") as opened:
        size = os.fstat(opened.fileno()).st_size
        reach = lot.choice([8, 2000, size])  # the length of the header, the header, all
        for _ in range(lot.choice([1, 2, 8])):
            opened.seek(lot.randrange(max(1, min(reach, size))))
            opened.write(bytes([lot.randrange(256)]))


def cut(folder: Path, lot: random.Random) -> None:
    file = lot.choice([folder / WEIGHTS, *(f for f in sorted(folder.iterdir()) if f.is_file())])
    if file.is_file():
        size = file.stat().st_size
        os.truncate(file, lot.choice([0, 1, 7, 8, size - 1, size + 1, lot.randrange(size + 1)]))


def lost(folder: Path, lot: random.Random) -> None:
    lot.choice([f for f in sorted(folder.iterdir()) if f.is_file()] or [folder / "x"]).unlink(True)


def another_kind(folder: Path, lot: random.Random) -> None:
    """A folder, a pipe, a link to itself or to nothing in the place of a file."""
    file = folder / lot.choice([*JSON_FILES, WEIGHTS, "chat_template.jinja", "adapter_config.json"])
    if file.is_dir():
        return
    file.unlink(missing_ok=True)
    make = lot.choice([os.mkdir, os.mkfifo, lambda f: f.symlink_to(f), lambda f: f.symlink_to("0")])
    make(file)


def _tensors(folder: Path) -> dict[str, torch.Tensor]:
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        return load_file(folder / WEIGHTS) if (folder / WEIGHTS).is_file() else {}
    except (OSError, SafetensorError, ValueError, TypeError):
        return {}


def _save(tensors: dict[str, torch.Tensor], file: Path) -> None:
    from safetensors.torch import save_file

    if not file.is_dir():
        file.unlink(missing_ok=True)
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file)


def other_weights(folder: Path, lot: random.Random) -> None:
    """One or all tensors stored otherwise, renamed, reshaped, lost, doubled or not finite."""
    tensors = _tensors(folder)
    if not tensors:
        return
    names = lot.choice([[lot.choice(sorted(tensors))], sorted(tensors)])
    change = lot.randrange(9)
    for name in names:
        tensor = tensors[name]
        if change == 0:
            tensors[name] = tensor.to(lot.choice([torch.int8, torch.uint8, torch.float8_e4m3fn]))
        elif change == 1:
            tensors[f"model.{name}"] = tensors.pop(name)
        elif change == 2:
            tensors[name] = tensor.flatten()
        elif change == 3:
            tensors[name] = tensor * lot.choice([float("nan"), float("inf"), 1e30])
        elif change == 4:
            del tensors[name]
        elif change == 5:
            tensors[f"{name}.weight_scale"] = torch.ones(1)
        elif change == 6:
            tensors[name] = tensor[:0]
        elif change == 7:
            tensors[name] = tensor.to(lot.choice([torch.float64, torch.float16, torch.bool]))
        else:
            tensors[name] = torch.zeros_like(tensor)
    _save(tensors, folder / WEIGHTS)


def other_header(folder: Path, lot: random.Random) -> None:
    """The header of the weights, with its length, says something else."""
    file = folder / WEIGHTS
    if not file.is_file():
        return
    data = file.read_bytes()
    size = int.from_bytes(data[:8], "little")
    try:
        header = json.loads(data[8 : 8 + size])
    except ValueError:
        return
    inside, key = lot.choice(places_in(header) or [(header, "x")])
    inside[key] = lot.choice([*HOSTILE, "F4", "F8_E4M3", "I4", [0, 2**62], [2**40, 2**40]])
    text = json.dumps(header).encode()
    file.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


def shards(folder: Path, lot: random.Random) -> None:
    """The weights in two files with an index, which may not say the truth."""
    tensors = _tensors(folder)
    if not tensors:
        return
    names = sorted(tensors)
    parts = [names[::2], names[1::2]]
    files = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    for part, name in zip(parts, files, strict=True):
        _save({n: tensors[n] for n in part}, folder / name)
    places: Any = {n: name for part, name in zip(parts, files, strict=True) for n in part}
    spoil = lot.randrange(7)
    if spoil == 0:
        places[names[0]] = lot.choice(["../x.safetensors", "", "/etc/passwd", None, 3, "missing"])
    elif spoil == 1:
        places = lot.choice([[], None, "x", {}])
    elif spoil == 2:
        (folder / files[1]).unlink()
    elif spoil == 3:
        (folder / files[1]).write_bytes((folder / files[0]).read_bytes())
    elif spoil == 4:
        (folder / files[1]).write_bytes(b"version https://git-lfs.github.com/spec/v1\n")
    (folder / WEIGHTS).unlink()
    write(folder / f"{WEIGHTS}.index.json", {"weight_map": places} if spoil != 5 else places)


def torchs_own_format(folder: Path, lot: random.Random) -> None:
    """pytorch_model.bin, of tensors or of something that is no tensor."""
    tensors: Any = _tensors(folder)
    if (folder / WEIGHTS).is_dir():
        return
    (folder / WEIGHTS).unlink(missing_ok=True)
    file = folder / "pytorch_model.bin"
    held = lot.choice([tensors, tensors, list(tensors), {3: 4}, {"a": Path("x")}, None, "x"])
    torch.save(held, file)
    if lot.random() < 0.3:
        file.write_bytes(lot.choice([b"", b"PK\x03\x04", lot.randbytes(3000)]))


def an_adapter(folder: Path, lot: random.Random) -> None:
    """A LoRA adapter of PEFT, whole or with something wrong."""
    layer = "base_model.model.model.language_model.layers.0.self_attn.q_proj"
    config: dict[str, Any] = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "bias": "none"}
    tensors = {f"{layer}.lora_A.weight": torch.randn(2, 256) * 0.01}
    tensors[f"{layer}.lora_B.weight"] = torch.randn(256, 2) * 0.01
    spoil = lot.randrange(6)
    if spoil == 0:
        config[lot.choice([*config, "rank_pattern", "use_dora", "target_modules"])] = lot.choice(
            HOSTILE
        )
    elif spoil == 1:
        tensors.pop(lot.choice(list(tensors)))
    elif spoil == 2:
        tensors = {lot.choice(["x", f"{layer}.lora_A"]): torch.ones(3)}
    elif spoil == 3:
        config["alpha_pattern"] = {lot.choice(["(", "a{99999999999}", ".*", ""]): 3}
    elif spoil == 4:
        tensors[f"{layer}.lora_A.weight"] = torch.ones(2, 255)
    write(folder / "adapter_config.json", config)
    if lot.random() < 0.8:
        _save(tensors, folder / "adapter_model.safetensors")
    if lot.random() < 0.2:  # an adapter alone
        (folder / lot.choice(["config.json", WEIGHTS])).unlink(missing_ok=True)


MUTATIONS: list[Callable[[Path, random.Random], None]] = [
    a_value, a_value, a_value, a_near_value, a_near_value, a_lost_key, a_lost_key, an_added_key,
    an_added_key, another_text, changed_bytes, cut, lost, another_kind, other_weights, other_header,
    shards, torchs_own_format, an_adapter,
]  # fmt: skip


# -- one case ------------------------------------------------------------------------------------


def use(folder: Path) -> str:
    """Load the model, show it frames, ask it and let it choose."""
    settings = Settings(
        model_path=str(folder), device="cpu", max_cache_tokens=512, max_pixels=16_800,
        history="auto", max_tail_tokens=256, max_new_tokens=8,
    )  # fmt: skip
    engine = build_engine(settings, load_model(settings))
    frames = np.random.default_rng(0).integers(0, 256, (4, 120, 160, 3), np.uint8)
    engine.append_video_chunk(list(frames), timestamps=[0.0, 0.5, 1.0, 1.5])
    text, metrics = engine.ask("What do you see?", max_new_tokens=8)
    assert isinstance(text, str) and metrics.answer_tokens <= 8
    chosen, scores = engine.ask_choice("What is it?", ["a cup", "a ball"])
    assert chosen in ("a cup", "a ball") and all(score <= 0 for score in scores.scores)
    engine.close()
    return "answers"


def look(folder: Path) -> str:
    """What `stream-vlm info` does."""
    info = CheckpointInfo.read(folder)
    assert info.rows() and info.cap_row(4096, None)
    if info.missing or info.broken:
        return "named as not whole"
    assert info.plan_here(None)
    return "told"


def in_words(work: Callable[[Path], str], folder: Path) -> str:
    """What it comes to, a refusal with its words; what libraries print is not shown."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, 1), os.dup2(null, 2)
    try:
        return work(folder)
    except StreamVlmError as error:
        return f"{type(error).__name__}: {error}"


def case(seed: int, root: Path) -> dict[str, Any]:
    """One damaged folder: its mutations, and what came of it."""
    lot = random.Random(seed)
    torch.manual_seed(seed)
    folder = root / "checkpoint"
    shutil.copytree(default_model(), folder)
    drawn = [lot.choice(MUTATIONS) for _ in range(lot.choice([1, 1, 2, 3]))]
    for mutate in drawn:
        mutate(folder, lot)
    found: dict[str, Any] = {"seed": seed, "mutations": [mutate.__name__ for mutate in drawn]}
    for name, work in (("used", use), ("told", look)):
        outcome, seconds, memory = in_its_own_process(lambda work=work: in_words(work, folder))
        found |= {name: outcome, f"{name}_s": round(seconds, 2), f"{name}_memory": memory}
    return found


def is_wrong(found: dict[str, Any]) -> bool:
    """Whether a case broke one of the rules."""
    return any(
        found[name].startswith("raw")
        or found[name] == "hangs"
        or found[f"{name}_s"] > LIMIT
        or found[f"{name}_memory"] > MEMORY
        for name in ("used", "told")
    )


def fuzz(first_seed: int, count: int) -> list[dict[str, Any]]:
    """``count`` cases from ``first_seed`` on."""
    torch.set_num_threads(1)  # the children are forks, in which no pool of threads goes on
    with tempfile.TemporaryDirectory(prefix="fuzz_checkpoints_") as folder:
        return each_in_a_fresh_folder(Path(folder), first_seed, count, case)


def main() -> int:
    options = options_of(__doc__, 500)
    found = fuzz(options.seed, options.count)
    wrong = [one for one in found if is_wrong(one)]
    kinds = counted(f"{n}: {one[n].split(':')[0][:40]}" for one in found for n in ("used", "told"))
    result = {
        **measured_on(np, torch, transformers),
        "command": f"python bench/fuzz_checkpoints.py --seed {options.seed} "
        f"--count {options.count}",
        "first_seed": options.seed,
        "cases": len(found),
        "outcomes": kinds,
        "mutations": counted(m for one in found for m in one["mutations"]),
        "slowest_s": max(max(one["used_s"], one["told_s"]) for one in found),
        "max_memory_mb": round(max(one["used_memory"] for one in found) / 2**20),
        "wrong": wrong,
    }
    tell(result, options.out)
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main())
