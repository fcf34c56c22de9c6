# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What ``stream-vlm watch`` makes of a node's messages: what is new, and not the same again."""

import pytest

from stream_vlm_ros.cli_node import Watching, end_of, stamps_about

pytest.importorskip("stream_vlm", reason="the interfaces are not built")
pytestmark = pytest.mark.ros


def watching(*times):
    return Watching(every=5.0, clock=iter(times).__next__)


def status(**fields):
    from stream_vlm.msg import CacheStatus

    return CacheStatus(**{"state": "active", "cap": 16_384, **fields})


def health(level, message, name="stream_vlm: image input"):
    from diagnostic_msgs.msg import DiagnosticStatus

    return DiagnosticStatus(level=bytes([level]), name=name, message=message)


def test_counters_are_told_now_and_then_and_a_change_of_state_at_once():
    lines = watching(0.0, 1.0, 2.0, 7.0, 20.0)
    dropped = {"dropped_overflow": 1, "dropped_paused": 4, "dropped_sampling": 9}  # one is a loss
    first = status(length=1234, frames=1, frames_received=3, **dropped)
    assert lines.line(first) == ("active: 1,234 of 16,384 tokens, 1 frame; 3 images, 1 dropped")
    assert lines.line(status(length=1300)) == ""
    assert lines.line(status(length=1300, paused=True)).startswith("paused: 1,300 of")
    assert lines.line(status(length=1400, paused=True)).startswith("paused: 1,400 of")
    assert lines.line(status(length=1400, paused=True)) == ""


def test_health_is_told_where_it_changes_and_figures_are_no_change():
    lines = watching()
    assert lines.line(health(0, "images arrive")) == ""
    assert lines.line(health(2, "no image for 5 s")) == (
        "ERROR: stream_vlm: image input: no image for 5 s"
    )
    assert lines.line(health(2, "no image for 6.5 s")) == ""
    assert lines.line(health(1, "paused")) == "WARN: stream_vlm: image input: paused"
    assert lines.line(health(1, "paused", name="stream_vlm: saved memory")) != ""
    assert lines.line(health(0, "images arrive")) == "OK: stream_vlm: image input: images arrive"
    assert lines.line(health(0, "waiting for images")) == ""


def test_every_answer_is_told_and_an_error_by_its_name():
    from builtin_interfaces.msg import Duration
    from stream_vlm.msg import Answer

    lines = watching()
    answer = Answer(question="Who?", text="a cat", latency=Duration(sec=1, nanosec=250_000_000))
    assert lines.line(answer) == lines.line(answer) == "Who? -> a cat (1.25 s)"
    refused = Answer(question="Who?", error_code=Answer.QUEUE_FULL, error_message="8 wait")
    assert lines.line(refused) == "Who? -> QUEUE_FULL: 8 wait"


def test_an_answer_about_a_time_of_which_nothing_is_held_is_marked_as_a_guess():
    from stream_vlm.msg import Answer, HistoryTier, TimeSpan

    answer = Answer(question="What was there 40 seconds ago?", text="a cat")
    answer.newest_stamp.sec = 100
    held = TimeSpan()
    held.start.sec, held.end.sec = 80, 100
    answer.seen = [held]
    mark = "a guess, nothing of that time is held"
    assert f"-> ({mark}) a cat" in watching().line(answer)
    assert next(end_of(answer)).plain.strip() == mark
    past = HistoryTier(name="pictures", frames=2)  # 60 s ago until now
    past.oldest.sec, past.newest.sec = 40, 100
    answer.cache_status.tiers = [past]
    assert mark not in watching().line(answer) + next(end_of(answer)).plain


def test_the_end_of_an_answer_is_told_as_where_a_source_is_asked():
    from stream_vlm.msg import Answer, Evidence

    answer = Answer(text="300 seconds ago", answer_tokens=3, finish_reason="cancelled")
    answer.newest_stamp.sec = 119
    seen = Evidence(tier="history", score=3.25)
    seen.span.start.sec, seen.span.end.sec = 101, 103
    answer.evidence = [seen]
    assert [line.plain for line in end_of(answer)] == [
        "  By the stamps it was 16 s ago, not as the model says.",
        "  seen 101.0 s to 103.0 s, 16 s before the question\n  (history, score 3.25)",
        "first token after 0.00 s, answer after 0.00 s, 3 tokens; cancelled\n",
    ]
    chosen = Answer(text="cup", choices=["cup", "bowl"], choice_index=0)
    chosen.choice_scores, chosen.choice_tokens = [-1.0, -3.0], [2, 3]
    assert [line.plain for line in end_of(chosen)][:2] == [
        "> cup  (log-probability -1.00, -0.50 a token)",
        "  bowl  (log-probability -3.00, -1.00 a token)",
    ]


@pytest.mark.parametrize(
    ("about", "stamps"),
    [
        ((-10.0, 0.0), (90 * 10**9, 100 * 10**9)),
        ((5.0, 6.0), (5 * 10**9, 6 * 10**9)),
        ((-1e300, 0.0), (1, 100 * 10**9)),
        ((-float("inf"), float("inf")), (1, (2**31 - 1) * 10**9)),
        ((1.0, 1e18), (10**9, (2**31 - 1) * 10**9)),
    ],
)
def test_seconds_of_any_size_are_stamps_that_a_message_can_have(about, stamps):
    assert stamps_about(about, 100 * 10**9) == stamps
