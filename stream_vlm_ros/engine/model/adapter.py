# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A LoRA adapter as PEFT saves it, folded into the weights that it was trained for."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from stream_vlm_ros.errors import ModelLoadError

if TYPE_CHECKING:
    from .base import StreamModel

_PREFIX = "base_model.model."  # of each name in the file
# What changes the weights otherwise than by W + scale x B A, or wants other weights beneath it.
_REFUSED = {
    "use_dora": "it scales the weights' columns (DoRA)",
    "use_qalora": "it was trained on quantised weights",
    "layer_replication": "it repeats layers",
    "alora_invocation_tokens": "it is active only behind certain tokens",
}
# Ways to begin a training that leave the weights beneath as they are; others change them, too.
_INITIALISED = ("gaussian", "eva", "orthogonal")
_TAKEN = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_LARGEST_ALPHA = 1e9


def _from_the_back(pattern: str) -> str:
    return rf"(.*\.)?({pattern})$"


class LoraAdapter:
    """What an adapter adds to the weights of a model.

    ``W + scale x B A`` with ``scale`` = alpha / r, or alpha / sqrt(r) where it is rank-stabilised;
    and weights that it replaces as a whole (``modules_to_save``, biases).

    Args:
        config: of ``adapter_config.json``.
        tensors: of ``adapter_model.safetensors``.
        folder: for messages.

    Raises:
        ModelLoadError: it is no such adapter, or changes the model in another way.
    """

    def __init__(self, config: dict[str, Any], tensors: dict[str, torch.Tensor], folder: Path):
        self._config, self._tensors, self._folder = config, tensors, folder
        kind = config.get("peft_type")
        if kind != "LORA":
            raise self._refusal(f"it is of the kind {kind!r}, not LORA")
        for name, why in _REFUSED.items():
            if config.get(name):
                raise self._refusal(f"{why} ({name})")
        begun = config.get("init_lora_weights", True)
        if isinstance(begun, str) and begun.lower() not in _INITIALISED:
            raise self._refusal(
                f"its start may have changed the weights beneath (init_lora_weights {begun!r})"
            )
        for name in ("rank_pattern", "alpha_pattern"):
            self._check_patterns(name, config.get(name) or {})
        if not tensors:
            raise self._refusal("its file holds no weights")
        for name, tensor in tensors.items():
            if tensor.dtype not in _TAKEN:
                raise self._refusal(f"{name} is stored as {tensor.dtype}, not as 16 or 32 bits")
            if not torch.isfinite(tensor).all():
                raise self._refusal(f"{name} holds values that are not finite")

    def _check_patterns(self, name: str, patterns: Any) -> None:
        if not isinstance(patterns, dict):
            raise self._refusal(f"its config's {name} is {patterns!r}, not an object")
        for pattern in patterns:
            try:
                re.compile(_from_the_back(pattern))
            except (re.error, OverflowError, RecursionError) as error:
                raise self._refusal(f"{pattern!r} of its {name} is no pattern: {error}") from error

    def fold_into(self, model: StreamModel) -> None:
        """Change the model's weights; where something does not fit, ModelLoadError."""
        table = dict(model.released())
        pairs: dict[str, dict[str, torch.Tensor]] = {}  # of each module: A and B
        replaced: dict[str, torch.Tensor] = {}
        seen: dict[str, str] = {}  # under whatever library's name, each once
        for name, tensor in self._tensors.items():
            plain = re.sub(r"(\.modules_to_save)?\.default\b", "", name.removeprefix(_PREFIX))
            if other := seen.get(plain := model.released_name(plain)):
                raise self._refusal(f"{other} and {name} are the same")
            seen[plain] = name
            found = re.fullmatch(r"(.+)\.lora_(embedding_)?([AB])(\.default)?(\.weight)?", name)
            if found is not None:
                embeds = "embedding " if found[2] else ""
                pairs.setdefault(found[1], {})[embeds + found[3]] = tensor
            elif "lora_" in name:
                raise self._refusal(f"{name} is more than a product of two matrices")
            else:
                replaced[name.replace(".modules_to_save.default", "")] = tensor
        for module, both in pairs.items():
            self._add(module, both, self._weight_of(f"{module}.weight", table, model))
        for given, tensor in replaced.items():
            weight = self._weight_of(given, table, model)
            if tensor.shape != weight.shape:
                raise self._refusal(f"{given} is {list(tensor.shape)}, not {list(weight.shape)}")
            with torch.no_grad():
                weight.copy_(tensor)

    @torch.no_grad()
    def _add(self, module: str, both: dict[str, torch.Tensor], weight: torch.Tensor) -> None:
        embeds = "embedding A" in both or "embedding B" in both
        a, b = (both.get(f"embedding {x}" if embeds else x) for x in "AB")
        if a is None or b is None:
            raise self._refusal(f"{module} has only one of lora_A and lora_B")
        if a.ndim != 2 or b.ndim != 2 or len(a) != b.shape[1]:
            raise self._refusal(
                f"the matrices of {module} do not belong together: {list(b.shape)} by "
                f"{list(a.shape)}"
            )
        change = self._scale(module, len(a)) * (b.float() @ a.float())
        change = change.T if embeds else change
        if change.shape != weight.shape:
            raise self._refusal(
                f"it changes {module} by {list(change.shape)}, but the weights are "
                f"{list(weight.shape)}"
            )
        weight.copy_(weight.float() + change.to(weight.device))

    def _scale(self, module: str, rank: int) -> float:
        config, path = self._config, module.removeprefix(_PREFIX)
        if not rank:
            raise self._refusal(f"{module} has rank 0")
        if (told := self._of(path, "rank_pattern", config.get("r"))) != rank:
            raise self._refusal(f"{module} has rank {rank}, but its config says {told!r}")
        alpha = self._of(path, "alpha_pattern", config.get("lora_alpha"))
        if type(alpha) not in (int, float) or not abs(alpha) <= _LARGEST_ALPHA:
            raise self._refusal(f"its config's lora_alpha is {alpha!r}")
        return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)

    def _of(self, path: str, patterns: str, otherwise: Any) -> Any:
        """The value of the first pattern that matches a module's path from the back, as in PEFT."""
        for pattern, value in (self._config.get(patterns) or {}).items():
            if re.match(_from_the_back(pattern), path):
                return value
        return otherwise

    def _weight_of(
        self, given: str, table: dict[str, torch.Tensor], model: StreamModel
    ) -> torch.Tensor:
        name, tied = model.released_name(given.removeprefix(_PREFIX)), model.tied_names()
        if name in tied or name in tied.values():
            raise self._refusal(
                f"it changes {name} alone, but this model has one matrix for "
                f"{', '.join([*tied.values(), *tied])}"
            )
        if not given.startswith(_PREFIX) or name not in table:
            raise self._refusal(f"{given} is not part of the model")
        return table[name]

    def _refusal(self, why: str) -> ModelLoadError:
        return ModelLoadError(
            f"the adapter in {self._folder} cannot be folded into the weights: {why}. Merge it by "
            "the library that trained it, or remove adapter_config.json to go without it"
        )
