# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""How a session ends: its chunks, its file, its answers, its engine, in this order.

For the one thread whose `Session.begin_end` was true. What is waited for shares one deadline,
whatever is stuck: the engine, the disk, or what others save.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import wait

from stream_vlm_ros.serve.events import Sent
from stream_vlm_ros.serve.session import Session
from stream_vlm_ros.serve.session_errors import NotSavedError, ServerEndingError
from stream_vlm_ros.session.counters import Drop

log = logging.getLogger(__name__)

END_TIMEOUT = 5.0  # s, for what the engine is doing at the moment
# Shares of the time, from the start: for what waits and is being answered, where it is saved, too;
# and until it is saved. The rest is the engine's, to go.
WAITING, SAVING = 0.6, 0.9
POLL = 0.01  # s


class _Deadline:
    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    @property
    def left(self) -> float:
        return max(0.0, self._until - time.monotonic())

    def wait_while(self, holds: Callable[[], bool]) -> None:
        while holds() and self.left:
            time.sleep(POLL)


def end(session: Session, *, timeout: float = END_TIMEOUT, unsaved: bool = True) -> bool:
    """Wait for the chunks that wait, save it, and end it; or where its life ``forgets`` end it at
    once. Questions are answered while it is being saved. Whether nothing saved of it has stayed.

    Args:
        timeout: seconds that all of it takes at most.
        unsaved: it ends also where it cannot be saved.

    Raises NotSavedError; the session goes on.
    """
    life, worker = session.life, session.worker
    over, saving = _Deadline(timeout), _Deadline(SAVING * timeout)
    waiting = saving if session.file.path is None else _Deadline(WAITING * timeout)
    wait([session.ready], waiting.left)  # who begins it gives up
    if not life.forgets:
        waiting.wait_while(lambda: session.counters.pending > 0 and not life.forgets)
    session.frames.drop_waiting()
    _save(session, saving, unsaved)
    life.close()
    if not life.forgets:
        waiting.wait_while(lambda: session.asked > 0 and not life.forgets)
    worker.abandon(Drop.RESET, ServerEndingError("the session was ended"))
    _save(session, saving, unsaved)  # what was answered may have been kept
    # Of a broken one it stays known what was accepted, though all that is in memory is saved.
    newest_ns = session.memory.latest_ns
    if session.is_saved and worker.ended is None and newest_ns is not None:
        session.frames.accepted = Sent(0, newest_ns)
    return stop(session, over.left)


def stop(session: Session, timeout: float = END_TIMEOUT) -> bool:
    """Let its engine go, and its file to other servers; whether nothing saved of it has stayed."""
    until = _Deadline(timeout)
    if not session.worker.stop(until.left):
        log.warning("session %s did not end within %g s", session.id, timeout)
    session.keeper.close()
    session.file.note(session.frames.accepted)
    if (ownership := session.file.disown()) is None:
        return False
    # One that had not begun saw nothing that could be lost.
    begun = session.has_begun
    saved = session.keeper.is_saved if begun else not ownership.before
    accepted = session.frames.accepted is not None and session.worker.ended is None
    empty = begun and accepted and not session.memory.chunks
    forgotten = threading.Event()

    def release() -> None:
        session.keeper.close(wait=True)  # a file is this server's as long as it writes it
        forget = session.life.forgets
        all_saved = saved and not (begun and session.keeper.state.error)
        try:
            session.file.release(ownership, saved=all_saved, forget=forget, empty=empty)
        except OSError as fault:  # its lock is let go all the same
            log.warning("session %s: its file stays as it is: %s", session.id, fault)
            return
        if forget:
            forgotten.set()

    releasing = threading.Thread(target=release, name="release", daemon=True)
    try:
        releasing.start()
    except RuntimeError:  # there are too many threads: what raised here before may be that, too
        release()
    else:
        releasing.join(until.left)
    return forgotten.is_set()


def _save(session: Session, saving: _Deadline, unsaved: bool) -> None:
    keeper, forgets = session.keeper, session.life.forgets
    if not session.has_begun or session.file.path is None or session.worker.ended is not None:
        return
    if not forgets and not keeper.is_saved and session.context.saving.acquire(timeout=saving.left):
        try:
            keeper.save_at_end(saving.left)
        finally:
            session.context.saving.release()
    if unsaved or keeper.is_saved or session.life.forgets:
        return
    session.go_on()
    why = keeper.state.error or "the others that are saved, or its own file, take too long"
    raise NotSavedError(f"the session goes on, as it cannot be saved: {why}")
