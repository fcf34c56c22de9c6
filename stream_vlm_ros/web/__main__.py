# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""``python -m stream_vlm_ros.web``: the verb ``stream-vlm web``."""

from __future__ import annotations

from stream_vlm_ros.processes.ros_process import INTERRUPTED, end_quietly_on_signals

if __name__ == "__main__":
    end_quietly_on_signals(INTERRUPTED)  # before the imports, which are slow

import sys

from stream_vlm_ros.cli import app

if __name__ == "__main__":
    app(["web", *sys.argv[1:]], prog_name="stream-vlm")
