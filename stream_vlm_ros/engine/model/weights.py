# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Weights from files and into files, by one table of (released name, view into our parameter)."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import GenerationConfig

from stream_vlm_ros.engine.decoding import DecodingOptions
from stream_vlm_ros.engine.inputs.frames import read_json_object
from stream_vlm_ros.errors import ModelLoadError, check_model_folder, cut

from .adapter import LoraAdapter
from .config import token_problem

if TYPE_CHECKING:
    from .base import StreamModel

log = logging.getLogger(__name__)

# In the library's order of precedence: one file, or several that an index names.
_FILES = (
    ("model.safetensors", "model.safetensors.index.json"),
    ("pytorch_model.bin", "pytorch_model.bin.index.json"),
)
_ADAPTER = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
# What a generation_config.json says besides how an answer is written.
_NOT_DECODING = (
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
    "use_cache",
    "transformers_version",
    "_from_model_config",
)
_LFS_POINTER = b"version https://git-lfs"
_TAKEN = (torch.float32, torch.float16, torch.bfloat16, torch.float64)


@dataclass(frozen=True)
class CheckpointFiles:
    """The files of a checkpoint folder.

    Attributes:
        files: of the weights.
        adapter: the folder again where a LoRA adapter lies in it, else None.
    """

    folder: Path
    files: tuple[Path, ...]
    adapter: Path | None

    @classmethod
    def find(cls, folder: Path) -> CheckpointFiles:
        """ModelLoadError where ``config.json`` or weights are missing."""
        check_model_folder(folder)
        adapter = folder if (folder / _ADAPTER[0]).is_file() else None
        only = "; it holds an adapter alone: put it next to the full weights" if adapter else ""
        if not (folder / "config.json").is_file():
            raise ModelLoadError(
                f"{folder} has no config.json: not a checkpoint folder, or incomplete{only}"
            )
        for single, index in _FILES:
            if (folder / single).is_file():
                return cls(folder, (folder / single,), adapter)
            if (folder / index).is_file():
                return cls(folder, _shards(folder / index), adapter)
        raise ModelLoadError(
            f"{folder} has no weights (model.safetensors, or shards with "
            f"model.safetensors.index.json): the checkpoint is incomplete{only}"
        )

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the first tensor."""
        return next(dtype for _, tensor in self.tensors() if (dtype := tensor.dtype) in _TAKEN)

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(name in the file, tensor) of all of them, one at a time, none kept in memory."""
        for file in self.files:
            yield from tensors_of(file)

    def generation_config(self, words: int) -> GenerationConfig:
        """That of the folder, of which the tokens that end an answer are honoured: each is one of
        the ``words`` of the model's embedding, or ModelLoadError is raised.

        How an answer is written is said with each question. What the file says of that is logged as
        left out, unless it is what a question has by itself.
        """
        file = self.folder / "generation_config.json"
        values = read_json_object(file)
        ends = values.get("eos_token_id")
        if ends is not None and (problem := token_problem("eos_token_id", ends, words)):
            raise ModelLoadError(f"{file}: {problem}; copy it from the release of the model")
        defaults = {field.name: field.default for field in dataclasses.fields(DecodingOptions)}
        left_out = {
            name: value
            for name, value in values.items()
            if name not in _NOT_DECODING and value not in (None, False, defaults.get(name))
        }
        if left_out:
            told = ", ".join(f"{name} {value!r}" for name, value in left_out.items())
            log.warning(
                f"of {file} only eos_token_id is used; ignored: {cut(told)}. An answer is the "
                "likeliest text unless a question says otherwise (temperature, top_p, ...)"
            )
        try:
            return GenerationConfig.from_dict(values)
        except Exception:  # the library checks, by types of its own, what is left out here
            return GenerationConfig.from_dict({"eos_token_id": ends})

    def fold_adapter(self, model: StreamModel) -> None:
        """Add to the weights what a LoRA adapter in the folder says; ModelLoadError if it says
        more than that."""
        if self.adapter is None:
            return
        file = next((self.adapter / n for n in _ADAPTER[1:] if (self.adapter / n).is_file()), None)
        if file is None:
            raise ModelLoadError(
                f"{self.adapter} has an adapter_config.json, but no {_ADAPTER[1]}: the adapter is "
                "incomplete; remove its config to use the model without it"
            )
        config = read_json_object(self.adapter / _ADAPTER[0])
        LoraAdapter(config, dict(tensors_of(file)), self.adapter).fold_into(model)


def _shards(index: Path) -> tuple[Path, ...]:
    named = read_json_object(index).get("weight_map")
    if not isinstance(named, dict) or not named or not all(map(_is_name, named.values())):
        raise ModelLoadError(f"{index} does not say which file holds which weights")
    files = tuple(index.parent / name for name in sorted(set(named.values())))
    if lacking := [file.name for file in files if not file.is_file()]:
        more = f" and {len(lacking) - 3} more" if len(lacking) > 3 else ""
        raise ModelLoadError(
            f"{index.parent} lacks files of its weights: {', '.join(lacking[:3])}{more}"
        )
    return files


def _is_name(value: object) -> bool:
    return isinstance(value, str) and Path(value).name == value != ""


def tensors_of(file: Path) -> Iterator[tuple[str, torch.Tensor]]:
    """(name, tensor) of a file of weights, read as they are asked for."""
    with _in_words(file), file.open("rb") as begun:
        if begun.read(len(_LFS_POINTER)) == _LFS_POINTER:
            raise ModelLoadError(
                f"{file} is a pointer of Git LFS, not the weights: get them by git lfs pull"
            )
    if file.suffix == ".bin":
        with _in_words(file):
            found = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        if not isinstance(found, dict):
            raise ModelLoadError(
                f"cannot read {file}: it holds a {type(found).__name__}, not tensors by their names"
            )
        for name, tensor in found.items():
            if not isinstance(name, str) or not isinstance(tensor, torch.Tensor):
                hint = ": save what is under it by itself" if isinstance(tensor, dict) else ""
                raise ModelLoadError(
                    f"cannot read {file}: it holds {cut(repr(name))}, which names no tensor{hint}"
                )
        yield from found.items()
        return
    with _in_words(file):
        tensors = safe_open(file, framework="pt")
        names = list(tensors.keys())
    for name in names:
        with _in_words(file):
            tensor = tensors.get_tensor(name)
        yield name, tensor


@contextmanager
def _in_words(file: Path) -> Iterator[None]:
    try:
        yield
    except ModelLoadError:
        raise
    except Exception as error:  # the libraries that read files raise types of their own
        raise ModelLoadError(f"cannot read {file}: {error}. Is the file complete?") from error


@torch.no_grad()
def fill(model: StreamModel, tensors: Iterable[tuple[str, torch.Tensor]], where: str) -> None:
    """Copy tensors into a model, under released names or the library's.

    Raises ModelLoadError, naming ``where`` they come from, unless each of the model's weights is
    given and each one given is the model's.
    """
    table, tied = dict(model.released()), model.tied_names()
    missing, unknown, unlike = dict.fromkeys(table), [], []
    for given, tensor in tensors:
        name = model.released_name(given)
        name = tied.get(name, name)
        weight = table.get(name)
        if weight is None:
            # Old files have the rotation's frequencies, which are computed.
            if not given.endswith("rotary_emb.inv_freq"):
                unknown.append(given)
        elif tensor.dtype not in _TAKEN:
            raise ModelLoadError(
                f"the weights in {where} are quantised ({given} is stored as {tensor.dtype}): only "
                "weights of 16 or 32 bits are supported; take the model that is not quantised"
            )
        elif tensor.shape != weight.shape:
            unlike.append(f"{given} is {list(tensor.shape)}, not {list(weight.shape)}")
        elif name in missing:
            weight.copy_(tensor)
            del missing[name]
        elif not torch.equal(weight, tensor.to(weight)):
            raise ModelLoadError(
                f"the weights in {where} give {name} twice, and not alike (the second is {given})"
                + (": but the config ties them (tie_word_embeddings)" if tied else "")
            )
    problems = [
        f"{title}: {_some(names)}"
        for title, names in (
            ("missing in the file", sorted(missing)),
            ("not part of the model", sorted(unknown)),
            ("of another shape", sorted(unlike)),
        )
        if names
    ]
    if problems:
        raise ModelLoadError(f"the weights in {where} do not fit the model; {'; '.join(problems)}")


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def save(weights: Iterable[tuple[str, torch.Tensor]], folder: Path, max_shard_size: int) -> None:
    """Write (name, view) as safetensors: one file, or several with an index.

    Never more than one file's weights are held a second time.
    """
    shards: list[list[tuple[str, torch.Tensor]]] = [[]]
    size = 0
    for name, weight in weights:
        if shards[-1] and size + weight.nbytes > max_shard_size:
            shards.append([])
            size = 0
        shards[-1].append((name, weight))
        size += weight.nbytes
    count = len(shards)
    places: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        name = f"model-{number:05}-of-{count:05}.safetensors" if count > 1 else "model.safetensors"
        # Each by itself: the format refuses tensors that share their storage.
        tensors = {name: weight.detach().cpu().clone().contiguous() for name, weight in shard}
        save_file(tensors, folder / name, metadata={"format": "pt"})
        places |= dict.fromkeys(tensors, name)
    if count > 1:
        total = sum(weight.nbytes for shard in shards for _, weight in shard)
        index = {"metadata": {"total_size": total}, "weight_map": places}
        (folder / _FILES[0][1]).write_text(json.dumps(index, indent=2) + "\n")
