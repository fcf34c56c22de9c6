# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`StreamVlmClient`: a node that runs, asked, set and watched from asyncio."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, TypeAlias

from action_msgs.srv import CancelGoal
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from lifecycle_msgs.msg import Transition
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.srv import GetParameters, ListParameters, SetParametersAtomically
from rclpy.action import ActionClient
from rclpy.context import Context
from rclpy.node import Node
from rclpy.parameter import Parameter, parameter_value_to_python
from rclpy.qos import qos_profile_sensor_data
from rclpy.task import Future
from rosgraph_msgs.msg import Clock
from std_srvs.srv import Trigger
from stream_vlm.action import Ask
from stream_vlm.msg import Answer, CacheStatus, PastAnswer
from stream_vlm.srv import GetAnswers, GetPicture, ListMemories, LoadMemory, SaveMemory

from stream_vlm_ros.client.answer_stream import AnswerStream
from stream_vlm_ros.client.errors import NodeUnavailableError
from stream_vlm_ros.client.messages import (
    MAX_UINT32,
    checked_choices,
    checked_text,
    flag,
    float32,
    nanoseconds,
    set_about,
    set_stamp,
    stamp_ns,
)
from stream_vlm_ros.client.node_client import StatusWatch, latched, refuse_second
from stream_vlm_ros.client.ros_thread import CLOSED, RosThread, to_its_end
from stream_vlm_ros.errors import InvalidParameterError, StreamVlmError, below, cut, whole_number
from stream_vlm_ros.processes.graph import node_command
from stream_vlm_ros.processes.ros_process import names_seen_by

MAX_INT64 = 2**63 - 1
TRANSITIONS = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "activate": Transition.TRANSITION_ACTIVATE,
    "deactivate": Transition.TRANSITION_DEACTIVATE,
    "cleanup": Transition.TRANSITION_CLEANUP,
}
QUERY_TYPE = "stream_vlm/srv/Query"
USUAL_NAME = "stream_vlm"
STEP = 0.02  # s between two looks at what is waited for
ANNOUNCED = 3.2  # s in which every node has been heard: Fast DDS announces one every three
FILE_PATIENCE = 600.0  # s for loading a model or a memory, or saving, which a slow disk makes long
READING = ("get_", "list_")  # how the names of services begin that change nothing
# Of several cameras these are not the node's where they are not set.
DERIVED = ("sources", "image_topic", "memory_name", "frame_store")
KEPT_EVENTS = 1000  # that a watcher has not looked at; beyond, the oldest go

Event: TypeAlias = CacheStatus | Answer | DiagnosticStatus


class StreamVlmClient:
    """Asks and watches one node; used with ``async with``.

    It has a ROS node and a thread of its own, so that nobody needs to spin anything, and several
    live in one process. All of its methods belong to the event loop that entered it.

    Args:
        name: full name of the node; "": the only one there is, for which it listens some three
            seconds. With a name it goes on at once; a second node of that name is refused by the
            first question after it was heard, and orders and settings listen those seconds first.
        context: rclpy's, to share with other nodes; None: one of its own, outside of which nothing
            of ROS needs to be initialized.
        patience: seconds to wait for the node to be there, to load its model, or to reply.

    Attributes:
        name: full name of the node.
        answers_kept: where the node keeps past answers, and how many it could not keep, and why; as
            of the last `past_answers`.

    Raises NodeUnavailableError, when entered, for a node that is not there within ``patience``, for
    two of one name, and, without a name, for several.
    """

    def __init__(
        self, name: str = "", *, context: Context | None = None, patience: float = 10.0
    ) -> None:
        self.patience = patience
        self.name = f"/{name.strip('/')}" if name else ""
        self.answers_kept = ""
        self._earlier: dict[str, tuple[Answer, int]] = {}  # of each camera
        self._context = context
        self._ros: RosThread | None = None
        self._was_closed = False
        self._seen: StatusWatch | None = None
        self._began = 0.0  # to listen for nodes, by time.monotonic()
        self._came = time.time_ns()
        self._action: ActionClient | None = None
        self._services: dict[str, Any] = {}
        self.open_streams: set[AnswerStream] = set()  # whose answers end with the client
        self._watchers: set[asyncio.Queue[Event]] = set()
        # The newest of each kind that is latched, of each camera.
        self._last: dict[tuple[type, str], Event] = {}

    async def __aenter__(self) -> StreamVlmClient:
        self._loop = asyncio.get_running_loop()
        try:
            await self._open()
        except BaseException:
            await self._close()
            raise
        return self

    async def __aexit__(self, *exception: Any) -> None:
        await self._close()

    # Finding the node -----------------------------------------------------------------------------

    @staticmethod
    async def find(seconds: float = ANNOUNCED, context: Context | None = None) -> list[str]:
        """Full names of the nodes that are there, after listening for so long, or twice as long
        where there seems to be none; one is in it twice where two bear it."""
        found: list[str] = []
        for _ in range(2):  # on a busy machine, or half acquainted (see `_open`), the first is deaf
            ros = await RosThread.started(context)
            try:
                await asyncio.sleep(seconds)
                found = await ros.run(partial(nodes_seen_by, ros.node))
            finally:
                await asyncio.to_thread(ros.close)
            if found:
                break
        return found

    async def _open(self) -> None:
        given = self.name
        self._ros = await RosThread.started(self._context)
        self._began = time.monotonic()
        await self._look()
        await self.ros.run(self._make)
        if await self._is_answered():
            return
        if self._context is None:
            # Fast DDS now and then leaves two participants half acquainted for good: what the node
            # says never arrives. A new one is heard then.
            await self._close()
            self._ros = await RosThread.started()
            self._began = time.monotonic()
            if not given:  # the first one may have missed others, which are heard now
                self.name = ""
                await self._look()
            await self.ros.run(self._make)
            if await self._is_answered():
                return
        raise NodeUnavailableError(
            f"the node {self.name} can be seen, but does not reply: it may have been killed some "
            "seconds ago, or be stopped"
        )

    async def _look(self) -> None:
        """Wait until the node is seen; find its name, where none was given."""
        begin = time.monotonic()
        end, known = begin + self.patience, bool(self.name)
        while not (names := await self._seen_names()) and time.monotonic() < end:
            await asyncio.sleep(STEP)
        if names and not known:  # the only one is known to be that when all have been heard
            await asyncio.sleep(max(0.0, begin + ANNOUNCED - time.monotonic()))
            names = await self._seen_names()
        if not names:
            raise NodeUnavailableError(await self._why_none())
        if len(set(names)) > 1:
            raise NodeUnavailableError(
                f"several nodes are there: {', '.join(sorted(set(names)))}; say which"
            )
        self.name = names[0]
        refuse_second(names, self.name)

    async def _seen_names(self) -> list[str]:
        """Names of the nodes that fit; each as often as it is there."""
        if self.name:
            names = await self.ros.run(lambda: names_seen_by(self.ros.node))
            return [name for name in names if name == self.name]
        return await self.ros.run(lambda: nodes_seen_by(self.ros.node))

    async def _why_none(self) -> str:
        graph = graph_text(self.ros.context)
        if not self.name:
            others, which = [], "of stream_vlm"
        else:
            others = sorted(set(await self.ros.run(lambda: nodes_seen_by(self.ros.node))))
            which = f"named {self.name}"
        instead = f"; there is {', '.join(others)}" if others else f".\n{where_nodes_are()}"
        return f"no node {which} was seen within {self.patience:.0f} s {graph}{instead}"

    def _make(self) -> None:
        """Everything on the graph, in the client's thread."""
        node, name = self.ros.node, self.name
        self._seen = StatusWatch(node, name, self._tell)
        self._action = ActionClient(node, Ask, f"{name}/ask")
        self._services = {
            service: node.create_client(kind, f"{name}/{service}")
            for service, kind in (
                ("get_state", GetState),
                ("change_state", ChangeState),
                ("list_parameters", ListParameters),
                ("get_parameters", GetParameters),
                ("set_parameters_atomically", SetParametersAtomically),
                ("reset", Trigger),
                ("pause", Trigger),
                ("resume", Trigger),
                ("save_memory", SaveMemory),
                ("load_memory", LoadMemory),
                ("list_memories", ListMemories),
                ("get_answers", GetAnswers),
                ("get_picture", GetPicture),
                ("ask/_action/cancel_goal", CancelGoal),
            )
        }
        take: Any = self._take_answer  # of two arguments, which rclpy's types do not know
        node.create_subscription(Answer, f"{name}/answer", take, latched())
        node.create_subscription(DiagnosticArray, "/diagnostics", self._take_diagnostics, 50)

    async def _is_answered(self) -> bool:
        try:
            await self._call("get_state", GetState.Request(), max(2.0, self.patience / 2))
        except NodeUnavailableError:
            return False
        return True

    async def _close(self) -> None:
        await to_its_end(self._end())

    async def _end(self) -> None:
        ros = self._ros
        if ros is None:
            return
        try:
            closing = [stream.close() for stream in self.open_streams]
            await asyncio.gather(*closing, return_exceptions=True)
            action, self._action = self._action, None
            if action is not None:
                with suppress(NodeUnavailableError):
                    await ros.run(action.destroy)
        finally:
            self._ros, self._was_closed = None, True
            await asyncio.to_thread(ros.close)

    @property
    def ros(self) -> RosThread:
        """The ROS node of this client."""
        if self._ros is None and self._was_closed:
            raise NodeUnavailableError(CLOSED)
        if self._ros is None:
            raise RuntimeError("the client is used within 'async with StreamVlmClient(...) as it'")
        return self._ros

    def cancel_goal(self, goal_id: Any) -> Future:
        """Let the node drop a question, whether it has taken it or not; in the client's thread.

        rclpy's own way needs the handle of a goal that was accepted.
        """
        request = CancelGoal.Request()
        request.goal_info.goal_id = goal_id
        future: Future = self._services["ask/_action/cancel_goal"].call_async(request)
        return future

    @property
    def action(self) -> ActionClient:
        """Of ``~/ask``."""
        assert self._action is not None
        return self._action

    # Asking ---------------------------------------------------------------------------------------

    def stream(
        self,
        question: str,
        choices: Sequence[str] = (),
        *,
        about_ns: tuple[int, int] | None = None,
        source: str = "",
        max_new_tokens: int = 0,
        temperature: float = -1.0,
        keep_exchange: bool = False,
        history: str = "",
        thumbnails: int = 0,
    ) -> AnswerStream:
        """Ask a question, whose answer comes as it is written.

        Args:
            choices: one of them is picked, and nothing is written.
            about_ns: the time that it is about, from and to, by the stamps of the images; 0: open.
            source: which camera's memory is asked: a name, several with commas between them, or
                "*"; "": the only one there is, or all. Of several the text is that of all, each on
                a line behind its name; `AnswerStream.answers` has them one by one.
            max_new_tokens: 0: as the node is set.
            temperature: 0: the most likely answer; negative: as the node is set.
            keep_exchange: question and answer stay in the memory.
            history: "never", "auto" or "always"; "": as the node is set.
            thumbnails: pictures with each episode that the answer names, at most 6.

        Raises InvalidParameterError or InvalidChoicesError for what no message can hold.
        """
        goal = Ask.Goal(
            question=checked_text("question", question),
            choices=checked_choices(choices),
            max_new_tokens=whole_number("max_new_tokens", max_new_tokens, 0, MAX_UINT32),
            temperature=float32("temperature", temperature),
            keep_exchange=flag("keep_exchange", keep_exchange),
            source=checked_text("source", source),
            history=checked_text("history", history),
            thumbnails=whole_number("thumbnails", thumbnails, 0, MAX_UINT32),
        )
        set_about(goal, about_ns)
        return AnswerStream(self, goal)

    async def ask(self, question: str, choices: Sequence[str] = (), **options: Any) -> Answer:
        """Ask a question and wait for its whole answer; ``options`` as for :meth:`stream`.

        A task that is cancelled meanwhile cancels the answer.

        Raises:
            AskError: the node refused the question, or failed on it.
            InvalidParameterError: an option is none that a message can hold.
            NodeUnavailableError: the node is not there, is not ready, or ended meanwhile.
        """
        async with self.stream(question, choices, **options) as answer:
            return await answer.answer()

    async def past_answers(
        self, from_ns: int = 0, to_ns: int = 0, text: str = "", limit: int = 0
    ) -> list[PastAnswer]:
        """Questions asked before with their answers, oldest first.

        Args:
            from_ns, to_ns: when they were answered, by the node's clock; 0: no limit.
            text: is in question or answer.
            limit: the newest so many; 0: 100.

        Raises InvalidParameterError for what no message can hold.
        """
        limit = whole_number("limit", limit, 0, MAX_UINT32)
        request = GetAnswers.Request(text=checked_text("text", text), limit=limit)
        set_stamp(request.from_time, stamp_ns("from_ns", from_ns))
        set_stamp(request.to_time, stamp_ns("to_ns", to_ns))
        response = await self._call("get_answers", request, self.patience)
        self.answers_kept = _refuse(response)
        answers: list[PastAnswer] = response.answers
        return answers

    async def picture(
        self, at_ns: int, within_ns: int = 0, max_size: int = 320, source: str = ""
    ) -> tuple[int, bytes] | None:
        """The kept picture next to a time, as a JPEG with its stamp; None: none is kept.

        Args:
            at_ns: by the stamps of the images.
            within_ns: at most so far from it; 0: however far.
            max_size: pixels of the longer side.
            source: whose; "": of any camera.

        Raises InvalidParameterError for what no message can hold, and for a camera that the node
        does not have.
        """
        request = GetPicture.Request(max_size=whole_number("max_size", max_size, 0, MAX_UINT32))
        set_stamp(request.stamp, stamp_ns("at_ns", at_ns))
        set_stamp(request.within, stamp_ns("within_ns", within_ns))
        name = await self._of_camera("get_picture", source)
        response = await self._call(name, request, self.patience)
        _refuse(response)
        picture = response.picture
        return (nanoseconds(picture.header.stamp), bytes(picture.data)) if picture.data else None

    # Watching -------------------------------------------------------------------------------------

    @property
    def status(self) -> CacheStatus | None:
        """The newest that the node said of itself; None before the first."""
        return self._seen.status if self._seen is not None else None

    @property
    def statuses(self) -> dict[str, CacheStatus]:
        """The newest of each camera, by its name; "" for the only one of a node."""
        return {name: event for (kind, name), event in self._last.items() if kind is CacheStatus}

    async def first_status(self) -> CacheStatus:
        """The newest status, which a configured node has: the first comes a moment after the client
        was made.

        Raises NodeUnavailableError where none comes within ``patience``.
        """
        end = time.monotonic() + self.patience
        while self.status is None:
            if time.monotonic() > end:
                raise NodeUnavailableError(f"the node {self.name} does not say its status")
            await asyncio.sleep(STEP)
        return self.status

    async def state(self) -> str:
        """Of the node's lifecycle: "active", "inactive", "unconfigured", "finalized", or that of a
        transition, such as "configuring"."""
        response = await self._call("get_state", GetState.Request(), self.patience)
        label: str = response.current_state.label
        return label

    async def is_there(self) -> bool:
        """Whether the node is on the graph.

        Raises NodeUnavailableError where two bear its name.
        """
        seen = await self._seen_names()
        refuse_second(seen, self.name)
        return bool(seen)

    @property
    def earlier(self) -> tuple[Answer, int] | None:
        """The last answer that the node had given before this client came, and when, in nanoseconds
        of the node's machine; None: it had given none, or it has not arrived yet.
        """
        return max(self._earlier.values(), key=lambda one: one[1], default=None)

    def earlier_at(self, event: Event) -> int | None:
        """When, in those nanoseconds, the node had given an answer before this client came; None of
        any other event. Of several cameras :meth:`watch` begins with such an answer of each.
        """
        answer, when = self._earlier.get(getattr(event, "source", ""), (None, 0))
        return when if event is answer else None

    async def watch(self) -> AsyncIterator[Event]:
        """Every status, answer and diagnostic status of the node as they come, from the last status
        and answer on.

        Who looks seldom misses the oldest of more than a thousand.
        """
        queue: asyncio.Queue[Event] = asyncio.Queue()
        for event in self._last.values():
            queue.put_nowait(event)
        self._watchers.add(queue)
        try:
            while True:
                yield await queue.get()
        finally:
            self._watchers.discard(queue)

    def _take_answer(self, answer: Answer, info: dict[str, int]) -> None:
        published = info["source_timestamp"]
        if published < self._came:
            self._earlier[answer.source] = answer, published
        self._tell(answer)

    def _take_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name.startswith(f"{self.name.lstrip('/')}: "):
                self._tell(status)

    def _tell(self, event: Event) -> None:
        """In the client's thread."""
        with suppress(RuntimeError):  # the loop has ended
            self._loop.call_soon_threadsafe(self._spread, event)

    def _spread(self, event: Event) -> None:
        if not isinstance(event, DiagnosticStatus):
            self._last[type(event), event.source] = event
        for queue in self._watchers:
            if queue.qsize() >= KEPT_EVENTS:
                queue.get_nowait()
            queue.put_nowait(event)

    async def until_ready(self) -> None:
        """Wait until the node can be asked.

        Raises NodeUnavailableError after ``patience``, with the reason.
        """
        end = time.monotonic() + self.patience
        while why := await self.ros.run(self._why_not_ready):
            if time.monotonic() > end:
                if not await self.is_there():
                    why = "it has left the graph"
                elif self.status is None:  # it has one from its configuring on
                    why = f"its state is {await self.state()}"
                raise NodeUnavailableError(
                    f"the node {self.name} cannot be asked after {self.patience:.0f} s: {why}"
                )
            await asyncio.sleep(STEP)
        await self.is_there()  # alone

    async def until_alone(self) -> None:
        """Wait until every node there is has been heard, three seconds after the client was made.

        Orders and settings wait for it: one of two nodes of a name must not act on them alone.
        Raises NodeUnavailableError where two bear the name.
        """
        await asyncio.sleep(max(0.0, self._began + ANNOUNCED - time.monotonic()))
        refuse_second(await self._seen_names(), self.name)

    async def now_ns(self) -> int:
        """The time by the node's clock: the machine's, or with ``use_sim_time`` that of /clock.

        Raises NodeUnavailableError where no time comes on /clock within ``patience``.
        """
        if not (await self.get("use_sim_time"))["use_sim_time"]:
            return time.time_ns()
        came: asyncio.Queue[int] = asyncio.Queue()

        def take(message: Clock) -> None:  # in the client's thread
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(came.put_nowait, nanoseconds(message.clock))

        loop, node = asyncio.get_running_loop(), self.ros.node
        hearing = await self.ros.run(
            lambda: node.create_subscription(Clock, "/clock", take, qos_profile_sensor_data)
        )
        try:
            return await asyncio.wait_for(came.get(), self.patience)
        except asyncio.TimeoutError:
            raise NodeUnavailableError(
                f"the node {self.name} goes by /clock, on which no time comes"
            ) from None
        finally:
            await self.ros.run(lambda: node.destroy_subscription(hearing))

    def _why_not_ready(self) -> str:
        assert self._seen is not None
        why = self._seen.why_not_ready()
        return why or ("" if self.action.server_is_ready() else "its action ~/ask is away")

    async def cameras(self) -> list[str]:
        """Names of the node's cameras; none where it has only one, without a name."""
        request = GetParameters.Request(names=["sources"])
        response = await self._call("get_parameters", request, self.patience)
        names: list[str] = list(response.values[0].string_array_value if response.values else ())
        if response.values and (one := response.values[0].string_value):
            names = one.split(",")
        return [name.strip() for name in names if name.strip()]

    # Settings -------------------------------------------------------------------------------------

    async def get(self, *names: str) -> dict[str, Any]:
        """Values of these parameters; of all without a name.

        A camera's own setting (``front.sample_fps``) that is not set is the node's.

        Raises InvalidParameterError for one that it does not have.
        """
        listed = await self._call("list_parameters", ListParameters.Request(), self.patience)
        known = set(listed.result.names)
        cameras = [] if known.issuperset(names) else await self.cameras()
        held_by = {}  # the parameter that has the value
        for name in names or sorted(known):
            source, _, shared = name.partition(".")
            own = source in cameras and shared in known and shared not in DERIVED
            held_by[name] = shared if own and name not in known else name
            if source in cameras and shared in DERIVED[1:] and name not in known:
                raise InvalidParameterError(
                    f"{name} is not set: the node {self.name} makes it of the camera's name"
                )
            if held_by[name] not in known:
                raise InvalidParameterError(
                    f"the node {self.name} has no parameter {cut(str(name))!r}"
                )
        request = GetParameters.Request(names=list(held_by.values()))
        response = await self._call("get_parameters", request, self.patience)
        values = map(parameter_value_to_python, response.values)
        return dict(zip(held_by, values, strict=True))

    async def set(self, **values: Any) -> None:
        """Change parameters, all of them or none; a whole number will do for a float.

        Raises InvalidParameterError for one that it does not have, and with the node's reason, if
        it refuses.
        """
        await self.until_alone()
        for name, now in (await self.get(*values)).items() if values else ():
            if isinstance(now, float) and type(values[name]) is int:
                values[name] = float(values[name])
        parameters = [_parameter(name, value) for name, value in values.items()]
        request = SetParametersAtomically.Request(parameters=parameters)
        response = await self._call("set_parameters_atomically", request, self.patience)
        if not response.result.successful:
            raise InvalidParameterError(response.result.reason or "the node refuses it")

    # Orders ---------------------------------------------------------------------------------------

    # ``source`` is the name of one of several cameras, or several with commas; "", "*": all.

    async def reset(self, source: str = "") -> str:
        """Let the node forget everything; what it says of it."""
        return await self._order("reset", Trigger.Request(), self.patience, source=source)

    async def pause(self, source: str = "") -> str:
        """Let the node stop watching; it goes on answering."""
        return await self._order("pause", Trigger.Request(), self.patience, source=source)

    async def resume(self, source: str = "") -> str:
        """Let the node watch again."""
        return await self._order("resume", Trigger.Request(), self.patience, source=source)

    async def save(self, name: str = "", source: str = "") -> str:
        """Save the memory in the node's folder; "": as the node is set.

        Raises NodeUnavailableError where the node has not replied within ``FILE_PATIENCE``, as
        files take their time.
        """
        request = SaveMemory.Request(name=checked_text("name", name))
        return await self._order("save_memory", request, self._for_files, 1, source)

    async def load(self, name: str = "", source: str = "") -> str:
        """Put a saved memory in the place of the present one; "": as the node is set.

        Raises NodeUnavailableError where the node has not replied within ``FILE_PATIENCE``.
        """
        request = LoadMemory.Request(name=checked_text("name", name))
        return await self._order("load_memory", request, self._for_files, 1, source)

    async def saved_memories(self, source: str = "") -> list[str]:
        """Names of the memories that `load` takes, the newest first."""
        name = await self._of_camera("list_memories", source)
        response = await self._call(name, ListMemories.Request(), self.patience)
        _refuse(response)
        return list(response.names)

    async def transition(self, name: str) -> str:
        """Let the node's lifecycle go on: "configure", "activate", "deactivate" or "cleanup"; what
        came of it.

        Raises StreamVlmError where the node is not in a state for it, or failed, and
        NodeUnavailableError where it has not replied within ``FILE_PATIENCE``.
        """
        if name not in TRANSITIONS:
            raise InvalidParameterError(f"{cut(name)!r} is none of {', '.join(TRANSITIONS)}")
        await self.until_alone()
        before = await self.state()
        request = ChangeState.Request()
        request.transition.id = TRANSITIONS[name]
        done = await self._call("change_state", request, self._for_files, tries=1)
        now = await self.state()
        if not done.success:
            why = f": it is {now}" if now == before else f", and is {now} now"
            raise StreamVlmError(f"the node {self.name} did not {name}{why}; its log says more")
        return f"{self.name} is {now}"

    async def _order(
        self, name: str, request: Any, within: float, tries: int = 3, source: str = ""
    ) -> str:
        await self.until_alone()
        sources = list(dict.fromkeys(one.strip() for one in source.split(",") if one.strip()))
        if "*" in sources:
            sources = []
        names = [await self._of_camera(name, one) for one in sources or [""]]
        told = [_refuse(await self._call(one, request, within, tries)) for one in names]
        if len(told) > 1:
            told = [f"{one}: {words}" for one, words in zip(sources, told, strict=True)]
        return "; ".join(told)

    async def _of_camera(self, name: str, source: str) -> str:
        """A service of one camera; raises InvalidParameterError for one that is not there."""
        if not source:
            return name
        if source not in (there := await self.cameras()):
            known = f": there are {', '.join(there)}" if there else ""
            raise InvalidParameterError(
                f"the node {self.name} has no camera {cut(source)!r}{known}"
            )
        kind = self._services[name].srv_type
        if (name := f"{source}/{name}") not in self._services:
            make = partial(self.ros.node.create_client, kind, f"{self.name}/{name}")
            self._services[name] = await self.ros.run(make)
        return name

    @property
    def _for_files(self) -> float:
        return max(self.patience, FILE_PATIENCE)

    async def _call(self, name: str, request: Any, within: float, tries: int = 3) -> Any:
        """The response of a service of the node.

        Args:
            within: seconds for the response.
            tries: how often it is asked for in that time. A service that has not yet found the
                client's side loses its reply, without a word to either; what must not be done
                twice is asked for once.
        """
        client = self._services[name]
        begin = time.monotonic()
        while not await self.ros.run(client.service_is_ready):
            if time.monotonic() > begin + min(within, self.patience):
                raise NodeUnavailableError(await self._why_away(name))
            await asyncio.sleep(STEP)
        sent: list[asyncio.Future[Any]] = []
        begin = time.monotonic()
        try:
            while True:
                waited = time.monotonic() - begin
                if len(sent) < tries and waited >= len(sent) * within / tries:
                    sent.append(asyncio.ensure_future(self._send(client, request)))
                done, _ = await asyncio.wait(sent, timeout=0.1)
                if done:
                    return next(iter(done)).result()
                if waited > within:
                    raise NodeUnavailableError(
                        f"the node {self.name} did not reply on ~/{name} within {within:.0f} s"
                        f"{'' if name.startswith(READING) else '; it may still be done'}"
                    )
                if not await self.ros.run(client.service_is_ready):
                    raise NodeUnavailableError(f"the node {self.name} ended before it replied")
        finally:
            for one in sent:
                one.cancel()

    async def _send(self, client: Any, request: Any) -> Any:
        return await self.ros.reply(lambda: client.call_async(request))

    async def _why_away(self, service: str) -> str:
        if not await self.is_there():
            return f"the node {self.name} has left the graph"
        state = "" if service == "get_state" else f" (its state is {await self.state()})"
        return f"the node {self.name} has no service ~/{service}{state}"


def graph_text(context: Context | None = None) -> str:
    """ "on this ROS graph" and its domain; None: of a context that is made without another word."""
    if context is not None:
        return f"on this ROS graph (ROS_DOMAIN_ID {context.get_domain_id()})"
    with Context() as context:
        return graph_text(context)


def where_nodes_are() -> str:
    """What to do where there is none on the graph."""
    return (
        "A demo has a ROS domain of its own: export the ROS_DOMAIN_ID that it prints.\n"
        "This starts a node:" + below(node_command())
    )


def nodes_seen_by(node: Node) -> list[str]:
    """Full names of the nodes of this package that ``node`` knows of: those that can be asked, and
    those of the usual name, which may not be configured yet."""
    can_be_asked = {
        service.removesuffix("/query")
        for service, types in node.get_service_names_and_types()
        if QUERY_TYPE in types and service.endswith("/query")
    }
    return sorted(
        name
        for name in names_seen_by(node)
        if name in can_be_asked or name.rpartition("/")[2] == USUAL_NAME
    )


def _parameter(name: str, value: Any) -> Any:
    """As a message; raises InvalidParameterError for what no parameter can be."""
    if isinstance(value, int):
        value = (
            value if isinstance(value, bool) else whole_number(name, value, -MAX_INT64, MAX_INT64)
        )
    try:
        if value is None:
            raise TypeError
        return Parameter(name, value=value).to_parameter_msg()
    except (AssertionError, TypeError, ValueError):  # of rclpy, in words about itself
        raise InvalidParameterError(f"{name} cannot be {cut(repr(value))}") from None


def _refuse(response: Any) -> str:
    """The words of a response; raises StreamVlmError with them where it was no success."""
    words: str = response.message
    if not response.success:
        raise StreamVlmError(words)
    return words
