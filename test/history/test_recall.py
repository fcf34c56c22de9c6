# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The streaming engine with a history: what it answers from, and what it leaves as it was.

A toy with random weights finds nothing; here calibrations by which everything fits a question, or
nothing, decide what is looked back to. That the right thing is found is the trained model's test at
the end, and the history experiment.
"""

from __future__ import annotations

import io
import re
import sqlite3
from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image

from stream_vlm_ros.engine import (
    EvictionConfig,
    VideoStreamingInference,
    inference,
    load_checkpoint,
)
from stream_vlm_ros.engine.cache.buffer import KVBuffer
from stream_vlm_ros.engine.chunk_path import CapturedChunks
from stream_vlm_ros.errors import (
    EmptyMemoryError,
    FrameStoreError,
    InvalidImageError,
    InvalidParameterError,
    OutOfHorizonError,
)
from stream_vlm_ros.factory import default_model
from stream_vlm_ros.history import tiers
from stream_vlm_ros.history.calibration import CalibratedHead, Calibration, model_hash
from stream_vlm_ros.history.index import ROW_BYTES, KeyIndex
from stream_vlm_ros.history.reading import Reader
from stream_vlm_ros.history.recall import RecallingInference
from stream_vlm_ros.history.store import FrameStore
from stream_vlm_ros.history.tiers import thinned
from stream_vlm_ros.world.rare import RareWorld, grid_stamps

GRID = 6  # tokens
# A text of some 45 tokens, two grids after it, and a window of twelve.
CAP = EvictionConfig(130, sampled_share=0.0, important_share=0.0)
GRIDS = 24
QUESTION = "Where was it last seen?"
CHOICES = ["left", "right", "in the middle"]


@pytest.fixture(scope="module")
def footage(noise):
    return noise(2 * GRIDS + 8, seed=5)


@pytest.fixture(scope="module")
def fits(small):
    """A function: a calibration by which everything fits every question, or nothing."""
    model = small[0]

    def make(everything: bool, not_seen: tuple[str, ...] = ("not seen", "no")) -> Calibration:
        limit = -1e9 if everything else 1e9
        heads = (CalibratedHead(0, 1, "last", 0.9, 1.0), CalibratedHead(1, 3, "words", 0.5, 2.0))
        return Calibration(
            heads=heads, threshold=limit, of_best=limit, looks=limit, tail=1.0, scale="fixed",
            not_seen=not_seen, grid_tokens=GRID, seconds_per_grid=1.0,
            model=model_hash(model),
        )  # fmt: skip

    return make


@pytest.fixture
def make(small, fits):
    """A function: an engine; what everything fits looks back at every question."""
    made = []

    def engine(everything=True, store=None, config=CAP, not_seen=("not seen", "no"), **options):
        store = FrameStore(form="png") if store is None else store
        calibration = fits(everything, not_seen)
        made.append(
            RecallingInference(
                *small, "cpu", config, calibration=calibration, store=store, **options
            )
        )
        return made[-1]

    yield engine
    for one in made:
        one.close()


def stamps_of(first, stop):
    return [0.5 * number for number in range(first, stop)]


def stream(engine, footage, first=0, stop=2 * GRIDS, chunk=4):
    for at in range(first, stop, chunk):
        end = min(at + chunk, stop)
        engine.append_video_chunk(footage[at:end], timestamps=stamps_of(at, end))
    return engine


def memory(engine):
    """All of it, to the bit."""
    kv, offsets = engine.cache_manager.as_read()
    return [kv.clone(), offsets, engine.cache_manager.ledger.positions()]


def same(one, other):
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def offline(small, footage, numbers):
    """A fresh engine that was given just these frames."""
    engine = VideoStreamingInference(*small, "cpu")
    engine.append_video_chunk(
        [footage[number] for number in numbers], timestamps=[0.5 * number for number in numbers]
    )
    return engine


def answered_alike(asked, expected, question=QUESTION, **options):
    """Whether the choices' scores are those of the other engine, to 1e-4."""
    choice, metrics = asked.ask_choice(question, CHOICES, **options)
    wanted, reference = expected.ask_choice(question, CHOICES)
    assert metrics.fetched_tokens > 0
    assert choice == wanted
    assert metrics.scores == pytest.approx(reference.scores, abs=1e-4)
    return metrics


# -- nothing of the past fits ---------------------------------------------------------------------


def test_where_nothing_fits_the_answer_is_that_without_a_history_to_the_bit(make, footage):
    engine = stream(make(everything=False), footage)
    before = memory(engine)
    alone, _ = engine.ask(QUESTION, 8, history="never")
    told, metrics = engine.ask(QUESTION, 8)
    assert told == alone
    assert (metrics.fetched_tokens, metrics.episodes) == (0, ())
    _, choice = engine.ask_choice(QUESTION, CHOICES)
    _, plain = engine.ask_choice(QUESTION, CHOICES, history="never")
    assert choice.scores == plain.scores  # no tolerance
    assert same(memory(engine), before)


def test_the_stream_is_that_of_an_engine_without_a_history_to_the_bit(small, make, footage):
    plain = stream(VideoStreamingInference(*small, "cpu", CAP), footage)
    assert same(memory(stream(make(), footage)), memory(plain))


def test_an_exchange_is_kept_as_without_a_history(small, make, footage):
    plain = stream(VideoStreamingInference(*small, "cpu", CAP), footage)
    engine = stream(make(everything=False), footage)
    assert (
        engine.ask(QUESTION, 4, update_state=True)[0]
        == plain.ask(QUESTION, 4, update_state=True)[0]
    )
    assert same(memory(engine), memory(plain))


# -- what is fetched ------------------------------------------------------------------------------


def test_all_that_fits_is_read_as_one_offline_pass_over_it(small, make, footage):
    engine = stream(make(), footage)
    metrics = answered_alike(engine, offline(small, footage, range(2 * GRIDS)))
    assert metrics.fetched_tokens == GRIDS * GRID
    (episode,) = metrics.episodes
    assert (episode.start, episode.end, episode.tier) == (0.0, GRIDS - 0.5, "history")
    assert len(episode.stamps) == 6
    assert (episode.stamps[0], episode.stamps[-1]) == (0.0, GRIDS - 0.5)


def test_a_written_answer_is_that_of_the_offline_pass(small, make, footage):
    engine = stream(make(), footage)
    told, metrics = engine.ask(QUESTION, 8)
    assert told == offline(small, footage, range(2 * GRIDS)).ask(QUESTION, 8)[0]
    assert metrics.fetched_tokens == GRIDS * GRID
    assert metrics.search_latency > 0 and metrics.fetch_latency > 0
    assert metrics.ttft <= metrics.latency


def test_a_named_time_narrows_what_is_read_to_its_frames(small, make, footage):
    engine = stream(make(), footage)
    frames = range(8, 16)  # 4.0 to 7.5 s, and not the present: the answer would be about that
    metrics = answered_alike(engine, offline(small, footage, frames), about=(4.0, 7.5))
    assert [(e.start, e.end) for e in metrics.episodes] == [(4.0, 7.5)]


def test_a_named_time_is_read_even_where_nothing_fits(small, make, footage):
    engine = stream(make(everything=False), footage)
    metrics = answered_alike(engine, offline(small, footage, range(8, 16)), about=(4.0, 7.5))
    assert [(e.start, e.end, e.tier) for e in metrics.episodes] == [(4.0, 7.5, "history")]


def test_a_time_with_an_open_end_ends_at_what_was_seen_when_the_question_came(small, make, footage):
    engine = stream(make(everything=False, fork_slack_tokens=200), footage)
    alone = engine.ask(QUESTION, 4, history="never")[0]
    for end in (GRIDS - 0.5, GRIDS + 100.0, float("inf")):  # the memory holds all of it
        told, metrics = engine.ask(QUESTION, 4, about=(GRIDS - 4.0, end))
        assert (told, metrics.fetched_tokens) == (alone, 0)
    answer = engine.ask_stream(QUESTION, 4, about=(4.0, float("inf")))
    next(answer)
    stream(engine, footage, 2 * GRIDS, 2 * GRIDS + 8)
    answer.complete()
    assert answer.metrics.fetched_tokens == (GRIDS - 4) * GRID


def test_out_of_horizon_is_only_what_no_tier_reaches(make, footage):
    engine = stream(make(), footage)
    with pytest.raises(OutOfHorizonError):  # the memory alone does not reach so far
        engine.ask(QUESTION, 4, about=(3.0, 4.0), history="never")
    assert engine.ask(QUESTION, 4, about=(3.0, 4.0))[1].fetched_tokens > 0
    for question in (
        lambda: engine.ask(QUESTION, 4, about=(100.0, 200.0)),
        lambda: engine.ask_choice(QUESTION, CHOICES, about=(100.0, 200.0)),
        lambda: engine.search(QUESTION, about=(100.0, 200.0)),
    ):
        with pytest.raises(OutOfHorizonError, match="nothing from 100"):
            question()


@pytest.mark.parametrize("tokens", [1, 20, 60])
def test_what_is_read_stays_within_the_bound_in_tokens(make, footage, tokens):
    engine = stream(make(max_history_tokens=tokens, history_pixels=28 * 28 * GRID), footage)
    _, metrics = engine.ask(QUESTION, 4)
    # Two grids at least: something of the past, and the present.
    assert 0 < metrics.fetched_tokens <= max(tokens, 2 * GRID)


def apart(engine, footage):
    """The footage with three grids of every four forgotten again: each is an episode of its own."""
    stream(engine, footage)
    for number in range(GRIDS):
        if number % 4:
            engine.forget(number, number + 0.5)
    return engine


def test_however_many_episodes_fit_no_more_is_read_than_the_bound(make, footage):
    engine = apart(make(max_history_tokens=4 * GRID, history_pixels=28 * 28 * GRID), footage)
    _, metrics = engine.ask("How often was it there?", 4)
    assert 0 < metrics.fetched_tokens <= 4 * GRID  # of seven episodes, and the present


def test_an_answer_to_how_often_names_no_episode_that_was_not_read(make, footage):
    engine = apart(make(max_history_tokens=4 * GRID, history_pixels=28 * 28 * GRID), footage)
    read = []
    taken = Reader.read
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reader, "read", lambda self, shown: read.append(shown) or taken(self, shown))
        _, metrics = engine.ask("How often was it there?", 4)
        _, chosen = engine.ask_choice("How often was it there?", CHOICES)
    for shown, told in zip(read, (metrics, chosen), strict=True):
        stamps = {stamp for stamp, _ in shown}
        assert told.episodes
        assert all(stamps & set(one.stamps) for one in told.episodes)


def test_of_an_episode_that_does_not_fit_what_is_read_alone_is_its_middle():
    assert list(thinned([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 1, 2)) == [5, 6]
    assert list(thinned([1, 2, 3, 4, 5, 6, 7, 8, 9, 10], 2, 2)) == [1, 2, 9, 10]


def test_of_many_episodes_those_are_read_of_which_a_picture_is_left(small, make, footage):
    store = FrameStore(form="png")
    bound = {"max_history_tokens": 2 * GRID, "history_pixels": 28 * 28 * GRID}
    engine = apart(make(store=store, **bound), footage)
    for number in (0, 8, 16, 20):  # of six episodes; of these keys alone are left
        store.forget_between(number, number + 0.5)
    left = offline(small, footage, [8, 9, 24, 25])
    answered_alike(engine, left, "How often was it there?")


def test_where_the_model_sees_nothing_the_next_episode_is_read(small, make, footage):
    told, first = apart(make(), footage).ask("Who?", 4, about=(3.0, 10.0))
    assert [episode.start for episode in first.episodes] == [8.0]
    # With the likeliest choice as what the model says of nothing, the next is looked at.
    engine = apart(make(not_seen=(CHOICES[0],)), footage)
    choice, metrics = engine.ask_choice("Who?", CHOICES, about=(3.0, 10.0))
    wanted = offline(small, footage, [8, 9]).ask_choice("Who?", CHOICES)
    assert choice == wanted[0] == CHOICES[0]
    assert metrics.scores == pytest.approx(wanted[1].scores, abs=1e-4)
    newest = offline(small, footage, [16, 17]).ask_choice("Who?", CHOICES)
    assert metrics.scores != pytest.approx(newest[1].scores, abs=1e-4)
    # A written answer, too; that of the last look stands, and rests on nothing.
    engine = apart(make(not_seen=(told,)), footage)
    answer, metrics = engine.ask("Who?", 4, about=(3.0, 10.0))
    assert answer == offline(small, footage, [8, 9]).ask("Who?", 4)[0]
    assert metrics.episodes == ()


def test_an_answer_that_says_not_seen_names_no_episode(make, footage):
    told, _ = apart(make(), footage).ask(QUESTION, 4, about=(4.0, 5.0))
    engine = apart(make(not_seen=(told,)), footage)
    answer, metrics = engine.ask(QUESTION, 4, about=(4.0, 5.0))
    assert answer == told and metrics.fetched_tokens > 0
    assert metrics.episodes == ()
    choice, _ = engine.ask_choice(QUESTION, CHOICES, about=(4.0, 5.0))
    engine = apart(make(not_seen=(choice,)), footage)
    chosen, metrics = engine.ask_choice(QUESTION, CHOICES, about=(4.0, 5.0))
    assert (chosen, metrics.episodes) == (choice, ())


def test_larger_pictures_are_reduced_before_they_are_read(make, noise):
    roomy = EvictionConfig(600, sampled_share=0.0, important_share=0.0)
    engine = make(history_pixels=28 * 28 * GRID, config=roomy)
    big = noise(16, 168, 252)
    engine.append_video_chunk(big[:8], timestamps=stamps_of(0, 8))
    engine.append_video_chunk(big[8:], timestamps=stamps_of(8, 16))
    _, metrics = engine.ask(QUESTION, 4, history="always")
    assert metrics.fetched_tokens == 8 * GRID


def test_pictures_of_several_sizes_are_read_as_chunks_of_one_size(make, noise):
    engine = make()
    engine.append_video_chunk(noise(8), timestamps=stamps_of(0, 8))
    for at in range(8, 48, 4):
        engine.append_video_chunk(noise(4, 84, 56, seed=at), timestamps=stamps_of(at, at + 4))
    _, metrics = engine.ask(QUESTION, 4)
    assert metrics.fetched_tokens == GRIDS * GRID


def test_the_bound_holds_where_the_present_is_larger_than_the_past(make, noise):
    engine = make(max_history_tokens=60, history_pixels=28 * 28 * 24)
    engine.append_video_chunk(noise(16), timestamps=stamps_of(0, 16))
    for at in range(16, 32, 2):
        engine.append_video_chunk(noise(2, 112, 168, seed=at), timestamps=stamps_of(at, at + 2))
    _, metrics = engine.ask(QUESTION, 4, about=(0.0, 7.5), history="always")
    assert 24 < metrics.fetched_tokens <= 60  # the present, and something of the past


def test_readers_record_no_steps_of_chunks_where_the_stream_does(make, footage, monkeypatch):
    made = []

    def captured(model, functions, manager, _):
        made.append(CapturedChunks(model, functions, manager))
        return made[-1]

    monkeypatch.setattr(inference, "chunk_path", captured)
    engine = stream(make(), footage)
    assert engine.ask(QUESTION, 4)[1].fetched_tokens == GRIDS * GRID
    of_stream, *of_readers = made
    assert of_stream.detours  # the first chunk
    assert of_readers and not any(path.detours for path in of_readers)


# -- what stays as it was -------------------------------------------------------------------------


def test_a_question_that_looks_back_leaves_the_stream_as_it_was(make, footage):
    asked, quiet = stream(make(), footage), stream(make(), footage)
    before = memory(asked)
    assert asked.ask(QUESTION, 8)[1].fetched_tokens > 0
    assert asked.ask_choice(QUESTION, CHOICES)[1].fetched_tokens > 0
    assert asked.search(QUESTION)
    assert same(memory(asked), before)
    for engine in (asked, quiet):
        stream(engine, footage, 2 * GRIDS, 2 * GRIDS + 8)
    assert same(memory(asked), memory(quiet))
    assert asked.ask("What is there?", 8)[0] == quiet.ask("What is there?", 8)[0]
    assert (
        asked.ask_choice(QUESTION, CHOICES)[1].scores
        == quiet.ask_choice(QUESTION, CHOICES)[1].scores
    )


def test_a_question_waits_for_no_rotation_that_was_done_after_the_chunk(make, footage, monkeypatch):
    engine = stream(make(everything=False, config=EvictionConfig.novelty(170)), footage)
    assert engine.cache_manager.rotates_long_lived
    rotated, rotate = [], KVBuffer.rotate_base
    monkeypatch.setattr(KVBuffer, "rotate_base", lambda *given: rotated.append(1) or rotate(*given))
    engine.ask(QUESTION, 2)
    assert not rotated
    stream(engine, footage, 2 * GRIDS, 2 * GRIDS + 4)
    assert len(rotated) == 1


def test_frames_come_while_a_fetched_answer_is_written(make, footage):
    asked, quiet = stream(make(), footage), stream(make(), footage)
    expected, _ = quiet.ask(QUESTION, 8)
    with asked.ask_stream(QUESTION, 8) as answer:
        for at, _ in enumerate(answer):
            if at < 2:
                stream(asked, footage, 2 * GRIDS + 4 * at, 2 * GRIDS + 4 * at + 4)
    assert answer.text == expected
    stream(quiet, footage, 2 * GRIDS, 2 * GRIDS + 8)
    assert same(memory(asked), memory(quiet))


def test_two_answers_are_written_at_once(make, footage):
    engine = stream(make(), footage)
    questions = [(QUESTION, (0.0, 9.0)), ("What was there?", (3.0, 20.0))]
    alone = [engine.ask(question, 8, about=about)[0] for question, about in questions]
    answers = [engine.ask_stream(question, 8, about=about) for question, about in questions]
    running = list(answers)
    while running:
        running = [answer for answer in running if next(answer, None) is not None]
    assert [answer.text for answer in answers] == alone
    assert alone[0] != alone[1]


def test_cancelled_at_any_moment_an_answer_leaves_no_trace(make, footage):
    engine = stream(make(), footage)
    before, (whole, _) = memory(engine), engine.ask(QUESTION, 6)
    for allowed in range(20):
        calls = iter([False] * allowed)
        told, metrics = engine.ask_stream(
            QUESTION, 6, update_state=True, cancel=lambda calls=calls: next(calls, True)
        ).complete()
        if metrics.finish_reason != "cancelled":
            break
        assert whole.startswith(told) and len(told) < len(whole)
        assert not engine.cache_manager.living_forks
        assert same(memory(engine), before)
        assert engine.get_cache_info().exchanges == 0
    assert allowed > 6  # it came to an end, once every token of it was allowed
    assert told == whole


def test_closed_after_any_piece_an_answer_leaves_no_trace(make, footage):
    engine = stream(make(), footage)
    before = memory(engine)
    for pieces in range(7):
        answer = engine.ask_stream(QUESTION, 6, update_state=True)
        for _ in range(pieces):
            if next(answer, None) is None:
                break
        if answer.metrics is not None:
            break
        answer.close()
        assert not engine.cache_manager.living_forks
        assert same(memory(engine), before)
    assert pieces > 2
    assert engine.ask(QUESTION, 6, history="always")[1].fetched_tokens > 0


def test_an_exchange_is_kept_behind_the_stream_after_a_fetched_answer(small, make, footage):
    engine = stream(make(config=None), footage)
    length = engine.get_cache_info().cache_seq_length
    _, metrics = engine.ask(QUESTION, 6, update_state=True, history="always")
    info = engine.get_cache_info()
    assert metrics.fetched_tokens > 0 and info.exchanges == 1
    # Question and answer as the stream would have kept them, had it said the same.
    plain = stream(VideoStreamingInference(*small, "cpu"), footage)
    plain.ask(QUESTION, 6, update_state=True)
    kept = info.cache_seq_length - length
    assert kept == plain.get_cache_info().cache_seq_length - length
    assert metrics.answer_tokens == 6 < kept
    stream(engine, footage, 2 * GRIDS, 2 * GRIDS + 4)
    assert engine.ask("What is there?", 4, history="never")[0]


# -- read from features ---------------------------------------------------------------------------

# Of pictures kept so badly nothing can be told: what is answered right was read from features.
BAD = {"form": "jpeg", "quality": 1}
GRID_BYTES = GRID * 64 * 4  # of features


@pytest.fixture
def remembering(make):
    """A function: an engine that keeps features of so many grids, and pictures that are no use."""

    def engine(grids=2 * GRIDS, store=None, **options):
        store = FrameStore(**BAD) if store is None else store
        return make(store=store, feature_bytes=grids * GRID_BYTES, **options)

    return engine


def test_features_are_read_as_one_offline_pass_over_their_frames(small, remembering, footage):
    engine = stream(remembering(), footage)
    metrics = answered_alike(engine, offline(small, footage, range(2 * GRIDS)))
    assert metrics.fetched_tokens == GRIDS * GRID
    told, _ = engine.ask(QUESTION, 8)
    assert told == offline(small, footage, range(2 * GRIDS)).ask(QUESTION, 8)[0]
    answered_alike(engine, offline(small, footage, range(8, 16)), about=(4.0, 7.5))


def test_without_features_such_pictures_are_no_use(small, make, footage):
    engine = stream(make(store=FrameStore(**BAD)), footage)
    _, metrics = engine.ask_choice(QUESTION, CHOICES)
    _, reference = offline(small, footage, range(2 * GRIDS)).ask_choice(QUESTION, CHOICES)
    assert metrics.fetched_tokens > 0
    assert metrics.scores != pytest.approx(reference.scores, abs=1e-2)


def test_features_of_the_present_are_those_that_were_over_at_the_question():
    features = tiers.FeatureTier(10**6)
    features.add(torch.zeros(3, 1, 1, 4), [(0.0, 0.5), (1.0, 1.5), (2.0, 2.5)])
    assert [grid.stamp for grid in features.present(2, until=1.5)] == [0.0, 1.0]
    assert [grid.stamp for grid in features.present(2, until=2.5)] == [1.0, 2.0]
    assert features.present(2, until=2.4) == []  # the newest was not over: not taken then


def test_where_features_were_let_go_pictures_are_read(small, remembering, footage):
    engine = stream(remembering(grids=8, store=FrameStore(form="png")), footage)
    _, features, _ = engine.get_cache_info().tiers
    assert (features.name, features.grids, features.frames) == ("features", 8, 16)
    assert features.bytes == features.max_bytes == 8 * GRID_BYTES
    assert (features.oldest, features.newest) == (GRIDS - 8.0, GRIDS - 0.5)
    answered_alike(engine, offline(small, footage, range(2 * GRIDS)))
    for first in (GRIDS - 9, GRIDS - 8):  # a grid too early, and all of them
        frames = range(2 * first, 2 * GRIDS)
        answered_alike(
            engine, offline(small, footage, frames), about=(first, GRIDS - 0.5), history="always"
        )


def test_an_odd_frame_is_a_grid_of_its_own_in_both(small, remembering, footage):
    engine = stream(remembering(), footage, chunk=3)
    answered_alike(
        engine, stream(VideoStreamingInference(*small, "cpu"), footage, chunk=3),
        about=(-1.0, GRIDS),
    )  # fmt: skip


@pytest.mark.parametrize("tokens", [2 * GRID, 5 * GRID, 11 * GRID])
def test_features_are_read_within_the_bound_in_tokens(remembering, footage, tokens):
    engine = stream(remembering(max_history_tokens=tokens, history_pixels=28 * 28 * GRID), footage)
    assert 0 < engine.ask(QUESTION, 2)[1].fetched_tokens <= tokens


def test_features_of_a_forgotten_time_are_gone(small, remembering, footage):
    engine = stream(remembering(), footage)
    engine.forget(4.25, 7.25)  # from the middle of a grid to the middle of another
    assert engine.get_cache_info().tiers[1].grids == GRIDS - 4
    with pytest.raises(OutOfHorizonError):
        engine.ask(QUESTION, 4, about=(4.5, 7.0))


def test_features_are_held_no_longer_than_pictures(remembering, footage):
    engine = stream(remembering(store=FrameStore(max_seconds=6.0)), footage)
    pictures, features, _ = engine.get_cache_info().tiers
    assert features.oldest >= pictures.oldest - 0.5
    assert features.grids <= 7


def test_features_of_what_came_after_a_snapshot_go_with_it(small, remembering, footage):
    engine = stream(remembering(config=None), footage, stop=24)
    engine.cache_manager.snapshot()
    for at in range(24, 32, 4):  # between the times of what comes in their place
        stamps = [stamp + 0.25 for stamp in stamps_of(at, at + 4)]
        engine.append_video_chunk(footage[at : at + 4], timestamps=stamps)
    engine.cache_manager.restore()
    stream(engine, footage, 24)
    assert engine.get_cache_info().tiers[1].grids == GRIDS
    answered_alike(engine, offline(small, footage, range(2 * GRIDS)), history="always")


def test_a_chunk_is_taken_where_the_host_has_no_room_for_its_features(
    make, footage, monkeypatch, caplog
):
    engine = stream(make(feature_bytes=2 * GRIDS * GRID_BYTES), footage, stop=8)

    def no_room(*_, **__):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory")

    with monkeypatch.context() as patch:
        patch.setattr(tiers, "copied_to_host", no_room)
        stream(engine, footage, 8, 12)
    stream(engine, footage, 12)
    pictures, features, _ = engine.get_cache_info().tiers
    assert (pictures.frames, features.oldest) == (2 * GRIDS, 6.0)
    assert "can't allocate memory" in caplog.text
    assert engine.ask(QUESTION, 4)[1].fetched_tokens == GRIDS * GRID


def test_features_that_an_interruption_has_left_a_hole_in_are_not_read_as_whole(
    small, make, footage, monkeypatch
):
    engine = stream(make(feature_bytes=2 * GRIDS * GRID_BYTES), footage, stop=24)

    def interrupted(*_, **__):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(tiers, "copied_to_host", interrupted)
        stream(engine, footage, 24, 28)
    stream(engine, footage, 28)
    assert engine.get_cache_info().tiers[1].oldest == 14.0
    answered_alike(engine, offline(small, footage, range(2 * GRIDS)))  # by the pictures


def test_no_features_are_left_of_what_the_engine_forgets(remembering, footage):
    for forget in (RecallingInference.reset, RecallingInference.start_epoch):
        engine = stream(remembering(), footage)
        forget(engine)
        assert engine.get_cache_info().tiers[1].grids == 0
        stream(engine, footage, stop=8)
        assert engine.get_cache_info().tiers[1].grids == 4


# -- what is forgotten, lost or not taken ----------------------------------------------------------


def test_what_is_forgotten_is_not_found_nor_shown(make, footage):
    engine = stream(make(), footage)
    assert engine.forget(4.0, 7.5) == 8
    assert engine.thumbnail(5.0) is None
    for episode in engine.search(QUESTION):
        assert episode.end < 4.0 or episode.start > 7.5
        assert not any(4.0 <= stamp <= 7.5 for stamp in episode.stamps)
    assert engine.search(QUESTION, about=(4.0, 7.5)) == []
    pictures, keys = engine.get_cache_info().tiers
    assert (pictures.frames, keys.grids) == (2 * GRIDS - 8, GRIDS - 4)
    with pytest.raises(OutOfHorizonError):
        engine.ask(QUESTION, 4, about=(4.0, 7.5))


def test_a_lost_picture_is_left_out(small, make, footage, tmp_path):
    engine = stream(make(store=FrameStore(tmp_path / "kept", form="png")), footage)
    lost = [4, 5]  # a grid
    for number in lost:
        (file,) = (tmp_path / "kept" / "pictures").rglob(f"*{number:04}.png")
        file.unlink()
    rest = [number for number in range(2 * GRIDS) if number not in lost]
    answered_alike(engine, offline(small, footage, rest))


def test_without_any_picture_left_the_memory_answers(make, footage, tmp_path):
    engine = stream(make(store=FrameStore(tmp_path / "kept", form="png")), footage)
    for file in (tmp_path / "kept" / "pictures").rglob("*.png"):
        file.unlink()
    with pytest.raises(OutOfHorizonError, match=r"nothing from 4\.000 to 7\.500 s"):
        engine.ask(QUESTION, 4, about=(4.0, 7.5))  # it is not answered from another time
    with pytest.raises(OutOfHorizonError, match=r"nothing from 2\.000 to 3\.500 s"):
        engine.ask_choice(QUESTION, CHOICES, about=(2.0, 3.5))
    told, metrics = engine.ask(QUESTION, 8)
    assert told == engine.ask(QUESTION, 8, history="never")[0]
    assert (metrics.fetched_tokens, metrics.finish_reason) == (0, "length")
    choice, scored = engine.ask_choice(QUESTION, CHOICES)
    assert (choice, scored.fetched_tokens) == (
        engine.ask_choice(QUESTION, CHOICES, history="never")[0],
        0,
    )


def test_a_full_disk_is_said_once_and_the_stream_goes_on(
    small, make, footage, tmp_path, monkeypatch, caplog
):
    engine = stream(make(store=FrameStore(tmp_path / "kept", form="png")), footage, stop=24)

    def full(*_, **__):
        raise FrameStoreError("no space left on the disk")

    with monkeypatch.context() as patched:
        patched.setattr(FrameStore, "add", full)
        patched.setattr(KeyIndex, "draft", full)
        stream(engine, footage, 24, 40)
        told = {tier.name: tier.error for tier in engine.get_cache_info().tiers}
        assert told["pictures"] == told["keys"] == "no space left on the disk"
    stream(engine, footage, 40)
    assert not any(tier.error for tier in engine.get_cache_info().tiers)
    said = [record.getMessage() for record in caplog.records]
    assert sum("frame is not kept" in text for text in said) == 1
    assert sum("keys are not kept" in text for text in said) == 1
    plain = stream(VideoStreamingInference(*small, "cpu", CAP), footage)
    assert same(memory(engine), memory(plain))
    frames = [*range(24), *range(40, 2 * GRIDS)]
    answered_alike(engine, offline(small, footage, frames), about=(0.0, 24.0))


# -- where keys are left out for lack of room -----------------------------------------------------


class Sighted:
    """An engine's index by which one stretch of time fits every question, and nothing else does."""

    def __init__(self, index, first, last):
        self._index, self._stretch = index, (first, last)

    def __getattr__(self, name):
        return getattr(self._index, name)

    def search(self, *arguments, **options):
        found = self._index.search(*arguments, **options)
        first, last = self._stretch
        fits = torch.from_numpy(
            (found.stamps[:, 0] >= first) & (found.stamps[:, 0] <= last)  # by its own frames
        )
        return found._replace(scores=torch.where(fits, 1e12, -1e12).expand(found.scores.shape))


@pytest.fixture
def crowded(make, small):
    """A function: an engine whose index has room for the keys of so many grids."""
    calibration = make(everything=False).calibration
    heads, width = len(calibration.keys(small[0].config)), small[0].kv_shape.head_dim
    grid_bytes = heads * GRID * width * small[0].dtype.itemsize + ROW_BYTES

    def engine(grids, **options):
        return make(everything=False, index_bytes=grids * grid_bytes, **options)

    return engine


@pytest.mark.parametrize("first", [40, 43, 46])
def test_what_is_erased_as_it_was_named_leaves_no_picture_of_it(crowded, footage, first):
    engine = crowded(12)
    for at in range(0, 160, 4):
        engine.append_video_chunk(footage[at % 48 : at % 48 + 4], timestamps=stamps_of(at, at + 4))
    keys = engine.get_cache_info().tiers[-1]
    assert keys.grids + keys.left_out == 80 and keys.left_out >= 3 * keys.grids
    shown = 0.5 * first, 0.5 * first + 8.0  # for as long as two grids stand for, or longer
    engine.index = Sighted(engine.index, *shown)
    (episode,) = engine.search(QUESTION)
    assert episode.start <= shown[0] and shown[1] <= episode.end
    engine.forget(episode.start, episode.end)
    assert [stamp for stamp in stamps_of(0, 160) if engine.thumbnail(stamp) is None] == [
        stamp for stamp in stamps_of(0, 160) if episode.start <= stamp <= episode.end
    ]
    # By one grid that has keys on either side, and what that stands for.
    assert episode.end - episode.start <= shown[1] - shown[0] + 2 * 8


def test_that_keys_are_left_out_is_said_where_it_begins_and_where_it_doubles(
    crowded, footage, caplog, tmp_path
):
    def said():
        told = [record.getMessage() for record in caplog.records if "is full" in record.message]
        caplog.clear()
        return [re.search(r"fewer than (\d+) grids", text)[1] for text in told]

    def store():
        return FrameStore(tmp_path / "kept", form="png")

    engine = crowded(12, store=store())
    stream(engine, footage, stop=24)
    assert said() == [] and engine.get_cache_info().tiers[-1].left_out == 0
    stream(engine, footage, 24)
    assert said()[0] == "2"
    for at in range(48, 200, 4):
        engine.append_video_chunk(footage[:4], timestamps=stamps_of(at, at + 4))
    assert said() in (["8"], ["4", "8"], ["8", "16"], ["4", "8", "16"])
    engine.close()
    crowded(12, store=store())
    assert said() in (["8"], ["16"])  # to who opens it again, once


# -- from one process and one time to the next -----------------------------------------------------


def test_a_folder_answers_before_anything_was_streamed_again(small, make, footage, tmp_path):
    stream(make(store=FrameStore(tmp_path / "kept", form="png")), footage).close()
    engine = make(store=FrameStore(tmp_path / "kept", form="png"))
    answered_alike(engine, offline(small, footage, range(2 * GRIDS)))
    assert [(tier.oldest, tier.newest) for tier in engine.get_cache_info().tiers] == 2 * [
        (0.0, GRIDS - 0.5)
    ]
    told, metrics = engine.ask(QUESTION, 4, update_state=True)
    assert metrics.fetched_tokens > 0 and told
    assert engine.get_cache_info().exchanges == 0  # there is no stream to keep it in
    with pytest.raises(EmptyMemoryError):
        engine.ask(QUESTION, 4, history="never")


def test_a_stream_goes_on_from_what_a_folder_holds(small, make, footage, tmp_path):
    stream(make(store=FrameStore(tmp_path / "kept", form="png")), footage, stop=24).close()
    engine = make(store=FrameStore(tmp_path / "kept", form="png"))
    stream(engine, footage, 24)
    both = range(20, 28)
    answered_alike(engine, offline(small, footage, both), "How often?", about=(10.0, 13.5))


def test_a_source_that_starts_again_is_a_new_epoch_of_the_folder(make, footage, tmp_path, caplog):
    stream(make(store=FrameStore(tmp_path / "kept", form="png")), footage).close()
    engine = make(store=FrameStore(tmp_path / "kept", form="png"))
    stream(engine, footage, stop=8)
    (said,) = caplog.messages
    assert "holds what was seen up to 23.5 s, and this begins at 0.0 s" in said
    told = engine.get_cache_info().tiers
    assert [(tier.frames, tier.newest) for tier in told] == [(8, 3.5), (8, 3.5)]
    with pytest.raises(OutOfHorizonError):
        engine.ask(QUESTION, 4, about=(10.0, 20.0))


def test_frames_that_are_refused_do_not_cost_the_history(small, make, footage, tmp_path):
    stream(make(store=FrameStore(tmp_path / "kept", form="png")), footage).close()
    engine = make(store=FrameStore(tmp_path / "kept", form="png"))
    with pytest.raises(InvalidImageError):
        engine.append_video_chunk([np.zeros((0, 0, 3), np.uint8)], timestamps=[0.0])
    answered_alike(engine, offline(small, footage, range(2 * GRIDS)))


@pytest.fixture(params=["pictures", "features"])
def either(request, make, remembering):
    """A function: an engine of which pictures are read, or features."""
    return make if request.param == "pictures" else remembering


def test_what_came_after_a_snapshot_goes_with_it(small, make, footage):
    engine = stream(make(config=None), footage, stop=24)
    engine.cache_manager.snapshot()
    stream(engine, footage[::-1], 24, 32)
    engine.cache_manager.restore()
    stream(engine, footage, 24)
    assert engine.get_cache_info().tiers[0].frames == 2 * GRIDS
    answered_alike(engine, offline(small, footage, range(2 * GRIDS)), history="always")


def test_what_the_memory_went_back_behind_is_not_read_shown_or_told(small, either, footage):
    engine = stream(either(config=None), footage, stop=24)
    engine.cache_manager.snapshot()
    stream(engine, footage[::-1], 24, 32)
    engine.cache_manager.restore()
    assert {tier.newest for tier in engine.get_cache_info().tiers} == {11.5}

    engine.cache_manager.snapshot()
    stream(engine, footage[::-1], 24, 32)
    engine.cache_manager.restore()
    assert engine.thumbnail(13.0) is None

    engine.cache_manager.snapshot()
    stream(engine, footage[::-1], 24, 32)
    engine.cache_manager.restore()
    with pytest.raises(OutOfHorizonError):
        engine.search(QUESTION, about=(12.0, 16.0))
    answered_alike(engine, offline(small, footage, range(24)), history="always")


def test_what_the_memory_went_back_behind_stays_away_from_what_comes_later(small, either, footage):
    engine = stream(either(config=None), footage, stop=24)
    engine.cache_manager.snapshot()
    stream(engine, footage[::-1], 24, 32)
    engine.cache_manager.restore()
    stream(engine, footage, 36, 40)  # later than all that was taken back
    frames = [*range(24), *range(36, 40)]
    assert {tier.frames for tier in engine.get_cache_info().tiers} == {len(frames)}
    answered_alike(engine, offline(small, footage, frames), history="always")


def test_a_frame_taken_back_goes_also_where_its_stamp_is_that_of_one_that_stays(
    small, either, footage
):
    engine = stream(either(config=None), footage, stop=24)
    engine.cache_manager.snapshot()
    engine.append_video_chunk(footage[40:44], timestamps=[11.5] * 4)
    engine.cache_manager.restore()
    answered_alike(engine, offline(small, footage, range(24)), history="always")


def test_a_clone_brings_nothing_back_to_a_history_that_was_forgotten_since(either, footage):
    engine = stream(either(config=None), footage, stop=24)
    clone = engine.cache_manager.clone()
    engine.reset()
    stream(engine, footage[::-1], stop=8)  # another stream, within the time of the first
    engine.cache_manager.restore(clone)
    assert {tier.frames for tier in engine.get_cache_info().tiers[:-1]} == {0}
    assert engine.ask(QUESTION, 2, history="always")[1].fetched_tokens == 0


def test_frames_are_read_as_often_as_they_were_seen(small, either, footage):
    stamps = [0.5 * (number // 3) for number in range(24)]  # three of each stamp
    engine, plain = either(config=None), VideoStreamingInference(*small, "cpu")
    plain.append_video_chunk(footage[:24], timestamps=stamps)
    for at in range(0, 24, 4):
        engine.append_video_chunk(footage[at : at + 4], timestamps=stamps[at : at + 4])
    metrics = answered_alike(engine, plain, history="always")
    assert metrics.fetched_tokens == 12 * GRID


def test_what_the_memory_took_is_kept_also_where_the_call_was_interrupted_since(
    small, either, footage, monkeypatch
):
    engine = stream(either(), footage, stop=24)

    def interrupted():
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(engine.cache_manager, "prepare_reading", interrupted)  # after the commit
        stream(engine, footage, 24, 28)
    stream(engine, footage, 28)
    assert {tier.frames for tier in engine.get_cache_info().tiers} == {2 * GRIDS}
    answered_alike(engine, offline(small, footage, range(2 * GRIDS)))


@pytest.fixture
def disk(monkeypatch):
    """Where the stores that are made from now on keep their rows; it may be full."""

    class Rows(sqlite3.Connection):
        full = False

        def execute(self, statement, *values):
            if Rows.full and statement.startswith("BEGIN"):
                raise sqlite3.OperationalError("database or disk is full")
            return super().execute(statement, *values)

    monkeypatch.setattr(sqlite3, "connect", partial(sqlite3.connect, factory=Rows))
    return Rows


@pytest.mark.parametrize("in_folder", [True, False])
def test_on_a_full_disk_what_the_memory_went_back_behind_is_read_neither_then_nor_later(
    small, make, footage, tmp_path, disk, caplog, in_folder
):
    def new_store():
        return FrameStore(tmp_path / "kept" if in_folder else None, form="png")

    engine = stream(make(store=new_store(), config=None), footage, stop=16)
    snapshot = engine.cache_manager.snapshot()
    stream(engine, footage[::-1], 16, 24)
    engine.cache_manager.restore(snapshot)

    disk.full = True
    answered_alike(engine, offline(small, footage, range(16)), history="always")
    assert engine.thumbnail(9.0) is None
    assert engine.get_cache_info().tiers[0].newest == 7.5
    stream(engine, footage, 16, 20)  # taken by the memory, and by no store
    disk.full = False
    assert sum("went back behind" in record.getMessage() for record in caplog.records) == 1
    stream(engine, footage, 20, 24)
    frames = [*range(16), *range(20, 24)]
    assert engine.get_cache_info().tiers[0].frames == len(frames)  # those undone are gone
    answered_alike(engine, offline(small, footage, frames), history="always")
    engine.close()
    if in_folder:
        engine = make(store=new_store())
        answered_alike(engine, offline(small, footage, frames), history="always")


def test_a_lost_picture_is_left_out_also_on_a_full_disk(small, make, footage, tmp_path, disk):
    engine = stream(make(store=FrameStore(tmp_path / "kept", form="png")), footage, stop=16)
    for number in (4, 5):
        (file,) = (tmp_path / "kept" / "pictures").rglob(f"*{number:04}.png")
        file.unlink()

    disk.full = True
    rest = [*range(4), *range(6, 16)]
    for _ in range(2):
        answered_alike(engine, offline(small, footage, rest), history="always")


@pytest.mark.parametrize("looked", [True, False])
def test_what_was_taken_back_before_the_end_is_not_in_the_folder(
    small, make, footage, tmp_path, looked
):
    engine = stream(make(store=FrameStore(tmp_path / "kept", form="png")), footage, stop=24)
    clone = engine.cache_manager.clone()
    stream(engine, footage[::-1], 24, 40)
    engine.cache_manager.restore(clone)
    if looked:
        engine.ask(QUESTION, 2)
    engine.close()
    engine = make(store=FrameStore(tmp_path / "kept", form="png"))
    assert {(tier.oldest, tier.newest) for tier in engine.get_cache_info().tiers} == {(0.0, 11.5)}
    stream(engine, footage, 24, 32)
    assert {(tier.oldest, tier.newest) for tier in engine.get_cache_info().tiers} == {(0.0, 15.5)}
    answered_alike(engine, offline(small, footage, range(4, 12)), about=(2.0, 5.5))


# -- where a tier lacks what another has ----------------------------------------------------------


@pytest.fixture
def lagging(monkeypatch):
    """A function: an engine that was shown the footage, and its pictures' disk was full then.

    Up to ``since`` frames it was not; keys and features were taken throughout.
    """

    def full(*_, **__):
        raise FrameStoreError("no space left on the disk")

    def shown(engine, footage, since, stop=2 * GRIDS):
        stream(engine, footage, stop=since)
        with monkeypatch.context() as patched:
            patched.setattr(FrameStore, "add", full)
            return stream(engine, footage, since, stop)

    return shown


def test_old_pictures_are_not_read_as_the_present(small, make, lagging, footage):
    engine = lagging(make(), footage, 24)
    engine.forget(4.0, 5.5)  # what was before is an episode of its own
    answered_alike(engine, offline(small, footage, range(8)), "Where was it first seen?")


def test_a_time_that_features_alone_hold_is_answered(small, remembering, lagging, footage):
    engine = lagging(remembering(), footage, 8)
    answered_alike(engine, offline(small, footage, range(12, 20)), about=(6.0, 9.5))


def test_a_time_that_keys_alone_hold_is_found_but_not_answered(make, lagging, footage):
    engine = lagging(make(), footage, 8)
    found = engine.search(QUESTION, about=(6.0, 9.5))
    assert found and all(6.0 <= one.start <= one.end <= 9.5 and not one.stamps for one in found)
    with pytest.raises(OutOfHorizonError):
        engine.ask(QUESTION, 4, about=(6.0, 9.5))


@pytest.mark.parametrize("everything", [True, False])
def test_a_time_in_a_hole_is_refused_and_not_answered_from_another(
    small, make, lagging, footage, everything
):
    engine = lagging(make(everything), footage, 8, 24)
    stream(engine, footage, 24)  # pictures of 0 to 3.5 s and from 12 s on
    for ask in (
        lambda: engine.ask(QUESTION, 4, about=(6.0, 9.5)),
        lambda: engine.ask_choice(QUESTION, CHOICES, about=(6.0, 9.5)),
    ):
        with pytest.raises(OutOfHorizonError, match=r"nothing from 6\.000 to 9\.500 s"):
            ask()
    assert bool(engine.search(QUESTION, about=(6.0, 9.5))) == everything
    # What is there of a time is read, also where something else in it fits better.
    answered_alike(engine, offline(small, footage, range(4, 8)), about=(2.0, 9.5))


def test_a_memory_that_is_loaded_goes_back_also_behind_keys(make, lagging, footage, tmp_path):
    stream(make(), footage, stop=16).copy_memory().write(tmp_path / "memory")
    engine = lagging(make(), footage, 8)  # 7.5 s is behind its pictures, before its keys
    engine.load_memory(tmp_path / "memory")
    assert engine.search(QUESTION) == []
    stream(engine, footage[::-1], 16, 24)
    assert {(tier.oldest, tier.newest) for tier in engine.get_cache_info().tiers} == {(8.0, 11.5)}


def test_a_stream_that_begins_before_a_folders_keys_is_a_new_epoch(
    make, lagging, footage, tmp_path
):
    lagging(make(store=FrameStore(tmp_path / "kept", form="png")), footage, 8).close()
    engine = make(store=FrameStore(tmp_path / "kept", form="png"))
    stream(engine, footage, 16, 24)
    assert {(tier.oldest, tier.newest) for tier in engine.get_cache_info().tiers} == {(8.0, 11.5)}


def test_reset_forgets_the_history_too(make, footage):
    engine = stream(make(), footage)
    answer = engine.ask_stream(QUESTION, 8)
    next(answer)
    engine.reset()
    assert "".join(answer) == "" and answer.metrics.finish_reason == "cancelled"
    for tier in engine.get_cache_info().tiers:
        assert (tier.grids, tier.frames, tier.oldest) == (0, 0, None)
    with pytest.raises(EmptyMemoryError):
        engine.ask(QUESTION, 4)
    stream(engine, footage, stop=8)
    assert engine.get_cache_info().tiers[0].frames == 8


@pytest.mark.parametrize("pieces", range(6))
def test_reset_after_any_piece_an_answer_ends_whatever_comes_then(make, footage, pieces):
    engine = stream(make(), footage)
    answer = engine.ask_stream(QUESTION, 8, update_state=True)
    for _ in range(pieces):
        next(answer)
    engine.reset()
    stream(engine, footage, stop=2 * GRIDS)  # the same stamps again
    before = memory(engine)
    assert "".join(answer) == "" and answer.metrics.finish_reason == "cancelled"
    assert answer.metrics.episodes == ()
    assert same(memory(engine), before)
    assert engine.get_cache_info().exchanges == 0


@pytest.mark.parametrize("pieces", range(1, 5))
def test_closed_after_any_piece_an_answer_from_the_history_ends_as_cancelled(
    make, footage, tmp_path, pieces
):
    engine = stream(make(store=FrameStore(tmp_path / "kept", form="png")), footage)
    answer = engine.ask_stream(QUESTION, 8)
    for _ in range(pieces):
        next(answer)
    engine.close()
    assert "".join(answer) == "" and answer.metrics.finish_reason == "cancelled"


def test_a_new_epoch_hides_what_was_before(make, footage):
    engine = stream(make(), footage)
    answer = engine.ask_stream(QUESTION, 8)
    next(answer)
    engine.start_epoch()
    assert "".join(answer) == "" and answer.metrics.finish_reason == "cancelled"
    stream(engine, footage, stop=8)
    assert all(episode.end <= 3.5 for episode in engine.search(QUESTION))
    with pytest.raises(OutOfHorizonError):
        engine.ask(QUESTION, 4, about=(10.0, 20.0))


def test_a_loaded_memory_goes_on_with_the_history_that_led_to_it(small, make, footage, tmp_path):
    engine = stream(make(store=FrameStore(tmp_path / "kept", form="png")), footage)
    engine.copy_memory().write(tmp_path / "memory")
    engine.close()
    engine = make(store=FrameStore(tmp_path / "kept", form="png"))
    engine.load_memory(tmp_path / "memory")
    answered_alike(engine, offline(small, footage, range(2 * GRIDS)))
    stream(engine, footage, 2 * GRIDS, 2 * GRIDS + 4)
    answered_alike(engine, offline(small, footage, range(8, 16)), about=(4.0, 7.5))


def test_a_history_ahead_of_the_memory_that_is_loaded_is_not_searched(make, footage, tmp_path):
    stream(make(), footage, stop=16).copy_memory().write(tmp_path / "memory")
    engine = stream(make(), footage)
    engine.load_memory(tmp_path / "memory")
    assert engine.search(QUESTION) == []
    stream(engine, footage, 16, 24)
    assert all(episode.start >= 8.0 for episode in engine.search(QUESTION))


@pytest.mark.parametrize("saved_by", ["an earlier run", "another engine", "one without a history"])
def test_a_history_of_another_course_of_time_does_not_answer_for_a_memory(
    small, make, footage, tmp_path, saved_by
):
    engine = make(store=FrameStore(tmp_path / "kept", form="png"))
    saving = {
        "an earlier run": engine,
        "another engine": make(),
        "one without a history": VideoStreamingInference(*small, "cpu", CAP),
    }[saved_by]
    stream(saving, footage).copy_memory().write(tmp_path / "memory")
    engine.reset()
    stream(engine, footage[::-1], stop=24)  # within the time of the first
    engine.load_memory(tmp_path / "memory")
    assert engine.search(QUESTION) == []
    assert {tier.newest for tier in engine.get_cache_info().tiers} == {None}
    with pytest.raises(OutOfHorizonError):
        engine.ask(QUESTION, 2, about=(4.0, 5.5))
    stream(engine, footage, 2 * GRIDS, 2 * GRIDS + 4)
    assert {tier.oldest for tier in engine.get_cache_info().tiers} == {GRIDS}


def test_a_memory_of_what_was_taken_back_is_of_another_course_of_time(make, footage, tmp_path):
    engine = stream(make(config=None), footage, stop=16)
    engine.cache_manager.snapshot()
    stream(engine, footage, 16, 24).copy_memory().write(tmp_path / "memory")
    engine.cache_manager.restore()
    stream(engine, footage[::-1], 16, 24)
    engine.load_memory(tmp_path / "memory")
    assert engine.search(QUESTION) == []


def test_a_history_that_a_full_disk_cannot_end_is_not_searched_and_the_stream_goes_on(
    small, make, footage, tmp_path, monkeypatch, caplog
):
    stream(make(), footage, stop=16).copy_memory().write(tmp_path / "memory")
    engine = stream(make(store=FrameStore(tmp_path / "kept", form="png")), footage, stop=24)

    def full(*_, **__):
        raise FrameStoreError("no space left on the disk")

    with monkeypatch.context() as patched:
        for name in ("add", "start_epoch", "note_epoch"):
            patched.setattr(FrameStore, name, full)
        for name in ("draft", "start_epoch"):
            patched.setattr(KeyIndex, name, full)
        engine.load_memory(tmp_path / "memory")
        stream(engine, footage, 16, 24)
        assert engine.search(QUESTION) == [] and engine.thumbnail(2.0) is None
        assert {tier.newest for tier in engine.get_cache_info().tiers} == {None}
    plain = VideoStreamingInference(*small, "cpu", CAP)
    plain.load_memory(tmp_path / "memory")
    assert same(memory(engine), memory(stream(plain, footage, 16, 24)))
    said = [record.getMessage() for record in caplog.records]
    assert sum("will know of it once there is room" in text for text in said) == 1
    stream(engine, footage, 24, 32)
    engine.close()
    engine = make(store=FrameStore(tmp_path / "kept", form="png"))
    assert {(tier.oldest, tier.newest) for tier in engine.get_cache_info().tiers} == {(12.0, 15.5)}


def test_a_disk_that_takes_no_pictures_gets_no_keys_of_another_time(
    make, footage, tmp_path, monkeypatch
):
    stream(make(), footage, stop=16).copy_memory().write(tmp_path / "memory")
    engine = stream(make(store=FrameStore(tmp_path / "kept", form="png")), footage, stop=24)

    def full(*_, **__):
        raise FrameStoreError("no space left on the disk")

    with monkeypatch.context() as patched:
        for name in ("add", "start_epoch", "note_epoch"):
            patched.setattr(FrameStore, name, full)
        engine.load_memory(tmp_path / "memory")
        stream(engine, footage, 16, 24)
        engine.close()
    engine = make(store=FrameStore(tmp_path / "kept", form="png"))
    pictures, keys = engine.get_cache_info().tiers
    assert (pictures.oldest, pictures.newest, keys.grids) == (0.0, 11.5, 0)


# -- looking without asking -----------------------------------------------------------------------


def test_a_search_names_episodes_by_their_frames(make, footage):
    engine = stream(make(), footage)
    (episode,) = engine.search(QUESTION, about=(4.0, 7.5))
    assert 4.0 <= episode.start < episode.end <= 7.5
    assert set(episode.stamps) <= set(stamps_of(8, 16))
    for stamp in episode.stamps:
        shown = Image.open(io.BytesIO(engine.thumbnail(stamp, 42)))
        assert (shown.format, shown.size) == ("JPEG", (42, 28))
    assert engine.kept_stamp(5.1) == 5.0


@pytest.mark.parametrize("size", [0, -1, 1.5, "big"])
def test_sizes_and_counts_below_one_are_refused(make, footage, size):
    engine = stream(make(), footage, stop=8)
    with pytest.raises(InvalidParameterError):
        engine.thumbnail(0.0, size)
    with pytest.raises(InvalidParameterError):
        engine.search(QUESTION, count=size)


def test_an_index_without_room_for_two_grids_is_refused_or_told_of_at_the_start(
    small, fits, make, footage, caplog
):
    heads, width = len(fits(True).keys(small[0].config)), small[0].kv_shape.head_dim
    two = 2 * (heads * GRID * width * small[0].dtype.itemsize + ROW_BYTES)
    bounds = {"min_pixels": 56 * 84, "max_pixels": 56 * 84}  # a grid's, to the pixel
    stream(make(index_bytes=two, **bounds), footage, stop=4)
    assert not caplog.records
    with pytest.raises(InvalidParameterError, match="index_bytes is"):
        make(index_bytes=two - 1, **bounds)
    make(index_bytes=two, **{**bounds, "max_pixels": 56 * 112})
    assert "two grids of 6,272 pixels" in caplog.text


def test_a_mode_that_there_is_not_is_refused(make, footage):
    with pytest.raises(InvalidParameterError, match="history must be one of"):
        make(history="sometimes")
    engine = stream(make(), footage, stop=8)
    with pytest.raises(InvalidParameterError, match="history must be one of"):
        engine.ask(QUESTION, 4, history="Auto")


# -- the trained model ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def watched():
    """The trained model at the 110th second of a world; its memory holds 20 seconds."""
    world = RareWorld(31, hours=0.1, once=6, repeated=0, never=3)
    checkpoint = load_checkpoint(default_model(), "cpu", "float32")
    engine = RecallingInference(
        *checkpoint,
        eviction_config=EvictionConfig(20 * 20 + 32, sampled_share=0.0, important_share=0.0),
        calibration=Calibration.of(default_model(), checkpoint[0]),
    )
    for first in range(0, 110, 10):
        numbers = range(first, first + 10)
        engine.append_video_chunk(
            [picture for number in numbers for picture in world.grid(number)],
            timestamps=[stamp for number in numbers for stamp in grid_stamps(number)],
        )
    yield world, engine
    engine.close()


def test_what_left_the_memory_is_found_answered_and_named(watched):
    world, engine = watched
    now = 109.5
    gone = [
        (rare.thing, shown[-1])
        for rare in world.rare
        if (shown := world.shown(rare.thing.name, now)) and shown[-1].last < now - 25
    ]
    assert gone
    for thing, shown in gone:
        text, metrics = engine.ask(f"Where was the {thing.name} last seen?", 24)
        sighting = next(s for s in world.sightings(now) if s.thing == thing)
        assert text.strip() == (sighting.last_region if sighting.moves else sighting.region)
        assert metrics.fetched_tokens > 0
        assert metrics.episodes[-1].end == pytest.approx(shown.last, abs=2.0)
        alone, _ = engine.ask(f"Where was the {thing.name} last seen?", 24, history="never")
        assert alone != text


def test_what_was_never_shown_is_not_seen_and_names_no_episode(watched):
    world, engine = watched
    for thing in world.never:
        text, metrics = engine.ask(f"Where was the {thing.name} last seen?", 24)
        assert text.strip() == "not seen"
        assert metrics.episodes == ()
