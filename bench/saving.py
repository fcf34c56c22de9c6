# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What saving and loading a memory costs, and what is left when it is killed.

    python bench/saving.py --out bench/results/saving.json

Times: a memory of the shape of Qwen2.5-VL-3B's (36 layers, 2 heads of 128, bfloat16) is saved and
loaded by turns with as many bytes being written (with fsync) and read again, plainly; medians, and
that of the rounds' ratios. Memory: the largest resident size meanwhile, beyond what was there
before.

Kills: a process that saves two memories by turns to one name is killed (SIGKILL) at random moments.
After each the file must load as one of the two, whole; what the killed process left must be gone
with the next save.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stream_vlm_ros.engine import (
    EvictionConfig,
    StreamProcessor,
    StreamQwenModel,
    VideoStreamingInference,
)
from stream_vlm_ros.errors import StreamVlmError
from stream_vlm_ros.factory import default_model
from stream_vlm_ros.machine import measured_on

TOKENS = 16_384


def engine_of(model: StreamQwenModel, tokens: int) -> VideoStreamingInference:
    config = EvictionConfig(max_cache_tokens=tokens)
    processor = StreamProcessor.from_pretrained(default_model())
    return VideoStreamingInference(model, processor, eviction_config=config)


def shape_of_3b() -> StreamQwenModel:
    """A network with the KV of the 3B model, and little else."""
    config = StreamQwenModel.read_config(default_model())
    text, vision = config.text_config, config.vision_config
    text.num_hidden_layers, text.num_attention_heads, text.num_key_value_heads = 36, 2, 2
    text.hidden_size = vision.out_hidden_size = 256
    text.intermediate_size = 64
    text.rope_parameters = {**text.rope_parameters, "mrope_section": [16, 24, 24]}
    return StreamQwenModel.with_random_weights(config, 0).to(torch.bfloat16)


def fill(engine: VideoStreamingInference, seed: int, until: float = 1.0) -> None:
    """Append noise until so much of the cap is taken."""
    noise = np.random.default_rng(seed)
    while True:
        info = engine.get_cache_info()
        cap = info.max_cache_tokens or 0
        if info.cache_seq_length >= until * cap:
            return
        frames = noise.integers(0, 256, (16, 336, 336, 3), dtype=np.uint8)
        engine.append_video_chunk(list(frames), fps=2)


def seconds(do: Callable[[], object]) -> float:
    started = time.perf_counter()
    do()
    return time.perf_counter() - started


def grown_mib(do: Callable[[], object]) -> int:
    """By how much the process's largest resident size grows meanwhile."""
    Path("/proc/self/clear_refs").write_text("5")  # the largest so far is the present one
    before = resident("VmRSS")
    do()
    return round((resident("VmHWM") - before) / 1024)


def resident(name: str) -> int:
    """KiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


class Plain:
    """As many bytes, written and read in the plainest way."""

    def __init__(self, path: Path, size: int) -> None:
        self._path = path
        self._data = np.random.default_rng(0).integers(0, 256, size, dtype=np.uint8)

    def write(self) -> None:
        """Under another name first, brought to the disk, renamed: what any whole file needs."""
        part = self._path.with_suffix(".part")
        file = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        rest = memoryview(self._data)
        while rest:
            rest = rest[os.write(file, rest) :]
        os.fsync(file)
        os.close(file)
        os.replace(part, self._path)
        folder = os.open(self._path.parent, os.O_RDONLY)
        os.fsync(folder)
        os.close(folder)

    def read(self) -> None:
        held = np.empty_like(self._data)
        file, at = os.open(self._path, os.O_RDONLY), 0
        while count := os.preadv(file, [memoryview(held)[at:]], at):
            at += count
        os.close(file)
        assert at == len(held)


def measure_times(folder: Path, rounds: int, tokens: int = TOKENS) -> dict[str, Any]:
    model = shape_of_3b()
    engine, other = engine_of(model, tokens), engine_of(model, tokens)
    fill(engine, seed=1)
    path = folder / "memory.safetensors"
    grown = grown_mib(lambda: engine.save_memory(path))  # the first: what is freed may stay
    size = path.stat().st_size
    other.load_memory(path)
    plain = Plain(folder / "plain", size)
    plain.write()
    taken: dict[str, list[float]] = {}

    def load() -> None:
        other.reset()
        other.load_memory(path)

    steps = {
        "copy": engine.copy_memory,
        "save": lambda: engine.save_memory(path),
        "plain_write": plain.write,
        "load": load,
        "plain_read": plain.read,
    }
    for _ in range(rounds):
        for name, do in steps.items():
            taken.setdefault(name, []).append(seconds(do))
    medians = {name: round(statistics.median(times), 4) for name, times in taken.items()}
    ours = [a + b for a, b in zip(taken["save"], taken["load"], strict=True)]
    theirs = [a + b for a, b in zip(taken["plain_write"], taken["plain_read"], strict=True)]
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    return {
        "tokens": engine.get_cache_info().cache_seq_length,
        "megabytes": round(size / 1e6, 1),
        "rounds": rounds,
        "seconds": medians,
        "ratio": round(statistics.median(ratios), 3),
        "ratio_from_to": [round(min(ratios), 3), round(max(ratios), 3)],
        "grown_mib_of_the_first_save": grown,
    }


def kills(folder: Path, count: int, seed: int = 0, tokens: int = 400) -> dict[str, Any]:
    """Kill a process that saves, so many times; what was found after each."""
    model = StreamQwenModel.from_pretrained(default_model())
    memories = []
    for number in range(2):
        engine = engine_of(model, tokens)
        fill(engine, seed=number, until=0.5 + 0.4 * number)
        memories.append((engine.copy_memory(), engine.get_cache_info().cache_seq_length))
    lengths = {length for _, length in memories}
    assert len(lengths) == 2
    path, dice = folder / "memory.safetensors", random.Random(seed)
    period = seconds(lambda: memories[0][0].write(path))
    outcomes: dict[str, int] = {}
    left = 0
    for _ in range(count):
        child = os.fork()
        if child == 0:
            try:
                while True:
                    for memory, _ in memories:
                        memory.write(path)
            finally:
                os._exit(1)
        time.sleep(dice.uniform(0.0, 4 * period))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        left += len(os.listdir(folder)) > 1
        reader = engine_of(model, tokens)
        try:
            reader.load_memory(path)
            found = reader.get_cache_info().cache_seq_length
            outcome = "whole" if found in lengths else f"{found} tokens"
        except Exception as error:  # is counted, whatever it is
            outcome = f"{type(error).__name__}: {error}"
        outcomes[outcome] = outcomes.get(outcome, 0) + 1
    try:
        memories[0][0].write(path)
    except StreamVlmError as error:
        outcomes[f"then {type(error).__name__}"] = 1
    return {
        "kills": count,
        "outcomes": outcomes,
        "in_the_middle": left,  # a part of a file was there
        "left_after_the_next_save": sorted(set(os.listdir(folder)) - {path.name}),
        "milliseconds_of_a_save": round(1e3 * period, 1),
    }


def main() -> None:
    parse = argparse.ArgumentParser(description=__doc__)
    parse.add_argument("--out", type=Path)
    parse.add_argument("--folder", type=Path, help="where to write; else the system's temporary")
    parse.add_argument("--rounds", type=int, default=9)
    parse.add_argument("--kills", type=int, default=100)
    parse.add_argument("--tokens", type=int, default=TOKENS)
    options = parse.parse_args()
    torch.set_num_threads(1)
    report: dict[str, Any] = {"machine": measured_on()}
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        report["kills"] = kills(Path(name), options.kills)
    print(json.dumps(report["kills"], indent=1), flush=True)
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        report["times"] = measure_times(Path(name), options.rounds, options.tokens)
    print(json.dumps(report["times"], indent=1))
    if options.out:
        options.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
