# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The newest picture for all who look: encoded once, and by nobody waited for."""

from __future__ import annotations

import io
import threading
import time

import numpy as np
from PIL import Image

from stream_vlm_ros.web.live_memory import Picture

LONGEST = 960  # pixels of the longer side, as sent
QUALITY = 80  # of the JPEG
A_SECOND = 10.0  # pictures, at most


class Pictures:
    """Takes a camera's pictures, and encodes one when it is looked at: once for all.

    What nobody looks at costs nothing, nor do more than `A_SECOND`. Pictures may come in any
    thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._newest: tuple[int, int, np.ndarray] | None = None  # number, stamp, picture
        self._encoded: Picture | None = None
        self._encoded_at = 0.0

    def offer(self, image: np.ndarray, stamp_ns: int) -> None:
        """A picture, uint8 ``[height, width, 3]`` RGB; it is not copied."""
        with self._lock:
            number = self._newest[0] + 1 if self._newest else 1
            self._newest = number, stamp_ns, image

    @property
    def newest(self) -> Picture | None:
        """For one who looks; None: none came yet."""
        with self._lock:
            newest, shown, now = self._newest, self._encoded, time.monotonic()
            if newest is None or (shown is not None and shown.number == newest[0]):
                return shown
            if shown is not None and now - self._encoded_at < 0.9 / A_SECOND:
                return shown
            number, stamp_ns, image = newest
            self._encoded, self._encoded_at = Picture(number, stamp_ns, as_jpeg(image)), now
            return self._encoded


def reduced(image: np.ndarray) -> np.ndarray:
    """A picture with no side longer than `LONGEST`."""
    if max(image.shape[:2]) <= LONGEST:
        return image
    shown = Image.fromarray(image)
    shown.thumbnail((LONGEST, LONGEST), reducing_gap=2.0)
    return np.asarray(shown)


def as_jpeg(image: np.ndarray) -> bytes:
    """A picture as it is sent: reduced."""
    data = io.BytesIO()
    Image.fromarray(reduced(image)).save(data, "JPEG", quality=QUALITY)
    return data.getvalue()
