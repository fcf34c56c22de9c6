"""A checkpoint folder, ready to work: its network on the device, and its processor."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch

from .model import StreamQwenModel, check_checkpoint, resolve_device, resolve_dtype
from .processor import StreamProcessor


class Checkpoint(NamedTuple):
    """What an engine is built from."""

    network: StreamQwenModel
    processor: StreamProcessor
    device: torch.device


def load_checkpoint(
    folder: str | Path,
    device: str | torch.device = "auto",
    dtype: str = "auto",
) -> Checkpoint:
    """Load a folder of this machine; nothing is downloaded.

    Args:
        folder: of the checkpoint; ``~`` is the user's home.
        device: see `resolve_device`.
        dtype: see `resolve_dtype`.

    Raises:
        ModelLoadError, DeviceUnavailableError, InvalidParameterError: as their names say.
    """
    place = resolve_device(device)
    number_format = resolve_dtype(dtype, place)
    folder = Path(folder).expanduser()
    check_checkpoint(folder)
    processor = StreamProcessor.from_pretrained(folder)  # quick, and names what is missing
    network = StreamQwenModel.from_pretrained(folder, torch_dtype=number_format)
    return Checkpoint(network.to(place).eval(), processor, place)
