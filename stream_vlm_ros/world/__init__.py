# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The drawn world, its questions, and the small model trained on it.

Importing it lets `open_source` take ``world:SEED``.
"""

from stream_vlm_ros.sources.frame import Source
from stream_vlm_ros.sources.opening import register_scheme


def _world_source() -> type[Source]:
    from .source import WorldSource

    return WorldSource


register_scheme("world", _world_source)
