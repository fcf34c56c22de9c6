"""The node ``stream_vlm``: images in, questions answered, memory and health reported."""

from __future__ import annotations

import functools
import time
import traceback
from collections.abc import Callable
from concurrent.futures import Future as ThreadFuture
from concurrent.futures import wait
from typing import TYPE_CHECKING, Any

from diagnostic_msgs.msg import DiagnosticArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.action import ActionServer, CancelResponse
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType
from rclpy.exceptions import InvalidHandle
from rclpy.lifecycle import LifecycleState, TransitionCallbackReturn
from rclpy.lifecycle.node import LifecycleNodeMixin
from rclpy.node import Node
from rclpy.qos import DurabilityPolicy, QoSProfile, ReliabilityPolicy
from rclpy.task import Future
from std_srvs.srv import Trigger
from stream_vlm.action import Ask
from stream_vlm.msg import Answer, CacheStatus
from stream_vlm.srv import Query

from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import InvalidParameterError, InvalidTimestampError, StreamVlmError, cut
from stream_vlm_ros.node import health, interfaces
from stream_vlm_ros.node.counters import Drop, FrameCounters
from stream_vlm_ros.node.error_log import ErrorLog
from stream_vlm_ros.node.health import InputMonitor
from stream_vlm_ros.node.image_input import ImageInput
from stream_vlm_ros.node.image_thread import ImageThread
from stream_vlm_ros.node.ingest import FrameIngest
from stream_vlm_ros.node.loading import load_engine, pixel_limit, release_memory
from stream_vlm_ros.node.parameters import PARAMETERS, declare, read, unknown_text
from stream_vlm_ros.node.serialized_image import SerializedImage
from stream_vlm_ros.node.worker import (
    WRITING,
    EngineWorker,
    MemoryState,
    NotActiveError,
    Outcome,
    Question,
    Ticket,
)
from stream_vlm_ros.setting import CONFIGURE

if TYPE_CHECKING:
    from stream_vlm_ros.engine import InferenceEngine

LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
STOP_TIMEOUT = 3.0  # s, for what the engine is doing at the moment; launch allows 5 to end


def transition(done_state: str) -> Callable[..., Any]:
    """Make a method a lifecycle callback: what it raises is logged and gives FAILURE.

    rclpy itself swallows the exception.
    """

    def decorate(method: Callable[[StreamVlmNode], None]) -> Callable[..., Any]:
        @functools.wraps(method)
        def callback(self: StreamVlmNode, previous: LifecycleState) -> TransitionCallbackReturn:
            name = method.__name__.removeprefix("on_")
            self.state = {"configure": "configuring", "activate": "activating"}.get(name, name)
            self.failure = ""
            try:
                method(self)
            except Exception as fault:
                self.state = previous.label
                if not self.context.ok():  # told to end: whatever broke off, broke off for that
                    return TransitionCallbackReturn.FAILURE
                known = isinstance(fault, StreamVlmError)
                self.failure = f"{name} failed: {fault if known else repr(fault)}"
                details = "" if known else f"\n{traceback.format_exc()}"
                self.get_logger().error(self.failure + details)
                return TransitionCallbackReturn.FAILURE
            self.state = done_state
            self.get_logger().info(f"{name}: done, the node is {done_state}")
            return TransitionCallbackReturn.SUCCESS

        return callback

    return decorate


class StreamVlmNode(LifecycleNodeMixin, Node):
    """A lifecycle node around :class:`EngineWorker`.

    Diagnostics and the node's own timers live from its birth to its end, by the steady clock, so
    that a node that fails to configure, or waits for simulated time, can still say so. Everything
    else is made in ``on_configure`` and destroyed in ``on_cleanup``.

    Args:
        load: builds the engine from the parameters, in the worker's thread.
    """

    def __init__(
        self, *, load: Callable[[Settings], InferenceEngine] = load_engine, **node_arguments: Any
    ) -> None:
        Node.__init__(self, "stream_vlm", **node_arguments)
        # Reentrant: the state can be asked for while a transition loads the model.
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())
        self._guard_transitions()
        self.state = "unconfigured"
        self.failure = ""
        self.error_log = ErrorLog(lambda text: self.get_logger().error(text))
        self._load = load
        self._worker: EngineWorker | None = None
        self._ingest: FrameIngest | None = None
        self._input: ImageInput | None = None
        self._images: ImageThread | None = None
        self._entities: list[tuple[Callable[[Any], Any], Any]] = []  # (destroy, entity)
        self._clear_figures()

        self.parameters = Settings.of(declare(self, PARAMETERS.values()))
        self._warn_of_unknown_parameters()
        self.add_on_set_parameters_callback(self._on_set_parameters)

        self._questions = ReentrantCallbackGroup()
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
        self._monitor = InputMonitor()
        self._ingest.resume(self._worker.memory.newest_ns)
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
        self._clear_figures()
        worker = self._make_worker()
        self._wait_until_loaded(worker)
        self._answers = self._make(Node.create_publisher, Answer, "~/answer", LATCHED)
        self._status = self._make(Node.create_publisher, CacheStatus, "~/cache_status", LATCHED)
        self._make(
            Node.create_service, Query, "~/query", self._on_query, callback_group=self._questions
        )
        self._make(
            Node.create_service, Trigger, "~/reset", self._on_reset, callback_group=self._questions
        )
        asking = ActionServer(
            self,
            Ask,
            "~/ask",
            self._on_ask,
            # Not the group of the questions: rclpy takes goals and cancels by one waitable.
            callback_group=MutuallyExclusiveCallbackGroup(),
            cancel_callback=self._on_cancel,
        )
        self._entities.append((lambda server: server.destroy(), asking))
        # From here on the reports of another thread use what was made above.
        self._ingest = FrameIngest(
            self.parameters,
            self._counters,
            deliver=worker.append,
            restart=lambda: worker.reset(Drop.TIME_JUMP),
            report=self._on_refused_frame,
        )
        self._input = ImageInput(self, self.parameters)
        self._images = ImageThread(
            self._input, self.context, self._on_image, self._on_tick, self.report_fault
        )
        self._images.start()
        self.get_logger().info(f"waiting for images on {self._input.wish}")
        self._publish_status()

    def _make_worker(self) -> EngineWorker:
        self._worker = EngineWorker(
            functools.partial(self._load, self.parameters),
            self._counters,
            self.parameters.queue_size,
            self.parameters.max_questions,
            self.parameters.ingest_share,
            changed=self._publish_status,
            report=self._on_engine_fault,
            why_empty=self._why_empty,
        )
        if not self.parameters.model_path and self._load is load_engine:
            self.get_logger().warning(
                "model_path is empty: the small model of the demo runs, which knows only its drawn "
                "world; set model_path to a folder with a Qwen2.5-VL checkpoint"
            )
        self.get_logger().info(f"loading the model {self.parameters.model_path}".rstrip())
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

    def _make(self, create: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Create a publisher or service that the next tear-down destroys."""
        entity = create(self, *arguments, **options)
        destroy = {
            Node.create_publisher: self.destroy_publisher,
            Node.create_service: self.destroy_service,
        }[create]
        self._entities.append((destroy, entity))
        return entity

    def _tear_down(self, for_good: bool = False) -> None:
        """Destroy what configuring made; ``for_good``: the process is about to end."""
        images, self._images = self._images, None
        if images is not None:
            images.stop()
        if self._ingest is not None:
            self._ingest.active = False
            self._ingest.clear(Drop.RESET)
        worker, self._worker = self._worker, None
        ended = worker is None or worker.stop(STOP_TIMEOUT)
        if not ended and not for_good:
            self.get_logger().warning(
                f"the engine is still busy after {STOP_TIMEOUT:.0f} s and is abandoned"
            )
        self._input = self._ingest = None
        while self._entities:
            destroy, entity = self._entities.pop()
            destroy(entity)
        if worker is not None and self._load is load_engine and not for_good:
            del worker
            release_memory()

    def close(self) -> None:
        """End the node, in whatever state."""
        self._tear_down(for_good=True)
        self.destroy_node()

    def _start_by_itself(self) -> None:
        self._autostart.cancel()
        if self.trigger_configure() == TransitionCallbackReturn.SUCCESS:
            self.trigger_activate()
        elif self.context.ok():
            self.get_logger().error(
                f"the node waits unconfigured: correct the parameter, then 'ros2 lifecycle set "
                f"{self.get_fully_qualified_name()} configure' and '... activate', or restart it"
            )

    def _guard_transitions(self) -> None:
        """Let a transition that does not exist be refused; rclpy lets it end the node."""
        change_state = self._service_change_state.callback

        def guarded(request: Any, response: Any) -> Any:
            try:
                return change_state(request, response)
            except Exception as refusal:
                wanted = request.transition.label or request.transition.id
                self.get_logger().error(
                    f"transition {wanted} is not possible while {self.state}: {refusal}"
                )
                response.success = False
                return response

        self._service_change_state.callback = guarded

    # Parameters -----------------------------------------------------------------------------------

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

    def _warn_of_unknown_parameters(self) -> None:
        for name in getattr(self, "_parameter_overrides", {}):
            if name not in PARAMETERS and not self.has_parameter(name):
                self.get_logger().warning(f"ignored: {unknown_text(name)}")

    # Images ---------------------------------------------------------------------------------------

    def _on_image(self, arrival: SerializedImage) -> None:
        now_ns = self._now_ns()
        self._monitor.record(_stamp_of(arrival), now_ns)
        if self._ingest is not None:
            self._ingest.receive(arrival, now_ns)

    def _on_refused_frame(self, cause: Drop, words: str) -> None:
        self._last_refusal = words
        self.get_logger().warning(words, throttle_duration_sec=5.0)

    def _on_engine_fault(self, fault: Exception) -> None:
        if isinstance(fault, StreamVlmError):
            self.get_logger().error(
                f"a chunk was refused, the stream continues: {fault}", throttle_duration_sec=5.0
            )
        else:
            self.report_fault("the engine's thread", fault)

    def _why_empty(self) -> str:
        """Why a question finds no image in memory; asked for in the engine's thread."""
        source, silent_for = self._input, self._monitor.seconds_without_image(self._now_ns())
        topic = source.topic if source is not None else "image"
        if not self._monitor.count or silent_for > self.parameters.no_image_timeout:
            return f"no image arrives on {topic}; see /diagnostics"
        return (
            f"images arrive on {topic}, but none is in memory yet; ask again, or see /diagnostics"
        )

    def report_fault(self, where: str, fault: Exception) -> None:
        """Log a fault of this package, once with its traceback; repetitions are counted."""
        if self.context.ok():  # else told to end: whatever broke off, broke off for that
            self.error_log.report(where, fault)

    def _on_tick(self) -> None:
        if self._ingest is not None:
            self._ingest.flush_overdue(self._now_ns())

    # Questions ------------------------------------------------------------------------------------

    async def _on_query(self, request: Any, response: Any) -> Any:
        try:
            outcome = await self._answered(self._ask(request))
            response.answer = interfaces.to_answer(outcome, self._cache_status())
        except Exception as fault:
            self.report_fault("~/query", fault)
            response.answer = interfaces.to_fault(fault)
        return response

    async def _on_ask(self, goal_handle: Any) -> Any:
        try:
            return await self._pursue(goal_handle)
        except Exception as fault:
            self.report_fault("~/ask", fault)
            if goal_handle.is_active:
                goal_handle.abort()
            return Ask.Result(answer=interfaces.to_fault(fault))

    async def _pursue(self, goal_handle: Any) -> Any:
        """The result of a goal."""

        def progress(state: str, text: str) -> None:
            code = Ask.Feedback.WRITING if state == WRITING else Ask.Feedback.READING
            try:
                goal_handle.publish_feedback(Ask.Feedback(state=code, text=text))
            except Exception as fault:  # of no concern to the answer
                self.report_fault("feedback of ~/ask", fault)

        goal_handle.publish_feedback(Ask.Feedback(state=Ask.Feedback.WAITING))
        ticket = self._ask(goal_handle.request, progress)
        goal = bytes(goal_handle.goal_id.uuid)
        self._tickets[goal] = ticket
        try:
            if goal_handle.is_cancel_requested:  # before there was a ticket
                ticket.cancel()
            outcome = await self._answered(ticket)
        finally:
            del self._tickets[goal]
        result = Ask.Result(answer=interfaces.to_answer(outcome, self._cache_status()))
        if goal_handle.is_cancel_requested:
            goal_handle.canceled()
        elif outcome.error is not None:
            goal_handle.abort()
        else:
            goal_handle.succeed()
        return result

    def _on_cancel(self, goal_handle: Any) -> CancelResponse:
        ticket = self._tickets.get(bytes(goal_handle.goal_id.uuid))
        if ticket is not None:
            ticket.cancel()
        return CancelResponse.ACCEPT

    def _ask(self, request: Any, progress: Any = None) -> Ticket:
        """Queue the question in a request; a bad one gets a ticket that is done already."""
        try:
            question = interfaces.to_question(request, self.parameters)
            if self.state != "active" or self._worker is None:
                raise NotActiveError(f"the node is {self.state}, not active")
        except StreamVlmError as refusal:
            memory = self._worker.memory if self._worker is not None else MemoryState()
            ticket = Ticket(Question(request.question, tuple(request.choices)))
            ticket.future.set_result(Outcome(ticket.question, error=refusal, memory=memory))
        else:
            ticket = self._worker.ask(question, progress)
        ticket.future.add_done_callback(self._on_answered)
        return ticket

    async def _answered(self, ticket: Ticket) -> Outcome:
        """Wait for a ticket without holding a thread of the executor."""
        outcome: Outcome = await self._awaitable(ticket.future)
        return outcome

    def _awaitable(self, future: ThreadFuture) -> Future:
        """An rclpy future that is done when ``future`` is; its result is the future's own."""
        executor = self.executor
        done = Future(executor=executor)

        def finish(finished: ThreadFuture) -> None:
            fault = finished.exception()
            if fault is None:
                done.set_result(finished.result())
            else:
                done.set_exception(fault)
            executor.wake()  # rclpy polls what awaits, and only when it is awake

        future.add_done_callback(finish)
        return done

    def _on_answered(self, future: ThreadFuture) -> None:
        try:
            self._tell_answer(future.result())
        except Exception as fault:
            self.report_fault("~/answer", fault)

    def _tell_answer(self, outcome: Outcome) -> None:
        """Count an answer and publish it."""
        self._answer_count += 1
        self._error_count += outcome.error is not None
        if outcome.error is not None:
            self.get_logger().warning(
                f"a question got no answer: {outcome.error.code}: {cut(str(outcome.error))}"
            )
        self._publish(self._answers, interfaces.to_answer(outcome, self._cache_status()))

    async def _on_reset(self, request: Any, response: Any) -> Any:
        if self._worker is None or self._ingest is None:
            response.message = f"the node is {self.state}"
            return response
        try:
            self._ingest.clear(Drop.RESET)
            await self._awaitable(self._worker.reset(Drop.RESET))
        except StreamVlmError as refusal:
            response.message = str(refusal)
            return response
        except Exception as fault:
            self.report_fault("~/reset", fault)
            response.message = f"internal error: {fault!r}; see the node's log"
            return response
        response.success = True
        response.message = "the memory is empty"
        return response

    # Reports --------------------------------------------------------------------------------------

    def _clear_figures(self) -> None:
        self._counters = FrameCounters()
        self._monitor = InputMonitor()
        self._silence_news = health.SilenceNews()
        self._tickets: dict[bytes, Ticket] = {}
        self._answer_count = 0
        self._error_count = 0
        self._last_refusal = ""
        self._reported_drops = dict.fromkeys(Drop, 0)
        self._clock_moved = (0, 0.0)  # (the node's clock, the steady clock) when it last moved

    def _cache_status(self) -> CacheStatus:
        worker, ingest = self._worker, self._ingest
        counts = self._counters.snapshot()
        counts["queue_depth"] = worker.depth if worker is not None else 0
        counts["resets"] = worker.resets if worker is not None else 0
        counts["time_jumps"] = ingest.time_jumps if ingest is not None else 0
        memory = worker.memory if worker is not None else MemoryState()
        return interfaces.to_cache_status(memory, self.state, counts)

    def _publish_status(self) -> None:
        if self._ingest is not None:
            self._publish(self._status, self._cache_status())

    def _report_status(self) -> None:
        self._publish_status()
        name = self.get_fully_qualified_name().lstrip("/")
        report = DiagnosticArray()
        report.header.stamp = self.get_clock().now().to_msg()
        report.status.append(
            interfaces.to_diagnostic(self._memory_health(), name, self.parameters.device)
        )
        if (source := self._input) is not None:  # a cleanup may come in another thread
            facts = self._input_facts(source)
            if news := self._silence_news.of(facts):
                self.get_logger().warning(news)
            report.status.append(
                interfaces.to_diagnostic(health.input_health(facts), name, facts.topic)
            )
        self._publish(self._diagnostics, report)

    def _memory_health(self) -> health.Health:
        worker = self._worker
        memory = worker.memory if worker is not None else MemoryState()
        return health.memory_health(
            health.MemoryFacts(
                state=self.state,
                failure=self.failure,
                chunk_fault=worker.last_fault if worker is not None else "",
                model=self.parameters.model_path or "the small one of the demo",
                device=self.parameters.device,
                length=memory.length,
                cap=memory.cap,
                memory_bytes=memory.memory_bytes,
                chunks=memory.chunks,
                evictions=memory.evictions,
                queue_depth=worker.depth if worker is not None else 0,
                answers=self._answer_count - self._error_count,
                errors=self._error_count,
            )
        )

    def _input_facts(self, source: ImageInput) -> health.InputFacts:
        ingest = self._ingest
        silent_for = self._monitor.seconds_without_image(self._now_ns())
        drops = dict(self._counters.dropped)
        new = {cause.value: drops[cause] - self._reported_drops[cause] for cause in Drop}
        self._reported_drops = drops
        intentional = (Drop.SAMPLING, Drop.INACTIVE, Drop.RESET)
        timeout = self.parameters.no_image_timeout
        return health.InputFacts(
            topic=source.topic,
            active=self.state == "active",
            silent_for=silent_for,
            timeout=timeout,
            cause=source.cause_of_silence() if silent_for > timeout else "",
            stamp_rate=self._monitor.stamp_rate,
            arrival_rate=self._monitor.arrival_rate,
            delay_ms=self._monitor.delay_ms,
            expected_rate=self.parameters.sample_fps,
            arrival_timed=bool(ingest is not None and ingest.arrival_timed),
            clock_fault=self._clock_fault(),
            counts=self._counters.snapshot(),
            new_faults={c.value: new[c.value] for c in Drop if c not in intentional},
            messages_lost=source.messages_lost,
            last_refusal=self._last_refusal,
            qos="reliable" if source.wish.reliable else "best effort",
        )

    def _clock_fault(self) -> str:
        """What is wrong with simulated time, if it is used."""
        now_ns, steady = self._now_ns(), time.monotonic()
        if now_ns != self._clock_moved[0]:
            self._clock_moved = (now_ns, steady)
        if not self.get_parameter("use_sim_time").value:
            return ""
        if now_ns == 0:
            return "use_sim_time is set, but nothing is published on /clock"
        if steady - self._clock_moved[1] > self.parameters.no_image_timeout:
            return "simulated time stands still: is the bag or the simulator paused?"
        return ""

    def _publish(self, publisher: Any, message: Any) -> None:
        """Publish, unless the node is coming to its end in another thread."""
        try:
            publisher.publish(message)
        except Exception as fault:
            if self.context.ok() and not isinstance(fault, InvalidHandle):
                raise

    # Small things ---------------------------------------------------------------------------------

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
