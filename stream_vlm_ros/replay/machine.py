"""What times were measured on."""

from __future__ import annotations

import platform
from pathlib import Path


def processor_name() -> str:
    """The processor by its maker's name where the system tells it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(told, "") or platform.processor() or platform.machine()
