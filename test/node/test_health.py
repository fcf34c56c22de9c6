# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What /diagnostics says, and when."""

import sys
import threading

import pytest

from stream_vlm_ros.config import Settings
from stream_vlm_ros.engine.inputs.timestamps import SECOND
from stream_vlm_ros.node.health import (
    Figures,
    InputFacts,
    InputMonitor,
    Level,
    MemoryFacts,
    RunningClock,
    SilenceNews,
    input_health,
    memory_health,
)
from stream_vlm_ros.session.counters import Drop


def monitor_of(count, rate, start=100 * SECOND, delay=0.0):
    monitor = InputMonitor()
    for index in range(count):
        stamp = start + round(index * SECOND / rate)
        monitor.record(stamp, stamp + round(delay * SECOND))
    return monitor


def test_rate_and_delay_are_those_of_the_stream():
    monitor = monitor_of(100, rate=20, delay=0.25)
    now = 105 * SECOND
    assert abs(monitor.stamp_rate(now) - 20) < 1e-6 and abs(monitor.arrival_rate(now) - 20) < 1e-6
    assert monitor.delay_ms == 250.0


def test_rates_are_unknown_before_two_images_and_after_time_starts_anew():
    monitor = monitor_of(1, rate=20)
    assert monitor.arrival_rate(0) == 0 and InputMonitor().delay_ms is None
    monitor.record(5, 5)
    assert monitor.arrival_rate(5) == 0


@pytest.mark.parametrize("rate", [0.5, 10, 100])
def test_rates_fall_to_zero_with_the_camera_and_recover_at_once(rate):
    monitor = monitor_of(100, rate)
    last = 100 * SECOND + round(99 / rate * SECOND)
    stopped = last + round(max(1.0, 3 / rate) * SECOND)
    assert monitor.stamp_rate(stopped) == pytest.approx(rate)
    assert monitor.stamp_rate(stopped + 10) == monitor.arrival_rate(stopped + 10) == 0
    for back in (last + 22 * SECOND, last + 22 * SECOND + round(SECOND / rate)):
        monitor.record(back, back)
    assert monitor.stamp_rate(back) == monitor.arrival_rate(back) == pytest.approx(rate)


def test_after_a_silence_the_rate_of_the_stamps_is_that_of_what_has_come_since():
    """Also where the stamps' own gap is too short for a silence: a player that was held up."""
    monitor = monitor_of(60, rate=10)
    stamp, now = 106_800_000_000, 120 * SECOND  # 0.9 s and 14.1 s after the last
    for number in range(2):
        monitor.record(stamp + number * SECOND // 10, now + number * SECOND // 10)
    assert monitor.stamp_rate(now + SECOND // 10) == pytest.approx(10)


def test_a_clock_that_is_set_does_not_change_the_rate_of_the_stamps():
    monitor = monitor_of(100, rate=10)
    last, day = 100 * SECOND + 99 * SECOND // 10, 86_400 * SECOND
    for k in (1, 2):
        monitor.record(last + day + k * SECOND // 10, last + k * SECOND // 10)
    assert monitor.stamp_rate(last) == monitor.arrival_rate(last) == pytest.approx(10)


def test_a_camera_that_dies_as_the_clock_comes_back_is_seen_to_be_dead():
    """The node's clock stood for ten minutes, while images came, and moves on from there."""
    monitor = monitor_of(100, rate=1)
    assert monitor.arrival_rate(199 * SECOND) == pytest.approx(1)
    assert monitor.arrival_rate(199 * SECOND - 600 * SECOND) == 0


def test_a_clock_that_stands_runs_on_by_the_steady_one():
    steady = [50.0]
    clock = RunningClock(lambda: steady[0])
    assert clock.of(7 * SECOND) == 7 * SECOND
    steady[0] += 3
    assert (clock.of(7 * SECOND), clock.stands_for(7 * SECOND)) == (10 * SECOND, 3.0)
    assert (clock.of(8 * SECOND), clock.stands_for(8 * SECOND)) == (8 * SECOND, 0.0)
    assert clock.of(2 * SECOND) == 2 * SECOND


def test_silence_is_counted_from_the_last_image_or_the_first_look():
    monitor = InputMonitor()
    assert monitor.seconds_without_image(50 * SECOND) == 0
    assert monitor.seconds_without_image(53 * SECOND) == 3
    monitor.record(1, 54 * SECOND)
    assert monitor.seconds_without_image(55 * SECOND) == 1
    assert monitor.seconds_without_image(2 * SECOND) == 0  # simulated time started anew


def facts(**changes):
    values = dict(
        topic="/image",
        active=True,
        silent_for=0.0,
        timeout=5.0,
        cause="nobody publishes",
        stamp_rate=30.0,
        arrival_rate=30.0,
        delay_ms=12.0,
        expected_rate=2.0,
        arrival_timed=False,
        clock_fault="",
        counts={"frames_received": 7},
        new_faults={"dropped_overflow": 0},
        messages_lost=0,
        newly_lost=0,
        publishers=("/robot/camera",),
        refusals={},
        qos="reliable",
    )
    return InputFacts(**{**values, **changes})


def test_the_keys_that_dashboards_read_are_there():
    values = input_health(facts()).values
    assert values["frame_rate_msg"] == "30.00"
    assert values["current_delay_from_realtime_ms"] == "12.0"
    assert values["expected_frequency"] == "2.00"
    assert values["tolerance"] == "10.0"
    assert values["frames_received"] == "7"


def test_the_level_means_something():
    cases = [
        (facts(), Level.OK, "images arrive"),
        (facts(silent_for=6.0), Level.ERROR, "no image on /image for 6 s: nobody publishes"),
        (facts(silent_for=6.0, clock_fault="no /clock"), Level.WARN, "no /clock"),
        (facts(new_faults={"dropped_overflow": 4}), Level.WARN, "4 frames dropped because"),
        (
            facts(newly_lost=52, qos="best effort"),
            Level.WARN,
            "52 images lost on their way (best effort): large images need other transport",
        ),
        (
            facts(publishers=("/left", "/robot/camera")),
            Level.WARN,
            "2 publishers on /image, whose images mix in one memory: /left, /robot/camera;",
        ),
        (facts(arrival_rate=1.7), Level.WARN, "fewer than sample_fps"),
        (facts(arrival_rate=1.9), Level.OK, "images arrive"),
        (facts(arrival_timed=True), Level.WARN, "header.stamp zero"),
        (facts(active=False, arrival_rate=0.0), Level.OK, "not active"),
        (facts(paused=True), Level.WARN, "paused"),
        (facts(lost_why="no cable"), Level.WARN, "no cable: frames wait, and the oldest"),
        (facts(arrival_rate=0.0), Level.OK, "waiting for images"),
    ]
    for given, level, words in cases:
        health = input_health(given)
        assert health.level == level and words in health.message, health


def test_each_kind_of_drop_is_told_with_its_own_cause():
    figures = Figures()
    for cause, words in (
        (Drop.INVALID_IMAGE, "unknown encoding"),
        (Drop.ERROR, "larger than the cap"),
        (Drop.INVALID_IMAGE, "no pixels"),
    ):
        figures.refuse(cause, words)
    drops = {"dropped_overflow": 4, "dropped_invalid_image": 2, "dropped_error": 1}
    told = input_health(facts(new_faults=drops, refusals=figures.refusals))
    slow, unusable, refused = told.message.split("; ")
    assert slow.startswith("4 frames dropped because the model is slower") and "(last" not in slow
    assert unusable == "2 unusable images (last: no pixels)"
    assert refused == "1 frames in chunks that the model refused (last: larger than the cap)"
    assert told.values["last_refusal"] == "no pixels"


class Source:
    """An image input that nothing is wrong with."""

    topic, reliable, messages_lost = "/image", True, 0

    def publishers(self):
        return ("/camera",)

    def cause_of_silence(self):
        return ""


def test_frames_that_are_dropped_without_a_connection_are_not_laid_to_the_model():
    """And the words stay, whether frames were dropped since the last status or not."""
    figures, told = Figures(), []
    for now, (lost_why, dropped) in enumerate(
        [("no cable", 4), ("no cable", 0), ("no cable", 4), ("", 4), ("", 4)]
    ):
        figures.monitor.record(now * SECOND, now * SECOND)
        for _ in range(dropped):
            figures.counters.receive()
        figures.counters.drop(Drop.OVERFLOW, dropped)
        told.append(
            input_health(
                figures.input_facts(
                    Source(), now * SECOND, Settings(sample_fps=1.0), active=True, paused=False,
                    arrival_timed=False, simulated_time=False, lost_why=lost_why,
                )
            ).message
        )  # fmt: skip
    cut_off, *still, back, slow = told
    assert cut_off.startswith("no cable: frames wait") and "model" not in cut_off
    assert still == [cut_off, cut_off]
    assert back == "images arrive"
    assert slow.startswith("4 frames dropped because the model is slower")


def test_silence_is_news_once_and_again_for_another_cause_or_after_images():
    """With the words of /diagnostics, whatever the number of seconds in them."""
    news = SilenceNews()
    steps = [
        (dict(), False),
        (dict(silent_for=6.0), True),
        (dict(silent_for=7.0), False),
        (dict(silent_for=8.0, cause="another QoS"), True),
        (dict(silent_for=9.0, cause="another QoS", topic="/image/compressed"), True),
        (dict(silent_for=9.0, clock_fault="simulated time stands still"), False),
        (dict(silent_for=10.0, cause="another QoS", topic="/image/compressed"), False),
        (dict(silent_for=0.2), False),
        (dict(silent_for=6.0), True),
    ]
    for changes, told in steps:
        given = facts(**changes)
        assert news.of(given) == (input_health(given).message if told else ""), changes


def test_model_and_memory():
    values = dict(
        state="active",
        failure="",
        engine_fault="",
        chunk_fault="",
        history_fault="",
        model="",
        device="cpu",
        length=5,
        cap=10,
        used_bytes=2_000_000_000,
        memory_bytes=0,
        chunks=1,
        evictions=0,
        closed_pauses=0,
        closed_seconds=0.0,
        queue_depth=0,
        answers=0,
        errors=0,
    )
    cases = [
        ({}, Level.OK, "5 of 10 tokens in memory"),
        (
            {"closed_pauses": 2, "closed_seconds": 90_000.0},
            Level.OK,
            "5 of 10 tokens in memory; 2 pauses left out for the model, 25 h 00 min",
        ),
        ({"failure": "configure failed"}, Level.ERROR, "configure failed"),
        ({"engine_fault": "ended by X", "chunk_fault": "c"}, Level.ERROR, "ended by X"),
        ({"chunk_fault": "cap"}, Level.ERROR, "the last chunk was refused: cap"),
        ({"history_fault": "full"}, Level.WARN, "not kept for the history: full"),
        ({"state": "configuring"}, Level.OK, "being loaded"),
        ({"state": "inactive"}, Level.WARN, "the node is inactive"),
        ({"lost_why": "no cable", "lost_for": 90.0}, Level.ERROR, "no cable, for 1 min 30 s"),
        ({"gap": "an hour is lost"}, Level.WARN, "5 of 10 tokens in memory; an hour is lost"),
    ]
    for changes, level, words in cases:
        health = memory_health(MemoryFacts(**{**values, **changes}))
        assert health.level == level and words in health.message


@pytest.fixture
def eager_switching():
    """Threads change places as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_one_thread_may_record_while_another_reads(eager_switching):
    monitor, total = InputMonitor(window=8), 20_000
    faults = []

    def read():
        try:
            while monitor.count < total:
                assert monitor.stamp_rate(0) in (0, 1) and monitor.arrival_rate(0) in (0, 1)
                assert monitor.delay_ms in (None, 0)
        except Exception as fault:
            faults.append(fault)

    reader = threading.Thread(target=read)
    reader.start()
    for count in range(total):
        now = (1 + count % 4) * SECOND  # time starts anew again and again
        monitor.record(now, now)
    reader.join()
    assert not faults
