# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A ROS process from its first line to its last: signals, the context, the way out.

Every program of this package that is a node runs by :func:`run`. Fast DDS keeps files in /dev/shm
for as long as a context has a node; only a node that is destroyed takes them away again. So there
is one way out, by the front door, whatever asks for the end: a signal at any moment, an error, or
the end of the work.
"""

from __future__ import annotations

import gc
import os
import re
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any, NoReturn, Protocol, TypeVar

from stream_vlm_ros.errors import InvalidParameterError, StreamVlmError
from stream_vlm_ros.processes.children import ENDING_SIGNALS

INTERRUPTED = 130  # a shell's exit status after Ctrl-C, for programs that were to come to an end
# s from a signal to the end of work that does not look up, such as a read from a dead camera;
# launch allows five until its next signal.
PATIENCE = 3.5
END_TIMEOUT = 1.0  # s, for each thing that is waited for when the process ends

_opened = threading.Event()  # from here on there may be something to close


class Closable(Protocol):
    """A node, and whatever else its program opened."""

    def close(self) -> None:
        """Destroy the node; called once, from whichever thread ends the process.

        It may take the seconds of an attribute ``patience``, if there is one, besides the usual.
        """


Opened = TypeVar("Opened", bound=Closable)


def end_quietly_on_signals(status: int = 0) -> None:
    """From here on SIGINT, SIGTERM and SIGHUP end the process with ``status``, without a traceback.

    To be called before the slow imports. A process started in the background by a shell inherits
    an ignored SIGINT, which this undoes; an ignored SIGHUP is kept, since nohup means it. Once
    :func:`run` has opened ROS, it closes it first.
    """

    def end(number: int, frame: Any) -> None:
        if not _opened.is_set():
            os._exit(status)  # nothing was opened yet, and an import must not print its end

    for number in ENDING_SIGNALS:
        if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, end)


def run(
    program: str,
    make: Callable[[], Opened],
    work: Callable[[Opened], int],
    arguments: list[str] | None = None,
    *,
    interrupted: int = 0,
    refused: int = 1,
) -> int:
    """Open ROS, let ``make`` make a node and ``work`` use it, and close everything.

    ``work`` returns when it is done or the context has been shut down; it may also raise then,
    whatever it was in the middle of.

    Args:
        program: named in front of errors on stderr.
        interrupted: the exit status after a signal.
        refused: the exit status where ``make`` or ``work`` raises a StreamVlmError.

    Returns:
        The exit status: that of ``work``; 1 with one line on stderr for bad ROS arguments, and
        with a traceback for any other exception.
    """
    import rclpy
    from rclpy.signals import SignalHandlerOptions

    try:
        rclpy.init(args=arguments, signal_handler_options=SignalHandlerOptions.NO)
    except Exception as refusal:  # a parameter file that is not there, a remap that is none
        places = r",? at \S+\.c(pp)?:\d+"  # in the sources of rcl
        words = " ".join(re.sub(places, "", str(refusal)).split())
        print(f"{program}: ROS cannot be initialized: {words}", file=sys.stderr, flush=True)
        return 1
    ending = _Ending(rclpy.get_default_context(), interrupted)
    opened = None
    try:
        # A signal meanwhile waits: what a half-made node holds, nobody could give back.
        opened = make()
        ending.close = opened.close
        ending.more_patience = lambda: getattr(opened, "patience", 0.0)
        ending.may_come.set()
        status = work(opened)
        return interrupted if ending.told.is_set() else status
    except StreamVlmError as error:
        if ending.told.is_set():
            return interrupted
        what = "bad parameter: " if isinstance(error, InvalidParameterError) else ""
        print(f"{program}: {what}{error}", file=sys.stderr, flush=True)
        return refused
    except Exception:
        if ending.told.is_set():  # in the middle of something, which then failed for that
            return interrupted
        traceback.print_exc()
        return 1
    finally:
        ending.leave()


def is_on_the_graph(name: str, seconds: float = 3.5) -> bool:
    """Whether a node of that full name is there, after listening for at most so long.

    Fast DDS announces a participant every three seconds.
    """
    import rclpy
    from rclpy.context import Context
    from rclpy.node import Node

    context = Context()
    rclpy.init(args=[], context=context)
    with ExitStack() as steps:
        steps.callback(context.try_shutdown)
        node = Node(
            f"looking_{os.getpid()}",
            context=context,
            use_global_arguments=False,
            start_parameter_services=False,
        )
        steps.callback(node.destroy_node)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if name in names_seen_by(node):
                return True
            time.sleep(0.05)
        return False


def names_seen_by(node: Any) -> list[str]:
    """Full names of the nodes that ``node`` knows of; one is in it twice where two bear it."""
    return [
        f"{namespace.rstrip('/')}/{name}"
        for name, namespace in node.get_node_names_and_namespaces()
    ]


def leave(status: int) -> NoReturn:
    """End the process with ``status``, everything of ROS being closed already.

    Without taking the interpreter down: with torch loaded that takes seconds, of which launch
    allows five from Ctrl-C to SIGTERM, and under a thread that still loads a model or computes a
    long chunk it can crash.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


class _Ending:
    """Shuts a context down at a signal, and closes what was opened in it.

    rclpy's own handlers do not know SIGHUP, and strike while a node is being made.
    """

    def __init__(self, context: Any, interrupted: int) -> None:
        self.told = threading.Event()
        self.may_come = threading.Event()  # the node is made, or will never be
        self.close: Callable[[], None] | None = None
        self.more_patience: Callable[[], float] = lambda: 0.0
        self._context = context
        self._interrupted = interrupted
        self._closing = threading.Lock()
        self._closed = threading.Event()
        # Python's handlers run in the main thread, which may wait in C for long. The number of a
        # signal is written here at once, whatever the main thread is doing.
        self._numbers, writer = socket.socketpair()
        writer.setblocking(False)
        signal.set_wakeup_fd(writer.detach(), warn_on_full_buffer=False)
        threading.Thread(target=self._listen, name="signals", daemon=True).start()
        _opened.set()

    def _listen(self) -> None:
        while self._numbers.recv(1)[0] not in ENDING_SIGNALS:
            pass
        self.told.set()
        end = time.monotonic() + PATIENCE
        self.may_come.wait(PATIENCE)
        end += self.more_patience()
        self._context.try_shutdown()
        if not self._closed.wait(end - time.monotonic()):
            self.leave()
            leave(self._interrupted)

    def leave(self) -> None:
        """Close everything; waits a little for a thread that is at it already."""
        self.may_come.set()
        if not self._closing.acquire(timeout=1.0):
            return
        with ExitStack() as steps:
            steps.callback(self._closing.release)
            if not self._closed.is_set():
                steps.callback(self._closed.set)
                steps.callback(self._context.try_shutdown)
                # Without a close: a node that could not be made is in no more than its own circles.
                steps.callback(self.close or gc.collect)
