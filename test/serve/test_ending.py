# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Sessions end in their time, whatever is stuck, and keep no others from ending or beginning."""

import asyncio
import socket
import threading
import time
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from dataclasses import replace
from types import SimpleNamespace

import pytest
from patience import PATIENCE, wait_until

from stream_vlm_ros.engine.saving.memory_copy import MemoryReader
from stream_vlm_ros.errors import ModelLoadError
from stream_vlm_ros.factory import kept_model
from stream_vlm_ros.serve import ending, session_file
from stream_vlm_ros.serve import sessions as sessions_module
from stream_vlm_ros.serve.app import create_app
from stream_vlm_ros.serve.events import Sent
from stream_vlm_ros.serve.keys import Keys
from stream_vlm_ros.serve.life_cycle import LifeCycle, Phase
from stream_vlm_ros.serve.options import Limits
from stream_vlm_ros.serve.ownership import Ownership, SessionElsewhereError
from stream_vlm_ros.serve.running import serve
from stream_vlm_ros.serve.session import SAVES_AT_ONCE
from stream_vlm_ros.serve.session_errors import NotSavedError, SessionLimitError
from stream_vlm_ros.serve.sessions import Sessions
from stream_vlm_ros.session.question import Question
from stream_vlm_ros.session.timed_frame import TimedFrame


@pytest.fixture
def begin(server, tmp_path, often):
    """Makes sessions of a server of its own."""
    made = []

    def make(limits=None, **changes):
        changed = {"memory_folder": str(tmp_path), **changes}
        own = replace(server.sessions.settings, **changed)
        made.append(Sessions(own, limits or Limits(), load=kept_model))
        made[-1].load()
        return made[-1]

    yield make
    for sessions in made:
        sessions.drain(5.0)


def opened(sessions, name, owner="a"):
    session = sessions.open(name, owner)
    session.ready.result(PATIENCE)
    return session


def remember(session, film):
    """Let a session remember frames, as one chunk."""
    frames = [TimedFrame(f.stamp_ns, f.image, Sent(n, f.stamp_ns)) for n, f in enumerate(film, 1)]
    session.frames.append(frames)
    wait_until(lambda: session.counters.ingested == len(frames))


# -- what is told of it ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("in_folder", "words"),
    [
        (True, "Ended, 1 memory saved"),
        (False, "Ended, 1 memory not saved (--memory-folder keeps them)"),
    ],
)
@pytest.mark.parametrize("reader", ["reads", "is gone"])
def test_who_ends_the_server_hears_what_became_of_the_memories(
    begin, film, tmp_path, in_folder, words, reader
):
    sessions = begin() if in_folder else begin(memory_folder="", save_memory_on_shutdown=False)
    remember(opened(sessions, "robot"), film[:4])
    opened(sessions, "empty")
    heard = []

    def tell(words):
        heard.append(words)
        if reader == "is gone":
            raise BrokenPipeError

    async def serve_until_told():
        with socket.create_server(("127.0.0.1", 0)) as listening:
            serving = asyncio.create_task(
                serve(create_app(sessions, Keys()), sessions, listening, PATIENCE, tell)
            )
            await asyncio.sleep(0)
            serving.cancel()
            await asyncio.wait([serving])

    asyncio.run(serve_until_told())
    assert heard == [f"Ending 2 sessions, within {PATIENCE:g} s", words]
    assert len([*tmp_path.rglob("robot.safetensors")]) == in_folder


# -- one deadline ------------------------------------------------------------------------------


class Stuck:
    """A session of which nothing comes to its end: whoever waits, waits as long as it may.

    Attributes:
        now: seconds that were waited.
    """

    def __init__(self, ready=True):
        self.now = 0.0
        self.life, self.ready = LifeCycle(), Future()
        if ready:
            self.ready.set_result(None)
            self.life.serve()
        assert self.life.begin_end()
        self.id, self.has_begun, self.asked = "stuck", ready, 1
        self.is_saved = False
        self.counters = SimpleNamespace(pending=4)
        self.memory = SimpleNamespace(latest_ns=None)
        self.frames = SimpleNamespace(accepted=None, drop_waiting=lambda: None)
        self.worker = SimpleNamespace(
            ended=None, abandon=lambda cause, why: None, stop=lambda timeout: self.wait(timeout)
        )
        self.keeper = SimpleNamespace(
            is_saved=self.is_saved,
            state=SimpleNamespace(error="the disk is full"),
            save_at_end=self.wait,
            close=lambda: None,
        )
        self.file = SimpleNamespace(path="there", note=lambda sent: None, disown=lambda: None)
        slots = SimpleNamespace(acquire=self.slot, release=lambda: None)
        self.context = SimpleNamespace(saving=slots)

    def wait(self, seconds):
        self.now += seconds
        return False

    def slot(self, timeout):
        self.now += timeout / 2
        return True

    def go_on(self):
        self.life.go_on()


@pytest.fixture
def clocked(monkeypatch):
    """Lets `ending` wait by a session's own clock."""

    def of(session):
        clock = SimpleNamespace(monotonic=lambda: session.now, sleep=session.wait)
        monkeypatch.setattr(ending, "time", clock)
        monkeypatch.setattr(ending, "wait", lambda futures, timeout: session.wait(timeout))
        return session

    return of


@pytest.mark.parametrize("timeout", [1.0, 5.0, 30.0])
@pytest.mark.parametrize("ready", [True, False])
@pytest.mark.parametrize("path", ["there", None])
def test_all_that_is_stuck_shares_one_deadline(clocked, timeout, ready, path):
    session = clocked(Stuck(ready))
    session.file.path = path
    ending.end(session, timeout=timeout)
    assert session.now == pytest.approx(timeout, abs=2 * ending.POLL)


def test_what_cannot_be_saved_is_given_up_before_the_deadline_and_goes_on(clocked):
    session = clocked(Stuck())
    with pytest.raises(NotSavedError, match="goes on, as it cannot be saved: the disk is full"):
        ending.end(session, timeout=5.0, unsaved=False)
    assert session.now <= 5.0 and session.life.phase is Phase.SERVING


def test_what_is_not_saved_in_time_goes_on_and_says_so(clocked):
    session = clocked(Stuck())
    session.keeper.state.error = ""
    session.context.saving.acquire = lambda timeout: session.wait(timeout)  # others save
    session.keeper.save_at_end = None
    with pytest.raises(NotSavedError, match="the others that are saved, or its own file, take"):
        ending.end(session, timeout=5.0, unsaved=False)
    assert session.now <= 5.0


def test_what_is_to_be_forgotten_waits_for_nothing_but_its_engine(clocked, monkeypatch):
    session = clocked(Stuck())
    session.life.forget()
    waited = []
    session.worker.stop = waited.append
    session.keeper.save_at_end = None
    monkeypatch.setattr(ending, "wait", lambda futures, timeout: None)
    ending.end(session, timeout=5.0)
    assert session.now == 0.0 and waited == [5.0]


def test_of_an_engine_that_is_stuck_the_session_ends_all_the_same(begin, monkeypatch):
    monkeypatch.setattr(sessions_module, "END_TIMEOUT", 1.0)  # both pass; its file is let go in one
    sessions = begin(Limits(drain_seconds=1.0))
    session = opened(sessions, "stuck")
    stuck, go_on = threading.Event(), threading.Event()

    def wait(state, text):
        stuck.set()
        go_on.wait(PATIENCE)

    session.ask(Question("What?"), wait)
    assert stuck.wait(PATIENCE)
    sessions.close("stuck", "a")
    assert not go_on.is_set() and sessions.all() == []
    go_on.set()
    wait_until(session.worker.over.is_set)


def test_a_session_that_breaks_while_it_is_saved_does_not_go_on(begin):
    session = opened(begin(), "breaks")
    assert session.begin_end()

    def fail(state, text):
        raise SystemExit("of a user's function")

    session.ask(Question("What?"), fail).future.result(PATIENCE)
    assert session.life.phase is Phase.DRAINING  # of who ends it
    session.go_on()
    assert session.life.phase is not Phase.SERVING
    wait_until(lambda: session.life.is_over)


def test_while_a_disk_is_stuck_sessions_end_in_their_time_and_others_are_looked_after(
    begin, film, monkeypatch
):
    writing, go_on, write = threading.Event(), threading.Event(), session_file.write_whole

    def stuck(*given, **named):
        writing.set()
        assert go_on.wait(PATIENCE)
        write(*given, **named)

    monkeypatch.setattr(session_file, "write_whole", stuck)
    monkeypatch.setattr(session_file, "NOTE_PERIOD", 0.0)
    monkeypatch.setattr(sessions_module, "END_TIMEOUT", 0.5)  # all of it passes
    sessions = begin()
    noted, other = opened(sessions, "noted"), opened(sessions, "other")
    remember(noted, film[:4])
    try:
        assert writing.wait(PATIENCE)

        def fail(state, text):
            raise SystemExit("of a user's function")

        other.ask(Question("What?"), fail).future.result(PATIENCE)
        wait_until(lambda: other.life.is_over)
        noted.save().result(PATIENCE)
        sessions.hand_over([noted], 0.5)
        assert noted.life.phase is Phase.ENDED and not go_on.is_set()
        with pytest.raises(SessionElsewhereError):
            Ownership(noted.file.path, patience=0.0)
    finally:
        go_on.set()
    again = opened(sessions, "noted")
    assert (again.restored, again.memory.frames, again.gap) == (True, 4, "")


def test_while_a_disk_does_not_say_who_is_wanted_sessions_are_looked_after(begin, monkeypatch):
    looking, go_on = threading.Event(), threading.Event()

    def stuck(ownership):
        looking.set()
        go_on.wait()
        return False

    monkeypatch.setattr(Ownership, "is_wanted", property(stuck))
    session = opened(begin(), "broken")

    def fail(state, text):
        raise SystemExit("of a user's function")

    try:
        assert looking.wait(PATIENCE)
        session.ask(Question("What?"), fail).future.result(PATIENCE)
        wait_until(lambda: session.life.is_over)
        assert not go_on.is_set()
    finally:
        go_on.set()


# -- beside others -----------------------------------------------------------------------------


def test_ends_of_one_key_that_wait_keep_no_other_keys_from_ending(begin):
    sessions = begin(Limits(max_sessions=24))
    waiting = [opened(sessions, f"waits-{number}") for number in range(20)]
    for session in waiting:
        session.asked += 1  # its answer does not come
    other = opened(sessions, "other", "b")
    with ThreadPoolExecutor(1) as pool:
        ending_them = pool.submit(sessions.hand_over, waiting, PATIENCE)
        try:
            wait_until(lambda: {one.life.phase for one in waiting} == {Phase.CLOSING})
            sessions.hand_over([other], PATIENCE)
            assert sessions.all("b") == [] and sessions.all("a") == waiting
        finally:
            for session in waiting:
                session.asked -= 1
        ending_them.result()
    assert sessions.all() == []


def test_no_more_memories_are_copied_at_once_than_the_host_is_to_hold(begin, film):
    sessions = begin(Limits(max_sessions=SAVES_AT_ONCE + 3))
    inside, counting, go_on = [], threading.Lock(), threading.Event()
    for number in range(SAVES_AT_ONCE + 3):
        session = opened(sessions, f"saved-{number}")
        save = session.keeper.save_at_end

        def slowly(timeout, save=save):
            with counting:
                inside.append(1)
            assert go_on.wait(PATIENCE)
            save(timeout)
            with counting:
                inside.pop()

        session.keeper.save_at_end = slowly
        remember(session, film[:4])
    with ThreadPoolExecutor(1) as pool:
        ending_them = pool.submit(sessions.hand_over, sessions.all(), PATIENCE)
        try:
            wait_until(lambda: len(inside) >= SAVES_AT_ONCE)
            time.sleep(0.2)  # for one more, if it came
            assert len(inside) == SAVES_AT_ONCE
        finally:
            go_on.set()
        ending_them.result()
    assert sessions.all() == []
    assert opened(sessions, "saved-0").restored


@pytest.fixture
def engines(monkeypatch):
    """How many engines there are, at each change."""
    counts, counting, build = [0], threading.Lock(), sessions_module.build_engine

    def change(by):
        with counting:
            counts.append(counts[-1] + by)

    def built(*given):
        engine = build(*given)
        change(1)
        close = engine.close

        def closed():
            change(-1)
            close()

        engine.close = closed
        return engine

    monkeypatch.setattr(sessions_module, "build_engine", built)
    return counts


def test_a_session_that_makes_room_has_let_its_engine_go_before_the_next_ones_is_built(
    begin, engines, monkeypatch
):
    sessions = begin(Limits(max_sessions=2))
    for name in ("in-use", "of-no-use"):
        opened(sessions, name).connection = SimpleNamespace(session_ended=lambda *told: None)
    with pytest.raises(SessionLimitError):
        sessions.open("new", "a")
    sessions.find("of-no-use", "a").connection = None
    going, end = threading.Event(), sessions_module.end

    def later(session, **how):
        assert going.wait(PATIENCE)
        return end(session, **how)

    monkeypatch.setattr(sessions_module, "end", later)
    new = opened(sessions, "new")  # whatever the end of the other one waits for
    going.set()
    assert {one.id for one in sessions.all()} == {"in-use", "new"} and new.life.takes_frames
    sessions.drain(PATIENCE)
    assert max(engines) == 2 and engines[-1] == 0


def test_a_session_that_could_not_begin_leaves_the_table_when_its_engine_has_gone(
    begin, engines, tmp_path, monkeypatch
):
    sessions = begin(Limits(max_sessions=1))
    (tmp_path / "a").write_text("no folder")
    there = []
    sessions.when_closed.append(lambda session: there.append((engines[-1], session)))
    session = sessions.open("unlucky", "a")
    assert "cannot be written" in str(session.ready.exception(PATIENCE))
    assert there == [(0, session)] and sessions.all() == []
    assert session.life.phase is Phase.ENDED


def test_a_session_whose_engine_cannot_be_built_ends_and_says_why(begin, monkeypatch):
    sessions = begin()

    def fail(*given):
        raise ModelLoadError("its weights are gone")

    monkeypatch.setattr(sessions_module, "build_engine", fail)
    session = sessions.open("unlucky", "a")
    with pytest.raises(ModelLoadError, match="weights are gone"):
        session.ready.result(PATIENCE)
    assert session.life.phase is Phase.ENDED and sessions.all() == []


def test_a_session_that_is_ended_while_its_memory_is_read_leaves_it_to_the_next(
    begin, film, monkeypatch
):
    sessions = begin()
    remember(opened(sessions, "read"), film[:4])
    sessions.close("read", "a", forget=False)
    reading = threading.Event()

    def stuck(reader, path, over):
        reading.set()
        assert over.wait(PATIENCE)
        raise CancelledError

    with monkeypatch.context() as patched:
        patched.setattr(MemoryReader, "read", stuck)
        patched.setattr(sessions_module, "END_TIMEOUT", 0.5)  # its share for reading passes
        session = sessions.open("read", "a")
        assert reading.wait(PATIENCE)
        sessions.hand_over([session], 0.5)
        assert session.life.phase is Phase.ENDED
    again = opened(sessions, "read")
    assert (again.memory.frames, again.restored, again.gap) == (4, True, "")


# -- when something raises ---------------------------------------------------------------------


class Told:
    """A connection that keeps what it was told."""

    def __init__(self):
        self.words = []

    def session_ended(self, forgotten, words):
        self.words.append(words)


def raise_runtime_error(*given):
    raise RuntimeError("can't start new thread")


def test_a_session_whose_end_raises_lets_its_engine_and_its_file_go(begin, film):
    sessions = begin()
    session = opened(sessions, "again")
    remember(session, film[:4])
    session.connection = told = Told()
    session.keeper.save_at_end = raise_runtime_error
    sessions.close("again", "a", forget=False)
    assert session.life.phase is Phase.ENDED and session.worker.over.is_set()
    assert told.words == ["the session was ended"]
    again = opened(sessions, "again")
    assert (again.memory.frames, again.restored) == (0, False)
    assert "lost" in again.gap  # what was not saved


def test_where_no_thread_can_be_started_its_file_is_let_go_all_the_same(begin, monkeypatch):
    sessions = begin()
    session = opened(sessions, "again")
    session.frames.accepted = Sent(1, 1)
    assert session.begin_end()
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", raise_runtime_error)
        ending.stop(session, PATIENCE)
    Ownership(session.file.path).release(saved=True)
    session.life.finish()


def test_what_is_handed_over_where_no_thread_can_be_started_ends_and_can_be_opened_again(
    begin, film, monkeypatch
):
    sessions = begin()
    session = opened(sessions, "again")
    remember(session, film[:4])
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", raise_runtime_error)
        sessions.hand_over([session], 1.0)
    assert session.life.phase is Phase.ENDED and sessions.all() == []
    assert opened(sessions, "again") is not session


def test_a_session_that_no_thread_can_be_started_to_end_makes_no_room_and_goes_on(
    begin, film, monkeypatch
):
    sessions = begin(Limits(max_sessions=1))
    empty = opened(sessions, "empty")
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", raise_runtime_error)
        with pytest.raises(SessionLimitError, match="1 sessions are served already"):
            sessions.open("next", "a")
    assert sessions.open("empty", "a") is empty
    remember(empty, film[:4])
    sessions.close("empty", "a")
    assert opened(sessions, "next")
    Ownership(empty.file.path, patience=0.0).release(saved=True)


def test_a_session_that_begins_where_no_thread_can_be_started_begins_all_the_same(
    begin, monkeypatch
):
    sessions = begin()
    build, go_on = sessions_module.build_engine, threading.Event()

    def build_slowly(*given):
        assert go_on.wait(PATIENCE)
        return build(*given)

    monkeypatch.setattr(sessions_module, "build_engine", build_slowly)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", raise_runtime_error)
        late, later = sessions.open("late", "a"), sessions.open("later", "a")
    go_on.set()
    late.ready.result(PATIENCE)
    later.ready.result(PATIENCE)


def test_a_broken_session_that_no_thread_can_be_started_to_end_is_ended_when_one_can(
    begin, monkeypatch
):
    sessions = begin()
    session = opened(sessions, "broken")
    refused = threading.Event()

    def refuse(thread):
        refused.set()
        raise_runtime_error()

    def fail(state, text):
        raise SystemExit("of a user's function")

    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        session.ask(Question("What?"), fail).future.result(PATIENCE)
        assert refused.wait(PATIENCE)
        assert not session.life.is_over
    wait_until(lambda: session.life.is_over)
    assert sessions.all() == []


def test_whatever_a_listener_raises_the_others_and_the_connection_are_told(begin):
    sessions = begin()
    heard = []
    sessions.when_closed += [raise_runtime_error, heard.append]
    session = opened(sessions, "told")
    session.connection = told = Told()
    sessions.close("told", "a")
    assert heard == [session] and told.words == ["the session was ended"]
    assert session.life.phase is Phase.FORGOTTEN and sessions.all() == []


def test_whatever_a_listener_of_answers_raises_the_others_hear_them(begin):
    sessions = begin()
    heard = []
    sessions.when_answered += [raise_runtime_error, heard.append]
    outcome = opened(sessions, "asked").ask(Question("What?")).future.result(PATIENCE)
    wait_until(lambda: heard == [outcome])


@pytest.mark.parametrize("raises", ["a listener", "stopping"])
def test_who_waits_for_a_session_that_cannot_begin_is_told_whatever_else_raises(
    begin, monkeypatch, raises
):
    sessions = begin()

    def fail(*given):
        raise ModelLoadError("its weights are gone")

    monkeypatch.setattr(sessions_module, "build_engine", fail)
    if raises == "stopping":
        monkeypatch.setattr(sessions_module, "stop", raise_runtime_error)
    else:
        sessions.when_closed.append(raise_runtime_error)
    session = sessions.open("unlucky", "a")
    with pytest.raises(ModelLoadError, match="weights are gone"):
        session.ready.result(PATIENCE)
    assert session.life.phase is Phase.ENDED and sessions.all() == []
