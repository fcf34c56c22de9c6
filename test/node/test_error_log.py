# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A fault of the package itself: told once, answered with INTERNAL, and the node lives."""

import gc
import logging
import warnings
import weakref

import pytest
from patience import PATIENCE, wait_until

from stream_vlm_ros.node import health
from stream_vlm_ros.node.error_log import ErrorLog, Forwarding
from stream_vlm_ros.session.ingest import FrameIngest
from stream_vlm_ros.session.news import News
from stream_vlm_ros.session.question import Ticket
from stream_vlm_ros.session.worker import EngineWorker


def raised(fault):
    try:
        raise fault
    except Exception as caught:
        return caught


def test_a_fault_is_told_once_with_its_traceback_and_its_repetitions_as_a_number():
    now, said = [0.0], []
    log = ErrorLog(said.append, News(10.0, lambda: now[0]))
    for _ in range(1000):
        log.report("~/query", raised(ValueError("boom")))
    assert len(said) == 1
    assert said[0].startswith("~/query failed") and "Traceback" in said[0] and "boom" in said[0]
    now[0] = 10.0
    log.report("~/query", raised(ValueError("boom")))
    assert len(said) == 2 and "1000 times" in said[1] and "Traceback" not in said[1]


def test_a_fault_that_quotes_what_was_sent_prints_as_text():
    said = []
    log = ErrorLog(said.append, News())
    log.report("~/query", raised(ValueError("\x1b[2Jboom\r\x07")))
    assert said[0].replace("\n", "").isprintable() and "\\x1b[2Jboom" in said[0]


def test_what_the_engine_warns_of_goes_to_the_nodes_log_while_it_has_one():
    of_the_engine, said = logging.getLogger("stream_vlm_ros.engine.model.weights"), []
    forwarding = Forwarding(said.append)
    of_the_engine.warning("ignored: %s", "do_sample\x1b[2J")
    of_the_engine.info("of no concern")
    forwarding.close()
    of_the_engine.warning("to whoever listens then")
    assert said == ["ignored: do_sample\\x1b[2J"]


@pytest.mark.filterwarnings("default")
def test_what_python_warns_of_goes_there_too():
    said = []
    forwarding = Forwarding(said.append)
    warnings.warn("the importance score failed: ValueError", RuntimeWarning, stacklevel=1)
    forwarding.close()
    with pytest.warns(RuntimeWarning, match="to whoever"):
        warnings.warn("to whoever listens then", RuntimeWarning, stacklevel=1)
    assert said == ["RuntimeWarning: the importance score failed: ValueError"]


def test_faults_of_another_kind_place_or_callback_are_told_each():
    said = []
    log = ErrorLog(said.append, News())
    log.report("~/query", raised(ValueError("boom")))
    log.report("~/query", raised(KeyError("boom")))
    log.report("~/ask", raised(ValueError("boom")))
    try:
        int("boom")
    except ValueError as elsewhere:
        log.report("~/query", elsewhere)
    assert len(said) == 4


def test_what_comes_again_at_once_is_counted_and_the_number_told_in_time():
    now, said = [0.0], []
    news = News(period=5.0, clock=lambda: now[0])
    for jump in range(5):
        news.tell("jump", f"jump {jump}", said.append)
    news.tell("pause", "a pause", said.append)  # of another kind
    assert said == ["jump 0", "a pause"]
    now[0] = 4.9
    news.tell_rest()
    assert len(said) == 2
    now[0] = 5.0
    news.tell_rest()
    news.tell_rest()
    assert said[2:] == ["jump 4 (4 times since the last message)"]
    now[0] = 10.0
    news.tell("jump", "jump 5", said.append)
    assert said[3:] == ["jump 5"]


# The node in this process, with the stand-in engine -----------------------------------------------


def fail(*arguments, **options):
    raise RuntimeError("boom")


def assert_lives(here):
    """Frames are taken and questions answered as ever."""
    ingested = here.client.status.frames_ingested
    here.client.send(here.client.image())
    here.client.wait_status(lambda s: s.frames_ingested == ingested + 1)
    reply = here.client.ask()
    assert (reply.error_code, reply.text) == (reply.NONE, "xxxx")


@pytest.mark.ros
def test_a_goal_that_fails_is_forgotten_like_any_other(here, monkeypatch):
    tickets = []

    def broken_ask(worker, question, progress=None):
        ticket = Ticket(question, progress)
        ticket.future.set_exception(raised(RuntimeError("boom")))
        tickets.append(weakref.ref(ticket))
        return ticket

    with monkeypatch.context() as broken:
        broken.setattr(EngineWorker, "ask", broken_ask)
        result = here.client.send_goal().result()[1]
        assert result.error_code == result.INTERNAL and "boom" in result.error_message
    wait_until(lambda: gc.collect() >= 0 and tickets[0]() is None, "the end of the ticket")
    assert_lives(here)


@pytest.mark.ros
@pytest.mark.parametrize("step", ["to_question", "to_answer"])
def test_a_fault_while_asking_is_replied_as_internal_by_both_doors(here, monkeypatch, step):
    from stream_vlm_ros.node import interfaces

    assert_lives(here)
    with monkeypatch.context() as broken:
        broken.setattr(interfaces, step, fail)
        for _ in range(20):
            reply = here.client.ask()
            assert reply.error_code == reply.INTERNAL and reply.text == ""
            assert "boom" in reply.error_message
        status, result = here.client.send_goal().result()
        assert status == 6 and result.error_code == result.INTERNAL  # ABORTED
    told = [text for text in here.said if text.startswith("~/query")]
    assert len(told) == 1 and "Traceback" in told[0] and "boom" in told[0], here.said
    assert_lives(here)


@pytest.mark.ros
def test_an_engine_thread_that_ends_is_said_until_the_node_is_configured_again(here):
    from diagnostic_msgs.msg import DiagnosticStatus

    assert_lives(here)
    here.engine.gate.clear()
    here.engine.fail_next = SystemExit(3)
    here.client.send(here.client.image())
    running = here.client.send_goal()
    assert here.engine.busy.wait(PATIENCE)
    here.engine.gate.set()
    result = running.result()[1]
    assert result.error_code == result.INTERNAL and "SystemExit(3)" in result.error_message
    later = here.client.ask()
    assert later.error_code == later.INTERNAL and "start it again" in later.error_message
    assert not here.client.reset().success
    received = here.client.status.frames_received
    here.client.send(here.client.image())
    status = here.client.wait_status(lambda s: s.frames_received == received + 1)
    status = here.client.wait_status(lambda s: s.frames_pending == 0)
    assert status.dropped_error == 2
    here.client.graph.wait(
        lambda: any(
            one.level == DiagnosticStatus.ERROR and "has ended by SystemExit(3)" in one.message
            for heard in here.client.diagnostics
            for one in heard.status
        ),
        what="the ERROR on /diagnostics",
    )
    here.engine.reset()  # a new engine holds nothing
    for transition in ("deactivate", "cleanup", "configure", "activate"):
        assert here.client.change_state(transition)
    here.client.wait_status(lambda s: s.state == "active")
    assert_lives(here)


@pytest.mark.ros
def test_a_fault_in_a_timer_is_told_once_however_often_it_fires(here, monkeypatch):
    fired = []

    def break_down(facts):
        fired.append(True)
        fail()

    with monkeypatch.context() as broken:
        broken.setattr(health, "input_health", break_down)
        here.client.graph.wait(lambda: len(fired) > 10, what="the tenth fault")
    assert len(here.said) == 1 and "Traceback" in here.said[0] and "boom" in here.said[0]
    assert_lives(here)


@pytest.mark.ros
def test_a_cleanup_during_a_report_is_no_fault(here, monkeypatch):
    """Another thread of the executor may carry it out at any moment of a report."""
    node, reports = here.node, here.client.diagnostics

    def clean_up(monitor, now_ns):
        if node.state == "active":
            node.trigger_deactivate()
            node.trigger_cleanup()
        return 0.0

    here.client.graph.wait(lambda: reports and len(reports[-1].status) > 1, what="a whole report")
    monkeypatch.setattr(health.InputMonitor, "seconds_without_image", clean_up)
    here.client.graph.wait(lambda: len(reports[-1].status) == 1, what="a report without an input")
    whole = next(report for report in reversed(reports) if len(report.status) > 1)
    assert whole.status[1].name.endswith("image input")
    assert node.state == "unconfigured" and here.said == []


@pytest.mark.ros
def test_what_breaks_off_because_the_node_is_told_to_end_is_no_fault(here):
    here.node.report_fault("~/ask", raised(RuntimeError("boom")))
    assert "boom" in here.said.pop()
    here.node.context.try_shutdown()
    here.node.report_fault("~/ask", raised(RuntimeError("the publisher is gone")))
    assert here.said == []


@pytest.mark.ros
def test_faults_of_reset_and_of_setting_a_parameter_are_replied(here, monkeypatch):
    assert_lives(here)
    here.engine.reset = fail
    reply = here.client.reset()
    assert not reply.success and "boom" in reply.message
    del here.engine.reset
    with monkeypatch.context() as broken:
        broken.setattr(FrameIngest, "apply", fail)
        result = here.client.set_parameter("sample_fps", 5.0)
        assert not result.successful and "boom" in result.reason
    assert here.client.set_parameter("sample_fps", 0.0).successful
    assert here.client.reset().success
    assert_lives(here)


@pytest.mark.ros
def test_an_image_callback_that_fails_counts_the_frame_and_the_next_is_taken(here, monkeypatch):
    from stream_vlm_ros.sources import ros_images

    assert_lives(here)
    before = here.client.status.dropped_error
    with monkeypatch.context() as broken:
        broken.setattr(ros_images, "image_to_rgb", fail)
        here.client.send(here.client.image())
        here.client.wait_status(lambda s: s.dropped_error == before + 1 and s.frames_pending == 0)
    assert_lives(here)
    assert len(here.said) == 1 and "boom" in here.said[0]


@pytest.mark.ros
def test_an_engine_that_fails_at_every_chunk_does_not_flood_the_log(here):
    assert_lives(here)
    here.engine.append_video_chunk, real = fail, here.engine.append_video_chunk
    for count in range(1, 6):
        here.client.send(here.client.image())
        here.client.wait_status(lambda s, n=count: s.dropped_error == n)
    here.engine.append_video_chunk = real
    assert len(here.said) == 1 and "boom" in here.said[0]
    assert_lives(here)


@pytest.mark.ros
def test_a_refused_parameter_is_no_fault(here):
    result = here.client.set_parameter("max_pixels", 783)
    assert not result.successful and "min_pixels (784)" in result.reason
    assert here.said == []
