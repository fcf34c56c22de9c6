# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A node of your own that asks a running stream_vlm node: copy it, and change `Guide`.

It answers each question on the topic "question" on the topic "reply", piece by piece::

    python3 examples/ask_from_your_node.py
    ros2 topic pub --once /question std_msgs/msg/String "{data: 'What do you see?'}"
"""

import asyncio
import traceback
from concurrent.futures import Future

import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from std_msgs.msg import String

from stream_vlm_ros.client import StreamVlmClient
from stream_vlm_ros.errors import StreamVlmError


class Guide(Node):
    """Callbacks run in the thread that spins; what they ask runs in asyncio's loop."""

    def __init__(self, memory: StreamVlmClient, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__("guide")
        self.memory, self.loop = memory, loop
        self.reply = self.create_publisher(String, "reply", 10)
        self.create_subscription(String, "question", self.on_question, 10)
        self.get_logger().info(f"asking {memory.name}")

    def on_question(self, message: String) -> None:
        answer = asyncio.run_coroutine_threadsafe(self.answer(message.data), self.loop)
        answer.add_done_callback(self.on_end)

    def on_end(self, answer: Future) -> None:
        """Say what nobody else would: a fault of this program; none after Ctrl-C, where nothing can
        be published any more."""
        if answer.cancelled() or not self.context.ok():
            return
        if (fault := answer.exception()) is not None:
            trace = "".join(traceback.format_exception(fault))
            self.get_logger().error(f"a question ended by a fault:\n{trace}")

    async def answer(self, question: str) -> None:
        try:
            async with self.memory.stream(question) as pieces:
                async for piece in pieces:
                    self.reply.publish(String(data=piece))
        except StreamVlmError as refusal:  # a full queue, an empty memory, a node that has ended
            self.get_logger().warning(f"no answer to {question!r}: {refusal}")


async def main() -> None:
    async with StreamVlmClient() as memory:  # or StreamVlmClient("/kitchen/stream_vlm")
        guide = Guide(memory, asyncio.get_running_loop())
        try:
            await asyncio.to_thread(rclpy.spin, guide)
        finally:
            rclpy.try_shutdown()  # after Ctrl-C it ends the thread that spins


if __name__ == "__main__":
    rclpy.init()
    try:
        asyncio.run(main())
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except StreamVlmError as fault:  # no node, or two of one name
        raise SystemExit(f"guide: {fault}") from None
