# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A ROS node and the thread that serves it, awaited from asyncio."""

from __future__ import annotations

import asyncio
import threading
import uuid
from collections.abc import Callable, Coroutine
from concurrent.futures import Future as ThreadFuture
from concurrent.futures import InvalidStateError
from contextlib import suppress
from typing import Any, TypeVar

import rclpy
from rclpy.context import Context
from rclpy.exceptions import InvalidHandle
from rclpy.executors import SingleThreadedExecutor
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions
from rclpy.task import Future

from stream_vlm_ros.client.errors import NodeUnavailableError
from stream_vlm_ros.errors import in_words

T = TypeVar("T")
CLOSED = "the client was closed"  # while an order was under way, or before


class RosThread:
    """A node with a name of its own in the graph, and one thread in which all of its calls run.

    Args:
        context: the node is made in it; None: in one of its own, which ends with the thread.

    Attributes:
        node: create entities and call their methods by :meth:`run` and :meth:`reply`.
    """

    def __init__(self, context: Context | None = None) -> None:
        self._own = context is None
        if context is None:
            context = Context()
            rclpy.init(args=[], context=context, signal_handler_options=SignalHandlerOptions.NO)
        self.context = context
        self.node = Node(
            f"stream_vlm_client_{uuid.uuid4().hex[:12]}",
            context=context,
            use_global_arguments=False,
            start_parameter_services=False,
            enable_rosout=False,
        )
        self._executor = SingleThreadedExecutor(context=context)
        self._executor.add_node(self.node)
        self._ending = False
        self._lock = threading.Lock()
        self._awaited: set[ThreadFuture[Any]] = set()
        self._ended = False
        self._fault: Exception | None = None  # what ended the thread
        self._thread = threading.Thread(target=self._spin, name="client", daemon=True)
        self._thread.start()

    @classmethod
    async def started(cls, context: Context | None = None) -> RosThread:
        """Make one; who is cancelled meanwhile leaves none behind."""
        making = asyncio.ensure_future(asyncio.to_thread(cls, context))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:

            async def drop() -> None:
                await asyncio.to_thread((await making).close)

            await to_its_end(drop())
            raise

    def _spin(self) -> None:
        try:
            while not self._ending:
                with suppress(InvalidHandle):  # destroyed while this thread was about to wait
                    self._executor.spin_once(timeout_sec=0.5)
        except Exception as fault:
            # Of a context that was shut down meanwhile, as rclpy's handler of Ctrl-C does with all.
            if self.context.ok():
                self._fault = fault
                raise
        finally:
            with self._lock:
                self._ended = True
            for done in list(self._awaited):
                self._fail(done)

    def close(self) -> None:
        """End the thread and destroy the node; waits for both."""
        self._ending = True
        self._executor.wake()
        self._thread.join()
        self._executor.shutdown()
        self.node.destroy_node()
        if self._own:
            self.context.try_shutdown()

    async def run(self, call: Callable[[], T]) -> T:
        """``call()`` in the thread; its value, or what it raised.

        Raises NodeUnavailableError where ROS was shut down.
        """
        done: ThreadFuture[T] = ThreadFuture()
        self._start(lambda: done.set_result(call()), done)
        return await asyncio.wrap_future(done)

    async def reply(self, send: Callable[[], Future]) -> Any:
        """What comes of the future that ``send()`` returns; sent in the thread."""
        done: ThreadFuture[Any] = ThreadFuture()

        def settle(future: Future) -> None:
            with suppress(InvalidStateError):
                if (fault := future.exception()) is not None:
                    done.set_exception(fault)
                else:
                    done.set_result(future.result())

        self._start(lambda: send().add_done_callback(settle), done)
        return await asyncio.wrap_future(done)

    def _start(self, call: Callable[[], object], done: ThreadFuture[Any]) -> None:
        # From here on only the thread ends it: who waits for it may have gone.
        done.set_running_or_notify_cancel()

        def started() -> None:
            try:
                call()
            except Exception as fault:
                if not self.context.ok():
                    return self._fail(done)
                with suppress(InvalidStateError):
                    done.set_exception(fault)

        with self._lock:
            if self._ended:
                return self._fail(done)
            self._awaited.add(done)
        done.add_done_callback(self._awaited.discard)
        # Not in the caller's thread: rclpy's action client loses a reply that comes before the call
        # that asked for it has returned.
        self._executor.create_task(started)

    def _fail(self, done: ThreadFuture[Any]) -> None:
        why = CLOSED if self._ending else "ROS was shut down in this process"
        if self._fault is not None:
            why = f"the client ended by a fault in one of its callbacks: {in_words(self._fault)}"
        refusal = NodeUnavailableError(why)
        refusal.__cause__ = self._fault
        with suppress(InvalidStateError):
            done.set_exception(refusal)


async def to_its_end(work: Coroutine[Any, Any, T]) -> T:
    """What comes of ``work``, which goes on to its end also where who waits for it is cancelled,
    once or several times; that is raised then."""
    task, told = asyncio.ensure_future(work), None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as cancelled:
            told = cancelled
    if told is not None:
        if not task.cancelled():
            task.exception()  # or asyncio would complain that nobody looked
        raise told
    return task.result()
