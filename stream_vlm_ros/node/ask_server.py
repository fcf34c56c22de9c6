# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Questions come in and answers go out: ``~/query``, ``~/ask``, ``~/answer``, past ones by
``~/get_answers``; and ``~/reset``."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from concurrent.futures import Future as ThreadFuture
from functools import partial
from typing import TYPE_CHECKING, Any

from builtin_interfaces.msg import Time
from rclpy.action import ActionServer, CancelResponse
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from std_srvs.srv import Trigger
from stream_vlm.action import Ask
from stream_vlm.msg import Answer, CacheStatus, PastAnswer
from stream_vlm.srv import GetAnswers, Query

from stream_vlm_ros.console import plural
from stream_vlm_ros.errors import StreamVlmError, cut
from stream_vlm_ros.node import interfaces
from stream_vlm_ros.node.awaiting import awaitable
from stream_vlm_ros.node.publishing import publish_on, unpublish
from stream_vlm_ros.plain_messages import fill, to_dict
from stream_vlm_ros.session.answer_log import AnswerLog, Found
from stream_vlm_ros.session.counters import Drop
from stream_vlm_ros.session.memory_summary import MemorySummary
from stream_vlm_ros.session.question import (
    READING,
    WRITING,
    NotActiveError,
    Outcome,
    Progress,
    Question,
    Ticket,
)

if TYPE_CHECKING:
    from stream_vlm_ros.node.camera import Camera
    from stream_vlm_ros.node.stream_vlm_node import StreamVlmNode

# ROS's own for services keeps ten requests, and who sent one more is never answered, nor told so.
EACH_ONE = QoSProfile(history=HistoryPolicy.KEEP_ALL, reliability=ReliabilityPolicy.RELIABLE)


class Asked:
    """A request on its way: a question to each of the cameras that it is for, in their order."""

    def __init__(self, tickets: Sequence[tuple[Camera | None, Ticket]]) -> None:
        self.tickets = tickets

    def cancel(self) -> None:
        """Ask for an early end of all."""
        for _, ticket in self.tickets:
            ticket.cancel()


class Written:
    """What several cameras have written so far, as one text that only grows: the first one's, then,
    once that is complete, the second one's, and so on.

    Args:
        progress: is told of it.
    """

    def __init__(self, names: Sequence[str], progress: Progress) -> None:
        self._texts = dict.fromkeys(names, "")
        self._complete: set[str] = set()
        self._progress = progress

    def grow(self, name: str, state: str, text: str) -> None:
        """One of them has written so much."""
        self._texts[name] = text
        shown = []
        for one, its in self._texts.items():
            shown.append((one, its))
            if one not in self._complete:
                break
        written = any(its for _, its in shown)
        self._progress(WRITING if written else READING, interfaces.named_texts(shown))

    def complete(self, name: str, future: ThreadFuture[Outcome]) -> None:
        """One of them has written its last."""
        self._complete.add(name)


class AskServer:
    """From the configuring of ``node`` to its cleaning up. No question holds a thread of the
    executor while it waits for its answer.

    Attributes:
        asked: of the goals of ``~/ask`` that have not ended.
    """

    def __init__(self, node: StreamVlmNode, cameras: Sequence[Camera], log: AnswerLog) -> None:
        self._node, self._log = node, log
        self._cameras = {camera.name: camera for camera in cameras}
        self.asked: dict[bytes, Asked] = {}
        group = ReentrantCallbackGroup()  # no question waits for the one before it
        latched = interfaces.latched(len(cameras))
        self._answers = publish_on(node, Answer, "~/answer", latched)
        resets: list[tuple[str, Sequence[Camera]]] = [("~/reset", cameras)]
        resets += [(camera.topic("reset"), [camera]) for camera in cameras if camera.name]
        callbacks: list[tuple[Any, str, Callable[..., Any]]] = [
            (Query, "~/query", self._on_query),
            (GetAnswers, "~/get_answers", self._on_get_answers),
            *((Trigger, name, partial(self._on_reset, some)) for name, some in resets),
        ]
        self._services = [
            node.create_service(service, name, callback, qos_profile=EACH_ONE, callback_group=group)
            for service, name, callback in callbacks
        ]
        self._action = ActionServer(
            node,
            Ask,
            "~/ask",
            self._on_ask,
            # Not the group of the questions: rclpy takes goals and cancels by one waitable.
            callback_group=MutuallyExclusiveCallbackGroup(),
            cancel_callback=self._on_cancel,
            goal_service_qos_profile=EACH_ONE,
            result_service_qos_profile=EACH_ONE,
            cancel_service_qos_profile=EACH_ONE,
        )

    def destroy(self) -> None:
        """Take everything off the graph."""
        self._action.destroy()
        for service in self._services:
            self._node.destroy_service(service)
        unpublish(self._node, self._answers)

    # The service ----------------------------------------------------------------------------------

    async def _on_query(self, request: Any, response: Any) -> Any:
        try:
            await self._fill(response, self._ask(request))
        except Exception as fault:
            self._node.report_fault("~/query", fault)
            response.answer = interfaces.to_fault(fault)
        return response

    # The action -----------------------------------------------------------------------------------

    async def _on_ask(self, goal_handle: Any) -> Any:
        try:
            return await self._pursue(goal_handle)
        except Exception as fault:
            self._node.report_fault("~/ask", fault)
            if goal_handle.is_active:
                goal_handle.abort()
            return Ask.Result(answer=interfaces.to_fault(fault))

    async def _pursue(self, goal_handle: Any) -> Any:
        """The result of a goal."""

        def tell(state: str, text: str) -> None:
            code = Ask.Feedback.WRITING if state == WRITING else Ask.Feedback.READING
            try:
                goal_handle.publish_feedback(Ask.Feedback(state=code, text=text))
            except Exception as fault:  # of no concern to the answer
                self._node.report_fault("feedback of ~/ask", fault)

        goal_handle.publish_feedback(Ask.Feedback(state=Ask.Feedback.WAITING))
        asked = self._ask(goal_handle.request, tell)
        goal = bytes(goal_handle.goal_id.uuid)
        self.asked[goal] = asked
        result = Ask.Result()
        try:
            if goal_handle.is_cancel_requested:  # before there was a ticket
                asked.cancel()
            await self._fill(result, asked)
        finally:
            del self.asked[goal]
        if goal_handle.is_cancel_requested:
            goal_handle.canceled()
        elif result.answer.error_code != Answer.NONE:
            goal_handle.abort()
        else:
            goal_handle.succeed()
        return result

    def _on_cancel(self, goal_handle: Any) -> CancelResponse:
        asked = self.asked.get(bytes(goal_handle.goal_id.uuid))
        if asked is not None:
            asked.cancel()
        return CancelResponse.ACCEPT

    # Both -----------------------------------------------------------------------------------------

    def _ask(self, request: Any, progress: Progress | None = None) -> Asked:
        """Queue the question in a request; a bad one gets a ticket that is done already."""
        tickets: list[tuple[Camera | None, Ticket]] = []
        try:
            names = interfaces.sources_asked(request.source, list(self._cameras))
            cameras = [self._cameras[name] for name in names]
            questions = [interfaces.to_question(request, one.settings) for one in cameras]
            if self._node.state != "active":
                raise NotActiveError(f"the node is {self._node.state}, not active")
        except StreamVlmError as refusal:
            only = next(iter(self._cameras.values())) if len(self._cameras) == 1 else None
            ticket = Ticket(Question(request.question, tuple(request.choices)))
            memory = only.worker.memory if only is not None else MemorySummary()
            ticket.future.set_result(Outcome(ticket.question, error=refusal, memory=memory))
            tickets.append((only, ticket))
        else:
            written = Written(names, progress) if len(names) > 1 and progress else None
            for camera, question in zip(cameras, questions, strict=True):
                told = progress if written is None else partial(written.grow, camera.name)
                if (delta := camera.delta) is not None:
                    told = delta.telling(told)
                ticket = camera.worker.ask(question, told)
                if written is not None:
                    ticket.future.add_done_callback(partial(written.complete, camera.name))
                tickets.append((camera, ticket))
        for asked, ticket in tickets:
            ticket.future.add_done_callback(partial(self._on_answered, asked))
        return Asked(tickets)

    async def _fill(self, response: Any, asked: Asked) -> None:
        """Wait for all answers, and put them into a response or result."""
        answers = []
        for camera, ticket in asked.tickets:
            outcome: Outcome = await awaitable(self._node, ticket.future)
            answers.append(interfaces.to_answer(outcome, self._status_of(camera)))
        response.answer = interfaces.to_joint_answer(answers)
        response.answers = answers if len(answers) > 1 else []

    def _status_of(self, camera: Camera | None) -> CacheStatus:
        return CacheStatus(state=self._node.state) if camera is None else camera.cache_status()

    def _on_answered(self, camera: Camera | None, future: ThreadFuture[Outcome]) -> None:
        try:
            self._tell(camera, future.result())
        except Exception as fault:
            self._node.report_fault("~/answer", fault)

    def _tell(self, camera: Camera | None, outcome: Outcome) -> None:
        """Count an answer and publish it."""
        if outcome.error is not None:
            words = f"a question got no answer: {outcome.error.code}: {cut(str(outcome.error))}"
            self._node.warn(words if camera is None else camera.said(words))
        if camera is not None:
            camera.count(outcome)
        message = interfaces.to_answer(outcome, self._status_of(camera))
        self._node.publish(self._answers, message)
        if camera is not None and (annotated := camera.annotated) is not None:
            annotated.tell(message)
        self._log.add(
            self._node.get_clock().now().nanoseconds,
            message.question,
            message.text,
            to_dict(message, leave_out=("thumbnails",)),
        )

    # Past answers ---------------------------------------------------------------------------------

    async def _on_get_answers(self, request: Any, response: Any) -> Any:
        from_ns = interfaces.from_time(request.from_time)
        to_ns = interfaces.from_time(request.to_time)
        try:
            future = self._log.find(from_ns, to_ns, request.text, request.limit)
            found = await awaitable(self._node, future)
            response.answers, unreadable = _past_answers(found)
        except StreamVlmError as refusal:
            response.message = cut(str(refusal))
            return response
        except Exception as fault:
            self._node.report_fault("~/get_answers", fault)
            response.message = cut(f"internal error: {fault!r}; see the node's log")
            return response
        response.success, response.found = True, found.total
        told = [f"kept in {cut(self._log.where)}"]
        if unreadable:
            told.append(f"{plural(unreadable, 'answer')} there cannot be read")
        if self._log.lost:
            lost = plural(self._log.lost, "answer")
            told.append(f"{lost} could not be kept: {self._log.why_lost}")
        response.message = cut("; ".join(told))
        return response

    # Forgetting -----------------------------------------------------------------------------------

    async def _on_reset(self, cameras: Sequence[Camera], request: Any, response: Any) -> Any:
        try:
            for camera in cameras:
                camera.ingest.clear(Drop.RESET)
            resets = [camera.worker.reset(Drop.RESET) for camera in cameras]
            refusals = []
            for camera, reset in zip(cameras, resets, strict=True):
                try:
                    await awaitable(self._node, reset)
                except StreamVlmError as refusal:
                    refusals.append(camera.said(str(refusal)))
            if refusals:
                response.message = cut("; ".join(refusals))
                return response
        except Exception as fault:
            self._node.report_fault("~/reset", fault)
            response.message = f"internal error: {fault!r}; see the node's log"
            return response
        response.success = True
        response.message = "the memory is empty"
        return response


def _past_answers(found: Found) -> tuple[list[PastAnswer], int]:
    """As messages, and how many cannot be read: the file may have been written by others, too."""
    past, unreadable = [], found.unreadable
    for answered_ns, fields in found.answers:
        try:
            json.dumps(fields, ensure_ascii=False).encode()  # half a character cannot be sent
            answered = fill(Time(), to_dict(interfaces.to_time(answered_ns)))
            past.append(PastAnswer(answered=answered, answer=fill(Answer(), fields)))
        except (AssertionError, AttributeError, TypeError, ValueError):
            unreadable += 1
    return past, unreadable
