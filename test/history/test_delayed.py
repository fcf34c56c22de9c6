# SPDX-FileCopyrightText: 2026 The stream_vlm developers
# SPDX-License-Identifier: Apache-2.0

"""The delayed batch engine answers as an engine that was given its frames, and encodes late."""

import contextlib
import dataclasses
import io
import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from stream_vlm_ros.config import Settings
from stream_vlm_ros.engine import VideoStreamingInference
from stream_vlm_ros.engine.decoding import Sampler
from stream_vlm_ros.errors import (
    EmptyMemoryError,
    InvalidChoicesError,
    InvalidImageError,
    InvalidParameterError,
    InvalidQuestionError,
    InvalidTimestampError,
    OutOfHorizonError,
    StreamBusyError,
)
from stream_vlm_ros.factory import default_model, load_engine
from stream_vlm_ros.history import DelayedBatchInferenceEngine, FrameStore, SmartFrameManager
from stream_vlm_ros.history.calibration import FILE_NAME, Calibration

CHOICES = ["red", "blue", "nothing at all"]


@pytest.fixture
def delayed(small):
    """A function: a delayed engine that keeps frames as they are."""

    def make(folder=None, window=20, fps=1.0, **options) -> DelayedBatchInferenceEngine:
        memory = SmartFrameManager(
            FrameStore(folder, form="png"), stream_window=window, target_fps=fps
        )
        return DelayedBatchInferenceEngine(*small, memory=memory, **options)

    return make


def filled(engine, pictures, first=0):
    for k, picture in enumerate(pictures):
        engine.add_frame(picture, float(first + k))
    return engine


def given_whole(small, grids, pictures, **options) -> VideoStreamingInference:
    """The streaming engine, with the frames of ``grids`` in one chunk."""
    engine = VideoStreamingInference(*small, max_pixels=100_352, **options)
    frames = [frame for grid in grids for frame in (grid if len(grid) == 2 else 2 * grid)]
    engine.append_video_chunk(
        [pictures[frame.id] for frame in frames], timestamps=[frame.stamp for frame in frames]
    )
    return engine


def scores(engine, question="What came last?", **options):
    return torch.tensor(engine.ask_choice(question, CHOICES, **options)[1]["scores"])


def test_the_references_log_is_reproduced(delayed, noise):
    """50 s at 1 fps, five questions, ten more frames: its spans, seconds a grid and counts."""
    pictures = noise(60)
    engine = filled(delayed(), pictures[:50])
    assert not engine.cache_valid and engine.counts.encode_count == 0
    for number in range(5):
        _, metrics = engine.ask("What do you see?", max_new_tokens=2)
        assert (metrics["encoded_tokens"] == 0) == (number > 0)
        assert engine.counts.encode_count == 1 and engine.cache_valid
    assert f"{engine.second_per_grid_t:.4f} {engine.time_span:.2f}" == "2.0417 49.00"
    assert engine.get_statistics()["frames_encoded"] == 48
    filled(engine, pictures[50:], first=50)
    assert not engine.cache_valid and engine.counts.encode_count == 1
    _, metrics = engine.ask("What do you see?", max_new_tokens=2)
    assert engine.counts.encode_count == 2 and engine.cache_valid
    assert f"{metrics['second_per_grid_t']:.4f} {metrics['time_span']:.2f}" == "2.4583 59.00"


@pytest.mark.parametrize("layout", ["continuous", "segmented"])
@pytest.mark.parametrize("count", [1, 2, 7, 48, 61])
def test_answers_are_those_of_an_engine_given_the_chosen_frames(
    small, delayed, noise, count, layout
):
    pictures = noise(count)
    engine = filled(delayed(layout=layout), pictures)
    grids = engine.memory.select(48)
    if layout == "continuous":
        oracle = given_whole(small, grids, pictures)
    else:  # chunks are turns of their own there: four grids each
        oracle = VideoStreamingInference(*small, max_pixels=100_352, layout=layout)
        for k in range(0, len(grids), 4):
            some = [f for grid in grids[k : k + 4] for f in (grid if len(grid) == 2 else 2 * grid)]
            oracle.append_video_chunk([pictures[f.id] for f in some], None, [f.stamp for f in some])
    torch.testing.assert_close(scores(engine), scores(oracle), atol=1e-4, rtol=0)
    assert engine.ask("Where?", 8)[0] == oracle.ask("Where?", 8)[0]


def test_grids_stand_at_their_own_times_not_at_a_mean(delayed, noise):
    # Two tokens a second in the model's config: t is twice the seconds since the first frame.
    times = [0.0, 0.5, 7.25, 8.0, 8.5, 9.0, 100.0, 100.5]
    engine = delayed(fps=0)
    for picture, time in zip(noise(8), times, strict=True):
        engine.add_frame(picture, 1000 + time)
    engine.ask("What?", 1)
    ledger = engine.cache_manager.ledger
    t = ledger.positions()[0, -engine.visual_tokens :].unflatten(0, (4, -1))
    assert (t[:, 0] - t[0, 0]).tolist() == [0, 14, 17, 200]
    assert (t == t[:, :1]).all()


def test_what_is_encoded_anew_behind_a_kept_prefix_is_exact(small, delayed, noise):
    pictures = noise(90)
    engine = filled(delayed(window=4, max_sampled_frames=24), pictures[:40])
    engine.ask("What?", 1)
    for more in (41, 44, 60, 90):
        filled(engine, pictures[engine.memory.frames_added : more], engine.memory.frames_added)
        oracle = given_whole(small, engine.memory.select(24), pictures)
        torch.testing.assert_close(scores(engine), scores(oracle), atol=1e-4, rtol=0)
    assert engine.counts.reused_tokens > 0
    held = engine.cache_manager.get_seq_length()
    assert held == oracle.cache_manager.get_seq_length()


def test_frames_that_only_follow_are_all_that_is_encoded(delayed, noise):
    pictures = noise(24)
    engine = filled(delayed(), pictures[:16])
    engine.ask("What?", 1)
    before = engine.visual_tokens
    filled(engine, pictures[16:], first=16)
    _, metrics = engine.ask("What?", 1)
    assert metrics["encoded_tokens"] == engine.visual_tokens - before == before / 2


def test_a_question_about_a_named_time_looks_there(small, delayed, noise):
    pictures = noise(200, 28, 28)
    engine = filled(delayed(), pictures)
    plain = scores(engine)
    assert engine.cache_valid
    named = scores(engine, about=(60, 80))
    grids = engine.memory.select(48, (60, 80))
    assert set(range(60, 81)) <= {frame.id for grid in grids for frame in grid}
    oracle = given_whole(small, grids, pictures)
    torch.testing.assert_close(named, scores(oracle), atol=1e-4, rtol=0)
    assert not engine.cache_valid  # for a question about everything
    torch.testing.assert_close(scores(engine), plain, atol=1e-4, rtol=0)
    with pytest.raises(OutOfHorizonError, match=r"from 500\.000 to 501\.000 s is stored"):
        engine.ask("What?", about=(500, 501))
    with pytest.raises(InvalidParameterError, match="ends before it begins"):
        engine.ask("What?", about=(9, 1))


def test_an_answer_says_which_stretches_of_time_it_rests_on(delayed, noise):
    engine = filled(delayed(window=4, max_sampled_frames=8), noise(20, 28, 28))
    _, metrics = engine.ask("What?", 1)
    chosen = [frame for grid in engine.memory.select(8) for frame in grid]
    spans = metrics["time_spans"]
    covered = {k for first, last in spans for k in range(int(first), int(last) + 1)}
    assert covered == {frame.id for frame in chosen} and len(covered) == 8
    assert all(one[1] + 1 < other[0] for one, other in itertools.pairwise(spans))
    assert (metrics["oldest_timestamp"], metrics["newest_timestamp"]) == (0.0, 19.0)


@pytest.mark.parametrize("kept", [5, 60])
def test_an_answer_names_all_that_was_read_in_three_episodes_at_most(delayed, noise, kept):
    engine = filled(delayed(window=4, max_sampled_frames=16), noise(kept, 28, 28))
    for _, metrics in (engine.ask("What?", 1), engine.ask_choice("What?", CHOICES)):
        read = [frame.stamp for grid in engine.memory.select(16) for frame in grid]
        episodes = metrics.episodes
        assert len(episodes) == (1 if kept == 5 else 3)
        inside = [[s for s in read if one.start <= s <= one.end] for one in episodes]
        assert list(itertools.chain(*inside)) == read, "each frame in one of them, oldest first"
        for one, own in zip(episodes, inside, strict=True):
            assert (one.start, one.end) == (own[0], own[-1])
            assert set(one.stamps) <= set(own) and len(one.stamps) == min(6, len(own))
        # Between them lie the widest of the gaps.
        between = [later.start - one.end for one, later in itertools.pairwise(episodes)]
        gaps = sorted(later - stamp for stamp, later in itertools.pairwise(read))
        assert sorted(between) == gaps[len(gaps) - len(between) :]


def test_an_answer_about_a_named_time_names_what_was_read_of_it(delayed, noise):
    engine = filled(delayed(window=4, max_sampled_frames=8), noise(60, 28, 28))
    _, metrics = engine.ask("What?", 1, about=(20.0, 24.5))
    read = [frame.stamp for grid in engine.memory.select(8, (20.0, 24.5)) for frame in grid]
    assert [stamp for one in metrics.episodes for stamp in one.stamps] == [
        stamp for stamp in read if 20.0 <= stamp <= 24.5
    ]


def test_pictures_of_the_frames_that_an_answer_names_are_shown(tmp_path, delayed, noise):
    engine = filled(delayed(tmp_path / "kept"), noise(6, 28, 42))
    _, metrics = engine.ask("What?", 1)
    for stamp in metrics.episodes[0].stamps:
        shown = Image.open(io.BytesIO(engine.thumbnail(stamp, 21)))
        assert (shown.format, shown.size) == ("JPEG", (21, 14))
    assert engine.thumbnail(2.5) is None and engine.kept_stamp(2.4) == 2.0
    (file,) = (tmp_path / "kept" / "pictures").rglob("*2.png")
    file.unlink()
    assert engine.thumbnail(2.0) is None


def test_an_answer_that_nothing_was_seen_names_no_episode(delayed, noise):
    engine = filled(delayed(), noise(6, 28, 28))
    choice, metrics = engine.ask_choice("What?", ["Not seen."])
    assert (choice, metrics.episodes) == ("Not seen.", ())


def test_that_nothing_was_seen_is_said_by_the_answers_of_the_calibration(noise, tmp_path):
    file = tmp_path / "calibration.json"
    shipped = Calibration.load(Path(default_model()) / FILE_NAME)
    dataclasses.replace(shipped, not_seen=("nothing",)).save(file)
    settings = Settings(device="cpu", engine="delayed_batch", history_calibration=str(file))
    with contextlib.closing(load_engine(settings)) as engine:
        filled(engine, noise(6, 56, 56))
        for answer, named in (("Nothing.", 0), ("not seen", 1)):
            choice, metrics = engine.ask_choice("What?", [answer])
            assert (choice, len(metrics.episodes)) == (answer, named)


def test_pictures_of_several_sizes_are_encoded(delayed, noise):
    engine = filled(delayed(), noise(5, 56, 84))
    filled(engine, noise(5, 84, 56), first=5)
    _, metrics = engine.ask("What?", 4)
    # Three grids of 2 x 3 tokens each (the fifth frame alone), then three of 3 x 2.
    assert metrics["frames_used"] == 10 and engine.visual_tokens == 36


def test_after_a_change_of_size_the_frames_that_are_kept_are_encoded_anew(delayed, noise):
    pictures = noise(8, 56, 84)
    engine, small = filled(delayed(), pictures), filled(delayed(max_pixels=28 * 56), pictures)
    large = scores(engine)
    assert engine.visual_tokens == 24  # four grids of 2 x 3 tokens
    engine.limit_pixels(28 * 56)
    torch.testing.assert_close(scores(engine), scores(small), atol=1e-5, rtol=0)
    assert engine.visual_tokens == small.visual_tokens == 4  # 28 x 28 pixels: as 56 : 84, in 28s
    engine.limit_pixels(None)
    torch.testing.assert_close(scores(engine), large, atol=1e-5, rtol=0)
    with pytest.raises(InvalidParameterError, match=r"min_pixels \(784\)"):
        engine.limit_pixels(783)


def test_asking_leaves_no_trace_and_answers_stream(delayed, noise):
    engine = filled(delayed(), noise(6))
    texts = []
    answer, metrics = engine.ask("What?", 6, on_token=texts.append)
    assert texts == sorted(texts, key=len) and (not texts or texts[-1] == answer)
    info = engine.get_cache_info()
    pieces = engine.ask_stream("What?", 6)
    assert "".join(pieces) == answer == engine.ask("What?", 6)[0]
    assert engine.get_cache_info()["cache_seq_length"] == info["cache_seq_length"]
    assert metrics["ttft"] >= metrics["encode_latency"] and metrics["latency"] >= metrics["ttft"]


def test_frames_may_come_while_an_answer_is_written_but_none_be_encoded(delayed, noise):
    pictures = noise(8)
    engine = filled(delayed(), pictures[:6])
    whole = engine.ask("What?", 12)[0]
    answer = engine.ask_stream("What?", 12)
    said = next(answer, "")
    filled(engine, pictures[6:], first=6)
    with pytest.raises(StreamBusyError, match="still being written"):
        engine.ask("And now?")
    assert said + "".join(answer) == whole
    assert engine.ask("And now?", 2)[1]["encoded_tokens"] > 0
    abandoned = engine.ask_stream("What?", 12)
    next(abandoned, "")
    engine.add_frame(pictures[0], 9.0)
    abandoned.close()
    engine.ask("And now?", 2)


def test_an_exchange_that_is_kept_stays_and_follows_the_frames(small, delayed, noise, monkeypatch):
    pictures = noise(12)
    engine = filled(delayed(), pictures[:6])
    before = scores(engine)
    said, _ = engine.ask("What is the colour?", 8, update_state=True)
    with_exchange = scores(engine)
    assert (with_exchange - before).abs().max() > 1e-3
    assert engine.get_cache_info()["exchanges"] == 1

    filled(engine, pictures[6:], first=6)
    oracle = given_whole(small, engine.memory.select(48), pictures)
    words = small[1].tokenizer.encode(said, add_special_tokens=False)
    spoken = iter(words)
    with monkeypatch.context() as speaking:  # it says the same, though it has seen more
        speaking.setattr(Sampler, "choose", lambda self, logits: next(spoken))
        assert oracle.ask("What is the colour?", len(words), update_state=True)[0] == said
    torch.testing.assert_close(scores(engine), scores(oracle), atol=1e-4, rtol=0)
    engine.reset()
    filled(engine, pictures[:6])
    torch.testing.assert_close(scores(engine), before, atol=1e-5, rtol=0)


def test_a_cancelled_exchange_is_not_kept(delayed, noise):
    engine = filled(delayed(), noise(4))
    engine.ask("What?", 8, update_state=True, cancel=lambda: True)
    assert engine.get_cache_info()["exchanges"] == 0


def test_a_lost_picture_is_left_out_and_the_question_answered(tmp_path, delayed, noise):
    engine = filled(delayed(tmp_path), noise(10))
    picture = sorted((tmp_path / "pictures").rglob("*.png"))[4]
    picture.write_bytes(b"\x00" * picture.stat().st_size)
    _, metrics = engine.ask("What?", 2)
    assert metrics["frames_used"] == 9
    assert engine.get_statistics()["frames_forgotten"] == 1 and engine.cache_valid
    engine.close()


def test_an_engine_goes_on_with_what_the_folder_holds(tmp_path, delayed, noise):
    first = filled(delayed(tmp_path), noise(20))
    wanted = scores(first)
    first.close()
    second = delayed(tmp_path)
    assert second.get_cache_info()["newest_timestamp"] == 19.0
    torch.testing.assert_close(scores(second), wanted, atol=1e-5, rtol=0)
    second.close()


def test_a_question_is_of_frames_that_wait_after_a_pause_too(delayed, noise):
    engine = delayed(fps=0)
    engine.append_video_chunk(noise(4), timestamps=[0.0, 1.0, 2.0, 3.0])
    engine.ask("What?", max_new_tokens=1)
    assert engine.add_frame(noise(1)[0], 603.0).kept == 0
    _, metrics = engine.ask("What?", max_new_tokens=1)
    assert metrics.frames_used == 5 and metrics.time_span == 603.0


def test_frames_without_stamps_follow_one_that_waits(delayed, noise):
    engine = delayed(fps=0)
    engine.append_video_chunk(noise(4), timestamps=[0.0, 1.0, 2.0, 603.0])
    engine.append_video_chunk(noise(2), fps=0.5)
    assert engine.memory.last_stamp == 607.0
    assert engine.get_statistics().frames_waiting == 0


def test_it_has_the_face_of_the_streaming_engine(small, delayed, noise):
    streaming, engine = VideoStreamingInference(*small), delayed(fps=0)
    for one in (streaming, engine):
        with pytest.raises(EmptyMemoryError):
            one.ask("What?")
        with pytest.raises(EmptyMemoryError):
            one.ask_choice("What?", CHOICES)
        assert one.get_cache_info()["newest_timestamp"] is None
        one.append_video_chunk(noise(4), fps=2.0)
        one.append_video_chunk(noise(2))
        one.append_frame(noise(1)[0])
        assert one.get_cache_info()["newest_timestamp"] == 3.5
        with pytest.raises(InvalidTimestampError, match="runs backwards"):
            one.append_frame(noise(1)[0], 1.0)
        with pytest.raises(InvalidTimestampError, match="2 frames came with 1"):
            one.append_video_chunk(noise(2), timestamps=[9.0])
        with pytest.raises(InvalidTimestampError, match="fps must be"):
            one.append_video_chunk(noise(2), fps=0)
        with pytest.raises(InvalidImageError):
            one.append_frame(np.zeros((4, 4), np.float64), 9.0)
        with pytest.raises(InvalidQuestionError):
            one.ask(" ")
        with pytest.raises(InvalidChoicesError):
            one.ask_choice("What?", [])
        one.ask("What?", max_new_tokens=2, do_sample=True, temperature=0.7, top_p=0.9, seed=1)
    ours, theirs = engine.get_cache_info(), streaming.get_cache_info()
    assert set(theirs) <= set(ours)
    for name in ("chunks", "frames", "oldest_timestamp", "newest_timestamp", "time_spans"):
        assert ours[name] == theirs[name], name
    metrics = [one.ask("What?", max_new_tokens=2)[1] for one in (streaming, engine)]
    assert set(metrics[0]) <= set(metrics[1])
    engine.reset(), streaming.reset()
    assert engine.get_cache_info()["frames"] == 0
    with pytest.raises(EmptyMemoryError):
        engine.ask("What?")
    engine.append_frame(noise(1)[0], 0.0)  # time may start over


def test_a_chunk_is_kept_whole_or_not_at_all(delayed, noise):
    engine = filled(delayed(), noise(3))
    with pytest.raises(InvalidTimestampError):
        engine.append_video_chunk(noise(3), timestamps=[3.0, 4.0, 3.5])
    with pytest.raises(InvalidImageError):
        engine.append_video_chunk([*noise(1), "no picture"], timestamps=[3.0, 4.0])
    assert engine.get_statistics()["frames_added"] == 3


@pytest.mark.parametrize("frames", [1, 0, 2.5, True])
def test_too_few_sampled_frames_are_refused(small, frames):
    with pytest.raises(InvalidParameterError, match="max_sampled_frames"):
        DelayedBatchInferenceEngine(*small, max_sampled_frames=frames)
