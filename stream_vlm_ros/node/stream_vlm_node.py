# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The node ``stream_vlm``: images in, questions answered, memory and health reported."""

from __future__ import annotations

import functools
import itertools
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import InvalidHandle, InvalidTopicNameException
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from stream_vlm.msg import CacheStatus

from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import InvalidParameterError, ModelLoadError, below, cut, runs_here
from stream_vlm_ros.factory import card_of
from stream_vlm_ros.model_card import ModelCard
from stream_vlm_ros.node import health, interfaces
from stream_vlm_ros.node.ask_server import AskServer
from stream_vlm_ros.node.camera import Camera
from stream_vlm_ros.node.error_log import ErrorLog, Forwarding
from stream_vlm_ros.node.image_input import RCLError
from stream_vlm_ros.node.lifecycle import TellingLifecycleNode, transition
from stream_vlm_ros.node.loading import (
    chunk_appender,
    engine_loader,
    link_thread,
    release_memory,
)
from stream_vlm_ros.node.memory_services import MemoryServices
from stream_vlm_ros.node.parameters import (
    PARAMETERS,
    CamerasLast,
    declare,
    declare_of_sources,
    descriptor,
    read,
    read_of_source,
    refuse_unknown,
    row_of_source,
    unknown_parameter,
)
from stream_vlm_ros.node.pause_services import PauseServices
from stream_vlm_ros.node.publishing import publish_on, unpublish, unused_overrides
from stream_vlm_ros.processes.ros_process import END_TIMEOUT
from stream_vlm_ros.session.answer_log import AnswerLog, AnswerLogError
from stream_vlm_ros.session.engine_thread import EngineThread, write_together
from stream_vlm_ros.session.news import News
from stream_vlm_ros.setting import CONFIGURE, Setting

if TYPE_CHECKING:
    from stream_vlm_ros.engine import InferenceEngine
    from stream_vlm_ros.remote.link import LinkThread

STOP_TIMEOUT = 3.0  # s, for what the engine is doing at the moment
SAVE_TIMEOUT = 60.0  # s, for saving a memory when the process ends
NOT_LOADED = ModelCard("not loaded")


class StreamVlmNode(TellingLifecycleNode):
    """A lifecycle node of one camera or several, whose engines share a model and a thread.

    Diagnostics and the node's own timers live from its birth to its end, by the steady clock, so
    that a node that fails to configure, or waits for simulated time, can still say so. Everything
    else is made in ``on_configure`` and destroyed in ``on_cleanup``.

    Args:
        load: builds a camera's engine from its settings, in the engines' thread; None: the model
            that the parameters name.
        arguments: of the process, see :func:`refuse_unknown`.

    Attributes:
        cameras: each with its engine, from configuring to cleaning up.
    """

    def __init__(
        self,
        *,
        load: Callable[[Settings], InferenceEngine] | None = None,
        arguments: Sequence[str] = (),
        **node_arguments: Any,
    ) -> None:
        super().__init__("stream_vlm", start_parameter_services=False, **node_arguments)
        self._parameter_service = CamerasLast(self)
        self.news = News()
        self._warnings: Forwarding | None = None
        self.error_log = ErrorLog(lambda text: self.get_logger().error(text), self.news)
        self._load = load
        self.card = NOT_LOADED
        self.cameras: tuple[Camera, ...] = ()
        self._engines: EngineThread | LinkThread | None = None
        self._status: Any = None  # publishes ~/cache_status
        self.asking: AskServer | None = None
        self._answer_log: AnswerLog | None = None
        self._orders: list[MemoryServices | PauseServices] = []

        self.parameters = Settings.of(declare(self, PARAMETERS.values()))
        declare_of_sources(self, self.parameters)
        refuse_unknown(self, arguments)
        self._settings_of_cameras()  # what it refuses is refused here
        self.add_on_set_parameters_callback(self._on_set_parameters)

        self._steady = Clock(clock_type=ClockType.STEADY_TIME)
        self._diagnostics = publish_on(self, DiagnosticArray, "/diagnostics", 10)
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
        for camera in self.cameras:
            camera.activate()

    @transition("inactive")
    def on_deactivate(self) -> None:
        """Stop taking images and questions; the memory stays."""
        for camera in self.cameras:
            camera.deactivate()

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
        self._warnings = Forwarding(self.warn)
        self._load_engines()
        self._status = publish_on(
            self, CacheStatus, "~/cache_status", interfaces.latched(len(self.cameras))
        )
        for camera in self.cameras:
            camera.open()
        self._answer_log = self._open_answer_log()
        self.asking = AskServer(self, self.cameras, self._answer_log)
        places: dict[str, Sequence[Camera]] = {"~": self.cameras}
        places |= {f"~/{camera.name}": [camera] for camera in self.cameras if camera.name}
        for within, cameras in places.items():
            self._orders.append(MemoryServices(self, cameras, within))
            self._orders.append(PauseServices(self, cameras, within))
        for camera in self.cameras:
            camera.look()
            camera.publish_status()
        images = [one.source.topics for one in self.cameras if one.source is not None]
        for words in unused_overrides(self, itertools.chain.from_iterable(images)):
            self.warn(words)

    def _settings_of_cameras(self) -> dict[str, Settings]:
        """Of each camera by its name, "" for the only one; raises InvalidParameterError."""
        parameters = self.parameters
        if not parameters.sources:
            return {"": parameters}
        settings = {name: read_of_source(self, name, parameters) for name in parameters.sources}
        if greedy := [name for name, one in settings.items() if not one.max_cache_tokens]:
            raise InvalidParameterError(
                f"max_cache_tokens 0 takes all the room there is: say how many for {greedy[0]}"
            )
        for shared, resolved in (
            ("image_topic", self._resolved_topic),
            ("memory_name", str),
            ("session_name", str),
            ("frame_store", lambda folder: os.path.realpath(os.path.expanduser(folder))),
        ):
            taken: dict[str, str] = {}  # by which camera
            for name, one in settings.items():
                if (value := getattr(one, shared)) and name != (
                    other := taken.setdefault(resolved(value), name)
                ):
                    raise InvalidParameterError(
                        f"{shared} {value!r} is that of two cameras, {other} and {name}"
                    )
        return settings

    def _resolved_topic(self, topic: str) -> str:
        """After remaps; one that is no name of a topic as it is: a camera refuses it."""
        try:
            return str(self.resolve_topic_name(topic))
        except (RCLError, InvalidTopicNameException):
            return topic

    def _load_engines(self) -> None:
        """Load the model, and build the engine of each camera."""
        settings = self._settings_of_cameras()
        cameras = [*settings.values()]
        load = self._load or engine_loader(cameras)
        if self.parameters.engine == "remote":
            self._engines = link_thread()
        else:
            append = None if self._load else chunk_appender(cameras)
            self._engines = EngineThread(
                self.parameters.ingest_share, append, write_together=write_together
            )
        self.cameras = tuple(
            Camera(self, name, own, load, self._engines) for name, own in settings.items()
        )
        if isinstance(self._engines, EngineThread):
            self.card = card_of(self.parameters)
            if self._load is None and (warning := self.card.warning()):
                another = "set model_path to a folder with another Qwen2.5-VL checkpoint"
                self.warn(f"{warning}; {another}")
            self.info(f"loading the model {cut(self.parameters.model_path)}".rstrip())
        else:
            self.info(f"connecting to {self.parameters.engine_url}")
        started = time.monotonic()
        self._engines.start()
        for camera in self.cameras:
            camera.wait_until_loaded()
        if isinstance(self._engines, EngineThread):
            self.info(f"model loaded after {time.monotonic() - started:.1f} s")

    def _open_answer_log(self) -> AnswerLog:
        file, max_bytes = self.parameters.answers_file, self.parameters.answers_megabytes << 20
        make = functools.partial(AnswerLog, max_bytes=max_bytes, report=self._on_unlogged)
        try:
            return make(Path(os.path.expanduser(file)) if file else None)
        except AnswerLogError as refusal:
            self.error(f"past answers are kept in memory alone: {refusal}")
            return make(None)

    def _on_unlogged(self, fault: Exception) -> None:
        """An answer could not be kept; it was given all the same."""
        self.news.tell("answers", f"an answer is not kept: {fault}", self.error)

    def _tear_down(self) -> None:
        """Destroy what configuring made."""
        going_on = self.context.ok()  # else the process is about to end: see close
        cameras = self.cameras
        for camera in cameras:
            camera.close_input(None if going_on else END_TIMEOUT)
        self.card = NOT_LOADED
        for camera in cameras:
            camera.save_at_end(None if going_on else SAVE_TIMEOUT)
        engines, self._engines = self._engines, None
        ended = engines is None or engines.stop(STOP_TIMEOUT if going_on else 0.0)
        if not ended and going_on:
            self.warn(f"the engine is still busy after {STOP_TIMEOUT:.0f} s and is abandoned")
        asking, self.asking = self.asking, None
        if asking is not None:
            asking.destroy()
        log, self._answer_log = self._answer_log, None
        if log is not None:
            log.close()
        orders, self._orders = self._orders, []
        for order in orders:
            order.destroy()
        for camera in cameras:
            camera.close()
        self.cameras = ()
        status, self._status = self._status, None
        if status is not None:
            unpublish(self, status)
        warnings, self._warnings = self._warnings, None
        if warnings is not None:
            warnings.close()
        if isinstance(engines, EngineThread) and self._load is None and going_on:
            del engines, cameras
            release_memory()

    @property
    def patience(self) -> float:
        """Seconds that the end of the process may take, besides the usual."""
        saving = [one for one in self.cameras if one.settings.save_memory_on_shutdown]
        return SAVE_TIMEOUT * len(saving)

    def close(self) -> None:
        """End the node, in whatever state; its context has been shut down."""
        engines, cameras = self._engines, self.cameras
        with ExitStack() as steps:
            steps.callback(self.destroy_node)
            steps.callback(self._tear_down)
        # It may be publishing, or writing to its store; a model that is being loaded is left alone.
        if engines is not None and all(camera.worker.loaded.done() for camera in cameras):
            engines.stop(END_TIMEOUT)

    def _start_by_itself(self) -> None:
        self._autostart.cancel()
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()
        elif self.context.ok():
            of_model = self.fault is ModelLoadError
            wanted = "model_path FOLDER" if of_model else "PARAMETER VALUE"
            verbs = (f"set {wanted}", "configure", "activate")
            name = self.get_fully_qualified_name()
            commands = [runs_here(f"stream-vlm node {verb} --node {name}") for verb in verbs]
            self.error(
                "the node waits unconfigured. Restart it, or correct the parameter:"
                + below(*commands)
            )

    # Parameters -----------------------------------------------------------------------------------

    def set_parameters_atomically(self, parameter_list: list[Any]) -> SetParametersResult:
        """As rclpy's, but a value that is there already is no change, so that what
        `ros2 param dump` writes can be loaded: read-only ones and a configured node's, too. Of one
        that is not there, rclpy's refusal does not tell the name. A camera's own setting is there
        once it is set, until it is set to nothing or its camera is none of ``sources`` any more.
        """
        settings = self.parameters
        shared = {one.name: one.value for one in parameter_list if one.name in PARAMETERS}
        if "sources" in shared:
            try:
                settings = settings.changed(shared)
            except InvalidParameterError as refusal:
                return SetParametersResult(successful=False, reason=cut(str(refusal)))
        gone = [
            name
            for name in self.get_parameters_by_prefix("")
            if row_of_source(name, self.parameters) and not row_of_source(name, settings)
        ]
        own: dict[str, Setting] = {}
        changes = [Parameter(name) for name in gone]  # of no type: rclpy undeclares them
        for one in parameter_list:
            there = self.has_parameter(one.name) and one.name not in gone
            row = row_of_source(one.name, settings)
            if not there and row is None:
                return SetParametersResult(successful=False, reason=unknown_parameter(one.name))
            if not there and row is not None and one.type_ != Parameter.Type.NOT_SET:
                own[one.name] = row
                changes.append(one)
            elif there and (
                (now := self.get_parameter(one.name)).type_ != one.type_ or now.value != one.value
            ):
                changes.append(one)
        if parameter_list and not changes:
            return SetParametersResult(successful=True)
        for row in own.values():
            self.declare_parameter(row.name, row.default, descriptor(row))
        result = super().set_parameters_atomically(changes)
        if not result.successful:  # the node's own setting goes on to hold
            for name in own:
                self.undeclare_parameter(name)
        return result

    def _on_set_parameters(self, changes: list[Any]) -> SetParametersResult:
        try:
            self._apply({change.name: change.value for change in changes})
        except InvalidParameterError as refusal:
            return SetParametersResult(successful=False, reason=cut(str(refusal)))
        except Exception as fault:  # without a reply the caller would wait for ever
            self.report_fault("setting a parameter", fault)
            return SetParametersResult(
                successful=False, reason=f"internal error: {fault!r}; see its log"
            )
        return SetParametersResult(successful=True)

    def _apply(self, changes: dict[str, Any]) -> None:
        """Work with these values from now on, or with none of them."""
        before = self.parameters
        parameters = before.changed({name: changes[name] for name in changes if name in PARAMETERS})
        rows = {name: PARAMETERS.get(name) or row_of_source(name, parameters) for name in changes}
        ours = {name: row for name, row in rows.items() if row is not None}
        # A camera's own that is set to nothing is the node's again.
        undone = {name for name in ours if name not in PARAMETERS and changes[name] is None}
        checked = {
            name: row.default if name in undone else row.checked(changes[name])
            for name, row in ours.items()
        }
        for name, row in ours.items():
            declaring = not self.has_parameter(name) and checked[name] == row.default
            if row.change == CONFIGURE and self.state != "unconfigured" and not declaring:
                raise InvalidParameterError(
                    f"{name} can be set only while the node is unconfigured (it is "
                    f"{self.state}): deactivate and clean it up first"
                )
        after = {"": parameters}
        for name in parameters.sources:
            own = {n: v for n, v in checked.items() if n not in undone}
            after[name] = read_of_source(self, name, parameters, own, undone)
        was = {name: read_of_source(self, name, before) for name in before.sources}
        held = {camera: camera.settings for camera in self.cameras}
        try:
            for camera in self.cameras:
                camera.apply(after[camera.name])
        except InvalidParameterError:
            for camera, settings in held.items():
                camera.apply(settings)
            raise
        self.parameters = parameters
        if isinstance(self._engines, EngineThread):
            self._engines.scheduler.share = parameters.ingest_share
        for name in ours:
            source, _, setting = name.rpartition(".")
            former = was.get(source, before)
            then = getattr(former, setting)
            if then != checked[name]:
                self.info(cut(f"parameter {name}: {then!r} -> {checked[name]!r}"))

    # Reports --------------------------------------------------------------------------------------

    def publish_status(self, status: CacheStatus) -> None:
        """Tell a camera's memory and counters on ``~/cache_status``, now."""
        if (publisher := self._status) is not None:
            self.publish(publisher, status)

    def _report_status(self) -> None:
        for camera in self.cameras:
            camera.keeper.save_when_due()
        self.news.tell_rest()
        name = self.get_fully_qualified_name().lstrip("/")
        report = DiagnosticArray()
        report.header.stamp = self.get_clock().now().to_msg()
        for camera in self.cameras:
            camera.publish_status()
            told = f"{name}: {camera.name}" if camera.name else name
            for its, about in camera.diagnose():
                report.status.append(interfaces.to_diagnostic(its, told, about))
        if not self.cameras:
            device = self.parameters.device
            facts = health.MemoryFacts(self.state, self.failure, str(self.card), device)
            its = health.memory_health(facts)
            report.status.append(interfaces.to_diagnostic(its, name, device))
        self.publish(self._diagnostics, report)

    def report_fault(self, where: str, fault: BaseException) -> None:
        """Log a fault of this package, once with its traceback; repetitions are counted."""
        if self.context.ok():  # else told to end: whatever broke off, broke off for that
            self.error_log.report(where, fault)

    def publish(self, publisher: Any, message: Any) -> None:
        """Publish, unless the node is coming to its end in another thread."""
        try:
            publisher.publish(message)
        except Exception as fault:
            if self.context.ok() and not isinstance(fault, InvalidHandle):
                raise

    # Small things ---------------------------------------------------------------------------------

    # Of each line of code rclpy's logger takes one severity alone.
    def info(self, words: str) -> None:
        """Into the log."""
        self.get_logger().info(words)

    def warn(self, words: str) -> None:
        """Into the log."""
        self.get_logger().warning(words)

    def error(self, words: str) -> None:
        """Into the log."""
        self.get_logger().error(words)

    def fatal(self, words: str) -> None:
        """Into the log."""
        self.get_logger().fatal(words)

    def now_ns(self) -> int:
        """The node's clock."""
        now: int = self.get_clock().now().nanoseconds
        return now

    def _every(self, period: float, callback: Callable[[], None], group: Any) -> Any:
        return self.create_timer(period, callback, callback_group=group, clock=self._steady)
