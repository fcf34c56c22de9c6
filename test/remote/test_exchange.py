# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What a camera has told a server, over connections that break off at any event."""

from types import SimpleNamespace

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from model_server import NO_PICTURE, ModelSession

from stream_vlm_ros.remote import protocol
from stream_vlm_ros.remote.exchange import Chunk, Exchange, RemoteTicket
from stream_vlm_ros.remote.protocol import JPEG, FrameMessage
from stream_vlm_ros.session.counters import Drop, FrameCounters
from stream_vlm_ros.session.question import DisconnectedError, Question
from stream_vlm_ros.session.timed_frame import TimedFrame

QUEUE, SECOND = 2, 10**9


class Robot:
    """An exchange, and what of it travels to a server and back."""

    def __init__(self, session=None):
        self.counters, self.faults, self.told = FrameCounters(), [], []
        self.exchange = Exchange(
            self.counters,
            self.faults.append,
            make_header=lambda stamp_ns, frame_id: SimpleNamespace(
                stamp=stamp_ns, frame_id=frame_id
            ),
            tell=self.told.append,
        )
        self.server = session or ModelSession()
        self.up, self.down = [], []  # messages on their way
        self.stamp = 0

    def append(self, count=1, broken=()):
        """The frames at the places ``broken`` are no pictures."""
        frames = []
        for at in range(count):
            self.stamp += SECOND
            header = SimpleNamespace(stamp=self.stamp, frame_id="camera")
            frames.append(TimedFrame(self.stamp, NO_PICTURE if at in broken else b"x", header))
            self.counters.receive()
        self.exchange.append(frames, QUEUE)

    def ask(self, text="What is there?"):
        ticket = RemoteTicket(Question(text), on_cancel=self.exchange.cancel)
        self.exchange.ask(ticket, 8)
        return ticket

    def connect(self):
        first, *rest = self.server.created()
        self.exchange.connected(first)
        self.down += rest
        self.effects()

    def cut(self):
        self.up.clear()
        self.down.clear()
        self.exchange.disconnected(DisconnectedError("cut"))
        self.effects()

    def send(self):
        """The next message sets out; False: there is none."""
        what = self.exchange.take()
        if isinstance(what, Chunk):
            for at in range(what.unsent, len(what.frames)):
                frame = what.frames[at]
                message = FrameMessage(what.first + at, frame.stamp_ns, JPEG, 0, 0, frame.image)
                self.up.append(message.packed())
            what = protocol.Commit()
        if what is not None:
            self.up.append(protocol.encoded(what))
        return what is not None

    def arrive(self):
        """A message arrives at the server."""
        self.down += self.server.take(self.up.pop(0))

    def hear(self):
        """An event arrives at the robot."""
        self.exchange.hear(self.down.pop(0))
        self.effects()

    def effects(self):
        effects, self.exchange.effects = self.exchange.effects, []
        for effect in effects:
            effect()

    def run(self):
        """Until nothing is under way."""
        going = True
        while going:
            going = self.send()
            while self.up:
                self.arrive()
            self.down += self.server.ingest()
            while self.down:
                self.hear()
                going = True

    @property
    def counts(self):
        named = {drop.cause: count for drop, count in self.counters.dropped.items() if count}
        return self.counters.ingested, self.counters.pending, named


@pytest.fixture
def robot():
    return Robot()


def test_chunks_are_ingested_in_order_and_counted_when_the_server_says_so(robot):
    robot.connect()
    robot.append(3)
    robot.append(2)
    assert robot.counts == (0, 5, {})
    robot.run()
    assert robot.counts == (5, 0, {})
    assert robot.server.frames == [(n, n * SECOND) for n in range(1, 6)]
    assert robot.exchange.memory.newest_ns == 5 * SECOND
    assert robot.exchange.memory.header.frame_id == "camera"


def test_frames_are_counted_together_with_the_memory_that_holds_them(robot):
    robot.connect()
    robot.append(2)
    robot.send()
    while robot.up:
        robot.arrive()
    ingested, status = robot.server.ingest()
    robot.exchange.hear(ingested)
    assert (robot.counts, robot.exchange.memory.frames) == ((0, 2, {}), 0)
    robot.exchange.hear(status)
    assert (robot.counts, robot.exchange.memory.frames) == ((2, 0, {}), 2)


def test_no_more_than_two_chunks_are_at_the_server_and_the_oldest_that_waits_is_dropped(robot):
    robot.connect()
    for _ in range(6):
        robot.append(2)
        while robot.send():
            pass
    # Two are sent, two wait; the two between them were pushed out.
    assert robot.counts == (0, 8, {"overflow": 4})
    robot.run()
    assert [sequence for sequence, _ in robot.server.frames] == list(range(1, 9))
    assert robot.counts == (8, 0, {"overflow": 4})


def test_without_a_connection_frames_wait_and_a_question_is_answered_at_once_with_the_reason(robot):
    for _ in range(3):
        robot.append()
    ticket = robot.ask()
    robot.effects()
    assert ticket.future.result(0).error.code == "DISCONNECTED"
    assert robot.counts == (0, 2, {"overflow": 1})
    robot.connect()
    robot.run()
    assert robot.counts == (2, 0, {"overflow": 1})


def test_what_a_lost_connection_left_open_is_not_sent_twice(robot):
    robot.connect()
    robot.append(2)
    robot.send()
    while robot.up:
        robot.arrive()  # the server has it; what it says of it is lost
    robot.down += robot.server.ingest()
    robot.cut()
    assert robot.counts == (0, 2, {})
    robot.connect()
    robot.run()
    assert robot.counts == (2, 0, {})
    assert robot.server.frames == [(1, SECOND), (2, 2 * SECOND)]


def lose_the_last_words(robot):
    """The server took two frames of a chunk, and the third was no picture; nothing is heard."""
    robot.connect()
    robot.append(3, broken={2})
    robot.send()
    while robot.up:
        robot.arrive()
    robot.server.ingest()
    robot.cut()


def test_what_a_chunk_with_a_broken_last_frame_came_to_is_counted_as_it_is_told_again(robot):
    lose_the_last_words(robot)
    robot.connect()
    while robot.down:
        robot.hear()
    robot.run()
    assert robot.counts == (2, 0, {"invalid_image": 1}) and not robot.faults
    assert robot.server.frames == [(1, SECOND), (2, 2 * SECOND)]


def test_of_a_chunk_with_a_broken_last_frame_a_saved_memory_gets_nothing_twice(robot):
    lose_the_last_words(robot)
    robot.server.save()
    robot.server = robot.server.begun_again()
    robot.connect()
    robot.run()
    assert robot.counts == (2, 0, {"invalid_image": 1})
    assert robot.server.frames == [(1, SECOND), (2, 2 * SECOND)]


def test_a_chunk_of_which_the_server_has_a_part_is_pushed_out_by_no_newer_one(robot):
    robot.connect()
    robot.append(3, broken={2})
    robot.send()
    while robot.up:
        robot.arrive()
    robot.cut()
    robot.connect()
    for _ in range(QUEUE):
        robot.append(1)
    robot.run()
    assert robot.counts == (2 + QUEUE, 0, {"invalid_image": 1})


def test_what_was_to_be_sent_again_is_sent_whole_to_a_server_that_begins_empty(robot):
    lose_the_last_words(robot)
    robot.server.ends.clear()  # it does not tell them again
    robot.connect()
    robot.cut()
    robot.server = robot.server.begun_again()
    robot.connect()
    robot.run()
    assert robot.server.frames == [(1, SECOND), (2, 2 * SECOND)]
    assert robot.counts == (2, 0, {"invalid_image": 1})


def test_what_is_told_once_more_closes_no_pause_again_and_hides_no_fault(robot):
    pauses = []
    robot.exchange = Exchange(robot.counters, pause_closed=pauses.append)
    robot.connect()
    robot.append(1)
    robot.append(1)
    while robot.send():
        pass
    told = protocol.Ingested(first=1, last=1, frames=1, newest_ns=SECOND, closed_seconds=12.0)
    robot.exchange.hear(told)
    robot.exchange.hear(
        protocol.Dropped(first=2, last=2, frames=1, cause="error", message="not finite")
    )
    robot.exchange.hear(told)
    robot.effects()
    assert pauses == [12.0] and robot.exchange.fault == "not finite"


def test_a_chunk_that_was_cut_within_is_sent_again_whole_under_the_same_sequences(robot):
    robot.connect()
    robot.append(3)
    robot.send()
    robot.arrive()  # one frame of three, and no commit
    robot.cut()
    robot.connect()
    robot.run()
    assert [sequence for sequence, _ in robot.server.frames] == [1, 2, 3]
    assert robot.counts == (3, 0, {})


def test_a_server_that_was_killed_is_sent_what_came_after_its_last_save_and_the_gap_is_told(robot):
    robot.connect()
    robot.append(2)
    robot.run()
    robot.server.save()
    robot.append(2)
    robot.run()
    robot.append(2)
    robot.send()  # sent, and lost with the server
    robot.server = robot.server.begun_again()
    robot.cut()
    robot.connect()
    robot.run()
    assert robot.server.frames == [(1, SECOND), (2, 2 * SECOND), (5, 5 * SECOND), (6, 6 * SECOND)]
    assert robot.counts == (6, 0, {})
    assert len(robot.told) == 1 and robot.exchange.gap == robot.told[0]
    assert "from 2.0 s to 4.0 s is lost" in robot.exchange.gap


def test_a_server_that_had_saved_nothing_begins_empty_and_that_is_told(robot):
    robot.connect()
    robot.append()
    robot.run()
    robot.server = robot.server.begun_again()
    robot.cut()
    robot.connect()
    assert "empty memory" in robot.exchange.gap
    robot.exchange.reset(Drop.RESET)
    robot.run()
    assert robot.exchange.gap == ""


def test_what_a_server_lost_before_this_process_began_is_told_once(robot):
    robot.server.gap = "the last 2.0 s or so that were seen are lost"
    robot.connect()
    robot.cut()
    robot.connect()
    assert robot.told == [robot.exchange.gap] == [robot.server.gap]


def test_a_session_that_an_earlier_process_filled_is_gone_on_with(robot):
    robot.connect()
    robot.append(4)
    robot.run()
    later = Robot(robot.server)
    later.stamp = robot.stamp
    later.connect()
    later.append(2)
    later.run()
    assert [sequence for sequence, _ in robot.server.frames] == [1, 2, 3, 4, 5, 6]
    assert later.counts == (2, 0, {}) and later.exchange.gap == ""


def test_a_time_jump_without_a_connection_is_made_good_before_the_frames_behind_it(robot):
    robot.connect()
    robot.append(2)
    robot.run()
    robot.cut()
    robot.append()
    robot.exchange.reset(Drop.TIME_JUMP)
    robot.exchange.reset(Drop.TIME_JUMP)  # one is enough
    robot.append(2)
    robot.connect()
    robot.run()
    assert robot.server.resets == [True]
    assert [sequence for sequence, _ in robot.server.frames] == [3, 4]
    assert robot.counts == (4, 0, {"time_jump": 1}) and robot.exchange.resets == 1


@pytest.mark.parametrize("arrived", [False, True])
def test_a_time_jump_on_its_way_when_the_connection_broke_off_happens_once(robot, arrived):
    robot.connect()
    robot.append()
    robot.run()
    robot.exchange.reset(Drop.TIME_JUMP)
    robot.append()
    while robot.send():
        pass
    while arrived and robot.up:
        robot.arrive()
    robot.cut()
    robot.connect()
    robot.run()
    assert robot.server.resets == [True]
    assert robot.server.frames == [(2, 2 * SECOND)]
    assert robot.counts == (2, 0, {})


def test_a_time_jump_that_two_lost_connections_left_open_stays_before_the_frames_behind_it(robot):
    robot.connect()
    robot.append()
    robot.run()
    robot.exchange.reset(Drop.TIME_JUMP)
    robot.append()
    for _ in range(2):
        while robot.send():
            pass
        robot.cut()
        robot.connect()
    robot.run()
    assert robot.server.frames == [(2, 2 * SECOND)] and robot.server.resets == [True]


def test_frames_behind_a_time_jump_are_in_the_memory_whatever_a_killed_server_had_saved(robot):
    robot.connect()
    robot.exchange.reset(Drop.TIME_JUMP)
    robot.append()
    while robot.send():
        pass
    while robot.up:
        robot.arrive()
    robot.server.ingest()
    robot.server.save()  # and nothing of it is heard
    robot.server = robot.server.begun_again()
    robot.cut()
    robot.connect()
    robot.run()
    assert [stamp for _, stamp in robot.server.frames] == [SECOND]
    assert robot.counts == (1, 0, {})


def test_a_question_sees_every_chunk_that_came_before_it(robot):
    robot.connect()
    for _ in range(4):
        robot.append()
        robot.send()
    robot.ask()
    while robot.send():
        pass
    assert not any("response.create" in one for one in robot.up if isinstance(one, str))
    robot.run()
    assert len(robot.server.frames) == 4 and len(robot.server.asked) == 1


def test_a_question_that_waits_is_cancelled_at_once_and_one_that_is_sent_by_the_server(robot):
    robot.connect()
    sent = robot.ask()
    robot.send()
    waits = robot.ask()
    waits.cancel()
    sent.cancel()
    robot.effects()
    assert waits.future.result(0).error.code == "CANCELLED"
    assert not sent.future.done()
    robot.run()
    outcome = sent.future.result(0)
    assert (outcome.error.code, outcome.answer) == ("CANCELLED", "two boxes")
    assert len(robot.server.asked) == 1 == len(robot.server.cancelled)


def test_questions_beyond_the_bound_are_refused_until_one_is_read(robot):
    robot.connect()
    tickets = [robot.ask() for _ in range(9)]
    robot.effects()
    assert tickets[8].future.result(0).error.code == "QUEUE_FULL"
    robot.send()
    robot.exchange.hear(protocol.ResponseReading(response_id=tickets[0].id))
    assert not robot.ask().future.done()


def test_the_server_says_why_it_dropped_frames_and_the_newest_fault_is_told_until_it_goes_well(
    robot,
):
    robot.connect()
    robot.append(3)
    robot.send()
    dropped = dict(frames=1, cause="invalid_image", message="broken")
    robot.exchange.hear(protocol.Dropped(first=2, last=2, **dropped))
    robot.exchange.hear(protocol.Dropped(first=2, last=2, **dropped))  # told again
    assert robot.counts == (0, 2, {"invalid_image": 1})
    refused = protocol.Dropped(first=1, last=3, frames=2, cause="error", message="not finite")
    robot.exchange.hear(refused)
    robot.effects()
    assert robot.counts == (0, 0, {"invalid_image": 1, "error": 2})
    assert robot.exchange.fault == "not finite" == str(robot.faults[0])
    robot.append()
    robot.run()
    assert robot.exchange.fault == ""


def test_why_the_memory_is_empty_is_said_as_the_camera_knows_it(robot):
    robot.exchange = Exchange(robot.counters, why_empty=lambda: "no image arrives on /front")
    robot.connect()
    ticket = robot.ask()
    robot.send()
    fault = protocol.Fault(code="EMPTY_MEMORY", message="images come first")
    robot.exchange.hear(robot.server.answer(ticket.id, status="failed", error=fault))
    robot.effects()
    error = ticket.future.result(0).error
    assert error.code == "EMPTY_MEMORY" and "no image arrives on /front" in str(error)


def test_what_a_server_invents_changes_no_count(robot):
    robot.connect()
    robot.append(2)
    robot.send()
    robot.exchange.hear(protocol.Ingested(first=7, last=9, frames=3, newest_ns=1))
    robot.effects()
    # The server has taken in later ones, and nothing more will come of these.
    assert robot.counts == (0, 0, {"error": 2}) and "did not say" in str(robot.faults[0])
    robot.append(2)
    robot.send()
    robot.exchange.hear(protocol.Ingested(first=1, last=9, frames=900, newest_ns=1))
    robot.exchange.hear(protocol.Dropped(first=3, last=4, frames=2, cause="no such cause"))
    robot.exchange.hear(protocol.ResponseDone(response=protocol.Response(id="nobody's")))
    robot.exchange.hear(protocol.TextDelta(response_id="nobody's", delta="x"))
    robot.exchange.hear(protocol.PictureDone(event_id="nobody's"))
    robot.exchange.hear(protocol.MemoryStatus(status=robot.server.status))
    assert robot.counts == (2, 0, {"error": 2})


def test_at_the_end_nobody_waits_and_no_frame_is_pending(robot):
    robot.connect()
    for _ in range(4):
        robot.append(2)
    tickets = [robot.ask(), robot.ask()]
    robot.send()
    order = robot.exchange.order(lambda name: protocol.MemorySave(event_id=name))
    robot.exchange.end(Drop.RESET, DisconnectedError("the end"))
    robot.effects()
    assert robot.counts[:2] == (0, 0)
    assert [ticket.future.result(0).error.code for ticket in tickets] == ["DISCONNECTED"] * 2
    assert isinstance(order.exception(0), DisconnectedError)
    assert robot.send() and robot.up[-1] == protocol.encoded(protocol.Clear())
    robot.append(2)
    later = robot.exchange.reset(Drop.TIME_JUMP)
    robot.effects()
    assert later.done() and robot.counts[:2] == (0, 0)
    robot.connect()  # it was on its way
    assert not robot.send() and robot.exchange.why is not None


class Connections(RuleBasedStateMachine):
    """Connections break off between any two messages: no frame is lost silently, none gets into a
    memory twice, and nobody waits for an answer in vain."""

    @initialize()
    def begin(self):
        self.robot = Robot()
        self.robot.connect()
        self.tickets, self.orders = [], []
        self.connected = True

    @rule(count=st.integers(1, 3), broken=st.booleans())
    def append(self, count, broken):
        self.robot.append(count, {count - 1} if broken else ())

    @rule()
    def ask(self):
        self.tickets.append(self.robot.ask())
        self.robot.effects()

    @rule()
    def order(self):
        self.orders.append(
            self.robot.exchange.order(lambda name: protocol.MemorySave(event_id=name))
        )
        self.robot.effects()

    @precondition(lambda self: self.connected)
    @rule(messages=st.integers(1, 4))
    def send(self, messages):
        for _ in range(messages):
            self.robot.send()

    @precondition(lambda self: self.robot.up)
    @rule(messages=st.integers(1, 6))
    def arrive(self, messages):
        for _ in range(min(messages, len(self.robot.up))):
            self.robot.arrive()

    @rule()
    def ingest(self):
        told = self.robot.server.ingest()
        self.robot.down += told if self.connected else []

    @precondition(lambda self: self.robot.down)
    @rule(events=st.integers(1, 4))
    def hear(self, events):
        for _ in range(min(events, len(self.robot.down))):
            self.robot.hear()

    @precondition(lambda self: self.connected)
    @rule()
    def cut(self):
        self.robot.cut()
        self.connected = False
        assert all(one.done() for one in self.orders)
        assert all(ticket.future.done() for ticket in self.tickets)

    @precondition(lambda self: not self.connected)
    @rule()
    def connect(self):
        self.robot.connect()
        self.connected = True

    @invariant()
    def no_frame_is_in_the_memory_twice(self):
        if hasattr(self, "robot"):
            stamps = [stamp for _, stamp in self.robot.server.frames]
            assert stamps == sorted(set(stamps))

    def teardown(self):
        if not hasattr(self, "robot"):
            return
        if not self.connected:
            self.connect()
        self.robot.run()
        while self.robot.server.asked:
            event = self.robot.server.asked.pop()
            self.robot.exchange.hear(self.robot.server.answer(event.event_id))
        self.robot.effects()
        counters = self.robot.counters
        assert counters.pending == 0 == counters.dropped[Drop.ERROR]
        assert counters.received == counters.ingested + sum(counters.dropped.values())
        assert all(one.done() for one in self.orders)
        assert all(ticket.future.done() for ticket in self.tickets)
        self.check_ingested(counters.ingested)

    @property
    def ever_ingested(self):
        return sum(what == "ingested" for what in self.robot.server.ended.values())

    def check_ingested(self, counted):
        """What was counted is in the memory, and nothing else."""
        assert counted == self.ever_ingested == len(self.robot.server.frames)


class Jumps(Connections):
    """The source's time jumps, questions and frames are abandoned, too."""

    @rule()
    def jump(self):
        self.robot.exchange.reset(Drop.TIME_JUMP)
        self.newest_before = self.robot.stamp

    @rule()
    def abandon(self):
        self.robot.exchange.abandon(Drop.RESET, DisconnectedError("abandoned"))
        self.robot.effects()

    def check_ingested(self, counted):
        """In the memory is what came after the last jump, and all of it."""
        assert counted == self.ever_ingested
        before = getattr(self, "newest_before", 0)
        server = self.robot.server
        assert server.frames == [one for one in server.all_frames if one[1] > before]


class Kills(Jumps):
    """Servers are killed, too, and begin again from what they have saved."""

    @rule()
    def save(self):
        self.robot.server.save()

    @rule()
    def kill(self):
        if self.connected:
            self.cut()
        self.robot.server = self.robot.server.begun_again()

    def check_ingested(self, counted):
        """Of a frame that a killed server took in and did not tell of, its later end is counted."""
        assert len(self.robot.server.frames) <= counted <= self.ever_ingested


OFTEN = settings(max_examples=60, stateful_step_count=40)
TestConnections, TestJumps, TestKills = Connections.TestCase, Jumps.TestCase, Kills.TestCase
TestConnections.settings = TestJumps.settings = TestKills.settings = OFTEN
