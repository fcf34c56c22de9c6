"""``python -m stream_vlm_ros.experiments``: ``stream-vlm experiment`` without typer."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
