# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The life of a session: which states it has, and how it comes from one to the next."""

from __future__ import annotations

import threading
from enum import Enum


class Phase(Enum):
    """Where a session is in its life.

    The transitions, by the methods of `LifeCycle`::

        LOADING    serve -> SERVING    begin_end -> DRAINING    fail -> BROKEN
        SERVING                        begin_end -> DRAINING    fail -> BROKEN
        BROKEN                         begin_end -> CLOSING, as there is nothing to drain
        DRAINING   go_on -> SERVING    close -> CLOSING         finish -> ENDED or FORGOTTEN
        CLOSING    go_on -> SERVING                             finish -> ENDED or FORGOTTEN
    """

    LOADING = "its engine is built, and its saved memory is read"
    SERVING = "takes frames and questions"
    BROKEN = "its engine has ended by a fault, and nobody ends the session yet"
    DRAINING = "takes no frame; those that it has come to their end, and it is saved"
    CLOSING = "takes no question either; its answers come to their end, and its engine"
    ENDED = "its engine is gone; what is saved of it stays"
    FORGOTTEN = "its engine is gone, and what was saved of it by itself"


_ENDABLE = {
    Phase.LOADING: Phase.DRAINING,
    Phase.SERVING: Phase.DRAINING,
    Phase.BROKEN: Phase.CLOSING,
}
_BEING_ENDED = (Phase.DRAINING, Phase.CLOSING)
_OVER = (Phase.ENDED, Phase.FORGOTTEN)


class LifeCycle:
    """The phase of a session, whatever threads change it.

    At most one thread at a time ends a session: the one whose `begin_end` was true. It carries that
    out, and says so by `finish`, or by `go_on` where the session goes on. Others wait for that.

    Attributes:
        phase: where it is.
        forgets: nothing that is saved of it by itself is to stay; who ends it, or is about to,
            looks at it until the very end.
    """

    def __init__(self) -> None:
        self.phase = Phase.LOADING
        self.forgets = False
        self._changed = threading.Condition()

    # -- what holds now ----------------------------------------------------------------------

    @property
    def is_being_ended(self) -> bool:
        """Whether somebody ends it now."""
        return self.phase in _BEING_ENDED

    @property
    def is_over(self) -> bool:
        """Whether it has ended."""
        return self.phase in _OVER

    @property
    def takes_frames(self) -> bool:
        """Whether a frame that comes is its own; else it is sent again to who has it next."""
        return self.phase in _ENDABLE

    @property
    def takes_questions(self) -> bool:
        """Whether a question may be answered: also while it is being saved."""
        return self.phase in _ENDABLE or self.phase is Phase.DRAINING

    # -- transitions -------------------------------------------------------------------------

    def serve(self) -> bool:
        """It has begun; False: it is broken, or was ended, before it had."""
        with self._changed:
            if self.phase is not Phase.LOADING:
                return False
            self._become(Phase.SERVING)
            return True

    def fail(self) -> None:
        """Its engine has ended by a fault. Who ends it goes on with that."""
        with self._changed:
            if self.phase in (Phase.LOADING, Phase.SERVING):
                self._become(Phase.BROKEN)

    def begin_end(self) -> bool:
        """Take no frame more; whether the caller is the one who has to end it."""
        with self._changed:
            if self.phase not in _ENDABLE:
                return False
            self._become(_ENDABLE[self.phase])
            return True

    def close(self) -> None:
        """Who ends it: take no question more."""
        with self._changed:
            self._check(*_BEING_ENDED)
            self._become(Phase.CLOSING)

    def go_on(self) -> None:
        """Who ends it: it does not end, and takes frames and questions again."""
        with self._changed:
            self._check(*_BEING_ENDED)
            self._become(Phase.SERVING)

    def finish(self, *, forgotten: bool = False) -> None:
        """Who ends it: it has ended."""
        with self._changed:
            self._check(*_BEING_ENDED)
            self._become(Phase.FORGOTTEN if forgotten else Phase.ENDED)

    def forget(self) -> None:
        """Whoever ends it: let nothing stay that is saved of it by itself."""
        with self._changed:
            self.forgets = True

    def wait_for_end(self, timeout: float) -> bool:
        """Wait so many seconds until nobody is ending it; whether that has come."""
        with self._changed:
            return self._changed.wait_for(lambda: not self.is_being_ended, timeout)

    def _check(self, *phases: Phase) -> None:
        if self.phase not in phases:
            raise AssertionError(f"a session that is {self.phase.name} was ended by nobody")

    def _become(self, phase: Phase) -> None:
        self.phase = phase
        self._changed.notify_all()
