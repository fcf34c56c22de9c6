# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What an answer rests on, in a replay's report, journal and bag, and on the terminal."""

import io
import json
from pathlib import Path

import pytest
from fake_engine import FakeRecall, answer_metrics, cache_info, choice_metrics, episode
from rich.console import Console
from rich.text import Text
from rosbags.rosbag2 import Reader
from rosbags.typesys import Stores, get_types_from_msg, get_typestore

from stream_vlm_ros.errors import OutOfHorizonError
from stream_vlm_ros.replay.ages import correction
from stream_vlm_ros.replay.feeding import Fed
from stream_vlm_ros.replay.records import forgotten
from stream_vlm_ros.replay.rendering import render_html, render_markdown
from stream_vlm_ros.replay.terminal import Dialogue, memory_text

pytestmark = pytest.mark.usefixtures("utc")

MESSAGES = Path(__file__).resolve().parents[2] / "msg"
START = 1_700_000_000.0  # of the known source
QUESTIONS = """
questions:
  - {text: Where was it?, at: 5, evidence: [1, 2], expect: xxx, id: where}
  - {text: Which?, at: 5, choices: [a, b], evidence: 4.5, id: which}
"""


class Recalls(FakeRecall):
    """Names two episodes for whatever is asked, and for a choice the second alone."""

    def __init__(self, lost=()):
        super().__init__()
        self.asked, self.lost, self.words = 0, set(lost), "xxx"
        self.found = (
            episode(START + 1.5, START + 2.0, START + 2.5, score=3.25),
            episode(START + 4.0, score=2.0, tier="memory"),
        )

    def ask(self, question, max_new_tokens=128, *arguments, on_token=None, **options):
        self.asked += 1
        return self.words, answer_metrics(
            episodes=self.found, time_spans=[(START + 18, START + 19)]
        )

    def ask_choice(self, question, choices, *, about=None, **options):
        self.asked += 1
        return choices[0], choice_metrics(choices, episodes=self.found[1:])


@pytest.fixture
def engines():
    return []


@pytest.fixture
def job(make_job, engines):
    def make(lost=(), **options):
        def engine(settings):
            engines.append(Recalls(lost))
            return engines[-1]

        return make_job(engine=engine, questions=QUESTIONS, **options)

    return make


def answers_of(report):
    return {answer["id"]: answer for answer in report["runs"][0]["answers"]}


def test_the_report_names_the_episodes_from_the_first_frame_on_with_pictures(job):
    done = job()
    answers = answers_of(done.run())
    where, which = answers["where"], answers["which"]
    first, second = where["episodes"]
    assert (first["start"], first["end"], first["stamps"]) == (1.5, 2.5, [1.5, 2.0, 2.5])
    assert (first["score"], first["tier"], second["tier"]) == (3.25, "history", "memory")
    assert where["evidence_named"] is True  # 1 to 2 s overlaps 1.5 to 2.5 s
    assert which["evidence_named"] is False  # 4.5 s does not overlap 4 s
    assert "episodes" not in where["metrics"] and where["metrics"]["fetched_tokens"] == 0
    assert set(where["times"]) >= {"search_latency", "fetch_latency"}
    pictures = [(done.out / path).read_bytes() for path in first["thumbnails"]]
    assert pictures == [b"jpeg of %.3f" % (START + at) for at in (1.5, 2.5)]
    page = (done.out / "report.html").read_text()
    assert page.count('class="episode"') == 3
    when = "0:01.5–0:02.5 · 2023-11-14 22:13:21.5 to 22:13:22.5"
    assert f"{when} · 2.5 s before the question · history · score 3.25" in page
    assert f"xxx; seen {when} · 2.5 s before the question" in (done.out / "report.md").read_text()
    assert "evidence named" in page and "evidence not named" in page
    assert page.count('alt="A frame from') == 4


def test_a_frame_that_is_gone_costs_its_picture_alone(job):
    where = answers_of(job(lost=(START + 1.5, START + 4.0)).run())["where"]
    assert [len(one["thumbnails"]) for one in where["episodes"]] == [1, 0]


def test_an_interrupted_replay_takes_episodes_and_pictures_from_its_journal(job, engines):
    job(interrupt_at=13).run()
    done = job()
    answers = answers_of(done.run())
    assert engines[-1].asked == 0
    for one in answers["where"]["episodes"]:
        assert one["thumbnails"]
        for path in one["thumbnails"]:
            assert (done.out / path).exists()
    assert (done.out / "report.html").read_text().count('alt="A frame from') == 4


def test_the_bag_carries_the_evidence_as_the_node_does(job):
    done = job(bag=True)
    done.run()
    store = get_typestore(Stores.ROS2_JAZZY)
    for name in ("TimeSpan", "MemoryLevel", "HistoryTier", "CacheStatus", "Evidence", "Answer"):
        text = (MESSAGES / f"{name}.msg").read_text()
        store.register(get_types_from_msg(text, f"stream_vlm/msg/{name}"))
    with Reader(done.out / "bag") as reader:
        told = [
            store.deserialize_cdr(data, connection.msgtype)
            for connection, _, data in reader.messages()
            if connection.topic == "/stream_vlm/answer"
        ]
    first, second = next(m.evidence for m in told if m.question == "Where was it?")
    assert (first.span.start.sec, first.span.start.nanosec) == (int(START) + 1, 500_000_000)
    assert [stamp.sec - int(START) for stamp in first.stamps] == [1, 2, 2]
    assert (first.score, second.tier) == (3.25, "memory")


def test_an_answer_without_episodes_says_nothing_of_them(make_job):
    done = make_job()
    for answer in done.run()["runs"][0]["answers"]:
        assert answer.get("episodes", []) == [] and "evidence_named" not in answer
    assert 'class="episode"' not in (done.out / "report.html").read_text()


def test_the_terminal_says_when_it_was_seen_and_what_the_history_holds():
    engine, out = Recalls(), io.StringIO()
    engine.append_video_chunk([None] * 20, timestamps=[START + k for k in range(20)])
    dialogue = Dialogue(engine, Console(file=out, width=80, force_terminal=True), START)
    told = dialogue.ask("Where was it?", None, 5)
    lines = Text.from_ansi(out.getvalue()).plain.splitlines()
    assert lines[2:4] == [
        "  seen at 1.5-2.5 s, 16 s before the question",
        "  (2023-11-14 22:13:21.5 to 22:13:22.5, history, score 3.25)",
    ]
    assert json.loads(json.dumps(told))["episodes"][0]["start"] == START + 1.5
    fed = Fed(frames=20, chunks=1, first_ns=round(START * 1e9), seconds=1.0)
    text = memory_text(engine.get_cache_info(), fed)
    assert "\nIts history holds 20 frames (2.0 kB): 0.0-19.0 s." in text


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        ("16 seconds ago", ""),
        ("it left 15 seconds ago", ""),
        ("300 seconds ago", "16 s"),
        ("5 minutes ago", "16 s"),
        ("for 300 seconds", ""),
        ("2 boxes ago", ""),
    ],
)
def test_a_time_that_the_stamps_contradict_does_not_stand_alone(answer, told):
    words = f"By the stamps it was {told} ago, not as the model says" if told else ""
    assert correction(answer, [(1.5, 2.5)], 19.0) == words
    engine, out = Recalls(), io.StringIO()
    engine.found, engine.words = engine.found[:1], answer
    Dialogue(engine, Console(file=out, width=80), START).ask("When?", None, 5)
    assert ("By the stamps it was" in out.getvalue()) is bool(told)


@pytest.mark.parametrize(
    ("answer", "right"),
    [("1 minute 40 seconds ago", True), ("2 minutes ago", True), ("1 hour ago", False)],
)
def test_a_time_is_read_as_exactly_as_it_is_told(answer, right):
    assert (correction(answer, [(0.0, 20.0)], 120.0) == "") is right


def test_the_report_says_so_too(job):
    done = job()
    report = done.run()
    where = answers_of(report)["where"]
    where["answer"] = "300 seconds ago"
    words = "By the stamps it was 1.0 s ago, not as the model says"
    assert words in render_markdown(report) and words in render_html(report, done.out)


def test_of_many_stretches_in_memory_the_first_and_the_newest_are_told():
    info = cache_info(time_spans=[(float(k), k + 0.5) for k in range(0, 80, 2)])
    text = memory_text(info, Fed(frames=160, chunks=1, seconds=1.0))
    assert "0.0-0.5 s, 36 more, 74.0-74.5 s, 76.0-76.5 s, 78.0-78.5 s of the source" in text


def test_choices_are_told_with_their_scores_and_those_a_token():
    class Scores(FakeRecall):
        def ask_choice(self, question, choices, **options):
            return choices[0], choice_metrics(choices)  # -1 for 2 tokens each

    out = io.StringIO()
    told = Dialogue(Scores(), Console(file=out, width=100)).ask("Which?", ["cup", "bowl"], 5)
    assert "> cup  (log-probability -1.00, -0.50 a token)\n" in out.getvalue()
    assert (told["scores"], told["choice_tokens"]) == ([-1.0, -1.0], [2, 2])
    assert told["mean_scores"] == [-0.5, -0.5]


def test_a_time_beyond_all_tiers_is_told_from_the_first_frame_on():
    engine = FakeRecall(cap=20)
    for second in range(10):
        engine.append_video_chunk([None], timestamps=[START + second])
    error = forgotten((50, 60), engine.get_cache_info(), round(START * 1e9))
    assert isinstance(error, OutOfHorizonError)
    assert str(error) == (
        "nothing from 50 to 60 s is remembered; in memory is 8.0 to 9.0 s; "
        "the history holds 0.0 to 9.0 s"
    )
