# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Peak memory, of the GPU's allocator or of this process."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch

from stream_vlm_ros.errors import InvalidParameterError

_GIB = 1024**3


class PeakMemory:
    """The most memory in use since `reset`, in GiB.

    On a CPU it is the process's resident memory; where the system does not let a process reset its
    own mark, the peak is that of the whole run.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self.resets = True
        self._limit: float | None = None
        self.reset()

    def limit(self, gib: float | None) -> None:
        """Let memory run out beyond ``gib``, as on a smaller device; None: no limit.

        A GPU's allocator refuses more then. On a CPU, where what the process has in use counts,
        `read` raises OutOfMemoryError once it was more. Raises InvalidParameterError.
        """
        if gib is None:
            return
        if not 0 < gib < float("inf"):
            raise InvalidParameterError(f"--memory-gib is {gib}; it must be above 0.")
        if self._device.type == "cuda":
            total = torch.cuda.get_device_properties(self._device).total_memory
            torch.cuda.set_per_process_memory_fraction(min(1.0, gib * _GIB / total), self._device)
        else:
            self._limit = gib

    def reset(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self._device)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:
            self.resets = False

    def read(self) -> dict[str, float]:
        """``allocated_gib`` now and ``peak_gib``; on a GPU also ``reserved_gib``."""
        if self._device.type == "cuda":
            return {
                "allocated_gib": torch.cuda.memory_allocated(self._device) / _GIB,
                "peak_gib": torch.cuda.max_memory_allocated(self._device) / _GIB,
                "reserved_gib": torch.cuda.max_memory_reserved(self._device) / _GIB,
            }
        now, most = _resident_gib()
        if self._limit is not None and most > self._limit:
            raise torch.OutOfMemoryError(
                f"out of memory: {most:.3f} GiB in use, of {self._limit:g} GiB (--memory-gib)"
            )
        return {"allocated_gib": now, "peak_gib": most}


def _resident_gib() -> tuple[float, float]:
    """Resident memory of this process: now, and at most."""
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        values = dict(line.split(":", 1) for line in lines if ":" in line)
        now, most = (int(values[name].split()[0]) / 2**20 for name in ("VmRSS", "VmHWM"))
        return now, most
    except (OSError, KeyError, ValueError, IndexError):
        import resource

        unit = 2**30 if sys.platform == "darwin" else 2**20
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit
        return most, most


def machine(device: torch.device) -> dict[str, Any]:
    """The machine and the software, for a report."""
    import transformers

    from stream_vlm_ros import __version__
    from stream_vlm_ros.machine import processor_name, versions

    cuda = device.type == "cuda"
    return {
        "device": torch.cuda.get_device_name(device) if cuda else f"CPU, {processor_name()}",
        "device_memory_gib": (
            torch.cuda.get_device_properties(device).total_memory / _GIB if cuda else None
        ),
        "cpus": os.cpu_count(),
        "threads": torch.get_num_threads(),
        **versions(torch, transformers),
        "stream_vlm": __version__,
    }
