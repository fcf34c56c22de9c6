# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Pictures on their way out: no larger than the model takes them, as JPEG or as they are."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image

from stream_vlm_ros.config import Settings
from stream_vlm_ros.engine.inputs.picture_sizes import smart_resize
from stream_vlm_ros.remote.exchange import Chunk
from stream_vlm_ros.remote.protocol import JPEG, RAW, FrameMessage, Session


@dataclass(frozen=True)
class Packing:
    """How pictures travel.

    Attributes:
        encoding: `JPEG` or `RAW`.
        quality: of a JPEG, 1 to 100.
        max_pixels: a bound below the model's own; 0: none.
    """

    encoding: int = JPEG
    quality: int = 90
    max_pixels: int = 0

    def packed(self, chunk: Chunk, session: Session) -> Iterator[bytes]:
        """The messages of those frames of a chunk that are to be sent; InvalidImageError for a
        picture that the model cannot use."""
        for at in range(chunk.unsent, len(chunk.frames)):
            frame = chunk.frames[at]
            picture = self._resized(frame.image, session)
            height, width = (0, 0) if self.encoding == JPEG else picture.shape[:2]
            pixels = self._jpeg(picture) if self.encoding == JPEG else picture.tobytes()
            yield FrameMessage(
                chunk.first + at, frame.stamp_ns, self.encoding, height, width, pixels
            ).packed()

    def _resized(self, picture: np.ndarray, session: Session) -> np.ndarray:
        """Reduced to the size that the model takes it in; what is enlarged, the server enlarges."""
        height, width = picture.shape[:2]
        bounds = [bound for bound in (session.max_pixels, self.max_pixels) if bound]
        high = max(min(bounds, default=height * width), session.min_pixels, 1)
        rows, columns = smart_resize(height, width, session.factor, session.min_pixels, high)
        if rows * columns >= height * width:
            return picture
        resized = Image.fromarray(picture).resize((columns, rows), Image.Resampling.BICUBIC)
        return np.asarray(resized)

    def _jpeg(self, picture: np.ndarray) -> bytes:
        target = io.BytesIO()
        Image.fromarray(picture).save(target, "JPEG", quality=self.quality)
        return target.getvalue()


def packing(settings: Settings) -> Packing:
    """As the settings say."""
    encoding = {"jpeg": JPEG, "raw": RAW}[settings.remote_encoding]
    return Packing(encoding, settings.jpeg_quality, settings.max_pixels)
