# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Video files, through PyAV (FFmpeg): frames with the stamps that the container holds."""

from __future__ import annotations

import io
import mmap
import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from fractions import Fraction
from itertools import accumulate, islice
from operator import itemgetter
from pathlib import Path

import av
import av.video.reformatter
import numpy as np
from av import Packet, VideoFrame
from av.container import InputContainer
from av.format import Flags
from av.sidedata.sidedata import SideData, Type
from av.stream import Disposition
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

from .frame import Frame, Source, SourceState, no_plain_file
from .sampling import check_part

SILENCE = 8.0  # seconds without anything, after which a stream is given up
_LEFT_OUT = "Pictures are left out:"
# How files begin of which FFmpeg reads the first, where some are put end to end.
_MAGIC = {
    "flv": b"FLV\x01",
    "asf": bytes.fromhex("3026b2758e66cf11"),
    "wtv": bytes.fromhex("b7d800203749da11"),
    "swf": b"FWS",
}
_JPEG = b"\xff\xd8\xff"  # how a picture of it begins
_WITHOUT_STAMPS = 4  # frames that a stream may begin with, though it tells time
_ANIMATION = 2  # the flag of it in an extended WebP's head
_PROBED = 1 << 20  # bytes from which the codec of a transport stream is learned
_PLACES = 8  # of a file, where that is done
ASSUMED_RATE = 25.0  # frames/s, for a file that holds neither stamps nor a rate


class VideoSource(Source):
    """A video file of any container and codec that FFmpeg reads.

    Stamps are the container's own (so a variable frame rate stays one), in nanoseconds from the
    first frame, plus ``start_stamp_ns``. Where the container's clock is set back, as in files put
    end to end, time goes on, and a note says so. Frames are sampled by stamp, and only those wanted
    are converted to RGB, turned or mirrored as the file says, and scaled to ``size``.

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
        self.place = os.fspath(path)  # as messages name it
        self._limit = PictureLimit(max_decoded_megapixels)
        self.name = name or self.path.name
        check_part(fps, start, end)
        if size is not None and min(size) < 2:
            raise InvalidParameterError(f"The picture size is {size}; each side needs 2 pixels.")
        self._fps, self._start, self._end, self._scale = fps, start, end, size
        self._start_stamp_ns = start_stamp_ns
        with self._open() as container:
            stream = self._video_stream(container)
            self.rate = rate_of(stream)
            self.duration = _duration_of(container, stream)
            self.size = size or (stream.width, stream.height)

    def _open(self) -> InputContainer:
        check_video_file(self.path)
        try:
            return av.open(
                str(self.path),
                metadata_errors="replace",
                options=decoder_options(self._limit),
                # A playlist without an end is waited on for more.
                timeout=SILENCE if _is_playlist(self.path) else None,
            )
        except av.FFmpegError as error:
            raise SourceUnreadableError(_why_unreadable(self.path, error)) from error

    def _video_stream(self, container: InputContainer) -> VideoStream:
        if container.format.name == "tty":  # FFmpeg takes any text file for a video of a terminal
            raise SourceUnreadableError(f"{self.place} is a text file, not a video.")
        films = _films(container)
        best = container.streams.best("video")
        stream = next((s for s in films if s is best), films[0] if films else None)
        # PyAV has no codec where FFmpeg knows none, though it types it otherwise.
        if stream is not None and getattr(stream, "codec_context", None) is None:
            raise SourceUnreadableError(
                f"{self.place} holds a video of a codec that FFmpeg does not know: it is damaged, "
                "or of another program's own kind."
            )
        if stream is not None:
            limit_decoder(stream, self._limit, self.place)
            if stream.codec_context.name == "mjpeg":  # it does not mark what it conceals
                stream.codec_context.options |= {"err_detect": "explode"}
        if stream is None or (stream.codec_context.width == 0 and stream.codec_context.height == 0):
            self._check_first_packet(container, stream)
            kinds = sorted(
                {"a cover picture" if s.type == "video" else s.type for s in container.streams}
            ) or ["nothing"]
            raise SourceUnreadableError(
                f"{self.place} has no video in it (only {', '.join(kinds)}). Give a file with a "
                "video stream."
                if stream is None
                else f"{self.place} holds no picture that can be decoded: it is damaged, "
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
            raise SourceUnreadableError(f"{self.place}: {error}.") from error
        except (av.FFmpegError, InvalidImageError):
            pass  # it cannot be decoded for another reason

    def __iter__(self) -> Iterator[Frame]:
        self.state = state = SourceState()
        counts = state.counts
        sampler = StampSampler(self._fps) if self._fps is not None else None
        picture = RgbConverter(self._scale)
        start_ns = round(self._start * SECOND)
        end_ns = None if self._end is None else round(self._end * SECOND)
        packets = _Packets()
        with ExitStack() as stack:
            container, stream, clock = self._begun(stack, state)
            if start_ns and not self.live and not clock.seek(container, start_ns, self.duration):
                container, stream, clock = self._begun(stack, state)
            try:
                decoded_frames = decode(
                    container, stream, state, self._limit, self._stopped, packets
                )
                for offset, decoded in self._timed(clock, container, decoded_frames):
                    counts.decoded += 1
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
            finally:  # also where nobody wants the rest
                self._note_other_codecs(stream, packets, state)
                self._note_losses(clock, state)
            self._look_for_damage(stream, clock, packets, state)

    def _begun(
        self, stack: ExitStack, state: SourceState
    ) -> tuple[InputContainer, VideoStream, Clock]:
        container = stack.enter_context(self._open())
        stream = self._video_stream(container)
        if (number := len(_films(container))) > 1:
            _note_once(
                state,
                f"The file holds {number} videos;",
                f"stream {stream.index} ({stream.width}x{stream.height}) is read. To read another: "
                "ffmpeg -i IN -map 0:NUMBER -c copy OUT.mkv",
            )
        return container, stream, Clock(stream, self.rate, state)

    def _timed(
        self, clock: Clock, container: InputContainer, frames: Iterator[VideoFrame]
    ) -> Iterator[tuple[int, VideoFrame]]:
        """Frames with their stamps in nanoseconds from the first, strictly increasing."""
        return clock.time(frames)

    def _stopped(self, error: Exception) -> str:
        return (
            f"Reading stopped in the middle ({short_reason(error)}): the file is damaged or was "
            "cut off. Everything before was read."
        )

    def _note_other_codecs(
        self, stream: VideoStream, packets: _Packets, state: SourceState
    ) -> None:
        """Say where a transport stream goes on in another codec, which FFmpeg does not look at."""
        if stream.container.format.name != "mpegts" or not self.path.is_file():
            return
        own, others = stream.codec_context.name, Counter[str]()
        for begin, after, number in sorted(packets.barren, key=itemgetter(2))[-_PLACES:]:
            # As a decoder holds pictures back, the last of them may be of its own codec.
            half = max(0, after - begin) // 2
            with self.path.open("rb") as file:
                file.seek(begin)
                part = io.BytesIO(file.read(min(_PROBED, half)))
            try:
                with av.open(part, format="mpegts") as rest:
                    codecs = [getattr(s.codec_context, "name", own) for s in rest.streams.video]
            except av.FFmpegError:
                continue
            others[codecs[0] if codecs else own] += number
        state.notes += [
            f"{_LEFT_OUT} {number} packets are of another codec ({other}; what is in {own} "
            "is read), as where files are put end to end. Convert them to one codec, and join them "
            "with ffmpeg -f concat."
            for other, number in others.items()
            if other != own
        ]

    def _note_losses(self, clock: Clock, state: SourceState) -> None:
        counts = state.counts
        if counts.unusable and not any(n.startswith(_LEFT_OUT) for n in state.notes):
            state.notes.append(
                f"{_LEFT_OUT} {counts.unusable} of {counts.decoded} are damaged, or of more than "
                f"max_decoded_megapixels ({self._limit.megapixels:g})."
            )
        if counts.unordered:
            state.notes.append(
                f"Out of order: {counts.unordered} of {counts.decoded} pictures have stamps that "
                "are not after the ones before; they are left out."
            )
        clock.note_gaps()

    def _look_for_damage(
        self, stream: VideoStream, clock: Clock, packets: _Packets, state: SourceState
    ) -> None:
        """Whether the file ended before the length that its own header promises."""
        counts = state.counts
        if counts.decoded == 0 and state.damage is None and self._start == 0:
            state.damage = f"{self.place} holds no frame that can be decoded."
        if not self._start and clock.first_ns > 2.5 * clock.interval_ns:
            state.notes.append(
                f"The first picture that can be decoded comes {clock.first_ns / SECOND:.1f} s "
                "after the file's beginning."
            )
        if self.path.is_file() and _has_no_end(self.path):  # FFmpeg then ends without an error
            state.damage = state.damage or (
                f"{self.place} is a playlist without an end (#EXT-X-ENDLIST): nothing more came "
                f"for {SILENCE:g} s. Everything before was read."
            )
        if self.path.is_file() and (
            more := _unread_bytes(self.path, stream.container.format.name, packets.end)
        ):
            state.notes.append(
                f"{more:,} bytes follow the end of the video, and were not read: another file was "
                "put behind it. Join videos with ffmpeg -f concat."
            )
        promised = self.duration
        # A container's own duration may be that of a longer sound track: then it promises nothing.
        of_video = stream.duration is not None or all(
            other.type == "video" for other in stream.container.streams
        )
        if state.damage is None and promised is not None and of_video:
            reached = (clock.last_ns + clock.interval_ns) / SECOND
            if self._start >= promised:
                pass
            elif reached < promised - max(1.0, 0.02 * promised):
                state.damage = (
                    f"{self.place} breaks off at {reached:.1f} s of {promised:.1f} s: it was not "
                    "written or copied to its end. Everything before was read."
                )
            # That of FLV is a remark of its writer's, often a few pictures longer.
            elif (
                reached < promised - 0.9 * clock.interval_ns / SECOND
                and stream.container.format.name != "flv"
            ):
                state.notes.append(
                    f"The last picture ends at {reached:.2f} s, but the file announces "
                    f"{promised:.2f} s."
                )
        if not (self._start or state.damage or state.notes) and stream.frames > counts.decoded:
            state.notes.append(
                f"The file announces {stream.frames} pictures; {counts.decoded} were read."
            )


class _Packets:
    """Where the packets of a pass lie in the file, and which of them gave no picture."""

    def __init__(self) -> None:
        self.end = 0  # byte behind the last one that gave a picture
        # Of those in a row: the bytes from the one before to the one after, and how many.
        self.barren: list[tuple[int, int, int]] = []
        self._begin = self._number = 0  # of those now
        self._refused = False  # one of those now is damaged

    def add(self, packet: Packet, pictures: int | None) -> None:
        """``pictures`` that came of the packet; None: it cannot be decoded."""
        if pictures or not packet.size:
            if self._number > 2 or self._refused:  # a decoder may hold some back
                after = packet.pos if packet.size and packet.pos else sys.maxsize
                self.barren.append((self._begin, after, self._number))
            self.end = max(self.end, (packet.pos or 0) + packet.size)
            self._number, self._refused = 0, False
            return
        self._begin = self._begin if self._number else self.end
        self._number += 1
        self._refused |= pictures is None


class Clock:
    """Stamps of decoded frames, in nanoseconds from the file's first frame."""

    def __init__(self, stream: VideoStream, rate: float | None, state: SourceState) -> None:
        self._stream = stream
        self._state, self._notes = state, state.notes
        self._origin: int | None = stream.start_time  # in the stream's time base
        self._moved_ns = 0  # where the file's clock was set back: by so much, in all
        self._steps: Counter[int] = Counter()  # from one frame to the next, in ms -> how often
        self._longest_ns = (0, 0)  # step, and the stamp before it
        self.interval_ns = round(SECOND / (rate or ASSUMED_RATE))
        self.first_ns = self.last_ns = -1
        self._rate = rate

    def seek(self, container: InputContainer, start_ns: int, announced: float | None) -> bool:
        """Go to a key frame at or before ``start_ns``; False: the file is to be read from its
        start, and opened again for it. ``announced``: how long the file says that it is, in s."""
        base = self._stream.time_base
        # In the middle of a program stream FFmpeg's stamps are off by parts of a picture.
        if self._origin is None or base is None or container.format.name == "mpeg":
            return False
        beyond = announced is not None and start_ns >= announced * SECOND
        set_back = Flags.ts_discont in Flags(container.format.flags)  # its kind allows that
        if (beyond or set_back) and not self._goes_on(container, start_ns):
            return False
        # Where there is no index (MPEG), FFmpeg may land behind the key frame: then from earlier.
        try:
            for earlier in accumulate([0, 2, 8, 32, 128]):
                ticks = max(0, start_ns - earlier * SECOND) * base.denominator
                target = self._origin + ticks // (base.numerator * SECOND)
                container.seek(target, stream=self._stream)
                if not ticks:
                    return True
                if self._arrives_by(container, start_ns):
                    container.seek(target, stream=self._stream)
                    return True
        except (av.FFmpegError, IndexError):
            self._notes.append("The file has no index to jump by; it was read from its start.")
        return False

    def _goes_on(self, container: InputContainer, start_ns: int) -> bool:
        """Whether the file's clock gets to ``start_ns`` without being set back: else FFmpeg, which
        jumps by that clock, does not find the place."""
        base, newest = self._stream.time_base, self._origin
        assert base is not None and newest is not None
        end = newest + start_ns * base.denominator // (base.numerator * SECOND)
        try:
            for packet in container.demux(self._stream):
                if packet.dts is None:
                    continue
                if packet.dts < newest - base.denominator // base.numerator:
                    return False
                newest = max(newest, packet.dts)
                if newest > end:
                    return True
        except (av.FFmpegError, IndexError):
            return False
        return False

    def _arrives_by(self, container: InputContainer, start_ns: int) -> bool:
        """Whether the first whole frame to be decoded next is not later than ``start_ns``."""
        for packet in container.demux(self._stream):
            try:
                frames = packet.decode()
            except av.FFmpegError:
                continue
            for frame in frames:
                stamp = self._stamp(frame)
                if not frame.is_corrupt and stamp is not None:
                    return stamp <= start_ns
        return False

    def time(self, frames: Iterator[VideoFrame]) -> Iterator[tuple[int, VideoFrame]]:
        """Frames with their stamps, strictly increasing.

        One whose stamp jumps waits until the next tells whether the clock was set or the stamp was
        wrong. Of wrong ones, the frames are counted as unordered.
        """
        held: tuple[int, VideoFrame] | None = None  # not moved
        for frame in self._begun_in_time(frames):
            stamp = self._stamp(frame)
            if stamp is None:
                self._note_missing_stamps()
                stamp = 0 if self.last_ns < 0 else self.last_ns + self.interval_ns
                stamp -= self._moved_ns
            if held is not None:
                before, waited = held
                held = None
                if before < stamp and (before > self._reached or stamp <= self._reached):
                    yield self._told(before), waited
                else:
                    self._count_unordered()
            if frame.is_corrupt and stamp <= self._reached:
                self._count_unordered()  # out of a damaged stream's order: no clock was set
                continue
            step = stamp - self._reached
            if self.last_ns >= 0 and not 0 < step <= max(SECOND, 10 * self.interval_ns):
                held = stamp, frame
            else:
                yield self._told(stamp), frame
        if held is not None and held[0] > self._reached:
            yield self._told(held[0]), held[1]
        elif held is not None:
            self._count_unordered()

    def _begun_in_time(self, frames: Iterator[VideoFrame]) -> Iterator[VideoFrame]:
        """``frames``, the first with stamps before the one that has the first: FFmpeg gives those
        of an RTSP stream none."""
        first: list[VideoFrame] = []
        for frame in frames:
            first.append(frame)
            base = frame.time_base or self._stream.time_base
            if frame.pts is not None and base is not None:
                for back, early in enumerate(reversed(first[:-1]), start=1):
                    early.pts = frame.pts - round(back * self.interval_ns / (base * SECOND))
                break
            if len(first) > _WITHOUT_STAMPS:
                break
        yield from first
        yield from frames

    def _count_unordered(self) -> None:
        self._state.counts.decoded += 1
        self._state.counts.unordered += 1

    @property
    def _reached(self) -> int:
        """The stamp before, as the file's clock has it now."""
        return self.last_ns - self._moved_ns

    def _told(self, stamp: int) -> int:
        """``stamp``, which is believed, of the file's clock; as one of the source's."""
        if self.last_ns < 0:
            self.first_ns = self.last_ns = stamp
            return stamp
        if stamp <= self._reached:
            back = self._reached - stamp
            self._moved_ns += back + self.interval_ns
            self._notes.append(
                f"The file's clock is set back by {back / SECOND:.1f} s at "
                f"{self.last_ns / SECOND:.1f} s, as where files are put end to end: time goes on "
                "from there."
            )
        step = stamp - self._reached
        if step <= max(SECOND, 10 * self.interval_ns):
            self.interval_ns = step
        self._steps[round(step / 1e6)] += 1
        self._longest_ns = max(self._longest_ns, (step, self.last_ns))
        self.last_ns += step
        return self.last_ns

    def _stamp(self, frame: VideoFrame) -> int | None:
        """What the file says, in nanoseconds from its first frame."""
        base = frame.time_base or self._stream.time_base
        if frame.pts is None or base is None:
            return None
        if self._origin is None or (self.last_ns < 0 and frame.pts < self._origin):
            self._origin = frame.pts
        return _rounded_ns(frame.pts - self._origin, base)

    def note_gaps(self) -> None:
        """Say where pictures are missing, by the usual step from one to the next."""
        if not self._steps:
            return
        steps = sorted(self._steps.elements())
        usual = steps[len(steps) // 2]
        near = sum(abs(step - usual) <= max(1, usual / 4) for step in steps)
        steady = 4 * near >= 3 * len(steps)  # else every step is another, as of a filmed screen
        least = 1.5 * usual + 1 if steady else max(2000, 10 * usual)
        gaps = [step for step in steps if step > least]
        if not gaps:
            return
        longest, begin = self._longest_ns
        missing = sum(round(step / max(usual, 1)) - 1 for step in gaps)
        self._notes.append(
            f"Pictures follow each other by {usual} ms as a rule, but {len(gaps)} by more, the "
            f"longest after {longest / SECOND:.1f} s, from {begin / SECOND:.1f} s on"
            + (f", as if {missing} were missing" if steady else "")
            + ": damaged, never filmed, standing for a while, or the clock was set."
        )

    def _note_missing_stamps(self) -> None:
        if not any("no time stamps" in note for note in self._notes):
            rate = f"its rate of {self._rate:g}" if self._rate else f"{ASSUMED_RATE:g} assumed"
            self._notes.append(f"The file holds no time stamps; {rate} frames/s used instead.")


def _films(container: InputContainer) -> list[VideoStream]:
    return [s for s in container.streams.video if not s.disposition & Disposition.attached_pic]


class RgbConverter:
    """RGB arrays of decoded frames: one conversion set-up for the whole file."""

    def __init__(self, size: tuple[int, int] | None) -> None:
        self._size = size
        self._reformatter = av.video.reformatter.VideoReformatter()

    def of(self, frame: VideoFrame) -> np.ndarray | None:
        """Array [height, width, 3] uint8, upright; None if the picture cannot be converted."""
        transposed, columns_back, rows_back = _orientation(frame)
        width, height = self._size or (0, 0)
        if transposed:
            width, height = height, width
        try:
            rgb = self._reformatter.reformat(
                frame, width=width or None, height=height or None, format="rgb24"
            )
            image = rgb.to_ndarray()
        except (av.FFmpegError, ValueError):
            return None
        if transposed:
            image = image.transpose(1, 0, 2)
        return np.ascontiguousarray(image[:: -1 if rows_back else 1, :: -1 if columns_back else 1])


def _orientation(frame: VideoFrame) -> tuple[bool, bool, bool]:
    """How a frame is to be shown: transposed, then its columns, and its rows, in reverse.

    Containers and streams say it by a matrix (a b u, c d v, x y w), of which the picture's point
    (p, q) goes to (a p + c q, b p + d q).
    """
    found = frame.side_data.get(Type.DISPLAYMATRIX.name)
    if not isinstance(found, SideData) or found.buffer_size < 36:
        return False, False, False
    a, b, _, c, d = (int(value) for value in np.frombuffer(bytes(found), np.int32)[:5])
    if abs(a) + abs(d) >= abs(b) + abs(c):
        return False, a < 0, d < 0
    return True, c < 0, b < 0


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
    container: InputContainer,
    stream: VideoStream,
    state: SourceState,
    limit: PictureLimit,
    stopped: Callable[[Exception], str],
    seen: _Packets | None = None,
) -> Iterator[VideoFrame]:
    """Every frame that can be decoded; packets that cannot are counted and passed over.

    ``stopped`` words the error that reading ended with, for ``state.damage``; ``seen`` is told of
    every packet.
    """
    seen = seen or _Packets()
    raw_jpegs = container.format.name == "mjpeg"  # FFmpeg does not part what a damage joins
    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets)
        except StopIteration:
            break
        except IndexError:  # PyAV's, where a stream begins inside the file
            _note_once(state, "A further stream", "begins inside the file; it is not read.")
            packets = container.demux(stream)
            continue
        except av.FFmpegError as error:
            state.damage = stopped(error)
            break
        if packet.is_corrupt:
            _note_once(
                state,
                "A packet of the video",
                "does not follow on the one before: data were lost there, or parts put together.",
            )
        if not packet.size and packet.dts is not None:
            continue  # the picture before is shown once more
        try:
            frames = packet.decode()
        except av.FFmpegError:
            seen.add(packet, None)
            _count_damaged(state, max(1, bytes(packet).count(_JPEG)) if raw_jpegs else 1)
            _note_too_large(packet, stream, state, limit)
            continue
        seen.add(packet, len(frames))
        for frame in frames:
            try:  # not every decoder asks
                limit.check(frame.width, frame.height)
            except PictureTooLargeError as error:
                _count_damaged(state)
                _note_once(state, _LEFT_OUT, f"{error}.")
                continue
            yield frame
    if state.damage is not None:
        try:
            yield from stream.codec_context.decode(None)  # what the decoder still holds
        except av.FFmpegError:
            _count_damaged(state)


def _count_damaged(state: SourceState, pictures: int = 1) -> None:
    state.counts.decoded += pictures
    state.counts.unusable += pictures


def _note_too_large(
    packet: Packet, stream: VideoStream, state: SourceState, limit: PictureLimit
) -> None:
    """Say so, once, if a packet was not decoded for the size that it announces."""
    context = stream.codec_context
    try:
        limit.check(context.width, context.height)
        open_picture(bytes(packet), limit)  # of codecs whose packets are whole pictures
    except PictureTooLargeError as error:
        _note_once(state, _LEFT_OUT, f"{error}.")
    except InvalidImageError:
        pass  # of another codec


def _note_once(state: SourceState, begin: str, rest: str) -> None:
    if not any(note.startswith(begin) for note in state.notes):
        state.notes.append(f"{begin} {rest}")


def check_video_file(path: Path) -> None:
    """Raise SourceNotFoundError or SourceUnreadableError where FFmpeg need not look."""
    if not path.exists():
        raise SourceNotFoundError(f"There is no file {path}. Check the path.")
    if path.is_dir():
        raise SourceUnreadableError(f"{path} is a folder, not a video file.")
    if not path.is_file():
        raise SourceUnreadableError(no_plain_file(path))
    if not os.access(path, os.R_OK):
        raise SourceNotFoundError(f"{path} cannot be read by this user. Change its permissions.")
    if path.stat().st_size == 0:
        raise SourceUnreadableError(
            f"{path} is empty (0 bytes): the recording or the copy did not finish. Copy or record "
            "it again."
        )
    with path.open("rb") as file:
        head = file.read(21).ljust(21)
    if (head[:4], head[8:16]) == (b"RIFF", b"WEBPVP8X") and head[20] & _ANIMATION:
        raise SourceUnreadableError(
            f"{path} is an animated WebP, which FFmpeg does not read. Convert it: python3 -c "
            "\"from PIL import Image; a = Image.open('IN.webp'); a.load(); "
            "a.save('OUT.gif', save_all=True)\""
        )


def _is_playlist(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(7) == b"#EXTM3U"


def _has_no_end(path: Path) -> bool:
    """Whether it is a playlist to which more may be written; one of playlists is not."""
    if not _is_playlist(path):
        return False
    content = path.read_bytes()
    return b"#EXT-X-ENDLIST" not in content and b"#EXT-X-STREAM-INF" not in content


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
    """Is there an ``ftyp`` but no ``moov`` among the top-level boxes of an MP4/MOV file?"""
    kinds = {kind for _, kind in islice(_mp4_boxes(path), 64)}
    return b"ftyp" in kinds and b"moov" not in kinds


def _unread_bytes(path: Path, container: str, read: int) -> int:
    """How many bytes are of a further file, which FFmpeg does not look for behind the first one:
    from its beginning, after the packets that end at byte ``read``, to the end."""
    size = path.stat().st_size
    if "mp4" in container:
        begins = [at for at, kind in _mp4_boxes(path) if kind == b"ftyp"]
        return size - begins[1] if len(begins) > 1 else 0
    magic = _MAGIC.get(container)
    if magic is None or size <= read:
        return 0
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        begin = data.find(magic, max(read, 1))
    return size - begin if begin > 0 else 0


def _mp4_boxes(path: Path) -> Iterator[tuple[int, bytes]]:
    """Place and kind of the top-level boxes of an MP4/MOV file."""
    with path.open("rb") as file:
        position, end = 0, path.stat().st_size
        while position + 8 <= end:
            file.seek(position)
            length, kind = int.from_bytes(file.read(4), "big"), file.read(4)
            if length == 1:
                length = int.from_bytes(file.read(8), "big")
            yield position, kind
            if length < 8:
                break
            position += length


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
