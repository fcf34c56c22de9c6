# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Videos at an address on a network, through PyAV (FFmpeg): files, and streams as they come."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import av
from av import VideoFrame
from av.container import InputContainer
from av.format import Flags

from stream_vlm_ros.engine.inputs.picture_sizes import MAX_DECODED_MEGAPIXELS
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import SourceUnreadableError

from .frame import SourceState
from .opening import without_secrets
from .video import SILENCE, Clock, VideoSource, decoder_options, short_reason


class AddressSource(VideoSource):
    """A video at ``rtsp://``, ``rtsps://``, ``http://`` or ``https://``.

    One that has a length is read as a file is. One that has none is a stream: its first frame is
    stamped with the wall clock when it arrives, the others as the stream says; or when they are
    read where it does not (MJPEG), so that what waits for a busy reader comes late. It is not
    connected to again: ``state`` says when it ended, or that nothing came for 8 seconds.

    Args:
        address: user and password may stand in it; no message, note or name shows them.
        fps, start, end, size, name, max_decoded_megapixels: as VideoSource takes them; what comes
            before ``start`` of a stream is passed over.

    Raises:
        SourceUnreadableError: at once, when it cannot be reached or holds no video.
    """

    def __init__(
        self,
        address: str,
        *,
        fps: float | None = None,
        start: float = 0.0,
        end: float | None = None,
        size: tuple[int, int] | None = None,
        name: str | None = None,
        max_decoded_megapixels: float = MAX_DECODED_MEGAPIXELS,
    ) -> None:
        scheme, _, rest = address.partition("://")
        self._address = f"{scheme.lower()}://{rest}"  # FFmpeg knows no capitals
        super().__init__(
            without_secrets(address),
            fps=fps,
            start=start,
            end=end,
            size=size,
            name=name or without_secrets(address).rstrip("/").rpartition("/")[2],
            max_decoded_megapixels=max_decoded_megapixels,
        )
        self.live = self.duration is None
        self.endless = self.live and self._end is None

    def _open(self) -> InputContainer:
        options = {**decoder_options(self._limit), "rtsp_flags": "prefer_tcp"}
        if self._address.startswith("rtsp"):  # else the first picture waits until a rate is learned
            options["fpsprobesize"] = "0"
        begin = time.monotonic()
        try:
            container = av.open(
                self._address, metadata_errors="replace", options=options, timeout=SILENCE
            )
            contexts = [getattr(s, "codec_context", None) for s in container.streams.video]
            if _waited(begin) and not any(getattr(c, "width", 0) for c in contexts):
                container.close()
                raise av.error.ExitError(0, "")
            return container
        except (av.FFmpegError, ValueError) as error:
            reason = _nothing_came() if _waited(begin) else _reason(error)
            # By HTTP it was reached; by RTSP it may be that this is not its port.
            web = self._address.startswith("http") and not _waited(begin)
            if web and isinstance(error, av.error.InvalidDataError):
                raise SourceUnreadableError(
                    f"What {self.place} gives is not a video that can be read "
                    f"({reason}): a web page, a rosbag or another file? Give the address "
                    "of the video itself; save a rosbag first, and give the file."
                ) from None
            # Not "from error": that names the address with the password in it.
            raise SourceUnreadableError(
                f"{self.place} cannot be read ({reason}). Check the address, the user and "
                "password, and whether the camera or server can be reached from here."
            ) from None

    def _timed(
        self, clock: Clock, container: InputContainer, frames: Iterator[VideoFrame]
    ) -> Iterator[tuple[int, VideoFrame]]:
        if not self.live:
            yield from clock.time(frames)
            return
        if Flags.no_timestamps in Flags(container.format.flags):
            self.state.notes.append("The stream's pictures have no times: timed as they are read.")
            frames_in_time = _by_arrival(clock, frames)
        else:
            frames_in_time = clock.time(frames)
        for number, (offset, frame) in enumerate(frames_in_time):
            if number == 0:
                self._start_stamp_ns = time.time_ns() - offset
            yield offset, frame

    def _stopped(self, error: Exception) -> str:
        if not self.live:
            return f"{self.place} stopped ({_reason(error)}). Everything before was read."
        return f"The stream {self.place} ended ({_reason(error)})."

    def _look_for_damage(self, stream: Any, clock: Clock, packets: Any, state: SourceState) -> None:
        super()._look_for_damage(stream, clock, packets, state)
        if self.live and clock.last_ns >= 0:
            state.notes.append(f"The stream ended after {clock.last_ns / SECOND:.1f} s.")


def _waited(begin: float) -> bool:
    """Whether it was waited for in vain since then: FFmpeg may go on, or call it invalid data."""
    return time.monotonic() - begin > 0.9 * SILENCE


def _nothing_came() -> str:
    return f"nothing came for {SILENCE:g} s"


def _reason(error: Exception) -> str:
    if isinstance(error, av.error.ExitError):
        return _nothing_came()
    return short_reason(error)


def _by_arrival(clock: Clock, frames: Iterator[VideoFrame]) -> Iterator[tuple[int, VideoFrame]]:
    begun: int | None = None
    for frame in frames:
        now = time.monotonic_ns()
        begun = now if begun is None else begun
        clock.last_ns = max(now - begun, clock.last_ns + 1)
        yield clock.last_ns, frame
