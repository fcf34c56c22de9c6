# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A session has one life: whoever ends it, and whenever, it ends once, and comes to no phase twice
that it has left for good."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from patience import PATIENCE, wait_until

from stream_vlm_ros.factory import kept_model
from stream_vlm_ros.serve.events import Sent
from stream_vlm_ros.serve.life_cycle import LifeCycle, Phase
from stream_vlm_ros.serve.options import Limits
from stream_vlm_ros.serve.session_errors import ServerEndingError, SessionUnknownError
from stream_vlm_ros.serve.sessions import Sessions
from stream_vlm_ros.session.question import Question
from stream_vlm_ros.session.timed_frame import TimedFrame

LOADING, SERVING, BROKEN, DRAINING, CLOSING, ENDED, FORGOTTEN = Phase
# From which phase to which, as the server is to behave.
NEXT = {
    LOADING: {SERVING, BROKEN, DRAINING},
    SERVING: {BROKEN, DRAINING},
    BROKEN: {CLOSING},
    DRAINING: {SERVING, CLOSING, ENDED, FORGOTTEN},
    CLOSING: {CLOSING, SERVING, ENDED, FORGOTTEN},
    ENDED: set(),
    FORGOTTEN: set(),
}


class Life(RuleBasedStateMachine):
    """What is called in any order, by whoever."""

    def __init__(self):
        super().__init__()
        self.life = LifeCycle()
        self.before = LOADING
        self.has_ender = False

    def told(self, call, **how):
        """What a call answered, and whether it was one of who ends it; nobody else may make it."""
        before = self.life.phase
        if self.has_ender:
            return call(**how)
        with pytest.raises(AssertionError, match="ended by nobody"):
            call(**how)
        assert self.life.phase is before
        return None

    @rule()
    def serve(self):
        was = self.life.phase
        assert self.life.serve() is (was is LOADING)

    @rule()
    def fail(self):
        was = self.life.phase
        self.life.fail()
        assert (self.life.phase is not was) is (was in (LOADING, SERVING))

    @rule()
    def begin_end(self):
        free = not self.has_ender and not self.life.is_over
        assert self.life.begin_end() is free
        self.has_ender |= free

    @rule()
    def close(self):
        self.told(self.life.close)

    @rule()
    def go_on(self):
        self.told(self.life.go_on)
        self.has_ender = False

    @precondition(lambda self: self.has_ender)
    @rule(forgotten=st.booleans())
    def finish(self, forgotten):
        self.life.finish(forgotten=forgotten)
        assert self.life.phase is (FORGOTTEN if forgotten else ENDED)
        self.has_ender = False

    @precondition(lambda self: not self.has_ender)
    @rule()
    def finish_of_nobody(self):
        self.told(self.life.finish)

    @rule()
    def forget(self):
        before = self.life.phase
        self.life.forget()
        assert self.life.forgets and self.life.phase is before

    @invariant()
    def it_comes_only_where_it_may(self):
        phase = self.life.phase
        assert phase is self.before or phase in NEXT[self.before]
        self.before = phase

    @invariant()
    def what_it_takes_goes_by_who_ends_it(self):
        life = self.life
        assert life.is_being_ended is self.has_ender
        assert life.takes_frames is (not self.has_ender and not life.is_over)
        assert life.takes_questions is (life.takes_frames or life.phase is DRAINING)
        assert life.wait_for_end(0.0) is not self.has_ender


TestLife = Life.TestCase


def test_of_many_who_end_a_session_at_once_one_does_and_the_others_wait_for_it():
    for _ in range(20):
        life, start, waiting = LifeCycle(), threading.Barrier(8), threading.Barrier(8)
        carried_out = []

        def end_it(life=life, start=start, waiting=waiting, carried_out=carried_out):
            start.wait(PATIENCE)
            is_ours = life.begin_end()
            waiting.wait(PATIENCE)
            if is_ours:
                time.sleep(0.01)  # the others wait by now
                carried_out.append(life.phase)
                life.finish()
            assert life.wait_for_end(PATIENCE) and life.is_over

        with ThreadPoolExecutor(8) as pool:
            for done in [pool.submit(end_it) for _ in range(8)]:
                done.result()
        assert carried_out == [DRAINING]


# -- a session with an engine ------------------------------------------------------------------

ENDS = ("hand over", "close", "forget")


class Served(RuleBasedStateMachine):
    """A session with frames and a file, to which anything happens.

    Attributes:
        seen, newest: frames in its memory, and the number of the newest; 0: none.
        saved, newest_saved: in its file.
        noted: the number of the newest frame that was accepted, as it is noted next to the file.
    """

    sessions = film = None
    number = 0

    def __init__(self):
        super().__init__()
        type(self).number += 1
        self.name = f"any-{self.number}"
        self.seen = self.newest = self.saved = self.newest_saved = self.noted = self.sent = 0
        self.accepts = False  # something, since it was opened
        self.session = None

    is_open = precondition(lambda self: self.session is not None)

    @precondition(lambda self: self.session is None)
    @rule()
    def open(self):
        self.session = self.sessions.open(self.name, "a")
        self.session.ready.result(PATIENCE)
        assert self.session.life.phase is SERVING
        assert self.session.memory.frames == self.saved
        assert self.session.restored is (self.saved > 0)
        assert bool(self.session.gap) is (self.noted > self.newest_saved)
        self.seen, self.newest, self.accepts = self.saved, self.newest_saved, False

    @is_open
    @rule()
    def see(self):
        frames = self.film[self.sent : self.sent + 4]
        if len(frames) < 4:
            return
        self.sent += 4
        self.session.frames.append(
            [TimedFrame(f.stamp_ns, f.image, Sent(n, f.stamp_ns)) for n, f in enumerate(frames, 1)]
        )
        self.seen, self.newest, self.accepts = self.seen + 4, self.sent, True
        wait_until(lambda: self.session.memory.frames == self.seen)

    @is_open
    @rule()
    def ask(self):
        outcome = self.session.ask(Question("What?", max_new_tokens=2)).future.result(PATIENCE)
        assert (outcome.error is None) is (self.seen > 0)

    @is_open
    @rule()
    def save(self):
        if self.seen:
            self.session.save().result(PATIENCE)
            self.saved, self.newest_saved = self.seen, self.newest

    @is_open
    @rule(ends=st.lists(st.sampled_from(ENDS), min_size=1, max_size=3))
    def end(self, ends):
        session, sessions = self.session, self.sessions

        def carry_out(how):
            with suppress(SessionUnknownError):  # another was faster
                if how == "hand over":
                    sessions.hand_over([session], PATIENCE)
                else:
                    sessions.close(self.name, "a", forget=how == "forget")

        with ThreadPoolExecutor(len(ends)) as pool:
            for done in [pool.submit(carry_out, how) for how in ends]:
                done.result()
        self.check_ended()
        if "forget" in ends:
            self.saved = self.newest_saved = self.noted = 0
            assert not list(self.folder.rglob(f"{self.name}.*"))
        elif self.seen:
            self.saved, self.newest_saved, self.noted = self.seen, self.newest, self.newest

    @is_open
    @rule()
    def break_engine(self):
        def fail(state, text):
            raise SystemExit("of a user's function")

        self.session.ask(Question("What?"), fail).future.result(PATIENCE)
        assert self.session.life.phase in (BROKEN, CLOSING, ENDED)
        refused = self.session.ask(Question("What?")).future.result(PATIENCE).error
        assert isinstance(refused, ServerEndingError) and "by a fault" in str(refused)
        wait_until(lambda: self.session.life.is_over)
        self.check_ended()
        if self.accepts:
            self.noted = self.newest

    def check_ended(self):
        session = self.session
        assert session.life.is_over and session not in self.sessions.all()
        assert session.worker.over.is_set() and session.counters.pending == 0
        refused = session.ask(Question("What?")).future.result(PATIENCE).error
        assert isinstance(refused, ServerEndingError)
        self.session = None

    def teardown(self):
        with suppress(SessionUnknownError):
            self.sessions.close(self.name, "a")


def test_whatever_happens_to_a_session_its_file_has_what_it_is_to_have(
    server, film, tmp_path, often
):
    own = replace(server.sessions.settings, memory_folder=str(tmp_path))
    sessions = Sessions(own, Limits(), load=kept_model)
    sessions.load()
    Served.sessions, Served.film, Served.folder = sessions, film, tmp_path
    try:
        run_state_machine_as_test(
            Served,
            settings=settings(
                max_examples=12,
                stateful_step_count=12,
                suppress_health_check=list(HealthCheck),
            ),
        )
    finally:
        sessions.drain(PATIENCE)
