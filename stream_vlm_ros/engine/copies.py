# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Copies between host and device that nobody waits for.

From memory that is not pinned a copy of more than 64 KiB waits until the device has done all that
it was given before, and a plain ``.to()`` always does.
"""

from __future__ import annotations

from collections.abc import Callable

import torch


def to_device(x: torch.Tensor, device: torch.device) -> torch.Tensor:
    """A tensor of the host on the device."""
    if device.type != "cuda" or x.is_cuda:
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def to_host(x: torch.Tensor) -> torch.Tensor:
    """A copy in the host's memory, complete once the device has come so far."""
    if not x.is_cuda:
        return x
    return torch.empty_like(x, device="cpu", pin_memory=True).copy_(x, non_blocking=True)


def arrival(device: torch.device) -> Callable[[], None]:
    """What waits until the device has done all that it was given before this call, and no more."""
    if device.type != "cuda":
        return lambda: None
    there = torch.cuda.Event()
    there.record(torch.cuda.current_stream(device))
    return there.synchronize
