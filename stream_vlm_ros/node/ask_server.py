# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Questions come in and answers go out: ``~/query``, ``~/ask``, ``~/answer``, past ones by
``~/get_answers``; and ``~/reset``."""

from __future__ import annotations

import json
from concurrent.futures import Future as ThreadFuture
from typing import TYPE_CHECKING, Any

from builtin_interfaces.msg import Time
from rclpy.action import ActionServer, CancelResponse
from rclpy.callback_groups import MutuallyExclusiveCallbackGroup, ReentrantCallbackGroup
from rclpy.qos import DurabilityPolicy, HistoryPolicy, QoSProfile, ReliabilityPolicy
from std_srvs.srv import Trigger
from stream_vlm.action import Ask
from stream_vlm.msg import Answer, PastAnswer
from stream_vlm.srv import GetAnswers, Query

from stream_vlm_ros.console import plural
from stream_vlm_ros.errors import StreamVlmError, cut
from stream_vlm_ros.node import interfaces
from stream_vlm_ros.node.awaiting import awaitable
from stream_vlm_ros.plain_messages import fill, to_dict
from stream_vlm_ros.session.answer_log import AnswerLog, Found
from stream_vlm_ros.session.counters import Drop
from stream_vlm_ros.session.ingest import FrameIngest
from stream_vlm_ros.session.question import (
    WRITING,
    NotActiveError,
    Outcome,
    Progress,
    Question,
    Ticket,
)
from stream_vlm_ros.session.worker import EngineWorker

if TYPE_CHECKING:
    from stream_vlm_ros.node.stream_vlm_node import StreamVlmNode

LATCHED = QoSProfile(
    depth=1, reliability=ReliabilityPolicy.RELIABLE, durability=DurabilityPolicy.TRANSIENT_LOCAL
)
# ROS's own for services keeps ten requests, and who sent one more is never answered, nor told so.
EACH_ONE = QoSProfile(history=HistoryPolicy.KEEP_ALL, reliability=ReliabilityPolicy.RELIABLE)


class AskServer:
    """From the configuring of ``node`` to its cleaning up. No question holds a thread of the
    executor while it waits for its answer.

    Attributes:
        answers, errors: how many questions have been answered, and how many ended in an error.
        tickets: of the goals of ``~/ask`` that have not ended.
    """

    def __init__(
        self, node: StreamVlmNode, worker: EngineWorker, ingest: FrameIngest, log: AnswerLog
    ) -> None:
        self._node, self._worker, self._ingest, self._log = node, worker, ingest, log
        self.answers = self.errors = 0
        self.tickets: dict[bytes, Ticket] = {}
        group = ReentrantCallbackGroup()  # no question waits for the one before it
        self._answers = node.create_publisher(Answer, "~/answer", LATCHED)
        self._services = [
            node.create_service(service, name, callback, qos_profile=EACH_ONE, callback_group=group)
            for service, name, callback in (
                (Query, "~/query", self._on_query),
                (GetAnswers, "~/get_answers", self._on_get_answers),
                (Trigger, "~/reset", self._on_reset),
            )
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
        self._node.destroy_publisher(self._answers)

    # The service ----------------------------------------------------------------------------------

    async def _on_query(self, request: Any, response: Any) -> Any:
        try:
            outcome = await self.answered(self._ask(request))
            response.answer = interfaces.to_answer(outcome, self._node.cache_status())
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

        def progress(state: str, text: str) -> None:
            code = Ask.Feedback.WRITING if state == WRITING else Ask.Feedback.READING
            try:
                goal_handle.publish_feedback(Ask.Feedback(state=code, text=text))
            except Exception as fault:  # of no concern to the answer
                self._node.report_fault("feedback of ~/ask", fault)

        goal_handle.publish_feedback(Ask.Feedback(state=Ask.Feedback.WAITING))
        ticket = self._ask(goal_handle.request, progress)
        goal = bytes(goal_handle.goal_id.uuid)
        self.tickets[goal] = ticket
        try:
            if goal_handle.is_cancel_requested:  # before there was a ticket
                ticket.cancel()
            outcome = await self.answered(ticket)
        finally:
            del self.tickets[goal]
        result = Ask.Result(answer=interfaces.to_answer(outcome, self._node.cache_status()))
        if goal_handle.is_cancel_requested:
            goal_handle.canceled()
        elif outcome.error is not None:
            goal_handle.abort()
        else:
            goal_handle.succeed()
        return result

    def _on_cancel(self, goal_handle: Any) -> CancelResponse:
        ticket = self.tickets.get(bytes(goal_handle.goal_id.uuid))
        if ticket is not None:
            ticket.cancel()
        return CancelResponse.ACCEPT

    # Both -----------------------------------------------------------------------------------------

    def _ask(self, request: Any, progress: Progress | None = None) -> Ticket:
        """Queue the question in a request; a bad one gets a ticket that is done already."""
        try:
            question = interfaces.to_question(request, self._node.parameters)
            if self._node.state != "active":
                raise NotActiveError(f"the node is {self._node.state}, not active")
        except StreamVlmError as refusal:
            ticket = Ticket(Question(request.question, tuple(request.choices)))
            memory = self._worker.memory
            ticket.future.set_result(Outcome(ticket.question, error=refusal, memory=memory))
        else:
            ticket = self._worker.ask(question, progress)
        ticket.future.add_done_callback(self._on_answered)
        return ticket

    async def answered(self, ticket: Ticket) -> Outcome:
        """Wait for a ticket."""
        outcome: Outcome = await awaitable(self._node, ticket.future)
        return outcome

    def _on_answered(self, future: ThreadFuture[Outcome]) -> None:
        try:
            self._tell(future.result())
        except Exception as fault:
            self._node.report_fault("~/answer", fault)

    def _tell(self, outcome: Outcome) -> None:
        """Count an answer and publish it."""
        if outcome.error is None:
            self.answers += 1
        else:
            self.errors += 1
            self._node.get_logger().warning(
                f"a question got no answer: {outcome.error.code}: {cut(str(outcome.error))}"
            )
        message = interfaces.to_answer(outcome, self._node.cache_status())
        self._node.publish(self._answers, message)
        if (annotated := self._node.annotated) is not None:
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

    async def _on_reset(self, request: Any, response: Any) -> Any:
        try:
            self._ingest.clear(Drop.RESET)
            await awaitable(self._node, self._worker.reset(Drop.RESET))
        except StreamVlmError as refusal:
            response.message = str(refusal)
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
