# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A source played over and over, with stamps that run on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from stream_vlm_ros.engine.inputs.timestamps import SECOND

from .frame import Frame, Source


def loop(source: Source, *, duration: float | None = None) -> Iterator[Frame]:
    """Frames of ``source`` again and again, for ``duration`` seconds of stamps (None: forever).

    A pass starts as long after the last frame of the pass before as that one came after its own
    predecessor, so the stamps keep increasing at the source's rate. Ends if a pass gives no frame.
    """
    start: int | None = None  # stamp of the first frame ever given
    following: int | None = None  # stamp that the next pass starts with
    while True:
        offset: int | None = None
        last = 0
        interval = round(SECOND / source.rate) if source.rate else SECOND
        for frame in source:
            if offset is None:
                offset = 0 if following is None else following - frame.stamp_ns
            else:
                interval = frame.stamp_ns + offset - last
            last = frame.stamp_ns + offset
            if start is None:
                start = last
            if duration is not None and last - start >= duration * SECOND:
                return
            yield replace(frame, stamp_ns=last)
        if offset is None:
            return
        following = last + interval
