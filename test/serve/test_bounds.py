# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What one client sends takes a bounded part of the server, and breaks nothing."""

import asyncio
import contextlib
import errno
import socket
import threading

import numpy as np
import pytest
from patience import PATIENCE, wait_until
from serving import Camera, delete, feed, get
from websockets.exceptions import ConnectionClosed

from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.remote import protocol
from stream_vlm_ros.serve import completions, frames, live, session_file, telling
from stream_vlm_ros.serve.keys import LOCAL
from stream_vlm_ros.serve.outbox import Outbox
from stream_vlm_ros.serve.pixel_budget import PixelBudget
from stream_vlm_ros.session.counters import Drop

HUGE = "1" + "0" * 400


def heard(camera, kind):
    """The next event of a kind, whatever comes before it."""
    while not isinstance(event := camera.hear(), kind):
        pass
    return event


# -- numbers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "said",
    [
        f'"memory.picture", "stamp_ns": {HUGE}',
        f'"memory.picture", "stamp_ns": 0, "within_ns": {2**63}',
        f'"memory.picture", "stamp_ns": 0, "max_size": -{HUGE}',
        f'"response.create", "response": {{"text": "?", "about_ns": [0, {HUGE}]}}',
        f'"response.create", "response": {{"text": "?", "max_new_tokens": {HUGE}}}',
        '"response.create", "response": {"text": "?", "thumbnails": -1}',
        f'"response.create", "response": {{"text": "?", "thumbnails": {10**12}}}',
        '"response.create", "response": {"text": "?", "history": "zzz"}',
    ],
)
def test_what_no_field_can_hold_is_refused_and_the_engine_goes_on(server, film, said):
    with server.camera("numbers") as camera:
        camera.socket.send(f'{{"event_id": "q", "type": {said}}}')
        assert heard(camera, protocol.ErrorEvent).error.code == "PROTOCOL_ERROR"
        camera.send(protocol.MemoryPicture(event_id="p", stamp_ns=0))
        assert camera.next(protocol.PictureDone).event_id == "p"


@pytest.mark.parametrize("value", [HUGE, f"-{HUGE}", "1e400"])
def test_no_number_in_a_setting_is_an_internal_error(server, value):
    with server.camera() as camera:
        for name in ("sample_fps", "max_chunk_delay", "queue_size", "max_pixels"):
            settings = f'{{"{name}": {value}}}'
            camera.socket.send(f'{{"type": "session.update", "settings": {settings}}}')
            assert heard(camera, protocol.ErrorEvent).error.code != "INTERNAL"


def test_a_picture_that_cannot_be_looked_for_ends_no_engine(server, film):
    with server.camera("looked-for") as camera:
        feed(camera, film[:4])
        worker = server.sessions.find("looked-for", LOCAL).worker
        assert worker.picture_near(10**400).exception(PATIENCE)
        assert worker.ended is None and camera.ask("What?").text


def test_one_sequence_far_ahead_does_not_shut_the_session(server, film):
    with server.camera("far-ahead") as camera:
        camera.sequence = 2**64 - 2
        camera.frame(film[0].stamp_ns, film[0].image)
        assert "came after frame 0" in heard(camera, protocol.ErrorEvent).error.message
        camera.sequence = 0
        feed(camera, film[:4])


# -- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name, value", [("chunk_frames", 64), ("max_chunk_delay", 3600.0)])
def test_a_session_waits_for_no_more_frames_than_the_server_says(server, name, value):
    session = server.sessions.open("waits", LOCAL)
    with pytest.raises(InvalidParameterError, match=f"{name} is at most"):
        session.frames.update({name: value})


def test_of_large_pictures_no_more_waits_than_the_model_takes(server):
    picture = np.full((1500, 2000, 3), 128, np.uint8)
    with server.camera("large") as camera:
        session = server.sessions.find("large", LOCAL)
        for second in range(1, 4):
            camera.frame(second * SECOND, picture)
        camera.send(protocol.SessionUpdate(settings={}))  # behind the frames
        camera.next(protocol.SessionUpdated)
        most = 3 * 3 * camera.created.session.max_pixels  # of three, in RGB
        assert 0.7 * most < session.frames.held_bytes <= most
        camera.send(protocol.Commit())
        assert camera.next(protocol.Ingested).frames == 3
        wait_until(lambda: session.frames.held_bytes == 0)


def hold_large(monkeypatch):
    """Those above 10,000 pixels are large, of which 20,000 may be decoded at a time: those that are
    being decoded, which end when the event is set."""
    monkeypatch.setattr(live, "LARGE", 10_000)
    monkeypatch.setattr(live, "LARGE_AT_ONCE", PixelBudget(20_000))
    decode, at_work, may_end = frames.picture_of, [], threading.Event()

    def decoded(frame, limit):
        if telling.pixels_of(frame, limit) > 10_000:
            at_work.append(frame)
            assert may_end.wait(PATIENCE)
        return decode(frame, limit)

    monkeypatch.setattr(frames, "picture_of", decoded)
    return at_work, may_end


def test_nobodys_pictures_wait_for_the_large_ones_of_others(server, film, monkeypatch):
    at_work, may_end = hold_large(monkeypatch)
    monkeypatch.setattr(live, "TURN", PATIENCE)
    large, small = np.full((112, 112, 3), 90, np.uint8), np.full((84, 84, 3), 90, np.uint8)
    with contextlib.ExitStack() as stack:
        count = live.DECODERS + 1
        others = [stack.enter_context(server.camera(f"large-{at}")) for at in range(count)]
        for at, camera in enumerate(others):
            camera.chunk([SECOND], [large], jpeg=at % 2 == 0)
        wait_until(lambda: at_work)
        with server.camera("small") as camera:
            for jpeg in (False, True):
                camera.chunk([(1 + jpeg) * SECOND], [small], jpeg)
                assert camera.next(protocol.Ingested).frames == 1
        assert len(at_work) == 1  # one at a time
        may_end.set()
        for camera in others:
            assert camera.next(protocol.Ingested).frames == 1


def test_who_waits_for_a_large_picture_to_be_decoded_is_read_and_told_what_is_dropped(
    server, monkeypatch
):
    at_work, may_end = hold_large(monkeypatch)
    monkeypatch.setattr(live, "TURN", 0.05)
    large = np.full((112, 112, 3), 90, np.uint8)  # with a second one more than may be
    with server.camera("held-up-1") as first, server.camera("held-up-2") as second:
        first.chunk([SECOND], [large])
        wait_until(lambda: at_work)
        for number in (1, 2):  # the second does not wait again
            second.frame(number * SECOND, large, jpeg=number == 1)
            dropped = second.next(protocol.Dropped)
            assert (dropped.first, dropped.last, dropped.cause) == (number, number, "overflow")
            assert "cannot be decoded soon" in dropped.message
        assert second.socket.ping().wait(PATIENCE)
        counters = server.sessions.find("held-up-2", LOCAL).counters
        assert (counters.received, counters.dropped[Drop.OVERFLOW]) == (2, 2)
        assert len(at_work) == 1
        may_end.set()
        assert first.next(protocol.Ingested).frames == 1
        second.chunk([3 * SECOND], [large])
        assert second.next(protocol.Ingested).frames == 1


def test_after_a_large_picture_that_waited_in_vain_the_next_ones_do_not_wait(server, monkeypatch):
    class Full(PixelBudget):
        async def take(self, pixels, patience):
            asked.append(patience)
            return False

    asked = []
    hold_large(monkeypatch)
    monkeypatch.setattr(live, "LARGE_AT_ONCE", Full(1))
    monkeypatch.setattr(live, "TURN", PATIENCE)
    with server.camera("in-vain") as camera:
        for number in (1, 2, 3):
            camera.frame(number * SECOND, np.full((112, 112, 3), 90, np.uint8))
            assert camera.next(protocol.Dropped).cause == "overflow"
    assert asked == [PATIENCE, 0.0, 0.0]


def test_of_the_pixels_that_are_decoded_at_a_time_the_smallest_picture_has_its_turn_first():
    async def taken():
        budget, order = PixelBudget(64), []

        async def take(pixels, patience=PATIENCE):
            order.append((pixels, await budget.take(pixels, patience)))

        await take(1000)  # one alone may be as large as it likes
        waiting = [asyncio.create_task(take(pixels)) for pixels in (60, 12, 40)]
        gone = asyncio.create_task(take(5))
        await take(1, patience=0)
        gone.cancel()
        await asyncio.wait([gone])
        await asyncio.to_thread(budget.give_back, 1000)
        await asyncio.wait([waiting[1], waiting[2]])
        assert not waiting[0].done()
        await take(12)  # 64 with it, and before the one of 60
        await take(12, patience=0)
        for pixels in (12, 40, 12):
            budget.give_back(pixels)
        await waiting[0]
        return order

    order = asyncio.run(taken())
    assert order[:2] == [(1000, True), (1, False)]
    assert sorted(order[2:4]) == [(12, True), (40, True)]
    assert order[4:] == [(12, True), (12, False), (60, True)]


def test_a_picture_that_is_sent_again_counts_beside_the_first_while_that_is_in_use(
    server, monkeypatch
):
    session = server.sessions.open("sent-again", LOCAL)
    session.ready.result(PATIENCE)
    session.frames.update({"commit": "client"})
    in_use, decode = [], frames.picture_of

    def decoded(frame, limit):
        in_use.append(decode(frame, limit))
        return in_use[-1]

    monkeypatch.setattr(frames, "picture_of", decoded)
    picture = np.full((112, 112, 3), 128, np.uint8)  # not too large: taken as it is
    message = protocol.FrameMessage(1, SECOND, protocol.RAW, 112, 112, picture.tobytes())
    session.frames.receive(message)
    session.frames.begin_connection()  # whose client sends again what was not accepted
    session.frames.receive(message)
    assert session.frames.held_bytes == 2 * picture.nbytes
    in_use.clear()
    assert session.frames.held_bytes == picture.nbytes


@pytest.mark.parametrize("commit", ["server", "client"])
def test_beyond_the_bytes_that_may_wait_frames_are_dropped_and_told(server, film, commit):
    with server.camera(f"bytes-{commit}", commit=commit) as camera:
        session = server.sessions.find(f"bytes-{commit}", LOCAL)
        session.frames.max_held_bytes = film[0].image.nbytes + 1000
        for frame in film[:3]:
            camera.frame(frame.stamp_ns, frame.image)
        dropped = [camera.next(protocol.Dropped) for _ in range(2)]
        assert [(one.first, one.cause) for one in dropped] == [(2, "overflow"), (3, "overflow")]
        assert "MB are on their way" in dropped[0].message


# -- stamps ------------------------------------------------------------------------------------


@pytest.mark.parametrize("commit", ["server", "client"])
@pytest.mark.parametrize("stamp_ns", [-(2**63), 2**63 - 1, 2**31 * SECOND])
def test_a_stamp_that_no_message_holds_is_dropped_whoever_gathers(server, film, stamp_ns, commit):
    with server.camera(commit=commit) as camera:
        session = server.sessions.find(camera.created.session.id, LOCAL)
        camera.frame(stamp_ns, film[0].image)
        assert camera.next(protocol.Dropped).cause == "invalid_stamp"
        assert session.frames.accepted is None
        for frame in film[:4]:
            camera.frame(frame.stamp_ns, frame.image)
        if commit == "client":
            camera.send(protocol.Commit())
        assert camera.next(protocol.Ingested).newest_ns == film[3].stamp_ns
        assert session.frames.accepted.stamp_ns == film[3].stamp_ns


# -- what waits, and what is refused -----------------------------------------------------------


def test_an_events_name_is_short_and_of_answers_few_bytes_wait(server):
    with server.camera() as camera:
        camera.send(protocol.MemoryList(event_id="x" * 101))
        assert "length <= 100" in heard(camera, protocol.ErrorEvent).error.message
    outbox = Outbox(lambda: None)
    picture = protocol.Thumbnail(stamp_ns=0, jpeg=bytes(3 << 20))  # 4 MB as they travel
    outbox.put(protocol.PictureDone(picture=picture))
    assert not outbox.full
    asyncio.run(outbox.get())
    outbox.put(protocol.PictureDone(picture=picture))
    assert not outbox.full
    outbox.put(protocol.PictureDone(picture=picture))
    assert outbox.full


def test_an_order_that_is_refused_is_not_carried_out(server, film, monkeypatch):
    monkeypatch.setattr(live, "MAX_ORDERS", 0)
    with server.camera() as camera:
        feed(camera, film[:4])
        camera.send(protocol.MemoryReset())
        assert heard(camera, protocol.ErrorEvent).error.code == "QUEUE_FULL"
        assert camera.ask("What?").memory.frames == 4


@pytest.mark.parametrize(
    "ask", [{"history": "always"}, {"keep_exchange": True, "choices": ("a", "b")}]
)
def test_what_cannot_be_honoured_is_refused_over_a_websocket_too(server, ask):
    with server.camera() as camera:
        ask = protocol.Ask(text="What?", **ask)
        camera.send(protocol.ResponseCreate(event_id="q", response=ask))
        error = heard(camera, protocol.ErrorEvent).error
        assert (error.code, error.event_id) == ("INVALID_PARAMETER", "q")


def test_a_request_that_does_not_end_is_refused(server, monkeypatch):
    monkeypatch.setattr(completions, "READ_TIMEOUT", 0.1)
    with socket.create_connection(("127.0.0.1", server.port), 10) as client:
        head = "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\n"
        client.sendall(f"{head}Transfer-Encoding: chunked\r\n\r\n1\r\n{{\r\n".encode())
        assert client.recv(1000).startswith(b"HTTP/1.1 408")


def test_a_folder_that_cannot_be_written_is_told_with_a_time_to_come_again(server, monkeypatch):
    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device", "/private/place")

    monkeypatch.setattr(session_file, "Ownership", full)
    camera = Camera(server.port, "no-room")
    ending = heard(camera, protocol.SessionEnding)
    camera.close()
    assert ending.code == "NO_FOLDER" and ending.retry_after
    assert "private" not in ending.message


def undeletable(server, name):
    """The place of a session's file, where something is that cannot be deleted as a file is."""
    path = server.sessions.find(name, LOCAL).file.path
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)
    return path


def test_what_cannot_be_deleted_is_told_with_a_time_to_come_again(server, film, caplog):
    with server.camera("stays") as camera:
        feed(camera, film[:4])
        path = undeletable(server, "stays")
        url = f"{server.url}/v1/sessions/stays"
        for _ in range(2):  # the session, and what is saved of one
            refused = delete(url)
            assert refused.status_code == 503 and refused.headers["Retry-After"]
            assert refused.json()["error"]["code"] == "NO_FOLDER"
            assert str(path.parent) not in refused.text
        path.rmdir()
    assert [delete(url).status_code for _ in range(2)] == [200, 404]
    assert not [one for one in caplog.records if one.levelname == "ERROR"]


def test_a_connection_ends_with_its_session_also_where_that_cannot_be_forgotten(server, film):
    with server.camera("not-forgotten") as camera:
        feed(camera, film[:4])
        path = undeletable(server, "not-forgotten")
        camera.send(protocol.SessionClose(event_id="c"))
        error = heard(camera, protocol.ErrorEvent).error
        assert (error.code, error.event_id) == ("NO_FOLDER", "c")
        assert heard(camera, protocol.SessionEnding).retry_after is None
        with pytest.raises(ConnectionClosed):
            camera.hear()
    path.rmdir()


def test_a_fault_of_ours_is_answered_in_the_form_of_all_errors(server, monkeypatch):
    every = server.sessions.all
    monkeypatch.setattr(server.sessions, "all", lambda owner=None: (owner and 1 / 0) or every())
    answer = get(f"{server.url}/v1/sessions")
    assert answer.status_code == 500 and answer.json()["error"]["code"] == "INTERNAL"


def test_chunks_that_are_refused_again_and_again_are_few_lines_of_log(server, film, caplog):
    with server.camera("noisy") as camera:
        feed(camera, film[4:8])
        for _ in range(20):
            camera.chunk([film[0].stamp_ns], [film[0].image])
            camera.next(protocol.Dropped)
    assert sum("session noisy" in record.getMessage() for record in caplog.records) == 1


def test_no_client_learns_where_memories_lie(server, film):
    folder = server.sessions.settings.memory_folder
    with server.camera("where") as camera:
        camera.send(protocol.MemoryLoad(event_id="l", name="not-there"))
        error = heard(camera, protocol.ErrorEvent).error
        assert error.code == "MEMORY_FILE" and "not-there" in error.message
        assert folder not in error.message
        assert folder not in server.sessions.find("where", LOCAL).status.saved.error
        feed(camera, film[:4])
        camera.send(protocol.MemorySave(name="here"))
        assert folder not in camera.next(protocol.MemoryDone).words
