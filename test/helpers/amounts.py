# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How much is tried: little by default, more with ``make test EXAMPLES=10``."""

import os

TIMES = int(os.environ.get("EXAMPLES", "1"))


def examples(count: int) -> int:
    """So many inputs of a property, times those that the run is asked for."""
    return count * TIMES
