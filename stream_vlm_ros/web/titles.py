# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the settings are called on the page, in the order in which they stand there."""

from __future__ import annotations

import re

TITLES = {
    "sample_fps": "Pictures a second",
    "max_pixels": "Pixels of a picture, at most",
    "sampled_max_pixels": "Pixels of a picture, at most",
    "max_new_tokens": "Tokens of an answer, at most",
    "temperature": "Temperature of answers",
    "ingest_share": "Share of an answer's time for new pictures",
    "max_cache_tokens": "Tokens held, at most",
    "sink_size": "Tokens of the first frames",
    "window_size": "Tokens of the recent past",
    "sampled_share": "Share for frames kept evenly",
    "important_share": "Share for frames least like the others",
    "eviction_interval": "Chunks between evictions",
    "chunk_frames": "Pictures in a chunk",
    "max_chunk_delay": "Seconds that a chunk waits to be full",
    "queue_size": "Chunks that may wait",
    "max_questions": "Questions that may wait",
    "refuse_forgotten": "Refuse questions about what is forgotten",
    "save_memory_minutes": "Minutes between saves",
    "on_time_jump": "When the time jumps",
}
NAMES = re.compile(rf"\b({'|'.join(name for name in TITLES if '_' in name)})\b")


def title(name: str) -> str:
    """Of a setting."""
    return TITLES.get(name, name.replace("_", " ").capitalize())


def titled(words: str) -> str:
    """With the titles of settings in the place of their names."""
    first = NAMES.sub(lambda name: title(name[0]) if name.start() == 0 else name[0], words, count=1)
    quoted = NAMES.sub(lambda name: f"“{title(name[0])}”", first)
    return quoted.replace(" -> ", " → ")
