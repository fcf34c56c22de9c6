# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What a checkpoint folder holds and what its memory costs: read from its files, nothing loaded."""

from __future__ import annotations

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open

from stream_vlm_ros.config import Settings
from stream_vlm_ros.console import bytes_text, duration_text, plural
from stream_vlm_ros.errors import (
    InvalidParameterError,
    ModelLoadError,
    StreamVlmError,
    check_model_folder,
    whole_number,
)

if TYPE_CHECKING:
    from stream_vlm_ros.engine.cache.budget import MemoryBudget
    from stream_vlm_ros.engine.cache.buffer import KVShape
    from stream_vlm_ros.engine.inputs.chat import ChatLayout
    from stream_vlm_ros.engine.inputs.frames import ImageSettings

BYTES_OF = {"float32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class CheckpointInfo:
    """A Qwen2.5-VL checkpoint folder in figures. Weights are 0 where there are none."""

    folder: Path
    layers: int
    kv_heads: int
    head_dim: int
    hidden_size: int
    vision_layers: int
    vocabulary: int
    dtype: str
    parameters: int
    weight_bytes: int
    weight_files: int
    missing: tuple[str, ...]  # files that a complete folder has and this one lacks
    broken: tuple[str, ...]  # weight files that are not whole, each with what is wrong

    @classmethod
    def read(cls, folder: str | Path) -> CheckpointInfo:
        """From ``config.json`` and the headers of the weights.

        Raises ModelLoadError where the folder is missing or is not a Qwen2.5-VL's. Weight files
        that are not whole are named in ``broken``, and count nothing among the parameters.
        """
        folder = Path(os.path.expanduser(folder))
        config = _config_of(folder)
        text = config.get("text_config") or config  # older files are flat
        try:
            heads = text["num_attention_heads"]
            shape = {
                "layers": text["num_hidden_layers"],
                "kv_heads": text.get("num_key_value_heads") or heads,
                "head_dim": text["hidden_size"] // heads,
                "hidden_size": text["hidden_size"],
                "vocabulary": text["vocab_size"],
                "vision_layers": (config.get("vision_config") or {}).get("depth", 32),
            }
            for name, value in shape.items():
                whole_number(name, value, least=1)
        except InvalidParameterError as error:
            raise ModelLoadError(f"{folder / 'config.json'}: {error}") from error
        except (KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
            raise ModelLoadError(
                f"{folder / 'config.json'} does not say {error}: it is incomplete; copy it from "
                "the release of the model"
            ) from error
        named = sorted(folder.glob("*.safetensors"))
        files = [file for file in named if file.is_file()]
        broken = [
            f"{file.name} is no plain file: copy it again" for file in named if file not in files
        ]
        parameters = 0
        for file in files:
            try:
                parameters += _parameters_in(file)
            except (SafetensorError, OSError) as error:
                size = f"{file.stat().st_size:,} bytes"
                broken.append(f"{file.name} ({size}; {error}): copy it again")
        dtype = config.get("dtype") or config.get("torch_dtype") or text.get("dtype") or "float32"
        return cls(
            folder=folder,
            dtype=str(dtype).removeprefix("torch."),
            parameters=parameters,
            weight_bytes=sum(file.stat().st_size for file in files),
            weight_files=len(files),
            missing=_missing_in(folder, files),
            broken=tuple(broken),
            **shape,
        )

    def token_bytes(self, dtype: str | None = None) -> int:
        """Keys and values of one token in all layers, in bytes."""
        size = BYTES_OF.get(dtype or self.dtype, 2)
        return 2 * self.layers * self.kv_heads * self.head_dim * size

    def rows(self) -> list[tuple[str, str]]:
        """What there is to say, as (label, sentence)."""
        weights = (
            f"{self.parameters:,} parameters in {plural(self.weight_files, 'file')}, "
            f"{bytes_text(self.weight_bytes)}"
        )
        return [
            ("Folder", str(self.folder)),
            ("Weights", weights if self.weight_files else "none"),
            (
                "Language",
                f"{self.layers} layers of {self.hidden_size}, {self.kv_heads} KV heads of "
                f"{self.head_dim}, {self.vocabulary:,} words",
            ),
            ("Vision", f"{self.vision_layers} layers"),
            ("Missing", ", ".join(self.missing) if self.missing else "nothing"),
            *([("Broken", ", ".join(self.broken))] if self.broken else []),
            (
                "A token",
                f"{self.token_bytes('bfloat16'):,} bytes of memory in bfloat16 (GPU), "
                f"{self.token_bytes('float32'):,} in float32 (CPU)",
            ),
        ]

    def plan_here(self, max_pixels: int | None) -> str:
        """What ``max_cache_tokens: 0`` is for the node on this machine as it stands, in one line.

        All the node's other parameters having their defaults.
        """
        from stream_vlm_ros.engine import StreamProcessor
        from stream_vlm_ros.engine.cache.budget import free_bytes
        from stream_vlm_ros.engine.cache.buffer import KVShape
        from stream_vlm_ros.engine.inputs.chat import ChatLayout
        from stream_vlm_ros.engine.inputs.frames import ImageSettings
        from stream_vlm_ros.engine.loading import family_of
        from stream_vlm_ros.engine.model.device import resolve_device, resolve_dtype

        device = resolve_device("auto")
        dtype = resolve_dtype("auto", device)
        weights = self.parameters * dtype.itemsize
        try:
            images = ImageSettings.from_folder(self.folder)
            config = family_of(self.folder).read_config(self.folder)
            chat = ChatLayout(StreamProcessor.from_pretrained(self.folder), config)
            shape = KVShape(self.layers, self.kv_heads, self.head_dim, dtype)
            budget = usual_budget(config, shape, weights, images, chat, max_pixels)
            free = free_bytes(device)
            free = None if free is None else max(0, free - weights)
            cap, why = budget.automatic_cap(free, device)
        except (StreamVlmError, OSError, ValueError) as refusal:
            return f"On this machine: {refusal}"
        return f"On this machine, {budget.plan(cap, free, device)}. max_cache_tokens 0: {why}"

    def cap_row(self, cap: int, cost: PictureCost | None) -> tuple[str, ...]:
        """A bound in tokens, its memory in bfloat16 and in float32, and the video it holds, where
        the cost of a picture is known."""
        return (
            f"{cap:,}",
            bytes_text(cap * self.token_bytes("bfloat16")),
            bytes_text(cap * self.token_bytes("float32")),
            *([duration_text(cap / cost.tokens_per_second)] if cost else []),
        )


def usual_budget(
    config: Any,
    shape: KVShape,
    weights: int,
    images: ImageSettings,
    chat: ChatLayout,
    max_pixels: int | None,
    cap: int = 0,
) -> MemoryBudget:
    """Of a model with ``weights`` in bytes, the node's other parameters having their defaults.

    ``cap``: of the memory in tokens; 0: not yet settled.
    """
    from stream_vlm_ros.engine.cache.budget import USUAL_PIXELS, MemoryBudget, usual_slack

    usual = Settings(max_cache_tokens=cap)
    return MemoryBudget.of(
        config,
        shape,
        weights,
        usual.eviction,
        usual.position_policy,
        images.at_most(max_pixels or USUAL_PIXELS),
        tail_tokens=usual.max_tail_tokens,
        slack=usual_slack(images, max_pixels or 0, usual.chunk_frames, cap),
        text_tokens=chat.max_chunk_text(usual.layout),
    )


def _check_rate(fps: float) -> None:
    if not 0 < fps <= 1000:
        raise InvalidParameterError(f"The rate is {fps:g} frames/s; it must be above 0.")


@dataclass(frozen=True)
class PictureCost:
    """Tokens that a camera's pictures become. Sizes are (width, height) in pixels."""

    camera: tuple[int, int]
    resized: tuple[int, int]
    grid_tokens: int  # of one temporal grid
    grid_frames: int  # frames in it
    fps: float

    @classmethod
    def of(
        cls, folder: Path, camera: tuple[int, int], fps: float, max_pixels: int | None = None
    ) -> PictureCost:
        """By the folder's own settings; see `by`. Raises ModelLoadError, too."""
        from stream_vlm_ros.engine.inputs.frames import ImageSettings

        _check_rate(fps)  # the user's own mistake first
        return cls.by(ImageSettings.from_folder(folder), camera, fps, max_pixels)

    @classmethod
    def by(
        cls,
        settings: ImageSettings,
        camera: tuple[int, int],
        fps: float,
        max_pixels: int | None = None,
    ) -> PictureCost:
        """By how pictures are resized. Raises InvalidParameterError, InvalidImageError."""
        from stream_vlm_ros.engine.inputs.frames import pixel_bounds
        from stream_vlm_ros.engine.inputs.picture_sizes import smart_resize

        _check_rate(fps)
        most = settings.at_most(max_pixels)
        pixel_bounds(settings.min_pixels, most)
        height, width = smart_resize(
            camera[1], camera[0], settings.factor, settings.min_pixels, most
        )
        return cls(
            camera=camera,
            resized=(width, height),
            grid_tokens=height * width // settings.factor**2,
            grid_frames=settings.temporal_patch_size,
            fps=fps,
        )

    @property
    def tokens_per_second(self) -> float:
        return self.grid_tokens / self.grid_frames * self.fps

    def rows(self) -> list[tuple[str, str]]:
        """What there is to say, as (label, sentence)."""
        (width, height), (new_width, new_height) = self.camera, self.resized
        return [
            (
                "A frame",
                f"{width}x{height} is resized to {new_width}x{new_height}: {self.grid_tokens:,} "
                f"tokens for {self.grid_frames} frames",
            )
        ]


def _config_of(folder: Path) -> dict[str, Any]:
    check_model_folder(folder)
    file = folder / "config.json"
    if not file.is_file():
        raise ModelLoadError(f"{folder} has no config.json, so it is not a checkpoint folder.")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ModelLoadError(f"{file} cannot be read: {error}") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if kind != "qwen2_5_vl":
        raise ModelLoadError(
            f"{folder} holds a model of the type {kind!r}; only Qwen2.5-VL (qwen2_5_vl) is "
            "supported."
        )
    return config


def _parameters_in(file: Path) -> int:
    """Numbers in a safetensors file, by its header, which safe_open holds against its length."""
    with safe_open(file, framework="numpy") as tensors:
        return sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118


def _missing_in(folder: Path, weights: list[Path]) -> tuple[str, ...]:
    missing = [] if weights else ["*.safetensors (the weights)"]
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        try:
            named = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
            if wrong := [name for name in named if not isinstance(name, str)]:
                raise ValueError(f"{wrong[0]!r} is no name of a file")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ModelLoadError(f"{index} cannot be read: {error!r}") from error
        missing += sorted(named - {file.name for file in weights}) if weights else []
    if not (folder / "tokenizer.json").is_file() and not (folder / "vocab.json").is_file():
        missing.append("tokenizer.json")
    names = ("preprocessor_config.json", "processor_config.json")
    if not any((folder / name).is_file() for name in names):
        missing.append("preprocessor_config.json")
    return tuple(missing)
