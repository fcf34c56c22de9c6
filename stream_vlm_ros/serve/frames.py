# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The way of a session's frames: from the camera, as chunks, to its engine's queue."""

from __future__ import annotations

import itertools
import logging
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from stream_vlm_ros.config import Settings
from stream_vlm_ros.engine.inputs.frames import reduced
from stream_vlm_ros.engine.inputs.picture_sizes import PictureLimit
from stream_vlm_ros.engine.inputs.stamp_check import check_stamp
from stream_vlm_ros.errors import (
    InvalidImageError,
    InvalidParameterError,
    InvalidTimestampError,
    StreamBusyError,
    cut,
)
from stream_vlm_ros.remote import protocol
from stream_vlm_ros.serve.events import Events, Sent
from stream_vlm_ros.serve.life_cycle import LifeCycle
from stream_vlm_ros.serve.telling import picture_of
from stream_vlm_ros.session.counters import Drop, FrameCounters
from stream_vlm_ros.session.engine_session import ChunkEnd
from stream_vlm_ros.session.ingest import FrameIngest
from stream_vlm_ros.session.news import News
from stream_vlm_ros.session.question import MAX_PICTURE_SIZE
from stream_vlm_ros.session.timed_frame import TimedFrame
from stream_vlm_ros.session.worker import EngineWorker

log = logging.getLogger(__name__)

# What a client may set for its session.
CLIENTS = (
    "sample_fps", "chunk_frames", "max_chunk_delay", "queue_size", "max_pixels", "on_time_jump",
    "time_jump_tolerance", "max_time_gap",
)  # fmt: skip
# Of these no more than the server has.
BOUNDED = ("queue_size", "max_pixels", "chunk_frames", "max_chunk_delay")
COMMITS = ("server", "client")
MAX_OPEN_FRAMES = 64  # of a chunk that is not yet complete
MAX_STEP = 1 << 32  # from one sequence to the next

_Loaded = TypeVar("_Loaded")


@dataclass(frozen=True)
class PictureBounds:
    """How large the model takes a picture.

    Attributes:
        factor: pixels of the sides of a token's patch.
        min_pixels, max_pixels: of a picture.
    """

    factor: int = 28
    min_pixels: int = 0
    max_pixels: int = 0


class _Arrived:
    """A frame as `FrameIngest` takes it; it is decoded once it is wanted."""

    def __init__(
        self, frame: protocol.FrameMessage, decode: Callable[[protocol.FrameMessage], np.ndarray]
    ) -> None:
        self.sent = Sent(frame.sequence, frame.stamp_ns)
        self.bytes = len(frame.pixels)
        self._frame, self._decode = frame, decode

    @property
    def stamp_ns(self) -> int:
        return self.sent.stamp_ns

    def read(self) -> tuple[Any, np.ndarray]:
        return self.sent, self._decode(self._frame)


class Frames:
    """What a camera sends, on its way into the memory; safe to use from several threads.

    Args:
        name: of the session, for the log.
        settings: of the server, which bound those that a client sets.
        life: says whether frames are taken.
        worker: takes the chunks.
        counters: of frames; the worker has the same.
        events: tells what becomes of frames.
        news: tells what the log is told.
        touch: called for whatever comes.
        bounds: gives those of pictures.
        max_held_bytes: of frames on their way, as they came or decoded.

    Attributes:
        settings: that hold now.
        commit: "server": chunks are gathered here; "client": `append` and `commit_open` say what
            one is.
        limit: of a picture that is decoded.
        accepted: the newest frame that is, or was, on its way into the memory.
    """

    def __init__(
        self,
        *,
        name: str,
        settings: Settings,
        life: LifeCycle,
        worker: EngineWorker,
        counters: FrameCounters,
        events: Events,
        news: News,
        touch: Callable[[], None],
        bounds: Callable[[], PictureBounds],
        max_held_bytes: int,
    ) -> None:
        self.settings, self.max_held_bytes = settings, max_held_bytes
        self.commit = "server"
        self.accepted: Sent | None = None
        self._server_settings, self._bounds = settings, bounds
        self._life, self._worker, self._events = life, worker, events
        self._counters, self._touch = counters, touch
        self.limit = PictureLimit(settings.max_decoded_megapixels)
        self._lock = threading.RLock()  # of what is on its way to the worker
        self._is_loading = False  # another memory
        self._open: list[TimedFrame] = []  # sent, and not yet said to be a chunk
        self._sequence = 0  # of the frame that came last
        self._arrived: weakref.WeakSet[_Arrived] = weakref.WeakSet()  # not yet decoded
        # Decoded. Not by sequence: after a new connection a frame is sent again, while its first
        # picture may still be referred to.
        self._pictures: weakref.WeakValueDictionary[int, np.ndarray] = weakref.WeakValueDictionary()
        self._picture_numbers = itertools.count()
        self._ingest = FrameIngest(
            settings,
            counters,
            deliver=worker.append,
            restart=lambda: worker.reset(Drop.TIME_JUMP),
            report=lambda cause, words: news.tell(
                cause.cause, f"session {name}: {words}", log.info
            ),
            dropped=self._on_dropped,
            admitted=self._accept,
        )

    # -- frame by frame ----------------------------------------------------------------------

    def receive(self, frame: protocol.FrameMessage) -> None:
        """Take a frame in: into the open chunk, by the settings (``commit`` "server"), or to wait
        for `commit_open`. It is decoded here, or not at all.

        Raises ProtocolError for a sequence that is not higher than the last one, or far higher.
        """
        with self._lock:
            if (arrived := self._arrive(frame)) is None:
                return
            held = self.held_bytes
            if held and held + arrived.bytes > self.max_held_bytes:
                words = f"frames of {held / 1e6:.0f} MB are on their way into the memory already"
                self._refuse(arrived, Drop.OVERFLOW, words)
                return
            self._arrived.add(arrived)
            if self.commit == "server":
                self._ingest.receive(arrived, time.time_ns(), time.monotonic_ns())
            else:
                self._gather(arrived)

    def drop(self, frame: protocol.FrameMessage, words: str) -> None:
        """Take note of a frame that cannot be decoded now. Raises as `receive`."""
        with self._lock:
            if (arrived := self._arrive(frame)) is not None:
                self._refuse(arrived, Drop.OVERFLOW, words)

    def _arrive(self, frame: protocol.FrameMessage) -> _Arrived | None:
        """None: frames are not taken. Raises as `receive`."""
        self._touch()
        if frame.sequence <= self._sequence:
            raise protocol.ProtocolError(
                f"frame {frame.sequence} came after frame {self._sequence}: sequences count up "
                "within a session"
            )
        if frame.sequence > self._sequence + MAX_STEP:
            raise protocol.ProtocolError(
                f"frame {frame.sequence} came after frame {self._sequence}: a gap in the "
                f"sequences is of {MAX_STEP:,} at most"
            )
        self._sequence = frame.sequence
        if not self._life.takes_frames:
            return None
        return _Arrived(frame, self._decoded)

    def _gather(self, arrived: _Arrived) -> None:
        """Let a frame wait until it is said to be of a chunk."""
        if len(self._open) >= MAX_OPEN_FRAMES:
            words = f"{len(self._open)} frames wait already for input_frame_buffer.commit"
            self._refuse(arrived, Drop.OVERFLOW, words)
            return
        try:
            check_stamp(arrived.stamp_ns)
            sent, image = arrived.read()
        except InvalidTimestampError as fault:
            self._refuse(arrived, Drop.INVALID_STAMP, str(fault))
        except InvalidImageError as fault:
            self._refuse(arrived, Drop.INVALID_IMAGE, str(fault))
        else:
            self._open.append(TimedFrame(sent.stamp_ns, image, sent))

    def _refuse(self, arrived: _Arrived, cause: Drop, words: str) -> None:
        self._counters.receive()
        self._counters.drop(cause)
        self._on_dropped(arrived, cause, words)

    def _accept(self, arrived: _Arrived) -> None:
        self.accepted = arrived.sent

    def _on_dropped(self, what: _Arrived | TimedFrame, cause: Drop, words: str) -> None:
        sent: Sent = what.header if isinstance(what, TimedFrame) else what.sent
        self._events.frame_dropped(sent, cause, words)

    def _decoded(self, frame: protocol.FrameMessage) -> np.ndarray:
        """Its picture, no larger than the model takes it."""
        picture = picture_of(frame, self.limit)
        bounds = self._bounds()
        limits = [one for one in (bounds.max_pixels, self.settings.max_pixels) if one]
        high = min(limits, default=picture.size)
        if self.settings.has_history:  # pictures are kept, and shown
            high = max(high, MAX_PICTURE_SIZE**2)
        picture = reduced(picture, bounds.factor, bounds.min_pixels, high)
        self._pictures[next(self._picture_numbers)] = picture
        return picture

    @property
    def held_bytes(self) -> int:
        """Of frames on their way into the memory: as they came, or decoded."""
        with self._lock:
            arrived = sum(one.bytes for one in self._arrived)
        pictures = [reference() for reference in self._pictures.valuerefs()]
        return arrived + sum(one.nbytes for one in pictures if one is not None)

    # -- chunk by chunk ----------------------------------------------------------------------

    def commit_open(self) -> None:
        """What was received since the last one is a chunk. Raises ProtocolError where the server
        gathers chunks itself."""
        if self.commit != "client":
            raise protocol.ProtocolError(
                'this session gathers chunks itself; session.update with "commit": "client" '
                "changes that"
            )
        with self._lock:
            if self._life.takes_frames:
                self.append(self._take_open())

    def append(self, frames: list[TimedFrame]) -> None:
        """Take a chunk in, as it is; each frame's header is its `Sent`."""
        if not frames:
            return
        with self._lock:
            self._touch()
            self._count(frames)
            if self._is_loading:
                self._drop(frames, Drop.INACTIVE, "a memory is being loaded")
            elif not self._life.takes_frames:
                self._drop(frames, Drop.INACTIVE, "the session is being ended")
            else:
                self._worker.append(frames)

    def flush_overdue(self) -> None:
        """Let no chunk wait longer than the settings say; to be called every now and then."""
        self._ingest.flush_overdue(time.monotonic_ns())

    def clear(self) -> None:
        """Drop the frames that wait to become a chunk, and the chunks that wait."""
        with self._lock:
            self._drop_open(Drop.RESET)
            self.drop_waiting()

    def drop_waiting(self) -> None:
        """Drop what was accepted, and is not in the memory yet."""
        self._ingest.clear(Drop.RESET)
        self._worker.drop_chunks(Drop.RESET)

    def begin_connection(self) -> None:
        """Who connects sends on behind the newest accepted frame: those that wait to be said to be
        a chunk were not accepted, and are forgotten."""
        with self._lock:
            self._take_open()
            self._sequence = 0 if self.accepted is None else self.accepted.sequence

    def _drop_open(self, cause: Drop) -> None:
        if frames := self._take_open():
            self._count(frames)
            self._drop(frames, cause)

    def _take_open(self) -> list[TimedFrame]:
        frames, self._open = self._open, []
        return frames

    def _count(self, frames: list[TimedFrame]) -> None:
        for _ in frames:
            self._counters.receive()
        self.accepted = frames[-1].header

    def _drop(self, frames: list[TimedFrame], cause: Drop, words: str = "") -> None:
        self._counters.drop(cause, len(frames))
        self._events.chunk_ended(ChunkEnd(frames, cause, words))

    # -- in step with the memory -------------------------------------------------------------

    def begin(self, newest_ns: int | None) -> None:
        """Take frames, behind the newest one in memory."""
        self._ingest.resume(newest_ns)
        self._ingest.active = True

    def stop(self) -> None:
        """Frames are not taken any more: what was accepted is a chunk, and the rest is sent again
        to who has the session next."""
        with self._lock:
            self._take_open()
            self._ingest.pause()
            self._ingest.active = False

    def go_on(self) -> None:
        """Take frames again, after `stop`."""
        with self._lock:
            self._ingest.paused = False
            self._ingest.active = not self._is_loading

    def reset(self, cause: Drop) -> tuple[Future[None], Sent | None]:
        """Drop what waits, and empty the memory when its turn comes; done then, and the newest
        frame that was accepted before."""
        with self._lock:
            self._drop_open(cause)
            self._ingest.clear(cause)
            return self._worker.reset(cause), self.accepted

    def load(self, begin: Callable[[], Future[_Loaded]]) -> Future[_Loaded]:
        """Put another memory in the place of the present one; frames that come meanwhile are
        dropped. Raises StreamBusyError, and what ``begin`` does."""
        with self._lock:
            if self._is_loading:
                raise StreamBusyError("a memory is being loaded: try again when that is done")
            loading = begin()
            self._is_loading, self._ingest.active = True, False
        loading.add_done_callback(self._on_loaded)
        return loading

    def _on_loaded(self, loading: Future[Any]) -> None:
        with self._lock:
            if not loading.cancelled() and loading.exception() is None:
                self._ingest.go_on_behind(self._worker.memory.latest_ns)
            self._is_loading, self._ingest.active = False, not self._ingest.paused

    # -- settings ----------------------------------------------------------------------------

    def update(self, values: Mapping[str, Any]) -> None:
        """Change settings: those of `CLIENTS`, and ``commit``. Raises InvalidParameterError, having
        changed nothing."""
        changes = dict(values)
        commit = changes.pop("commit", self.commit)
        if commit not in COMMITS:
            raise InvalidParameterError(f"commit must be one of {', '.join(COMMITS)}: {commit!r}")
        if alien := sorted(set(changes) - {*CLIENTS}):
            raise InvalidParameterError(
                f"{cut(', '.join(alien))}: a session takes {', '.join((*CLIENTS, 'commit'))}"
            )
        with self._lock:
            settings = self.settings.changed(changes)
            for name in BOUNDED:
                limit, wanted = getattr(self._server_settings, name), getattr(settings, name)
                if limit and not 0 < wanted <= limit:
                    raise InvalidParameterError(f"{name} is at most {limit} here, not {wanted}")
            if commit != self.commit and self._open:
                raise InvalidParameterError("commit cannot be changed while frames wait for it")
            if settings.max_pixels != self.settings.max_pixels:
                self._worker.limit_pixels("max_pixels", settings.max_pixels)
            if commit != self.commit:
                self._ingest.deliver_open()
                self.commit = commit
            self.settings = settings
            self._ingest.apply(settings)
            self._worker.queue_size = settings.queue_size

    @property
    def clients_settings(self) -> dict[str, Any]:
        """Those that a client may change."""
        return {name: getattr(self.settings, name) for name in CLIENTS} | {"commit": self.commit}

    @property
    def time_jumps(self) -> int:
        """How often a new memory began since time had jumped."""
        return self._ingest.time_jumps
