# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The node ``stream_vlm``: images in, questions answered, memory and health reported."""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import wait
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import InvalidHandle, InvalidTopicNameException
from rclpy.lifecycle import TransitionCallbackReturn
from stream_vlm.msg import CacheStatus

from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import (
    FrameStoreError,
    InvalidParameterError,
    InvalidTimestampError,
    StreamVlmError,
    below,
    cut,
    runs_here,
)
from stream_vlm_ros.factory import card_of
from stream_vlm_ros.model_card import ModelCard
from stream_vlm_ros.node import health, interfaces
from stream_vlm_ros.node.annotated_image import AnnotatedImage
from stream_vlm_ros.node.ask_server import LATCHED, AskServer
from stream_vlm_ros.node.error_log import ErrorLog, Forwarding, News, traced
from stream_vlm_ros.node.health import InputMonitor
from stream_vlm_ros.node.image_input import ImageInput, RCLError
from stream_vlm_ros.node.image_thread import ImageThread
from stream_vlm_ros.node.lifecycle import TellingLifecycleNode, transition
from stream_vlm_ros.node.loading import load_engine, pixel_limit, release_memory
from stream_vlm_ros.node.memory_services import MemoryServices
from stream_vlm_ros.node.parameters import (
    PARAMETERS,
    declare,
    read,
    refuse_unknown,
    unknown_parameter,
)
from stream_vlm_ros.node.pause_services import PauseServices
from stream_vlm_ros.node.serialized_image import SerializedImage
from stream_vlm_ros.processes.ros_process import END_TIMEOUT
from stream_vlm_ros.session.answer_log import AnswerLog, AnswerLogError
from stream_vlm_ros.session.counters import Drop
from stream_vlm_ros.session.ingest import FrameIngest
from stream_vlm_ros.session.memory_keeper import NOTHING_SAVED, MemoryKeeper, SavedState
from stream_vlm_ros.session.worker import EngineWorker, MemorySummary, NotActiveError
from stream_vlm_ros.setting import CONFIGURE

if TYPE_CHECKING:
    from stream_vlm_ros.engine import InferenceEngine
    from stream_vlm_ros.node.pose_input import PoseInput

STOP_TIMEOUT = 3.0  # s, for what the engine is doing at the moment
SAVE_TIMEOUT = 60.0  # s, for saving a memory when the process ends
NOT_LOADED = ModelCard("not loaded")


class StreamVlmNode(TellingLifecycleNode):
    """A lifecycle node around :class:`EngineWorker`.

    Diagnostics and the node's own timers live from its birth to its end, by the steady clock, so
    that a node that fails to configure, or waits for simulated time, can still say so. Everything
    else is made in ``on_configure`` and destroyed in ``on_cleanup``.

    Args:
        load: builds the engine from the parameters, in the worker's thread.
        arguments: of the process, see :func:`refuse_unknown`.
    """

    def __init__(
        self,
        *,
        load: Callable[[Settings], InferenceEngine] = load_engine,
        arguments: Sequence[str] = (),
        **node_arguments: Any,
    ) -> None:
        super().__init__("stream_vlm", **node_arguments)
        self._news = News()
        self._warnings: Forwarding | None = None
        self.error_log = ErrorLog(lambda text: self.get_logger().error(text), self._news)
        self._load = load
        self._worker: EngineWorker | None = None
        self._card = NOT_LOADED
        self._ingest: FrameIngest | None = None
        self._input: ImageInput | None = None
        self._images: ImageThread | None = None
        self.poses: PoseInput | None = None
        self.annotated: AnnotatedImage | None = None
        self._status: Any = None  # publishes ~/cache_status
        self.asking: AskServer | None = None
        self.keeper: MemoryKeeper | None = None
        self._answer_log: AnswerLog | None = None
        self._memory_services: MemoryServices | None = None
        self._pause_services: PauseServices | None = None
        self._clear_figures()

        self.parameters = Settings.of(declare(self, PARAMETERS.values()))
        refuse_unknown(self, arguments)
        self.add_on_set_parameters_callback(self._on_set_parameters)

        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics = self.create_publisher(DiagnosticArray, "/diagnostics", 10)
        self._status_timer = self._every(
            self.parameters.status_period, self._report_status, MutuallyExclusiveCallbackGroup()
        )
        if self.parameters.autostart:
            self._autostart = self._every(
                0.0, self._start_by_itself, MutuallyExclusiveCallbackGroup()
            )

    # Lifecycle ------------------------------------------------------------------------------------

    @transition("inactive")
    def on_configure(self) -> None:
        """Load the model and make everything that is on the graph."""
        try:
            self._configure()
        except BaseException:
            self._tear_down()
            raise

    @transition("active")
    def on_activate(self) -> None:
        """Take images and questions."""
        assert self._ingest is not None and self._worker is not None
        self.figures.monitor = InputMonitor()
        self._ingest.resume(self._worker.memory.latest_ns)
        self._ingest.paused = False
        self._ingest.active = True

    @transition("inactive")
    def on_deactivate(self) -> None:
        """Stop taking images and questions; the memory stays."""
        assert self._ingest is not None and self._worker is not None
        self._ingest.active = False
        self._ingest.clear(Drop.RESET)
        self._worker.abandon(Drop.RESET, NotActiveError("the node was deactivated"))

    @transition("unconfigured")
    def on_cleanup(self) -> None:
        """Give everything back, the model's memory too."""
        self._tear_down()

    @transition("finalized")
    def on_shutdown(self) -> None:
        """Give everything back for good."""
        self._tear_down()

    @transition("unconfigured")
    def on_error(self) -> None:
        """Back to the beginning."""
        self._tear_down()

    def _configure(self) -> None:
        self.parameters = Settings.of(read(self, PARAMETERS.values()))
        self._check_pose_topic()
        self._clear_figures()
        self._warnings = Forwarding(self._warn)
        worker = self._make_worker()
        self._wait_until_loaded(worker)
        self.keeper = keeper = MemoryKeeper(
            worker, lambda: self.parameters, self._now_ns, self._on_unsaved
        )
        if self.parameters.load_memory_at_start:
            words = keeper.load_at_start()
            (self._on_unsaved if keeper.state.error else self._info)(cut(words))
        self._status = self.create_publisher(CacheStatus, "~/cache_status", LATCHED)
        # From here on the reports of another thread use what was made above.
        self.annotated = AnnotatedImage(self)
        self._ingest = FrameIngest(
            self.parameters,
            self.figures.counters,
            deliver=worker.append,
            restart=lambda: worker.reset(Drop.TIME_JUMP),
            report=self._on_refused_frame,
            taken=self.annotated.take,
        )
        if worker.memory.chunks or worker.memory.history_ns is not None:
            self._ingest.go_on_behind(worker.memory.latest_ns)
        self._answer_log = self._open_answer_log()
        self.asking = AskServer(self, worker, self._ingest, self._answer_log)
        self._memory_services = MemoryServices(self, keeper, self._ingest)
        self._pause_services = PauseServices(self, self._ingest)
        if self.parameters.pose_topic:
            self.poses = self._read_poses(worker)
        self._input = ImageInput(self, self.parameters)
        self._images = ImageThread(
            self._input, self.context, self._on_image, self._on_tick, self.report_fault
        )
        self._images.start()
        self.get_logger().info(f"waiting for images on {self._input.wish}")
        self.publish_status()

    def _open_answer_log(self) -> AnswerLog:
        file, max_bytes = self.parameters.answers_file, self.parameters.answers_megabytes << 20
        make = functools.partial(AnswerLog, max_bytes=max_bytes, report=self._on_unlogged)
        try:
            return make(Path(os.path.expanduser(file)) if file else None)
        except AnswerLogError as refusal:
            self.get_logger().error(f"past answers are kept in memory alone: {refusal}")
            return make(None)

    def _on_unlogged(self, fault: Exception) -> None:
        """An answer could not be kept; it was given all the same."""
        self._news.tell("answers", f"an answer is not kept: {fault}", self._error)

    def _check_pose_topic(self) -> None:
        """Before a model is loaded, and a folder taken, for nothing."""
        try:
            self.resolve_topic_name(self.parameters.pose_topic or "pose")
        except (RCLError, InvalidTopicNameException):
            words = f"pose_topic is no name of a topic: {cut(repr(self.parameters.pose_topic))}"
            raise InvalidParameterError(words) from None

    def _read_poses(self, worker: EngineWorker) -> PoseInput:
        """Keep poses as long as frames, and where these are kept."""
        from stream_vlm_ros.history.poses import PoseTrack  # with torch, which is loaded by now
        from stream_vlm_ros.node.pose_input import PoseInput

        parameters = self.parameters
        make = functools.partial(
            PoseTrack,
            max_seconds=parameters.frame_store_hours * 3600,
            tolerance=parameters.pose_tolerance,
        )
        store = parameters.frame_store
        folder = Path(os.path.expanduser(store)) if store else None
        try:
            track = make(folder)
        except FrameStoreError as refusal:
            self.get_logger().error(f"poses are kept in memory alone: {cut(str(refusal))}")
            track = make()
        worker.poses = track
        return PoseInput(self, parameters, track)

    def _make_worker(self) -> EngineWorker:
        self._worker = EngineWorker(
            functools.partial(self._load, self.parameters),
            self.figures.counters,
            self.parameters.queue_size,
            self.parameters.max_questions,
            self.parameters.ingest_share,
            changed=self.publish_status,
            report=self._on_engine_fault,
            why_empty=self._why_empty,
            pause_closed=self._on_pause_closed,
            make_header=interfaces.to_header,
        )
        self._card = card_of(self.parameters)
        if self._load is load_engine and (warning := self._card.warning()):
            self.get_logger().warning(
                f"{warning}; set model_path to a folder with another Qwen2.5-VL checkpoint"
            )
        self.get_logger().info(f"loading the model {cut(self.parameters.model_path)}".rstrip())
        self._worker.start()
        return self._worker

    def _wait_until_loaded(self, worker: EngineWorker) -> None:
        started = time.monotonic()
        while not wait([worker.loaded], timeout=0.1).done:
            if not self.context.ok():
                raise NotActiveError("asked to end while the model was being loaded")
        plan = worker.loaded.result()
        self.get_logger().info(f"model loaded after {time.monotonic() - started:.1f} s")
        if plan:
            self.get_logger().info(plan)

    def _tear_down(self) -> None:
        """Destroy what configuring made."""
        going_on = self.context.ok()  # else the process is about to end: see close
        images, self._images = self._images, None
        if images is not None:
            images.stop(None if going_on else END_TIMEOUT)
        poses, self.poses = self.poses, None
        if poses is not None:
            poses.destroy()
        if self._ingest is not None:
            self._ingest.active = False
            self._ingest.clear(Drop.RESET)
        worker, self._worker = self._worker, None
        self._card = NOT_LOADED
        keeper, self.keeper = self.keeper, None
        if keeper is not None and worker is not None:
            worker.abandon(Drop.RESET, NotActiveError("the node is being stopped"))
            keeper.save_at_end(None if going_on else SAVE_TIMEOUT)
            keeper.close()
        ended = worker is None or worker.stop(STOP_TIMEOUT if going_on else 0.0)
        if not ended and going_on:
            self.get_logger().warning(
                f"the engine is still busy after {STOP_TIMEOUT:.0f} s and is abandoned"
            )
        if poses is not None:
            poses.track.close()
        self._input = self._ingest = None
        asking, self.asking = self.asking, None
        if asking is not None:
            asking.destroy()
        log, self._answer_log = self._answer_log, None
        if log is not None:
            log.close()
        services, self._memory_services = self._memory_services, None
        if services is not None:
            services.destroy()
        annotated, self.annotated = self.annotated, None
        if annotated is not None:
            annotated.destroy(END_TIMEOUT)
        pausing, self._pause_services = self._pause_services, None
        if pausing is not None:
            pausing.destroy()
        status, self._status = self._status, None
        if status is not None:
            self.destroy_publisher(status)
        warnings, self._warnings = self._warnings, None
        if warnings is not None:
            warnings.close()
        if worker is not None and self._load is load_engine and going_on:
            del worker
            release_memory()

    @property
    def patience(self) -> float:
        """Seconds that the end of the process may take, besides the usual."""
        saves = self.keeper is not None and self.parameters.save_memory_on_shutdown
        return SAVE_TIMEOUT if saves else 0.0

    def close(self) -> None:
        """End the node, in whatever state; its context has been shut down."""
        worker = self._worker
        with ExitStack() as steps:
            steps.callback(self.destroy_node)
            steps.callback(self._tear_down)
        # It may be publishing, or writing to its store; a model that is being loaded is left alone.
        if worker is not None and worker.loaded.done():
            worker.stop(END_TIMEOUT)

    def _start_by_itself(self) -> None:
        self._autostart.cancel()
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()
        elif self.context.ok():
            verbs = ("set PARAMETER VALUE", "configure", "activate")
            name = self.get_fully_qualified_name()
            commands = [runs_here(f"stream-vlm node {verb} --node {name}") for verb in verbs]
            self.get_logger().error(
                "the node waits unconfigured. Restart it, or correct the parameter:"
                + below(*commands)
            )

    # Parameters -----------------------------------------------------------------------------------

    def set_parameters_atomically(self, parameter_list: list[Any]) -> SetParametersResult:
        """As rclpy's, but a value that is there already is no change, so that what
        `ros2 param dump` writes can be loaded: read-only ones and a configured node's, too. Of one
        that is not there, rclpy's refusal does not tell the name.
        """
        for one in parameter_list:
            if not self.has_parameter(one.name):
                return SetParametersResult(successful=False, reason=unknown_parameter(one.name))
        changes = [
            one
            for one in parameter_list
            if (now := self.get_parameter(one.name)).type_ != one.type_ or now.value != one.value
        ]
        if parameter_list and not changes:
            return SetParametersResult(successful=True)
        return super().set_parameters_atomically(changes)

    def _on_set_parameters(self, changes: list[Any]) -> SetParametersResult:
        ours = {change.name: change.value for change in changes if change.name in PARAMETERS}
        try:
            for name in ours:
                if PARAMETERS[name].change == CONFIGURE and self.state != "unconfigured":
                    raise InvalidParameterError(
                        f"{name} can be set only while the node is unconfigured (it is "
                        f"{self.state}): deactivate and clean it up first"
                    )
            before, parameters = self.parameters, self.parameters.changed(ours)
            self._apply(parameters)
            for name in ours:
                if (now := getattr(parameters, name)) != (then := getattr(before, name)):
                    self.get_logger().info(cut(f"parameter {name}: {then!r} -> {now!r}"))
        except InvalidParameterError as refusal:
            return SetParametersResult(successful=False, reason=cut(str(refusal)))
        except Exception as fault:  # without a reply the caller would wait for ever
            self.report_fault("setting a parameter", fault)
            return SetParametersResult(
                successful=False, reason=f"internal error: {fault!r}; see its log"
            )
        return SetParametersResult(successful=True)

    def _apply(self, parameters: Settings) -> None:
        """Work with these settings from now on."""
        limit = pixel_limit(parameters)
        if self._worker is not None and limit != pixel_limit(self.parameters):
            self._worker.limit_pixels(*limit)
        self.parameters = parameters
        if self._ingest is not None:
            self._ingest.apply(parameters)
        if self._worker is not None:
            self._worker.queue_size = parameters.queue_size
            self._worker.max_questions = parameters.max_questions
            self._worker.ingest_share = parameters.ingest_share
        if (poses := self.poses) is not None:
            poses.track.tolerance = parameters.pose_tolerance

    # Images ---------------------------------------------------------------------------------------

    def _on_image(self, arrival: SerializedImage) -> None:
        now_ns = self._now_ns()
        running_ns = self.figures.clock.of(now_ns)
        self.figures.monitor.record(_stamp_of(arrival), running_ns)
        if self._ingest is not None:
            self._ingest.receive(arrival, now_ns, running_ns)

    def _on_refused_frame(self, cause: Drop, words: str) -> None:
        self.figures.refuse(cause, words)
        self._news.tell(cause.value, words, self._warn)

    def _on_engine_fault(self, fault: BaseException) -> None:
        if self._worker is not None and self._worker.ended is not None:
            self.get_logger().fatal(f"{self._worker.ended}\n{traced(fault)}")
        elif isinstance(fault, StreamVlmError):
            self.figures.refuse(Drop.ERROR, cut(str(fault)))
            words = f"a chunk was refused, the stream continues: {cut(str(fault))}"
            self._news.tell("chunk", words, self._error)
        else:
            self.report_fault("the engine's thread", fault)

    def _on_pause_closed(self, seconds: float) -> None:
        words = (
            f"frames came after a pause: for the model {seconds:.1f} s of it are left out "
            "(max_pause); stamps stay true"
        )
        self._news.tell("pause", words, self._info)

    def _on_unsaved(self, words: str) -> None:
        """A memory could not be saved or loaded, and nobody waits to be told."""
        if self.context.ok():
            self.get_logger().error(cut(words))

    def _why_empty(self) -> str:
        """Why a question finds no image in memory; asked for in the engine's thread."""
        topic = source.topic if (source := self._input) is not None else "image"
        return self.figures.why_empty(topic, self._now_ns(), self.parameters.no_image_timeout)

    def report_fault(self, where: str, fault: BaseException) -> None:
        """Log a fault of this package, once with its traceback; repetitions are counted."""
        if self.context.ok():  # else told to end: whatever broke off, broke off for that
            self.error_log.report(where, fault)

    def _on_tick(self) -> None:
        if (poses := self.poses) is not None:
            poses.take()
        if self._ingest is not None:
            self._ingest.flush_overdue(self.figures.clock.of(self._now_ns()))

    # Reports --------------------------------------------------------------------------------------

    def _clear_figures(self) -> None:
        self.figures = health.Figures()
        self._silence_news = health.SilenceNews()

    def cache_status(self) -> CacheStatus:
        """What ``~/cache_status`` says now."""
        worker, ingest = self._worker, self._ingest
        counts = self.figures.counters.snapshot()
        counts["queue_depth"] = worker.depth if worker is not None else 0
        counts["resets"] = worker.resets if worker is not None else 0
        counts["time_jumps"] = ingest.time_jumps if ingest is not None else 0
        memory = worker.memory if worker is not None else MemorySummary()
        return interfaces.to_cache_status(
            memory,
            self.state,
            counts,
            self._saved_state(),
            paused=ingest is not None and ingest.paused,
        )

    def _saved_state(self) -> SavedState:
        keeper = self.keeper
        return keeper.state if keeper is not None else NOTHING_SAVED

    def publish_status(self) -> None:
        """Tell the memory and the counters on ``~/cache_status``, now."""
        if (status := self._status) is not None:
            self.publish(status, self.cache_status())

    def _report_status(self) -> None:
        if (keeper := self.keeper) is not None:
            keeper.save_when_due()
        self._news.tell_rest()
        self.publish_status()
        name = self.get_fully_qualified_name().lstrip("/")
        report = DiagnosticArray()
        report.header.stamp = self.get_clock().now().to_msg()
        report.status.append(interfaces.to_diagnostic(self._memory_health(), name, self._device))
        if self.parameters.memory_folder:
            saved = health.saved_memory_health(self._saved_state(), self._now_ns())
            report.status.append(interfaces.to_diagnostic(saved, name, self._device))
        if (source := self._input) is not None:  # a cleanup may come in another thread
            facts = self._input_facts(source)
            if news := self._silence_news.of(facts):
                self.get_logger().warning(news)
            report.status.append(
                interfaces.to_diagnostic(health.input_health(facts), name, facts.topic)
            )
        self.publish(self._diagnostics, report)

    def _memory_health(self) -> health.Health:
        worker, asking = self._worker, self.asking
        memory = worker.memory if worker is not None else MemorySummary()
        return health.memory_health(
            health.MemoryFacts(
                state=self.state,
                failure=self.failure,
                engine_fault=str(worker.ended or "") if worker is not None else "",
                chunk_fault=worker.last_fault if worker is not None else "",
                history_fault=memory.history_fault,
                model=str(self._card),
                device=self._device,
                length=memory.length,
                cap=memory.cap,
                memory_bytes=memory.memory_bytes,
                chunks=memory.chunks,
                evictions=memory.evictions,
                closed_pauses=memory.closed_pauses,
                closed_seconds=memory.closed_seconds,
                queue_depth=worker.depth if worker is not None else 0,
                answers=asking.answers if asking is not None else 0,
                errors=asking.errors if asking is not None else 0,
            )
        )

    @property
    def _device(self) -> str:
        """Where the model runs; until it is loaded, as it was set."""
        return (self._worker.device if self._worker is not None else "") or self.parameters.device

    def _input_facts(self, source: ImageInput) -> health.InputFacts:
        ingest = self._ingest
        return self.figures.input_facts(
            source,
            self._now_ns(),
            self.parameters,
            active=self.state == "active",
            paused=bool(ingest is not None and ingest.paused),
            arrival_timed=bool(ingest is not None and ingest.arrival_timed),
            simulated_time=bool(self.get_parameter("use_sim_time").value),
        )

    def publish(self, publisher: Any, message: Any) -> None:
        """Publish, unless the node is coming to its end in another thread."""
        try:
            publisher.publish(message)
        except Exception as fault:
            if self.context.ok() and not isinstance(fault, InvalidHandle):
                raise

    # Small things ---------------------------------------------------------------------------------

    # Of each line of code rclpy's logger takes one severity alone.
    def _info(self, words: str) -> None:
        self.get_logger().info(words)

    def _warn(self, words: str) -> None:
        self.get_logger().warning(words)

    def _error(self, words: str) -> None:
        self.get_logger().error(words)

    def _now_ns(self) -> int:
        return self.get_clock().now().nanoseconds

    def _every(self, period: float, callback: Callable[[], None], group: Any) -> Any:
        return self.create_timer(period, callback, callback_group=group, clock=self._steady)


def _stamp_of(arrival: SerializedImage) -> int:
    """An image's own stamp in nanoseconds, 0 where there is none; whether it is used is for the
    ingest."""
    try:
        return arrival.stamp_ns or 0
    except InvalidTimestampError:
        return 0
