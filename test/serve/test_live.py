# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""Cameras over WebSockets: what they send is remembered as it would be in process, and what they
do wrong costs nobody anything."""

import logging
import socket
import time
from collections import Counter
from contextlib import closing

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from patience import PATIENCE, wait_until
from serving import Camera, RunningServer, feed, hold_answers, in_process, jpeg_of, of_jpeg
from websockets.exceptions import ConnectionClosed, InvalidStatus

from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.remote import protocol
from stream_vlm_ros.serve import live
from stream_vlm_ros.serve.keys import LOCAL, Keys
from stream_vlm_ros.session.question import Question

QUESTIONS = ("What do you see?", "What came last?", "How many things are there?")
GREY = np.full((56, 56, 3), 128, np.uint8)
KEY, OTHER = "0123456789abcdef", "fedcba9876543210"


def refused(port, **options):
    """The answer to one who is not let in: its status, and its words."""
    with pytest.raises(InvalidStatus) as fault:
        Camera(port, **options)
    response = fault.value.response
    return response.status_code, response.body.decode(), response.headers


# -- frames ------------------------------------------------------------------------------------


def test_three_cameras_answer_as_the_engine_in_process_would(server, film):
    films = [film[:8], film[8:20], film[20:28]]
    cameras = [server.camera(f"equal-{n}") for n in range(3)]
    for camera, part in zip(cameras, films, strict=True):
        feed(camera, part)
    for camera, part, question in zip(cameras, films, QUESTIONS, strict=True):
        response = camera.ask(question, max_new_tokens=16)
        assert response.status == "completed" and response.text
        assert response.text == in_process(server.sessions.settings, part, question)[0]
        assert response.memory.frames == len(part)
        camera.close()


def test_choices_are_scored_as_in_process_and_of_a_jpeg_as_of_what_comes_out_of_it(server, film):
    choices = ("red", "green", "blue", "yellow")
    decoded = [(frame.stamp_ns, of_jpeg(frame.image)) for frame in film[:8]]
    with server.camera("jpeg") as camera:
        feed(camera, film[:8], jpeg=True)
        response = camera.ask("Which colour came last?", choices=choices)
    raw = [(frame.stamp_ns, frame.image) for frame in film[:8]]
    for frames, equal in ((decoded, True), (raw, False)):
        scores = in_process(server.sessions.settings, frames, "Which colour came last?", choices)
        assert (response.choice_scores == scores) is equal


def test_an_answer_is_told_as_it_grows(server, film):
    with server.camera("grows") as camera:
        feed(camera, film[:4])
        response = camera.ask("What do you see?", max_new_tokens=16)
    told = [event for event in camera.heard if getattr(event, "response_id", "") == "q"]
    assert isinstance(told[0], protocol.ResponseReading)
    deltas = "".join(event.delta for event in told[1:])
    assert deltas.strip() == response.text.strip()


def test_the_server_samples_and_gathers_chunks_itself_where_it_is_told_to(server, film):
    with server.camera("gathers", commit="server") as camera:
        start = film[0].stamp_ns
        for index in range(32):  # 8 a second, of which 2 are taken
            camera.frame(start + index * SECOND // 8, film[index // 4].image, jpeg=True)
        ingested = [camera.next(protocol.Ingested) for _ in range(2)]
    assert [(event.first, event.last, event.frames) for event in ingested] == [
        (1, 13, 4),
        (17, 29, 4),
    ]
    assert ingested[1].newest_ns == start + 28 * SECOND // 8
    dropped = [event for event in camera.heard if isinstance(event, protocol.Dropped)]
    assert {event.cause for event in dropped} <= {"sampling"}
    counters = server.sessions.find("gathers", LOCAL).counters
    assert (counters.received, counters.ingested, counters.pending) == (32, 8, 0)


def too_large():
    """A JPEG of a few hundred bytes whose header announces 60000x60000."""
    data = bytearray(jpeg_of(GREY))
    start = data.index(b"\xff\xc0") + 5
    data[start : start + 4] = (60000).to_bytes(2, "big") * 2
    return bytes(data)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "no JPEG"),
        (jpeg_of(GREY)[:100], "cannot be read"),
        (too_large(), "60000x60000"),
        (b"\xff\xd8\xff" + bytes(200), "header cannot be read"),
    ],
)
def test_a_frame_that_is_no_picture_is_dropped_in_words_and_the_others_are_remembered(
    server, film, pixels, words
):
    with server.camera() as camera:
        camera.sequence = 1
        bad = protocol.FrameMessage(1, film[0].stamp_ns - 1, protocol.JPEG, 0, 0, pixels)
        camera.socket.send(bad.packed())
        dropped = camera.next(protocol.Dropped)
        assert (dropped.first, dropped.last, dropped.frames) == (1, 1, 1)
        assert dropped.cause == "invalid_image" and words in dropped.message
        feed(camera, film[:4])
        assert camera.ask("What do you see?").memory.frames == 4


def test_chunks_beyond_the_queue_are_dropped_oldest_first_and_each_is_told(server, film):
    with server.camera("overflow") as camera:
        feed(camera, film[:2], chunk=2)
        camera.send(protocol.ResponseCreate(event_id="long", response=protocol.Ask(text="What?")))
        for index in range(40):
            camera.chunk([film[2].stamp_ns + index], [film[2].image])
        ends = []
        while sum(event.frames for event in ends) < 40:
            event = camera.hear()
            if isinstance(event, protocol.Ingested | protocol.Dropped):
                ends.append(event)
    told = Counter(n for event in ends for n in range(event.first, event.last + 1))
    assert told == Counter(range(3, 43))
    assert {event.cause for event in ends if isinstance(event, protocol.Dropped)} <= {"overflow"}


# -- messages that are none --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ("no json", "no event of version 1"),
        ('{"type": "session.destroy"}', "session.destroy"),
        ('{"type": "response.create"}', "response"),
        ('{"type": "response.create", "response": {"text": "What?"}}', "event_id"),
        ('{"type": "input_frame_buffer.commit", "frames": 3}', "frames"),
        ("[" * 100_000, "no event"),
        ('{"type": "session.update", "settings": {"queue_size": 1000}}', "queue_size"),
        ('{"type": "session.update", "settings": {"queue_size": 200}}', "at most 2"),
        ('{"type": "session.update", "settings": {"weight": 9}}', "weight"),
        ('{"type": "session.update", "settings": {"commit": "both"}}', "commit"),
        ('{"type": "memory.load", "name": "../../etc/passwd"}', "names no memory"),
        ('{"type": "memory.save", "name": "/tmp/x"}', "names no memory"),
        ('{"type": "memory.load", "name": "none"}', "none"),
        ('{"type": "memory.picture", "stamp_ns": 0, "max_size": 1000000}', "max_size"),
        ("x" * (protocol.MAX_EVENT_BYTES + 1), "longer than"),
        (b"", "no room for a head"),
        (b"\x07" * 40, "kind 7"),
        (protocol.FrameMessage(1, 0, protocol.RAW, 100, 100, b"abc").packed(), "100x100"),
        (protocol.FrameMessage(1, 0, 9, 0, 0, b"abc").packed(), "encoding 9"),
    ],
)
def test_a_bad_message_is_answered_by_an_error_in_words_and_the_connection_goes_on(
    server, message, words
):
    with server.camera() as camera:
        camera.socket.send(message)
        while not isinstance(event := camera.hear(), protocol.ErrorEvent):
            pass
        assert words in event.error.message and "Traceback" not in event.error.message
        camera.send(protocol.SessionUpdate(event_id="u", settings={"sample_fps": 1.0}))
        assert camera.next(protocol.SessionUpdated).event_id == "u"


def test_a_frame_longer_than_there_may_be_ends_the_connection_and_not_the_session(
    another, film, monkeypatch
):
    monkeypatch.setattr(protocol, "MAX_FRAME_BYTES", 1 << 20)
    server = another()
    camera = server.camera("huge")
    feed(camera, film[:4])
    with pytest.raises(ConnectionClosed) as closed:
        camera.socket.send(bytes(2 << 20))
        camera.next(protocol.Ingested)
    told = closed.value.rcvd  # None: what was still on its way to the server cut the word off
    assert told is None or told.code == 1009
    camera.close()
    with server.camera("huge") as camera:
        assert camera.created.session.resumed and camera.ask("What?").memory.frames == 4


def test_who_sends_nothing_but_bad_messages_is_cut_off_in_words(server):
    with server.camera("flooding") as camera:
        with pytest.raises(ConnectionClosed) as closed:
            for _ in range(live.FAULTS + 1):
                camera.socket.send("no json")
            while True:
                camera.hear()
        assert closed.value.rcvd.code == live.FLOODING
    assert camera.heard[-1].code == "FLOODING" and camera.heard[-1].retry_after


def test_a_sequence_that_does_not_count_up_is_refused(server, film):
    with server.camera() as camera:
        camera.frame(film[0].stamp_ns, GREY)
        camera.sequence = 0
        camera.frame(film[1].stamp_ns, GREY)
        event = next(e for e in iter(camera.hear, None) if isinstance(e, protocol.ErrorEvent))
        assert "frame 1 came after frame 1" in event.error.message


# -- who is let in -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def keyed(server):
    """A way in for who knows a key."""
    with closing(RunningServer(server.sessions, Keys((KEY, OTHER)))) as running:
        yield running


def test_who_knows_no_key_is_refused_in_words(keyed):
    for told, why in (
        ({}, "needs a key"),
        ({"key": "0123456789abcdeX"}, "not one of this server's"),
        ({"headers": [("Authorization", "Basic " + KEY)]}, "needs a key"),
    ):
        status, words, headers = refused(keyed.port, **told)
        assert status == 401 and why in words and headers["WWW-Authenticate"] == "Bearer"
        assert headers["X-Content-Type-Options"] == "nosniff"
    with keyed.camera(key=KEY) as camera:
        assert camera.created.session.id


def test_a_camera_that_is_refused_leaves_no_error_in_the_log(keyed, caplog, monkeypatch):
    monkeypatch.setattr(logging.getLogger("uvicorn"), "propagate", True)  # to where we read
    assert refused(keyed.port)[0] == 401
    assert refused(keyed.port, key=KEY, subprotocol="stream-vlm.v2")[0] == 400
    with keyed.camera(key=KEY):  # what was logged of those before is there
        assert caplog.messages == []


def test_a_page_of_another_site_is_refused(server):
    status, words, _ = refused(server.port, headers=[("Origin", "https://elsewhere.example")])
    assert status == 403 and "another site" in words
    own = [("Origin", f"http://127.0.0.1:{server.port}")]
    with Camera(server.port, headers=own) as camera:
        assert camera.next(protocol.SessionCreated)


@pytest.mark.parametrize("subprotocol", [None, "stream-vlm.v2"])
def test_another_version_is_refused_in_words(server, subprotocol):
    status, words, _ = refused(server.port, subprotocol=subprotocol)
    assert status == 400 and f"speaks {protocol.SUBPROTOCOL}" in words


@pytest.mark.parametrize("name", ["../x", "a b", "-x", "x" * 101])
def test_what_names_no_session_is_refused(server, name):
    status, words, _ = refused(server.port, session=name)
    assert status == 400 and "names no session" in words


def test_two_keys_have_sessions_of_the_same_name_and_neither_sees_the_others(keyed, film):
    with keyed.camera("same", KEY) as mine, keyed.camera("same", OTHER) as other:
        feed(mine, film[:4])
        assert mine.ask("What?").memory.frames == 4
        assert other.ask("What?").error.code == "EMPTY_MEMORY"
        mine.send(protocol.MemorySave())
        assert mine.next(protocol.MemoryDone).bytes
        other.send(protocol.MemoryList())
        assert other.next(protocol.MemoryDone).names == ()
        mine.send(protocol.MemoryList())
        assert mine.next(protocol.MemoryDone).names == ("same",)


# -- connections come and go -------------------------------------------------------------------


def test_a_newer_connection_takes_the_session_over_and_the_older_is_told(server, film):
    older = server.camera("taken-over")
    feed(older, film[:4])
    older.frame(film[4].stamp_ns, film[4].image)  # not said to be of a chunk: not accepted
    with server.camera("taken-over") as newer:
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                older.hear()
        assert closed.value.rcvd.code == live.TAKEN_OVER
        assert older.heard[-1].code == "TAKEN_OVER" and older.heard[-1].retry_after is None
        session = newer.created.session
        assert session.resumed and not session.restored
        assert (session.accepted_sequence, session.accepted_ns) == (4, film[3].stamp_ns)
        # What became of its frames is told again: the last word may have been lost.
        end = newer.next(protocol.Ingested)
        assert (end.first, end.last) == (1, 4)
        feed(newer, film[4:8])
        assert newer.ask("What?").memory.frames == 8
    older.close()


def end_by_its_engine(server, session):
    def fail(state, text):
        raise SystemExit("of a user's function")

    session.ask(Question("What?"), fail).future.result(PATIENCE)
    wait_until(lambda: session not in server.sessions.all())


@pytest.mark.parametrize(
    "end",
    [
        lambda server, session: server.sessions.hand_over([session], PATIENCE),
        lambda server, session: server.sessions.close(session.id, LOCAL),
        lambda server, session: session.begin_end(),
        end_by_its_engine,
    ],
)
def test_a_session_that_ends_as_somebody_connects_is_told_to_be_connected_to_again(
    server, film, monkeypatch, end
):
    name = f"ends-{time.monotonic_ns()}"
    opened = server.sessions.open

    def open_and_end(id, owner):
        session = opened(id, owner)
        session.ready.result(PATIENCE)
        end(server, session)
        return session

    monkeypatch.setattr(server.sessions, "open", open_and_end)
    camera = Camera(server.port, name)
    ending = camera.hear()
    assert isinstance(ending, protocol.SessionEnding) and "just ended" in ending.message
    assert (ending.code, ending.retry_after is not None) == ("ENDING", True)
    camera.close()
    monkeypatch.undo()
    if (left := _session(server, name)) is not None:  # which nobody ends
        left.go_on()
    with server.camera(name) as camera:
        feed(camera, film[:4])


def half_open(port, session):
    """A connection of one who has gone without a word: it answers nothing."""
    connected = socket.create_connection(("127.0.0.1", port))
    connected.sendall(
        f"GET {protocol.PATH} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nUpgrade: websocket\r\n"
        "Connection: Upgrade\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n"
        f"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: {protocol.SUBPROTOCOL}\r\n"
        f"{protocol.SESSION_HEADER}: {session}\r\n\r\n".encode()
    )
    return connected


def test_a_connection_that_answers_no_ping_is_found_out_and_its_session_stays(another):
    patient = another()
    with half_open(patient.port, "half-open-too"):
        wait_until(lambda: (one := _session(patient, "half-open-too")) and one.connection)
        with patient.camera("half-open-too") as camera:  # its robot need not wait for that
            assert camera.created.session.id
    server = another(ping=0.2, pong=2.0)
    with half_open(server.port, "half-open"):
        found = wait_until(lambda: server.sessions.all(LOCAL) and _session(server, "half-open"))
        wait_until(lambda: found.connection is not None, "the connection")
        wait_until(lambda: found.connection is None, "its end")
    assert _session(server, "half-open") is found


def _session(server, name):
    return next((one for one in server.sessions.all(LOCAL) if one.id == name), None)


def test_who_reads_nothing_is_cut_off_and_its_session_stays(server, monkeypatch):
    monkeypatch.setattr(live, "FAREWELL", 0.1)
    monkeypatch.setattr(live, "SEND_TIMEOUT", 10 * PATIENCE)  # it is not that which ends it
    with half_open(server.port, "slow"):
        session = wait_until(lambda: _session(server, "slow"))
        wait_until(lambda: session.was_connected)
        connection = session.connection
        lost = protocol.Dropped(first=1, last=1, frames=1, cause="error", message="x" * 20_000)
        for _ in range(live.MAX_EVENTS + 1000):  # more than the system's own buffers take, too
            connection.hear(lost)
        wait_until(lambda: session.connection is None, "its end")
    with server.camera("slow") as camera:
        assert camera.created.session.resumed


def test_answers_nobody_waits_for_any_more_are_ended_and_no_id_is_given_twice(
    server, film, monkeypatch
):
    camera = server.camera("gone")
    feed(camera, film[:4])
    codes, go_on = [], hold_answers(monkeypatch)
    server.sessions.when_answered.append(lambda done: codes.append(getattr(done.error, "code", "")))
    ask = protocol.Ask(text="What do you see?", max_new_tokens=64)
    for id in ("a", "a", "b", "c", "d", "e", "f", "g"):
        camera.send(protocol.ResponseCreate(event_id=id, response=ask))
    camera.send(protocol.ResponseCancel(response_id="no such"))
    camera.close()
    session = server.sessions.find("gone", LOCAL)
    wait_until(lambda: session.connection is None)
    go_on.set()
    wait_until(lambda: len(codes) == 7)
    assert set(codes) == {"CANCELLED"}
    wait_until(lambda: not session.is_busy)


def test_questions_beyond_those_that_may_wait_are_refused_one_by_one(server, film):
    with server.camera("many") as camera:
        feed(camera, film[:4])
        for n in range(30):
            ask = protocol.Ask(text="What do you see?")
            camera.send(protocol.ResponseCreate(event_id=f"q{n}", response=ask))
        done = {}
        while len(done) < 30:
            response = camera.next(protocol.ResponseDone).response
            assert response.id not in done
            done[response.id] = response
    refusals = [r for r in done.values() if r.error is not None]
    assert {r.error.code for r in refusals} <= {"QUEUE_FULL"}
    assert len({r.text for r in done.values() if r.error is None}) == 1


def test_the_memory_is_forgotten_saved_loaded_and_listed(server, film):
    with server.camera("keeps") as camera:
        feed(camera, film[:4])
        before = camera.ask("What do you see?")
        camera.send(protocol.MemorySave(event_id="s", name="kept"))
        saved = camera.next(protocol.MemoryDone)
        assert saved.event_id == "s" and saved.bytes > 1000
        camera.send(protocol.MemoryReset(event_id="r"))
        assert camera.next(protocol.MemoryDone).event_id == "r"
        assert camera.ask("What?").error.code == "EMPTY_MEMORY"
        camera.send(protocol.MemoryLoad(event_id="l", name="kept"))
        loaded = camera.next(protocol.MemoryDone)
        assert (loaded.event_id, loaded.newest_ns) == ("l", film[3].stamp_ns)
        assert camera.ask("What do you see?").text == before.text
        camera.send(protocol.MemoryList(event_id="n"))
        assert "kept" in camera.next(protocol.MemoryDone).names
        camera.send(protocol.MemoryPicture(event_id="p", stamp_ns=film[0].stamp_ns))
        assert camera.next(protocol.PictureDone).picture is None  # no history is kept


def test_a_session_is_closed_also_where_nobody_waits_for_that(server, film):
    for number in range(5):
        camera = server.camera(f"closed-{number}")
        feed(camera, film[:4])
        camera.send(protocol.SessionClose())
        camera.close()
    wait_until(lambda: not [one for one in server.sessions.all() if one.id.startswith("closed-")])


def test_a_session_is_not_called_resumed_because_it_was_begun_fast(server):
    # Its first camera is told by this that a server before this one is gone, with what it had seen.
    server.sessions.open("begun-fast", LOCAL).ready.result(PATIENCE)
    with server.camera("begun-fast") as camera:
        assert not camera.created.session.resumed
    with server.camera("begun-fast") as camera:
        assert camera.created.session.resumed


def test_a_session_that_is_closed_is_forgotten_with_what_was_saved_of_it(server, film):
    with server.camera("closed") as camera:
        feed(camera, film[:4])
        camera.send(protocol.MemorySave())
        camera.next(protocol.MemoryDone)
        camera.send(protocol.SessionClose(event_id="c"))
        assert camera.next(protocol.SessionClosed).event_id == "c"
        with pytest.raises(ConnectionClosed):
            camera.hear()
    with server.camera("closed") as camera:
        session = camera.created.session
        assert not session.resumed and not session.restored and session.accepted_ns is None


# -- whatever is sent --------------------------------------------------------------------------

ACTIONS = st.one_of(
    st.tuples(st.just("frame"), st.integers(-3, 5)),  # a step of time
    st.sampled_from(["bad frame", "commit", "clear", "ask", "cancel", "reset", "mode", "garbage"]),
    st.tuples(st.just("cut"), st.none()),
)


@settings(max_examples=20, suppress_health_check=list(HealthCheck))
@given(actions=st.lists(ACTIONS, max_size=30))
def test_whatever_is_sent_every_frame_comes_to_one_end_and_is_counted_once(server, actions):
    name = f"any-{time.monotonic_ns()}"
    camera = server.camera(name)
    stamp, ends, asked = 100 * SECOND, {}, 0

    def note(events):
        for event in events:
            if isinstance(event, protocol.Ingested | protocol.Dropped):
                ends[type(event), event.first, event.last] = event

    for action in actions:
        match action:
            case ("frame", step):
                stamp += step * SECOND
                camera.frame(stamp, GREY, jpeg=True)
            case ("cut", _):
                camera.close()
                note(camera.heard)
                sent = camera.sequence
                camera = server.camera(name, commit=camera.created.session.settings["commit"])
                camera.sequence = sent
            case "bad frame":
                camera.sequence += 1
                frame = protocol.FrameMessage(camera.sequence, stamp, protocol.JPEG, 0, 0, b"x")
                camera.socket.send(frame.packed())
            case "commit":
                camera.send(protocol.Commit())
            case "clear":
                camera.send(protocol.Clear())
            case "ask":
                asked += 1
                ask = protocol.Ask(text="What?", max_new_tokens=4)
                camera.send(protocol.ResponseCreate(event_id=f"q{asked}", response=ask))
            case "cancel":
                camera.send(protocol.ResponseCancel(response_id=f"q{asked}"))
            case "reset":
                camera.send(protocol.MemoryReset(time_jump=bool(asked % 2)))
            case "mode":
                mode = ("client", "server")[camera.sequence % 2]
                camera.send(protocol.SessionUpdate(settings={"commit": mode}))
            case "garbage":
                camera.socket.send(b"garbage")
    counters = server.sessions.find(name, LOCAL).counters
    camera.send(protocol.SessionClose(event_id="end"))
    with pytest.raises(ConnectionClosed):
        while True:
            camera.hear()
    assert isinstance(camera.heard[-1], protocol.SessionClosed)
    note(camera.heard)
    camera.close()
    told = Counter()
    for event in ends.values():
        told[getattr(event, "cause", "ingested")] += event.frames
    counted = {cause.cause: count for cause, count in counters.dropped.items()}
    counted["ingested"] = counters.ingested
    assert told == Counter(counted)
    assert counters.pending == 0


def test_settings_are_changed_all_or_none(server, film):
    with server.camera("settings") as camera:
        session = server.sessions.find("settings", LOCAL)
        before = session.described().settings
        camera.frame(film[0].stamp_ns, film[0].image)
        changes = {"sample_fps": 1.0, "max_pixels": 50_000, "commit": "server"}
        camera.send(protocol.SessionUpdate(event_id="u", settings=changes))
        while not isinstance(event := camera.hear(), protocol.ErrorEvent):
            pass
        assert "while frames wait" in event.error.message
        assert session.described().settings == before
        camera.send(protocol.Commit())
        camera.next(protocol.Ingested)
        camera.send(protocol.SessionUpdate(settings=changes))
        assert camera.next(protocol.SessionUpdated).session.settings == before | changes
