"""From the start of the process to its end: signals, the executor, the exit status.

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
import os
import re
import signal
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

_rclpy_listens = threading.Event()

THREADS = 3  # of the executor: reports, a transition, and one for everything else
KEPT_BYTES = 128 << 20


def end_quietly_on_signals() -> None:
    """From here on SIGINT and SIGTERM end the process with status 0 and without a traceback.

    To be called before the slow imports. A process started in the background by a shell inherits
    an ignored SIGINT, which this undoes. Once rclpy is initialized, its own handlers shut the
    context down first, and these do nothing more.
    """

    def end(number: int, frame: Any) -> None:
        if not _rclpy_listens.is_set():
            os._exit(0)  # nothing was opened yet, and an import must not print its interruption

    signal.signal(signal.SIGINT, end)
    signal.signal(signal.SIGTERM, end)


def keep_freed_memory() -> None:
    """Let malloc keep the memory of an image for the next one; for glibc, elsewhere nothing.

    By itself it hands buffers of this size back to the system at each image, or does not, as they
    happen to lie: an image of 1920x1080 then costs thousands of page faults, which can take three
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
    """Spin a node until the context is shut down; the exit status of the process.

    It is 1, with one line on stderr, for refused parameters or ROS arguments.
    ``make_node`` returns a node with the methods ``close`` and ``report_fault``.
    """
    import rclpy
    from rclpy.executors import MultiThreadedExecutor
    from rclpy.signals import SignalHandlerOptions, install_signal_handlers

    from stream_vlm_ros.errors import InvalidParameterError

    # Its handlers only when there is an executor: one made after the context was shut down
    # complains in its finalizer. A signal before that ends the process at once.
    try:
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    except Exception as refusal:  # a parameter file that is not there, a remap that is none
        places = r",? at \S+\.c(pp)?:\d+"  # in the sources of rcl
        words = " ".join(re.sub(places, "", str(refusal)).split())
        print(f"stream_vlm: ROS cannot be initialized: {words}", file=sys.stderr, flush=True)
        return 1
    executor = MultiThreadedExecutor(THREADS)
    install_signal_handlers(SignalHandlerOptions.ALL)
    _rclpy_listens.set()
    try:
        node = make_node()
    except InvalidParameterError as refusal:
        print(f"stream_vlm: bad parameter: {refusal}", file=sys.stderr, flush=True)
        rclpy.try_shutdown()
        return 1
    except Exception:
        if not rclpy.ok():  # told to end while the node was being made
            return 0
        raise
    executor.add_node(node)
    try:
        spin(executor, node)
    finally:
        node.close()
        executor.shutdown(timeout_sec=1.0)
        rclpy.try_shutdown()
    return 0


def leave(status: int) -> NoReturn:
    """End the process with ``status``, everything of ROS being closed already.

    Without taking the interpreter down: with torch loaded that takes seconds, of which launch
    allows five from Ctrl-C to SIGTERM, and under a thread that still loads a model or computes a
    long chunk it can crash.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def spin(executor: Any, node: Any) -> None:
    """Spin until the context is shut down. A fault in a callback is logged; the node goes on.

    ``node`` has a method ``report_fault(where, fault)``.
    """
    from rclpy.exceptions import InvalidHandle
    from rclpy.executors import ExternalShutdownException

    while executor.context.ok():
        try:
            executor.spin_once()
        except ExternalShutdownException:
            return
        except InvalidHandle:
            # rclpy's: an entity was destroyed in one thread while another was about to wait on it.
            continue
        except Exception as fault:
            node.report_fault("a callback", fault)
