"""Whether the memory fits its device, reckoned before it is taken.

A GPU says at once that there is no more. A CPU's system promises more than it has, and ends the
process hours later, when the memory fills: so it is reckoned there, too.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from .errors import DeviceUnavailableError

# Of what is free, this share is left to others: fragments, libraries, the rest of the robot.
LEFT_FREE = 0.05


@dataclass(frozen=True)
class MemoryBudget:
    """Bytes that an engine takes beside the weights.

    Args:
        token: of one token of the memory, keys and values of all layers.
        questions: the room for a question with its answer.
        chunk: of encoding a chunk of the largest pictures, roughly: patches, activations of the
            larger of both towers, its own keys and values.
        slack: tokens beyond the cap.
    """

    token: int
    questions: int
    chunk: int
    slack: int = 0

    @classmethod
    def of(
        cls, model: Any, chunk_tokens: int, tail_tokens: int, slack: int, copies: float
    ) -> MemoryBudget:
        """For a model, a chunk of ``chunk_tokens`` and a question's room of ``tail_tokens``.

        ``copies``: how often a token of the cap is held, keys alone counting a half.
        """
        text, vision = model.config.text_config, model.config.vision_config
        size = model.dtype.itemsize
        merged = vision.spatial_merge_size**2
        # A layer's peak: some copies of the hidden states, and gate, up and their product.
        language = chunk_tokens * (8 * text.hidden_size + 3 * text.intermediate_size) * size
        patches = chunk_tokens * merged
        tower = patches * (8 * vision.hidden_size + 3 * vision.intermediate_size) * size
        pixels = patches * 3 * vision.temporal_patch_size * vision.patch_size**2 * 4  # float32
        token = model.kv_shape.bytes_per_token
        return cls(
            token=round(token * copies),
            questions=tail_tokens * token,
            chunk=max(language, tower) + pixels + chunk_tokens * token,
            slack=slack,
        )

    def needed(self, cap: int) -> int:
        """Bytes for a memory of ``cap`` tokens."""
        return (cap + self.slack) * self.token + self.questions + self.chunk

    def largest_cap(self, free: int) -> int:
        """The largest cap that fits ``free`` bytes; 0 or less if none does."""
        usable = int(free * (1 - LEFT_FREE))
        return (usable - self.questions - self.chunk) // self.token - self.slack

    def check(self, cap: int, free: int, device: torch.device) -> None:
        """Raise DeviceUnavailableError, with the sum, if ``cap`` tokens do not fit."""
        largest = self.largest_cap(free)
        if cap <= largest:
            return
        slack = f" (and {self.slack:,} of slack)" if self.slack else ""
        remedy = (
            f"Set max_cache_tokens to at most {largest:,}, or lower max_pixels"
            if largest > 0
            else "Lower max_pixels, free some memory, or use a smaller model"
        )
        raise DeviceUnavailableError(
            f"the memory does not fit {device}: {cap:,} tokens{slack} x {self.token:,} bytes = "
            f"{_gb((cap + self.slack) * self.token)}, a question with its answer "
            f"{_gb(self.questions)}, encoding a chunk about {_gb(self.chunk)}: together "
            f"{_gb(self.needed(cap))}, but beside the weights {_gb(free)} are free, of which "
            f"{LEFT_FREE:.0%} stay free. {remedy}"
        )


def free_bytes(device: torch.device) -> int | None:
    """What can still be taken on the device; None where the system does not tell."""
    if device.type == "cuda":
        free = torch.cuda.mem_get_info(device)[0]
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(free + cached)
    try:  # Linux
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    fields = dict(line.split(":", 1) for line in lines)
    available = fields.get("MemAvailable")
    return None if available is None else int(available.split()[0]) * 1024


def _gb(count: int) -> str:
    return f"{count / 1e9:.2f} GB" if count >= 1e8 else f"{count / 1e6:.1f} MB"
