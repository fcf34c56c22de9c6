# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The prototype's names for what the delayed batch engine has under its own: thin, in this file.

docs/coming-from-the-reference.md lists them side by side. The keys of statistics and metrics are
answered by the results themselves.
"""

from __future__ import annotations

from typing import Any

from stream_vlm_ros.history.selection import GRID_FRAMES


class DelayedBatchNames:
    """Of `DelayedBatchInferenceEngine`."""

    @property
    def sampling_metadata(self: Any) -> dict[str, Any]:
        """Of the frames that are encoded now: how they were chosen and what they span.

        ``original_frames`` offered, ``sampled_frames`` encoded (one that fills a grid alone counts
        twice), ``sampling_ratio`` of these two, ``temporal_grids``, ``second_per_grid_t``,
        ``covered_span`` (their product) and ``real_span`` (of the frames themselves), in seconds.
        """
        statistics = self.get_statistics()
        sampled, offered = statistics["frames_encoded"], statistics["frames_added"]
        grids = sampled // GRID_FRAMES
        return {
            "original_frames": offered,
            "sampled_frames": sampled,
            "sampling_ratio": sampled / offered if offered else 0.0,
            "temporal_grids": grids,
            "second_per_grid_t": self.second_per_grid_t,
            "covered_span": grids * self.second_per_grid_t,
            "real_span": self.time_span,
        }
