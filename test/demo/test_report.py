# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

import io

import pytest
from rich.console import Console

from stream_vlm_ros.demo.report import (
    CAUSES,
    Exchange,
    Frames,
    Memory,
    Report,
    bar,
    seen_text,
)
from stream_vlm_ros.forgotten import is_forgotten
from stream_vlm_ros.session.counters import Drop


def plain_report(encoding="utf-8"):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    return Report(Console(file=stream, width=100, highlight=False))


def text_of(report):
    report.console.file.flush()
    return report.console.file.buffer.getvalue().decode(report.console.file.encoding)


def exchange(**changes):
    values = {
        "at": 8.14,
        "question": "What do you see now?",
        "choices": (),
        "answer": "a taxi",
        "error": "",
        "ttft": 0.123,
        "latency": 0.456,
        "seen_ago": ((8.1, 0.6),),
        "memory": Memory(length=1024, cap=2048),
    }
    return Exchange(**{**values, **changes})


def test_an_exchange_is_printed_with_its_times_and_its_memory():
    report = plain_report()
    report.add(exchange())
    lines = text_of(report).splitlines()
    assert lines[0] == "   8.1 s  What do you see now?"
    assert lines[1] == "          a taxi"
    assert lines[2].split("   ") == [
        "", "", "", " first token 0.12 s, answer 0.46 s",
        "█████░░░░░ 1,024/2,048 tokens", "seen 8.1 to 0.6 s ago",
    ]  # fmt: skip
    assert not report.failures


def test_a_terminal_without_unicode_gets_ascii():
    report = plain_report("ascii")
    report.add(exchange())
    assert "[#####.....]" in text_of(report)


def test_an_answer_cannot_steer_the_terminal_or_fill_it():
    report = plain_report()
    report.add(exchange(answer="\x1b[31mred\n\x07" + "x" * 5000))
    text = text_of(report)
    assert "\x1b" not in text and "\x07" not in text
    assert len(text) < 800 and "…" in text


def test_square_brackets_in_an_answer_are_no_markup():
    report = plain_report()
    report.add(exchange(answer="[bold]a[/nonsense]"))
    assert "[bold]a[/nonsense]" in text_of(report)


def test_a_question_of_any_length_is_shown_on_a_few_lines():
    report = plain_report()
    report.add(exchange(question="why " * 25_000))
    assert len(text_of(report)) < 1000 and "…" in text_of(report)


@pytest.mark.parametrize("text", ["[/]", "[bold red]x[/bold red]", "[link", "a\\[b]"])
def test_what_is_typed_is_shown_as_it_is_while_it_is_asked(text):
    out = io.StringIO()
    report = Report(Console(file=out, width=100, force_terminal=True, color_system=None))
    with report.spinning(f"Asking: {text}") as line:
        line.say(f"Still: {text}\x1b]0;t\x07")
    shown = out.getvalue()
    assert f"Asking: {text}" in shown or f"Still: {text}" in shown
    assert "\x1b]0" not in shown and "\x07" not in shown


def test_long_lines_stay_in_their_column():
    report = plain_report()
    report.add(exchange(answer="word " * 50))
    lines = text_of(report).splitlines()
    assert all(len(line) <= 100 for line in lines)
    assert all(line.startswith(" " * 10) for line in lines[1:-1])


def test_an_unanswered_question_fails_the_demo():
    report = plain_report()
    report.add(exchange(error="the memory is empty (code 20)"))
    assert "not answered: the memory is empty" in text_of(report)
    assert len(report.failures) == 1


def test_right_and_wrong_answers_are_counted():
    report = plain_report()
    for right in (True, True, False, None):
        report.add(exchange(right=right))
    assert ("Answers", "4 of 4 questions answered; 2 of 3 right") in report.summary_rows()


def test_a_wrong_answer_is_told_with_what_it_was():
    report = plain_report()
    report.add(exchange(right=False, truth="a red circle", judged=True))
    report.add(exchange(right=True, truth="a taxi", judged=True))
    assert "wrong  a taxi   it was: a red circle" in text_of(report)
    assert "right  a taxi\n" in text_of(report)


def test_a_memory_above_its_bound_fails_the_demo():
    report = plain_report()
    report.note_memory(Memory(length=2049, cap=2048), Frames())
    report.note_memory(Memory(length=10, cap=2048), Frames())
    assert report.failures == ["the memory held 2049 tokens, above its bound of 2048"]
    assert "the bound was broken" in dict(report.summary_rows())["Memory"]


def test_frames_that_do_not_add_up_fail_the_demo():
    report = plain_report()
    good = Frames(received=10, ingested=4, pending=1, dropped={"sampling": 5})
    report.note_memory(Memory(1, 2), good)
    assert not report.failures
    report.note_memory(Memory(1, 2), Frames(received=11, ingested=4, dropped={"sampling": 5}))
    assert len(report.failures) == 1


def test_the_summary_names_every_cause_of_dropping():
    report = plain_report()
    dropped = {"sampling": 90, "overflow": 4, "error": 0, "something_new": 1}
    frames = Frames(received=1105, ingested=1008, pending=2, dropped=dropped)
    report.note_memory(Memory(5, 10, chunks=1), frames)
    rows = dict(report.summary_rows())
    assert rows["Frames"] == (
        "1,105 received: 1,008 taken into memory in 1 chunk, 2 waiting, 90 between two samples, "
        "4 too many for the model, 1 something_new"
    )
    assert rows["Lost"] == "4 too many for the model, 1 something_new"


def test_what_somebody_asked_for_is_not_lost():
    report = plain_report()
    dropped = {"sampling": 9, "inactive": 8, "paused": 7, "reset": 6}
    report.note_memory(Memory(5, 10), Frames(received=30, dropped=dropped))
    rows = dict(report.summary_rows())
    assert "7 while it was paused, 6 at a reset" in rows["Frames"]
    assert rows["Lost"] == "none"


def test_every_cause_of_the_node_s_has_words():
    assert [*CAUSES] == [drop.cause for drop in Drop]


def test_a_summary_of_nothing_can_be_printed():
    report = plain_report()
    report.fail("the node never came")
    report.summary()
    assert "0 of 0 questions answered" in text_of(report)
    assert "Failed: the node never came" in text_of(report)


@pytest.mark.parametrize(
    ("length", "cap", "full"),
    [(0, 100, 0), (100, 100, 10), (49, 100, 5), (7, 0, 0), (999, 100, 10)],
)
def test_the_bar_shows_the_share(length, cap, full):
    assert bar(length, cap, width=10, ascii_only=True) == "[" + "#" * full + "." * (10 - full) + "]"


def test_forgotten_stretches_show_as_a_gap():
    assert seen_text(((18.1, 16.6), (12.0, 0.4))) == "seen 18.1 to 16.6 and 12.0 to 0.4 s ago"
    assert seen_text(()) == "nothing seen"


def test_an_answer_that_could_not_be_judged_says_why_and_is_counted():
    report = plain_report()
    report.add(exchange(right=True, judged=True))
    report.add(exchange(right=None, judged=True))
    report.summary()
    text = text_of(report)
    assert "not judged, more was seen meanwhile  a taxi" in text
    assert "1 of 1 right, 1 not judged" in text


def test_the_summary_says_how_long_the_memory_lasts():
    report = plain_report()
    report.add(exchange(seen_ago=((60.5, 0.5),), memory=Memory(length=512, cap=2048)))
    report.note_memory(Memory(length=512, cap=2048), Frames())
    report.summary()
    assert "full after 4 min 00 s" in " ".join(text_of(report).split())  # 60 s * 2048 / 512


def test_a_full_memory_is_told_on_a_few_lines_with_its_oldest_and_its_newest():
    report = plain_report()
    report.add(exchange(seen_ago=[(100.0 - i, 99.5 - i) for i in range(60)]))
    text = " ".join(text_of(report).split())
    assert "seen 100.0 to 99.5 s ago, 58 stretches between, and 41.0 to 40.5 s ago" in text
    assert len(text_of(report).splitlines()) <= 6


# Seconds before the newest frame: the sink, and the window.
HELD = [(60.0, 58.0), (20.0, 0.0)]


@pytest.mark.parametrize(
    ("question", "forgotten"),
    [
        ("What was visible 40 seconds ago?", True),
        ("What did you see ten seconds ago?", False),
        ("What was there a minute ago?", False),
        ("What was there Two Minutes ago?", True),
        ("What was there forty seconds ago?", True),
        ("What was visible 59 seconds ago?", False),
        ("What do you see now?", False),
        ("Did it move 40 seconds after the ring?", False),
    ],
)
def test_a_question_is_about_what_is_forgotten_where_nothing_of_its_time_is_held(
    question, forgotten
):
    assert is_forgotten(question, HELD) is forgotten


def test_an_answer_about_what_is_forgotten_is_marked_as_a_guess():
    report = plain_report()
    report.add(exchange(forgotten=True))
    report.add(exchange())
    first, second = text_of(report).split("\n\n")[:2]
    assert "a guess, nothing of that time is held  a taxi" in first
    assert "guess" not in second
