# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""One camera of the node: its images, its memory, and what is told of it."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rclpy.exceptions import InvalidTopicNameException
from stream_vlm.msg import CacheStatus

from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import (
    FrameStoreError,
    InvalidParameterError,
    InvalidTimestampError,
    StreamVlmError,
    cut,
)
from stream_vlm_ros.machine import used_bytes
from stream_vlm_ros.node import health, interfaces
from stream_vlm_ros.node.annotated_image import AnnotatedImage
from stream_vlm_ros.node.answer_delta import AnswerDelta
from stream_vlm_ros.node.error_log import LOADED, traced
from stream_vlm_ros.node.image_input import ImageInput, RCLError
from stream_vlm_ros.node.image_thread import ImageThread
from stream_vlm_ros.node.loading import remote_worker
from stream_vlm_ros.node.publishing import publish_on, unpublish
from stream_vlm_ros.node.serialized_image import SerializedImage
from stream_vlm_ros.processes.ros_process import END_TIMEOUT
from stream_vlm_ros.session.counters import Drop
from stream_vlm_ros.session.engine_thread import EngineThread
from stream_vlm_ros.session.ingest import FrameIngest
from stream_vlm_ros.session.memory_keeper import MemoryKeeper
from stream_vlm_ros.session.question import NotActiveError, Outcome
from stream_vlm_ros.session.timed_frame import TimedFrame
from stream_vlm_ros.session.worker import EngineWorker

if TYPE_CHECKING:
    from stream_vlm_ros.engine import InferenceEngine
    from stream_vlm_ros.node.pose_input import PoseInput
    from stream_vlm_ros.node.stream_vlm_node import StreamVlmNode
    from stream_vlm_ros.remote.link import LinkThread
    from stream_vlm_ros.remote.worker import RemoteKeeper, RemoteWorker


class Camera:
    """From the configuring of ``node`` to its cleaning up.

    Args:
        name: "" for the only one of a node.
        settings: of this camera.
        load: builds its engine, in the thread of the engines.
        thread: of the engines, or of the connections to a server that has them.

    Attributes:
        worker: its engine, and the queue in front of it.
        remote: the same, if the engine is at a server.
        figures: what is counted.
        keeper: its saved memories.
        ingest: the way of its frames.
        source, annotated, delta, poses: what it subscribes to and publishes, while it is open.
        answers, errors: how many questions have been answered, and how many ended in an error.
    """

    def __init__(
        self,
        node: StreamVlmNode,
        name: str,
        settings: Settings,
        load: Callable[[Settings], InferenceEngine],
        thread: EngineThread | LinkThread,
    ) -> None:
        self.name, self.settings = name, settings
        self.figures = health.Figures()
        self.answers = self.errors = 0
        self.ingest: FrameIngest
        self.source: ImageInput | None = None
        self.annotated: AnnotatedImage | None = None
        self.delta: AnswerDelta | None = None
        self.poses: PoseInput | None = None
        self._node = node
        self._images: ImageThread | None = None
        self._status: Any = None
        self._loads = 0
        self._silence_news = health.SilenceNews()
        self._check_topics()
        self.worker: EngineWorker | RemoteWorker
        self.remote: RemoteWorker | None = None
        listeners: dict[str, Any] = dict(
            changed=self.publish_status,
            report=self._on_engine_fault,
            why_empty=self._why_empty,
            pause_closed=self._on_pause_closed,
            make_header=interfaces.to_header,
        )
        if isinstance(thread, EngineThread):
            self.worker = EngineWorker(
                functools.partial(self._load, load),
                self.figures.counters,
                settings.queue_size,
                settings.max_questions,
                thread=thread,
                weight=settings.weight,
                **listeners,
            )
        else:
            self.worker = self.remote = remote_worker(
                settings,
                ".".join([*node.get_fully_qualified_name().split("/")[1:], *filter(None, [name])]),
                self.figures.counters,
                thread,
                now_ns=node.now_ns,
                tell=self._on_connection,
                lost=lambda words: self._tell("gap", words, self._node.warn),
                taken_up=lambda newest_ns: self.ingest.resume(newest_ns),
                **listeners,
            )
            if warning := self.remote.warning:
                node.warn(self.said(warning))
        self.ingest = FrameIngest(
            settings,
            self.figures.counters,
            deliver=self.worker.append,
            restart=lambda: self.worker.reset(Drop.TIME_JUMP),
            report=self._on_refused_frame,
            taken=self._on_taken_frame,
        )
        self.keeper = self._make_keeper()

    def _make_keeper(self) -> MemoryKeeper | RemoteKeeper:
        if isinstance(self.worker, EngineWorker):
            now_ns, unsaved = self._node.now_ns, self._on_unsaved
            return MemoryKeeper(self.worker, lambda: self.settings, now_ns, unsaved)
        from stream_vlm_ros.remote.worker import RemoteKeeper

        return RemoteKeeper(self.worker, self._node.now_ns)

    def _load(self, load: Callable[[Settings], InferenceEngine]) -> InferenceEngine:
        """Build the engine; what it warns of meanwhile is said to be this camera's."""
        before = LOADED.set(self.name)
        try:
            return load(self.settings)
        finally:
            LOADED.reset(before)

    def topic(self, name: str) -> str:
        """The full name of what this camera alone has, such as ``~/front/reset``."""
        return "/".join(part for part in ("~", self.name, name) if part)

    def said(self, words: str) -> str:
        """Words for the log."""
        return f"{self.name}: {words}" if self.name else words

    # From configuring to cleaning up --------------------------------------------------------------

    def wait_until_loaded(self) -> None:
        """Raises what loading raised, and NotActiveError if the process is to end."""
        while not wait([self.worker.loaded], timeout=0.1).done:
            if not self._node.context.ok():
                raise NotActiveError("asked to end while the model was being loaded")
        if plan := self.worker.loaded.result():
            self._node.info(self.said(plan))

    def open(self) -> None:
        """Put everything on the graph; the engine is loaded."""
        node, worker = self._node, self.worker
        if self.settings.load_memory_at_start:
            words = self.keeper.load_at_start()
            told = cut(self.said(words))
            (node.error if self.keeper.state.error else node.info)(told)
        if self.name:
            self._status = publish_on(
                node, CacheStatus, self.topic("cache_status"), interfaces.latched()
            )
        self.annotated = AnnotatedImage(node, self)
        self.delta = AnswerDelta(node, self)
        if worker.memory.chunks or worker.memory.history_ns is not None:
            self.ingest.go_on_behind(worker.memory.latest_ns)

    def look(self) -> None:
        """Subscribe, when all else is there."""
        node = self._node
        if self.settings.pose_topic:
            self.poses = self._read_poses()
        self.source = ImageInput(node, self.settings)
        self._images = ImageThread(
            self.source, node.context, self._on_image, self._on_tick, self._report_fault
        )
        self._images.start()
        node.info(self.said(f"waiting for images on {self.source.wish}"))

    def activate(self) -> None:
        """Take images."""
        self.figures.monitor = health.InputMonitor()
        self.ingest.resume(self.worker.memory.latest_ns)
        self.ingest.paused = False
        self.ingest.active = True

    def deactivate(self) -> None:
        """Take no images, and end all questions; the memory stays."""
        self.ingest.active = False
        self.ingest.clear(Drop.RESET)
        self.worker.abandon(Drop.RESET, NotActiveError("the node was deactivated"))

    @contextmanager
    def loading(self) -> Iterator[None]:
        """While a memory is being loaded no frame is taken."""
        self._loads += 1  # calls that have not ended; those beyond the first are refused
        self.ingest.active = False
        try:
            yield
        finally:
            self._loads -= 1
            self.ingest.active = not self._loads and self._node.state == "active"

    def close_input(self, timeout: float | None) -> None:
        """Unsubscribe."""
        images, self._images = self._images, None
        if images is not None:
            images.stop(timeout)
        self.source = None
        if self.poses is not None:
            self.poses.destroy()
        self.ingest.active = False
        self.ingest.clear(Drop.RESET)

    def save_at_end(self, timeout: float | None) -> None:
        """Save the memory, if the settings say so, when nothing more is asked."""
        self.worker.abandon(Drop.RESET, NotActiveError("the node is being stopped"))
        self.keeper.save_at_end(timeout)
        self.keeper.close()

    def close(self) -> None:
        """Take everything off the graph; the engine is gone."""
        poses, self.poses = self.poses, None
        if poses is not None:
            poses.track.close()
        annotated, self.annotated = self.annotated, None
        if annotated is not None:
            annotated.destroy(END_TIMEOUT)
        delta, self.delta = self.delta, None
        if delta is not None:
            delta.destroy()
        status, self._status = self._status, None
        if status is not None:
            unpublish(self._node, status)

    def apply(self, settings: Settings) -> None:
        """Work with these settings from now on; raises InvalidParameterError."""
        if (limit := settings.pixel_limit) != self.settings.pixel_limit:
            self.worker.limit_pixels(*limit)
        self.settings = settings
        self.ingest.apply(settings)
        self.worker.queue_size = settings.queue_size
        self.worker.max_questions = settings.max_questions
        self.worker.weight = settings.weight
        if self.remote is not None:
            self.remote.pack_as(settings)
        if (poses := self.poses) is not None:
            poses.track.tolerance = settings.pose_tolerance

    def _check_topics(self) -> None:
        """Before a model is loaded, and a folder taken, for nothing."""
        for name, topic in (
            ("image_topic", self.settings.image_topic or "image"),
            ("pose_topic", self.settings.pose_topic or "pose"),
        ):
            try:
                self._node.resolve_topic_name(topic)
            except (RCLError, InvalidTopicNameException):
                words = f"{name} is no name of a topic: {cut(repr(topic))}"
                raise InvalidParameterError(self.said(words)) from None

    def _read_poses(self) -> PoseInput:
        """Keep poses as long as frames, and where these are kept."""
        from stream_vlm_ros.history.poses import PoseTrack  # with torch, which is loaded by now
        from stream_vlm_ros.node.pose_input import PoseInput

        settings = self.settings
        make = functools.partial(
            PoseTrack,
            max_seconds=settings.frame_store_hours * 3600,
            tolerance=settings.pose_tolerance,
        )
        store = settings.frame_store
        folder = Path(os.path.expanduser(store)) if store else None
        try:
            track = make(folder)
        except FrameStoreError as refusal:
            self._node.error(self.said(f"poses are kept in memory alone: {cut(str(refusal))}"))
            track = make()
        self.worker.poses = track
        return PoseInput(self._node, settings, track)

    # Images ---------------------------------------------------------------------------------------

    def _on_image(self, arrival: SerializedImage) -> None:
        now_ns = self._node.now_ns()
        running_ns = self.figures.clock.of(now_ns)
        self.figures.monitor.record(_stamp_of(arrival), running_ns)
        self.ingest.receive(arrival, now_ns, running_ns)

    def _on_tick(self) -> None:
        if (poses := self.poses) is not None:
            poses.take()
        self.ingest.flush_overdue(self.figures.clock.of(self._node.now_ns()))

    def _on_taken_frame(self, frame: TimedFrame) -> None:
        if (annotated := self.annotated) is not None:
            annotated.take(frame)

    # What is reported -----------------------------------------------------------------------------

    def _report_fault(self, where: str, fault: BaseException) -> None:
        self._node.report_fault(self.said(where), fault)

    def _on_refused_frame(self, cause: Drop, words: str) -> None:
        self.figures.refuse(cause, words)
        self._tell(cause.value, words, self._node.warn)

    def _on_engine_fault(self, fault: BaseException) -> None:
        if self.worker.ended is not None:
            self._node.fatal(self.said(f"{self.worker.ended}\n{traced(fault)}"))
        elif isinstance(fault, StreamVlmError):
            self.figures.refuse(Drop.ERROR, cut(str(fault)))
            words = f"a chunk was refused, the stream continues: {cut(str(fault))}"
            self._tell("chunk", words, self._node.error)
        else:
            self._report_fault("the engine's thread", fault)

    def _on_connection(self, good: bool, words: str) -> None:
        """The connection to a server came or went."""
        self._tell("connection", words, self._node.info if good else self._node.warn)

    def _on_pause_closed(self, seconds: float) -> None:
        words = (
            f"frames came after a pause: for the model {seconds:.1f} s of it are left out "
            "(max_pause); stamps stay true"
        )
        self._tell("pause", words, self._node.info)

    def _on_unsaved(self, words: str) -> None:
        """A memory could not be saved or loaded, and nobody waits to be told."""
        if self._node.context.ok():
            self._node.error(cut(self.said(words)))

    def _tell(self, kind: str, words: str, log: Callable[[str], None]) -> None:
        self._node.news.tell(self.said(kind), self.said(words), log)

    def _why_empty(self) -> str:
        """Why a question finds no image in memory; asked for in the engine's thread."""
        if self.paused:
            return f"it is paused, and drops images until {self.topic('resume')}"
        topic = source.topic if (source := self.source) is not None else "image"
        return self.figures.why_empty(topic, self._node.now_ns(), self.settings.no_image_timeout)

    def count(self, outcome: Outcome) -> None:
        """A question was answered, or not."""
        if outcome.error is None:
            self.answers += 1
        else:
            self.errors += 1

    # What is told ---------------------------------------------------------------------------------

    @property
    def paused(self) -> bool:
        """Whether images are dropped until ``~/resume``."""
        return self.ingest.paused

    def cache_status(self) -> CacheStatus:
        """What ``~/cache_status`` says of it now."""
        counts = self.figures.counters.snapshot()
        counts["queue_depth"] = self.worker.depth
        counts["resets"] = self.worker.resets
        counts["time_jumps"] = self.ingest.time_jumps
        return interfaces.to_cache_status(
            self.worker.memory,
            self._node.state,
            counts,
            self.keeper.state,
            paused=self.paused,
            source=self.name,
            connection=self.remote.connection if self.remote is not None else None,
        )

    def publish_status(self) -> None:
        """Tell the memory and the counters, now."""
        status = self.cache_status()
        if (own := self._status) is not None:
            self._node.publish(own, status)
        self._node.publish_status(status)

    def diagnose(self) -> Iterator[tuple[health.Health, str]]:
        """What /diagnostics says of it, each with what it is about."""
        device = self.worker.device or self.settings.device
        yield self._memory_health(device), device
        if self.settings.memory_folder or self.remote is not None:
            yield health.saved_memory_health(self.keeper.state, self._node.now_ns()), device
        if (source := self.source) is not None:  # a cleanup may come in another thread
            facts = self._input_facts(source)
            if news := self._silence_news.of(facts):
                self._node.warn(self.said(news))
            yield health.input_health(facts), facts.topic

    def _memory_health(self, device: str) -> health.Health:
        worker, node = self.worker, self._node
        memory = worker.memory
        its = self.remote.connection if self.remote is not None else None
        here = worker.device if its is None else ""  # what is used elsewhere is not known here
        return health.memory_health(
            health.MemoryFacts(
                state=node.state,
                failure=node.failure,
                engine_fault=str(worker.ended or ""),
                chunk_fault=worker.last_fault,
                history_fault=memory.history_fault,
                model=str(node.card) if its is None else its.model or "not known yet",
                device=device,
                server="" if its is None else its.where,
                lost_why="" if its is None else its.why,
                lost_for=0.0 if its is None else its.lost_for(node.now_ns()),
                gap="" if its is None else its.gap,
                length=memory.length,
                cap=memory.cap,
                memory_bytes=memory.memory_bytes,
                used_bytes=used_bytes(here) if here else 0,
                chunks=memory.chunks,
                evictions=memory.evictions,
                closed_pauses=memory.closed_pauses,
                closed_seconds=memory.closed_seconds,
                queue_depth=worker.depth,
                answers=self.answers,
                errors=self.errors,
            )
        )

    def _input_facts(self, source: ImageInput) -> health.InputFacts:
        return self.figures.input_facts(
            source,
            self._node.now_ns(),
            self.settings,
            active=self._node.state == "active",
            paused=self.paused,
            arrival_timed=bool(self.ingest.arrival_timed),
            simulated_time=bool(self._node.get_parameter("use_sim_time").value),
            lost_why="" if self.remote is None else self.remote.connection.why,
        )


def _stamp_of(arrival: SerializedImage) -> int:
    """An image's own stamp in nanoseconds, 0 where there is none; whether it is used is for the
    ingest."""
    with suppress(InvalidTimestampError):
        return arrival.stamp_ns or 0
    return 0
