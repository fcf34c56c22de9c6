# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Sessions live as long as they are used, and what they saw outlives their server."""

import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from patience import PATIENCE, wait_until
from serving import RunningServer, feed, in_process
from websockets.exceptions import InvalidStatus

from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import InvalidParameterError, StreamVlmError
from stream_vlm_ros.factory import kept_model
from stream_vlm_ros.remote import protocol
from stream_vlm_ros.serve import session_file
from stream_vlm_ros.serve import sessions as sessions_module
from stream_vlm_ros.serve.events import Sent
from stream_vlm_ros.serve.keys import LOCAL
from stream_vlm_ros.serve.life_cycle import Phase
from stream_vlm_ros.serve.metrics import Metrics
from stream_vlm_ros.serve.options import Limits
from stream_vlm_ros.serve.ownership import Ownership
from stream_vlm_ros.serve.session_errors import SessionLimitError, SessionUnknownError
from stream_vlm_ros.serve.sessions import Sessions
from stream_vlm_ros.session.counters import Drop
from stream_vlm_ros.session.question import NotActiveError, Question
from stream_vlm_ros.session.timed_frame import TimedFrame


@pytest.fixture
def begin(settings, often):
    """Makes sessions of a server of its own."""
    made = []

    def make(limits=None, **changes):
        settled = replace(settings, **changes)
        made.append(Sessions(settled, limits or Limits(), load=kept_model))
        made[-1].load()
        return made[-1]

    yield make
    for sessions in made:
        sessions.drain(5.0)


def remembered(session, film):
    """Let a session remember frames, as one chunk."""
    frames = [TimedFrame(f.stamp_ns, f.image, Sent(n, f.stamp_ns)) for n, f in enumerate(film, 1)]
    before = session.counters.ingested
    session.frames.append(frames)
    wait_until(lambda: session.counters.ingested == before + len(frames))


def opened(sessions, name, owner="a"):
    session = sessions.open(name, owner)
    session.ready.result(PATIENCE)
    return session


def test_settings_that_several_sessions_cannot_share_are_refused():
    with pytest.raises(InvalidParameterError, match="max_cache_tokens must be said"):
        Sessions(Settings(max_cache_tokens=0))
    with pytest.raises(InvalidParameterError, match="frame_store is of one camera"):
        Sessions(Settings(history="auto", frame_store="/tmp/frames"))


def test_nothing_is_opened_before_the_model_is_loaded(settings):
    with pytest.raises(NotActiveError, match="the model is being loaded"):
        Sessions(settings).open("a", "a")


def test_there_are_no_more_sessions_than_there_may_be_altogether_and_of_a_key(begin, film):
    sessions = begin(Limits(max_sessions=3, max_sessions_per_key=2), memory_folder="")
    first = opened(sessions, "1")
    remembered(first, film[:4])
    remembered(opened(sessions, "2"), film[:4])
    with pytest.raises(SessionLimitError, match="this key has 2 sessions already"):
        sessions.open("3", "a")
    remembered(opened(sessions, "1", "b"), film[:4])
    with pytest.raises(SessionLimitError, match="3 sessions are served already"):
        sessions.open("2", "b")
    assert sessions.open("1", "a") is first
    sessions.close("1", "a")
    with pytest.raises(SessionUnknownError):
        sessions.find("1", "a")
    opened(sessions, "2", "b")
    assert [one.id for one in sessions.all("a")] == ["2"]
    assert len(sessions.all()) == 3
    # One that ends costs the others nothing.
    last = sessions.find("1", "b")
    remembered(last, film[4:8])
    assert last.ask(Question("What?")).future.result(PATIENCE).answer


def test_what_is_left_is_for_the_keys_that_have_no_session(settings, film):
    sessions = Sessions(
        replace(settings, memory_folder=""), Limits(max_sessions=6), keys=3, load=kept_model
    )
    sessions.load()
    try:
        for owner in "aaabb":
            remembered(opened(sessions, str(len(sessions.all())), owner), film[:4])
        with pytest.raises(SessionLimitError, match="are for keys that have none"):
            sessions.open("5", "b")
        remembered(opened(sessions, "5", "c"), film[:4])
        with pytest.raises(SessionLimitError, match="6 sessions are served already"):
            sessions.open("6", "b")
    finally:
        sessions.drain(5.0)


def test_a_session_that_nobody_uses_is_saved_and_ended_and_taken_up_again(begin, settings, film):
    sessions = begin()
    session = opened(sessions, "idle")
    remembered(session, film[:4])
    answer = session.ask(Question("What do you see?")).future.result(PATIENCE).answer
    sessions.limits = Limits(idle_minutes=0.01)
    wait_until(lambda: sessions.all() == [])
    sessions.limits = Limits()
    again = opened(sessions, "idle")
    assert again is not session and again.restored and not again.gap
    assert again.described().accepted_ns == film[3].stamp_ns
    assert again.ask(Question("What do you see?")).future.result(PATIENCE).answer == answer
    assert answer == in_process(settings, film[:4], "What do you see?")[0]


@pytest.mark.parametrize(
    ("has_folder", "frames", "words"),
    [(True, 4, "the session was saved and ended"), (True, 0, "ended"), (False, 4, "ended")],
)
def test_only_of_what_is_in_a_file_it_is_told_that_it_was_saved(
    begin, film, tmp_path, has_folder, frames, words
):
    sessions = begin(memory_folder=str(tmp_path) if has_folder else "")
    session, told = opened(sessions, "told"), []
    if frames:
        remembered(session, film[:frames])
    session.connection = SimpleNamespace(session_ended=lambda forgotten, why: told.append(why))
    sessions.drain(PATIENCE)
    assert told[-1].endswith(words) and ("saved" in told[-1]) == ("saved" in words)


def test_of_two_keys_each_finds_its_own_file(begin, film):
    sessions = begin()
    remembered(opened(sessions, "twice", "a"), film[:4])
    remembered(opened(sessions, "twice", "b"), film[:8])
    for owner in "ab":
        sessions.close("twice", owner, forget=False)
    assert [opened(sessions, "twice", owner).memory.frames for owner in "ab"] == [4, 8]


def test_what_was_seen_after_the_last_save_of_a_server_that_was_killed_is_told(
    begin, settings, film, tmp_path, monkeypatch
):
    monkeypatch.setattr(session_file, "NOTE_PERIOD", 0.0)
    here = tmp_path / "here"
    sessions = begin(memory_folder=str(here))
    session = opened(sessions, "killed")
    remembered(session, film[:4])
    session.save().result(PATIENCE)
    remembered(session, film[4:8])
    noted = str(film[7].stamp_ns)
    wait_until(lambda: any(noted in file.read_text() for file in here.rglob("*.accepted.json")))
    there = shutil.copytree(here, tmp_path / "there")  # as it would be found
    again = opened(begin(memory_folder=str(there)), "killed")
    assert again.restored and again.memory.frames == 4
    assert "2.0 s" in again.gap and "are lost" in again.gap
    assert again.status.gap == again.gap
    assert again.described().accepted_ns == film[3].stamp_ns
    again.reset().result(PATIENCE)
    assert again.status.gap == ""


def test_a_damaged_file_is_left_alone_and_the_session_begins_empty(begin, film, tmp_path):
    sessions = begin(Limits(max_sessions=1), memory_folder=str(tmp_path))
    session = opened(sessions, "damaged")
    remembered(session, film[:4])
    sessions.close("damaged", "a", forget=False)
    [file] = tmp_path.rglob("damaged.safetensors")
    file.write_bytes(file.read_bytes()[:1000])
    session = opened(sessions, "damaged")
    assert not session.restored and session.memory.frames == 0
    assert session.status.saved.error
    opened(sessions, "new")  # for which the empty one makes room
    assert [one.id for one in sessions.all()] == ["new"]
    Ownership(file, patience=PATIENCE).release(saved=True)  # it has ended
    assert file.stat().st_size == 1000


def test_drained_it_ends_answers_saves_memories_tells_clients_and_goes_on_elsewhere(
    begin, film, tmp_path
):
    sessions = begin(memory_folder=str(tmp_path))
    server = RunningServer(sessions)
    camera = server.camera("robot")
    feed(camera, film[:8])
    ask = protocol.Ask(text="What do you see?", max_new_tokens=16)
    for n in range(4):
        camera.send(protocol.ResponseCreate(event_id=f"q{n}", response=ask))
    camera.next(protocol.ResponseReading)
    draining = threading.Thread(target=sessions.drain, args=(PATIENCE,))
    draining.start()
    camera.frame(film[8].stamp_ns, film[8].image)  # not accepted, and not said to be
    answers = [camera.next(protocol.ResponseDone).response for _ in range(4)]
    assert {answer.status for answer in answers} == {"completed"}
    while not isinstance(last := camera.hear(), protocol.SessionEnding):
        pass
    assert last.code == "ENDING" and last.retry_after is not None
    draining.join(PATIENCE)
    with pytest.raises(StreamVlmError, match="is being stopped"):
        sessions.open("another", "a")
    camera.close()
    server.close()
    server = RunningServer(begin(memory_folder=str(tmp_path)))
    with server.camera("robot") as camera:
        session = camera.created.session
        assert session.restored and not session.resumed
        assert (session.accepted_ns, session.accepted_sequence) == (film[7].stamp_ns, 0)
        assert camera.created.status.gap == ""
        response = camera.ask("What do you see?", max_new_tokens=16)
        assert response.text == answers[0].text and response.memory.frames == 8
        feed(camera, film[8:12])
    server.close()


def test_memories_are_saved_every_so_many_minutes(begin, film, tmp_path):
    sessions = begin(memory_folder=str(tmp_path), save_memory_minutes=0.001)
    remembered(opened(sessions, "often"), film[:4])
    file = wait_until(lambda: [*Path(tmp_path).rglob("often.safetensors")])
    assert file[0].stat().st_mode & 0o077 == 0 or file[0].parent.stat().st_mode & 0o077 == 0


def test_what_an_answer_rests_on_comes_with_its_pictures(begin, film):
    sessions = begin(
        history="always", max_cache_tokens=128, memory_folder="", important_share=0.0,
        sampled_share=0.0,
    )  # fmt: skip
    server = RunningServer(sessions)
    with server.camera("evidence") as camera:
        feed(camera, film)
        between = (film[8].stamp_ns, film[15].stamp_ns)  # which the memory has let go
        response = camera.ask("What do you see?", thumbnails=2, about_ns=between)
        assert response.error is None
        stamps = {frame.stamp_ns for frame in film}
        assert {*response.evidence[0].stamps_ns} <= stamps
        pictures = [one for episode in response.evidence for one in episode.thumbnails]
        assert pictures and all(one.jpeg.startswith(b"\xff\xd8") for one in pictures)
        camera.send(protocol.MemoryPicture(stamp_ns=film[0].stamp_ns, max_size=64))
        picture = camera.next(protocol.PictureDone).picture
        assert picture.stamp_ns == film[0].stamp_ns and picture.jpeg.startswith(b"\xff\xd8")
    server.close()


def test_sessions_are_closed_also_where_no_thread_can_be_started(begin, film, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    sessions = begin(memory_folder="")
    close, may_end = sessions.close, threading.Event()
    monkeypatch.setattr(sessions, "close", lambda *which: may_end.wait(PATIENCE) and close(*which))
    with closing(RunningServer(sessions)) as server, ExitStack() as stack:
        cameras = [stack.enter_context(server.camera(name)) for name in "abc"]
        for camera in cameras:
            feed(camera, film[:4])
        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", refuse)
            for camera in cameras[:2]:  # the second waits for the first
                camera.send(protocol.SessionClose(event_id="closed"))
                camera.send(protocol.SessionUpdate(settings={}))
                camera.next(protocol.SessionUpdated)  # and no error before it
            may_end.set()
            for camera in cameras[:2]:
                assert camera.next(protocol.SessionClosed).event_id == "closed"
        assert [one.id for one in sessions.all()] == ["c"]
        assert cameras[2].ask("What?").text


def test_one_session_too_many_is_refused_over_the_network_with_a_time_to_come_again(begin):
    server = RunningServer(begin(Limits(max_sessions=1), memory_folder=""))
    with server.camera("only"):
        with pytest.raises(InvalidStatus) as fault:
            server.camera("another")
        response = fault.value.response
        assert response.status_code == 429 and int(response.headers["Retry-After"]) > 0
        assert b"1 sessions are served already" in response.body
    server.close()


def test_a_session_that_has_seen_nothing_makes_room_where_there_is_none(begin, film):
    sessions = begin(Limits(max_sessions=2), memory_folder="")
    remembered(opened(sessions, "in-use"), film[:4])
    opened(sessions, "of-no-use")
    opened(sessions, "new")
    assert [one.id for one in sessions.all()] == ["in-use", "new"]
    remembered(sessions.find("new", "a"), film[:4])
    with pytest.raises(SessionLimitError):
        sessions.open("one-more", "a")


def test_a_session_that_cannot_be_saved_goes_on_until_it_can(begin, film, tmp_path):
    sessions = begin(memory_folder=str(tmp_path))
    session = opened(sessions, "kept")
    file = tmp_path / "a" / "kept.safetensors"
    file.mkdir()  # no file can take its place
    remembered(session, film[:4])
    sessions.limits = Limits(idle_minutes=0.015)
    wait_until(lambda: session.status.saved.error)
    sessions.limits = Limits()  # it ends no more before it is to
    wait_until(lambda: session.life.phase is Phase.SERVING)
    assert sessions.find("kept", "a") is session
    remembered(session, film[4:8])
    file.rmdir()
    sessions.limits = Limits(idle_minutes=0.015)
    wait_until(lambda: sessions.all() == [])
    again = opened(sessions, "kept")
    assert (again.restored, again.memory.frames, again.gap) == (True, 8, "")


def test_at_the_end_of_the_server_a_session_that_cannot_be_saved_ends_too(begin, film, tmp_path):
    sessions = begin(memory_folder=str(tmp_path))
    remembered(opened(sessions, "lost"), film[:4])
    (tmp_path / "a" / "lost.safetensors").mkdir()
    sessions.drain(PATIENCE)
    assert sessions.all() == []


@pytest.mark.parametrize("meanwhile", ["noted", "ended"])
def test_a_session_that_is_forgotten_meanwhile_leaves_nothing(
    begin, film, tmp_path, monkeypatch, meanwhile
):
    monkeypatch.setattr(session_file, "NOTE_PERIOD", 0.0 if meanwhile == "noted" else 1e9)
    sessions = begin(memory_folder=str(tmp_path))
    session = opened(sessions, "forgotten")
    remembered(session, film[:4])
    writing, forgotten = threading.Event(), threading.Event()
    replaced = os.replace

    def slowly(source, target, **options):
        if str(target).endswith(session_file.NOTE):
            writing.set()
            forgotten.wait(0.5)
        replaced(source, target, **options)

    session.frames.append([TimedFrame(film[4].stamp_ns, film[4].image, Sent(5, film[4].stamp_ns))])
    monkeypatch.setattr(os, "replace", slowly)
    with ThreadPoolExecutor() as pool:
        if meanwhile == "ended":
            pool.submit(sessions.close, "forgotten", "a", forget=False)
        assert writing.wait(PATIENCE)
        sessions.close("forgotten", "a")
        forgotten.set()
    sessions.drain(PATIENCE)
    assert [*tmp_path.rglob("forgotten*")] == []


def test_what_a_reset_forgot_does_not_come_back_when_the_server_begins_again(begin, film, tmp_path):
    sessions = begin(memory_folder=str(tmp_path))
    session = opened(sessions, "reset")
    remembered(session, film[:4])
    session.save().result(PATIENCE)
    session.reset().result(PATIENCE)
    sessions.drain(PATIENCE)
    sessions = begin(memory_folder=str(tmp_path))
    again = opened(sessions, "reset")
    assert (again.restored, again.memory.frames, again.gap) == (False, 0, "")
    remembered(again, film[4:8])
    again.reset(time_jump=True).result(PATIENCE)  # what is on disk stays
    sessions.close("reset", "a", forget=False)
    remembered(opened(sessions, "reset"), film[4:8])
    sessions.close("reset", "a", forget=False)
    opened(sessions, "reset").reset().result(PATIENCE)
    remembered(sessions.find("reset", "a"), film[8:12])  # of the new memory
    sessions.drain(PATIENCE)
    last = opened(begin(memory_folder=str(tmp_path)), "reset")
    assert (last.restored, last.memory.frames) == (True, 4)
    assert last.memory.oldest_ns == film[8].stamp_ns


def test_what_was_lost_is_told_again_where_a_session_broke_before_it_saw_anything(
    begin, film, tmp_path
):
    def broken(session):
        def fail(state, text):
            raise SystemExit("of a user's function")

        session.ask(Question("What?"), fail).future.result(PATIENCE)
        wait_until(lambda: session.life.is_over)

    sessions = begin(memory_folder=str(tmp_path))
    remembered(opened(sessions, "twice"), film[:4])
    sessions.close("twice", "a", forget=False)
    session = opened(sessions, "twice")
    remembered(session, film[4:8])
    broken(session)
    for _ in range(2):
        session = opened(sessions, "twice")
        assert session.restored and "are lost" in session.gap
        broken(session)


def test_who_sent_nothing_but_bad_frames_leaves_nothing_and_nothing_is_called_lost(
    begin, film, tmp_path
):
    sessions = begin(memory_folder=str(tmp_path))
    session = opened(sessions, "bad")
    narrow = film[0].image[:, :1]
    sent = Sent(1, film[0].stamp_ns)
    session.frames.append([TimedFrame(film[0].stamp_ns, narrow, sent)])
    wait_until(lambda: session.counters.dropped[Drop.ERROR] == 1)
    sessions.close("bad", "a", forget=False)
    assert [*tmp_path.rglob("bad*")] == []
    assert opened(sessions, "bad").gap == ""


def test_a_question_in_between_keeps_no_camera_from_being_told_what_was_lost(
    begin, film, tmp_path, monkeypatch
):
    monkeypatch.setattr(session_file, "NOTE_PERIOD", 0.0)
    here = tmp_path / "here"
    remembered(opened(begin(memory_folder=str(here)), "killed", LOCAL), film[:4])
    noted = str(film[3].stamp_ns)
    wait_until(lambda: any(noted in file.read_text() for file in here.rglob("*.accepted.json")))
    there = shutil.copytree(here, tmp_path / "there")  # as it would be found, before any save
    sessions = begin(memory_folder=str(there))
    asked = sessions.find_or_restore("killed", LOCAL)
    asked.ready.result(PATIENCE)
    assert "is lost" in asked.gap
    asked.ask(Question("What do you see?")).future.result(PATIENCE)
    sessions.limits = Limits(idle_minutes=0.001)
    wait_until(lambda: sessions.all() == [])
    sessions.limits = Limits()
    with closing(RunningServer(sessions)) as server, server.camera("killed") as camera:
        assert not camera.created.session.restored
        assert "is lost" in camera.created.status.gap


def test_what_was_accepted_while_a_reset_was_under_way_is_missed_by_the_next_server(
    begin, film, tmp_path, monkeypatch
):
    monkeypatch.setattr(session_file, "NOTE_PERIOD", 0.0)
    session = opened(begin(memory_folder=str(tmp_path)), "reset")
    remembered(session, film[:4])
    forget = session.keeper.forget

    def with_frames_meanwhile(also):  # the memory is empty already
        session.frames.append([TimedFrame(f.stamp_ns, f.image, later) for f in film[4:8]])
        return forget(also)

    later = Sent(8, film[7].stamp_ns)
    monkeypatch.setattr(session.keeper, "forget", with_frames_meanwhile)
    session.reset().result(PATIENCE)
    note = session.file.path.with_name(session.file.path.name + session_file.NOTE)
    wait_until(note.exists)
    assert session.file.noted().accepted_ns == film[7].stamp_ns


def test_of_a_session_that_is_asleep_the_memory_can_be_deleted(begin, film, tmp_path):
    sessions = begin(memory_folder=str(tmp_path))
    remembered(opened(sessions, "asleep"), film[:4])
    sessions.close("asleep", "a", forget=False)
    with pytest.raises(SessionUnknownError):
        sessions.close("asleep", "b")
    sessions.close("asleep", "a")
    assert [*tmp_path.rglob("asleep*")] == []


def test_however_many_end_a_session_its_frames_are_counted_once(begin, film):
    sessions = begin(memory_folder="")
    metrics = Metrics(sessions)
    remembered(opened(sessions, "once"), film[:4])
    sessions.when_closed.append(lambda session: counted.append(metrics.text().decode()))
    counted = []

    def close():
        with suppress(SessionUnknownError):
            sessions.close("once", "a")

    with ThreadPoolExecutor() as pool:
        for _ in range(4):
            pool.submit(close)
    counted.append(metrics.text().decode())
    assert len(counted) == 2
    assert all('stream_vlm_frames_total{end="ingested"} 4.0' in text for text in counted)


def test_a_session_that_has_seen_nothing_ends_after_a_minute_and_makes_room_for_its_key(
    begin, film, monkeypatch
):
    sessions = begin(Limits(max_sessions_per_key=2), memory_folder="")
    for name in ("of-no-use", "seen"):
        opened(sessions, name)
    remembered(sessions.find("seen", "a"), film[:4])
    opened(sessions, "new")
    assert [one.id for one in sessions.all()] == ["seen", "new"]
    monkeypatch.setattr(sessions_module, "EMPTY", 0.1)
    wait_until(lambda: [one.id for one in sessions.all()] == ["seen"])


def test_a_session_whose_engine_ended_by_a_fault_begins_again_from_what_was_saved(
    begin, film, tmp_path
):
    sessions = begin(memory_folder=str(tmp_path))
    server = RunningServer(sessions)
    camera = server.camera("broken")
    feed(camera, film[:4])
    [session] = sessions.all()
    session.save().result(PATIENCE)
    feed(camera, film[4:8])

    def fail(state, text):
        raise SystemExit("of a user's function")

    session.ask(Question("What?"), fail).future.result(PATIENCE)
    while not isinstance(last := camera.hear(), protocol.SessionEnding):
        pass
    assert "ended by a fault" in last.message and last.retry_after is not None
    camera.close()
    wait_until(lambda: sessions.all() == [])
    again = opened(sessions, "broken", session.owner)
    assert again.restored and again.memory.frames == 4
    assert "2.0 s" in again.gap and "are lost" in again.gap
    assert again.ask(Question("What?")).future.result(PATIENCE).answer
    server.close()


def test_a_key_has_no_more_saved_memories_than_it_may(begin, film, tmp_path):
    sessions = begin(Limits(max_memories_per_key=2), memory_folder=str(tmp_path))
    session = opened(sessions, "own")
    remembered(session, film[:4])
    for name in ("first", "second", "first", ""):  # those that there are may be saved again
        session.save(name).result(PATIENCE)
    with pytest.raises(StreamVlmError, match="this key has 2 saved memories already") as refusal:
        session.save("third")
    assert refusal.value.code == "TOO_MANY_MEMORIES"
    sessions.close("first", "a")
    sessions.close("second", "a")
    session.save("third").result(PATIENCE)
    assert {file.stem for file in tmp_path.rglob("*.safetensors")} == {"own", "third"}
    opened(sessions, "third", "b")  # of another key
