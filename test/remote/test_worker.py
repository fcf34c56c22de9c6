# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A session at a server, behind a real socket; the server is good, bad, silent or gone."""

import io
import socket
import time
from concurrent.futures import Future

import numpy as np
import pytest
from model_server import ModelServer, ModelSession
from patience import wait_until
from PIL import Image
from proxy import Proxy

from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.remote import exchange, protocol
from stream_vlm_ros.remote import link as links
from stream_vlm_ros.remote.link import Address, LinkThread
from stream_vlm_ros.remote.pictures import Packing
from stream_vlm_ros.remote.protocol import RAW
from stream_vlm_ros.remote.worker import RemoteKeeper, RemoteWorker
from stream_vlm_ros.session.counters import Drop, FrameCounters
from stream_vlm_ros.session.question import DisconnectedError, NotActiveError, Question

KEY = "0123456789abcdef"


def test_frames_travel_and_a_question_is_answered_as_it_is_written(robot, server):
    robot.append(3)
    texts = []
    outcome = robot.ask(progress=lambda *told: texts.append(told)).future.result(10)
    assert texts == [("reading", ""), ("writing", "two "), ("writing", "two boxes")]
    assert (outcome.answer, outcome.error, outcome.answer_tokens) == ("two boxes", None, 2)
    assert outcome.memory.frames == 3 and outcome.memory.header.stamp == robot.stamp
    robot.wait_for(3)
    connection = robot.worker.connection
    assert (connection.model, connection.why, connection.lost_ns) == ("a model", "", None)
    assert robot.worker.device == "cuda:0" and "begun" in robot.worker.loaded.result()


def test_name_key_and_version_are_told(make_robot, server):
    make_robot(server.url, key=KEY, session="front").worker.loaded.result(10)
    (request,) = server.heads
    assert request.path == "/v1/realtime"
    assert request.headers["x-session-id"] == "front"
    assert request.headers["Authorization"] == f"Bearer {KEY}"
    assert request.headers["Sec-WebSocket-Protocol"] == "stream-vlm.v1"


@pytest.mark.parametrize("size", [(480, 640), (1080, 1920), (20, 60), (4000, 30)])
@pytest.mark.parametrize("encoding", [protocol.JPEG, RAW])
def test_a_picture_travels_no_larger_than_the_model_takes_it(size, encoding, monkeypatch):
    from stream_vlm_ros.engine.inputs.picture_sizes import smart_resize
    from stream_vlm_ros.remote.exchange import Chunk
    from stream_vlm_ros.session.timed_frame import TimedFrame

    picture = np.random.default_rng(0).integers(0, 255, (*size, 3), np.uint8)
    session = protocol.Session(id="s", factor=28, min_pixels=3136, max_pixels=401_408)
    chunk = Chunk([TimedFrame(7, picture, None)], first=3)
    (message,) = Packing(encoding, 90, 0).packed(chunk, session)
    frame = protocol.unpacked(message)
    assert (frame.sequence, frame.stamp_ns) == (3, 7)
    if encoding == RAW:
        sent = (frame.height, frame.width)
    else:
        sent = Image.open(io.BytesIO(frame.pixels)).size[::-1]
    wanted = smart_resize(*size, 28, 3136, 401_408)
    assert sent == (wanted if wanted[0] * wanted[1] < size[0] * size[1] else size)
    assert sent[0] * sent[1] <= max(401_408, size[0] * size[1])


def test_raw_pictures_arrive_as_they_are(make_robot, server):
    taken, take = [], server.session.take
    server.session.take = lambda message: taken.append(message) or take(message)
    robot = make_robot(server.url, packing=Packing(RAW))
    picture = np.random.default_rng(0).integers(0, 255, (56, 84, 3), np.uint8)
    robot.append(image=picture)
    robot.wait_for(1)
    frame = protocol.unpacked(next(one for one in taken if isinstance(one, bytes)))
    assert bytes(frame.pixels) == picture.tobytes()


def test_a_picture_that_the_model_cannot_use_costs_its_chunk_alone(robot):
    robot.append(image=np.zeros((1, 300, 3), np.uint8))
    robot.append()
    robot.wait_for(1)
    assert robot.counters.dropped[Drop.ERROR] == 1
    assert "200 times the other" in str(robot.faults[0])
    assert robot.worker.last_fault == ""


def test_a_lost_connection_is_told_and_taken_up_again_without_a_frame_twice(robot, server):
    robot.append(2)
    robot.wait_for(2)
    server.takes = server.answers = False
    robot.append(2)
    ticket = robot.ask()
    wait_until(lambda: server.session.asked)
    server.cut()
    outcome = ticket.future.result(10)
    assert outcome.error.code == "DISCONNECTED" and server.url in str(outcome.error)
    server.takes = True
    robot.wait_until_connected()
    robot.append(1)
    robot.wait_for(5)
    assert [sequence for sequence, _ in server.session.frames] == [1, 2, 3, 4, 5]
    lost, again = robot.told
    assert not lost[0] and "again" in lost[1] and again[0] and "taken up again" in again[1]


def test_asked_without_a_connection_is_answered_within_an_instant(make_robot):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # listens, and says nothing
        robot = make_robot(f"ws://127.0.0.1:{silent.getsockname()[1]}")
        began = time.monotonic()
        outcome = robot.ask().future.result(10)
        robot.append(2)
        order = RemoteKeeper(robot.worker, time.time_ns).save()
        assert order.exception(10).code == outcome.error.code == "DISCONNECTED"
        assert time.monotonic() - began < 10  # and not for as long as the server may take
        assert robot.thread.stop(10)


class Meanwhile(Future):
    """Something else happens just as it gets its result."""

    def set_result(self, result):
        self.happens()
        super().set_result(result)


def worker_of(url, thread, **options):
    address = Address(url, "robot")
    return RemoteWorker(address, FrameCounters(), 2, 8, Packing(), thread=thread, **options)


def test_a_stop_just_as_the_connection_is_there_is_no_fault():
    worker = worker_of("ws://127.0.0.1:9", LinkThread())
    worker.loaded = Meanwhile()
    worker.loaded.happens = worker.stop
    [told] = ModelSession().created()
    worker.connected(told)
    assert "begun" in worker.loaded.result(0)


def test_a_fault_of_ours_at_one_camera_ends_no_others_connection(server):
    def fail(*told):
        raise RuntimeError("a bug")

    thread, faults = LinkThread(), []
    broken = worker_of("ws://127.0.0.1:9", thread, report=faults.append)
    broken.disconnected = fail
    other = worker_of(server.url, thread)
    thread.start()
    wait_until(lambda: faults and not other.connection.why, "fault and connection")
    server.cut()
    wait_until(lambda: len(server.heads) > 1 and not other.connection.why, "the connection again")
    assert [str(fault) for fault in faults] == ["a bug"]
    assert thread.stop(5)


def test_a_server_that_comes_later_is_found(make_robot):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    robot = make_robot(f"ws://127.0.0.1:{port}")
    assert robot.worker.loaded.result(10) == ""
    assert "nothing listens there" in robot.worker.connection.why
    for _ in range(3):
        robot.append()
    server = ModelServer(port)
    robot.wait_for(2)
    assert robot.counters.dropped[Drop.OVERFLOW] == 1
    server.close()


@pytest.mark.parametrize(
    ("refusal", "again", "words"),
    [
        ((401, {}, '{"error": {"message": "this key is not known"}}'), False, "is not known"),
        ((400, {}, '{"detail": "speaks stream-vlm.v2"}'), False, "v2"),
        ((429, {"Retry-After": "0.2"}, '{"error": {"message": "8 sessions"}}'), True, "8 sessions"),
        ((503, {"Retry-After": "soon"}, "starting"), True, "starting"),
        ((200, {}, "<html>a web page</html>"), True, ": refused (HTTP 200)"),
        ((502, {}, "<html>of a proxy</html>"), True, ": refused (HTTP 502)"),
    ],
)
def test_a_refusal_is_told_and_tried_again_where_that_makes_sense(
    make_robot, server, refusal, again, words
):
    server.refusal = refusal
    robot = make_robot(server.url)
    if again:
        assert robot.worker.loaded.result(10) == ""
        assert words in robot.wait_until_lost()
        assert "tried again" in wait_until(lambda: robot.told)[0][1]
        server.refusal = None
        robot.wait_until_connected()
        assert len(server.heads) >= 2
    else:
        fault = robot.worker.loaded.exception(10)
        assert words in str(fault) and robot.ask().future.result(1).error is not None
        time.sleep(0.5)
        assert len(server.heads) == 1


def test_a_server_that_is_full_is_left_alone_for_as_long_as_it_says(make_robot, server):
    server.refusal, began = (429, {"Retry-After": "1"}, "full"), time.monotonic()
    robot = make_robot(server.url)
    wait_until(lambda: server.heads)
    server.refusal = None
    robot.wait_until_connected()
    assert time.monotonic() - began > len(server.heads) - 1 >= 1  # a second between two


def test_no_server_makes_a_robot_come_again_without_a_pause(make_robot, server):
    ending = protocol.SessionEnding(code="ENDING", message="full", retry_after=-1000.0)
    server.first = protocol.encoded(ending)
    make_robot(server.url)
    wait_until(lambda: len(server.heads) >= 3)
    time.sleep(0.5)
    assert len(server.heads) < 20  # of pauses that grow to 0.1 to 0.2 s


@pytest.mark.parametrize("after", ["1e300", "inf"])
def test_no_server_sends_a_robot_away_for_ever(make_robot, server, monkeypatch, after):
    monkeypatch.setattr(links, "LONGEST_WAIT", 0.1)
    server.refusal = (429, {"Retry-After": after}, "full")
    robot = make_robot(server.url)
    wait_until(lambda: server.heads)
    server.refusal = None
    robot.wait_until_connected()


def test_a_robot_is_sent_to_no_other_server(make_robot, server):
    other = ModelServer()
    server.refusal = (302, {"Location": other.url}, "elsewhere")
    robot = make_robot(server.url, KEY)
    robot.wait_until_lost()
    wait_until(lambda: len(server.heads) >= 2)
    assert other.heads == [] and "302" in robot.worker.connection.why
    other.close()


def test_a_session_of_large_sequences_is_taken_up(make_robot, server):
    server.session.resumed, server.session.accepted_sequence = True, 2**40
    robot = make_robot(server.url)
    robot.append()
    robot.wait_for(1)
    assert server.session.frames[0][0] == 2**40 + 1


def test_the_end_may_come_at_any_moment_of_the_beginning(make_robot, server):
    for pause in (0.0, 0.0, 0.001, 0.002, 0.004, 0.008, 0.016):
        robot = make_robot(server.url)
        time.sleep(pause)
        assert robot.thread.stop(2.0)
        assert robot.faults == [] and robot.worker.loaded.done()


def test_who_is_told_to_go_for_good_goes(robot, server):
    server.say(protocol.SessionEnding(code="TAKEN_OVER", message="another took it over"))
    assert "another took it over" in robot.wait_until_lost()
    assert robot.ask().future.result(1).error.code == "DISCONNECTED"
    time.sleep(0.4)
    assert len(server.heads) == 1 and "not tried again" in robot.told[-1][1]


def test_who_is_told_to_come_again_comes(robot, server):
    server.say(protocol.SessionEnding(code="ENDING", message="a new version", retry_after=0.1))
    server.cut()
    wait_until(lambda: len(server.heads) == 2)
    robot.wait_until_connected()


@pytest.mark.parametrize(
    "said",
    [
        "",
        "no json",
        '{"type": "no.such.event"}',
        '{"type": "session.created"}',
        b"\x01\x02",
        "[" * 10**5,
    ],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_server_that_says_nonsense_is_left_and_tried_again(make_robot, server, said, first):
    server.first = said if first else None
    robot = make_robot(server.url)
    robot.worker.loaded.result(10)
    if not first:
        server.say_raw(said)
    wait_until(lambda: len(server.heads) >= 2, "another try")
    server.first = None
    robot.wait_until_connected()
    robot.append()
    robot.wait_for(1)
    assert robot.faults == []


@pytest.mark.parametrize(
    "memory",
    [
        dict(length=-1),
        dict(cap=2**32),
        dict(newest_ns=2**62),
        dict(spans_ns=((-5, 3),)),
        dict(levels=(protocol.Level(name="sink", tokens=-3),)),
        dict(closed_seconds=1e300),
    ],
)
def test_what_no_message_of_the_nodes_can_hold_is_not_taken_from_a_server(robot, server, memory):
    status = protocol.Status(memory=protocol.Memory(**memory))
    server.say(protocol.MemoryStatus(status=status))
    wait_until(lambda: len(server.heads) == 2, "another connection")
    robot.wait_until_connected()
    assert robot.faults == [] and robot.worker.memory.length == 0
    assert "the server's " in robot.told[0][1]


def answers_nonsense(server, monkeypatch, nonsense):
    """The server answers whatever is asked or ordered by what ``nonsense`` makes of its id."""
    take = server.session.take

    def taken(message):
        if isinstance(message, bytes):
            return take(message)
        event = protocol.client_event(message)
        return [nonsense(event.event_id)] if event.event_id else take(message)

    monkeypatch.setattr(server.session, "take", taken)


@pytest.mark.parametrize(
    "fields, words",
    [(dict(choice_index=2), "choice 2"), (dict(choice_index=2**31), "choice_index")],
)
def test_a_choice_that_was_not_given_is_no_answer(robot, server, monkeypatch, fields, words):
    answers_nonsense(
        server,
        monkeypatch,
        lambda id: protocol.ResponseDone(response=protocol.Response(id=id, **fields)),
    )
    ticket = robot.worker.ask(Question("Which?", choices=("one", "two")))
    error = ticket.future.result(10).error
    assert error.code == "DISCONNECTED" and words in str(error)
    robot.wait_until_connected()
    assert robot.faults == []


def test_an_answer_that_grows_without_end_is_broken_off(robot, server, monkeypatch):
    monkeypatch.setattr(exchange, "MAX_TEXT", 10)
    answers_nonsense(
        server, monkeypatch, lambda id: protocol.TextDelta(response_id=id, delta="a" * 11)
    )
    error = robot.ask().future.result(10).error
    assert error.code == "DISCONNECTED" and "longer than 10" in str(error)
    robot.wait_until_connected()
    assert robot.faults == []


def test_an_order_that_is_answered_by_something_else_ends_in_words(robot, server, monkeypatch):
    keeper = RemoteKeeper(robot.worker, lambda: 10**18)
    answers_nonsense(server, monkeypatch, lambda id: protocol.PictureDone(event_id=id))
    assert isinstance(keeper.save("evening").exception(10), DisconnectedError)
    robot.wait_until_connected()
    answers_nonsense(server, monkeypatch, lambda id: protocol.MemoryDone(event_id=id, words=""))
    assert isinstance(robot.worker.picture_near(5).exception(10), DisconnectedError)
    robot.wait_until_connected()
    assert robot.faults == []


def test_another_servers_websocket_is_no_server(make_robot, server):
    server.first = protocol.encoded(protocol.SessionClosed())
    robot = make_robot(server.url)
    assert robot.worker.loaded.result(10) == ""
    assert "session.created" in robot.worker.connection.why


def test_a_connection_that_is_half_open_is_found_out(make_robot, server, short_of_patience):
    """The path is cut without a word: behind a proxy that forwards nothing any more."""
    with Proxy(int(server.url.rpartition(":")[2])) as proxy:
        robot = make_robot(f"ws://127.0.0.1:{proxy.port}")
        robot.append()
        robot.wait_for(1)
        proxy.stalled = True
        ticket = robot.ask()
        assert ticket.future.result(10).error.code == "DISCONNECTED"
        assert "did not answer" in robot.worker.connection.why
        proxy.stalled = False
        robot.wait_until_connected()


def test_a_server_that_reads_nothing_is_found_out(make_robot, server, short_of_patience):
    robot = make_robot(server.url, packing=Packing(RAW))
    robot.worker.loaded.result(10)
    server.deaf = True
    picture = np.zeros((616, 644, 3), np.uint8)
    began = time.monotonic()
    for _ in range(10):
        robot.append(16, picture)
    assert time.monotonic() - began < 2.5  # nobody waits for the server, which takes 0.5 s each
    assert robot.wait_until_lost()
    server.deaf = False
    robot.wait_until_connected()


def test_orders_are_carried_out_or_refused_with_the_servers_words(robot, server):
    keeper = RemoteKeeper(robot.worker, lambda: 10**18)
    robot.append()
    assert keeper.save("evening").result(10).bytes == 7
    assert keeper.names().result(10) == ["one", "two"]
    refusal = keeper.load("nothing").exception(10)
    assert (refusal.code, str(refusal)) == ("MEMORY_FILE", "there is no such memory")
    with pytest.raises(InvalidParameterError):
        keeper.save("../etc")
    assert robot.worker.picture_near(5).result(10) == (5, b"jpeg")
    robot.worker.reset(Drop.RESET).result(10)
    assert robot.worker.resets == 1
    wait_until(lambda: robot.worker.memory.frames == 0)


def test_when_a_memory_was_saved_is_told_by_the_nodes_clock(robot, server):
    keeper = RemoteKeeper(robot.worker, lambda: 10**12)
    assert keeper.state.saved_ns is None
    saved = protocol.Saved(saved_ns=time.time_ns() - 5 * 10**9, name="robot", bytes=9)
    server.say(protocol.MemoryStatus(status=protocol.Status(saved=saved)))
    wait_until(lambda: keeper.state.saved_ns)
    assert 4.9e9 < 10**12 - keeper.state.saved_ns < 60e9
    assert (keeper.state.name, keeper.state.bytes) == ("robot", 9)


def test_a_bound_on_pixels_below_the_models_is_refused(robot):
    with pytest.raises(InvalidParameterError, match="below min_pixels"):
        robot.worker.limit_pixels("max_pixels", 100)
    robot.worker.limit_pixels("max_pixels", 0)


def test_the_end_comes_within_a_second_with_the_server_gone_and_leaves_nobody_waiting(
    make_robot, server
):
    server.answers = server.takes = False
    robot = make_robot(server.url)
    robot.worker.loaded.result(10)
    robot.append(2)
    ticket = robot.ask()
    wait_until(lambda: server.session.asked)
    server.deaf = True
    began = time.monotonic()
    assert robot.thread.stop(2.0)
    assert time.monotonic() - began < 1.5
    assert ticket.future.result(0).error.code == NotActiveError.code
    assert robot.counters.pending == 0 and robot.counters.dropped[Drop.RESET] == 2
    server.deaf = False


def test_at_the_end_the_server_is_told_to_stop_what_it_does_and_keeps_the_session(robot, server):
    server.answers = False
    robot.append(2)
    ticket = robot.ask()
    wait_until(lambda: server.session.asked)
    assert robot.thread.stop(5.0)
    assert ticket.future.done()
    wait_until(lambda: server.session.cancelled == [ticket.id])
    assert len(server.session.frames) == 2


def test_listeners_that_fail_end_no_connection(make_robot, server):
    def fail(*told):
        raise ValueError("a listener's own fault")

    robot = make_robot(server.url)
    robot.worker.loaded.result(10)
    outcome = robot.worker.ask(Question("What?"), fail).future.result(10)
    assert outcome.answer == "two boxes"
    assert any("own fault" in str(fault) for fault in robot.faults)


def test_the_session_of_the_model_server_is_what_the_protocol_says():
    """The stand-in is held to the protocol by its own decoder."""
    first, *rest = ModelSession().created()
    assert protocol.server_event(protocol.encoded(first)) == first and rest == []
