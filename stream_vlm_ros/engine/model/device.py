# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Devices and number formats by the names that a user gives them."""

from __future__ import annotations

import torch

from stream_vlm_ros.errors import DeviceUnavailableError, InvalidParameterError

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "float32": torch.float32}


def resolve_device(device: str | torch.device) -> torch.device:
    """The device by that name; ``auto`` is the first GPU if there is one, else the CPU.

    A GPU always comes with its number, as some of torch's calls want it; ``cuda`` is the current.

    Raises DeviceUnavailableError where this machine has no such device.
    """
    if device == "auto":
        return torch.device("cuda:0" if torch.cuda.is_available() else "cpu")
    try:
        wanted = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise DeviceUnavailableError(
            f"'{device}' is not a device: use auto, cpu, cuda or cuda:N"
        ) from error
    if wanted.type not in ("cpu", "cuda"):
        raise DeviceUnavailableError(
            f"device '{device}' is not supported: use auto, cpu, cuda or cuda:N"
        )
    if wanted.type == "cpu":
        return wanted
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if (wanted.index or 0) >= count:
        lacking = ", being built without CUDA" if torch.version.cuda is None else ""
        found = f"{count} of them" if count else f"none{lacking}"
        what = f"no CUDA GPU {wanted.index}" if count else "there is no CUDA GPU to use"
        raise DeviceUnavailableError(
            f"device is '{device}', but {what}: torch {torch.__version__} finds {found}; set "
            "device to 'auto' or 'cpu', or install a torch built for this machine's GPU and check "
            "nvidia-smi"
        )
    return torch.device("cuda", torch.cuda.current_device()) if wanted.index is None else wanted


def resolve_dtype(dtype: str, device: torch.device) -> torch.dtype:
    """The number format of that name; ``auto`` is bfloat16 on a GPU and float32 elsewhere.

    Raises InvalidParameterError for another name than those of `DTYPES`.
    """
    if dtype == "auto":
        return torch.bfloat16 if device.type == "cuda" else torch.float32
    if dtype not in DTYPES:
        raise InvalidParameterError(
            f"there is no number format '{dtype}': use auto, {', '.join(DTYPES)}"
        )
    return DTYPES[dtype]
