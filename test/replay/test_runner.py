# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The closed loop: drop-free, deterministic, and the same as by hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
from fake_engine import SilentEngine, answer_metrics, cache_info, chunk_result

from stream_vlm_ros.config import Settings
from stream_vlm_ros.errors import InvalidParameterError
from stream_vlm_ros.factory import load_engine
from stream_vlm_ros.replay.feeding import feed
from stream_vlm_ros.replay.questions import load_questions
from stream_vlm_ros.replay.records import evidence_age, evidence_in_memory
from stream_vlm_ros.replay.report import without_times
from stream_vlm_ros.replay.runner import Replay
from stream_vlm_ros.sources.frame import Source

from .conftest import KnownSource, real_engine

START = 1_700_000_000
SETTINGS = Settings(max_cache_tokens=100, max_new_tokens=6)
QUESTIONS = """
questions:
  - {text: What now, at: 2.6, id: now}
  - {text: Which, at: 4.0, choices: [left, right], expect: left, evidence: [1, 2], id: which}
  - {text: Read, every: 4, merge: true, id: read}
  - {text: All, at: end, id: all}
  - {text: Too late, at: 100, expect: x, id: late}
"""


class NotingEngine(SilentEngine):
    """Remembers what it was given; answers with the number of frames it has seen."""

    def __init__(self):
        self.chunks = []

    def append_video_chunk(self, images, fps=None, timestamps=None):
        self.chunks.append([round(t % 1000, 3) for t in timestamps])
        return chunk_result(len(images), cache_length=1)

    def ask(self, question, max_new_tokens, **options):
        seen = [t for chunk in self.chunks for t in chunk]
        return str(len(seen)), answer_metrics(time_spans=[(seen[0], seen[-1])])

    def get_cache_info(self):
        return cache_info(1)


def replayed(source, questions, settings=SETTINGS, make=real_engine, **options):
    replay = Replay(settings, questions, make, **options)
    return replay.run(source)


def half_seconds(count):
    return [i / 2 for i in range(count)]


def test_the_same_twice_gives_the_same_bytes_but_for_times(write_questions):
    questions = load_questions(write_questions(QUESTIONS))
    runs = [
        replayed(KnownSource(half_seconds(21), start_ns=START * 10**9), questions) for _ in range(2)
    ]
    first, second = (json.dumps(without_times(run)).encode() for run in runs)
    assert first == second
    assert runs[0]["series"][-1]["cache_length"] <= 100
    assert sum(entry["evicted_tokens"] for entry in runs[0]["series"]) > 0


def test_the_answers_are_those_of_the_same_frames_handed_to_the_engine_by_hand(write_questions):
    questions = load_questions(write_questions(QUESTIONS))
    source = KnownSource(half_seconds(21), start_ns=START * 10**9)
    run = replayed(source, questions)
    frames = list(source)
    # By hand, in the chunks of 4 that a question's complete pairs may split: at 2.6 s six frames
    # have come, at 4.0 s nine (eight of them pairs), at 8.0 s seventeen, at the end all.
    engine, given = real_engine(), 0
    by_hand = {}

    def show(until):
        nonlocal given
        while given < until:
            chunk = frames[given : min(given + 4, until)]
            engine.append_video_chunk(
                [f.image for f in chunk], timestamps=[f.stamp_ns / 1e9 for f in chunk]
            )
            given += len(chunk)

    show(6)
    by_hand["now"] = engine.ask("What now", 6)[0]
    show(8)
    by_hand["which"], metrics = engine.ask_choice("Which", ["left", "right"])
    by_hand["read@4"] = engine.ask("Read", 6)[0]
    show(16)
    by_hand["read@8"] = engine.ask("Read", 6)[0]
    show(21)
    by_hand["all"] = engine.ask("All", 6)[0]
    got = {a["id"]: a["answer"] for a in run["answers"] if a["status"] == "answered"}
    assert got == by_hand
    which = next(a for a in run["answers"] if a["id"] == "which")
    assert which["metrics"]["scores"] == list(metrics["scores"])


def test_tokens_and_their_log_probabilities_are_in_the_report_if_it_is_asked_for_them(
    write_questions,
):
    questions = load_questions(write_questions(QUESTIONS))
    kept = {"token_ids", "token_logprobs", "mean_scores"}
    for asked in (False, True):
        settings = SETTINGS.changed({"token_logprobs": asked})
        run = replayed(KnownSource(half_seconds(21)), questions, settings)
        answers = {a["id"]: a for a in json.loads(json.dumps(run))["answers"]}
        now, which = (answers[name]["metrics"] for name in ("now", "which"))
        if not asked:
            assert not kept & {*now, *which}
            continue
        assert len(now["token_ids"]) == len(now["token_logprobs"]) == now["answer_tokens"]
        assert all(value <= 0 for value in now["token_logprobs"])
        # "left" and "right" are bytes to the toy: 4 and 5 tokens, and the end of the turn.
        assert which["mean_scores"] == [which["scores"][0] / 5, which["scores"][1] / 6]


def test_what_comes_live_is_not_read_before_there_is_a_model(write_questions):
    done = []

    class Camera(KnownSource):
        live = True

        def __iter__(self):
            done.append("read")
            return super().__iter__()

    def make():
        done.append("made")
        return NotingEngine()

    questions = load_questions(write_questions(QUESTIONS))
    replayed(Camera(half_seconds(9), cameras=("left", "right")), questions, make=make)
    assert done == ["made", "read", "made"]  # the second for the second camera


def test_pauses_left_out_for_the_model_are_said_in_the_notes(write_questions):
    questions = load_questions(write_questions(QUESTIONS))
    times = [*half_seconds(9), *(86_404.5 + time for time in half_seconds(9))]
    run = replayed(KnownSource(times, start_ns=START * 10**9), questions)
    (note,) = [note for note in run["source"]["notes"] if "pause" in note]
    assert "1 pause between frames, 24 h 00 min in all, left out for the model" in note
    assert sum(entry["closed_seconds"] for entry in run["series"]) == pytest.approx(86_400, abs=1)
    quiet = replayed(KnownSource(half_seconds(18), start_ns=START * 10**9), questions)
    assert not any("pause" in note for note in quiet["source"]["notes"])


def test_a_question_sees_every_pair_of_frames_up_to_its_time_and_none_after(write_questions):
    questions = load_questions(
        write_questions("questions: [{text: A, at: 2.0, id: a}, {text: B, at: 2.9, id: b}]")
    )
    for policy, seen in {"grids": ["4", "6"], "all": ["5", "6"], "complete": ["4", "4"]}.items():
        settings = Settings(at_question=policy)
        run = replayed(KnownSource(half_seconds(12)), questions, settings, NotingEngine)
        assert [a["answer"] for a in run["answers"]] == seen
        assert run["frames"]["ingested"] == 12


def test_a_question_does_not_change_what_another_one_sees(write_questions):
    alone = load_questions(write_questions("questions: [{text: A, at: 9, id: a}]"))
    among = load_questions(
        write_questions(
            "questions: [{text: A, at: 9, id: a}, {text: B, every: 1.1}, {text: C, at: 3.3}]"
        )
    )
    answers = []
    for questions in (alone, among):
        run = replayed(
            KnownSource(half_seconds(24)), questions, make=lambda: real_engine(None, 10_000)
        )
        answers.append(next(a["answer"] for a in run["answers"] if a["id"] == "a"))
    assert answers[0] == answers[1]


def test_a_question_after_the_end_is_not_reached_and_not_judged(write_questions):
    run = replayed(KnownSource(half_seconds(9)), load_questions(write_questions(QUESTIONS)))
    late = run["answers"][-1]
    assert (late["id"], late["status"], late["right"]) == ("late", "not_reached", None)


def test_periodic_answers_are_merged(write_questions):
    questions = load_questions(
        write_questions("questions: [{text: Read, every: 2, merge: true, id: read}]")
    )
    run = replayed(KnownSource(half_seconds(13)), questions, make=NotingEngine)
    (merged,) = run["merged"]
    assert [(a["at"], a["answer"]) for a in run["answers"]] == [
        (2.0, "4"), (4.0, "8"), (6.0, "12"),
    ]  # fmt: skip
    assert [line["text"] for line in merged["lines"]] == ["4", "8", "12"]


def test_every_camera_has_a_memory_of_its_own(write_questions):
    questions = load_questions(
        write_questions(
            "questions: [{text: A, at: 3, camera: b, id: a}, {text: B, at: 3, id: first}]"
        )
    )
    run = replayed(KnownSource(half_seconds(9), ("/a", "/b")), questions, make=NotingEngine)
    assert {a["id"]: a["camera"] for a in run["answers"]} == {"a": "/b", "first": "/a"}
    assert set(run["memory"]) == {"/a", "/b"}


@pytest.mark.parametrize("known", [True, False])
def test_a_camera_that_the_source_lacks_is_told_before_the_run_where_it_can_be(
    write_questions, known
):
    questions = load_questions(write_questions("questions: [{text: A, at: 3, camera: b}]"))
    read = []

    class Lacking(Source):
        name, cameras = "lacking", ("/a",) if known else None

        def __iter__(self):
            for frame in KnownSource(half_seconds(9), ("/a",)):
                read.append(frame)
                yield frame

    lacking = Lacking()
    with pytest.raises(InvalidParameterError, match="camera b, but frames come from /a only"):
        replayed(lacking, questions, make=NotingEngine)
    assert len(read) == (0 if known else 9)


def test_an_answer_that_was_given_before_is_not_asked_again(write_questions):
    questions = load_questions(write_questions(QUESTIONS))
    first = replayed(KnownSource(half_seconds(21)), questions)
    known = {a["id"]: a for a in first["answers"]}

    class Mute(NotingEngine):
        def ask(self, *arguments, **options):
            raise AssertionError("asked again")

        ask_choice = ask

    again = replayed(KnownSource(half_seconds(21)), questions, make=Mute, known=known.get)
    assert [a["answer"] for a in again["answers"]] == [a["answer"] for a in first["answers"]]


def test_ctrl_c_keeps_what_was_done(write_questions):
    questions = load_questions(write_questions(QUESTIONS))
    replay = Replay(SETTINGS, questions, NotingEngine)
    source = KnownSource(half_seconds(21), interrupt_at=7)
    with pytest.raises(KeyboardInterrupt):
        replay.run(source)
    run = replay.result(source)
    assert run["complete"] is False
    assert [a["id"] for a in run["answers"]] == ["now"]
    frames = run["frames"]
    assert frames["ingested"] + frames["drops"]["interrupted"] == 7


def test_a_question_about_a_named_time_is_told_so_in_the_sources_own(write_questions):
    questions = load_questions(
        write_questions(
            "questions: [{text: A, at: 4, about: [1, 2], id: a}, {text: B, at: 4, about: 3, "
            "choices: [x, y], id: b}, {text: C, at: 4, id: c}, "
            f"{{text: D, at_stamp: {START + 4}, about: [7, 9]}}]"
        )
    )
    told = []

    def make():
        engine = real_engine()
        ask, choose = engine.ask, engine.ask_choice
        engine.ask = lambda *a, **k: told.append(k["about"]) or ask(*a, **k)
        engine.ask_choice = lambda *a, **k: told.append(k["about"]) or choose(*a, **k)
        return engine

    run = replayed(KnownSource(half_seconds(9), start_ns=START * 10**9), questions, make=make)
    assert told == [(START + 1, START + 2), (START + 3, START + 3), None, (START + 7, START + 9)]
    assert [a["about"] for a in run["answers"]] == [[1, 2], [3, 3], None, [7, 9]]
    assert [a["status"] for a in run["answers"]] == ["answered"] * 3 + ["error"]
    error = run["answers"][3]["error"]
    assert error["code"] == "OUT_OF_HORIZON"
    # In seconds from the first frame, as all else; the last complete pair is that of 3.5 s.
    assert "nothing from 7 to 9 s is remembered" in error["message"]
    assert error["message"].endswith(" to 3.5 s") and str(START) not in error["message"]


def test_the_delayed_engine_is_replayed_like_the_streaming_one(write_questions):
    questions = load_questions(write_questions(QUESTIONS))
    settings = Settings(
        engine="delayed_batch", device="cpu", keep_fps=1.0, max_sampled_frames=4, max_new_tokens=6
    )
    runs = [
        replayed(KnownSource(half_seconds(21)), questions, settings, lambda: load_engine(settings))
        for _ in range(2)
    ]
    first, second = (json.dumps(without_times(run)).encode() for run in runs)
    assert first == second
    (run, _), memory = runs, runs[0]["memory"]["cam"]
    assert run["frames"]["ingested"] == memory["frames_added"] == 21
    assert memory["stored_frames"] == 11  # one a second of 0 to 10 s
    answers = {a["id"]: a for a in run["answers"]}
    assert {answers[i]["status"] for i in ("now", "which", "read@4", "read@8", "all")} == {
        "answered"
    }
    # One pair, and the newest frame: alone in its pair of neighbours, it fills it twice.
    assert answers["all"]["metrics"]["frames_used"] == 3
    assert "encode_latency" in answers["all"]["times"]


def test_a_source_without_frames_leaves_every_question_not_reached(write_questions):
    run = replayed(KnownSource([]), load_questions(write_questions(QUESTIONS)), make=NotingEngine)
    assert {a["status"] for a in run["answers"]} == {"not_reached"}


def test_the_age_of_evidence_counts_from_its_end_and_only_from_what_is_past():
    assert evidence_age([(1, 3), (7, 8)], 10) == 2
    assert evidence_age([(1, 3), (7, 12)], 10) == 0
    assert evidence_age([(11, 12)], 10) is None
    assert evidence_in_memory([(1, 3)], [(0, 0.5), (2.5, 9)]) is True
    assert evidence_in_memory([(1, 2)], [(0, 0.5), (2.5, 9)]) is False
    assert evidence_in_memory([], [(0, 1)]) is None


def test_pictures_of_another_size_begin_a_new_chunk(write_questions):
    class Changing(KnownSource):
        def __iter__(self):
            for index, frame in enumerate(super().__iter__()):
                image = frame.image if index < 3 else np.zeros((28, 28, 3), np.uint8)
                yield type(frame)(frame.stamp_ns, image, frame.source)

    questions = load_questions(write_questions("questions: [{text: A, at: end}]"))
    engines = []
    replayed(
        Changing(half_seconds(7)),
        questions,
        make=lambda: engines.append(NotingEngine()) or engines[-1],
    )
    assert [len(chunk) for chunk in engines[0].chunks] == [3, 4]


@pytest.mark.parametrize("policy", ["grids", "all", "complete"])
@pytest.mark.parametrize("at", [0.25, 0.5, 1.0, 1.5, 1.75, 2.0, 2.5, 3.75, 4.0, 4.25])
def test_fed_up_to_a_time_an_engine_gets_what_a_question_of_that_time_sees(
    write_questions, at, policy
):
    """Of frames at 0, 0.5, ..., 4 s: up to between frames, to one that fills a chunk or a pair or
    neither, to the last one, and behind it."""
    source = KnownSource(half_seconds(9))
    questions = load_questions(write_questions(f"questions: [{{text: What, at: {at}}}]"))
    settings = Settings(at_question=policy)
    (asked,) = replayed(source, questions, settings, NotingEngine)["answers"]
    engine = NotingEngine()
    fed = feed(engine, source, settings.chunk_frames, at=at, at_question=policy)
    seen = [second for chunk in engine.chunks for second in chunk]
    assert (str(len(seen)), [[0.0, seen[-1]]]) == (asked["answer"], asked["seen"])
    assert fed.cut == (at <= 4)
    if policy == "all":
        assert seen[-1] == min(at - at % 0.5, 4.0)  # that of the very time is seen


@pytest.mark.parametrize("gap", [86_400, 1_700_000_000])
def test_what_is_asked_every_so_often_is_asked_where_frames_are_and_the_gap_is_said(
    write_questions, gap
):
    questions = load_questions(write_questions("questions: [{id: x, text: A, every: 1}]"))
    source = KnownSource([*half_seconds(51), *(gap + s for s in half_seconds(9))])
    run = replayed(source, questions, make=NotingEngine)
    assert [a["at"] for a in run["answers"]] == [*range(1, 26), *(gap + k for k in range(5))]
    (note,) = run["source"]["notes"]
    assert "x was not asked at" in note and f"from 26 s to {gap - 1} s" in note
