# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`TimedFrame`: a picture on its way through the node."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TimedFrame:
    """A picture with the source's header, as it travels to the engine."""

    stamp_ns: int  # by which it is sampled and placed in time
    image: Any  # uint8 [height, width, 3] RGB
    header: Any  # std_msgs/Header as it came
