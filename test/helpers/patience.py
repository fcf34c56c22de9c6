# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How long a test waits for what must come."""

import time

PATIENCE = 120.0  # s; generous, since a busy machine may take long: only a failure waits for it


def wait_until(condition, what="the condition"):
    """Until ``condition()`` is true; its value."""
    deadline = time.monotonic() + PATIENCE
    while not (value := condition()):
        assert time.monotonic() < deadline, f"{what} did not come within {PATIENCE} s"
        time.sleep(0.01)
    return value
