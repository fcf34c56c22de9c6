# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The source of a replay that looks at a camera through a node, and reads no frame itself."""

from __future__ import annotations

import re
from collections.abc import Iterator

from stream_vlm_ros.sources import Frame, Source


class LiveTopic(Source):
    """A topic on which a camera publishes already: what is asked while a node looks at it.

    Its frames go to the node alone; here it is a name and how long to ask.
    """

    live = True

    def __init__(self, topic: str, seconds: float) -> None:
        super().__init__()
        self.name, self.duration = topic, seconds

    @staticmethod
    def is_meant(spec: str) -> bool:
        """Whether it has the form of a topic's full name."""
        return re.fullmatch(r"(/[A-Za-z_]\w*)+", spec) is not None

    def __iter__(self) -> Iterator[Frame]:
        return iter(())
