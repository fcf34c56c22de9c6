# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""`AnswerStream`: one question to a node that runs, and its answer as it is written."""

from __future__ import annotations

import asyncio
import uuid
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from action_msgs.msg import GoalInfo
from rclpy.task import Future
from stream_vlm.action import Ask
from stream_vlm.msg import Answer

from stream_vlm_ros.client.errors import AskError, NodeUnavailableError
from stream_vlm_ros.client.ros_thread import to_its_end

if TYPE_CHECKING:
    from stream_vlm_ros.client.stream_vlm_client import StreamVlmClient

LOOK = 0.5  # s between two looks whether the node is still there
LAST_WORDS = 1.0  # s for an answer that was on its way when the node went


class AnswerStream:
    """Made by `StreamVlmClient.stream`; to be used with ``async with``, whose end cancels what has
    not been answered.

    Iterating gives the text's pieces as the node writes them, mostly one token each; none for a
    question with choices.

    Attributes:
        text: what has been written so far.
        answers: of several cameras, each one's, once the answer is there; else empty.
        sent: whether it is on its way to the node, or there.
    """

    def __init__(self, client: StreamVlmClient, goal: Ask.Goal) -> None:
        self._client, self._goal = client, goal
        self.text = ""
        self.answers: list[Answer] = []
        self._pieces: asyncio.Queue[str | None] = asyncio.Queue()  # None: there are no more
        self._accepted = asyncio.Event()
        self._goal_id = GoalInfo().goal_id
        self._goal_id.uuid = list(uuid.uuid4().bytes)
        self._handle: Any = None
        self.sent = self._abandoned = False  # in the client's thread
        self._cancelled = False
        self._task: asyncio.Task[Answer] | None = None

    async def __aenter__(self) -> AnswerStream:
        self._task = asyncio.ensure_future(self._pursue())
        self._task.add_done_callback(self._end)
        self._client.open_streams.add(self)
        return self

    async def __aexit__(self, *exception: Any) -> None:
        await self.close()

    async def close(self) -> None:
        """Cancel what has not been answered; called by the end of ``async with``, of this or of the
        client."""
        await to_its_end(self._close())

    async def _close(self) -> None:
        task = self._begun()
        try:
            if not task.done():
                with suppress(NodeUnavailableError, asyncio.TimeoutError):
                    await asyncio.wait_for(self.cancel(), LAST_WORDS)
                if self._handle is None:  # the node may take it yet
                    with suppress(NodeUnavailableError):
                        await self._client.ros.run(self._abandon)
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):  # told by answer(), if anybody asked
                await task
            self._client.open_streams.discard(self)

    def __aiter__(self) -> AnswerStream:
        return self

    async def __anext__(self) -> str:
        piece = await self._pieces.get()
        if piece is None:
            self._pieces.put_nowait(None)  # for who asks again
            await self.answer()  # raises what went wrong
            raise StopAsyncIteration
        return piece

    async def answer(self) -> Answer:
        """Wait for the whole answer.

        One that was cancelled here has its text as far as it came, and ``finish_reason``
        "cancelled".

        Raises:
            AskError: the node refused the question, or failed on it.
            NodeUnavailableError: the node is not there, or ended meanwhile.
        """
        return await asyncio.shield(self._begun())

    async def cancel(self) -> None:
        """Let the node write no further token; returns when it knows."""
        self._cancelled = True
        accepted = asyncio.ensure_future(self._accepted.wait())
        try:
            await asyncio.wait({self._begun(), accepted}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            accepted.cancel()
        if self._handle is not None and not self._begun().done():
            await self._client.ros.reply(lambda: self._client.cancel_goal(self._goal_id))

    def _begun(self) -> asyncio.Task[Answer]:
        if self._task is None:
            raise RuntimeError("an answer is used within 'async with client.stream(...) as it'")
        return self._task

    async def _pursue(self) -> Answer:
        """Ask, and wait for the end."""
        client = self._client
        await client.until_ready()
        loop = asyncio.get_running_loop()

        def take(message: Any) -> None:  # in the client's thread
            with suppress(RuntimeError):  # the loop has ended
                loop.call_soon_threadsafe(self._grow, message.feedback.text)

        ros, action = client.ros, client.action

        def send() -> Future:  # in the client's thread
            if self._abandoned:
                raise NodeUnavailableError("the question was left before it was sent")
            self.sent = True
            future: Future = action.send_goal_async(self._goal, take, goal_uuid=self._goal_id)
            future.add_done_callback(taken)
            return future

        def taken(future: Future) -> None:  # in the client's thread
            if self._abandoned and future.exception() is None and future.result().accepted:
                client.cancel_goal(self._goal_id)

        try:
            self._handle = await asyncio.wait_for(ros.reply(send), client.patience)
        except asyncio.TimeoutError:
            await ros.run(self._abandon)
            raise NodeUnavailableError(
                f"the node {client.name} did not take the question within {client.patience:.0f} s"
            ) from None
        if not self._handle.accepted:
            raise NodeUnavailableError(f"the node {client.name} did not take the question")
        self._accepted.set()
        result = await self._result()
        answer, self.answers = result.answer, list(result.answers)
        await client.is_there()  # alone: of two of its name this may be the other one's
        if answer.error_code not in (Answer.NONE, Answer.CANCELLED if self._cancelled else 0):
            raise AskError(answer, self.answers)
        if not self._goal.choices:
            self._grow(answer.text)
        return answer

    def _abandon(self) -> None:
        """In the client's thread: cancel what was sent and is not accepted, now, as the client may
        be about to end, and when it is, as the node may not know it yet."""
        self._abandoned = True
        if self.sent:
            self._client.cancel_goal(self._goal_id)

    async def _result(self) -> Ask.Result:
        """Wait for what comes of the goal, as long as the node is there."""
        client = self._client
        result = asyncio.ensure_future(client.ros.reply(self._handle.get_result_async))
        try:
            while not (await asyncio.wait({result}, timeout=LOOK))[0]:
                if not await client.ros.run(client.action.server_is_ready):
                    await asyncio.wait({result}, timeout=LAST_WORDS)
                    break
            if not result.done():
                raise NodeUnavailableError(
                    f"the node {client.name} ended before it had answered {self._goal.question!r}"
                )
            return result.result().result
        finally:
            result.cancel()

    def _grow(self, text: str) -> None:
        # Each feedback has all of the text, so one that is lost on its way costs nothing.
        if len(text) > len(self.text) and text.startswith(self.text):
            self._pieces.put_nowait(text[len(self.text) :])
            self.text = text

    def _end(self, task: asyncio.Task[Answer]) -> None:
        self._pieces.put_nowait(None)
