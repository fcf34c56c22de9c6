# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The machine: what times were measured on, how many threads to take, how much memory is used."""

from __future__ import annotations

import datetime
import importlib.util
import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

from stream_vlm_ros import __version__


def measured_on(*modules: ModuleType) -> dict[str, Any]:
    """The head of a benchmark's results: day, machine, its load now, and versions.

    Args:
        modules: whose versions matter in addition to Python's and this package's.
    """
    return {
        "date": datetime.date.today().isoformat(),
        "machine": processor_name(),
        "cores": os.cpu_count(),
        "load_average": [round(load, 2) for load in os.getloadavg()],  # of 1, 5 and 15 minutes
        **versions(*modules),
        "stream_vlm": __version__,
    }


def threads_to_take() -> int | None:
    """How many threads a model on a CPU is to take; None: the user has said it.

    A core is left for the camera and the client: threads that wait for one another on busy cores
    make everything several times slower.
    """
    return None if "OMP_NUM_THREADS" in os.environ else max(1, (os.cpu_count() or 1) - 1)


def why_missing(what: str, extra: str, needed: Sequence[str]) -> str:
    """Which modules an extra of this package lacks and how it is installed, in one line; "": none.
    Nothing of it is imported for that."""
    missing = [name for name in needed if importlib.util.find_spec(name) is None]
    if not missing:
        return ""
    return (
        f"{what} needs {', '.join(missing)}: {sys.executable} -m pip install "
        f"'stream-vlm-ros[{extra}]', or in a checkout -r requirements/{extra}.txt"
    )


def used_bytes(device: str) -> int:
    """Of a GPU, such as "cuda:0", by all who use it; else of this process."""
    if device.startswith("cuda"):
        import torch

        free, total = torch.cuda.mem_get_info(device)
        return total - free
    with open("/proc/self/statm", encoding="ascii") as pages:
        return int(pages.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def revision() -> str | None:
    """The commit of this package, as ``git describe`` names it: of the checkout that it is imported
    from, else the one that it was built from; None if neither is known."""
    folder = Path(__file__).parent
    try:
        if not (folder.parent / ".git").exists():
            return (folder / "revision.txt").read_text().strip() or None
        command = ["git", "-C", str(folder), "describe", "--always", "--dirty", "--abbrev=12"]
        told = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return told.stdout.strip()


def versions(*modules: ModuleType) -> dict[str, str]:
    """Versions of Python and of these modules, by their names."""
    found = {module.__name__: str(module.__version__) for module in modules}
    return {"python": platform.python_version(), **found}


def processor_name() -> str:
    """The processor by its maker's name if the system has it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    told = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(told, "") or platform.processor() or platform.machine()
