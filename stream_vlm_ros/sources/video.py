# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Video files, through PyAV (FFmpeg): frames with the stamps that the container holds."""

from __future__ import annotations

import os
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import av.video.reformatter
import numpy as np
from av import Packet, VideoFrame
from av.container import InputContainer
from av.video.stream import VideoStream

from stream_vlm_ros.engine.inputs.picture_sizes import (
    MAX_DECODED_MEGAPIXELS,
    PictureLimit,
    open_picture,
)
from stream_vlm_ros.engine.inputs.sampling import StampSampler
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import (
    InvalidImageError,
    InvalidParameterError,
    PictureTooLargeError,
    SourceNotFoundError,
    SourceUnreadableError,
)

from .frame import Frame, Source, SourceState
from .sampling import check_part

_LEFT_OUT = "Pictures are left out: "
ASSUMED_RATE = 25.0  # frames/s, for a file that holds neither stamps nor a rate


class VideoSource(Source):
    """A video file of any container and codec that FFmpeg reads.

    Stamps are the container's own (so a variable frame rate stays one), in nanoseconds from the
    first frame, plus ``start_stamp_ns``. Frames are sampled by stamp, and only those wanted are
    converted to RGB, turned upright by the file's rotation, and scaled to ``size``.

    Args:
        path: the file.
        fps: frames per second to take (None: every frame); see ``StampSampler``.
        start, end: seconds from the first frame; frames in [start, end) are given.
        size: (width, height) to scale to (None: as filmed).
        start_stamp_ns: stamp of the file's first frame.
        name: what ``Frame.source`` says (None: the file's name).
        max_decoded_megapixels: a video of larger pictures is refused, and where its size changes,
            larger ones are left out; FFmpeg does not decode them.

    Raises:
        SourceNotFoundError, SourceUnreadableError: at once, when there is nothing to read.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        fps: float | None = None,
        start: float = 0.0,
        end: float | None = None,
        size: tuple[int, int] | None = None,
        start_stamp_ns: int = 0,
        name: str | None = None,
        max_decoded_megapixels: float = MAX_DECODED_MEGAPIXELS,
    ) -> None:
        super().__init__()
        self.path = Path(path)
        self._limit = PictureLimit(max_decoded_megapixels)
        self.name = name or self.path.name
        check_part(fps, start, end)
        if size is not None and min(size) < 2:
            raise InvalidParameterError(f"The picture size is {size}; each side needs 2 pixels.")
        self._fps, self._start, self._end, self._scale = fps, start, end, size
        self._start_stamp_ns = start_stamp_ns
        _check_file(self.path)
        with self._open() as container:
            stream = self._video_stream(container)
            self.rate = rate_of(stream)
            self.duration = _duration_of(container, stream)
            self.size = size or (stream.width, stream.height)

    def _open(self) -> InputContainer:
        try:
            return av.open(
                str(self.path), metadata_errors="replace", options=decoder_options(self._limit)
            )
        except av.FFmpegError as error:
            raise SourceUnreadableError(_why_unreadable(self.path, error)) from error

    def _video_stream(self, container: InputContainer) -> VideoStream:
        if container.format.name == "tty":  # FFmpeg takes any text file for a video of a terminal
            raise SourceUnreadableError(f"{self.path} is a text file, not a video.")
        best = container.streams.best("video")
        stream = best if isinstance(best, VideoStream) else None
        if stream is not None:
            limit_decoder(stream, self._limit, str(self.path))
        if stream is None or (stream.codec_context.width == 0 and stream.codec_context.height == 0):
            self._check_first_packet(container, stream)
            kinds: list[str] = sorted({s.type for s in container.streams}) or ["nothing"]
            raise SourceUnreadableError(
                f"{self.path} has no video in it (only {', '.join(kinds)}). Give a file with a "
                "video stream."
                if stream is None
                else f"{self.path} holds no picture that can be decoded: it is damaged, "
                "truncated, or not a video."
            )
        stream.thread_type = "AUTO"
        return stream

    def _check_first_packet(self, container: InputContainer, stream: VideoStream | None) -> None:
        """Name the size of a first picture that FFmpeg did not look into because of it."""
        try:
            packet = None if stream is None else next(container.demux(stream), None)
            if packet is not None:
                open_picture(bytes(packet), self._limit)
        except PictureTooLargeError as error:
            raise SourceUnreadableError(f"{self.path}: {error}.") from error
        except (av.FFmpegError, InvalidImageError):
            pass  # it cannot be decoded for another reason

    def __iter__(self) -> Iterator[Frame]:
        self.state = state = SourceState()
        counts = state.counts
        sampler = StampSampler(self._fps) if self._fps is not None else None
        picture = RgbConverter(self._scale)
        start_ns = round(self._start * SECOND)
        end_ns = None if self._end is None else round(self._end * SECOND)
        with self._open() as container:
            stream = self._video_stream(container)
            clock = _Clock(stream, self.rate, state.notes)
            if start_ns:
                clock.seek(container, start_ns)
            for decoded in decode(container, stream, state, self._limit):
                counts.decoded += 1
                offset = clock.read(decoded)
                if offset is None:
                    counts.unordered += 1
                    continue
                if end_ns is not None and offset >= end_ns:
                    counts.unwanted += 1
                    return
                if offset < start_ns or (sampler is not None and not sampler.wants(offset)):
                    counts.unwanted += 1
                    continue
                image = None if decoded.is_corrupt else picture.of(decoded)
                if image is None:
                    counts.unusable += 1
                    continue
                counts.given += 1
                yield Frame(self._start_stamp_ns + offset, image, self.name)
            if end_ns is None:
                self._look_for_damage(stream, clock, state)

    def _look_for_damage(self, stream: VideoStream, clock: _Clock, state: SourceState) -> None:
        """Whether the file ended before the length that its own header promises."""
        if state.counts.decoded == 0 and state.damage is None and self._start == 0:
            state.damage = f"{self.path} holds no frame that can be decoded."
        if state.counts.unusable and not any(n.startswith(_LEFT_OUT) for n in state.notes):
            state.notes.append(
                f"{_LEFT_OUT}{state.counts.unusable} of {state.counts.decoded} are damaged, or of "
                f"more than max_decoded_megapixels ({self._limit.megapixels:g})."
            )
        promised = self.duration
        # A container's own duration may be that of a longer sound track: then it promises nothing.
        of_video = stream.duration is not None or len(stream.container.streams) == 1
        if state.damage is None and promised is not None and of_video:
            reached = (clock.last_ns + clock.interval_ns) / SECOND
            if reached < promised - max(1.0, 0.02 * promised) and self._start < promised:
                state.damage = (
                    f"{self.path} breaks off at {reached:.1f} s of {promised:.1f} s: it was not "
                    "written or copied to its end. Everything before was read."
                )


class _Clock:
    """Stamps of decoded frames, in nanoseconds from the file's first frame."""

    def __init__(self, stream: VideoStream, rate: float | None, notes: list[str]) -> None:
        self._stream = stream
        self._notes = notes
        self._origin: int | None = stream.start_time  # in the stream's time base
        self.interval_ns = round(SECOND / (rate or ASSUMED_RATE))
        self.last_ns = -1
        self._rate = rate

    def seek(self, container: InputContainer, start_ns: int) -> None:
        """Go to the key frame at or before ``start_ns``; where that fails, read from the start."""
        base = self._stream.time_base
        if self._origin is None or base is None:
            return
        target = start_ns * base.denominator // (base.numerator * SECOND)
        try:
            container.seek(self._origin + target, stream=self._stream, backward=True)
        except av.FFmpegError:
            self._notes.append("The file has no index to jump by; it was read from its start.")

    def read(self, frame: VideoFrame) -> int | None:
        """Stamp of ``frame``; None if it is not after the frame before."""
        ticks = frame.pts
        base = frame.time_base or self._stream.time_base
        if ticks is None or base is None:
            stamp = 0 if self.last_ns < 0 else self.last_ns + self.interval_ns
            self._note_missing_stamps()
        else:
            if self._origin is None or (self.last_ns < 0 and ticks < self._origin):
                self._origin = ticks
            stamp = _rounded_ns(ticks - self._origin, base)
        if stamp <= self.last_ns:
            return None
        if self.last_ns >= 0:
            self.interval_ns = stamp - self.last_ns
        self.last_ns = stamp
        return stamp

    def _note_missing_stamps(self) -> None:
        if not self._notes:
            rate = f"its rate of {self._rate:g}" if self._rate else f"{ASSUMED_RATE:g} assumed"
            self._notes.append(f"The file holds no time stamps; {rate} frames/s used instead.")


class RgbConverter:
    """RGB arrays of decoded frames: one conversion set-up for the whole file."""

    def __init__(self, size: tuple[int, int] | None) -> None:
        self._size = size
        self._reformatter = av.video.reformatter.VideoReformatter()

    def of(self, frame: VideoFrame) -> np.ndarray | None:
        """Array [height, width, 3] uint8, upright; None if the picture cannot be converted."""
        turns = round(getattr(frame, "rotation", 0) / 90) % 4  # counter-clockwise
        width, height = self._size or (0, 0)
        if turns % 2:
            width, height = height, width
        try:
            rgb = self._reformatter.reformat(
                frame, width=width or None, height=height or None, format="rgb24"
            )
            image = rgb.to_ndarray()
        except (av.FFmpegError, ValueError):
            return None
        return np.ascontiguousarray(np.rot90(image, turns)) if turns else image


def decoder_options(limit: PictureLimit) -> dict[str, str]:
    """What FFmpeg is told, so that no decoder of its makes room for a larger picture."""
    return {"max_pixels": str(limit.pixels)}


def limit_decoder(stream: VideoStream, limit: PictureLimit, what: str) -> None:
    """Bound the pictures that ``stream`` may decode to.

    Raises SourceUnreadableError if it announces larger ones.
    """
    try:
        limit.check(stream.codec_context.width, stream.codec_context.height, what)
    except PictureTooLargeError as error:
        raise SourceUnreadableError(f"{error}.") from error
    stream.codec_context.options = decoder_options(limit)


def decode(
    container: InputContainer, stream: VideoStream, state: SourceState, limit: PictureLimit
) -> Iterator[VideoFrame]:
    """Every frame that can be decoded; packets that cannot are counted and passed over."""
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except av.FFmpegError as error:
            state.damage = (
                f"Reading stopped in the middle ({short_reason(error)}): the file is damaged or "
                "was cut off. Everything before was read."
            )
            break
        try:
            frames = packet.decode()
        except av.FFmpegError:
            _count_damaged(state)
            _note_too_large(packet, stream, state, limit)
            continue
        for frame in frames:
            try:  # not every decoder asks
                limit.check(frame.width, frame.height)
            except PictureTooLargeError as error:
                _count_damaged(state)
                _note_once(state, error)
                continue
            yield frame
    if state.damage is not None:
        try:
            yield from stream.codec_context.decode(None)  # what the decoder still holds
        except av.FFmpegError:
            _count_damaged(state)


def _count_damaged(state: SourceState) -> None:
    state.counts.decoded += 1
    state.counts.unusable += 1


def _note_too_large(
    packet: Packet, stream: VideoStream, state: SourceState, limit: PictureLimit
) -> None:
    """Say so, once, if a packet was not decoded for the size that it announces."""
    context = stream.codec_context
    try:
        limit.check(context.width, context.height)
        open_picture(bytes(packet), limit)  # of codecs whose packets are whole pictures
    except PictureTooLargeError as error:
        _note_once(state, error)
    except InvalidImageError:
        pass  # of another codec


def _note_once(state: SourceState, error: PictureTooLargeError) -> None:
    if not any(note.startswith(_LEFT_OUT) for note in state.notes):
        state.notes.append(f"{_LEFT_OUT}{error}.")


def _check_file(path: Path) -> None:
    if not path.exists():
        raise SourceNotFoundError(f"There is no file {path}. Check the path.")
    if path.is_dir():
        raise SourceUnreadableError(f"{path} is a folder, not a video file.")
    if not os.access(path, os.R_OK):
        raise SourceNotFoundError(f"{path} cannot be read by this user. Change its permissions.")
    if path.is_file() and path.stat().st_size == 0:
        raise SourceUnreadableError(
            f"{path} is empty (0 bytes): the recording or the copy did not finish. Copy or record "
            "it again."
        )


def _why_unreadable(path: Path, error: Exception) -> str:
    if _mp4_without_index(path):
        return (
            f"{path} is an MP4 without its index, which is written last: the recording or the copy "
            "was cut off. Copy it again, or have a repair tool (untrunc) rebuild the index."
        )
    return (
        f"{path} cannot be opened as a video ({short_reason(error)}). If other players open it, "
        "convert it with: ffmpeg -i IN -c:v libx264 OUT.mp4"
    )


def _mp4_without_index(path: Path) -> bool:
    """Walk the top-level boxes of an MP4/MOV file: is there an ``ftyp`` but no ``moov``?"""
    kinds: set[bytes] = set()
    with path.open("rb") as file:
        position, end = 0, path.stat().st_size
        while position + 8 <= end and len(kinds) < 64:
            file.seek(position)
            length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
            if length == 1:
                length = int.from_bytes(file.read(8), "big")
            kinds.add(kind)
            if length < 8:
                break
            position += length
    return b"ftyp" in kinds and b"moov" not in kinds


def rate_of(stream: VideoStream) -> float | None:
    for rate in (stream.average_rate, stream.guessed_rate):
        if rate and 0 < rate <= 1000:  # beyond that it is a time base, not a rate
            return float(rate)
    return None


def _duration_of(container: InputContainer, stream: VideoStream) -> float | None:
    if stream.duration is not None and stream.time_base is not None:
        return float(stream.duration * stream.time_base)
    return container.duration / av.time_base if container.duration else None


def _rounded_ns(ticks: int, base: Fraction) -> int:
    """ticks x base seconds in nanoseconds, to the nearest, in whole numbers."""
    numerator, denominator = ticks * base.numerator * SECOND, base.denominator
    return (2 * numerator + denominator) // (2 * denominator)


def short_reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).strip() or type(error).__name__
