"""``python -m stream_vlm_ros.experiments``: the same as ``stream-vlm experiment``."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
