# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``python -m stream_vlm_ros.experiments``: ``stream-vlm experiment`` without typer."""

import sys

from .command import main

if __name__ == "__main__":
    sys.exit(main())
