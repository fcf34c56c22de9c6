# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Checks that the memory fits the device before allocating it.

A GPU says at once that there is no more. A CPU's system promises more than it has, and ends the
process hours later, when the memory fills: so the sum is done there, too.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from stream_vlm_ros.engine.cache.buffer import KVShape
from stream_vlm_ros.engine.cache.eviction import EvictionConfig
from stream_vlm_ros.engine.inputs.frames import ImageSettings
from stream_vlm_ros.errors import DeviceUnavailableError

# Of a chunk's pictures where nothing bounds them.
USUAL_PIXELS = 1920 * 1080
# Of what is free, this share is left to others: fragments, libraries, the rest of the robot.
LEFT_FREE = 0.05
# A cap chosen here leaves a CPU's memory half to others: it is not the model's alone.
LEFT_FREE_ON_A_CPU = 0.5
SLACK_CHUNKS = 4
_CHUNK_TEXT = 16  # tokens that a segmented chunk's user turn takes at most


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes that an engine takes in addition to the weights.

    Args:
        token: of one token of the memory, keys and values of all layers.
        questions: the room for a question with its answer.
        chunk: of encoding a chunk of the largest pictures, roughly: patches, activations of the
            larger of both towers, its own keys and values.
        slack: tokens beyond the cap.
        weights: of the model, taken already.
        chunk_tokens: of that chunk, in tokens.
        context: tokens that the model was made to read at once, less the room for a question.
        sink_copy: of what is kept twice however large the memory is.
    """

    token: int
    questions: int
    chunk: int
    slack: int = 0
    weights: int = 0
    chunk_tokens: int = 0
    context: int = 0
    sink_copy: int = 0

    @classmethod
    def of(
        cls,
        config: Any,
        shape: KVShape,
        weights: int,
        eviction: EvictionConfig,
        position_policy: str,
        max_pixels: int,
        tail_tokens: int,
        slack: int = 0,
        text_tokens: int = 0,
    ) -> MemoryBudget:
        """For a model of this configuration, with ``weights`` in bytes, and a memory.

        A chunk is taken for four frames of ``max_pixels`` and ``text_tokens`` around them.
        ``tail_tokens`` is the room for a question, ``slack`` tokens beyond the cap.
        """
        text, vision = config.text_config, config.vision_config
        size = shape.dtype.itemsize
        merged = vision.spatial_merge_size**2
        pixels_a_token = merged * vision.patch_size**2
        seen = 2 * (max_pixels // pixels_a_token)
        chunk = seen + text_tokens
        # A layer's peak: some copies of the hidden states, and gate, up and their product.
        language = chunk * (8 * text.hidden_size + 3 * text.intermediate_size) * size
        patches = seen * merged
        tower = patches * (8 * vision.hidden_size + 3 * vision.intermediate_size) * size
        pixels = patches * 3 * vision.temporal_patch_size * vision.patch_size**2 * 4  # float32
        token = shape.bytes_per_token
        rotates = eviction.keeps_grids and position_policy == "contiguous"
        # Those keys are kept as first computed, too.
        share, sink = eviction.long_lived if rotates else (0.0, 0.0)
        return cls(
            token=round(token * (1 + share / 2)),
            sink_copy=round(sink * token / 2),
            questions=tail_tokens * token,
            chunk=max(language, tower) + pixels + chunk * token,
            slack=slack,
            weights=weights,
            chunk_tokens=chunk,
            context=text.max_position_embeddings - tail_tokens,
        )

    def needed(self, cap: int) -> int:
        """Bytes for a memory of ``cap`` tokens."""
        fixed = self.sink_copy + self.questions + self.chunk
        return (cap + self.slack) * self.token + fixed

    def largest_cap(self, free: int, left_free: float = LEFT_FREE) -> int:
        """The largest cap that fits ``free`` bytes; 0 or less if none does."""
        usable = int(free * (1 - left_free))
        return (usable - self.needed(-self.slack)) // self.token - self.slack

    def automatic_cap(
        self, free: int | None, device: torch.device, min_tokens: int = 0
    ) -> tuple[int, str]:
        """The cap in tokens where none is given, and why it is this one.

        As many tokens as fit what is free, of which a CPU keeps half. But no more than ``context``:
        a memory is not to be longer, with a question behind it, than what the model was made for,
        unless one chunk or ``min_tokens`` tokens are; who wants that says so by a number.

        Raises DeviceUnavailableError where not even one chunk and ``min_tokens`` tokens fit, or the
        system does not tell what is free.
        """
        min_tokens = max(min_tokens, self.chunk_tokens) + 1
        if free is None:
            raise DeviceUnavailableError(
                f"max_cache_tokens is 0 (as large as fits), but the system does not tell how much "
                f"memory {device} has free: set max_cache_tokens to a number of tokens"
            )
        left_free = LEFT_FREE_ON_A_CPU if device.type == "cpu" else LEFT_FREE
        fits = self.largest_cap(free, left_free)
        if fits < min_tokens:
            raise DeviceUnavailableError(
                f"max_cache_tokens is 0 (as large as fits), but not even one chunk fits {device}: "
                f"{self._sum(min_tokens)}, but after the weights {_gb(free)} are free, of which "
                f"{left_free:.0%} stay free. Lower max_pixels, free some memory, or use a smaller "
                "model"
            )
        bound = max(self.context, min_tokens)
        if fits <= bound:
            return fits, f"as many tokens as fit, {left_free:.0%} of what is free being left"
        return bound, f"the model's context less a question; {fits:,} tokens would fit"

    def plan(self, cap: int, free: int | None, device: torch.device) -> str:
        """What the memory takes and what is free, in one line."""
        left = "" if free is None else f", of {_gb(free)} that are free after the weights"
        return f"memory on {device}: weights {_gb(self.weights)}; {self._sum(cap)}{left}"

    def _sum(self, cap: int) -> str:
        slack = f" (and {self.slack:,} of slack)" if self.slack else ""
        sink = f"keys of the sink once more {_gb(self.sink_copy)}, " if self.sink_copy else ""
        return (
            f"{cap:,} tokens{slack} x {self.token:,} bytes = "
            f"{_gb((cap + self.slack) * self.token)}, {sink}a question with its answer "
            f"{_gb(self.questions)}, encoding a chunk about {_gb(self.chunk)}: together "
            f"{_gb(self.needed(cap))}"
        )

    def check(self, cap: int, free: int, device: torch.device) -> None:
        """Raise DeviceUnavailableError, with the sum, if ``cap`` tokens do not fit."""
        largest = self.largest_cap(free)
        if cap <= largest:
            return
        remedy = (
            f"Set max_cache_tokens to at most {largest:,}, or lower max_pixels"
            if largest > 0
            else "Lower max_pixels, free some memory, or use a smaller model"
        )
        raise DeviceUnavailableError(
            f"the memory does not fit {device}: {self._sum(cap)}, but after the weights "
            f"{_gb(free)} are free, of which {LEFT_FREE:.0%} stay free. {remedy}"
        )


def usual_slack(images: ImageSettings, max_pixels: int, chunk_frames: int, cap: int) -> int:
    """Tokens beyond ``cap`` for chunks that come while an answer is being written.

    Room for `SLACK_CHUNKS` of the largest pictures, at most half of the cap (0: not yet settled).
    ``max_pixels`` 0: not bounded, and `USUAL_PIXELS` are taken.
    """
    pixels = images.at_most(max_pixels or USUAL_PIXELS)
    grids = math.ceil(chunk_frames / 2)
    chunks = SLACK_CHUNKS * (grids * (pixels // images.factor**2) + _CHUNK_TEXT)
    return min(chunks, cap // 2 or chunks)


def free_bytes(device: torch.device, root: Path = Path("/")) -> int | None:
    """What can still be taken on the device; None where the system does not tell.

    On a CPU the least of what Linux has available and what each control group of this process (a
    container, a service with a limit) may still take. ``root`` is the file system's.
    """
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    available = _numbers(root / "proc/meminfo").get("MemAvailable:")
    found = [] if available is None else [available * 1024]
    return min([*found, *_free_in_groups(root)], default=None)


# Where version 2 and version 1 of control groups tell the limit, what is taken, and of that the
# files read a while ago, which the kernel gives up first: these do not count, as in Kubernetes.
_GROUPS = (
    ("", "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "memory",
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


def _free_in_groups(root: Path) -> list[int]:
    """Bytes that each control group with a limit, of this process or above it, leaves."""
    found = []
    for line in _text(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        for controller, mount, limit, usage, cache in _GROUPS:
            if controller not in controllers.split(","):
                continue
            # Inside a container the path may be the host's, and the mount the container's group.
            names = [name for name in path.split("/") if name not in ("", "..")]
            for depth in range(len(names) + 1):
                group = root.joinpath(mount, *names[:depth])
                most, taken = _text(group / limit).strip(), _text(group / usage).strip()
                if most.isdigit() and taken.isdigit():  # not "max"
                    spare = _numbers(group / "memory.stat").get(cache, 0)
                    found.append(max(0, int(most) - int(taken) + spare))
    return found


def _numbers(path: Path) -> dict[str, int]:
    """The lines of a file of names and numbers; none of a file that cannot be read."""
    lines = [line.split() for line in _text(path).splitlines()]
    return {line[0]: int(line[1]) for line in lines if len(line) > 1 and line[1].isdigit()}


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
