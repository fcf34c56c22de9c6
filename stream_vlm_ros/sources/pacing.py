# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`Pace`: a recording played as fast as it was filmed."""

from __future__ import annotations

from dataclasses import dataclass

from stream_vlm_ros.engine.inputs.timestamps import SECOND


@dataclass(frozen=True)
class Pace:
    """When the frames of a source are due, on a clock that starts with its first frame."""

    first_stamp_ns: int
    started: float  # seconds, monotonic

    def due(self, stamp_ns: int) -> float:
        """Seconds of the monotonic clock at which the frame of ``stamp_ns`` is due."""
        return self.started + (stamp_ns - self.first_stamp_ns) / SECOND
