# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A camera on this machine (Video4Linux), through PyAV."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import av
from av.container import InputContainer

from stream_vlm_ros.engine.inputs.picture_sizes import MAX_DECODED_MEGAPIXELS, PictureLimit
from stream_vlm_ros.engine.inputs.sampling import StampSampler
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import SourceNotFoundError, SourceUnreadableError

from .frame import Frame, Source, SourceState
from .sampling import check_part
from .video import RgbConverter, decode, decoder_options, limit_decoder, rate_of, short_reason


class DeviceSource(Source):
    """Frames of a camera as they come, stamped with the wall clock when they arrive.

    Args:
        device: such as ``/dev/video0``.
        fps: frames per second to take (None: every one); sampled here, by arrival.
        end: seconds after the first frame at which to stop (None: never).
        size: (width, height) asked of the camera; what it gives instead is scaled to it.
        max_decoded_megapixels: a camera with larger pictures is refused.

    Raises:
        SourceNotFoundError, SourceUnreadableError: no such camera, or it does not start.
    """

    live = True
    FORMAT = "v4l2"  # FFmpeg's name of the driver
    # What the driver calls the size of its pictures; None: it takes none.
    SIZE_OPTION: str | None = "video_size"

    def __init__(
        self,
        device: str = "/dev/video0",
        *,
        fps: float | None = None,
        end: float | None = None,
        size: tuple[int, int] | None = None,
        name: str | None = None,
        max_decoded_megapixels: float = MAX_DECODED_MEGAPIXELS,
    ) -> None:
        super().__init__()
        self._limit = PictureLimit(max_decoded_megapixels)
        self.device, self.size, self.name = device, size, name or Path(device).name
        self._fps, self.duration = fps, end
        self.endless = end is None
        check_part(fps, 0.0, end)
        if device.startswith("/dev/"):
            _check_device(device)

    def __iter__(self) -> Iterator[Frame]:
        self.state = state = SourceState()
        sampler = StampSampler(self._fps) if self._fps is not None else None
        picture = RgbConverter(self.size)
        first = last = None
        with self._open() as container:
            stream = container.streams.video[0]
            limit_decoder(stream, self._limit, f"the camera {self.device}")
            self.rate = rate_of(stream)
            for decoded in decode(container, stream, state, self._limit, self._stopped):
                stamp = time.time_ns() if last is None else max(time.time_ns(), last + 1)
                last = stamp
                first = stamp if first is None else first
                state.counts.decoded += 1
                if self.duration is not None and stamp - first >= self.duration * SECOND:
                    state.counts.unwanted += 1
                    return
                if sampler is not None and not sampler.wants(stamp):
                    state.counts.unwanted += 1
                    continue
                image = picture.of(decoded)
                if image is None:
                    state.counts.unusable += 1
                    continue
                state.counts.given += 1
                yield Frame(stamp, image, self.name)

    def _stopped(self, error: Exception) -> str:
        return f"The camera {self.device} stopped ({short_reason(error)})."

    def _open(self) -> InputContainer:
        options = decoder_options(self._limit)
        if self.size and self.SIZE_OPTION:
            options[self.SIZE_OPTION] = "{}x{}".format(*self.size)
        try:
            return av.open(self.device, format=self.FORMAT, options=options)
        except (av.FFmpegError, ValueError) as error:
            raise SourceUnreadableError(
                f"The camera {self.device} does not start ({short_reason(error)}). Is another "
                "program using it, and does it offer this picture size?"
            ) from error


def _check_device(device: str) -> None:
    if not os.path.exists(device):
        there = ", ".join(sorted(str(p) for p in Path("/dev").glob("video*"))) or "none"
        raise SourceNotFoundError(f"There is no camera {device} (cameras here: {there}).")
    if not os.access(device, os.R_OK):
        raise SourceNotFoundError(
            f"The camera {device} cannot be read by this user. Add the user to the group video."
        )
