# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""What the console says of a memory and of an answer."""

import math
import re
from dataclasses import replace

import pytest

from stream_vlm_ros.errors import OutOfHorizonError
from stream_vlm_ros.session.counters import ON_PURPOSE, Drop
from stream_vlm_ros.session.memory_summary import EpisodeState, MemorySummary, TierState
from stream_vlm_ros.session.question import Outcome, Question
from stream_vlm_ros.web.figures import (
    choice_shares,
    dropped,
    figures,
    length_text,
    outcome_text,
    share,
    state_text,
    taken_text,
    unnamed_text,
)
from stream_vlm_ros.web.live_memory import Status
from stream_vlm_ros.web.titles import titled


@pytest.mark.parametrize("drop", Drop)
def test_every_loss_has_words_and_says_whether_it_was_wanted(drop):
    [(words, on_purpose)] = dropped({drop.value: 1_234, "frames_received": 5_000})
    assert words.startswith("1,234 ") and "_" not in words
    assert on_purpose == (drop.cause in ON_PURPOSE)
    assert not re.search(r"\b(were|are|node)\b", words)  # also of one alone, and without ROS


def test_what_was_not_lost_is_not_told():
    assert dropped({drop.value: 0 for drop in Drop}) == []


def test_a_pause_is_told_only_while_it_is_live():
    assert state_text(Status(state="active", paused=True)) == "Paused"
    assert state_text(Status(state="away", paused=True)) == "Not answering"


def test_figures_are_there_before_anything_is_known():
    assert [figure.value for figure in figures(Status())] == ["0", "0", "–", "–"]
    assert share(Status()) == 0.0 and length_text(Status()) == "0 tokens"
    assert taken_text({}) == "0 pictures came, 0 remembered"


def test_a_gpus_memory_is_called_so():
    on_gpu = Status(device="cuda:0", used_bytes=3_200_000_000)
    assert [(f.label, f.value) for f in figures(on_gpu)][-1] == ("GPU memory", "3.2 GB")


def test_an_answer_tells_what_it_took():
    outcome = Outcome(
        Question("?"),
        "yes",
        waiting=1.5,
        ttft=0.21,
        latency=1.25,
        answer_tokens=1,
        fetched_tokens=100,
        memory=MemorySummary(length=1_000),
    )
    assert outcome_text(outcome) == (
        "waited 1.5 s · first token 210 ms · 1.25 s in all · 1 token · read from 1,100 tokens · "
        "100 of them fetched from the history"
    )
    assert outcome_text(replace(outcome, answer="", error=OutOfHorizonError("gone"))) == ""


def test_of_an_answer_that_names_no_episode_it_says_what_it_was_read_from():
    tier = TierState("pictures", 8, 16, 1_000, 10_000, "memory", 0, 9)
    outcome = Outcome(Question("?"), "yes", memory=MemorySummary(length=10, tiers=(tier,)))
    whole = "read from the memory as a whole: no single time is named"
    assert unnamed_text(outcome) == whole
    assert unnamed_text(replace(outcome, fetched_tokens=9)) == "no single time is named"
    about = Question("?", about_ns=(1, 2))
    assert unnamed_text(replace(outcome, question=about)) == "no single time is named"
    named = (EpisodeState(1, 2, 0.5, "memory", (1,)),)
    assert unnamed_text(replace(outcome, evidence=named)) == ""
    assert unnamed_text(replace(outcome, memory=MemorySummary(length=10))) == ""  # no history
    assert unnamed_text(replace(outcome, error=OutOfHorizonError("gone"))) == ""


def test_the_shares_of_choices_are_of_their_log_probabilities():
    scores = (math.log(0.03), math.log(0.07))  # of what else a model would say, the rest
    assert choice_shares(Outcome(Question("?"), choice_scores=scores)) == pytest.approx([0.3, 0.7])
    [first, second] = choice_shares(Outcome(Question("?"), choice_scores=(-3208.0, -3207.0)))
    assert (first, second) == pytest.approx((1 / (1 + math.e), math.e / (1 + math.e)))
    assert choice_shares(Outcome(Question("?"))) == []


def test_settings_are_told_by_their_titles():
    assert titled("sample_fps: 2.0 -> 3.0") == "Pictures a second: 2.0 → 3.0"
    assert titled("read, from which sample_fps chooses") == (
        "read, from which “Pictures a second” chooses"
    )
    assert titled("the temperature of memory_folder") == "the temperature of memory_folder"
