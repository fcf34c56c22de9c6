# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the sections of bench/gpu.py share: the model, its frames, full memories, and the clock."""

from __future__ import annotations

import contextlib
import gc
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from stream_vlm_ros.engine import EvictionConfig, StreamQwenModel, VideoStreamingInference
from stream_vlm_ros.engine.chunk_path import ChunkPath

LEVEL_1 = {"sampled_share": 0.0, "important_share": 0.0}  # as the reference's memory
QUESTION_TOKENS = 48


def synchronize() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def timed(run: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds of wall time, the device idle before and after; and what came of it."""
    synchronize()
    begin = time.perf_counter()
    result = run()
    synchronize()
    return 1e3 * (time.perf_counter() - begin), result


def milliseconds(run: Callable[[], object], times: int) -> list[float]:
    return [timed(run)[0] for _ in range(times)]


def summary(taken: list[float]) -> dict[str, float]:
    """Of milliseconds; ``p99`` is the value that 99 % do not exceed."""
    last = sorted(taken)[-1 - len(taken) // 100]
    figures = {"median": statistics.median(taken), "least": min(taken), "p99": last}
    return {name: round(value, 3) for name, value in figures.items()} | {"runs": len(taken)}


def say_words_alone(model: StreamQwenModel, tokenizer: Any) -> None:
    """Each token of an answer is a word, so that its text grows with it as a real one's does."""
    words = [
        number for number in range(len(tokenizer)) if tokenizer.decode([number]).strip().isalpha()
    ]
    weights = model.state_dict()
    head = weights.get("lm_head.weight", weights["model.embed_tokens.weight"])
    silent = torch.ones(len(head), dtype=torch.bool)
    silent[words] = False
    head[silent.to(model.device)] = 0.0  # of the others some are likelier


@contextlib.contextmanager
def without_model(engine: VideoStreamingInference) -> Iterator[None]:
    """Chunks appended meanwhile get noise for features, keys and values, which takes no time."""
    model: Any = engine.model
    text, options = model.config.text_config, {"dtype": model.dtype, "device": model.device}
    shape = model.kv_shape

    def features(patches: Any, *_: Any) -> torch.Tensor:
        return torch.randn(patches.tokens, text.hidden_size, **options)

    @torch.inference_mode()  # as the model's own: forks are made in it
    def forward(
        embeddings: torch.Tensor, positions: Any, fork: Any, *_: Any, **__: Any
    ) -> torch.Tensor:
        size = (len(embeddings), shape.kv_heads, embeddings.shape[1], shape.head_dim)
        keys, values = torch.randn(size, **options), torch.randn(size, **options)
        for layer in fork.layers:
            layer.update(keys, values)
        return embeddings

    usual, engine.chunk_path = engine.chunk_path, ChunkPath(model, engine.functions)
    model.encode_frames, model.stream_forward = features, forward
    try:
        yield
    finally:
        del model.encode_frames, model.stream_forward
        engine.chunk_path = usual


@contextlib.contextmanager
def watched(owner: Any, name: str) -> Iterator[list[float]]:
    """Milliseconds of each call of a method meanwhile, the device idle before and after it."""
    taken: list[float] = []
    method = getattr(owner, name)

    def run(*arguments: Any, **options: Any) -> Any:
        spent, result = timed(lambda: method(*arguments, **options))
        taken.append(spent)
        return result

    setattr(owner, name, run)
    try:
        yield taken
    finally:
        delattr(owner, name)


@dataclass
class Rig:
    """One model on one device, and the limits that a run keeps to.

    Attributes:
        speed: what the device reaches, see `device_speed`.
        size: width and height of the camera's pictures.
        caps: of the memories set beside the reference's.
        small: a trial with a toy: everything that counts is fewer.
        ends: when the section that runs must be through, by `time.monotonic`.
        skipped: what it left out for that.
    """

    model: StreamQwenModel
    processor: Any
    device: torch.device
    speed: dict[str, float]
    size: tuple[int, int]
    caps: list[int]
    repeats: int
    small: bool
    ends: float = 0.0
    skipped: list[str] = field(default_factory=list)

    def within(self, what: str, items: Iterable[Any]) -> Iterator[Any]:
        """The items as long as there is time; the others are noted as skipped."""
        for item in items:
            if time.monotonic() >= self.ends:
                self.skipped.append(f"{what}: {item}")
            else:
                yield item

    def count(self, what: str, times: int) -> Iterator[int]:
        """0 to ``times``, ended early where time is up (at least one)."""
        for number in range(times):
            if number and time.monotonic() >= self.ends:
                self.skipped.append(f"{what}: {times - number} of {times} repeats")
                return
            yield number

    def frames(
        self, count: int = 4, size: tuple[int, int] | None = None, seed: int = 0
    ) -> list[np.ndarray]:
        """Noise as a camera's driver hands it over: uint8 in the host's memory."""
        width, height = size or self.size
        noise = np.random.default_rng(seed)
        return list(noise.integers(0, 256, (count, height, width, 3), dtype=np.uint8))

    def engine(self, cap: int | None, **options: Any) -> VideoStreamingInference:
        """An engine whose answers never end by themselves; level 1 unless ``shares`` are given."""
        shares = options.pop("shares", LEVEL_1)
        config = None if cap is None else EvictionConfig(cap, **shares)
        engine = VideoStreamingInference(self.model, self.processor, self.device, config, **options)
        engine._end_ids = set()
        return engine

    def filled(self, cap: int, frames: list[np.ndarray], **options: Any) -> VideoStreamingInference:
        """An engine whose memory is full and that has encoded a chunk."""
        engine = self.engine(cap, **options)
        with without_model(engine):
            while engine.append_video_chunk(frames, fps=2)["evicted_tokens"] == 0:
                pass
        engine.append_video_chunk(frames, fps=2)
        return engine

    def question(self, engine: VideoStreamingInference) -> str:
        """A question of exactly 48 tokens with what the chat layout puts around it."""
        text = "What"
        while (count := len(engine._question_ids(text, None))) < QUESTION_TOKENS:
            text += " red"
        assert count == QUESTION_TOKENS, f"{count} tokens"
        return text

    def start_counting_memory(self) -> None:
        gc.collect()
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def peak_gib(self) -> dict[str, float]:
        if self.device.type != "cuda":
            return {}
        return {
            "peak_allocated_gib": round(torch.cuda.max_memory_allocated() / 2**30, 2),
            "peak_reserved_gib": round(torch.cuda.max_memory_reserved() / 2**30, 2),
        }

    def allocated(self) -> int:
        """Bytes in use on the device; 0 on a CPU, which does not tell."""
        return torch.cuda.memory_allocated() if self.device.type == "cuda" else 0


def device_speed(device: torch.device, dtype: torch.dtype) -> dict[str, float]:
    """What the device reaches: FLOP/s of a matrix product, bytes/s of reading a large tensor."""
    side = 8192 if device.type == "cuda" else 1024
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    large = torch.randn(2**30 if device.type == "cuda" else 2**24, device=device, dtype=dtype)
    product, read = (lambda: a @ b), (lambda: large.sum())
    product(), read()
    return {
        "flops": 2 * side**3 / min(milliseconds(product, 10)) * 1e3,
        "bytes": large.nbytes / min(milliseconds(read, 10)) * 1e3,
    }


def floors(rig: Rig, length: int, chunk: int, patches: int) -> dict[str, float]:
    """Milliseconds that the work takes at least.

    A chunk: 2 FLOP a weight and token, and 4 x heads x head size a pair of tokens and layer in
    attention. A token: every weight of the language model and the whole cache are read once.
    """
    model, speed = rig.model, rig.speed
    text = model.config.text_config
    size = lambda module: sum(weight.numel() for weight in module.parameters())  # noqa: E731
    layers = size(model.text.layers)
    pairs = chunk * length + chunk**2 / 2
    attention = 4 * text.hidden_size * text.num_hidden_layers * pairs
    cache = length * model.kv_shape.bytes_per_token
    weights = model.dtype.itemsize * (layers + text.hidden_size * text.vocab_size)
    vision = 2 * size(model.visual.blocks) * patches
    read = 1e3 * (weights + cache) / speed["bytes"]
    found = {
        "chunk": 1e3 * (2 * layers * chunk + attention + vision) / speed["flops"],
        "vision": 1e3 * vision / speed["flops"],
        "first_token": read,
        "token": read,
    }
    return {name: round(value, 3) for name, value in found.items()}
