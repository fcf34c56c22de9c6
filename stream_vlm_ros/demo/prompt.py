# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Questions typed at the terminal, on their way to the demo's client.

The program that was called owns the terminal, and so Ctrl-C. Its client, in a session of its own,
has one end of a socket pair as stdin: it sends a byte for each question that it is ready for.
"""

from __future__ import annotations

import contextlib
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence

MARK = "? "  # in front of what is typed
READY = b"\n"
HELP = ("", "?", "help")  # what is no question, but asks what to ask
LONGEST = 100_000  # characters of a line that are passed on; the node refuses far shorter ones


def on_a_terminal() -> bool:
    """Whether somebody can type there, and see what comes of it."""
    return all(stream is not None and stream.isatty() for stream in (sys.stdin, sys.stdout))


class Prompt:
    """The terminal's end.

    Args:
        examples: questions that suit the video.

    Attributes:
        far_end: of the client, for its stdin; closed here once the client has it.
        open: it has been shown, and more may be typed.
    """

    def __init__(self, examples: Sequence[str]) -> None:
        self._examples = examples
        self._channel, self.far_end = socket.socketpair()
        self.open = self._over = False
        self._hint = "Your turn: ask about what was seen; help shows examples. Ctrl-C ends it."
        with contextlib.suppress(ImportError):  # without it, lines cannot be edited
            import readline  # noqa: F401

    def __enter__(self) -> Prompt:
        return self

    def __exit__(self, *exception: object) -> None:
        self.far_end.close()
        self._channel.close()

    def is_wanted(self, seconds: float) -> bool:
        """Whether the client asks for a question; waits at most so long."""
        if self._over:
            threading.Event().wait(seconds)
            return False
        if not select.select([self._channel], [], [], seconds)[0]:
            return False
        with contextlib.suppress(ConnectionError):
            if self._channel.recv(1):
                return True
        self._over = True  # the client has ended
        return False

    def pass_on(self, trouble: Callable[[], object]) -> None:
        """Read a question and send it; the end of all, where there is ``trouble()`` meanwhile."""
        self.open = True
        if self._hint:
            print(self._hint)
            self._hint = ""
        try:
            with _interrupted_by(trouble):
                while (text := " ".join(input(MARK).split())[:LONGEST]).lower() in HELP:
                    print("Ask, for example:", *self._examples, sep="\n    ")
            self._channel.sendall(f"{text}\n".encode(errors="replace"))
        except (EOFError, KeyboardInterrupt):
            print(flush=True)
            self.end()
        except OSError:  # the client has ended
            self._over = True

    def end(self) -> None:
        """No more questions: the client comes to its summary."""
        self.open, self._over = False, True
        self._channel.close()


@contextlib.contextmanager
def _interrupted_by(trouble: Callable[[], object]) -> Iterator[None]:
    """A KeyboardInterrupt here as soon as ``trouble()``: nothing else ends the wait for a line.

    Nor does a Ctrl-C that comes between the mark's being shown and that wait: it is repeated.
    """
    over = threading.Event()
    came, comes = socket.socketpair()
    comes.setblocking(False)

    def watch() -> None:
        while not over.wait(0.2):
            if trouble() or select.select([came], [], [], 0)[0]:
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)
                return

    with came, comes:
        before = signal.set_wakeup_fd(comes.fileno(), warn_on_full_buffer=False)
        watching = threading.Thread(target=watch, daemon=True)
        watching.start()
        try:
            yield
        finally:
            over.set()
            watching.join()
            signal.set_wakeup_fd(before)


def typed_questions() -> Iterator[str]:
    """The client's end: each question as it comes, until there are no more."""
    with socket.socket(fileno=sys.stdin.fileno()) as channel, channel.makefile("rb") as lines:
        while True:
            try:
                channel.sendall(READY)
                line = lines.readline()
            except ConnectionError:  # ended while the last one was answered
                return
            if not line:
                return
            if text := line.decode(errors="replace").strip():
                yield text
