# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The reference system: how its memory works, and what it reports of its runs.

It ran a 3B in bfloat16 on an RTX 4090 (24 GB).
"""

from __future__ import annotations

from typing import Any

# A user turn for each chunk, gaps in the positions after an eviction, sink and window alone.
MEMORY: dict[str, Any] = {
    "layout": "segmented",
    "position_policy": "keep_gaps",
    "sampled_share": 0.0,
    "important_share": 0.0,
}
# Text tokens of its first chunk, which has a system prompt of its own, by experiment.
FIRST_TEXT = {"sink": 53, "long-video": 53, "periodic": 53, "native": 32}

MODEL = {"parameters": 3_754_622_976, "kv_bytes_per_token": 36_864}
LONG_VIDEO = {
    "source": "1920x1080",
    "frames": 400,
    "fps": 2.0,
    "chunk_frames": 4,
    "cap": 150_000,
    "layout": "segmented",
}
LONG_VIDEO_COUNTS = {
    "sink": 5435,
    "window": 144_565,
    "tokens a later chunk": 5389,
    "first eviction at chunk": 28,
    "tokens evicted there": 938,
    "evictions": 73,
    "tokens evicted": 388_946,
    "length at the end": 150_000,
}
LONG_VIDEO_COSTS = {
    "KV at the end, GiB": "5.150",
    "allocated, GiB": "12.26",
    "peak allocated, GiB": "17.74",
    "reserved, GiB": "20.91",
    "whole run, s": "549",
    "frames a second": "0.73",
    "TTFT, s": "0.440",
}
# Without eviction it ran out of its 24 GB at this chunk.
OUT_OF_MEMORY_AT_CHUNK = 40
NATIVE = {"source": "1280x720", "frames": 24, "chunk_frames": 4, "layout": "segmented"}
# Its log's pictures were whole: a smaller bound on their pixels makes other counts and times.
DELAYED_BATCH = {
    "source": "1920x1080",
    "frames": 50,
    "fps": 1.0,
    "more": 10,
    "max_sampled": 48,
    "visual_tokens": 64_584,
}
