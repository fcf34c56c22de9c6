# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The executor of the node, and the memory that its images take.

Which thread does what:

| thread | does | sleeps |
|---|---|---|
| main | waits for callbacks of the node (:func:`spin`) | until one is due: never for images |
| the executor's | run them: reports, transitions, questions in and out | until there is one |
| ``images`` | all there is to do at an image (``image_thread.py``) | until one arrives |
| ``engine`` | all that the model computes (``worker.py``) | until there is a chunk or question |
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from typing import Any

from stream_vlm_ros.processes import ros_process

THREADS = 3  # of the executor: reports, a transition, and one for everything else
KEPT_BYTES = 128 << 20


def keep_freed_memory() -> None:
    """Let malloc keep the memory of an image for the next one; for glibc, elsewhere nothing.

    By default glibc may return buffers of this size to the kernel after every image, depending on
    heap layout: an image of 1920x1080 then costs thousands of page faults, which can take three
    times as long as everything else about it. Up to ``KEPT_BYTES`` stay with the process for that.
    To be called before there are other threads: the heap that a thread has is left to it.
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return
    m_trim_threshold, m_mmap_threshold, m_arena_max = -1, -3, -8  # of malloc.h
    mallopt(m_mmap_threshold, 32 << 20)  # larger buffers are mapped one by one; no more is taken
    mallopt(m_trim_threshold, KEPT_BYTES)
    # The heaps of further arenas hold 64 MB each, and are unmapped as soon as they are empty.
    mallopt(m_arena_max, 1)


def run(make_node: Callable[[], Any], arguments: list[str] | None = None) -> int:
    """Spin a node until the process is told to end; the exit status of the process.

    ``make_node`` returns a node with the methods ``close`` and ``report_fault``.
    """
    return ros_process.run("stream_vlm", lambda: _Spinning(make_node), _Spinning.run, arguments)


class _Spinning:
    """A node and the executor that serves it."""

    def __init__(self, make_node: Callable[[], Any]) -> None:
        self._executor = make_executor()
        self._node = make_node()
        self._executor.add_node(self._node)

    def run(self) -> int:
        spin(self._executor, self._node)
        return 0

    def close(self) -> None:
        with ExitStack() as steps:
            steps.callback(self._executor.shutdown, timeout_sec=0.0)
            steps.callback(self._node.close)
            # What a callback is using when it is destroyed, is destroyed by its thread a little
            # later, and the process would end in the middle of that.
            self._executor.wait_for_callbacks(ros_process.END_TIMEOUT)


def make_executor() -> Any:
    """An executor with ``THREADS`` threads, as rclpy's own, whose callbacks can be waited for."""
    from rclpy.executors import (
        Executor,
        ExternalShutdownException,
        ShutdownException,
        TimeoutException,
    )

    class CallbackPool(Executor):
        def __init__(self) -> None:
            super().__init__()
            self._pool = ThreadPoolExecutor(THREADS, thread_name_prefix="callbacks")
            self._calls: list[tuple[Any, Future[None]]] = []

        def spin_once(self, timeout_sec: float | None = None) -> None:
            try:
                task, _, _ = self.wait_for_ready_callbacks(timeout_sec)
            except (ExternalShutdownException, ShutdownException, TimeoutException):
                return
            self._calls.append((task, self._pool.submit(task)))
            over = [task for task, _ in self._calls if task.done()]
            self._calls = [(task, call) for task, call in self._calls if not task.done()]
            for task in over:
                task.result()  # raises what the callback raised

        def wait_for_callbacks(self, seconds: float) -> None:
            wait([call for _, call in self._calls], seconds)

    return CallbackPool()


def spin(executor: Any, node: Any) -> None:
    """Spin until the context is shut down. A fault in a callback is logged; the node goes on.

    ``node`` has a method ``report_fault(where, fault)``.
    """
    from rclpy.executors import ExternalShutdownException

    while executor.context.ok():
        try:
            executor.spin_once()
        except ExternalShutdownException:
            return
        except Exception as fault:
            if not is_of_what_went(fault):
                node.report_fault("a callback", fault)


def is_of_what_went(fault: Exception) -> bool:
    """Whether it is rclpy's: an entity was destroyed in one thread while another was about to wait
    on it."""
    from rclpy.exceptions import InvalidHandle

    from stream_vlm_ros.node.image_input import RCLError

    # Of an action it says so in words alone.
    unnamed = isinstance(fault, RCLError) and "to wait set" in str(fault)
    return unnamed or isinstance(fault, InvalidHandle)
