# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What another thread does, awaited in a callback: no thread of the executor is held meanwhile."""

from __future__ import annotations

from concurrent.futures import Future as ThreadFuture
from typing import Any

from rclpy.node import Node
from rclpy.task import Future


def awaitable(node: Node, future: ThreadFuture[Any]) -> Future:
    """An rclpy future that is done when ``future`` is; its result is the future's own."""
    executor = node.executor
    assert executor is not None  # a callback of it asks
    done = Future(executor=executor)

    def finish(finished: ThreadFuture[Any]) -> None:
        if not node.context.ok():
            return  # nobody waits any more, and the executor may be gone
        fault = finished.exception()
        if fault is None:
            done.set_result(finished.result())
        else:
            done.set_exception(fault)
        executor.wake()  # rclpy polls what awaits, and only when it is awake

    future.add_done_callback(finish)
    return done
