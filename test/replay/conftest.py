# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""A small real engine, a source whose frames are known, and question files."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from stream_vlm_ros.config import Settings
from stream_vlm_ros.replay.job import ReplayJob
from stream_vlm_ros.replay.plots import plots_of
from stream_vlm_ros.replay.questions import load_questions
from stream_vlm_ros.sources import Frame, Source, SourceState

QUESTIONS = """
title: <Known> & simple
questions:
  - {text: Which & <why>, at: 2, choices: [left, right], expect: left, evidence: 1, type: side}
  - {text: Which, at: 3, choices: [left, right], expect: right, type: side, tags: [x]}
  - {text: Read, every: 2, merge: true, id: read}
  - {text: Too late, at: 100, expect: x, id: late}
"""
BASE = Settings(max_cache_tokens=100, max_new_tokens=4)


class KnownSource(Source):
    """Flat grey frames at the stamps given (seconds), on one camera or the cameras given."""

    def __init__(self, seconds, cameras=("cam",), start_ns=0, interrupt_at=None):
        super().__init__()
        self.name = "known"
        self.seconds, self.cameras, self.start_ns = list(seconds), cameras, start_ns
        self.interrupt_at = interrupt_at

    def __iter__(self):
        self.state = SourceState()
        for index, second in enumerate(self.seconds):
            if index == self.interrupt_at:
                raise KeyboardInterrupt
            for camera in self.cameras:
                self.state.counts.decoded += 1
                self.state.counts.given += 1
                image = np.full((56, 84, 3), 10 + 7 * index % 240, np.uint8)
                yield Frame(self.start_ns + round(second * 1e9), image, camera)


@functools.lru_cache(maxsize=1)
def real_model():
    from toy_qwen import chatter_model, toy_processor

    return chatter_model(), toy_processor()


def real_engine(settings=None, max_cache_tokens=100):
    """A streaming engine on a small model of random weights."""
    from stream_vlm_ros.engine import EvictionConfig, VideoStreamingInference

    return VideoStreamingInference(*real_model(), "cpu", EvictionConfig.novelty(max_cache_tokens))


@pytest.fixture
def write_questions(tmp_path):
    """Write a question file from its text; gives its path."""

    def write(text, name="q.yaml"):
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


PLOTS: dict[tuple, list] = {}  # of the runs with these names


@pytest.fixture
def make_job(write_questions, tmp_path, monkeypatch):
    """A job over a known source; ``interrupt_at`` is the frame before which Ctrl-C comes.

    Plots take most of a short replay's time. They are drawn for the first report whose runs bear
    these names, and are the same in further ones: what they show is for test_plots.py.
    """

    def drawn_once(runs, failed):
        names = tuple((run["name"], run["complete"]) for run in runs)
        if names not in PLOTS:
            PLOTS[names] = plots_of(runs, failed)
        return PLOTS[names]

    monkeypatch.setattr("stream_vlm_ros.replay.rendering.plots_of", drawn_once)

    def make(
        settings=(BASE,),
        interrupt_at=None,
        out="report",
        engine=real_engine,
        questions=QUESTIONS,
        spec="known",
        source_options=None,
        **options,
    ):
        def opened(spec, **_):
            return KnownSource(
                [i / 2 for i in range(14)],
                **{"start_ns": 1_700_000_000 * 10**9, "interrupt_at": interrupt_at}
                | (source_options or {}),
            )

        monkeypatch.setattr("stream_vlm_ros.replay.job.open_source", opened)
        loaded = load_questions(write_questions(questions))
        return ReplayJob(spec, loaded, settings, tmp_path / out, make_engine=engine, **options)

    return make
